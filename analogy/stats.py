"""Margins to items, items to estimates, estimates to verdicts: pure functions of numbers.

The item, one (pair, alpha), is the mean over its seeds. The cluster is the pair: images of one pair
are not independent, so every interval and every test here is over pairs, each with all its items.

An estimate is unchanged by the order of its values, and moves with them under a shift or a positive
scale, so that a verdict hangs neither on how rows happened to be stored nor on rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from analogy.records import SIGNIFICANCE as SIGNIFICANCE
from analogy.records import Estimate, ItemLevel, Trend, Verdict

POWER = 0.8
"""The chance of a success for which the detectable margin and the pairs needed are planned."""

MIN_CLUSTERS = 2
"""With fewer pairs there is neither an interval nor a test."""

MIN_DECISIVE = 6
"""With fewer, an interval and a test are computed but decide nothing: 5 pairs or fewer are too few,
as the loader warns."""

MIN_RESAMPLES = 100
"""With fewer, a tail of the bootstrap distribution may be empty and BCa undefined."""

MAX_PAIRS = 1_000_000
"""More pairs than this are never said to be needed: the effect is nought for all purposes."""

Method = Literal["studentized", "BCa", "percentile"]

_MARGIN_COLUMNS = ("pair_id", "category", "alpha", "seed", "margin")
_ITEM_KEYS = ["pair_id", "category", "alpha"]

# Values whose spread is below this share of the largest are one value: float64 resolves no more of
# a variance than rounding noise there, and scipy's t-test warns of it (below 1e-14).
_SAME = 1e-12

# A resample's mean this near to the sample's, in units of the data's range, ties with it.
_TIE = 1e-9

# Jackknife samples at once; bounds BCa's memory to this many times n float64.
_BATCH = 1_000

# Counts of a block of resamples, 16 MB of float64: bounds the memory whatever n is.
_BLOCK = 2_000_000

# Values drawn and counted at once, so many that they stay in the processor's cache.
_CACHED = 32_768

# Samples with more values than this are resampled by groups: to draw 10,000 times as many numbers
# would take seconds for each length and minutes for a million margins.
_LONG = 20_000

# Groups of a long sample, and how many of the smallest and of the largest values stand alone.
_GROUPS, _ALONE = 2_048, 256

# Signed ranks with ties are counted out up to this many values; as many as scipy does without ties.
_MAX_EXACT = 50

# A d_z beyond this has the interval of the standard deviation alone, to 4 digits.
_LARGE_EFFECT = 100.0

# A t statistic beyond all others: of a resample without spread, whose mean is not the sample's.
_FAR = 1e9


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


def items_from_margins(frame: pd.DataFrame) -> pd.DataFrame:
    """Items, the means over seeds, from one margin per image.

    `frame` has the columns pair_id, category, alpha, seed, margin. The result has one row per
    (pair_id, category, alpha), sorted by them, with `margin` (float64, the mean) and `n_seeds`. It
    is the same to the last bit for any order of the rows and of the seeds. Cells are its groups by
    category and alpha; `items.pivot(index="pair_id", columns="alpha", values="margin")` is what
    `pooled_estimate` takes.
    """
    missing = [column for column in _MARGIN_COLUMNS if column not in frame.columns]
    if missing:
        raise ValueError(
            f"margins: expected the columns {', '.join(_MARGIN_COLUMNS)}; "
            f"missing: {', '.join(missing)}"
        )
    margins = frame.loc[:, list(_MARGIN_COLUMNS)].astype({"margin": np.float64})
    broken = margins[~np.isfinite(margins["margin"])]
    if len(broken):
        raise ValueError(f"margins: expected finite values, got {_first_of(broken)}")
    repeated = margins[margins.duplicated([*_ITEM_KEYS, "seed"])]
    if len(repeated):
        raise ValueError(
            f"margins: expected one row per pair, alpha and seed, got another of "
            f"{_first_of(repeated)}"
        )
    # A sum in float64 depends on the order of its terms: sorted by value, it has only one.
    ordered = margins.sort_values([*_ITEM_KEYS, "margin"])
    items = ordered.groupby(_ITEM_KEYS, sort=True, observed=True)["margin"]
    return items.agg(margin="mean", n_seeds="size").reset_index()


def bootstrap_ci(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    method: Method = "studentized",
) -> Interval:
    """Bootstrap interval of the mean of `values`, shape (n,).

    The resamples are those that `scipy.stats.bootstrap` draws, by groups of near values where these
    are more than 20,000.

    - `studentized`: the bootstrap-t (Efron and Tibshirani 1993, section 12.5; Hall 1988). Quantiles
      of the resamples' t statistics take the place of Student's. The default, because it alone
      holds what it says at the sizes of a cell: at n = 10 it covers the mean of normal data in 95%
      and of exponential data in 94% of cases, BCa in 90% and 89% (docs/calibration.md).
    - `BCa`: Efron (1987), "Better Bootstrap Confidence Intervals".
    - `percentile`: the quantiles of the resamples' means as they are.

    The same arguments give the same interval. Values are sorted, centred on their mean and divided
    by their range before resampling, and the interval is mapped back: that is what makes it the
    same for every order of the values and equivariant under shifts and positive scales. BCa's bias
    correction counts resamples below the sample's mean, ties by half. Ties are common in small
    samples and in coarse data, and rounding noise would break them either way and move the
    interval (scipy leaves it at that); here means closer than 1e-9 of the range tie.

    Degenerate data: no value, NaN and infinity are a `ValueError`; one value has no interval, (NaN,
    NaN); values that are equal (to 12 digits) have the interval (min, max), (v, v) when exactly so;
    two values have (min, max) at the usual confidence levels. A resample without spread has a t of
    no finite size: where such are many (a few values repeated), the interval reaches to the data's
    ends.

    The interval lies within the data and holds their mean: an end beyond either is moved to it. A
    studentized end is beyond the data where these are few or one is far from all others; BCa's
    end falls short of the mean only at confidence levels below about 17%.
    """
    sample = np.sort(_finite(values, ndim=1))
    _check_bootstrap(confidence, n_resamples, method)
    if len(sample) < MIN_CLUSTERS:
        return Interval(np.nan, np.nan)
    if _all_same(sample):
        return Interval(float(sample[0]), float(sample[-1]))
    centre, scale, unit = _standardised(sample)
    drawn = _resampled(unit, n_resamples, seed)
    levels = (1 - confidence) / 2, 1 - (1 - confidence) / 2
    if method == "studentized":  # the upper quantile of t gives the lower end
        error = np.std(sample, ddof=1) / (scale * math.sqrt(len(sample)))
        ends = -np.quantile(_t_statistic(drawn, len(sample)), levels)[::-1] * error
    elif method == "percentile":
        ends = np.quantile(_with_ties(drawn.means), levels)
    else:
        ends = _bca_ends(unit, _with_ties(drawn.means), confidence)
    low, high = centre + scale * ends
    return Interval(
        float(np.clip(low, sample[0], centre)), float(np.clip(high, centre, sample[-1]))
    )


def bootstrap_test(values: ArrayLike, *, n_resamples: int = 10_000, seed: int = 0) -> float:
    """One-sided p of the bootstrap-t test that the mean of `values`, shape (n,), is above 0.

    The share of resamples whose t statistic, of their mean against the sample's, is at least the
    sample's own against 0 (Efron and Tibshirani 1993, section 16.4), the sample counted as one of
    them: at least 1 / (n_resamples + 1). It takes from the data the shape that `t_test` supposes to
    be normal, which matters far out (docs/calibration.md).

    The resamples are those of `bootstrap_ci` with the same seed. Values that are equal (to 12
    digits) have the p of `t_test`, one value has none: NaN.
    """
    sample = np.sort(_finite(values, ndim=1))
    _check_bootstrap(0.95, n_resamples, "studentized")
    if len(sample) < MIN_CLUSTERS or _all_same(sample):
        return t_test(sample)
    centre, _, unit = _standardised(sample)
    drawn = _t_statistic(_resampled(unit, n_resamples, seed), len(sample))
    own = centre / (np.std(sample, ddof=1) / math.sqrt(len(sample)))
    beyond = np.count_nonzero(drawn >= own)
    return float((1 + beyond) / (1 + n_resamples))


def cluster_bootstrap_ci(
    clusters: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    method: Method = "studentized",
) -> Interval:
    """Bootstrap interval of the mean of all items, resampling clusters with all their items.

    `clusters` has the shape (clusters, items per cluster). Clusters of equal size enter a resample
    only through their means, and the mean of all items is the mean of those: so this is
    `bootstrap_ci` of the clusters' means, to which its account of methods and degenerate data
    applies with n the number of clusters.
    """
    return bootstrap_ci(
        _finite(clusters, ndim=2).mean(axis=1),
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
        method=method,
    )


def t_test(values: ArrayLike) -> float:
    """One-sided p of Student's t-test that the mean of `values`, shape (n,), is above 0.

    p of the negated values is 1 - p. Values that are equal (to 12 digits) keep that: p is 0 above
    zero, 1 below and 0.5 at zero. One value has no test: NaN. None, NaN and infinity are a
    `ValueError`.
    """
    sample = np.sort(_finite(values, ndim=1))
    if len(sample) < MIN_CLUSTERS:
        return float("nan")
    if _all_same(sample):
        return float(0.5 - 0.5 * np.sign(sample[0]))
    return float(scipy.stats.ttest_1samp(sample, 0.0, alternative="greater").pvalue)


def wilcoxon_test(values: ArrayLike) -> float:
    """One-sided p of Wilcoxon's signed-rank test that `values`, shape (n,), lie above 0.

    Zeros are left out, as Wilcoxon (1945) did; all zeros have p 1. Exact up to 50 values, with ties
    too; the normal approximation beyond. One value has no test: NaN. None, NaN and infinity are a
    `ValueError`.
    """
    sample = np.sort(_finite(values, ndim=1))
    if len(sample) < MIN_CLUSTERS:
        return float("nan")
    sample = sample[sample != 0]
    if len(sample) == 0:
        return 1.0
    sizes = np.abs(sample)
    if len(sample) > _MAX_EXACT or len(np.unique(sizes)) == len(sizes):
        return float(scipy.stats.wilcoxon(sample, alternative="greater").pvalue)
    # With ties scipy draws permutations, for seconds, up to 13 values, and approximates beyond.
    ranks = np.rint(2 * scipy.stats.rankdata(sizes)).astype(int)  # twice a mean rank is whole
    chance = np.ones(1)  # of each sum of the positive ranks, if signs are coin tosses
    for rank in ranks:
        chance = np.append(chance, np.zeros(rank)) / 2 + np.append(np.zeros(rank), chance) / 2
    return float(min(1.0, chance[ranks[sample > 0].sum() :].sum()))


def sign_test(values: ArrayLike) -> float:
    """One-sided p of the sign test: more than half of `values`, shape (n,), are above 0.

    A value of exactly 0 counts as not above, as in `success_rate`; the usual test leaves it out and
    is less strict. One value has no test: NaN. None, NaN and infinity are a `ValueError`.
    """
    sample = _finite(values, ndim=1)
    if len(sample) < MIN_CLUSTERS:
        return float("nan")
    n_above = int(np.count_nonzero(sample > 0))
    return float(scipy.stats.binomtest(n_above, len(sample), alternative="greater").pvalue)


def success_rate(values: ArrayLike) -> float:
    """Share of `values`, of any shape, that are above 0. A value of exactly 0 is no success."""
    return float(np.mean(_finite(values) > 0))


def wilson_interval(n_successes: float, n: float, *, confidence: float = 0.95) -> Interval:
    """Wilson's (1927) score interval of the share of `n_successes` among `n` independent items.

    Numbers need not be whole: `success_interval` has an effective one.
    """
    if not 0 <= n_successes <= n or n <= 0:
        raise ValueError(f"expected 0 <= successes <= n, n > 0, got {n_successes} of {n}")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(n_successes, n, alpha=1 - confidence, method="wilson")
    share = n_successes / n  # the ends are on its two sides, and at 0 and 1 up to rounding
    return Interval(float(np.clip(low, 0.0, share)), float(np.clip(high, share, 1.0)))


def success_interval(items: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of the share of `items`, shape (pairs, alphas), that are above 0.

    Items of a pair are alike, so they count for fewer: for as many independent ones as would give
    the variance that the pairs' own shares have (the effective sample size; Kish 1965, Korn and
    Graubard 1998), at least the pairs and at most the items. With one item a pair it is
    `wilson_interval` itself.
    """
    table = _finite(items, ndim=2) > 0
    shares = np.sort(table.mean(axis=1))  # a sum in float64 depends on the order of its terms
    share, n = float(shares.mean()), float(len(shares))
    variance = float(np.var(shares, ddof=1)) / n if len(shares) > 1 else 0.0
    if variance > 0:
        n = float(np.clip(share * (1 - share) / variance, n, table.size))
    return wilson_interval(share * n, n, confidence=confidence)


