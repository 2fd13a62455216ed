"""Margins to items, items to estimates, estimates to verdicts: pure functions of numbers.

The item, one (pair, alpha), is the mean over its seeds. The cluster is the pair: images of one pair
are not independent, so every interval and every test here is over pairs, each with all its items.

An estimate is unchanged by the order of its values, and moves with them under a shift or a positive
scale, so that a verdict hangs neither on how rows happened to be stored nor on rounding.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from analogy.records import Estimate, Verdict

SIGNIFICANCE = 0.05
"""A success needs a one-sided p below this."""

MIN_CLUSTERS = 2
"""With fewer pairs there is neither an interval nor a test."""

MIN_DECISIVE = 6
"""With fewer, an interval and a test are computed but decide nothing: 5 pairs or fewer are too few,
as the loader warns."""

MIN_RESAMPLES = 100
"""With fewer, a tail of the bootstrap distribution may be empty and BCa undefined."""

Method = Literal["BCa", "percentile"]

_MARGIN_COLUMNS = ("pair_id", "category", "alpha", "seed", "margin")
_ITEM_KEYS = ["pair_id", "category", "alpha"]

# Values whose spread is below this share of the largest are one value: float64 resolves no more of
# a variance than rounding noise there, and scipy's t-test warns of it (below 1e-14).
_SAME = 1e-12

# A resample's mean this near to the sample's, in units of the data's range, ties with it.
_TIE = 1e-9

# Resamples drawn at once; bounds the memory to this many times n float64.
_BATCH = 1_000


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
    method: Method = "BCa",
) -> Interval:
    """Bootstrap interval of the mean of `values`, shape (n,), by `scipy.stats.bootstrap`.

    BCa is Efron (1987), "Better Bootstrap Confidence Intervals"; `percentile` takes the quantiles
    of the resamples' means as they are. The same arguments give the same interval.

    Values are sorted, centred on their mean and divided by their range before resampling, and the
    interval is mapped back: that is what makes it the same for every order of the values and
    equivariant under shifts and positive scales. BCa's bias correction counts resamples below the
    sample's mean, ties by half. Ties are common in small samples and in coarse data, and rounding
    noise would break them either way and move the interval (scipy leaves it at that); here means
    closer than 1e-9 of the range tie.

    Degenerate data: no value, NaN and infinity are a `ValueError`; one value has no interval, (NaN,
    NaN); values that are equal (to 12 digits) have the interval (min, max), (v, v) when exactly so;
    two values have (min, max) at the usual confidence levels.

    The interval lies within the data and holds their mean: an end that would not reach the mean is
    moved to it. BCa needs this only where the normal quantile of the confidence level is below its
    bias correction, and that stays under 0.22 for all shapes of data tried (one outlier, Pareto,
    exponential spacing; n from 2 to 200): below about 17% confidence, never at a usual one.
    """
    sample = np.sort(_finite(values, ndim=1))
    _check_bootstrap(confidence, n_resamples, method)
    if len(sample) < MIN_CLUSTERS:
        return Interval(np.nan, np.nan)
    if _all_same(sample):
        return Interval(float(sample[0]), float(sample[-1]))
    centre, scale = _mean(sample), sample[-1] - sample[0]
    result = scipy.stats.bootstrap(
        ((sample - centre) / scale,),
        _mean_with_ties,
        n_resamples=n_resamples,
        batch=_BATCH,
        confidence_level=confidence,
        method=method,
        rng=np.random.default_rng(seed),
    )
    low, high = centre + scale * np.array(result.confidence_interval)
    return Interval(
        float(np.clip(low, sample[0], centre)), float(np.clip(high, centre, sample[-1]))
    )


def cluster_bootstrap_ci(
    clusters: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    method: Method = "BCa",
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


def success_rate(values: ArrayLike) -> float:
    """Share of `values`, of any shape, that are above 0. A value of exactly 0 is no success."""
    return float(np.mean(_finite(values) > 0))


def verdict(*, n: int, ci_low: float, ci_high: float, p: float) -> Verdict:
    """What an interval and a one-sided p over `n` pairs say, as `Verdict` defines it.

    Never `incomplete`: which images are missing is not to be seen from those that are there.
    """
    if n < MIN_DECISIVE:
        return Verdict.TOO_FEW
    if ci_low > 0 and p < SIGNIFICANCE:
        return Verdict.SUCCESS
    if ci_high < 0:
        return Verdict.FAILURE
    return Verdict.INCONCLUSIVE


def estimate(
    items: ArrayLike, *, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """The figures of one cell from its items, shape (pairs,)."""
    return pooled_estimate(
        _finite(items, ndim=1)[:, np.newaxis],
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )


def pooled_estimate(
    items: ArrayLike, *, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """The figures of several cells together from their items, shape (pairs, alphas).

    Interval and test are over pairs, each the mean of its items; the success rate is over items.
    """
    table = _finite(items, ndim=2)
    pair_means = table.mean(axis=1)
    low, high = cluster_bootstrap_ci(
        table, confidence=confidence, n_resamples=n_resamples, seed=seed
    )
    p = t_test(pair_means)
    return Estimate(
        n=len(table),
        n_items=table.size,
        mean=_mean(np.sort(pair_means)),
        ci_low=low,
        ci_high=high,
        p=p,
        success_rate=success_rate(table),
        verdict=verdict(n=len(table), ci_low=low, ci_high=high, p=p),
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


def _mean_with_ties(resamples: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Means along `axis` of data centred on 0 and of range 1, those next to 0 set to 0."""
    means = np.mean(resamples, axis=axis)
    return np.where(np.abs(means) < _TIE, 0.0, means)


def _first_of(rows: pd.DataFrame) -> str:
    """The first of some rows of margins in words, and how many there are."""
    row = rows.iloc[0]
    return (
        f"pair {row['pair_id']}, alpha {row['alpha']}, seed {row['seed']}, "
        f"margin {row['margin']} ({len(rows)} such row(s))"
    )
