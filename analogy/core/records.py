"""The suite's plain records: a word pair, a run's configuration, an estimate, a verdict.

Everything here is immutable, hashable and cheap to import: no torch, no numpy. Inner functions take
and return these or plain values. `RunConfig` is built once, from the options of pytest or of the
command line, and saved with its run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, NamedTuple

from analogy.core.errors import FieldError
from analogy.core.fields import CHECKS, check_name, check_steps, shown
from analogy.core.strict_json import Json

UNSTEERED = 0.0
"""The alpha of the source prompt's own image, which no method has steered."""

MARGIN_LIMIT = 2.001
"""Largest |margin|: a difference of two cosines, with room for float32's rounding."""

SIGNIFICANCE = 0.05
"""A success needs a one-sided p below this."""

IMPORTED = "@imported:"
"""Separates the name from the digest in the fingerprint of imported images."""


def is_imported(model: str) -> bool:
    """True if a model's fingerprint is that of imported images, which no model generates."""
    return IMPORTED in model


class Need(StrEnum):
    """What a steering method uses besides the source prompt."""

    TARGET = "target"
    """The target prompt, mixed with the source prompt."""
    TARGET_ALONE = "target alone"
    """The target prompt in the place of the source prompt."""
    WORDS = "words"
    """The pair's two words, each encoded alone."""
    OTHERS = "others"
    """The category's other pairs. Only a method that needs them is given them."""
    TOKENS = "tokens"
    """Which tokens belong to the words. Only a method that needs them is given them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A word pair: source concept A, target concept T, and the prompt that holds each."""

    id: str
    category: str
    source_word: str
    target_word: str
    source_prompt: str
    target_prompt: str


class Cell(NamedTuple):
    """A category at one strength."""

    category: str
    alpha: float

    def __str__(self) -> str:
        return f"{self.category} at alpha {self.alpha:g}"


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a denoising schedule in which an image is steered: shares of its steps, 0..1."""

    start: float = 0.0
    end: float = 1.0

    def within(self, outer: Window) -> Window:
        """The same part of ``outer`` as this window is of the whole schedule."""
        length = outer.end - outer.start
        return Window(outer.start + self.start * length, outer.start + self.end * length)

    def steps(self, total: int) -> range:
        """The steps in the window, of 0 to ``total`` - 1: its ends are rounded to whole steps."""
        first, last = (math.floor(share * total + 0.5) for share in (self.start, self.end))
        return range(first, last)

    def to_dict(self) -> dict[str, float]:
        """The window's ends by the names of their options; empty for the whole schedule."""
        return {} if self == WHOLE else {"steer_from": self.start, "steer_until": self.end}

    def __str__(self) -> str:
        return "all steps" if self == WHOLE else f"{self.start:.4g} to {self.end:.4g} of the steps"


WHOLE = Window()
"""All steps."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A lower or an upper limit of a quality metric's value."""

    metric: str
    is_least: bool
    value: float

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.is_least else '<='}{self.value:g}"

    def is_broken(self, low: float, high: float) -> bool:
        """True if the whole interval ``low``..``high`` is on the wrong side of the limit."""
        return high < self.value if self.is_least else low > self.value


class Verdict(StrEnum):
    """The conclusion about steering that an estimate allows.

    Only the first two are findings. The others are reported under their own names, never as a pass
    or a failure.

    - ``success``: the confidence interval lies above 0 and the one-sided p is below 0.05;
    - ``failure``: the confidence interval lies below 0;
    - ``inconclusive``: anything else;
    - ``too_few``: 5 items or fewer (pairs, in a pooled figure), whose interval decides nothing;
    - ``incomplete``: images are missing or failed, so not all that was requested is measured;
    - ``blind``: the judge cannot tell the category's true targets from its sources, so that
      nothing is said about the method.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    INCONCLUSIVE = "inconclusive"
    TOO_FEW = "too_few"
    INCOMPLETE = "incomplete"
    BLIND = "blind"


class Outcome(StrEnum):
    """The outcome of comparing a cell, or paired differences of cells, new - old.

    The first rule that holds decides.

    - ``too_few``: fewer than 6 pairs decide nothing;
    - ``incomplete``: images are missing on either side: no pass and no failure;
    - ``inconclusive`` if a verdict is ``blind``: the margin then says nothing about the method;
    - ``regressed``: the interval of the difference lies below -tolerance, or the verdict fell from
      success to failure or inconclusive. The fall alone is the weaker sign: a margin just large
      enough for a success falls in about half of the runs with other seeds (with the same seeds
      and subject, figures are the same);
    - ``improved``: the interval lies above 0;
    - ``equivalent``: the interval lies within -tolerance..tolerance;
    - ``inconclusive``: anything else: the pairs are too few to tell.
    """

    REGRESSED = "regressed"
    IMPROVED = "improved"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    TOO_FEW = "too_few"
    INCOMPLETE = "incomplete"


class Compared:
    """Base of dataclasses whose fields may be NaN for a missing figure: NaN equals NaN.

    ``@dataclass`` by itself compares NaN by identity up to Python 3.12 and as unequal from 3.13.
    """

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        # Set on the class itself, where ``@dataclass`` finds them and generates no others.
        cls.__eq__ = Compared.__eq__  # type: ignore[method-assign]
        cls.__hash__ = Compared.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _comparable(self) == _comparable(other)

    def __hash__(self) -> int:
        return hash(_comparable(self))


def _comparable(record: Any) -> tuple[Any, ...]:
    """A record's fields, with the same object for every NaN."""
    values = (getattr(record, field.name) for field in dataclasses.fields(record))
    return tuple(_MISSING if isinstance(v, float) and math.isnan(v) else v for v in values)


