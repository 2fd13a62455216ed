"""Bootstrap intervals and tests of means, over items or over clusters of items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import SimpleNamespace
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from analogy.statistics.tests import t_test
from analogy.statistics.values import MIN_CLUSTERS, SAME, Interval, all_same, finite, ordered_mean

MIN_RESAMPLES = 100
"""With fewer, a tail of the bootstrap distribution may be empty and BCa undefined."""

Method = Literal["studentized", "BCa", "percentile"]

# A resample's mean that differs from the sample's by less than this share of the data's range ties
# with it.
_TIE = 1e-9

# Jackknife samples at once; bounds BCa's memory to this many times n float64.
_BATCH = 1_000

# Values in the counts of a block of resamples, 16 MB of float64: bounds the memory for every n.
_BLOCK = 2_000_000

# Number of values that are drawn and counted at once: they fit in the processor's cache.
_CACHED = 32_768

# Samples with more values than this are resampled by groups: drawing 10,000 times as many numbers
# would take seconds for each length of samples, and minutes for a million margins.
_LONG = 20_000

# Groups of a long sample, and how many of the smallest and of the largest values are single groups.
_GROUPS, _ALONE = 2_048, 256

# A t statistic beyond all others, for a resample without spread whose mean is not the sample's.
_FAR = 1e9


def bootstrap_ci(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    method: Method = "studentized",
) -> Interval:
    """Bootstrap interval of the mean of `values`, shape (n,).

    The resamples are those that `scipy.stats.bootstrap` draws. More than 20,000 values are instead
    resampled by groups of neighbouring values.

    - `studentized`: the bootstrap-t (Efron and Tibshirani 1993, section 12.5; Hall 1988). Quantiles
      of the resamples' t statistics take the place of Student's. It is the default, because only it
      has its nominal coverage at the sizes of a cell: at n = 10 it covers the mean of normal data
      in 95% and of exponential data in 94% of cases, BCa in 90% and 89% (docs/calibration.md).
    - `BCa`: Efron (1987), "Better Bootstrap Confidence Intervals".
    - `percentile`: the quantiles of the resamples' means.

    The same arguments give the same interval. Values are sorted, centred on their mean and divided
    by their range before resampling, and the interval is mapped back. This makes it the same for
    every order of the values, and equivariant under shifts and positive scales. BCa's bias
    correction counts the resamples below the sample's mean, and ties by half. Ties are common in
    small samples and in coarse data. Rounding noise would break them either way and move the
    interval, as it does in scipy; here means closer than 1e-9 of the range tie.

    Degenerate data: no value, NaN and infinity raise `ValueError`. One value has the interval (NaN,
    NaN). Values that are equal (to 12 digits) have (min, max), which is (v, v) if they are exactly
    equal. Two values have (min, max) at the usual confidence levels. A resample without spread has
    no finite t: if there are many of these (a few values repeated), the interval extends to the
    ends of the data.

    The interval lies within the data and contains their mean: an end outside is moved inside. A
    studentized end lies outside the data if these are few or one is far from all others; a BCa end
    lies on the wrong side of the mean only at confidence levels below about 17%.
    """
    sample = np.sort(finite(values, ndim=1))
    _check_bootstrap(confidence, n_resamples, method)
    if len(sample) < MIN_CLUSTERS:
        return Interval(np.nan, np.nan)
    if all_same(sample):
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

    The p is the share of resamples, the sample itself included, whose t statistic (of their mean
    against the sample's) is at least the sample's own against 0 (Efron and Tibshirani 1993, section
    16.4). So it is at least 1 / (n_resamples + 1). The test takes the shape of the distribution
    from the data, where `t_test` assumes a normal one; this matters far out (docs/calibration.md).

    The resamples are those of `bootstrap_ci` with the same seed. Values that are equal (to 12
    digits) have the p of `t_test`; one value has none: NaN.
    """
    sample = np.sort(finite(values, ndim=1))
    _check_bootstrap(0.95, n_resamples, "studentized")
    if len(sample) < MIN_CLUSTERS or all_same(sample):
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
    only through their means, and the mean of all items is the mean of those. So this is
    `bootstrap_ci` of the clusters' means; what it says of methods and degenerate data applies, with
    n the number of clusters.
    """
    return bootstrap_ci(
        finite(clusters, ndim=2).mean(axis=1),
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
        method=method,
    )


def _check_bootstrap(confidence: float, n_resamples: int, method: str) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if n_resamples < MIN_RESAMPLES:
        raise ValueError(f"n_resamples: expected at least {MIN_RESAMPLES}, got {n_resamples}")
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")


class _Moments(NamedTuple):
    """Means of the values and of their squares in each resample, of data centred on 0, range 1."""

    means: NDArray[np.float64]
    squares: NDArray[np.float64]


# (n_resamples, seed, data) to the resamples that `resampled_together` has drawn.
_drawn: ContextVar[Mapping[tuple[int, int, bytes], _Moments]] = ContextVar("_drawn")


@contextmanager
def resampled_together(
    samples: Iterable[ArrayLike], *, n_resamples: int = 10_000, seed: int = 0
) -> Iterator[None]:
    """Draw the resamples of several samples, each of shape (n,), at once.

    Samples of one length, with one seed, have the same resamples: the same places in ascending
    order. So all samples of one length are resampled in one pass; resampling takes most of the time
    of an analysis. Within the context, `bootstrap_ci` and `bootstrap_test` of one of these samples
    use the drawn resamples; the figures are the same to the last bit. Samples without a bootstrap
    are skipped. Memory: 160 kB a sample for 10,000 resamples.
    """
    by_length: dict[int, dict[bytes, NDArray[np.float64]]] = {}
    for values in samples:
        sample = np.sort(np.asarray(values, dtype=np.float64))
        if len(sample) < MIN_CLUSTERS or not np.isfinite(sample).all() or all_same(sample):
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
    centre, scale = ordered_mean(ordered), float(ordered[-1] - ordered[0])
    return centre, scale, (ordered - centre) / scale


def _resampled(unit: NDArray[np.float64], n_resamples: int, seed: int) -> _Moments:
    key = n_resamples, seed, unit.tobytes()
    return _drawn.get({}).get(key) or _resampled_alone(*key)


@lru_cache(maxsize=1)  # an estimate uses the same resamples for an interval and for a p
def _resampled_alone(n_resamples: int, seed: int, unit: bytes) -> _Moments:
    return _moments(np.frombuffer(unit)[np.newaxis], n_resamples, seed)[0]


def _moments(units: NDArray[np.float64], n_resamples: int, seed: int) -> list[_Moments]:
    """The same resamples of each row of (samples, n), data centred on 0 and of range 1.

    A resample's mean is the product of its counts (how often it has each value) and the values.
    Values and squares are first rounded to a multiple of 2^-k so small that sums of n of them are
    exact in float64. Figures then do not depend on the order of a sum, on the number of
    threads, or on the other samples.

    A long sample is resampled by groups of neighbours in order, each with the mean of its values
    and of their squares. The means of its resamples lack the variance within groups, less than 0.1%
    of the total, which makes the interval narrower by half of that (10,000 resamples determine it
    only to 2%).
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
    """Where the groups of n ordered values start; each value is its own group up to `_LONG`."""
    if n <= _LONG:
        return np.arange(n)
    middle = np.linspace(_ALONE, n - _ALONE, _GROUPS - 2 * _ALONE, endpoint=False)
    return np.concatenate([np.arange(_ALONE), middle.astype(int), np.arange(n - _ALONE, n)])