class EffectSize(NamedTuple):
    """Cohen's d_z with its confidence interval."""

    d_z: float
    low: float
    high: float


def effect_size(values: ArrayLike, *, confidence: float = 0.95) -> EffectSize:
    """Cohen's d_z of `values`, shape (n,): their mean in units of their standard deviation.

    The interval inverts the noncentral t distribution (Cumming and Finch 2001) and so supposes
    normal values: it describes, and no verdict rests on it. Fewer than two values, and values that
    are equal (to 12 digits), have no d_z: NaN. None, NaN and infinity are a `ValueError`.
    """
    sample = np.sort(_finite(values, ndim=1))
    if len(sample) < MIN_CLUSTERS or _all_same(sample):
        return EffectSize(np.nan, np.nan, np.nan)
    d_z = float(_mean(sample) / np.std(sample, ddof=1))
    root, tail = math.sqrt(len(sample)), (1 - confidence) / 2
    if abs(d_z) > _LARGE_EFFECT:
        # There the mean is certain beside the deviation. The inversion's time grows with d_z: of
        # values equal to 9 digits it would take hours.
        df = len(sample) - 1
        ends = d_z * np.sqrt(scipy.stats.chi2.ppf([tail, 1 - tail], df) / df)
        return EffectSize(d_z, float(ends.min()), float(ends.max()))
    low, high = (
        float(scipy.special.nctdtrinc(len(sample) - 1, level, d_z * root)) / root
        for level in (1 - tail, tail)
    )
    return EffectSize(d_z, low, high)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's (1979) adjusted p-values, which control the family-wise error; NaN stays NaN.

    A p that does not exist belongs to no family: the others are adjusted as if it were not there.
    """
    # Here and in `_power` and `wilson_interval`: statsmodels takes a second to import, which nobody
    # should pay before the first verdict.
    from statsmodels.stats.multitest import multipletests

    return _of_those_that_exist(p_values, lambda p: multipletests(p, method="holm")[1])


def benjamini_hochberg(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Benjamini and Hochberg's (1995) adjusted p-values: the false discovery rate; as `holm`."""
    return _of_those_that_exist(p_values, scipy.stats.false_discovery_control)


