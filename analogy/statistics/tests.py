"""Classical tests of paired values, and the success rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.proportion import proportion_confint

from analogy.statistics.values import MIN_CLUSTERS, Interval, all_same, finite

# Signed ranks with ties are enumerated up to this many values, scipy's own limit without ties.
_MAX_EXACT = 50


def t_test(values: ArrayLike) -> float:
    """One-sided p of Student's t-test that the mean of `values`, shape (n,), is above 0.

    The p of the negated values is 1 - p. That also holds for values that are equal (to 12 digits):
    p is 0 above zero, 1 below and 0.5 at zero. One value has no test: NaN. No value, NaN and
    infinity raise `ValueError`.
    """
    sample = np.sort(finite(values, ndim=1))
    if len(sample) < MIN_CLUSTERS:
        return float("nan")
    if all_same(sample):
        return float(0.5 - 0.5 * np.sign(sample[0]))
    return float(scipy.stats.ttest_1samp(sample, 0.0, alternative="greater").pvalue)


def wilcoxon_test(values: ArrayLike) -> float:
    """One-sided p of Wilcoxon's signed-rank test that `values`, shape (n,), lie above 0.

    Zeros are left out, as in Wilcoxon (1945); all zeros have p 1. Exact up to 50 values, also with
    ties; the normal approximation beyond. One value has no test: NaN. No value, NaN and infinity
    raise `ValueError`.
    """
    sample = np.sort(finite(values, ndim=1))
    if len(sample) < MIN_CLUSTERS:
        return float("nan")
    sample = sample[sample != 0]
    if len(sample) == 0:
        return 1.0
    sizes = np.abs(sample)
    if len(sample) > _MAX_EXACT or len(np.unique(sizes)) == len(sizes):
        return float(scipy.stats.wilcoxon(sample, alternative="greater").pvalue)
    # With ties scipy draws permutations up to 13 values, for seconds, and approximates beyond.
    ranks = np.rint(2 * scipy.stats.rankdata(sizes)).astype(int)  # twice a mean rank is whole
    chance = np.ones(1)  # the chance of each sum of the positive ranks, if signs are coin tosses
    for rank in ranks:
        chance = np.append(chance, np.zeros(rank)) / 2 + np.append(np.zeros(rank), chance) / 2
    return float(min(1.0, chance[ranks[sample > 0].sum() :].sum()))


def sign_test(values: ArrayLike) -> float:
    """One-sided p of the sign test: more than half of `values`, shape (n,), are above 0.

    A value of exactly 0 counts as not above, as in `success_rate`; the usual test leaves it out and
    is less strict. One value has no test: NaN. No value, NaN and infinity raise `ValueError`.
    """
    sample = finite(values, ndim=1)
    if len(sample) < MIN_CLUSTERS:
        return float("nan")
    n_above = int(np.count_nonzero(sample > 0))
    return float(scipy.stats.binomtest(n_above, len(sample), alternative="greater").pvalue)


def success_rate(values: ArrayLike) -> float:
    """Share of `values`, of any shape, that are above 0. A value of exactly 0 is not above."""
    return float(np.mean(finite(values) > 0))


def wilson_interval(n_successes: float, n: float, *, confidence: float = 0.95) -> Interval:
    """Wilson's (1927) score interval of the share of `n_successes` among `n` independent items.

    Numbers need not be whole: `success_interval` passes an effective sample size.
    """
    if not 0 <= n_successes <= n or n <= 0:
        raise ValueError(f"expected 0 <= successes <= n, n > 0, got {n_successes} of {n}")
    low, high = proportion_confint(n_successes, n, alpha=1 - confidence, method="wilson")
    share = n_successes / n  # the ends lie on its two sides, except for rounding at 0 and 1
    return Interval(float(np.clip(low, 0.0, share)), float(np.clip(high, share, 1.0)))


def success_interval(items: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of the share of `items`, shape (pairs, alphas), that are above 0.

    Items of a pair are alike, so together they count for fewer: for the number of independent items
    that would have the variance of the pairs' own shares (the effective sample size; Kish 1965,
    Korn and Graubard 1998), between the numbers of pairs and of items. With one item a pair it is
    `wilson_interval` itself.
    """
    table = finite(items, ndim=2) > 0
    shares = np.sort(table.mean(axis=1))  # the sum is rounded alike in any order of pairs
    share, n = float(shares.mean()), float(len(shares))
    variance = float(np.var(shares, ddof=1)) / n if len(shares) > 1 else 0.0
    if variance > 0:
        n = float(np.clip(share * (1 - share) / variance, n, table.size))
    return wilson_interval(share * n, n, confidence=confidence)


def slopes(table: ArrayLike, alphas: Sequence[float]) -> NDArray[np.float64]:
    """Least-squares slope of the margin on alpha, pair by pair: (pairs, alphas) to (pairs,)."""
    margins, at = finite(table, ndim=2), finite(alphas, ndim=1)
    if margins.shape[1] != len(at) or len(set(at.tolist())) < 2:
        raise ValueError(
            f"expected one column for each of 2 or more different alphas, got the shape "
            f"{margins.shape} and the alphas {at.tolist()}"
        )
    away = at - at.mean()
    return (margins - margins.mean(axis=1, keepdims=True)) @ away / (away @ away)


def page_test(table: ArrayLike) -> float:
    """One-sided p of Page's (1963) trend test: margins rise from column to column.

    `table` has the shape (pairs, alphas), alphas ascending. Returns NaN for fewer than two pairs or
    three alphas.
    """
    margins = finite(table, ndim=2)
    if margins.shape[0] < MIN_CLUSTERS or margins.shape[1] < 3:
        return float("nan")
    return float(scipy.stats.page_trend_test(margins).pvalue)
