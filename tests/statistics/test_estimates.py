"""Verdicts and estimates: figures that hang together, and what decides nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from samples import DEGENERATE, N_RESAMPLES, margins, quick, seeds, shuffled

from analogy.core.records import Verdict
from analogy.settings.pairs import WEAK_PAIRS
from analogy.statistics.bootstrap import (
    bootstrap_ci,
    bootstrap_test,
    cluster_bootstrap_ci,
)
from analogy.statistics.estimates import estimate, item_level, pooled_estimate, verdict
from analogy.statistics.power import effect_size, min_detectable, pairs_needed
from analogy.statistics.tests import (
    sign_test,
    success_interval,
    t_test,
    wilcoxon_test,
    wilson_interval,
)
from analogy.statistics.values import MIN_DECISIVE

# --- item_level


def test_item_level_takes_items_for_independent():
    rng = np.random.default_rng(0)
    table = rng.normal(0.2, 1, size=(30, 1)) + 0.1 * rng.normal(size=(30, 3))
    figures = item_level(table, n_resamples=999, seed=3)
    flat = table.ravel().tolist()
    assert figures.n == 90
    assert (figures.ci_low, figures.ci_high) == bootstrap_ci(
        flat, n_resamples=999, seed=3, method="percentile"
    )
    assert figures.p == scipy.stats.ttest_1samp(sorted(flat), 0, alternative="greater").pvalue
    assert figures == item_level(flat, n_resamples=999, seed=3)
    pooled = pooled_estimate(table, n_resamples=999, seed=3)
    assert figures.ci_high - figures.ci_low < 0.7 * (pooled.ci_high - pooled.ci_low)


def test_one_item_has_neither_interval_nor_p():
    figures = item_level([[0.3]])
    assert figures.n == 1
    assert np.isnan([figures.ci_low, figures.ci_high, figures.p]).all()


# --- verdict


@pytest.mark.parametrize(
    ("n", "ci_low", "ci_high", "p", "expected"),
    [
        (50, 0.01, 0.02, 0.049, Verdict.SUCCESS),
        (50, 0.01, 0.02, 0.05, Verdict.INCONCLUSIVE),
        (50, 0.0, 0.02, 0.01, Verdict.INCONCLUSIVE),
        (50, -0.01, 0.02, 0.01, Verdict.INCONCLUSIVE),
        (50, -0.02, 0.0, 0.99, Verdict.INCONCLUSIVE),
        (50, -0.02, -0.01, 0.99, Verdict.FAILURE),
        (MIN_DECISIVE, 0.01, 0.02, 0.01, Verdict.SUCCESS),
        (MIN_DECISIVE, -0.02, -0.01, 0.99, Verdict.FAILURE),
        (MIN_DECISIVE - 1, 0.01, 0.02, 0.01, Verdict.TOO_FEW),
        (MIN_DECISIVE - 1, -0.02, -0.01, 0.99, Verdict.TOO_FEW),
        (MIN_DECISIVE - 1, -0.01, 0.02, 0.5, Verdict.TOO_FEW),
        (2, 0.01, 0.02, 0.01, Verdict.TOO_FEW),
        (1, math.nan, math.nan, math.nan, Verdict.TOO_FEW),
        (0, math.nan, math.nan, math.nan, Verdict.TOO_FEW),
    ],
)
def test_verdict(n, ci_low, ci_high, p, expected):
    assert verdict(n=n, ci_low=ci_low, ci_high=ci_high, p=p) is expected


def test_numbers_alone_never_say_incomplete_or_blind():
    ends = [-0.1, 0.0, 0.1, math.nan]
    said = {
        verdict(n=n, ci_low=low, ci_high=high, p=p)
        for n, low, high, p in itertools.product([0, 5, 6], ends, ends, [0.01, 0.9, math.nan])
    }
    assert said == set(Verdict) - {Verdict.INCOMPLETE, Verdict.BLIND}


# --- estimate, pooled_estimate

OPTIONS = {"confidence": 0.9, "n_resamples": 999, "seed": 3, "method": "BCa"}


def expected_figures(values):
    """Of pairs' means: what is the same in a cell and in a pool."""
    low, high = bootstrap_ci(values, **OPTIONS)
    d_z, d_low, d_high = effect_size(values, confidence=0.9)
    p = t_test(values)
    return {
        "n": len(values),
        "mean": pytest.approx(np.mean(values)),
        "ci_low": low,
        "ci_high": high,
        "p": p,
        "verdict": verdict(n=len(values), ci_low=low, ci_high=high, p=p),
        "p_bootstrap": bootstrap_test(values, n_resamples=999, seed=3),
        "p_wilcoxon": wilcoxon_test(values),
        "p_sign": sign_test(values),
        "effect_size": d_z,
        "effect_low": d_low,
        "effect_high": d_high,
        "min_detectable": min_detectable(np.std(np.sort(values), ddof=1), len(values)),
    }