def min_detectable(sd: float, n: int) -> float:
    """Smallest true mean that `n` pairs of standard deviation `sd` show as success in 80% of runs.

    In units of `sd`. By the power of the one-sided t-test at 2.5%: a success needs the two-sided
    95% interval above 0, which is stricter than p < 0.05. Fewer than two pairs: NaN.
    """
    if n < MIN_CLUSTERS or not math.isfinite(sd):
        return float("nan")
    return sd * _detectable_effect(n)


def pairs_needed(mean: float, sd: float) -> int | None:
    """Pairs with which a true `mean` and `sd` decide, either way, in 80% of runs.

    The sample size to which `min_detectable` is the effect, at least `MIN_DECISIVE`. None where it
    would be above `MAX_PAIRS`: there is nothing to find.
    """
    if not (math.isfinite(mean) and math.isfinite(sd)) or mean == 0:
        return None
    effect = abs(mean) / sd if sd > 0 else math.inf
    # By the normal theory, whose size is a little below the t-test's.
    if effect * math.sqrt(MAX_PAIRS) < sum(scipy.special.ndtri([1 - _TAIL, POWER])):
        return None
    if effect >= _detectable_effect(MIN_DECISIVE):
        return MIN_DECISIVE
    n = _power().solve_power(effect_size=effect, alpha=_TAIL, power=POWER, alternative="larger")
    return math.ceil(float(n) - 1e-6)  # the solver's tolerance is no pair


