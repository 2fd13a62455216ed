"""Tests, rates and trends against formulas, scipy and brute force; and their symmetries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from samples import margins, quick, samples, seeds, shuffled

from analogy.statistics.bootstrap import (
    bootstrap_ci,
)
from analogy.statistics.estimates import trend
from analogy.statistics.tests import (
    page_test,
    sign_test,
    slopes,
    success_interval,
    success_rate,
    t_test,
    wilcoxon_test,
    wilson_interval,
)

# --- t_test


@pytest.mark.parametrize("n", [2, 5, 50])
def test_p_matches_the_formula(n):
    values = np.random.default_rng(n).normal(0.2, 1, size=n)
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    expected = scipy.stats.t.sf(mean / math.sqrt(variance / n), df=n - 1)
    assert t_test(values) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("value", "p"), [(0.1, 0.0), (-0.1, 1.0), (0.0, 0.5), (-0.0, 0.5)])
def test_p_of_equal_values(value, p):
    assert t_test([value] * 3) == p


def test_p_of_values_equal_up_to_rounding():
    assert t_test([0.1 + 0.2, 0.3, 0.3]) == 0.0


def test_one_value_has_no_p():
    assert math.isnan(t_test([0.3]))


@quick
@given(samples)
def test_p_of_the_negated_sample_is_the_complement(values):
    assert t_test([-v for v in values]) == pytest.approx(1 - t_test(values), abs=1e-12)


@quick
@given(samples, seeds)
def test_p_is_invariant_under_permutation(values, seed):
    assert t_test(shuffled(values, seed)) == t_test(values)


@quick
@given(samples, st.floats(1e-3, 1e3))
def test_p_is_invariant_to_positive_scale(values, scale):
    assert t_test(scale * np.array(values)) == pytest.approx(t_test(values), abs=1e-9)


# --- wilcoxon_test


def signed_rank_p(values):
    """Wilcoxon (1945) by the list of all sign patterns of the ranks of the non-zero values."""
    sizes = [abs(v) for v in values if v != 0]
    ranks = [sum(other < size for other in sizes) + (sizes.count(size) + 1) / 2 for size in sizes]
    observed = sum(r for r, v in zip(ranks, (v for v in values if v != 0), strict=True) if v > 0)
    sums = [
        sum(itertools.compress(ranks, on)) for on in itertools.product([0, 1], repeat=len(ranks))
    ]
    return sum(total >= observed for total in sums) / len(sums)


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros", "ties_and_zeros"])
def test_wilcoxon_matches_all_sign_patterns(n, kind):
    values = np.random.default_rng(n).normal(0.3, 1, size=n)
    if "ties" in kind:
        values = np.sign(values) * np.ceil(2 * np.abs(values)) / 2
    if "zeros" in kind:
        values[: n // 2] = 0
    assert wilcoxon_test(values) == pytest.approx(signed_rank_p(values.tolist()), rel=1e-9)


def test_wilcoxon_with_ties_stays_exact_and_quick():
    """13 values with ties: scipy's own choice, a permutation test, takes 9 s for this one."""
    values = np.array([-3, -2, -2, -1, 1, 1, 2, 2, 3, 3, 4, 5, 5]) / 10
    assert wilcoxon_test(values) == pytest.approx(signed_rank_p(values.tolist()), rel=1e-9)


@pytest.mark.parametrize("n", [20, 60])
def test_wilcoxon_of_more_values_matches_random_sign_patterns(n):
    """20,000 of them; sd of the share is below 0.0036."""
    rng = np.random.default_rng(n)
    values = np.round(rng.normal(0.1, 1, size=n), 1)
    values = values[values != 0]
    ranks = scipy.stats.rankdata(np.abs(values))
    sums = rng.integers(0, 2, size=(20_000, len(values))) @ ranks
    share = np.mean(sums >= ranks[values > 0].sum())
    assert wilcoxon_test(values) == pytest.approx(share, abs=0.012)


def test_wilcoxon_of_equal_values():
    assert wilcoxon_test([0.1] * 6) == pytest.approx(2**-6)
    assert wilcoxon_test([-0.1] * 6) == 1
    assert wilcoxon_test([0.0] * 6) == wilcoxon_test([0.0, -0.0]) == 1


