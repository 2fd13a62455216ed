"""Find and check the files of an open_clip judge."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from analogy.core.errors import ModelError
from analogy.core.text import command_line
from analogy.models.libraries import open_clip
from analogy.models.networks import check_weights, read_object
from analogy.models.places import absent
from analogy.models.trust.judges import JUDGE_WEIGHTS, OPEN_CLIP_CONFIG, JudgeFiles, check_judge
from analogy.models.trust.rules import TOKENIZER_FILES

#: The file of weights that open_clip looks for in a hub repository.
HUB_WEIGHTS = JUDGE_WEIGHTS[0]
HUB, FOLDER = "hf-hub:", "local-dir:"
PICKLED_WEIGHTS = "open_clip_pytorch_model.bin"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a judge's images are preprocessed, in open_clip's terms, without the size.

    ``mean`` and ``std``: by channel, for values 0..1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str

    def __str__(self) -> str:
        mean, std = ("/".join(f"{x:.4g}" for x in of) for of in (self.mean, self.std))
        return f"mean {mean}, std {std}, {self.interpolation}, {self.resize_mode}"


#: open_clip's default, which is not part of a fingerprint.
USUAL = Preprocessing(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic", "shortest"
)


def hub_judge(repository: str, *, offline: bool) -> Path:
    """The checked snapshot of a judge's repository, with all files of one commit.

    Raises ``ModelError`` if files are missing, or refused.
    """
    weights = hub_file(repository, (HUB_WEIGHTS,), offline=offline)
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=weights.parent.name,
                allow_patterns=[HUB_WEIGHTS, OPEN_CLIP_CONFIG, *TOKENIZER_FILES],
                local_files_only=offline,
            )
        )
    except (OSError, ValueError) as error:
        raise absent(f"judge {HUB}{repository}", repository, "", error, offline=offline) from error
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        why = OSError(f"it has no {OPEN_CLIP_CONFIG}")
        raise absent(f"judge {HUB}{repository}", repository, "", why, offline=offline)
    check_folder(folder, repository)
    return folder


def check_folder(folder: Path, repository: str | None = None) -> JudgeFiles:
    """The files of a judge's folder. Raises ``ModelError`` if it is unsafe or incomplete."""
    files = check_judge(folder, repository)
    check_weights(folder, [files.weights])
    _check_configuration(folder / OPEN_CLIP_CONFIG)
    return files


def tokenizer_of(files: JudgeFiles) -> Any:
    """The tokenizer of a judge's folder, or of the repository that it names. Runs no code of it."""
    name = f"{FOLDER}{files.folder}"
    if files.tokenizer is None:
        return open_clip.get_tokenizer(name)
    if isinstance(files.tokenizer, Path):
        return open_clip.get_tokenizer(name, trust_remote_code=False)
    settings = open_clip.get_model_config(name)["text_cfg"]
    return open_clip.tokenizer.HFTokenizer(
        files.tokenizer,
        context_length=settings.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=settings.get("tokenizer_mode"),
        trust_remote_code=False,
        **settings.get("tokenizer_kwargs", {}),
    )


def preprocessing_of(name: str, tag: str) -> Preprocessing:
    """The preprocessing that open_clip has for the weights of this tag."""
    settings = {**asdict(USUAL), **open_clip.get_pretrained_cfg(name, tag)}
    return Preprocessing(
        tuple(map(float, settings["mean"])),
        tuple(map(float, settings["std"])),
        settings["interpolation"],
        settings["resize_mode"],
    )


def _check_configuration(file: Path) -> None:
    """Raise :class:`ModelError` unless a judge's configuration has its architecture, and the mean
    and standard deviation of its images.
    """
    found = read_object(file, "model_cfg", "preprocess_cfg", what="a judge's configuration")
    for name, keys in (
        ("model_cfg", ("embed_dim", "vision_cfg", "text_cfg")),
        ("preprocess_cfg", ("mean", "std")),
    ):
        part = found[name]
        missing = [key for key in keys if not isinstance(part, dict) or key not in part]
        if missing:
            raise ModelError(
                f"{file}: expected {name} as an object with {', '.join(keys)}, found no "
                f"{missing[0]}; without it open_clip would take a value of its own"
            )
    preprocessing = found["preprocess_cfg"]
    assert isinstance(preprocessing, dict)
    for key in ("mean", "std"):
        values = preprocessing[key]
        is_numbers = (
            isinstance(values, list)
            and len(values) == 3
            and all(type(x) in (int, float) and (x or key != "std") for x in values)
        )
        if not is_numbers:
            raise ModelError(
                f"{file}: expected {key} as three numbers, one for each channel, none of std 0, "
                f"got {values!r:.80}"
            )


def expect_on_this_machine(name: str, tag: str) -> None:
    """Raise ``ModelError`` unless a tag's weights are where ``download_pretrained`` keeps them."""
    config = open_clip.get_pretrained_cfg(name, tag)
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    if repository:
        names = (HUB_WEIGHTS, PICKLED_WEIGHTS)
        if file:
            names = (str(Path(file).with_suffix(".safetensors")), file)
        hub_file(repository, names, offline=True)
        return
    cached = Path(expanduser("~/.cache/clip")) / Path(config.get("url", "")).name
    if not cached.is_file():
        command = command_line(
            "curl", "-L", "--create-dirs", "-o", cached, config.get("url", "URL")
        )
        raise ModelError(
            f"judge {name}/{tag}: {cached} is not on this machine and --offline fetches nothing; "
            f"where there is a network, fetch it with: {command}",
            command,
        )


def hub_file(repository: str, names: tuple[str, ...], *, offline: bool) -> Path:
    """The first of these files that the repository has, fetched unless ``offline``.

    Raises ``ModelError`` if it has none of them, or if they are not on this machine.
    """
    failure: Exception | None = None
    for file in names:
        try:
            return Path(hf_hub_download(repository, file, local_files_only=offline))
        except LocalEntryNotFoundError as error:
            failure = error
        except EntryNotFoundError as error:
            failure = error
            if file == names[-1]:
                raise ModelError(
                    f"judge hf-hub:{repository}: expected {names[0]}; pickled weights are not "
                    "loaded, since loading a pickle runs whatever code is in it; choose a judge "
                    "with safetensors"
                ) from error
        except (OSError, ValueError) as error:
            failure = error
    raise absent(f"judge hf-hub:{repository}", repository, "", failure, offline=offline)


@contextmanager
def unwarned() -> Iterator[None]:
    """Suppress open_clip's warning that a network is random: its weights are loaded right after."""

    def is_said(record: logging.LogRecord) -> bool:
        return record.funcName != "create_model"

    root = logging.getLogger()
    root.addFilter(is_said)
    try:
        yield
    finally:
        root.removeFilter(is_said)


def preprocessing_layers(config: dict[str, Any]) -> nn.Module:
    """open_clip's own image transform, for whole batches of uint8 tensors and on any device.

    Raises ``ModelError`` for another ``resize_mode`` than ``shortest`` and ``squash``.
    """
    mode = config.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise ModelError(
            "the judge's preprocessing: expected resize_mode 'shortest' or 'squash', "
            f"got {mode!r}; choose another judge"
        )
    height, width = _pair(config["size"])
    interpolation = transforms.InterpolationMode(config.get("interpolation", "bicubic"))
    size = [height, width] if mode == "squash" else [min(height, width)]
    return nn.Sequential(
        v2.Resize(size, interpolation=interpolation, antialias=True),
        v2.CenterCrop([height, width]),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(config["mean"], config["std"]),
    )


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
