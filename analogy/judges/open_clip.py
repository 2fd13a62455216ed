"""The judge: an open_clip model, loaded once, that turns images and prompts into features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from analogy.core.errors import ModelError
from analogy.core.images import Images, to_tensor
from analogy.judges.margin import cosine
from analogy.judges.open_clip_files import (
    FOLDER,
    HUB,
    USUAL,
    Preprocessing,
    check_folder,
    expect_on_this_machine,
    hub_judge,
    preprocessing_layers,
    preprocessing_of,
    tokenizer_of,
    unwarned,
)
from analogy.models.fingerprints import file_fingerprint, fingerprint
from analogy.models.libraries import open_clip
from analogy.models.networks import loading, refuse_resized, shapes_in
from analogy.models.places import EMBEDDED, shipped
from analogy.models.trust.judges import OPEN_CLIP_CONFIG, JudgeFiles
from analogy.models.trust.rules import refuse_pickles

Features = NDArray[np.float32]

#: The most pixels, and the most images, that are preprocessed and encoded at a time. On a CPU that
#: is 32 images of 1024 pixels a side, 0.1 GB: more are no faster. Small images are many, since
#: threads that share a small batch wait for each other more than they work. A GPU has four times as
#: many, which was not measured yet: 0.4 GB of pixels go there before they are resized.
CPU_PIXELS, GPU_PIXELS = 32 * 2**20, 128 * 2**20
MOST_IMAGES = 256


@dataclass(frozen=True, slots=True)
class JudgeSource:
    """How open_clip loads a judge, and the judge's fingerprint.

    - ``name``: an architecture's name, ``hf-hub:...`` or ``local-dir:...``;
    - ``pretrained``: the tag or the file of the weights; None if the name includes the weights;
    - ``dtype``: what it computes in. It is in the fingerprint if it is not float32, since other
      dtypes give other scores;
    - ``preprocessing``: of images, for weights in a file, which does not contain it;
    - ``snapshot``: the folder of an ``hf-hub:`` repository's files at the fingerprint's commit;
    - ``recorded``: True if it is known only from a run folder. Loading it is then an error, since
      nobody has confirmed it.
    """

    name: str
    pretrained: str | None
    fingerprint: str
    dtype: str = "float32"
    preprocessing: Preprocessing | None = None
    snapshot: Path | None = None
    recorded: bool = False

    @property
    def places(self) -> list[Path]:
        """Its files and folders on this machine; empty for weights that open_clip has a tag for."""
        places = [] if self.snapshot is None else [self.snapshot]
        if self.name.startswith(FOLDER):
            places.append(Path(self.name.removeprefix(FOLDER)))
        if self.pretrained is not None and Path(self.pretrained).is_absolute():
            places.append(Path(self.pretrained))
        return places

    def tokenizer(self) -> Any:
        """The judge's own tokenizer, without the judge: prompts -> token ids ``(n, context)``.

        Raises ``ModelError`` if it cannot be loaded.
        """
        files = _files(self)
        with loading(f"judge {self.name}", "a tokenizer that can be loaded"):
            if files is not None:
                return tokenizer_of(files)
            return open_clip.get_tokenizer(self.name)

    def load(self, device: str) -> Judge:
        """The judge, loaded on this device. Raises ``ModelError`` if it cannot be loaded."""
        return Judge(self, device=device).load()

    def in_dtype(self, dtype: str) -> JudgeSource:
        """The same judge, computing in ``dtype``: float32, bfloat16 or float16."""
        base = self.fingerprint.removesuffix(f"+{self.dtype}")
        name = base if dtype == "float32" else f"{base}+{dtype}"
        return replace(self, fingerprint=name, dtype=dtype)


def find_judge(name: str, pretrained: str | None, *, offline: bool = False) -> JudgeSource:
    """Find the judge of ``--clip-model`` and ``--clip-pretrained`` without loading it.

    ``name``: ``embedded``, a folder in open_clip's format, ``hf-hub:<id>`` (its weights are
    fetched, to determine their commit), or one of open_clip's architectures. ``pretrained``, with
    an architecture: one of its weights' tags, a ``.safetensors`` file, or ``TAG:FILE``, a file
    whose images are preprocessed as for this tag's weights. ``offline``: raise a
    :class:`ModelError` for files that are not on this machine.
    """
    folder = shipped("models/clip-tiny") if name == EMBEDDED else Path(expanduser(name))
    if folder.is_dir():
        if not (folder / OPEN_CLIP_CONFIG).is_file():
            raise ModelError(
                f"{folder}: expected a judge in open_clip's format, with {OPEN_CLIP_CONFIG}"
            )
        check_folder(folder)
        return JudgeSource(f"{FOLDER}{folder.resolve()}", None, fingerprint(folder))
    if name.startswith(HUB):
        place = hub_judge(name.removeprefix(HUB), offline=offline)
        # A snapshot's folder is named by its commit.
        return JudgeSource(name, None, f"{name}@{place.name[:12]}", snapshot=place)
    architectures = open_clip.list_models()
    if name not in architectures:
        near = get_close_matches(name, architectures, n=3) or ["ViT-B-32"]
        raise ModelError(
            f"--clip-model {name!r}: expected '{EMBEDDED}', a folder, 'hf-hub:<id>' or one of "
            f"open_clip's {len(architectures)} names, such as {', '.join(near)}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained and pretrained not in tags:
        tag, colon, path = pretrained.partition(":")
        is_told = bool(colon) and tag in tags
        file = Path(expanduser(path if is_told else pretrained)).absolute()
        if file.is_file():
            return _judge_of_file(name, file, tags, [tag] if is_told else tags)
    if pretrained is None or pretrained not in tags:
        raise ModelError(
            f"--clip-pretrained {pretrained!r} for {name}: expected a file, TAG:FILE, or one of "
            f"{', '.join(tags) or 'no tags, since open_clip has none of it'}"
        )
    if offline:
        expect_on_this_machine(name, pretrained)
    return JudgeSource(name, pretrained, f"{name}/{pretrained}")


def _files(source: JudgeSource) -> JudgeFiles | None:
    """The checked files of a folder or snapshot; None for an architecture of open_clip's own.

    They are checked again on loading: they may be another machine's, or have changed since.
    """
    if source.recorded:
        raise ModelError(
            f"judge {source.fingerprint}: known from a run folder alone, which says nothing that "
            "is loaded; name the judge"
        )
    if source.name.startswith(FOLDER):
        return check_folder(Path(source.name.removeprefix(FOLDER)))
    if source.name.startswith(HUB):
        snapshot = source.snapshot or find_judge(source.name, None).snapshot
        assert snapshot is not None
        return check_folder(snapshot, source.name.removeprefix(HUB))
    return None


def _judge_of_file(name: str, file: Path, tags: Sequence[str], like: Sequence[str]) -> JudgeSource:
    """A judge with weights in a file, which does not say how images are preprocessed.

    The preprocessing is taken from the tags ``like``: all of the architecture's, or the one that
    the user named. Raises ``ModelError`` unless they agree.
    """
    refuse_pickles([file])
    if file.suffix != ".safetensors":
        raise ModelError(f"--clip-pretrained {file}: expected a .safetensors file")
    shapes_in(file)
    ways: dict[Preprocessing, list[str]] = {}
    for tag in like:
        ways.setdefault(preprocessing_of(name, tag), []).append(tag)
    if len(ways) != 1:
        known = "; ".join(f"{way}: {', '.join(of)}" for way, of in ways.items())
        raise ModelError(
            f"--clip-pretrained {file}: expected to know how images are preprocessed for these "
            f"weights, and open_clip's tags of {name} "
            + (f"differ ({known}); say which, as TAG:FILE" if tags else "are none")
            + "; or put the file into a folder with an open_clip_config.json, whose preprocess_cfg "
            "says mean, std, interpolation and resize_mode, and name that with --clip-model"
        )
    (way,) = ways
    fingerprint = file_fingerprint(f"{name}/{file.stem}", file)
    if way != USUAL:
        fingerprint += f"+{hashlib.sha256(repr(way).encode()).hexdigest()[:8]}"
    return JudgeSource(name, str(file), fingerprint, preprocessing=way)


class Judge:
    """An open_clip model and its preprocessing. Features are float32, L2-normalised, on the CPU.

    Images are scaled in float32; the towers compute in the source's dtype. ``tokenize`` is the
    model's own tokenizer: prompts -> token ids ``(n, context)``. The model is loaded at its first
    use, or by :meth:`load`.
    """

    def __init__(self, source: JudgeSource, *, device: str) -> None:
        self.fingerprint = source.fingerprint
        self.device = device
        self._source = source
        self._dtype = getattr(torch, source.dtype)
        self._texts: dict[str, Features] = {}

    def load(self) -> Judge:
        """Load the model now, and return this judge. Raises ``ModelError`` if that fails."""
        self._preprocess  # noqa: B018
        self.tokenize  # noqa: B018
        return self

    @cached_property
    def tokenize(self) -> Any:
        """The model's own tokenizer, which works without loading the model."""
        return self._source.tokenizer()

    @cached_property
    def _model(self) -> Any:
        source = self._source
        files = _files(source)
        way = source.preprocessing
        with (
            # The first use may be in inference mode. Weights made in it cannot be used outside it.
            torch.inference_mode(False),
            loading(self._what, "one that open_clip can load with each of its weights"),
            nullcontext() if files is None else unwarned(),
        ):
            model = open_clip.create_model(
                source.name if files is None else f"{FOLDER}{files.folder}",
                pretrained=source.pretrained,
                load_weights=files is None,
                pretrained_text=files is None,
                precision="fp32",
                device=self.device,
                force_preprocess_cfg=None if way is None else asdict(way),
                require_pretrained=files is None,
            )
            if files is not None:
                # This file and no other: open_clip's own choice may be a pickle.
                open_clip.load_checkpoint(model, str(files.weights))
        weights = source.pretrained if files is None else files.weights
        if weights is not None and Path(weights).is_file():  # and not a tag of open_clip's own
            refuse_resized(Path(weights), model)
        model.eval().requires_grad_(False).to(self._dtype)
        return model

    @cached_property
    def _preprocess(self) -> nn.Module:
        with loading(self._what, "preprocessing by size, mean, std, interpolation and resize_mode"):
            return preprocessing_layers(open_clip.get_model_preprocess_cfg(self._model))

    @property
    def _what(self) -> str:
        return f"judge {self.fingerprint}"

    def score(self, images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Cosine similarity of each image and its own prompt, ``(n,)``, -1..1.

        ``images``: uint8 ``(n, height, width, 3)``; ``prompts``: n.
        """
        return cosine(self.image_features(images), self.text_features(prompts))

    @torch.inference_mode()
    def image_features(self, images: Images, *, batch_size: int | None = None) -> Features:
        """uint8 NHWC images, ``(n, height, width, 3)`` -> unit vectors ``(n, dim)``.

        ``batch_size``: images preprocessed and encoded at a time [default: by their size].
        """
        size = batch_size or judge_batch(images, self.device)
        features = []
        for i in range(0, len(images), size):
            pixels = self._preprocess(to_tensor(images[i : i + size]).to(self.device))
            features.append(self._encode_image(pixels))
        return _numpy(features)

    def _encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """The image tower: preprocessed images -> features, normalised in float32."""
        return F.normalize(self._model.encode_image(pixels.to(self._dtype)).float(), dim=-1)

    @torch.inference_mode()
    def text_features(self, prompts: Sequence[str], *, batch_size: int = 256) -> Features:
        """Prompts -> unit vectors ``(n, dim)``, each distinct prompt encoded once and then kept."""
        new = sorted(set(prompts) - self._texts.keys())
        for i in range(0, len(new), batch_size):
            chunk = new[i : i + batch_size]
            tokens = self.tokenize(chunk).to(self.device)
            features = _numpy([F.normalize(self._model.encode_text(tokens).float(), dim=-1)])
            self._texts.update(zip(chunk, features, strict=True))
        return np.stack([self._texts[prompt] for prompt in prompts])


def judge_batch(images: Images, device: str = "cpu") -> int:
    """How many images of this size, ``(n, height, width, 3)``, a judge encodes at a time."""
    height, width = images.shape[1:3]
    pixels = CPU_PIXELS if device == "cpu" else GPU_PIXELS
    return min(max(pixels // (height * width), 1), MOST_IMAGES)


def _numpy(features: list[torch.Tensor]) -> Features:
    return torch.cat(features).cpu().numpy()
