"""The method of a steering file: ``--method file:steering.safetensors``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analogy.core.words import folded
from analogy.steering.base import Need, Row
from analogy.steering.conditioning import Conditioning, Edit
from analogy.steering.files import (
    Action,
    ModuleAction,
    Steering,
    SteeringFileError,
    pair_digest,
    read,
)
from analogy.steering.files import unknown as unknown_name
from analogy.steering.hooks import Calls, conditional, denoiser, hooked


@dataclass(frozen=True, slots=True)
class DeclaredMethod:
    """A method that does what a steering file describes.

    ``name``: ``file:`` and the path, as the user gave it; ``version``: the first 16 hex digits of
    the file's SHA-256, so that images are made again after a change of the file.
    """

    name: str
    version: str
    steering: Steering
    needs: frozenset[Need] = frozenset()
    exclusive: bool = False
    per_row: bool = True

    @property
    def default_alphas(self) -> tuple[float, ...]:
        """The file's default strengths."""
        return self.steering.default_alphas

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        """The source's conditioning, which a steering file does not change."""
        return edit.source

    @contextmanager
    def applied(self, pipeline: Any, rows: Sequence[Row], start: int = 0) -> Iterator[None]:
        """Apply the entries to the conditional rows of their modules' outputs within this context.

        Raises ``SteeringFileError`` if a row's pair is one that the file was fitted on or has no
        entries for, if the denoiser lacks a module, or if its output has another dimension.
        """
        acts: dict[str, list[_Act]] = {}
        for entry in self._entries(rows):
            found = [(i, _sign(entry, row)) for i, row in enumerate(rows) if row.alpha]
            signed = [(i, sign * rows[i].alpha * self.steering.unit) for i, sign in found if sign]
            if signed:
                where, strengths = zip(*signed, strict=True)
                acts.setdefault(entry.module, []).append(
                    _Act(entry, list(where), torch.tensor(strengths, dtype=torch.float32))
                )
        modules = self._modules(pipeline, acts)
        calls = Calls(start)

        def act(name: str, output: Tensor) -> None:
            call, total = calls.next(name), len(pipeline.scheduler.timesteps)
            mine = conditional(output, len(rows))
            features = mine.movedim(1, -1) if mine.ndim == 4 else mine  # of a convolution
            for each in acts[name]:
                if features.shape[-1] != each.entry.vector.shape[-1]:
                    raise SteeringFileError(
                        place=f"{self.name}: {name}",
                        expected=f"a module whose output has the vector's dimension, "
                        f"{each.entry.vector.shape[-1]}",
                        got=f"an output of {features.shape[-1]}",
                        advice="choose the model that the file is for",
                    )
                each(features, call, total)

        with hooked(modules, act):
            yield

    def _entries(self, rows: Sequence[Row]) -> list[ModuleAction]:
        """The entries that act on any of the rows, in the file's order.

        Raises ``SteeringFileError`` if a row has none, or its pair is one that the file was fitted
        on.
        """
        found: dict[int, ModuleAction] = {}
        for row in rows:
            if not row.alpha:
                continue
            if pair_digest(row.pair) in self.steering.pairs:
                raise SteeringFileError(
                    place=self.name,
                    expected="pairs that it was not fitted on",
                    got=f"the pair {row.pair.id}",
                    advice="fit the file on other pairs: analogy steering fit --pairs FILE",
                )
            own = {i: entry for i, entry in enumerate(self.steering.entries) if _sign(entry, row)}
            if not own:
                raise self._no_entry(row)
            found |= own
        return [found[i] for i in sorted(found)]

    def _no_entry(self, row: Row) -> SteeringFileError:
        scopes = dict.fromkeys(
            " ".join(filter(None, (entry.category, entry.word))) for entry in self.steering.entries
        )
        pair = row.pair
        return unknown_name(
            f"{pair.category} {pair.target_word}", list(scopes),
            f"{self.name}: the pair {pair.id}: entries for its category and words",
        )  # fmt: skip

    def _modules(self, pipeline: Any, names: Mapping[str, object]) -> dict[str, Any]:
        have = dict(denoiser(pipeline).named_modules())
        for name in names:
            if name not in have:
                raise unknown_name(name, list(have), f"{self.name}: module")
        return {name: have[name] for name in names}


def _sign(entry: ModuleAction, row: Row) -> int:
    """The sign with which the entry acts on the row; 0 if it does not."""
    if entry.category is not None and entry.category != row.pair.category:
        return 0
    if entry.word is None:
        return 1
    word = folded(entry.word)
    pair = row.pair
    return (folded(pair.target_word) == word) - (folded(pair.source_word) == word)


@dataclass(slots=True)
class _Act:
    """An entry's action on the rows ``where`` of a batch; ``strengths``: float32 ``(n,)``."""

    entry: ModuleAction
    where: list[int]
    strengths: Tensor
    _placed: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, features: Tensor, call: int, total: int) -> None:
        """Change ``(rows, ..., dim)`` in place, at this call of the module out of ``total``."""
        share = call / total
        if not self.entry.start <= share < self.entry.end:
            return
        strength = self._on("strengths", self.strengths, features)
        x = features[self.where]
        a = strength.view(-1, *[1] * (x.ndim - 1))
        vector = self._on("vector", self.entry.vector, features)
        v = (
            vector
            if vector.ndim == 1
            else vector[min(call * len(vector) // total, len(vector) - 1)]
        )
        if self.entry.action is Action.ADD:
            x = x + a * v
        elif self.entry.action is Action.PROJECT_OUT:
            unit = v / v.norm()
            x = x - a * (x @ unit)[..., None] * unit
        else:
            assert self.entry.matrix is not None
            matrix = self._on("matrix", self.entry.matrix, features)
            x = x + a * (x @ matrix.T + v - x)
        features[self.where] = x

    def _on(self, name: str, tensor: Tensor, like: Tensor) -> Tensor:
        if name not in self._placed:
            self._placed[name] = tensor.to(like)
        return self._placed[name]


def open_file(path: str, name: str) -> DeclaredMethod:
    """The method of a file, read again only if the file has changed.

    ``name``: the method's. Raises ``SteeringFileError`` if the file cannot be used.
    """
    place = Path(path).expanduser().absolute()
    try:
        state = place.stat()
        stamp = (state.st_mtime_ns, state.st_size)
    except OSError:
        stamp = (0, 0)  # reading it raises the error
    return _opened(place, name, stamp)


@lru_cache(maxsize=8)
def _opened(place: Path, name: str, stamp: tuple[int, int]) -> DeclaredMethod:
    steering, digest = read(place)
    return DeclaredMethod(name, digest[:16], steering)