def test_the_figures_of_a_cell():
    items = np.random.default_rng(0).normal(0.05, 0.1, size=50)
    n_above = int(np.sum(items > 0))
    success = wilson_interval(n_above, 50, confidence=0.9)
    assert dataclasses.asdict(estimate(items, **OPTIONS)) == {
        **expected_figures(items),
        "n_items": 50,
        "success_rate": n_above / 50,
        "success_low": success.low,
        "success_high": success.high,
        "n_needed": None,
    }
    assert estimate(items, n_resamples=999).verdict is Verdict.SUCCESS
    assert estimate(-items, n_resamples=999).verdict is Verdict.FAILURE
    assert estimate(items - items.mean(), n_resamples=999).verdict is Verdict.INCONCLUSIVE


def test_pooled_figures_are_over_pairs_and_their_success_rate_over_items():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 1)) + 0.2 * rng.normal(size=(40, 3))
    means = table.mean(axis=1)
    success = success_interval(table, confidence=OPTIONS["confidence"])
    assert dataclasses.asdict(pooled_estimate(table, **OPTIONS)) == {
        **expected_figures(means),
        "n_items": 120,
        "success_rate": np.mean(table > 0),
        "success_low": success.low,
        "success_high": success.high,
        "n_needed": pairs_needed(np.mean(np.sort(means)), np.std(np.sort(means), ddof=1)),
    }


def test_the_studentized_bootstrap_is_the_default_everywhere():
    rng = np.random.default_rng(0)
    table = rng.exponential(size=(12, 3)) - 0.8
    means = table.mean(axis=1)
    low, high = bootstrap_ci(means, n_resamples=500, method="studentized")
    for figures in (estimate(means, n_resamples=500), pooled_estimate(table, n_resamples=500)):
        assert (figures.ci_low, figures.ci_high) == (low, high)
    assert bootstrap_ci(means, n_resamples=500) == (low, high)
    assert cluster_bootstrap_ci(table, n_resamples=500) == (low, high)


def test_pairs_are_needed_only_where_the_verdict_is_open():
    noise = np.random.default_rng(0).normal(size=50)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    success, failure, barely = (estimate(noise + m, n_resamples=500) for m in (0.8, -0.8, 0.1))
    assert success.verdict is Verdict.SUCCESS
    assert failure.verdict is Verdict.FAILURE
    assert success.n_needed is failure.n_needed is None
    assert barely.verdict is Verdict.INCONCLUSIVE
    assert barely.n_needed == pairs_needed(0.1, 1.0) == 787
    few = estimate(noise[:5] + 0.1, n_resamples=500)
    assert few.verdict is Verdict.TOO_FEW
    assert few.n_needed >= MIN_DECISIVE
    assert estimate([-0.1, 0.1] * 5, n_resamples=500).n_needed is None  # a mean of nought


