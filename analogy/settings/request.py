"""What a user requests of a run: one frozen record, checked when it is created."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from analogy.core.engines import ENGINES
from analogy.core.errors import AnalogyError, FieldError, OptionError
from analogy.core.fields import (
    CHECKS,
    DTYPES,
    MAX_TOLERANCE,
    TOLERANCE,
    check_name,
    check_number,
    check_text,
    check_window,
    one_of,
    shown,
)
from analogy.core.records import Limit
from analogy.core.registry import is_spec
from analogy.grid_metrics import DEFAULT, METRICS, grid_names, name_in_results
from analogy.steering.base import DEFAULT_METHOD, METHODS, default_alphas
from analogy.writers import Output

INCONCLUSIVE = ("fail", "skip", "pass")
"""The possible results of an inconclusive case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The options of a run. None means the default of the device or the model.

    Models: ``gpu`` (CUDA and the models of the published study), ``device``, ``offline``,
    ``model``, ``transformer`` (a file of its weights), ``lora``, ``dtype``, ``quantize``,
    ``offload``; the judge: ``clip_model``, ``clip_pretrained``, ``clip_dtype``; ``ceiling``: the
    file of its margins on ground truth.

    Grid: ``pairs`` (a CSV file), ``categories``, ``limit`` (pairs of each category), ``method`` (a
    name, or ``package.module:name``), ``alphas`` (None: the method's own), ``seeds``; ``control``:
    the null as well; ``target``: the target prompts' own images as well.

    ``sequential``: each cell stops as soon as it is decided; ``order_seed``, ``full_unsteered``,
    ``futility`` and ``reserve`` change how (docs/sequential.md), and need it.

    Sampling: ``steps``, ``guidance``, ``second_guidance`` (of a pipeline that has two), ``size``
    (pixels a side); ``steer_from`` and ``steer_until``: the part of the schedule in which images
    are steered, as shares of its steps.

    Execution: ``batch_size``, ``memory`` (GiB of a CUDA device at most), ``engine``,
    ``num_workers``, ``ray_address``.

    Judgement: ``metrics`` (names, or ``package.module:name``; None: the built-in ones),
    ``reference`` (a folder of images), ``lpips_weights``, ``limits``, ``baseline``, ``tolerance``
    (margin), ``update_baseline``; ``inconclusive``: ``fail``, ``skip`` or ``pass``, the result of
    an inconclusive case (None: it fails in a gate and is skipped elsewhere).

    Outputs: ``run_dir``, ``results``, ``report``; ``write``: further files, each an ``Output`` or
    the text ``FILE`` or ``NAME=FILE``; ``wide``: all columns of the tables that are printed.

    Paths may be given as ``Path``, and tuples as lists. Raises ``FieldError``, which names the
    field, for a value that no run can have.
    """

    gpu: bool = False
    device: str | None = None
    offline: bool = False
    model: str | None = None
    transformer: str | None = None
    lora: str | None = None
    clip_model: str | None = None
    clip_pretrained: str | None = None
    clip_dtype: str = "float32"
    pairs: str | None = None
    categories: tuple[str, ...] | None = None
    alphas: tuple[float, ...] = None  # type: ignore[assignment]  # the method's own
    seeds: tuple[int, ...] = (0, 1, 2)
    method: str = DEFAULT_METHOD
    control: bool = False
    target: bool = False
    steps: int | None = None
    guidance: float | None = None
    second_guidance: float | None = None
    size: int | None = None
    steer_from: float = 0.0
    steer_until: float = 1.0
    dtype: str | None = None
    quantize: str | None = None
    offload: str | None = None
    limit: int | None = None
    sequential: bool = False
    order_seed: int = 0
    full_unsteered: bool = False
    futility: bool = False
    reserve: bool = False
    batch_size: int | None = None
    memory: float | None = None
    engine: str = "serial"
    num_workers: int | None = None
    ray_address: str | None = None
    run_dir: str | None = None
    ceiling: str | None = None
    reference: str | None = None
    lpips_weights: str | None = None
    metrics: tuple[str, ...] | None = None
    limits: tuple[Limit, ...] = ()
    baseline: str | None = None
    tolerance: float = TOLERANCE
    update_baseline: bool = False
    inconclusive: str | None = None
    results: str | None = None
    report: str | None = None
    write: tuple[Output, ...] = ()
    wide: bool = False

    def __post_init__(self) -> None:
        _check_method(self.method)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "alphas" and value is None:
                value = _default_alphas(self.method)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            elif isinstance(value, list):
                value = tuple(value)
            if field.name == "write":
                value = _outputs(value)
            object.__setattr__(self, field.name, value)
        for name, check in CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                check(name, value)
        _check_sequential(self)
        check_window(self.steer_from, self.steer_until)
        _check_engine(self.engine)
        one_of(DTYPES)("clip_dtype", self.clip_dtype)
        if self.inconclusive is not None:
            one_of(INCONCLUSIVE)("inconclusive", self.inconclusive)
        check_number("tolerance", self.tolerance, 0.0, MAX_TOLERANCE)
        for name in ("run_dir", "ceiling", "reference", "lpips_weights", "baseline", "results",
                     "report"):  # fmt: skip
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        _check_metrics(self.metrics)
        _check_limits(self.limits, self.metrics)

    @property
    def gates(self) -> bool:
        """True if the user named a baseline and this run does not replace it."""
        return self.baseline is not None and not self.update_baseline


def request_of(**options: Any) -> RunRequest:
    """The request with these fields; the others have their defaults.

    Raises ``OptionError``, with the nearest name, for a name that is not a field, and
    ``FieldError`` for an invalid value.
    """
    known = [field.name for field in dataclasses.fields(RunRequest)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise OptionError(
                place=name,
                expected="an option of a run",
                got="none of this name",
                advice=f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}",
            )
    return RunRequest(**options)


def option_error(error: FieldError) -> OptionError:
    """A field's error as an error of the option with the same name."""
    flag = f"--{(error.place or '').replace('_', '-')}"
    return OptionError(place=flag, expected=error.expected, got=error.got, advice=error.advice)


def _check_sequential(request: RunRequest) -> None:
    for name in ("order_seed", "full_unsteered", "futility", "reserve"):
        value = getattr(request, name)
        if value and not request.sequential:
            raise FieldError(
                place=name, expected="--sequential with it", got=repr(value),
                advice="add --sequential, or leave it out",
            )  # fmt: skip


def _check_method(name: Any) -> None:
    check_name("method", name)
    try:
        METHODS.check(name)
    except AnalogyError as error:
        raise _of_field("method", error) from None


def _check_engine(name: str) -> None:
    try:
        ENGINES.check(name)
    except AnalogyError as error:
        raise _of_field("engine", error) from None


def _outputs(write: Any) -> tuple[Output, ...]:
    """One file or several, each an ``Output`` or text."""
    files = write if isinstance(write, tuple) else (write,)
    if not all(isinstance(file, (str, os.PathLike, Output)) for file in files):
        raise FieldError(place="write", expected="files or NAME=FILE", got=repr(write))
    try:
        return tuple(
            file if isinstance(file, Output) else Output.parse(os.fspath(file)) for file in files
        )
    except AnalogyError as error:
        raise FieldError(
            place="write", expected=error.expected, got=error.got, advice=error.advice
        ) from None


def _default_alphas(method: str) -> tuple[float, ...]:
    try:
        return default_alphas(method)
    except AnalogyError as error:
        raise _of_field("method", error) from error


def _of_field(name: str, error: AnalogyError) -> FieldError:
    return FieldError(place=name, expected=error.expected, got=error.got, advice=error.advice)


def _check_metrics(metrics: Any) -> None:
    """Checks the names of metrics; imports no metric."""
    if metrics is None:
        return
    if not isinstance(metrics, tuple) or not metrics:
        raise FieldError(place="metrics", expected="a non-empty tuple", got=shown(metrics))
    for name in metrics:
        check_name("metrics", name)
        if METRICS.is_builtin(name) and name not in DEFAULT:
            raise FieldError(
                place="metrics",
                expected=f"one of {', '.join(grid_names())}, or package.module:name",
                got=f"{name!r}, which is measured by a Task (docs/evaluation.md)",
            )
        if not is_spec(name):
            _check_choice("metrics", name, grid_names())
    if len(set(map(name_in_results, metrics))) < len(metrics):
        raise FieldError(place="metrics", expected="each metric once", got=", ".join(metrics))


def _check_limits(limits: Any, metrics: tuple[str, ...] | None) -> None:
    """Checks that every limit is on a metric that is measured."""
    if not isinstance(limits, tuple) or not all(isinstance(one, Limit) for one in limits):
        raise FieldError(place="limits", expected="a tuple of Limit", got=repr(limits))
    measured = [name_in_results(name) for name in metrics or DEFAULT]
    for limit in limits:
        _check_choice("limits", limit.metric, measured)


def _check_choice(name: str, value: str, names: Sequence[str]) -> None:
    if value not in names:
        near = get_close_matches(value, names, n=1)
        raise FieldError(
            place=name,
            expected=f"one of {', '.join(names)}",
            got=repr(value),
            advice=f"did you mean {near[0]!r}?" if near else None,
        )
