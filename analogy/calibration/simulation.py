"""Simulations on data whose true mean is known: coverage, errors of verdicts, power.

Intervals, tests and verdicts come from `analogy.statistics`, as in a run; only the data are drawn
here. Every figure is a share of repetitions with its Monte-Carlo error. It depends only on its
arguments: neither on the order of calls nor on the number of processes.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy
from numpy.typing import NDArray

from analogy.core.records import SIGNIFICANCE, Verdict
from analogy.statistics import bootstrap, estimates, multiplicity, tests, values
from analogy.statistics import power as power_module

CELLS = 24
"""The number of cells of one run: 8 categories at 3 strengths."""

FAR_RESAMPLES = 10_000
"""Resamples for a p that must be below 0.05 / 24: as many as in a run."""

ALPHAS = 3
"""The number of items of a pair in clustered data."""

CORRELATION = 0.5
"""The correlation between two items of a pair in clustered data."""

CalibratedMethod = Literal[bootstrap.Method, "items"]
"""A bootstrap over pairs, or `estimates.item_level`, which treats their items as independent."""

IntervalOf = Callable[[NDArray[np.float64], int], tuple[float, float]]
"""A function from (clusters, items per cluster) and the bootstrap's seed to an interval."""

_LOGNORMAL_SIGMA = 0.5
_Z = 1.959964  # half-width of a 95% interval in standard errors, if the standard deviation is known


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
        """The Monte-Carlo standard error by Agresti and Coull (1998): above 0 even at 0 and 1."""
        share = (self.hits + 2) / (self.of + 4)
        return math.sqrt(share * (1 - share) / (self.of + 4))


class Bar(NamedTuple):
    """The required range of a share: from `low` to `high`, 0..1."""

    low: float
    high: float

    def holds(self, share: Share, *, errors: float = 0.0) -> bool:
        """True if the share is within the bar, give or take ``errors`` standard errors."""
        slack = errors * share.error
        return self.low - slack <= share.value <= self.high + slack


COVERAGE_BAR = Bar(0.94, 0.96)
"""Required coverage of 95% intervals of 50 normal or clustered values."""

SKEWED_BAR = Bar(0.92, 1.0)
"""Required coverage of 95% intervals of skewed values, for any number of values."""