def slopes(table: ArrayLike, alphas: Sequence[float]) -> NDArray[np.float64]:
    """Least-squares slope of the margin on alpha, pair by pair: (pairs, alphas) to (pairs,)."""
    margins, at = _finite(table, ndim=2), _finite(alphas, ndim=1)
    if margins.shape[1] != len(at) or len(set(at.tolist())) < 2:
        raise ValueError(
            f"expected one column for each of 2 or more different alphas, got the shape "
            f"{margins.shape} and the alphas {at.tolist()}"
        )
    away = at - at.mean()
    return (margins - margins.mean(axis=1, keepdims=True)) @ away / (away @ away)


def page_test(table: ArrayLike) -> float:
    """One-sided p of Page's (1963) trend test: margins rise from column to column.

    `table` has the shape (pairs, alphas), alphas ascending. Fewer than two pairs or three alphas
    have no test: NaN.
    """
    margins = _finite(table, ndim=2)
    if margins.shape[0] < MIN_CLUSTERS or margins.shape[1] < 3:
        return float("nan")
    return float(scipy.stats.page_trend_test(margins).pvalue)


def verdict(*, n: int, ci_low: float, ci_high: float, p: float) -> Verdict:
    """What an interval and a one-sided p over `n` pairs say, as `Verdict` defines it.

    Never `incomplete` or `blind`: which images are missing, and what the judge sees, is not in
    these numbers.
    """
    if n < MIN_DECISIVE:
        return Verdict.TOO_FEW
    if ci_low > 0 and p < SIGNIFICANCE:
        return Verdict.SUCCESS
    if ci_high < 0:
        return Verdict.FAILURE
    return Verdict.INCONCLUSIVE


