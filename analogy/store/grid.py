"""The images of a run: one job for each, with its role and the key that identifies its image.

Only this module plans jobs. It needs no model and no run folder: a grid follows from a
configuration, the fingerprint of its model, the scheduler and the pairs. Imports no torch and no
SQLite.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol, TypeAlias, TypeVar

from analogy.core.records import UNSTEERED, WHOLE, Cell, Pair, RunConfig, Window
from analogy.core.strict_json import Json
from analogy.core.words import folded
from analogy.steering.base import NULL_METHOD, TARGET_METHOD, Identity, Need

TARGET_ALPHA = 1.0

_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode

Subject: TypeAlias = dict[str, str | int | float]
"""Everything that determines an image except its text and its noise, by name."""

Facts: TypeAlias = Mapping[str, str | int | float]
"""A description of an image for readers, by name."""

TrueMargins: TypeAlias = Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
"""Margins on ground truth: a pair's digest to the margins of its target and of its source."""


class Role(StrEnum):
    """The role of an image in a run.

    - ``steered``: by the run's method, at an alpha other than 0;
    - ``unsteered``: the source prompt's own, at alpha 0;
    - ``null``: steered by ``NULL_METHOD``;
    - ``target``: the target prompt's own.
    """

    STEERED = "steered"
    UNSTEERED = "unsteered"
    NULL = "null"
    TARGET = "target"


class Wanted(Protocol):
    """An image that a run folder has or will have.

    Its ``key`` is a digest of all that produces it; ``what`` describes it to readers of the index.
    """

    @property
    def key(self) -> str:
        """32 hex digits."""
        ...

    @property
    def what(self) -> Facts:
        """Names and plain values."""
        ...


W = TypeVar("W", bound=Wanted)


@dataclass(frozen=True, slots=True)
class Job:
    """One image of a grid, the method that steers it, and its key in the run folder.

    ``window``: the part of the schedule in which it is steered.
    """

    pair: Pair
    alpha: float
    seed: int
    method: str
    key: str
    window: Window = WHOLE

    @property
    def is_unsteered(self) -> bool:
        """True for the source prompt's own image, which is the same for every method."""
        return self.alpha == UNSTEERED

    @property
    def what(self) -> Facts:
        """The image's pair, alpha and seed, and its method and window if it is steered."""
        method: Facts = {}
        if not self.is_unsteered:
            method = {"method": self.method, **self.window.to_dict()}
        pair = {"pair_id": self.pair.id, "category": self.pair.category}
        return {**pair, "alpha": self.alpha, "seed": self.seed, **method}


@dataclass(frozen=True, slots=True)
class PromptJob:
    """One image of a prompt, without steering, and its key in the run folder."""

    prompt: str
    seed: int
    key: str

    @property
    def what(self) -> Facts:
        """The image's prompt and seed."""
        return {"prompt": self.prompt, "seed": self.seed}


AnyJob: TypeAlias = Job | PromptJob


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How a model samples: what determines an image except the model, its text and its noise.

    ``size``: pixels a side; ``dtype``: a name of ``DTYPES``; ``scheduler``: its class and a digest
    of its settings; ``second_guidance``: None for the pipeline's default.
    """

    steps: int
    guidance: float
    size: int
    dtype: str
    scheduler: str
    second_guidance: float | None = None

    @classmethod
    def of(cls, config: RunConfig, scheduler: str) -> ImageSettings:
        """The sampling of a run."""
        return cls(
            config.steps, config.guidance, config.size, config.dtype, scheduler,
            config.second_guidance,
        )  # fmt: skip

    def subject(self, model: str) -> Subject:
        """What determines an image except its text and its noise; ``model``: its fingerprint.

        Keys of images and names of run folders are digests of this and more.
        """
        second: Subject = {}
        if self.second_guidance is not None:
            second = {"second_guidance": self.second_guidance}
        return {
            "model": model,
            "steps": self.steps,
            "guidance": self.guidance,
            "size": self.size,
            "dtype": self.dtype,
            "scheduler": self.scheduler,
            **second,
        }

    def prompt_job(self, model: str, prompt: str, seed: int) -> PromptJob:
        """The job of one prompt's image by the model of this fingerprint."""
        what = {**self.subject(model), "prompt": prompt, "seed": seed}
        return PromptJob(prompt, seed, digest(what))