_MISSING = object()


class Figures(Compared):
    """The base of records of figures: conversion to plain values for JSON."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON, which has no NaN: a missing figure is None."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {field.name: plain(getattr(self, field.name)) for field in fields}


_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Estimate(Figures):
    """The figures of one cell, or of several cells pooled, with their verdict.

    `n` counts pairs, the clusters that are resampled; `n_items` counts (pair, alpha) items, and is
    the same as `n` in a cell. A missing figure (such as an interval of one pair) is NaN, a missing
    count None.

    - `mean`, `ci_low`, `ci_high`: in units of the margin;
    - `p`: of the one-sided t-test that the mean is above 0; `p_bootstrap`: of the bootstrap-t
      test, which does not assume normal data; `p_wilcoxon`, `p_sign`: of the signed-rank test and
      the sign test, which test the median;
    - `success_rate`, `success_low`, `success_high`: the share of items above 0, in 0..1, and its
      95% interval;
    - `effect_size`, `effect_low`, `effect_high`: d_z, the mean in units of the pairs' standard
      deviation;
    - `min_detectable`: the true mean that as many pairs with this spread detect in 80% of runs;
    - `n_needed`: if the verdict is open, the number of pairs that would decide it in 80% of runs if
      the true mean and spread were those found; None if it is decided or no number would do.

    The verdict is None for unsteered images and target prompts' own: nothing is claimed of them.
    """

    n: int
    n_items: int
    mean: float = _NAN
    ci_low: float = _NAN
    ci_high: float = _NAN
    p: float = _NAN
    success_rate: float = _NAN
    verdict: Verdict | None = Verdict.INCOMPLETE
    success_low: float = _NAN
    success_high: float = _NAN
    p_bootstrap: float = _NAN
    p_wilcoxon: float = _NAN
    p_sign: float = _NAN
    effect_size: float = _NAN
    effect_low: float = _NAN
    effect_high: float = _NAN
    min_detectable: float = _NAN
    n_needed: int | None = None


@dataclass(frozen=True, slots=True)
class ItemLevel(Figures):
    """A mean's interval and one-sided p over `n` items, as if these were independent."""

    n: int
    ci_low: float
    ci_high: float
    p: float


@dataclass(frozen=True, slots=True)
class Trend(Figures):
    """Dose and response over `n` pairs: the mean slope of the margin on alpha.

    `slope`, `ci_low`, `ci_high`: margin per unit of alpha; `p`: of the one-sided t-test that the
    mean slope is above 0; `p_page`: of Page's test that margins rise from each alpha to the next.
    """

    n: int
    slope: float
    ci_low: float
    ci_high: float
    p: float
    p_page: float


SEQUENTIAL = ("sequential", "order_seed", "full_unsteered", "futility", "reserve")
"""The fields of a configuration that make a run sequential, or say how."""

_OPTIONAL = frozenset({
    "lora", "clip_pretrained", "ray_address", "categories", "batch_size", "num_workers", "memory",
    "limit", "second_guidance", "quantize", "offload", "transformer",
})  # fmt: skip
"""The fields of a configuration that may be None."""