@quick
@given(st.lists(margins, min_size=2, max_size=25, unique_by=abs), seeds)
def test_wilcoxon_ignores_order_and_positive_scale(values, seed):
    p = wilcoxon_test(values)
    assert 0 < p <= 1
    assert wilcoxon_test(shuffled(values, seed)) == p
    assert wilcoxon_test([4 * v for v in values]) == p
    assert p + wilcoxon_test([-v for v in values]) >= 1 - 1e-12


# --- sign_test


@pytest.mark.parametrize("n", [2, 6, 25])
def test_sign_test_sums_the_binomial(n):
    for n_above in range(n + 1):
        values = [0.1 * (i + 1) for i in range(n_above)] + [-0.2] * (n - n_above)
        expected = sum(math.comb(n, k) for k in range(n_above, n + 1)) / 2**n
        assert sign_test(values) == pytest.approx(expected, rel=1e-9)


def test_a_zero_counts_against_the_sign_test():
    assert sign_test([0.1, 0.2, 0.0, -0.0]) == pytest.approx(11 / 16)
    assert sign_test([0.0, 0.0]) == 1


@pytest.mark.parametrize("function", [wilcoxon_test, sign_test])
def test_one_value_has_no_rank_or_sign_test(function):
    assert math.isnan(function([0.3]))


# --- success_rate, wilson_interval


def test_a_tie_is_no_success():
    assert success_rate([0.0, -0.0, -1.0, 1e-300]) == 0.25


@quick
@given(samples, seeds)
def test_success_rate_counts_the_positive(values, seed):
    rate = success_rate(values)
    assert 0 <= rate <= 1
    assert rate * len(values) == pytest.approx(sum(v > 0 for v in values))
    assert (rate == 1) == all(v > 0 for v in values)
    assert (rate == 0) == all(v <= 0 for v in values)
    assert rate + success_rate([-v for v in values]) <= 1 + 1e-12
    assert rate == success_rate(shuffled(values, seed))