def test_an_open_verdict_needs_more_pairs_than_it_has():
    """One value far off widens the interval more than the t-test's power knows."""
    figures = estimate([2.022, 1.530, -0.103, 2.105, 1.646, 0.663, 1.781, 1.565])
    assert figures.verdict is Verdict.INCONCLUSIVE
    assert figures.n_needed is None or figures.n_needed > figures.n


def test_one_pair_is_too_few_however_many_items():
    figures = pooled_estimate([[0.1, 0.2, 0.3]])
    assert (figures.n, figures.n_items, figures.verdict) == (1, 3, Verdict.TOO_FEW)
    assert figures.mean == pytest.approx(0.2)
    assert figures.success_rate == 1
    for name in ("ci_low", "ci_high", "p", "p_wilcoxon", "p_sign", "effect_size", "min_detectable"):
        assert math.isnan(getattr(figures, name))
    assert figures.n_needed is None


def test_equal_items_give_a_verdict():
    assert estimate([0.1] * MIN_DECISIVE).verdict is Verdict.SUCCESS
    assert estimate([-0.1] * MIN_DECISIVE).verdict is Verdict.FAILURE
    assert estimate([0.0] * MIN_DECISIVE).verdict is Verdict.INCONCLUSIVE
    figures = estimate([0.1] * MIN_DECISIVE)
    assert (figures.ci_low, figures.ci_high, figures.p, figures.success_rate) == (0.1, 0.1, 0, 1)
    assert figures.p_sign == figures.p_wilcoxon == pytest.approx(2**-6)
    assert math.isnan(figures.effect_size)


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_data_have_estimates(name):
    values = DEGENERATE[name]
    figures = estimate(values, n_resamples=300)
    for field in dataclasses.fields(figures):
        value = getattr(figures, field.name)
        assert isinstance(value, Verdict) or value is None or math.isfinite(value), field.name
    assert figures.success_low <= figures.success_rate <= figures.success_high
    assert figures.effect_low <= figures.effect_size <= figures.effect_high


def test_few_pairs_have_figures_but_decide_nothing():
    figures = estimate([0.1, 0.11, 0.12, 0.13, 0.14])
    assert figures.verdict is Verdict.TOO_FEW
    assert 0.1 <= figures.ci_low < figures.mean < figures.ci_high <= 0.14
    assert figures.p < 0.001
    assert estimate([0.1, 0.11, 0.12, 0.13, 0.14, 0.15]).verdict is Verdict.SUCCESS


def test_too_few_is_as_many_as_the_loader_warns_of():
    assert MIN_DECISIVE == WEAK_PAIRS + 1


@quick
@given(st.lists(st.tuples(margins, margins, margins), min_size=2, max_size=12), seeds)
def test_estimates_hang_together_and_ignore_the_order_of_pairs(rows, seed):
    figures = pooled_estimate(rows, n_resamples=N_RESAMPLES)
    assert figures == pooled_estimate(shuffled(rows, seed), n_resamples=N_RESAMPLES)
    assert figures.ci_low <= figures.mean <= figures.ci_high
    assert all(0 <= p <= 1 for p in (figures.p, figures.p_wilcoxon, figures.p_sign))
    assert 0 <= figures.success_low <= figures.success_rate <= figures.success_high <= 1
    assert not figures.effect_low > figures.effect_size > figures.effect_high  # or NaN
    assert figures.min_detectable >= 0
    if figures.n_needed is not None:
        assert figures.n_needed >= MIN_DECISIVE
        assert figures.verdict in (Verdict.INCONCLUSIVE, Verdict.TOO_FEW)
    assert (figures.verdict is Verdict.TOO_FEW) == (len(rows) < MIN_DECISIVE)
    if figures.verdict is Verdict.SUCCESS:
        assert figures.ci_low > 0
        assert figures.success_rate > 0
    if figures.verdict is Verdict.FAILURE:
        assert figures.ci_high < 0
        assert figures.success_rate < 1
