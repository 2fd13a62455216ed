"""The suite's plain records: a word pair, a run's configuration, an estimate, a verdict.

Everything here is immutable, hashable and cheap to import: no torch, no numpy. Inner functions take
and return these or plain values; `RunConfig` is built once, at the edge (pytest's options, the
command line), and saved with its run.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, NamedTuple

from analogy.text import is_printable

ALPHA_LIMIT = 5.0
"""Largest |alpha| accepted: far outside anything that still gives an image."""

DTYPES = ("float32", "bfloat16", "float16")
"""Names of the number formats a model may compute in."""

ENGINES = ("serial", "ray")
"""Who does the work of a run: this process, or workers of Ray's."""

MAX_SEED = 2**63 - 1
"""Largest seed: SQLite, where scores are kept, stores signed 64-bit integers."""

MAX_COUNT = 10**9
"""Largest number of steps, pairs, images at once or workers: beyond any run."""

MAX_GUIDANCE = 1e6
"""Largest guidance scale: beyond any that still gives an image."""

MARGIN_LIMIT = 2.001
"""Largest |margin|: a difference of two cosines, with room for float32's rounding."""

SIGNIFICANCE = 0.05
"""A success needs a one-sided p below this."""

MAX_TEXT = 10_000
"""Most characters of a name or a path."""

MAX_SIZE = 16_384
"""Largest image, in pixels a side: beyond any model, so that a slip is refused before the work."""

IMPORTED = "@imported:"
"""What the fingerprint of imported images has between the name and the digest."""


def is_imported(model: str) -> bool:
    """True if a model's fingerprint is of images that were imported: nothing generates them."""
    return IMPORTED in model


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


PER_IMAGE = ("clip_score", "directional_similarity", "psnr", "ssim", "lpips")
PER_SET = ("cmmd", "kid")
"""The quality metrics of a grid: of its single images, and of all images at one alpha."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a quality metric's value must be at least, or at most."""

    metric: str
    is_least: bool
    value: float

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.is_least else '<='}{self.value:g}"

    def is_broken(self, low: float, high: float) -> bool:
        """Whether the whole interval ``low``..``high`` is on the wrong side."""
        return high < self.value if self.is_least else low > self.value


class Verdict(StrEnum):
    """What an estimate says about steering.

    Only the first two are findings; the others are said as what they are, never as a pass and never
    as a failure.

    - ``success``: the confidence interval lies above 0 and the one-sided p is below 0.05;
    - ``failure``: the confidence interval lies below 0;
    - ``inconclusive``: anything else;
    - ``too_few``: 5 items or fewer (pairs, in a pooled figure), whose interval decides nothing;
    - ``incomplete``: images are missing, so that what is there is not what was asked for;
    - ``blind``: the judge does not tell the category's true targets from their sources, so that
      nothing is said about the method.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    INCONCLUSIVE = "inconclusive"
    TOO_FEW = "too_few"
    INCOMPLETE = "incomplete"
    BLIND = "blind"


class Compared:
    """Base of dataclasses whose fields may be NaN, a missing figure: missing equals missing.

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
    """What records of figures share: plain values for JSON."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN: a figure that does not exist is None."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {field.name: plain(getattr(self, field.name)) for field in fields}


_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Estimate(Figures):
    """The figures of one cell, or of several cells pooled, and what they amount to.

    `n` counts pairs, the clusters that are resampled; `n_items` counts (pair, alpha) items, and is
    the same as `n` in a cell. A figure that does not exist (an interval of one pair) is NaN, a
    count None.

    - `mean`, `ci_low`, `ci_high`: in units of the margin;
    - `p`: of the one-sided t-test that the mean is above 0; `p_bootstrap`: of the bootstrap-t
      test, which does not suppose normal data; `p_wilcoxon`, `p_sign`: of the signed-rank test and
      the sign test, which ask of the median;
    - `success_rate`, `success_low`, `success_high`: the share of items above 0, in 0..1, and its
      95% interval;
    - `effect_size`, `effect_low`, `effect_high`: d_z, the mean in units of the pairs' standard
      deviation;
    - `min_detectable`: the true mean that as many pairs with this spread show in 80% of runs;
    - `n_needed`: where the verdict is open, the pairs that would decide in 80% of runs if the true
      mean and spread were those found; None where decided, and where no number would do.

    The verdict is None where nothing is claimed: of unsteered images and of target prompts' own.
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
    """A mean's interval and one-sided p over `n` items as if these were independent."""

    n: int
    ci_low: float
    ci_high: float
    p: float