@pytest.mark.parametrize(("n_successes", "n"), [(0, 7), (1, 1), (3, 10), (49, 50), (50, 50)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_interval_matches_the_formula(n_successes, n, confidence):
    z = scipy.special.ndtri((1 + confidence) / 2)
    share = n_successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = wilson_interval(n_successes, n, confidence=confidence)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize(("n_successes", "n"), [(3, 2), (-1, 2)])
def test_impossible_counts_have_no_interval(n_successes, n):
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        wilson_interval(n_successes, n)


# --- success_interval


@pytest.mark.parametrize("n_above", [0, 1, 7, 12])
def test_with_one_item_a_pair_the_success_interval_is_wilsons(n_above):
    items = np.where(np.arange(12) < n_above, 0.1, -0.1)
    assert success_interval(items[:, None]) == pytest.approx(wilson_interval(n_above, 12))


def test_items_of_a_pair_that_agree_count_once():
    items = np.where(np.arange(20) < 13, 0.1, -0.1)
    assert success_interval(np.tile(items[:, None], (1, 4))) == pytest.approx(
        wilson_interval(13, 20)
    )
    assert success_interval(np.full((6, 3), 0.1)) == pytest.approx(wilson_interval(6, 6))


def test_items_that_agree_less_than_chance_count_as_items():
    """Every pair succeeds in one of two: as sure as an item-level interval can be, and no surer."""
    table = np.tile([[0.1, -0.1]], (15, 1))
    assert success_interval(table) == pytest.approx(wilson_interval(15, 15 * 2), abs=0.2)
    low, high = success_interval(np.concatenate([table, [[0.1, 0.1], [-0.1, -0.1]]]))
    assert (low, high) == pytest.approx(wilson_interval(17, 34), abs=1e-12)


def test_the_success_interval_covers_the_rate_of_clustered_items():
    """Beta-binomial pairs, rate 0.7, correlation 0.5; the naive interval covers far too little."""
    rng = np.random.default_rng(0)
    held = naive = 0
    for _ in range(400):
        rates = rng.beta(0.7, 0.3, size=(40, 1))
        table = np.where(rng.random((40, 3)) < rates, 1.0, -1.0)
        low, high = success_interval(table)
        held += low <= 0.7 <= high
        low, high = wilson_interval(int((table > 0).sum()), table.size)
        naive += low <= 0.7 <= high
    assert 0.92 <= held / 400 <= 0.98
    assert naive / 400 < 0.88


# --- slopes, page_test, trend

ALPHAS = [0.0, 0.5, 0.8, 1.0]


def rising(n, slope, *, seed=0):
    """A table of `n` pairs whose margins rise with alpha by `slope` and noise of 0.1."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 1)) + slope * np.array(ALPHAS) + 0.1 * rng.normal(size=(n, 4))


def test_slopes_match_polyfit():
    table = rising(9, 0.3)
    assert slopes(table, ALPHAS) == pytest.approx(np.polyfit(ALPHAS, table.T, 1)[0], abs=1e-12)
    order = [2, 0, 3, 1]
    moved = slopes(table[:, order], [ALPHAS[i] for i in order])
    assert moved == pytest.approx(slopes(table, ALPHAS), abs=1e-12)


def test_slopes_of_lines():
    assert slopes([[0.1, 0.2], [0.3, 0.3]], [0.5, 1.0]) == pytest.approx([0.2, 0.0], abs=1e-15)


@pytest.mark.parametrize("alphas", [[0.5, 1.0], [0.5] * 3, [0.5, 0.8, 1.0, 1.2]])
@pytest.mark.parametrize("function", [slopes, trend])
def test_slopes_need_a_column_for_each_of_different_alphas(function, alphas):
    with pytest.raises(ValueError, match=r"one column for each of 2 or more different alphas"):
        function(np.zeros((4, 3)), alphas)


def test_one_alpha_has_no_slope():
    with pytest.raises(ValueError, match=r"2 or more different alphas, got the shape \(4, 1\)"):
        slopes(np.zeros((4, 1)), [1.0])


def page_l(table):
    """Page's (1963) L: column by column, its place times the sum of its ranks in the rows."""
    ranks = np.argsort(np.argsort(table, axis=1), axis=1) + 1
    return (ranks.sum(axis=0) * np.arange(1, table.shape[1] + 1)).sum()


@pytest.mark.parametrize("seed", range(3))
def test_page_test_matches_all_permutations(seed):
    table = rising(4, 0.1, seed=seed)[:, 1:]
    orders = list(itertools.permutations(range(3)))
    observed = page_l(table)
    sums = [page_l(np.array(rows, dtype=float)) for rows in itertools.product(orders, repeat=4)]
    assert page_test(table) == pytest.approx(np.mean(np.array(sums) >= observed), rel=1e-9)


def test_page_test_matches_its_normal_limit():
    n, k = 60, 4
    table = rising(n, 0.05)
    mean = n * k * (k + 1) ** 2 / 4
    variance = n * k**2 * (k + 1) ** 2 * (k - 1) / 144
    expected = scipy.special.ndtr(-(page_l(table) - mean) / math.sqrt(variance))
    assert page_test(table) == pytest.approx(expected, rel=0.03)
    assert 0.001 < expected < 0.2


def test_page_test_knows_the_direction():
    table = rising(20, 1.0)
    assert page_test(table) < 1e-6
    assert page_test(table[:, ::-1]) > 0.999
    assert 0.4 < page_test(np.zeros((20, 4))) < 0.6


@pytest.mark.parametrize("shape", [(1, 4), (20, 2), (20, 1)])
def test_what_has_no_page_test(shape):
    assert math.isnan(page_test(np.zeros(shape)))


def test_a_trend_is_the_figures_of_its_slopes():
    table = rising(12, 0.2)
    figures = trend(table, ALPHAS, n_resamples=500, seed=3)
    rises = slopes(table, ALPHAS)
    assert figures.n == 12
    assert figures.slope == pytest.approx(rises.mean())
    assert figures.slope == pytest.approx(0.2, abs=0.1)
    assert (figures.ci_low, figures.ci_high) == bootstrap_ci(rises, n_resamples=500, seed=3)
    assert figures.p == t_test(rises) < 0.001
    assert figures.p_page == page_test(table) < 0.001


def test_the_trend_of_one_pair_is_its_slope():
    figures = trend([[0.1, 0.2, 0.3]], [0.5, 1.0, 1.5])
    assert figures.slope == pytest.approx(0.2)
    assert np.isnan([figures.ci_low, figures.ci_high, figures.p, figures.p_page]).all()
