"""Do the statistics hold what they promise? Simulations on data whose true mean is known.

    python -m analogy.calibration -o docs/calibration.md

Intervals, tests and verdicts come from `analogy.stats`, the functions that judge a run; only the
data are drawn here. Every figure is a share of repetitions, of which it carries the Monte-Carlo
error, and depends on its arguments alone: neither on the order of calls nor on the processes.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import scipy
from numpy.typing import NDArray
from tqdm import tqdm

from analogy import stats
from analogy._version import __version__
from analogy.files import PlaceError, check_output, write_output
from analogy.records import Verdict

SIZES = (10, 20, 50, 200)
"""Pairs: few, a small category, a cell of the suite, a large category."""

FAMILIES = ("normal", "exponential", "mirrored exponential", "Student t(3)")
FAMILY_SIZES = (10, 50, 200)

CELLS = 24
"""Cells of one run: 8 categories at 3 strengths."""

FAR_RESAMPLES = 10_000
"""For a p that is to be below 0.05 / 24: as many as a run takes."""

ALPHAS = 3
"""Items of a pair in clustered data."""

CORRELATION = 0.5
"""Between two items of a pair in clustered data."""

MIN_REPETITIONS = 100
"""With fewer the Monte-Carlo error of a coverage is above two points: nothing could be judged."""

BEGIN, END = "<!-- calibration: begin -->", "<!-- calibration: end -->"
"""The lines of a document between which the command writes."""

CalibratedMethod = Literal[stats.Method, "items"]
"""A bootstrap over pairs, or `stats.item_level`, which takes their items for independent."""

IntervalOf = Callable[[NDArray[np.float64], int], tuple[float, float]]
"""An interval of the mean from (clusters, items per cluster) and the bootstrap's seed."""

_LOGNORMAL_SIGMA = 0.5
_Z = 1.959964  # of a two-sided 95% interval of normal data with a known standard deviation


class Share(NamedTuple):
    """`hits` of `of` repetitions."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The share, 0..1."""
        return self.hits / self.of

    @property
    def error(self) -> float:
        """Its Monte-Carlo standard error, by Agresti and Coull (1998): above 0 even at 0 and 1."""
        share = (self.hits + 2) / (self.of + 4)
        return math.sqrt(share * (1 - share) / (self.of + 4))


class Bar(NamedTuple):
    """What a share is asked to be: from `low` to `high`, 0..1."""

    low: float
    high: float

    def holds(self, share: Share, *, errors: float = 0.0) -> bool:
        """Whether the share is within the bar widened by so many Monte-Carlo errors."""
        slack = errors * share.error
        return self.low - slack <= share.value <= self.high + slack


COVERAGE_BAR = Bar(0.94, 0.96)
"""Of 95% intervals of 50 normal or clustered values."""

SKEWED_BAR = Bar(0.92, 1.0)
"""Of 95% intervals of skewed values, any number."""

ERROR_BAR = Bar(0.0, 0.05)
"""Of the type I error of a verdict, and of a family of them after Holm."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Items around a true mean of 0.

    `draw(rng, (repetitions, pairs))` gives (repetitions, pairs, items per pair); `sd` is the true
    standard deviation of a pair's mean.
    """

    draw: Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
    sd: float
    is_skewed: bool = False


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.standard_normal((*shape, 1))