def estimate(
    items: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    method: Method = "studentized",
) -> Estimate:
    """The figures of one cell from its items, shape (pairs,)."""
    return pooled_estimate(
        _finite(items, ndim=1)[:, np.newaxis],
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
        method=method,
    )


def pooled_estimate(
    items: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    method: Method = "studentized",
) -> Estimate:
    """The figures of several cells together from their items, shape (pairs, alphas).

    Interval, tests and effect size are over pairs, each the mean of its items; the success rate is
    over items, with the interval of `success_interval`.
    """
    table = _finite(items, ndim=2)
    pair_means = np.sort(table.mean(axis=1))
    mean, n = _mean(pair_means), len(pair_means)
    low, high = bootstrap_ci(
        pair_means, confidence=confidence, n_resamples=n_resamples, seed=seed, method=method
    )
    success = success_interval(table, confidence=confidence)
    p = t_test(pair_means)
    sd = float(np.std(pair_means, ddof=1)) if n >= MIN_CLUSTERS else math.nan
    says = verdict(n=n, ci_low=low, ci_high=high, p=p)
    is_open = says in (Verdict.INCONCLUSIVE, Verdict.TOO_FEW)
    needed = pairs_needed(mean, sd) if is_open else None
    d_z, d_low, d_high = effect_size(pair_means, confidence=confidence)
    return Estimate(
        n=n,
        n_items=table.size,
        mean=mean,
        ci_low=low,
        ci_high=high,
        p=p,
        success_rate=success_rate(table),
        verdict=says,
        success_low=success.low,
        success_high=success.high,
        p_bootstrap=bootstrap_test(pair_means, n_resamples=n_resamples, seed=seed),
        p_wilcoxon=wilcoxon_test(pair_means),
        p_sign=sign_test(pair_means),
        effect_size=d_z,
        effect_low=d_low,
        effect_high=d_high,
        min_detectable=min_detectable(sd, n),
        # Where a value far off keeps the interval open, the t-test's power would say too few.
        n_needed=None if needed is None else max(needed, n + 1),
    )


def item_level(items: ArrayLike, *, n_resamples: int = 10_000, seed: int = 0) -> ItemLevel:
    """The naive figures of the published study, which takes items for independent.

    `items` has any shape. A percentile interval and a t-test over all items as if each were a pair
    of its own: kept so that its numbers stay comparable, and too narrow, since the items of a pair
    are alike (docs/calibration.md has by how much).
    """
    values = _finite(items).ravel()
    low, high = bootstrap_ci(values, n_resamples=n_resamples, seed=seed, method="percentile")
    return ItemLevel(n=values.size, ci_low=low, ci_high=high, p=t_test(values))


def trend(
    table: ArrayLike, alphas: Sequence[float], *, n_resamples: int = 10_000, seed: int = 0
) -> Trend:
    """Dose and response: how the margin rises with alpha, (pairs, alphas).

    Alphas that do not ascend are a `ValueError`: Page's test goes by the columns' order.
    """
    if list(alphas) != sorted(alphas):
        raise ValueError(f"alphas: expected ascending ones, got {list(alphas)}")
    rises = slopes(table, alphas)
    low, high = bootstrap_ci(rises, n_resamples=n_resamples, seed=seed)
    return Trend(
        n=len(rises),
        slope=_mean(np.sort(rises)),
        ci_low=low,
        ci_high=high,
        p=t_test(rises),
        p_page=page_test(table),
    )


