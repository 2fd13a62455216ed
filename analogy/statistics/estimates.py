"""Estimates of cells, pools and trends from items, each with its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from analogy.core.records import SIGNIFICANCE, Estimate, ItemLevel, Trend, Verdict
from analogy.statistics.bootstrap import Method, bootstrap_ci, bootstrap_test
from analogy.statistics.power import effect_size, min_detectable, pairs_needed
from analogy.statistics.tests import (
    page_test,
    sign_test,
    slopes,
    success_interval,
    success_rate,
    t_test,
    wilcoxon_test,
)
from analogy.statistics.values import MIN_CLUSTERS, MIN_DECISIVE, finite, ordered_mean

DEFAULT_CONFIDENCE = 0.95
"""The confidence of intervals in a run that is not sequential."""


def verdict(
    *, n: int, ci_low: float, ci_high: float, p: float, significance: float = SIGNIFICANCE
) -> Verdict:
    """The verdict of an interval and a one-sided p over `n` pairs, as `Verdict` defines it.

    ``significance``: p must be below it; it belongs to the confidence of the interval.

    Never `incomplete` or `blind`: these numbers do not contain which images are missing, nor what
    the judge can tell.
    """
    if n < MIN_DECISIVE:
        return Verdict.TOO_FEW
    if ci_low > 0 and p < significance:
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
    """The figures of one cell from its items, one for each pair, shape (pairs,)."""
    return pooled_estimate(
        finite(items, ndim=1)[:, np.newaxis],
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
    table = finite(items, ndim=2)
    pair_means = np.sort(table.mean(axis=1))
    mean, n = ordered_mean(pair_means), len(pair_means)
    low, high = bootstrap_ci(
        pair_means, confidence=confidence, n_resamples=n_resamples, seed=seed, method=method
    )
    success = success_interval(table, confidence=confidence)
    p = t_test(pair_means)
    sd = float(np.std(pair_means, ddof=1)) if n >= MIN_CLUSTERS else math.nan
    significance = SIGNIFICANCE if confidence == DEFAULT_CONFIDENCE else 1 - confidence
    says = verdict(n=n, ci_low=low, ci_high=high, p=p, significance=significance)
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
        # If an outlier keeps the interval open, the t-test's power would give too few pairs.
        n_needed=None if needed is None else max(needed, n + 1),
    )


def item_level(items: ArrayLike, *, n_resamples: int = 10_000, seed: int = 0) -> ItemLevel:
    """The naive figures of the published study, which treats items as independent.

    `items` has any shape. They are a percentile interval and a t-test over all items as if each
    were a pair of its own, and exist to be comparable with that study. They are too narrow, since
    the items of a pair are alike (docs/calibration.md has by how much).
    """
    values = finite(items).ravel()
    low, high = bootstrap_ci(values, n_resamples=n_resamples, seed=seed, method="percentile")
    return ItemLevel(n=values.size, ci_low=low, ci_high=high, p=t_test(values))


def trend(
    table: ArrayLike,
    alphas: Sequence[float],
    *,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Trend:
    """Dose and response: how the margin rises with alpha; `table` has the shape (pairs, alphas).

    Raises `ValueError` if alphas do not ascend, since Page's test uses the columns' order.
    """
    if list(alphas) != sorted(alphas):
        raise ValueError(f"alphas: expected ascending ones, got {list(alphas)}")
    rises = slopes(table, alphas)
    low, high = bootstrap_ci(rises, confidence=confidence, n_resamples=n_resamples, seed=seed)
    return Trend(
        n=len(rises),
        slope=ordered_mean(np.sort(rises)),
        ci_low=low,
        ci_high=high,
        p=t_test(rises),
        p_page=page_test(table),
    )
