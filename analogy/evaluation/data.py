"""The data of a task: prompts, prompt-image pairs, a folder of images, or word pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from analogy.core.images import Images
from analogy.core.records import Pair
from analogy.evaluation.folders import (
    METADATA,
    METADATA_EXAMPLE,
    Picture,
    by_name,
    check_file,
    read_folder,
    shown,
)
from analogy.evaluation.protocol import TaskError
from analogy.evaluation.samples import FeatureCache, Samples, stacked
from analogy.metrics.checks import check_images
from analogy.settings.pairs import load_pairs


@dataclass(frozen=True, slots=True)
class Sample:
    """An image that a model has to make for a task.

    - ``key``: its name in results;
    - ``cluster``: the prompt or the id of the pair; a cluster is resampled with all its images;
    - ``prompt``: what the image should show;
    - ``pair``, ``alpha``: set for word pairs, otherwise None.
    """

    key: str
    cluster: str
    prompt: str
    seed: int
    pair: Pair | None = None
    alpha: float | None = None


def steered(pair: Pair, alpha: float, seed: int) -> Sample:
    """A pair's image at a strength; at alpha 0 it should show the source prompt."""
    prompt = pair.target_prompt if alpha else pair.source_prompt
    return Sample(f"{pair.id} alpha {alpha:.12g} #{seed}", pair.id, prompt, seed, pair, alpha)


#: Reads the reference images of data; the keys are those of its ``pictures``.
References: TypeAlias = Callable[[], Mapping[str, Images]]


class Data(ABC):
    """A task's data in one of its four forms.

    ``kind``: the name of the form; ``prompts``, ``pairs`` and ``files`` (images by name without
    suffix, only for a folder of images without prompts) are empty in the other forms.
    """

    kind: ClassVar[str]
    prompts: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()

    @property
    def files(self) -> Mapping[str, Path]:
        """The images of a folder without prompts, by name."""
        return {}

    @property
    def pictures(self) -> Mapping[str, Picture]:
        """The reference images, by prompt or name."""
        return {}

    @abstractmethod
    def __len__(self) -> int:
        """The number of prompts, images or pairs."""

    @abstractmethod
    def samples(self, seeds: Sequence[int], alphas: Sequence[float]) -> tuple[Sample, ...]:
        """The images that a model has to make; empty if only folders of images can be evaluated."""

    @abstractmethod
    def provides(self) -> frozenset[str]:
        """The fields of :class:`~analogy.evaluation.samples.Samples` that this data provides in
        single mode, beside ``images``.
        """

    @abstractmethod
    def given(
        self,
        images: Mapping[str, Images],
        samples: Sequence[Sample],
        needs: frozenset[str],
        references: References,
        cache: FeatureCache,
    ) -> Samples:
        """The input of metrics with these needs, without the set of references.

        ``images``: a model's images by the key of each sample, for word pairs also those at alpha
        0; ``samples``: those to score, empty for a folder of images, whose names are the keys.
        """


def _prompted(
    images: Mapping[str, Images], samples: Sequence[Sample], cache: FeatureCache
) -> Samples:
    """The images of samples, each with its prompt."""
    return Samples(
        keys=tuple(sample.key for sample in samples),
        images=stacked({sample.key: images[sample.key] for sample in samples}, "images"),
        prompts=tuple(sample.prompt for sample in samples),
        cache=cache,
    )


@dataclass(frozen=True)
class Prompts(Data):
    """Prompts alone."""

    kind: ClassVar[str] = "prompts"
    prompts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def samples(self, seeds: Sequence[int], alphas: Sequence[float]) -> tuple[Sample, ...]:
        """An image for each prompt and seed."""
        return tuple(
            Sample(f"{prompt} #{seed}", prompt, prompt, seed)
            for prompt in self.prompts
            for seed in seeds
        )

    def provides(self) -> frozenset[str]:
        """A prompt for each image."""
        return frozenset({"prompts"})

    def given(
        self,
        images: Mapping[str, Images],
        samples: Sequence[Sample],
        needs: frozenset[str],
        references: References,
        cache: FeatureCache,
    ) -> Samples:
        """The images and their prompts."""
        return _prompted(images, samples, cache)


@dataclass(frozen=True)
class PromptImages(Prompts):
    """Prompts, each with a reference image: ``by_prompt``."""

    kind: ClassVar[str] = "prompt-image pairs"
    by_prompt: Mapping[str, Picture] = field(default_factory=dict)

    @property
    def pictures(self) -> Mapping[str, Picture]:
        """The reference of each prompt."""
        return self.by_prompt

    def provides(self) -> frozenset[str]:
        """A prompt and a reference for each image, and the set of those."""
        return super().provides() | {"references", "reference_set"}

    def given(
        self,
        images: Mapping[str, Images],
        samples: Sequence[Sample],
        needs: frozenset[str],
        references: References,
        cache: FeatureCache,
    ) -> Samples:
        """The images, their prompts and references."""
        made = super().given(images, samples, needs, references, cache)
        if "references" not in needs:
            return made
        known = references()
        one_each = {sample.key: known[sample.prompt] for sample in samples}
        return replace(made, references=stacked(one_each, "references"))


