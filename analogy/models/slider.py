"""The method that adds LoRAs to the denoiser, with a strength for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.core.words import folded
from analogy.models.adapters import LowRank, adapter_of
from analogy.models.fingerprints import fingerprint, sha256_of
from analogy.models.lora import require_peft
from analogy.models.networks import shapes_in
from analogy.models.places import listing, shipped
from analogy.models.trust.adapters import check_lora
from analogy.models.trust.rules import refuse_pickles
from analogy.steering.base import ANY_ALPHA, DEFAULT_ALPHAS, Need, Row
from analogy.steering.conditioning import Conditioning, Edit
from analogy.steering.hooks import denoiser, hooked_with_input

#: Prefixes of text encoders' keys, in diffusers' format and in kohya's.
_TEXT_ENCODERS = ("text_encoder", "lora_te")


@dataclass(frozen=True, slots=True)
class SliderFile:
    """A LoRA's file and the pairs that it steers.

    ``category``: the category of the pairs, None for any. ``word``: the file steers pairs with this
    target word, and with the opposite sign pairs with this source word. None for all pairs, with
    the sign 1.
    """

    path: Path
    category: str | None = None
    word: str | None = None

    def sign(self, category: str, source: str, target: str) -> int:
        """The sign with which it steers a pair of these folded words; 0 if it does not."""
        if self.category not in (None, category):
            return 0
        if self.word is None:
            return 1
        return _says(target, self.word, source) - _says(source, self.word, target)


def _says(words: str, word: str, other: str) -> bool:
    """True if ``words`` are ``word``, or if ``words`` contain it and ``other`` does not."""
    return words == word or word in set(words.split()) - set(other.split())


@dataclass(frozen=True)
class Slider:
    """Adds alpha times the LoRA of a pair's category, or of its target word, to the denoiser.

    ``name``: the method's name as the user gave it; ``place``: a file for all pairs, or a folder
    with ``CATEGORY.safetensors`` for the pairs of a category and ``CATEGORY/WORD.safetensors`` for
    the pairs with that target word. A pair has one file: its target word's, else its source word's
    with the opposite sign, else its category's.

    Concept Sliders (Gandikota et al. 2023, arXiv 2311.12092): alpha times the LoRA's output,
    ``scale up(down(input))``, is added to a module's output. This includes the rows of the negative
    prompt, as with diffusers' ``set_adapters``. ``--steer-from`` is the paper's start step.
    """

    name: str
    place: Path
    needs: frozenset[Need] = frozenset()
    exclusive: bool = False
    per_row: bool = True
    default_alphas: tuple[float, ...] = DEFAULT_ALPHAS
    alpha_limits: tuple[float, float] = ANY_ALPHA

    @cached_property
    def version(self) -> str:
        """The first 16 hex digits of its files' SHA-256.

        Raises ``ModelError`` if peft is not installed or a file is invalid.
        """
        require_peft(f"--method {self.name}")
        for file in self.files:
            _check(file.path)
        if self.place.is_dir():
            return fingerprint(self.place).rpartition(":")[2]
        return sha256_of(self.place)[:16]

    @cached_property
    def files(self) -> tuple[SliderFile, ...]:
        """Its files: first those of words, then those of categories, each sorted by path.

        Raises ``ModelError`` if there are none.
        """
        place = self.place
        if place.is_file():
            return (SliderFile(place),)
        if not place.is_dir():
            raise ModelError(
                f"--method {self.name}: expected a .safetensors file, or a folder with "
                f"CATEGORY.safetensors or CATEGORY/WORD.safetensors, got {place}, which is "
                "neither; name one that exists"
            )
        found = [
            *(
                SliderFile(path, path.parent.name, folded(path.stem.replace("_", " ")))
                for path in sorted(place.glob("*/*.safetensors"))
            ),
            *(SliderFile(path, path.stem) for path in sorted(place.glob("*.safetensors"))),
        ]
        if not found:
            refuse_pickles(place.rglob("*"))
            raise ModelError(
                f"--method {self.name}: expected CATEGORY.safetensors or "
                f"CATEGORY/WORD.safetensors in the folder, got {listing(place)}"
            )
        return tuple(found)

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        """The source's conditioning, which a slider does not change."""
        return edit.source

    def check_pairs(self, pairs: Sequence[Pair]) -> None:
        """Raise ``ModelError`` if it has no file for one of the pairs."""
        for pair in pairs:
            self._file(pair)

    def _file(self, pair: Pair) -> tuple[SliderFile, int]:
        """A pair's file, and the sign of its strength. Longer words are preferred.

        Raises ``ModelError`` if it has no file for the pair.
        """
        words = pair.category, folded(pair.source_word), folded(pair.target_word)
        signs = [(file, file.sign(*words)) for file in self.files]
        found = sorted(
            (each for each in signs if each[1]),
            key=lambda each: (
                each[0].word is None,
                each[0].category is None,
                -each[1],
                -len(each[0].word or ""),
            ),
        )
        if not found:
            raise ModelError(
                f"--method {self.name}: expected {pair.category}.safetensors or "
                f"{pair.category}/{pair.target_word}.safetensors for the pair {pair.id}, found "
                "neither; add the file, or leave the category out with --categories"
            )
        return found[0]

    @contextmanager
    def applied(self, pipeline: Any, rows: Sequence[Row], start: int = 0) -> Iterator[None]:
        """Apply the LoRAs of the rows within this context.

        Raises ``ModelError`` if a row has no LoRA, or if a LoRA is for another architecture.
        """
        by_file: dict[Path, list[tuple[int, float]]] = {}
        for i, row in enumerate(rows):
            if row.alpha:
                file, sign = self._file(row.pair)
                by_file.setdefault(file.path, []).append((i, sign * row.alpha))
        acts: dict[str, list[_Act]] = {}
        for path, found in by_file.items():
            where, strengths = zip(*found, strict=True)
            what = f"--method {self.name}: {path}"
            for name, layer in adapter_of(pipeline, path, self.version, what).items():
                acts.setdefault(name, []).append(_Act(name, layer, where, strengths, len(rows)))

        def act(name: str, given: Tensor, output: Tensor) -> None:
            for each in acts[name]:
                each(given, output)

        modules = dict(denoiser(pipeline).named_modules())
        with hooked_with_input({name: modules[name] for name in acts}, act):
            yield