class Grid:
    """All images of a run, by role, category, alpha and cell.

    ``model``: the fingerprint; ``pairs``: all pairs of the run. If the method uses the category's
    other pairs, the keys depend on these. Null and target images are included if the configuration
    asks for them. Jobs are planned on first use.
    """

    def __init__(
        self, config: RunConfig, model: str, scheduler: str, pairs: Sequence[Pair]
    ) -> None:
        self.config = config
        self.model = model
        self.scheduler = scheduler
        self.pairs = tuple(pairs)

    def jobs(
        self, *roles: Role, category: str | None = None, alpha: float | None = None
    ) -> list[Job]:
        """The jobs of these roles, of one category and alpha if given; each key once.

        Without roles: all jobs. Order: those of the run's method by pair, alpha and seed; the
        null's in the same order; the targets', which are at alpha 1, by pair and seed.
        """
        wanted = frozenset(roles or Role)
        found: list[Job] = []
        if own := wanted & {Role.STEERED, Role.UNSTEERED}:
            found += [
                job
                for job in self._own.get(category, ())
                if (Role.UNSTEERED if job.is_unsteered else Role.STEERED) in own
            ]
        if Role.NULL in wanted:
            found += self._null.get(category, ())
        if Role.TARGET in wanted:
            found += self._targets.get(category, ())
        if alpha is not None:
            found = [job for job in found if job.alpha == alpha]
        return once(found)

    def cell(self, cell: Cell) -> list[Job]:
        """A cell's jobs and those it is compared with: unsteered, null and target images."""
        return once(
            [
                *self.jobs(Role.UNSTEERED, category=cell.category),
                *self.jobs(Role.STEERED, Role.NULL, category=cell.category, alpha=cell.alpha),
                *self.jobs(Role.TARGET, category=cell.category),
            ]
        )

    @cached_property
    def _own(self) -> Mapping[str | None, Sequence[Job]]:
        """The jobs of the run's method by category; the key None has all of them."""
        config = self.config
        return self._planned(config.method, config.grid_alphas, config.window)

    @cached_property
    def _null(self) -> Mapping[str | None, Sequence[Job]]:
        if not self.config.control:
            return {}
        return self._planned(NULL_METHOD, sorted(self.config.alphas), self.config.window)

    @cached_property
    def _targets(self) -> Mapping[str | None, Sequence[Job]]:
        if not self.config.target:
            return {}
        return self._planned(TARGET_METHOD, (TARGET_ALPHA,))

    def _planned(
        self, method: str, alphas: Iterable[float], window: Window = WHOLE
    ) -> Mapping[str | None, Sequence[Job]]:
        """Jobs of one method by category, in the order pair, alpha, seed; key None: all of them."""
        alphas = tuple(alphas)
        identity = Identity.in_config(replace(self.config, method=method))
        version = {"method_version": identity.version} if identity.version else {}
        subject = ImageSettings.of(self.config, self.scheduler).subject(self.model)
        by_category: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            by_category.setdefault(pair.category, []).append(pair)
        found: dict[str | None, list[Job]] = {None: []}
        for pair in self.pairs:
            own: dict[str, Json] = {**subject, "pair": content(pair)}
            steered = {**own, "method": method, **version, **window.to_dict()}
            if Need.OTHERS in identity.needs:
                steered |= _neighbours(pair, by_category[pair.category])
            for alpha in alphas:
                what = own if alpha == UNSTEERED else {**steered, "alpha": alpha}
                for seed in self.config.seeds:
                    key = digest({**what, "seed": seed})
                    job = Job(pair, alpha, seed, method, key, window)
                    found[None].append(job)
                    found.setdefault(pair.category, []).append(job)
        return found


def targets_of(grid: Grid, pair: Pair, seeds: Sequence[int]) -> list[Job]:
    """The jobs of one pair's target images, whether or not the grid's configuration has them."""
    config = replace(grid.config, target=True, seeds=tuple(seeds))
    return Grid(config, grid.model, grid.scheduler, [pair]).jobs(Role.TARGET)


def once(jobs: Iterable[W]) -> list[W]:
    """The jobs, each key once. A grid of ``TARGET_METHOD`` has the target images twice."""
    found: dict[str, W] = {}
    for job in jobs:
        found.setdefault(job.key, job)
    return list(found.values())


def _neighbours(pair: Pair, pairs: Sequence[Pair]) -> dict[str, Json]:
    """Additional parts of an image's key if its method uses its category's other ``pairs``."""
    others: dict[str, Json] = {"others": [content(o) for o in pairs if o.id != pair.id]}
    # Earlier versions compared words as written: where that matters, images need keys of their own.
    return {**others, "words": "folded"} if _has_cases(pair, pairs) else others


def _has_cases(pair: Pair, pairs: Iterable[Pair]) -> bool:
    """True if another pair has one of the pair's words in another letter case."""
    words = {folded(word): word for word in (pair.source_word, pair.target_word)}
    return any(
        words.get(folded(word), word) != word
        for other in pairs
        for word in (other.source_word, other.target_word)
    )


def content(pair: Pair) -> list[str]:
    """The part of a pair that determines its images: its words and prompts, not its id."""
    return [pair.source_word, pair.target_word, pair.source_prompt, pair.target_prompt]


def canonical(value: Any) -> str:
    """Canonical JSON of ``value``: equal values give equal text."""
    return _canonical(value)


def digest(value: Any) -> str:
    """The first 32 hex digits of the SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


def pairs_digest(pairs: Iterable[Pair]) -> str:
    """A digest of pairs: of their ids and contents, independent of their order."""
    return digest(sorted([pair.id, *content(pair)] for pair in pairs))


@dataclass(frozen=True)
class Command:
    """A configuration that a command ran on a run folder, with the models that it resolved to.

    It determines the grid without any model, and the study can be opened again from it.

    - ``pairs``: those that were chosen;
    - ``model``, ``judge``: fingerprints;
    - ``lora``: the value of its option, None without one;
    - ``ceiling``: the judge's margins on ground truth that the user gave (``--ceiling``); None
      for the suite's own;
    - ``unread``: the ids of the pairs whose two prompts the judge reads as one; no figure counts
      them;
    - ``is_comparison``: True if its method was one of several that were compared. A sequential
      comparison has its own looks;
    - ``uneven``: the ids of the chosen pairs that were left out, since the method has no curve
      between prompts of different token counts.
    """

    config: RunConfig
    pairs: tuple[Pair, ...]
    model: str
    judge: str
    scheduler: str
    lora: str | None = None
    ceiling: TrueMargins | None = None
    unread: tuple[str, ...] = ()
    is_comparison: bool = False
    uneven: tuple[str, ...] = ()

    @cached_property
    def grid(self) -> Grid:
        """The images that the command asked for."""
        return Grid(self.config, self.model, self.scheduler, self.pairs)

    def jobs(self) -> list[Job]:
        """All jobs of the grid, each key once."""
        return self.grid.jobs()