@dataclass(frozen=True)
class ImageFolder(Data):
    """Images without prompts: references for a folder of images with the same names."""

    kind: ClassVar[str] = "images alone"
    by_name: Mapping[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> Mapping[str, Path]:
        """The images by name."""
        return self.by_name

    @property
    def pictures(self) -> Mapping[str, Picture]:
        """The images by name."""
        return self.by_name

    def __len__(self) -> int:
        return len(self.by_name)

    def samples(self, seeds: Sequence[int], alphas: Sequence[float]) -> tuple[Sample, ...]:
        """Empty: without prompts a model has nothing to generate."""
        return ()

    def provides(self) -> frozenset[str]:
        """A reference for each image of the same name, and the set of them."""
        return frozenset({"references", "reference_set"})

    def given(
        self,
        images: Mapping[str, Images],
        samples: Sequence[Sample],
        needs: frozenset[str],
        references: References,
        cache: FeatureCache,
    ) -> Samples:
        """The images, and their references if every image has one."""
        made = Samples(keys=tuple(images), images=stacked(images, "images"), cache=cache)
        if "references" not in needs or not images.keys() <= self.by_name.keys():
            return made
        known = references()
        one_each = {key: known[key] for key in images}
        return replace(made, references=stacked(one_each, "references"))


@dataclass(frozen=True)
class WordPairs(Data):
    """Word pairs, whose images are steered."""

    kind: ClassVar[str] = "word pairs"
    pairs: tuple[Pair, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def samples(self, seeds: Sequence[int], alphas: Sequence[float]) -> tuple[Sample, ...]:
        """An image for each pair, alpha and seed."""
        return tuple(
            steered(pair, alpha, seed) for pair in self.pairs for alpha in alphas for seed in seeds
        )

    def provides(self) -> frozenset[str]:
        """Both prompts of each image, and its image at alpha 0, which is its reference."""
        return frozenset({"prompts", "source_prompts", "sources", "references"})

    def given(
        self,
        images: Mapping[str, Images],
        samples: Sequence[Sample],
        needs: frozenset[str],
        references: References,
        cache: FeatureCache,
    ) -> Samples:
        """The images, both prompts and the images at alpha 0."""
        pairs = [sample.pair for sample in samples if sample.pair is not None]
        source_prompts = tuple(pair.source_prompt for pair in pairs)
        made = replace(_prompted(images, samples, cache), source_prompts=source_prompts)
        if not needs & {"sources", "references"}:
            return made
        unsteered = {
            sample.key: images[steered(pair, 0.0, sample.seed).key]
            for sample, pair in zip(samples, pairs, strict=True)
        }
        sources = stacked(unsteered, "images at alpha 0")
        return replace(made, sources=sources, references=sources)


def read_data(given: Any) -> Data:
    """A task's data. Raises :class:`TaskError` if it has none of the four forms or is invalid."""
    if isinstance(given, (str, PathLike)):
        return _of_path(Path(expanduser(given)), str(given))
    try:
        items = list(given)
    except TypeError:
        items = []
    if not items or isinstance(given, (Mapping, np.ndarray)):
        raise TaskError(f"data: expected {_FORMS}; got {shown(given)}")
    kind = _kind(items[0])
    for i, item in enumerate(items):
        if kind is None or _kind(item) is not kind:
            raise TaskError(f"data: expected {_FORMS}; got {shown(item)} at place {i}")
    if kind is Pair:
        return _of_pairs(items)
    if kind is str:
        return Prompts(_prompts(items))
    prompts = _prompts([prompt for prompt, _ in items])
    pictures = {prompt: _picture(image, prompt) for prompt, image in items}
    return PromptImages(prompts, pictures)


def _kind(item: Any) -> type | None:
    """The kind of an item: str, Pair, or tuple for (prompt, image). Otherwise None."""
    for kind in (str, Pair):
        if isinstance(item, kind):
            return kind
    is_pair = isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], str)
    return tuple if is_pair else None


_FORMS = (
    "prompts (a sequence of text), (prompt, image) pairs with an image as a path or a uint8 array, "
    "a folder of images, or word pairs (a CSV file or a sequence of analogy.core.records.Pair)"
)