class _Act:
    """A LoRA's action on one module for some images of a batch."""

    def __init__(
        self, module: str, layer: LowRank, where: Sequence[int], strengths: Sequence[float], n: int
    ) -> None:
        self._module, self._layer, self._n = module, layer, n
        self._where, self._strengths = where, strengths
        self._placed: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, given: Tensor, output: Tensor) -> None:
        """Add the LoRA's output to the module's, in place."""
        where, strengths = self._rows(output)
        if len(where) == len(output):
            output += self._layer(given, strengths)
        else:
            output[where] += self._layer(given[where], strengths)

    def _rows(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The indices of the images' rows in a module's output, and the strength of each.

        With guidance, the output has as many rows of the negative prompt before those of the
        prompts.
        """
        rows, n = len(output), self._n
        if rows not in (n, 2 * n):
            raise ModelError(
                f"module {self._module}: expected an output of {n} rows, or {2 * n} with guidance, "
                f"for {n} images, got {tuple(output.shape)}; choose a LoRA for other modules"
            )
        if rows not in self._placed:
            where = [first + i for first in range(0, rows, n) for i in self._where]
            strengths = torch.tensor(list(self._strengths) * (rows // n), dtype=torch.float32)
            self._placed[rows] = (
                torch.tensor(where, device=output.device), strengths.to(output.device)
            )  # fmt: skip
        return self._placed[rows]


def _check(file: Path) -> None:
    """Raise ``ModelError`` for a file that is not a LoRA of a denoiser, or not safe to load."""
    if file.suffix != ".safetensors":
        refuse_pickles([file])
        raise ModelError(f"{file}: expected a LoRA as a .safetensors file")
    keys = shapes_in(file)
    check_lora(file)
    if others := [key for key in keys if key.startswith(_TEXT_ENCODERS)]:
        raise ModelError(
            f"{file}: expected a LoRA of the denoiser alone, got weights of a text encoder, "
            f"{others[0]}, which encodes prompts before a slider acts; save it without them, or "
            "use it with --lora"
        )
    for key, tensor in load_file(file).items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{file}: {key}: expected finite numbers, got NaN or infinity")


def open_slider(path: str, name: str) -> Slider:
    """The slider of a file or a folder, made anew only if a file has changed.

    ``name``: the method's. Raises ``ModelError`` if ``path`` is empty.
    """
    if not path:
        raise ModelError(f"--method {name}: expected slider:PATH, got no path")
    place = Path(path).expanduser().absolute()
    files = [place, *sorted(place.rglob("*.safetensors"))]
    states = [(file, file.stat()) for file in files if file.exists()]
    return _opened(name, place, tuple((f, s.st_mtime_ns, s.st_size) for f, s in states))


@lru_cache(maxsize=8)
def _opened(name: str, place: Path, stamps: tuple[tuple[Path, int, int], ...]) -> Slider:
    return Slider(name, place)


#: The method with the embedded model's own sliders.
slider = Slider("slider", shipped("models/sliders"))