@dataclass(frozen=True, slots=True)
class Trend(Figures):
    """Dose and response over `n` pairs: the mean slope of the margin on alpha.

    `slope`, `ci_low`, `ci_high`: margin per unit of alpha; `p`: of the one-sided t-test that slopes
    are above 0; `p_page`: of Page's test that margins rise from each alpha to the next.
    """

    n: int
    slope: float
    ci_low: float
    ci_high: float
    p: float
    p_page: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """All that determines a run's result, and all that is needed to repeat it.

    - `model`, `clip_model`: a hub id, a name or a local folder; `clip_pretrained`: open_clip's tag
      of the weights, None where `clip_model` says it all; `lora`: a LoRA's file, folder or hub id,
      which `model` then ends with, behind a ``+`` (`base_model` is the part before it);
    - `pairs`: path of the CSV file; `categories`: those to run, None for all; `limit`: the first so
      many pairs per category, None for all;
    - `alphas`: strengths asked for, without the control, which every grid holds (`grid_alphas`);
    - `seeds`: one image per pair, alpha and seed;
    - `method`: the steering method's name; `steps`, `guidance`, `size` (pixels, height and width):
      how an image is sampled, by the model's own scheduler;
    - `control`: whether the null control, the method `random`, is measured as well; `target`:
      whether the target prompts' own images are;
    - `dtype` (one of `DTYPES`), `device`, `batch_size` (None: as many as pay and fit), `memory`
      (GiB of a CUDA device at most, None for all that is free): how it is computed;
    - `engine` (one of `ENGINES`), `num_workers` (None: as many as there are devices), `ray_address`
      (of a cluster, None for this machine): who computes it.

    Values are checked on construction; a wrong one is a `ValueError`. Alphas and guidance are kept
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

    def __post_init__(self) -> None:
        for name in ("model", "clip_model", "pairs"):  # these may be paths
            _check_text(name, getattr(self, name))
        if self.lora is not None:
            _check_text("lora", self.lora)
        for name in ("method", "device", "engine"):
            _check_name(name, getattr(self, name))
        for name in ("clip_pretrained", "ray_address"):
            if getattr(self, name) is not None:
                _check_name(name, getattr(self, name))
        if self.categories is not None:
            _check_each("categories", self.categories, _check_name)
        _check_each("alphas", self.alphas, _check_alpha)
        _check_each("seeds", self.seeds, _check_seed)
        _check_integer("steps", self.steps, 1)
        _check_number("guidance", self.guidance, 0.0, MAX_GUIDANCE)
        _check_integer("size", self.size, 8)
        if self.size % 8:
            raise ValueError(f"size: expected a multiple of 8 pixels, got {self.size}")
        if self.size > MAX_SIZE:
            raise ValueError(f"size: expected at most {MAX_SIZE:,} pixels, got {self.size:,}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.engine not in ENGINES:
            raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {self.engine!r}")
        for name in ("batch_size", "num_workers"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 1)
        if self.memory is not None:
            _check_number("memory", self.memory, 0.0, MAX_COUNT)
        if self.limit is not None:
            _check_integer("limit", self.limit, 1)
        for name in ("control", "target"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected true or false, got {getattr(self, name)!r}")

        object.__setattr__(self, "alphas", tuple(float(alpha) for alpha in self.alphas))
        object.__setattr__(self, "guidance", float(self.guidance))

    @property
    def base_model(self) -> str:
        """`model` without its LoRA."""
        return self.model if self.lora is None else self.model.removesuffix(f"+{self.lora}")

    @property
    def grid_alphas(self) -> tuple[float, ...]:
        """Every alpha that is generated, the control among them, in ascending order."""
        return tuple(sorted({0.0, *self.alphas}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; tuples become lists.

        The key `scheduler` is always null: readers of schema version 2 expect it. The scheduler
        that sampled is in the provenance.
        """
        made: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            made[field.name] = plain(getattr(self, field.name))
            if field.name == "limit":  # its place of old, on which the digests of commands rest
                made["scheduler"] = None
        return made

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The configuration that `to_dict` wrote. Unknown and missing keys are a `ValueError`.

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
            raise ValueError(
                f"configuration: expected the keys {', '.join(fields)}; "
                f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}"
            )
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**arguments)


def plain(value: Any) -> Any:
    """`value` as strict JSON: enums by value, figures as objects, tuples as lists; no NaN."""
    if isinstance(value, Figures):
        return value.to_dict()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected a non-empty string, got {shown(value)}")
    if len(value) > MAX_TEXT or "\0" in value:
        raise ValueError(
            f"{name}: expected at most {MAX_TEXT:,} characters and no NUL, got {shown(value)}"
        )


def _check_name(name: str, value: Any) -> None:
    """A text that results hold and readers show: what they refuse is not written."""
    _check_text(name, value)
    if not is_printable(value):
        raise ValueError(f"{name}: expected a text without control characters, got {shown(value)}")


def shown(value: Any) -> str:
    """A value for a message: short and on one line, whatever it is."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python prints
        return "a value that is too long to show"


def _check_integer(name: str, value: Any, low: int, high: int = MAX_COUNT) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        raise ValueError(f"{name}: expected an integer in {low}..{high}, got {shown(value)}")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # false for NaN
        raise ValueError(
            f"{name}: expected a finite number from {low:g} to {high:g}, got {shown(value)}"
        )


def _check_alpha(name: str, value: Any) -> None:
    _check_number(name, value, -ALPHA_LIMIT, ALPHA_LIMIT)
    if value == 0:
        raise ValueError(
            f"{name}: expected strengths other than 0, got {value!r}; "
            "alpha 0 is the control and always in the grid, so leave it out"
        )


def _check_seed(name: str, value: Any) -> None:
    _check_integer(name, value, 0, MAX_SEED)


def _check_each(name: str, values: Any, check: Callable[[str, Any], None]) -> None:
    if not isinstance(values, tuple) or not values:
        raise ValueError(f"{name}: expected a non-empty tuple, got {shown(values)}")
    for value in values:
        check(name, value)
    if len(set(values)) < len(values):
        raise ValueError(f"{name}: expected each value once, got {shown(values)}")