_UNSAID = frozenset({
    "method_version", "method_needs", "steer_from", "steer_until", "sequential", "order_seed",
    "full_unsteered", "futility", "reserve", "second_guidance", "quantize", "offload",
    "transformer",
})  # fmt: skip
"""The fields of a configuration that `to_dict` leaves out if they have their defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """All that determines a run's result, and all that is needed to repeat it.

    - `model`, `clip_model`: a hub id, a name or a local folder; `clip_pretrained`: open_clip's tag
      of the weights, None if `clip_model` needs none; `lora`: a LoRA's file, folder or hub id, with
      which `model` then ends, after a ``+`` (`base_model` is the part before it); `transformer`:
      the file of its transformer's weights;
    - `pairs`: path of the CSV file; `categories`: those to run, None for all; `limit`: the number
      of pairs to take from each category, None for all;
    - `alphas`: strengths asked for, without 0 (unsteered), which every grid holds (`grid_alphas`);
    - `seeds`: one image per pair, alpha and seed;
    - `method`: the steering method's name, or its ``package.module:name``; if the method is not
      built in, its images' keys also depend on `method_version` and `method_needs`;
    - `steer_from`, `steer_until`: the part of the schedule in which images are steered, as shares
      of its steps (`window`);
    - `steps`, `guidance`, `second_guidance` (for a pipeline that has two; None for the pipeline's
      default), `size` (pixels, height and width): how an image is sampled, by the model's own
      scheduler;
    - `control`: whether the null, the method `random`, is measured as well; `target`:
      whether the target prompts' own images are;
    - `dtype` (one of `DTYPES`), `device`, `batch_size` (None: as many as fit), `memory`
      (GiB of a CUDA device at most, None for all that is free), `offload` (one of `OFFLOADS`):
      how it is computed; `quantize` (one of `QUANTIZATIONS`): how the model's weights are
      quantized, which is part of its fingerprint;
    - `sequential`: whether each cell stops as soon as it is decided; then `order_seed` gives the
      random order of the pairs, `full_unsteered` makes unsteered images as long as a cell of their
      category is open, `futility` stops cells that would hardly be decided, and `reserve` keeps a
      part of the error for one extension (docs/sequential.md);
    - `engine` (a name of `analogy.core.engines.ENGINES`), `num_workers` (None: as many as there are
      devices), `ray_address` (of a cluster, None for this machine): what computes it.

    Values are checked on construction. Raises `FieldError` for a wrong one. Alphas and guidance are
    as floats, so that equal configurations serialise equally.
    """

    model: str
    clip_model: str
    clip_pretrained: str | None
    pairs: str
    categories: tuple[str, ...] | None
    alphas: tuple[float, ...]
    seeds: tuple[int, ...]
    method: str
    steps: int
    guidance: float
    size: int
    dtype: str
    device: str
    batch_size: int | None
    limit: int | None
    control: bool = False
    memory: float | None = None
    engine: str = "serial"
    num_workers: int | None = None
    ray_address: str | None = None
    target: bool = False
    lora: str | None = None
    method_version: str = ""
    method_needs: tuple[Need, ...] = ()
    sequential: bool = False
    order_seed: int = 0
    full_unsteered: bool = False
    futility: bool = False
    reserve: bool = False
    steer_from: float = WHOLE.start
    steer_until: float = WHOLE.end
    second_guidance: float | None = None
    quantize: str | None = None
    offload: str | None = None
    transformer: str | None = None

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                check(name, value)
        if self.method_version:
            check_name("method_version", self.method_version)

        object.__setattr__(self, "alphas", tuple(float(alpha) for alpha in self.alphas))
        check_steps(self.steer_from, self.steer_until, self.window.steps(self.steps), self.steps)
        object.__setattr__(self, "guidance", float(self.guidance))
        if self.second_guidance is not None:
            object.__setattr__(self, "second_guidance", float(self.second_guidance))
        object.__setattr__(self, "steer_from", float(self.steer_from))
        object.__setattr__(self, "steer_until", float(self.steer_until))
        object.__setattr__(self, "method_needs", _needs(self.method_needs))

    @property
    def window(self) -> Window:
        """The part of the schedule in which images are steered."""
        return Window(self.steer_from, self.steer_until)

    @property
    def sequential_settings(self) -> dict[str, bool | int]:
        """The settings of a sequential run that are set, by name; empty for any other run."""
        settings = {name: getattr(self, name) for name in SEQUENTIAL}
        return {name: value for name, value in settings.items() if self.sequential and value}

    @property
    def steering(self) -> str:
        """The method, and the part of the schedule in which it steers unless that is the whole."""
        return self.method if self.window == WHOLE else f"{self.method}, {self.window}"

    @property
    def base_model(self) -> str:
        """`model` without its LoRA."""
        return self.model if self.lora is None else self.model.removesuffix(f"+{self.lora}")

    @property
    def grid_alphas(self) -> tuple[float, ...]:
        """Every alpha that is generated, the unsteered images' included, in ascending order."""
        return tuple(sorted({UNSTEERED, *self.alphas}))

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON; tuples become lists.

        The key `scheduler` is always null: readers of schema version 2 expect it. The scheduler
        that sampled is in the provenance.
        """
        made: dict[str, Json] = {}
        for field in dataclasses.fields(self):
            if field.name in _UNSAID and getattr(self, field.name) == field.default:
                continue  # older configurations lack these keys, and digests depend on the keys
            made[field.name] = plain(getattr(self, field.name))
            if field.name == "limit":  # digests of commands depend on this place of the key
                made["scheduler"] = None
        return made

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> RunConfig:
        """The configuration that `to_dict` wrote. Raises `FieldError` for unknown or missing keys.

        The key `scheduler` never chose one: it may be missing, and its value is ignored.
        """
        values = {name: value for name, value in values.items() if name != "scheduler"}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - fields.keys())
        missing = [
            name
            for name, field in fields.items()
            if name not in values and field.default is dataclasses.MISSING
        ]
        if unknown or missing:
            raise FieldError(
                f"configuration: expected the keys {', '.join(fields)}; "
                f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}"
            )
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**arguments)


def plain(value: Any) -> Json:
    """`value` as strict JSON: enums by value, figures as objects, tuples as lists, NaN as None."""
    if isinstance(value, Figures):
        return value.to_dict()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _needs(values: Any) -> tuple[Need, ...]:
    try:
        return tuple(sorted({Need(value) for value in values}))
    except (TypeError, ValueError):
        expected = f"some of {', '.join(Need)}"
        raise FieldError(place="method_needs", expected=expected, got=shown(values)) from None