def _finite(values: ArrayLike, *, ndim: int | None = None) -> NDArray[np.float64]:
    """`values` as float64, at least one of them, all finite."""
    array = np.asarray(values, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"expected an array of {ndim} dimension(s), got the shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"expected at least one value, got the shape {array.shape}")
    n_broken = np.count_nonzero(~np.isfinite(array))
    if n_broken:
        raise ValueError(f"expected finite values, got {n_broken} NaN or infinite of {array.size}")
    return array


def _check_bootstrap(confidence: float, n_resamples: int, method: str) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if n_resamples < MIN_RESAMPLES:
        raise ValueError(f"n_resamples: expected at least {MIN_RESAMPLES}, got {n_resamples}")
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")


def _all_same(ordered: NDArray[np.float64]) -> bool:
    """Whether values in ascending order are equal up to rounding."""
    return bool(ordered[-1] - ordered[0] <= _SAME * max(abs(ordered[0]), abs(ordered[-1])))


def _mean(ordered: NDArray[np.float64]) -> float:
    """Mean of values in ascending order, kept within them against rounding."""
    return float(np.clip(np.mean(ordered), ordered[0], ordered[-1]))


class _Moments(NamedTuple):
    """Means of resamples of data centred on 0 and of range 1, and of their squares."""

    means: NDArray[np.float64]
    squares: NDArray[np.float64]


# (n_resamples, seed, data): what `resampled_together` has drawn.
_drawn: ContextVar[Mapping[tuple[int, int, bytes], _Moments]] = ContextVar("_drawn")


@contextmanager
def resampled_together(
    samples: Iterable[ArrayLike], *, n_resamples: int = 10_000, seed: int = 0
) -> Iterator[None]:
    """Draw the resamples of several samples, each of shape (n,), at once.

    Samples of one length, with one seed, have the same resamples: the same places in ascending
    order. So all of one length are resampled in one pass, which is most of the time of an
    analysis. Inside, `bootstrap_ci` and `bootstrap_test` of one of these samples find it done; the
    figures are the same to the last bit. Samples that have no bootstrap are passed over. Memory:
    160 kB a sample for 10,000 resamples.
    """
    by_length: dict[int, dict[bytes, NDArray[np.float64]]] = {}
    for values in samples:
        sample = np.sort(np.asarray(values, dtype=np.float64))
        if len(sample) < MIN_CLUSTERS or not np.isfinite(sample).all() or _all_same(sample):
            continue
        unit = _standardised(sample)[2]
        by_length.setdefault(len(unit), {})[unit.tobytes()] = unit
    drawn = {
        (n_resamples, seed, key): moments
        for units in by_length.values()
        for key, moments in zip(
            units, _moments(np.stack([*units.values()]), n_resamples, seed), strict=True
        )
    }
    token = _drawn.set(drawn)
    try:
        yield
    finally:
        _drawn.reset(token)


def _standardised(ordered: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
    """Mean and range of values in ascending order, and the values centred on 0 and of range 1."""
    centre, scale = _mean(ordered), float(ordered[-1] - ordered[0])
    return centre, scale, (ordered - centre) / scale


def _resampled(unit: NDArray[np.float64], n_resamples: int, seed: int) -> _Moments:
    key = n_resamples, seed, unit.tobytes()
    return _drawn.get({}).get(key) or _resampled_alone(*key)


@lru_cache(maxsize=1)  # an estimate asks the same resamples for an interval and for a p
def _resampled_alone(n_resamples: int, seed: int, unit: bytes) -> _Moments:
    return _moments(np.frombuffer(unit)[np.newaxis], n_resamples, seed)[0]


def _moments(units: NDArray[np.float64], n_resamples: int, seed: int) -> list[_Moments]:
    """The same resamples of each row of (samples, n), data centred on 0 and of range 1.

    A resample's mean is the product of counts, how often each value is in it, and the values.
    Values and squares are first rounded to a multiple of 2^-k so small that sums of n of them are
    exact in float64: figures then depend neither on the order of a sum, and so on the number of
    threads, nor on what else is resampled.

    A long sample is resampled by groups of neighbours in order, each with the mean of its values
    and of their squares: its resamples' means lack the variance within groups, less than 0.1% of
    all, which makes the interval narrower by half of that (10,000 resamples tell it to 2%).
    """
    n = units.shape[1]
    starts = _group_starts(n)
    sizes = np.diff(starts, append=n)
    places = _exact_places(n)
    columns = np.add.reduceat(np.concatenate([units, units**2]), starts, axis=1) / sizes
    columns = np.ldexp(np.rint(np.ldexp(columns.T, places)), -places)
    sums = np.empty((n_resamples, columns.shape[1]))
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(sizes))
    for i in range(0, n_resamples, block):
        rows = min(block, n_resamples - i)
        if len(sizes) == n:
            counts = _counts(rng, n, rows)
        else:
            counts = rng.multinomial(n, sizes / n, rows).astype(np.float64)
        sums[i : i + rows] = counts @ columns
    means, squares = np.split(np.ascontiguousarray(sums.T) / n, 2)
    return [_Moments(*both) for both in zip(means, squares, strict=True)]


def _group_starts(n: int) -> NDArray[np.intp]:
    """Where the groups begin into which n values in order are cut: each by itself unless many."""
    if n <= _LONG:
        return np.arange(n)
    middle = np.linspace(_ALONE, n - _ALONE, _GROUPS - 2 * _ALONE, endpoint=False)
    return np.concatenate([np.arange(_ALONE), middle.astype(int), np.arange(n - _ALONE, n)])


def _exact_places(n: int) -> int:
    """Binary places to which values of size up to 1 are rounded so that sums of n are exact."""
    return 53 - math.ceil(math.log2(n))


def _counts(rng: np.random.Generator, n: int, rows: int) -> NDArray[np.float64]:
    """How often each of n values is in each of the next resamples: (rows, n)."""
    counts = np.empty((rows, n))
    some = max(1, _CACHED // n)
    for i in range(0, rows, some):
        drawn = rng.integers(0, n, (min(some, rows - i), n))
        drawn += n * np.arange(len(drawn))[:, np.newaxis]
        flat = np.bincount(drawn.ravel(), minlength=drawn.size)
        counts[i : i + some] = flat.reshape(drawn.shape)
    return counts


def _t_statistic(drawn: _Moments, n: int) -> NDArray[np.float64]:
    """Student's t of resamples of n.

    Of a resample without spread: 0 if its mean is the sample's, else `_FAR` on its side.
    """
    variance = drawn.squares - np.square(drawn.means)
    # Both are rounded: below 4 units of the last place kept there is no variance to see.
    has_spread = variance > max(_SAME, math.ldexp(4.0, -_exact_places(n)))
    error = np.sqrt(np.where(has_spread, variance, 1.0) / (n - 1))
    return np.where(has_spread, drawn.means / error, _FAR * np.sign(_with_ties(drawn.means)))


def _with_ties(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of data centred on 0 and of range 1, those next to 0 set to 0."""
    return np.where(np.abs(means) < _TIE, 0.0, means)


def _bca_ends(
    unit: NDArray[np.float64], means: NDArray[np.float64], confidence: float
) -> NDArray[np.float64]:
    """BCa interval by scipy from the means of resamples; its jackknife takes time in n squared."""
    return np.array(
        scipy.stats.bootstrap(
            (unit,),
            lambda data, axis: _with_ties(np.asarray(np.mean(data, axis=axis))),
            n_resamples=0,
            bootstrap_result=SimpleNamespace(bootstrap_distribution=means),
            batch=_BATCH,
            confidence_level=confidence,
            method="BCa",
        ).confidence_interval
    )


# A success needs the 95% interval above 0: one-sided, this level.
_TAIL = 0.025


def _power() -> Any:
    from statsmodels.stats.power import TTestPower

    return TTestPower()


@cache
def _detectable_effect(n: int) -> float:
    """d_z that the one-sided t-test at 2.5% finds in 80% of samples of n."""
    effect = _power().solve_power(nobs=n, alpha=_TAIL, power=POWER, alternative="larger")
    return float(effect)


def _of_those_that_exist(
    p_values: Sequence[float], adjust: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Adjusted p-values, NaN where there was none."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    exists = ~np.isnan(p)
    if exists.any():
        adjusted[exists] = adjust(p[exists])
    return adjusted


def _first_of(rows: pd.DataFrame) -> str:
    """The first of some rows of margins in words, and how many there are."""
    row = rows.iloc[0]
    return (
        f"pair {row['pair_id']}, alpha {row['alpha']}, seed {row['seed']}, "
        f"margin {row['margin']} ({len(rows)} such row(s))"
    )