def _exact_places(n: int) -> int:
    """Binary places to round values of size up to 1 to, so that sums of n of them are exact."""
    return 53 - math.ceil(math.log2(n))


def _counts(rng: np.random.Generator, n: int, rows: int) -> NDArray[np.float64]:
    """How often each of the next resamples has each of n values: (rows, n)."""
    counts = np.empty((rows, n))
    some = max(1, _CACHED // n)
    for i in range(0, rows, some):
        drawn = rng.integers(0, n, (min(some, rows - i), n))
        drawn += n * np.arange(len(drawn))[:, np.newaxis]
        flat = np.bincount(drawn.ravel(), minlength=drawn.size)
        counts[i : i + some] = flat.reshape(drawn.shape)
    return counts


def _t_statistic(drawn: _Moments, n: int) -> NDArray[np.float64]:
    """Student's t of resamples of n values.

    For a resample without spread: 0 if its mean is the sample's, else `_FAR` with the sign.
    """
    variance = drawn.squares - np.square(drawn.means)
    # Both are rounded: a variance below 4 units of the last place cannot be told from none.
    has_spread = variance > max(SAME, math.ldexp(4.0, -_exact_places(n)))
    error = np.sqrt(np.where(has_spread, variance, 1.0) / (n - 1))
    return np.where(has_spread, drawn.means / error, _FAR * np.sign(_with_ties(drawn.means)))


def _with_ties(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of data centred on 0 and of range 1; those within `_TIE` of 0 become 0."""
    return np.where(np.abs(means) < _TIE, 0.0, means)


def _bca_ends(
    unit: NDArray[np.float64], means: NDArray[np.float64], confidence: float
) -> NDArray[np.float64]:
    """BCa interval by scipy from the means of resamples; the jackknife takes O(n²) time."""
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
