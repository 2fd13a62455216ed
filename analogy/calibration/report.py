"""All figures of docs/calibration.md, and their tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple, TypedDict, get_args

from tqdm import tqdm

from analogy.calibration.simulation import (
    ALPHAS,
    CELLS,
    CORRELATION,
    COVERAGE_BAR,
    DISTRIBUTIONS,
    ERROR_BAR,
    SKEWED_BAR,
    Bar,
    Coverage,
    FamilyWiseError,
    Power,
    Share,
    TypeOneError,
    coverage,
    family_wise_error,
    power,
    type_one_error,
)
from analogy.statistics import bootstrap
from analogy.statistics import power as power_module

SIZES = (10, 20, 50, 200)
"""Numbers of pairs: few, a small category, a cell of the suite, a large category."""

FAMILIES = ("normal", "exponential", "mirrored exponential", "Student t(3)")
FAMILY_SIZES = (10, 50, 200)


class CalibrationFigures(NamedTuple):
    """All figures of the committed tables."""

    coverages: list[Coverage]
    type_one_errors: list[TypeOneError]
    items: list[Coverage]
    families: list[FamilyWiseError]
    powers: list[Power]
    more_resamples: list[Coverage]  # in twos: few resamples, then 10,000


class _Settings(TypedDict):
    n_resamples: int
    seed: int


def measure(*, repetitions: int, n_resamples: int, seed: int, workers: int) -> CalibrationFigures:
    """All figures. Those of the default method are from `repetitions` samples.

    Families, powers and the comparison of resamples are from half as many, and other methods from a
    quarter. With one worker everything runs in this process.
    """
    half, few = repetitions // 2, repetitions // 4
    settings: _Settings = {"n_resamples": n_resamples, "seed": seed}
    cells = [
        partial(_cell, name, n, method=method, repetitions=of, **settings)
        for method, of in zip(get_args(bootstrap.Method), (repetitions, few, few), strict=True)
        for n in reversed(SIZES)  # the longest first, so that no worker ends with a long job
        for name in DISTRIBUTIONS
    ]
    items = [
        partial(coverage, "clustered", n, method="items", repetitions=few, **settings)
        for n in SIZES
    ]
    families = [
        partial(family_wise_error, name, n, repetitions=half, **settings)
        for name in FAMILIES
        for n in FAMILY_SIZES
    ]
    powers = [partial(power, n, repetitions=half, **settings) for n in SIZES]
    more = [
        partial(coverage, name, n, repetitions=half, n_resamples=resamples, seed=seed)
        for name, n in (("normal", 50), ("exponential", 10))
        for resamples in (n_resamples, 10_000)
    ]
    jobs: list[Callable[[], Any]] = [*cells, *items, *families, *powers, *more]
    made = iter(run(jobs, workers))
    pairs = [next(made) for _ in cells]
    return CalibrationFigures(
        [first for first, _ in pairs],
        [second for _, second in pairs],
        *([next(made) for _ in group] for group in (items, families, powers, more)),
    )


def _cell(distribution: str, n: int, **settings: Any) -> tuple[Coverage, TypeOneError]:
    """Coverage and wrong verdicts of one configuration, from the same intervals."""
    return coverage(distribution, n, **settings), type_one_error(distribution, n, **settings)


def run(jobs: Sequence[Callable[[], Any]], workers: int) -> list[Any]:
    """The results of jobs, in the order of the jobs.

    ``workers``: the number of processes; with 1, the jobs run in this process.
    """
    bar = partial(tqdm, total=len(jobs), desc="simulating", disable=None)  # only in a terminal
    if workers == 1:
        return [job() for job in bar(jobs)]
    # Spawned, because forking a process that has threads may hang (Python 3.12 warns of it).
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = [pool.submit(job) for job in jobs]
        return [future.result() for future in bar(futures)]


def tables(figures: CalibrationFigures) -> str:
    """The figures as Markdown; a figure with a required range is marked as inside or outside it."""
    parts = {
        "95% intervals that hold the true mean": _coverage_table(figures),
        "Wrong verdicts on cells whose true mean is 0": _type_one_table(figures),
        f"{ALPHAS} items a pair, correlation {CORRELATION:g}": _items_table(figures),
        f"{CELLS} cells whose true mean is 0, at least one a success": _family_table(figures),
        "Successes at the smallest detectable margin": _power_table(figures),
        "More resamples": _resamples_lines(figures),
    }
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())


def _coverage_table(figures: CalibrationFigures) -> str:
    rows = {(row.method, row.distribution, row.n): row for row in figures.coverages}
    default, *contrasts = get_args(bootstrap.Method)
    head = ["data", "pairs", default, "too low / too high", "width"]
    lines = []
    for name, n in _cases():
        bar, own = _coverage_bar(name, n), rows[default, name, n]
        misses = f"{percent(own.below)} / {percent(own.above)}"
        line = [name, n, judged(own.held, bar), misses, f"{own.width:.2f}"]
        for other in (rows[method, name, n] for method in contrasts):
            line += [judged(other.held, bar), f"{other.width:.2f}"]
        lines.append(line)
    return table([*head, *(title for method in contrasts for title in (method, "width"))], lines)


def _type_one_table(figures: CalibrationFigures) -> str:
    rows = {(row.method, row.distribution, row.n): row for row in figures.type_one_errors}
    methods = get_args(bootstrap.Method)
    lines = [
        [name, n]
        + [
            judged(share, ERROR_BAR)
            for row in (rows[method, name, n] for method in methods)
            for share in (row.success, row.failure)
        ]
        for name, n in _cases()
    ]
    heads = (f"{method}: {kind}" for method in methods for kind in ("success", "failure"))
    return table(["data", "pairs", *heads], lines)


def _items_table(figures: CalibrationFigures) -> str:
    default = get_args(bootstrap.Method)[0]
    rows = {(row.method, row.distribution, row.n): row for row in figures.coverages}
    lines = []
    for naive in figures.items:
        own = rows[default, naive.distribution, naive.n]
        shares = (judged(own.held), f"{own.width:.2f}", judged(naive.held), f"{naive.width:.2f}")
        lines.append([naive.n, *shares])
    return table(["pairs", "pairs resampled", "width", "items resampled", "width"], lines)


def _family_table(figures: CalibrationFigures) -> str:
    lines = [
        [row.distribution, row.n, judged(row.raw), judged(row.holm, ERROR_BAR)]
        for row in figures.families
    ]
    return table(["data", "pairs", "by the verdicts alone", "after Holm"], lines)


def _power_table(figures: CalibrationFigures) -> str:
    lines = [
        [row.n, f"{row.effect:.3f}", f"{100 * power_module.POWER:.1f}", judged(row.success)]
        for row in figures.powers
    ]
    return table(["pairs", "true mean (standard deviations)", "planned", "successes"], lines)


def _resamples_lines(figures: CalibrationFigures) -> str:
    rows = figures.more_resamples
    return "\n".join(
        f"- {few.distribution}, {few.n} pairs: {judged(few.held)} with the resamples above, "
        f"{percent(many.held)} with 10,000 on the same samples."
        for few, many in zip(rows[::2], rows[1::2], strict=True)
    )


def _cases() -> list[tuple[str, int]]:
    return [(name, n) for name in DISTRIBUTIONS for n in SIZES]


def _coverage_bar(distribution: str, n: int) -> Bar | None:
    if DISTRIBUTIONS[distribution].is_skewed:
        return SKEWED_BAR
    return COVERAGE_BAR if n == 50 and distribution in ("normal", "clustered") else None


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def percent(share: Share) -> str:
    """A share in percent, with one decimal place."""
    return f"{100 * share.value:.1f}"


def judged(share: Share, bar: Bar | None = None) -> str:
    """A share with its Monte-Carlo error, in percent, and a mark if it has a required range.

    ✓: inside `bar`; ≈: outside by at most 2 standard errors; ✗: further outside.
    """
    text = f"{percent(share)} ± {100 * share.error:.1f}"
    if bar is None:
        return text
    return f"{text} {'✓' if bar.holds(share) else '≈' if bar.holds(share, errors=2) else '✗'}"