ERROR_BAR = Bar(0.0, 0.05)
"""Required type I error of a verdict, and of a family of verdicts after Holm."""


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
    """How often 95% intervals contain the true mean.

    `below` and `above`: how often the whole interval lies below and above the true mean; `width`:
    the mean width of the intervals, in units of the width by normal theory with a known standard
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
    """How often the verdict on a cell with a true mean of 0 is success, and how often failure."""

    distribution: str
    n: int
    method: str
    success: Share
    failure: Share


@dataclass(frozen=True, slots=True)
class FamilyWiseError:
    """How often a family of cells with a true mean of 0 has a success.

    `raw`: by the verdicts alone; `holm`: also with a Holm-adjusted p below 0.05.
    """

    distribution: str
    n: int
    cells: int
    raw: Share
    holm: Share


@dataclass(frozen=True, slots=True)
class Power:
    """How often the verdict is success if the true mean is `effect` standard deviations."""

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
    """Coverage of any other interval, computed as in `coverage`, in order to check `coverage`."""
    samples, seeds = _samples(distribution, n, repetitions, seed)
    intervals = np.array([interval(table, at) for table, at in zip(samples, seeds, strict=True)])
    return _coverage(distribution, n, "given", intervals)


def type_one_error(
    distribution: str,
    n: int,
    *,
    repetitions: int = 1_000,
    n_resamples: int = 1_000,
    method: bootstrap.Method = "studentized",
    seed: int = 0,
) -> TypeOneError:
    """Wrong verdicts on cells of `n` pairs whose true mean is 0, with intervals by `method`."""
    samples, _ = _samples(distribution, n, repetitions, seed)
    intervals = _intervals(distribution, n, repetitions, n_resamples, method, seed)
    verdicts = Counter(
        # p takes half the time and matters only if the interval is above 0.
        estimates.verdict(
            n=n, ci_low=low, ci_high=high, p=tests.t_test(means) if low > 0 else math.nan
        )
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
    """How often a family of independent cells, all with a true mean of 0, has a success.

    A family has `cells` cells of `n` pairs each. A repetition is a family.
    """
    samples, seeds = _samples(distribution, n, repetitions * cells, seed)
    means = samples.mean(axis=2)
    p_values = _t_tests(means)
    is_success = np.zeros(p_values.size, dtype=bool)
    for i in np.flatnonzero(p_values < SIGNIFICANCE):
        is_success[i] = _is_success(means[i], n_resamples, seeds[i])
    # As in analogy.studies.analysis, Holm adjusts the larger p of two tests, with a run's own
    # resamples: a p of 0.002 needs more of them than an interval. A cell can be the first of its
    # family to pass only if p is below 0.05 / cells in both tests, so few cells need the second.
    for i in np.flatnonzero(p_values < SIGNIFICANCE / cells):
        p = bootstrap.bootstrap_test(means[i], n_resamples=FAR_RESAMPLES, seed=seeds[i])
        p_values[i] = max(p_values[i], p)
    p_values = p_values.reshape(repetitions, cells)
    successes = is_success.reshape(repetitions, cells)
    has_success = successes.any(axis=1)
    survivors = sum(
        (successes[i] & (multiplicity.holm(p_values[i].tolist()) < SIGNIFICANCE)).any()
        for i in np.flatnonzero(has_success)
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
    """How often cells of `n` pairs with the true mean `effect`, in standard deviations, succeed.

    `effect` is by default `power.min_detectable`, the one to be found in `power.POWER` of runs.
    """
    effect = power_module.min_detectable(1.0, n) if effect is None else effect
    samples, seeds = _samples(distribution, n, repetitions, seed)
    means = samples.mean(axis=2) + effect * DISTRIBUTIONS[distribution].sd
    hits = sum(
        _is_success(means[i], n_resamples, seeds[i])
        for i in np.flatnonzero(_t_tests(means) < SIGNIFICANCE)
    )
    return Power(distribution, n, effect, Share(hits, repetitions))


def _samples(
    distribution: str, n: int, repetitions: int, seed: int
) -> tuple[NDArray[np.float64], list[int]]:
    """Items, (repetitions, pairs, items per pair), and the bootstrap's seed for each repetition.

    The seeds differ, since otherwise all intervals would share the chance of one bootstrap.
    """
    if distribution not in DISTRIBUTIONS:
        near = get_close_matches(distribution, DISTRIBUTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"distribution: expected one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}{hint}"
        )
    if n < values.MIN_DECISIVE:
        raise ValueError(
            f"n: expected at least {values.MIN_DECISIVE}, got {n}: fewer pairs have no verdict"
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
    """95% intervals, (repetitions, 2), cached: coverage and wrong verdicts use the same ones."""
    samples, seeds = _samples(distribution, n, repetitions, seed)
    interval = _interval_of(method, n_resamples)
    intervals = np.array([interval(table, at) for table, at in zip(samples, seeds, strict=True)])
    intervals.setflags(write=False)
    return intervals


def _interval_of(method: str, n_resamples: int) -> IntervalOf:
    if method == "items":

        def of_items(table: NDArray[np.float64], seed: int) -> tuple[float, float]:
            figures = estimates.item_level(table, n_resamples=n_resamples, seed=seed)
            return figures.ci_low, figures.ci_high

        return of_items
    if method not in get_args(bootstrap.Method):
        expected = ", ".join((*get_args(bootstrap.Method), "items"))
        raise ValueError(f"method: expected one of {expected}, got {method!r}")

    def of_pairs(table: NDArray[np.float64], seed: int) -> tuple[float, float]:
        return bootstrap.cluster_bootstrap_ci(
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
    """`tests.t_test` of each row, at once: most rows fail it and then need no interval."""
    return np.asarray(scipy.stats.ttest_1samp(means, 0.0, axis=1, alternative="greater").pvalue)


def _is_success(means: NDArray[np.float64], n_resamples: int, seed: int) -> bool:
    low, high = bootstrap.bootstrap_ci(means, n_resamples=n_resamples, seed=seed)
    verdict = estimates.verdict(n=len(means), ci_low=low, ci_high=high, p=tests.t_test(means))
    return verdict is Verdict.SUCCESS