def _exponential(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.standard_exponential((*shape, 1)) - 1


def _mirrored(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return -_exponential(rng, shape)


def _lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.lognormal(0, _LOGNORMAL_SIGMA, (*shape, 1)) - math.exp(_LOGNORMAL_SIGMA**2 / 2)


def _student(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.standard_t(3, (*shape, 1))


def _clustered(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    pair = math.sqrt(CORRELATION) * rng.standard_normal((*shape, 1))
    return pair + math.sqrt(1 - CORRELATION) * rng.standard_normal((*shape, ALPHAS))


_VARIANCE = math.exp(_LOGNORMAL_SIGMA**2)

DISTRIBUTIONS: Mapping[str, Distribution] = {
    "normal": Distribution(_normal, 1.0),
    "clustered": Distribution(_clustered, math.sqrt((1 + (ALPHAS - 1) * CORRELATION) / ALPHAS)),
    "exponential": Distribution(_exponential, 1.0, is_skewed=True),
    "mirrored exponential": Distribution(_mirrored, 1.0, is_skewed=True),
    "lognormal": Distribution(_lognormal, math.sqrt(_VARIANCE * (_VARIANCE - 1)), is_skewed=True),
    "Student t(3)": Distribution(_student, math.sqrt(3.0)),
}
"""Exponential: skewness 2. Lognormal: sigma 0.5, skewness 1.75. Clustered: items of variance 1."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often 95% intervals hold the true mean.

    `below` and `above`: how often the whole interval lies below and above the true mean; `width`:
    the mean width of the intervals, in units of the normal theory's with a known standard
    deviation.
    """

    distribution: str
    n: int
    method: str
    held: Share
    below: Share
    above: Share
    width: float


@dataclass(frozen=True, slots=True)
class TypeOneError:
    """How often a cell whose true mean is 0 is called a success, and how often a failure."""

    distribution: str
    n: int
    method: str
    success: Share
    failure: Share


@dataclass(frozen=True, slots=True)
class FamilyWiseError:
    """How often a family of cells whose true mean is 0 has a success.

    `raw`: by the verdicts; `holm`: by the verdicts whose Holm-adjusted p is below 0.05 too.
    """

    distribution: str
    n: int
    cells: int
    raw: Share
    holm: Share


@dataclass(frozen=True, slots=True)
class Power:
    """How often a true mean of `effect` standard deviations is called a success."""

    distribution: str
    n: int
    effect: float
    success: Share


def coverage(
    distribution: str,
    n: int,
    *,
    repetitions: int = 1_000,
    n_resamples: int = 1_000,
    method: CalibratedMethod = "studentized",
    seed: int = 0,
) -> Coverage:
    """Coverage of a method's 95% intervals over samples of `n` pairs."""
    intervals = _intervals(distribution, n, repetitions, n_resamples, method, seed)
    return _coverage(distribution, n, method, intervals)


def coverage_of(
    interval: IntervalOf, distribution: str, n: int, *, repetitions: int = 1_000, seed: int = 0
) -> Coverage:
    """Coverage of any other interval, by the same way as `coverage`: a check of the way itself."""
    samples, seeds = _samples(distribution, n, repetitions, seed)
    intervals = np.array([interval(table, at) for table, at in zip(samples, seeds, strict=True)])
    return _coverage(distribution, n, "given", intervals)


def type_one_error(
    distribution: str,
    n: int,
    *,
    repetitions: int = 1_000,
    n_resamples: int = 1_000,
    method: stats.Method = "studentized",
    seed: int = 0,
) -> TypeOneError:
    """Wrong verdicts on cells of `n` pairs whose true mean is 0, with intervals by `method`."""
    samples, _ = _samples(distribution, n, repetitions, seed)
    intervals = _intervals(distribution, n, repetitions, n_resamples, method, seed)
    verdicts = Counter(
        # p takes half the time and matters only where the interval is above 0.
        stats.verdict(n=n, ci_low=low, ci_high=high, p=stats.t_test(means) if low > 0 else math.nan)
        for means, (low, high) in zip(samples.mean(axis=2), intervals.tolist(), strict=True)
    )
    return TypeOneError(
        distribution,
        n,
        method,
        success=Share(verdicts[Verdict.SUCCESS], repetitions),
        failure=Share(verdicts[Verdict.FAILURE], repetitions),
    )


def family_wise_error(
    distribution: str,
    n: int,
    *,
    cells: int = CELLS,
    repetitions: int = 1_000,
    n_resamples: int = 1_000,
    seed: int = 0,
) -> FamilyWiseError:
    """Families of independent `cells` of `n` pairs each, all of true mean 0, with a success.

    A repetition is a family.
    """
    samples, seeds = _samples(distribution, n, repetitions * cells, seed)
    means = samples.mean(axis=2)
    p_values = _t_tests(means)
    is_success = np.zeros(p_values.size, dtype=bool)
    for i in np.flatnonzero(p_values < stats.SIGNIFICANCE):
        is_success[i] = _is_success(means[i], n_resamples, seeds[i])
    # As in analogy.analysis, Holm adjusts the larger p of two tests, with a run's own resamples: a
    # p of 0.002 needs more of them than an interval. A cell can be the first of its family to pass
    # only with p below 0.05 / cells in both tests, so the second is asked of few.
    for i in np.flatnonzero(p_values < stats.SIGNIFICANCE / cells):
        p = stats.bootstrap_test(means[i], n_resamples=FAR_RESAMPLES, seed=seeds[i])
        p_values[i] = max(p_values[i], p)
    p_values = p_values.reshape(repetitions, cells)
    successes = is_success.reshape(repetitions, cells)
    has_success = successes.any(axis=1)
    # Where Bonferroni lets none pass Holm lets none pass either; statsmodels takes 50 ms a family.
    is_candidate = has_success & (p_values.min(axis=1) * cells < stats.SIGNIFICANCE)
    survivors = sum(
        (successes[i] & (stats.holm(p_values[i].tolist()) < stats.SIGNIFICANCE)).any()
        for i in np.flatnonzero(is_candidate)
    )
    return FamilyWiseError(
        distribution,
        n,
        cells,
        raw=Share(int(has_success.sum()), repetitions),
        holm=Share(int(survivors), repetitions),
    )


def power(
    n: int,
    *,
    effect: float | None = None,
    distribution: str = "normal",
    repetitions: int = 1_000,
    n_resamples: int = 1_000,
    seed: int = 0,
) -> Power:
    """Successes among cells of `n` pairs whose true mean is `effect`, in standard deviations.

    By default the effect that `stats.min_detectable` says is found in `stats.POWER` of runs.
    """
    effect = stats.min_detectable(1.0, n) if effect is None else effect
    samples, seeds = _samples(distribution, n, repetitions, seed)
    means = samples.mean(axis=2) + effect * DISTRIBUTIONS[distribution].sd
    hits = sum(
        _is_success(means[i], n_resamples, seeds[i])
        for i in np.flatnonzero(_t_tests(means) < stats.SIGNIFICANCE)
    )
    return Power(distribution, n, effect, Share(hits, repetitions))


def _samples(
    distribution: str, n: int, repetitions: int, seed: int
) -> tuple[NDArray[np.float64], list[int]]:
    """Items, (repetitions, pairs, items per pair), and the bootstrap's seed for each repetition.

    The seeds differ, or all intervals would share the bootstrap's own chance.
    """
    if distribution not in DISTRIBUTIONS:
        near = get_close_matches(distribution, DISTRIBUTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"distribution: expected one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}{hint}"
        )
    if n < stats.MIN_DECISIVE:
        raise ValueError(
            f"n: expected at least {stats.MIN_DECISIVE}, got {n}: fewer pairs have no verdict"
        )
    if repetitions < 1:
        raise ValueError(f"repetitions: expected at least 1, got {repetitions}")
    rng = np.random.default_rng([seed, zlib.crc32(distribution.encode()), n])
    samples = DISTRIBUTIONS[distribution].draw(rng, (repetitions, n))
    return samples, rng.integers(2**32, size=repetitions).tolist()


@cache
def _intervals(
    distribution: str, n: int, repetitions: int, n_resamples: int, method: str, seed: int
) -> NDArray[np.float64]:
    """95% intervals, (repetitions, 2), kept: coverage and verdicts are of the same ones."""
    samples, seeds = _samples(distribution, n, repetitions, seed)
    interval = _interval_of(method, n_resamples)
    intervals = np.array([interval(table, at) for table, at in zip(samples, seeds, strict=True)])
    intervals.setflags(write=False)
    return intervals


def _interval_of(method: str, n_resamples: int) -> IntervalOf:
    if method == "items":

        def of_items(table: NDArray[np.float64], seed: int) -> tuple[float, float]:
            figures = stats.item_level(table, n_resamples=n_resamples, seed=seed)
            return figures.ci_low, figures.ci_high

        return of_items
    if method not in get_args(stats.Method):
        expected = ", ".join((*get_args(stats.Method), "items"))
        raise ValueError(f"method: expected one of {expected}, got {method!r}")

    def of_pairs(table: NDArray[np.float64], seed: int) -> tuple[float, float]:
        return stats.cluster_bootstrap_ci(
            table,
            n_resamples=n_resamples,
            seed=seed,
            method=method,  # type: ignore[arg-type]
        )

    return of_pairs


def _coverage(distribution: str, n: int, method: str, intervals: NDArray[np.float64]) -> Coverage:
    low, high = intervals.T
    below, above = int((high < 0).sum()), int((low > 0).sum())
    of = len(intervals)
    normal_width = 2 * _Z * DISTRIBUTIONS[distribution].sd / math.sqrt(n)
    return Coverage(
        distribution,
        n,
        method,
        held=Share(of - below - above, of),
        below=Share(below, of),
        above=Share(above, of),
        width=float((high - low).mean() / normal_width),
    )


def _t_tests(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """`stats.t_test` of each row, at once: most rows are no success by it and need no interval."""
    return np.asarray(scipy.stats.ttest_1samp(means, 0.0, axis=1, alternative="greater").pvalue)


def _is_success(means: NDArray[np.float64], n_resamples: int, seed: int) -> bool:
    low, high = stats.bootstrap_ci(means, n_resamples=n_resamples, seed=seed)
    verdict = stats.verdict(n=len(means), ci_low=low, ci_high=high, p=stats.t_test(means))
    return verdict is Verdict.SUCCESS


# The command


class Report(NamedTuple):
    """All figures of the committed tables."""

    coverages: list[Coverage]
    type_one_errors: list[TypeOneError]
    items: list[Coverage]
    families: list[FamilyWiseError]
    powers: list[Power]
    more_resamples: list[Coverage]  # in twos: few resamples, then 10,000


def measure(*, repetitions: int, n_resamples: int, seed: int, workers: int) -> Report:
    """All figures: those of the default method from `repetitions`.

    Families, powers and the comparison of resamples are from half as many, other methods from a
    quarter. With one worker everything runs in this process.
    """
    half, few = repetitions // 2, repetitions // 4
    settings: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    cells = [
        partial(_cell, name, n, method=method, repetitions=of, **settings)
        for method, of in zip(get_args(stats.Method), (repetitions, few, few), strict=True)
        for n in reversed(SIZES)  # the longest first: no worker is left with one at the end
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
    made = iter(_run(jobs, workers))
    pairs = [next(made) for _ in cells]
    return Report(
        [first for first, _ in pairs],
        [second for _, second in pairs],
        *([next(made) for _ in group] for group in (items, families, powers, more)),
    )


def _cell(distribution: str, n: int, **settings: Any) -> tuple[Coverage, TypeOneError]:
    """Both figures of one configuration, which share their intervals."""
    return coverage(distribution, n, **settings), type_one_error(distribution, n, **settings)


def _run(jobs: Sequence[Callable[[], Any]], workers: int) -> list[Any]:
    bar = partial(tqdm, total=len(jobs), desc="simulating", disable=None)  # only in a terminal
    if workers == 1:
        return [job() for job in bar(jobs)]
    # Spawned, because forking a process that has threads may hang (Python 3.12 warns of it).
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = [pool.submit(job) for job in jobs]
        return [future.result() for future in bar(futures)]


def tables(report: Report) -> str:
    """The report as markdown, each figure that has a bar marked against it."""
    parts = {
        "95% intervals that hold the true mean": _coverage_table(report),
        "Wrong verdicts on cells whose true mean is 0": _type_one_table(report),
        f"{ALPHAS} items a pair, correlation {CORRELATION:g}": _items_table(report),
        f"{CELLS} cells whose true mean is 0, at least one a success": _family_table(report),
        "Successes at the smallest detectable margin": _power_table(report),
        "More resamples": _resamples_lines(report),
    }
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())


def _coverage_table(report: Report) -> str:
    rows = {(row.method, row.distribution, row.n): row for row in report.coverages}
    default, *contrasts = get_args(stats.Method)
    head = ["data", "pairs", default, "too low / too high", "width"]
    lines = []
    for name, n in _cases():
        bar, own = _coverage_bar(name, n), rows[default, name, n]
        misses = f"{_percent(own.below)} / {_percent(own.above)}"
        line = [name, n, _judged(own.held, bar), misses, f"{own.width:.2f}"]
        for other in (rows[method, name, n] for method in contrasts):
            line += [_judged(other.held, bar), f"{other.width:.2f}"]
        lines.append(line)
    return _table([*head, *(title for method in contrasts for title in (method, "width"))], lines)


def _type_one_table(report: Report) -> str:
    rows = {(row.method, row.distribution, row.n): row for row in report.type_one_errors}
    methods = get_args(stats.Method)
    lines = [
        [name, n]
        + [
            _judged(share, ERROR_BAR)
            for row in (rows[method, name, n] for method in methods)
            for share in (row.success, row.failure)
        ]
        for name, n in _cases()
    ]
    heads = (f"{method}: {kind}" for method in methods for kind in ("success", "failure"))
    return _table(["data", "pairs", *heads], lines)


def _items_table(report: Report) -> str:
    default = get_args(stats.Method)[0]
    rows = {(row.method, row.distribution, row.n): row for row in report.coverages}
    lines = []
    for naive in report.items:
        own = rows[default, naive.distribution, naive.n]
        shares = (_judged(own.held), f"{own.width:.2f}", _judged(naive.held), f"{naive.width:.2f}")
        lines.append([naive.n, *shares])
    return _table(["pairs", "pairs resampled", "width", "items resampled", "width"], lines)


def _family_table(report: Report) -> str:
    lines = [
        [row.distribution, row.n, _judged(row.raw), _judged(row.holm, ERROR_BAR)]
        for row in report.families
    ]
    return _table(["data", "pairs", "by the verdicts alone", "after Holm"], lines)


def _power_table(report: Report) -> str:
    lines = [
        [row.n, f"{row.effect:.3f}", f"{100 * stats.POWER:.1f}", _judged(row.success)]
        for row in report.powers
    ]
    return _table(["pairs", "true mean (standard deviations)", "planned", "successes"], lines)


def _resamples_lines(report: Report) -> str:
    rows = report.more_resamples
    return "\n".join(
        f"- {few.distribution}, {few.n} pairs: {_judged(few.held)} with the resamples above, "
        f"{_percent(many.held)} with 10,000 on the same samples."
        for few, many in zip(rows[::2], rows[1::2], strict=True)
    )


def _cases() -> list[tuple[str, int]]:
    return [(name, n) for name in DISTRIBUTIONS for n in SIZES]


def _coverage_bar(distribution: str, n: int) -> Bar | None:
    if DISTRIBUTIONS[distribution].is_skewed:
        return SKEWED_BAR
    return COVERAGE_BAR if n == 50 and distribution in ("normal", "clustered") else None


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _percent(share: Share) -> str:
    return f"{100 * share.value:.1f}"


def _judged(share: Share, bar: Bar | None = None) -> str:
    """A share with its Monte-Carlo error, in percent, and whether it holds its bar."""
    text = f"{_percent(share)} ± {100 * share.error:.1f}"
    if bar is None:
        return text
    return f"{text} {'✓' if bar.holds(share) else '≈' if bar.holds(share, errors=2) else '✗'}"


def _integer(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected an integer >= {low}, got {text!r}")
        return int(text)

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analogy.calibration",
        description="Do the statistics hold what they promise? Simulates it and makes the tables.",
    )
    for flag, low, default, text in (
        ("--repetitions", MIN_REPETITIONS, 4_000, "samples of each configuration"),
        ("--resamples", stats.MIN_RESAMPLES, 1_000, "bootstrap resamples of each sample"),
        ("--seed", 0, 0, "the same seed gives the same figures"),
        ("--workers", 1, 2, "processes"),
    ):
        parser.add_argument(
            flag, type=_integer(low), default=default, metavar="N", help=f"{text} [{default}]"
        )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help=f"put the tables into this document, between its lines {BEGIN} and {END} [print them]",
    )  # fmt: skip
    return parser


def _around_tables(path: Path) -> tuple[str, str]:
    """What a document has before and after its tables."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a document that can be read, got {path} ({error})") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN} and {END} in {path}; add them to it")
    return before, after


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate everything; print the tables, or put them into a document."""
    parser = _parser()
    options = parser.parse_args(arguments)
    before, after = "", "\n"
    if options.output is not None:
        try:  # before the work, not after it
            before, after = _around_tables(options.output)
            check_output(options.output)
        except (PlaceError, ValueError) as error:
            parser.error(f"-o: {error}")
    report = measure(
        repetitions=options.repetitions,
        n_resamples=options.resamples,
        seed=options.seed,
        workers=options.workers,
    )
    made = (
        f"`python -m analogy.calibration --repetitions {options.repetitions} "
        f"--resamples {options.resamples} --seed {options.seed} -o docs/calibration.md`, "
        f"analogy-bench {__version__}, Python {sys.version.split()[0]}, numpy {np.__version__}, "
        f"scipy {scipy.__version__}."
    )
    text = f"{before}{BEGIN}\n\n{made}\n\n{tables(report)}\n\n{END}{after}"
    if options.output is None:
        sys.stdout.write(text)
    else:
        write_output(options.output, text.encode())


if __name__ == "__main__":
    main()