def _of_path(path: Path, given: str) -> Data:
    if path.is_dir():
        entries = read_folder(path)
        if all(entry.text is None for entry in entries):
            return ImageFolder(by_name(path))
        silent = [entry.file for entry in entries if entry.text is None]
        if silent:
            raise TaskError(
                f"{path / METADATA}: expected 'text' in all lines or none; missing for {silent[0]}"
            )
        prompts = _prompts([entry.text or "" for entry in entries])
        files = [entry.file for entry in entries]
        return PromptImages(prompts, dict(zip(prompts, files, strict=True)))
    if path.suffix.lower() == ".csv":
        return _of_pairs(load_pairs(path))
    raise TaskError(
        f"data: expected a folder of images or a CSV file of word pairs, got {given!r}; a single "
        f"prompt goes into a list: [{given!r}]"
    )


def _of_pairs(pairs: Sequence[Pair]) -> Data:
    for pair in pairs:
        for text in astuple(pair):
            _refuse_broken(text, f"pair {pair.id!r}")
    _refuse_repeated((pair.id for pair in pairs), "a pair's id")
    return WordPairs(tuple(pairs))


def _prompts(texts: Sequence[str]) -> tuple[str, ...]:
    for i, text in enumerate(texts):
        if not text.strip():
            raise TaskError(f"data: expected prompts, got {text!r} at place {i}")
        _refuse_broken(text, f"prompt at place {i}")
    _refuse_repeated(texts, "a prompt")
    return tuple(texts)


def _refuse_broken(text: str, where: str) -> None:
    """Raises :class:`TaskError` for text that UTF-8 cannot encode: lone surrogates, as in JSON."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TaskError(
            f"data: {where}: expected text that UTF-8 can write, got {text!r}, which has a lone "
            "surrogate; write the whole character"
        ) from None


def _refuse_repeated(texts: Iterable[str], what: str) -> None:
    text, count = Counter(texts).most_common(1)[0]
    if count > 1:
        raise TaskError(
            f"data: expected {what} once, got {text!r} {count} times; more images of one are "
            "asked for by seeds=(0, 1, 2)"
        )


def _picture(given: Any, prompt: str) -> Picture:
    if isinstance(given, np.ndarray):
        try:
            check_images(given[None])
        except ValueError:
            raise TaskError(
                f"data: image of {prompt!r}: expected uint8 (height, width, 3), got {given.dtype} "
                f"of shape {given.shape}"
            ) from None
        return given
    if isinstance(given, (str, PathLike)):
        path = Path(expanduser(given))
        check_file(path, f"data: image of {prompt!r}")
        return path
    raise TaskError(f"data: image of {prompt!r}: expected a path or array, got {shown(given)}")


def match(folder: Path, samples: Sequence[Sample]) -> dict[str, Path]:
    """The file of each sample, by key, from the folder's ``metadata.jsonl``; never by order.

    A line belongs to the sample with its ``key``; without a key, to the sample with its ``text``
    and ``seed``. The seed may be missing if all samples have the same one.

    Raises :class:`TaskError` if a sample has no file, so that no model is judged by a part of the
    images, or if it has several.
    """
    if not (folder / METADATA).is_file():
        raise TaskError(
            f"{folder}: expected {METADATA}, which says what each image is of, a line an image, "
            f"{METADATA_EXAMPLE}; there is none"
        )
    seeds = {sample.seed for sample in samples}
    prompts = {sample.key: sample.prompt for sample in samples}
    by_prompt = {
        (sample.prompt, sample.seed): sample.key for sample in samples if sample.pair is None
    }
    found: dict[str, Path] = {}
    for entry in read_folder(folder):
        key = entry.key
        if key is None:
            seed = entry.seed
            if seed is None and len(seeds) > 1 and any(entry.text == p for p, _ in by_prompt):
                raise TaskError(
                    f"{folder / METADATA}: {entry.file.name}: expected a seed, since the task has "
                    f"{len(seeds)}; add 'seed' to the line"
                )
            seed = next(iter(seeds)) if seed is None else seed
            key = by_prompt.get((entry.text or "", seed), "")
        if key not in prompts or entry.text not in (None, prompts[key]):
            continue  # an image of another task
        if key in found:
            raise TaskError(
                f"{folder / METADATA}: expected one image of {key!r}, got "
                f"{found[key].name} and {entry.file.name}"
            )
        found[key] = entry.file
    missing = [sample for sample in samples if sample.key not in found]
    if missing:
        how = '"key"' if missing[0].pair else '"text" and "seed"'
        raise TaskError(
            f"{folder}: no image for {len(missing)} of {len(samples)} samples, the first "
            f"{missing[0].key!r}; add it to {METADATA}, with {how}, or ask for less"
        )
    return found
