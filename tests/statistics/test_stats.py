"""Statistics against scipy, formulas and brute force; on degenerate data; and their symmetries."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from analogy.core.records import Verdict
from analogy.settings.pairs import WEAK_PAIRS
from analogy.statistics import bootstrap
from analogy.statistics.bootstrap import (
    Method,
    bootstrap_ci,
    bootstrap_test,
    cluster_bootstrap_ci,
    resampled_together,
)
from analogy.statistics.estimates import estimate, item_level, pooled_estimate, trend, verdict
from analogy.statistics.items import items_from_margins
from analogy.statistics.multiplicity import benjamini_hochberg, holm
from analogy.statistics.power import MAX_PAIRS, effect_size, min_detectable, pairs_needed
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
from analogy.statistics.values import MIN_DECISIVE

N_RESAMPLES = 200
"""Few, for speed: the symmetries hold for any number."""

METHODS = get_args(Method)

quick = settings(deadline=None, max_examples=40)

margins = st.integers(-2000, 2000).map(lambda k: k / 1000)
"""The range of a margin, in steps coarse enough for repeated values and ties."""

samples = st.lists(margins, min_size=2, max_size=25)
few_values = st.lists(st.sampled_from([-0.5, 0.0, 0.1]), min_size=2, max_size=25)
seeds = st.integers(0, 2**32 - 1)


def shuffled(values, seed):
    return np.random.default_rng(seed).permutation(values)


def quantile(values, level):
    """Linear between the neighbouring order statistics."""
    ordered = sorted(values)
    at = level * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def t_of(drawn, centre):
    """Student's t of a resample about the sample's mean; infinite without spread."""
    n = len(drawn)
    mean = sum(drawn) / n
    error = math.sqrt(sum((v - mean) ** 2 for v in drawn) / (n - 1) / n)
    if error < 1e-12:
        return 0.0 if abs(mean - centre) < 1e-12 else math.copysign(1e9, mean - centre)
    return (mean - centre) / error


# bootstrap_ci


def test_percentile_interval_matches_a_loop():
    values = np.random.default_rng(0).normal(0.03, 0.1, size=12)
    rng = np.random.default_rng(7)
    ordered = sorted(values)
    means = []
    for _ in range(500):
        drawn = [ordered[i] for i in rng.integers(0, 12, size=12)]
        means.append(sum(drawn) / 12)
    expected = quantile(means, 0.025), quantile(means, 0.975)
    interval = bootstrap_ci(values, n_resamples=500, seed=7, method="percentile")
    assert interval == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_studentized_interval_matches_the_book(confidence):
    """Efron and Tibshirani (1993), section 12.5, one resample at a time, on a skewed sample."""
    n, n_resamples = 15, 500
    values = sorted(np.random.default_rng(1).exponential(size=n))
    mean = sum(values) / n
    rng = np.random.default_rng(7)
    ts = [t_of([values[i] for i in rng.integers(0, n, size=n)], mean) for _ in range(n_resamples)]
    error = np.std(values, ddof=1) / math.sqrt(n)
    tail = (1 - confidence) / 2
    expected = mean - quantile(ts, 1 - tail) * error, mean - quantile(ts, tail) * error
    interval = bootstrap_ci(values, confidence=confidence, n_resamples=n_resamples, seed=7)
    assert interval == pytest.approx(expected, abs=1e-9)
    assert mean - interval.low < interval.high - mean  # follows the skew


@pytest.mark.parametrize("method", ["studentized", "percentile"])
def test_interval_matches_all_resamples_of_four_values(method):
    """256 equally likely resamples, 4 of them without spread; neither level is next to a jump."""
    values = [0.0, 0.15, 0.45, 0.7]
    mean, error = sum(values) / 4, np.std(values, ddof=1) / 2
    resamples = list(itertools.product(values, repeat=4))
    if method == "percentile":
        means = sorted(sum(drawn) / 4 for drawn in resamples)
        expected = means[round(0.1 * 256)], means[round(0.9 * 256)]
    else:
        ts = sorted(t_of(drawn, mean) for drawn in resamples)
        expected = mean - ts[round(0.9 * 256)] * error, mean - ts[round(0.1 * 256)] * error
    interval = bootstrap_ci(values, confidence=0.8, n_resamples=20_000, method=method)
    assert values[0] < interval.low < interval.high < values[-1]
    assert interval == pytest.approx(expected, abs=1e-9)


def test_bca_interval_matches_the_book():
    """Efron and Tibshirani (1993), eqs. 14.9 to 14.15, on a skewed sample without ties."""
    n = 15
    values = np.sort(np.random.default_rng(1).exponential(size=n))
    drawn = np.random.default_rng(3).integers(0, n, size=(2000, n))
    means = values[drawn].mean(axis=1)
    z0 = scipy.special.ndtri(np.mean(means < values.mean()))
    left_out = np.array([np.delete(values, i).mean() for i in range(n)])
    deviations = left_out.mean() - left_out
    a = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    z = scipy.special.ndtri(np.array([0.025, 0.975]))
    levels = scipy.special.ndtr(z0 + (z0 + z) / (1 - a * (z0 + z)))
    interval = bootstrap_ci(values, n_resamples=2000, seed=3, method="BCa")
    assert interval == pytest.approx(np.quantile(means, levels), abs=1e-7)
    assert values.mean() - interval.low < interval.high - values.mean()  # follows the skew


@pytest.mark.parametrize("method", ["BCa", "percentile"])
@pytest.mark.parametrize("n", [2, 20, 50, 400])
def test_interval_matches_scipy(method, n):
    values = np.sort(np.random.default_rng(n).normal(0.05, 0.1, size=n))
    expected = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=1500,
        batch=1000,
        method=method,
        rng=np.random.default_rng(5),
    ).confidence_interval
    interval = bootstrap_ci(values, n_resamples=1500, seed=5, method=method)
    assert interval == pytest.approx(tuple(expected), abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_more_confidence_is_wider(method):
    values = np.random.default_rng(0).exponential(size=30)
    wide, narrow = (
        bootstrap_ci(values, confidence=c, n_resamples=1000, method=method) for c in (0.99, 0.8)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method):
    values = np.random.default_rng(0).normal(size=20)
    first, again, other = (
        bootstrap_ci(values, n_resamples=300, seed=s, method=method) for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_coverage(draw):
    """400 samples of 10, the smallest cell of the smoke run; sd of the share is 0.011."""
    rng = np.random.default_rng(0)
    truth = {"normal": 0.0, "exponential": 1.0}[draw]
    held = 0
    for i in range(400):
        low, high = bootstrap_ci(getattr(rng, draw)(size=10), n_resamples=299, seed=i)
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [-0.3, 0.0, 0.1])
def test_interval_of_equal_values_is_the_value(method, value):
    assert bootstrap_ci([value] * 7, method=method) == (value, value)


def test_interval_of_values_equal_up_to_rounding_is_their_range():
    below, above = 0.1 + 0.2 - 2**-53, 0.1 + 0.2
    assert bootstrap_ci([above, below, above]) == (below, above)


DEGENERATE = {
    "two_values": [0.0] * 6 + [1.0] * 6,
    "two_values_one_once": [0.1] * 49 + [0.2],
    "few_nonzero": [0.0] * 20 + [0.3, -0.2],
    "two_of_three_equal": [0.1, 0.1, 0.4],
    "one_far_off": [*np.linspace(0.0, 0.01, 20), 2.0],
    "close_together": 0.1 + 1e-10 * np.arange(9),
    "tiny": 1e-100 * np.arange(-3, 6),
    **{f"n_{n}": np.random.default_rng(n).normal(size=n) for n in range(2, 7)},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_data_have_an_interval_within_them(name, method):
    values = DEGENERATE[name]
    low, high = bootstrap_ci(values, n_resamples=500, method=method)
    mean = np.mean(values)
    assert min(values) <= low <= mean * (1 + 1e-15)
    assert mean * (1 - 1e-15) <= high <= max(values)
    assert low < high


def test_the_studentized_interval_reaches_to_the_ends_where_many_resamples_lack_spread():
    """A third of the resamples of 49 equal values and one other are 49 equal values."""
    values = [0.1] * 49 + [0.2]
    assert bootstrap_ci(values).high == 0.2
    assert bootstrap_ci(values, method="percentile").high < 0.11


@pytest.mark.parametrize("method", METHODS)
def test_interval_of_two_values_is_their_range(method):
    assert bootstrap_ci([0.5, -0.25], method=method) == pytest.approx((-0.25, 0.5), abs=1e-9)


def test_one_value_has_no_interval():
    assert np.isnan(bootstrap_ci([0.3])).all()


OF_VALUES = [
    bootstrap_ci,
    t_test,
    wilcoxon_test,
    sign_test,
    success_rate,
    effect_size,
    estimate,
    item_level,
]


@pytest.mark.parametrize("function", OF_VALUES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one value"),
        ([0.1, math.nan], "got 1 NaN or infinite of 2"),
        ([math.inf, -math.inf, 0.0], "got 2 NaN or infinite of 3"),
    ],
)
def test_data_without_an_answer_are_refused(function, values, message):
    with pytest.raises(ValueError, match=message):
        function(values)


@pytest.mark.parametrize(
    "function", [bootstrap_ci, t_test, wilcoxon_test, sign_test, effect_size, estimate]
)
def test_wrong_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"expected an array of 1 dimension.*\(3, 2\)"):
        function(np.zeros((3, 2)))


def slopes_at(table):
    return slopes(table, [0.5, 0.8, 1.0])


def trend_at(table):
    return trend(table, [0.5, 0.8, 1.0])


OF_TABLES = [cluster_bootstrap_ci, pooled_estimate, page_test, slopes_at, trend_at]


@pytest.mark.parametrize("function", OF_TABLES)
def test_clusters_need_two_dimensions(function):
    with pytest.raises(ValueError, match=r"expected an array of 2 dimension.*\(3,\)"):
        function(np.zeros(3))


@pytest.mark.parametrize("function", OF_TABLES)
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((0, 3)), r"at least one value, got the shape \(0, 3\)"),
        ([[0.1, 0.2, math.nan], [math.inf, 0.1, 0.2]], "got 2 NaN or infinite of 6"),
    ],
)
def test_tables_without_an_answer_are_refused(function, table, message):
    with pytest.raises(ValueError, match=message):
        function(table)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"confidence": 0.0}, "confidence: expected a number between 0 and 1, got 0.0"),
        ({"confidence": 95}, "confidence: expected a number between 0 and 1, got 95"),
        ({"confidence": math.nan}, "confidence: expected a number between 0 and 1, got nan"),
        ({"n_resamples": 99}, "n_resamples: expected at least 100, got 99"),
        ({"method": "bca"}, "method: expected one of studentized, BCa, percentile, got 'bca'"),
    ],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci([0.0, 1.0], **option)


@pytest.mark.parametrize("shape", ["exponential", "lognormal", "pareto"])
@pytest.mark.parametrize("confidence", [0.01, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_interval_holds_the_mean_even_at_little_confidence(shape, confidence, method):
    rng = np.random.default_rng(0)
    values = {
        "exponential": np.exp(np.arange(50.0)),
        "lognormal": rng.lognormal(sigma=2, size=50),
        "pareto": rng.pareto(0.3, size=50),
    }[shape]
    low, high = bootstrap_ci(values, confidence=confidence, n_resamples=2000, method=method)
    mean = np.sort(values).mean()  # in the order in which the interval's is taken
    assert low <= mean <= high


@quick
@given(samples | few_values, st.sampled_from(METHODS), seeds)
@example([0.0] * 49 + [1.0], "BCa", 0)
@example([-1.0] + [1.0] * 49, "BCa", 0)
@example([0.0] * 49 + [1.0], "studentized", 0)
def test_interval_holds_the_mean(values, method, seed):
    low, high = bootstrap_ci(values, n_resamples=N_RESAMPLES, seed=seed, method=method)
    assert min(values) <= low <= high <= max(values)
    assert low - 1e-12 <= np.mean(values) <= high + 1e-12


@quick
@given(samples | few_values, seeds, st.sampled_from(METHODS))
def test_interval_is_invariant_under_permutation(values, seed, method):
    other = shuffled(values, seed)
    assert bootstrap_ci(other, n_resamples=N_RESAMPLES, method=method) == bootstrap_ci(
        values, n_resamples=N_RESAMPLES, method=method
    )


@quick
@given(samples | few_values, margins, st.floats(1e-3, 1e3), st.sampled_from(METHODS))
@example([0.0, 1.0] * 12, 0.1, 1 / 3, "BCa")
@example([0.0, 1.0] * 12, 0.1, 1 / 3, "studentized")
@example([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0], 0.7, 1.1, "BCa")
def test_interval_is_equivariant_under_shift_and_positive_scale(values, shift, scale, method):
    low, high = bootstrap_ci(values, n_resamples=N_RESAMPLES, method=method)
    moved = bootstrap_ci(scale * (np.array(values) + shift), n_resamples=N_RESAMPLES, method=method)
    assert moved == pytest.approx((scale * (low + shift), scale * (high + shift)), abs=1e-9 * scale)


# how resamples are drawn


def test_blocks_change_nothing(monkeypatch):
    values = np.random.default_rng(0).exponential(size=40)
    whole = bootstrap_ci(values, seed=3), bootstrap_test(values, seed=3)
    bootstrap._resampled_alone.cache_clear()
    monkeypatch.setattr(bootstrap, "_BLOCK", 700)
    monkeypatch.setattr(bootstrap, "_CACHED", 90)
    assert (bootstrap_ci(values, seed=3), bootstrap_test(values, seed=3)) == whole
    # One draw for the interval and the p.
    assert bootstrap._resampled_alone.cache_info().misses == 1


def test_samples_resampled_together_have_the_figures_that_they_have_alone(monkeypatch):
    """To the last bit, in one pass for each length; samples without a bootstrap are passed over."""
    rng = np.random.default_rng(0)
    samples = [rng.exponential(size=n) - 0.5 for n in (6, 50, 6, 50, 50)]
    alone = [(bootstrap_ci(v, seed=3), bootstrap_test(v, seed=3)) for v in samples]
    passes = []
    moments = bootstrap._moments

    def spy(units, *rest):
        passes.append(units.shape)
        return moments(units, *rest)

    monkeypatch.setattr(bootstrap, "_moments", spy)
    without = [[], [1.0], [0.5, 0.5, 0.5], [0.1, np.nan]]
    with resampled_together([*samples, samples[0][::-1], *without], seed=3):
        together = [(bootstrap_ci(v, seed=3), bootstrap_test(v, seed=3)) for v in samples]
        assert sorted(passes) == [(2, 6), (3, 50)]
        bootstrap_ci(samples[0], seed=4)  # other resamples than were announced
        assert passes[2:] == [(1, 6)]
    assert together == alone
    bootstrap_ci(samples[1], seed=3)
    assert passes[3:] == [(1, 50)]  # forgotten at the end


@pytest.mark.parametrize("n", [7, 1000])
def test_the_mean_of_a_resample_is_exact(n):
    """No order of the sum, and so no number of threads, moves it: it is the exact sum's."""
    values = np.sort(np.random.default_rng(0).exponential(size=n))
    centre, scale, unit = bootstrap._standardised(values)
    drawn = bootstrap._moments(unit[np.newaxis], 100, 5)[0]
    places = bootstrap._exact_places(n)
    rounded = np.ldexp(np.rint(np.ldexp(unit, places)), -places)
    assert np.abs(rounded - unit).max() < n * 1e-16
    rows = np.random.default_rng(5).integers(0, n, size=(100, n))
    assert drawn.means.tolist() == [math.fsum(rounded[row]) / n for row in rows]
    spread = values[rows].std(axis=1) / scale
    assert np.sqrt(drawn.squares - drawn.means**2) == pytest.approx(spread, abs=1e-9)
    assert centre == pytest.approx(values.mean())


LONG = {
    "normal": lambda rng, n: rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "student": lambda rng, n: rng.standard_t(3, size=n),
    "two_values": lambda rng, n: rng.integers(0, 2, size=n).astype(float),
}


@pytest.mark.parametrize("n", [bootstrap._LONG + 1, 300_000])
@pytest.mark.parametrize("shape", LONG)
def test_the_groups_of_a_long_sample_keep_its_variance(shape, n):
    values = np.sort(LONG[shape](np.random.default_rng(0), n))
    groups = np.split(values, bootstrap._group_starts(n)[1:])
    assert sum(map(len, groups)) == n
    assert min(map(len, groups)) == 1
    within = sum(len(group) * group.var() for group in groups) / n
    assert within / values.var() < 1e-3


def test_a_long_sample_has_the_interval_of_one_that_is_not_grouped(monkeypatch):
    """Skewed, of 30,000 values: both ends within the Monte-Carlo error of 2,000 resamples."""
    values = np.random.default_rng(0).exponential(size=30_000)
    error = values.std() / math.sqrt(len(values))
    grouped = bootstrap_ci(values, n_resamples=2000)
    monkeypatch.setattr(bootstrap, "_LONG", len(values))
    whole = bootstrap_ci(values, n_resamples=2000, seed=1)
    assert grouped != whole
    assert grouped == pytest.approx(whole, abs=0.2 * error)
    assert grouped.high - grouped.low == pytest.approx(2 * 1.96 * error, rel=0.05)


# cluster_bootstrap_ci


def test_cluster_interval_matches_a_loop_that_resamples_whole_clusters():
    rng = np.random.default_rng(0)
    clusters = rng.normal(size=(10, 1)) + 0.1 * rng.normal(size=(10, 3))
    clusters = clusters[np.argsort(clusters.mean(axis=1))]
    rng = np.random.default_rng(4)
    means = []
    for _ in range(400):
        items = [item for i in rng.integers(0, 10, size=10) for item in clusters[i]]
        means.append(sum(items) / len(items))
    interval = cluster_bootstrap_ci(clusters, n_resamples=400, seed=4, method="percentile")
    assert interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_singleton_clusters_are_values(method):
    values = np.random.default_rng(0).normal(size=20)
    options = {"confidence": 0.9, "n_resamples": 500, "seed": 3, "method": method}
    assert cluster_bootstrap_ci(values[:, None], **options) == bootstrap_ci(values, **options)


def test_repeating_a_clusters_items_adds_no_certainty():
    values = np.random.default_rng(0).normal(size=20)
    assert cluster_bootstrap_ci(np.tile(values[:, None], (1, 4))) == pytest.approx(
        bootstrap_ci(values), abs=1e-8
    )
    as_items = bootstrap_ci(np.tile(values, 4))
    as_clusters = cluster_bootstrap_ci(np.tile(values[:, None], (1, 4)))
    ratio = (as_clusters.high - as_clusters.low) / (as_items.high - as_items.low)
    assert ratio == pytest.approx(2, rel=0.15)


# t_test


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


# wilcoxon_test


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


# sign_test


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


# bootstrap_test


def test_the_bootstrap_test_matches_a_loop():
    values = np.sort(np.random.default_rng(1).exponential(size=12) - 0.7)
    n, mean = len(values), values.mean()
    own = mean / (values.std(ddof=1) / math.sqrt(n))
    beyond = 1
    for row in np.random.default_rng(5).integers(0, n, size=(800, n)):
        drawn = values[row]
        t = (drawn.mean() - mean) / (drawn.std(ddof=1) / math.sqrt(n))
        beyond += t >= own
    assert bootstrap_test(values, n_resamples=800, seed=5) == pytest.approx(beyond / 801)


def test_the_bootstrap_test_and_the_interval_agree():
    """p at most (1 - confidence) / 2 exactly where the lower end is above 0."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.exponential(size=15) - 0.55
        low, _ = bootstrap_ci(values, n_resamples=999)
        p = bootstrap_test(values, n_resamples=999)
        if abs(p - 0.025) > 0.002:  # quantiles interpolate between two resamples
            assert (low > 0) == (p < 0.025)


def test_the_bootstrap_test_asks_the_data_for_their_shape():
    """With a long tail downwards t is too sure, with one upwards too unsure."""
    tail = np.random.default_rng(2).exponential(size=40)
    up, down = tail - tail.mean() + 0.4, tail.mean() - tail + 0.4
    assert bootstrap_test(up) < t_test(up)
    assert bootstrap_test(down) > t_test(down)


@pytest.mark.parametrize(("value", "p"), [(0.1, 0.0), (-0.1, 1.0), (0.0, 0.5)])
def test_the_bootstrap_p_of_equal_values(value, p):
    assert bootstrap_test([value] * 7) == p


def test_one_value_has_no_bootstrap_p():
    assert math.isnan(bootstrap_test([0.3]))


@quick
@given(samples, seeds)
def test_the_bootstrap_p_ignores_order_and_positive_scale(values, seed):
    p = bootstrap_test(values, n_resamples=N_RESAMPLES)
    assert 0 <= p <= 1
    assert bootstrap_test(shuffled(values, seed), n_resamples=N_RESAMPLES) == p
    scaled = bootstrap_test(8.0 * np.array(values), n_resamples=N_RESAMPLES)
    assert scaled == pytest.approx(p, abs=0.02)


# success_rate, wilson_interval


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


# success_interval


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


# effect_size


def noncentral_t_cdf(df):
    """P((Z + nc) / S <= t) with S = sqrt(chi2(df) / df), as a function of t and nc.

    By the definition, the mean over S, with Gauss and Legendre's nodes: `scipy.stats.nct.cdf` is
    NaN for some of these arguments.
    """
    scale = scipy.stats.chi(df, scale=1 / math.sqrt(df))
    low, high = scale.ppf(1e-13), scale.isf(1e-13)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    at = low + (high - low) * (nodes + 1) / 2
    share = weights * (high - low) / 2 * scale.pdf(at)
    return lambda t, nc: share @ scipy.special.ndtr(t * at - nc)


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.2, 1.5])
@pytest.mark.parametrize("n", [3, 10, 50])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_effect_size_inverts_the_noncentral_t(mean, n, confidence):
    values = np.random.default_rng(n).normal(mean, 1, size=n)
    d_z, low, high = effect_size(values, confidence=confidence)
    assert d_z == pytest.approx(sum(values) / n / np.std(values, ddof=1))
    cdf, t, tail = noncentral_t_cdf(n - 1), d_z * math.sqrt(n), (1 - confidence) / 2
    for end, level in ((low, 1 - tail), (high, tail)):
        nc = brentq(lambda nc, level=level: cdf(t, nc) - level, t - 40, t + 40)
        assert end * math.sqrt(n) == pytest.approx(nc, abs=1e-6, rel=1e-6)


def test_effect_size_covers():
    """2,000 normal samples of 12 with d_z 0.5; sd of the share is 0.005."""
    data = np.random.default_rng(0).normal(0.5, 1, size=(2000, 12))
    ends = np.array([effect_size(values) for values in data])
    assert np.mean((ends[:, 1] <= 0.5) & (ends[:, 2] >= 0.5)) == pytest.approx(0.95, abs=0.015)
    assert np.median(ends[:, 0]) == pytest.approx(0.53, abs=0.03)  # d_z is biased upward


@pytest.mark.parametrize("spread", [1e-3, 1e-9])
def test_effect_size_of_values_close_together(spread):
    """Where d_z is large its interval is that of 1 / sd: chi-square's."""
    values = 0.1 + spread * np.linspace(-0.1, 0.1, 6)
    d_z, low, high = effect_size(values)
    ends = d_z * np.sqrt(scipy.stats.chi2.ppf([0.025, 0.975], 5) / 5)
    assert (low, high) == pytest.approx(tuple(ends), rel=2e-3)
    mirrored = effect_size(-values)
    assert mirrored == pytest.approx((-d_z, -high, -low), rel=1e-6)


@quick
@given(samples, seeds, st.floats(1e-3, 1e3))
def test_effect_size_ignores_order_and_positive_scale(values, seed, scale):
    assume(np.ptp(values) > 0)
    d_z, low, high = effect_size(values)
    assert low <= d_z <= high
    assert effect_size(shuffled(values, seed)) == (d_z, low, high)
    assert effect_size(scale * np.array(values)) == pytest.approx((d_z, low, high), abs=1e-6)
    assert effect_size(-np.array(values)) == pytest.approx((-d_z, -high, -low), abs=1e-6)


@pytest.mark.parametrize("values", [[0.3], [0.0, 0.0], [0.1, 0.1, 0.1], [0.1 + 0.2, 0.3]])
def test_values_without_spread_have_no_effect_size(values):
    assert np.isnan(effect_size(values)).all()


# holm, benjamini_hochberg

ADJUSTMENTS = [holm, benjamini_hochberg]

families = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 1.0]), min_size=1, max_size=24)


def adjusted_by_hand(p_values, function):
    """Step down from the smallest (Holm), step up from the largest (Benjamini, Hochberg)."""
    m = len(p_values)
    order = sorted(range(m), key=lambda i: p_values[i])
    adjusted, bound = [0.0] * m, 0.0 if function is holm else 1.0
    if function is holm:
        for rank, i in enumerate(order):
            adjusted[i] = bound = max(bound, min(1.0, (m - rank) * p_values[i]))
    else:
        for rank, i in reversed(list(enumerate(order, start=1))):
            adjusted[i] = bound = min(bound, m / rank * p_values[i])
    return adjusted


def test_adjustment_of_the_published_example():
    """Benjamini and Hochberg (1995), section 4.1: of 15 tests, 4 at a false discovery rate of 5%.

    Their comparison, Bonferroni, has 3; so has Holm.
    """
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    assert np.sum(benjamini_hochberg(p) < 0.05) == 4
    assert np.sum(holm(p) < 0.05) == 3
    assert holm(p)[:3] == pytest.approx([15 * 0.0001, 14 * 0.0004, 13 * 0.0019])


@pytest.fixture(scope="module")
def quick_collection():
    """statsmodels' Holm collects garbage each time: half a second with all that tests import."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collection")
@quick
@given(families, seeds)
def test_adjusted_p_values(p_values, seed):
    p = np.array(p_values)
    order = np.random.default_rng(seed).permutation(len(p))
    for function in ADJUSTMENTS:
        adjusted = function(p_values)
        assert adjusted == pytest.approx(adjusted_by_hand(p_values, function), abs=1e-12)
        assert (adjusted >= p - 1e-15).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
        assert function(p[order]) == pytest.approx(adjusted[order], abs=0)
    assert (holm(p_values) >= benjamini_hochberg(p_values) - 1e-15).all()


@pytest.mark.parametrize("function", ADJUSTMENTS)
def test_a_p_that_does_not_exist_is_in_no_family(function):
    some = [0.01, 0.04, 0.5]
    with_gaps = function([math.nan, 0.01, 0.04, math.nan, 0.5])
    assert np.isnan(with_gaps[[0, 3]]).all()
    assert with_gaps[[1, 2, 4]].tolist() == function(some).tolist()
    assert function([0.03]).tolist() == [0.03]
    assert np.isnan(function([math.nan])).all()
    assert function([]).shape == (0,)


# min_detectable, pairs_needed


def power_of(effect, n):
    """Of the one-sided t-test at 2.5%: the noncentral t beyond its critical value."""
    critical = scipy.stats.t.ppf(0.975, n - 1)
    return scipy.stats.nct.sf(critical, n - 1, effect * math.sqrt(n))


@pytest.mark.parametrize("n", [2, 6, 10, 50])
def test_four_of_five_samples_show_the_detectable_mean(n):
    """20,000 normal samples; sd of the share is 0.003."""
    sd = 0.3
    data = np.random.default_rng(n).normal(min_detectable(sd, n), sd, size=(20_000, n))
    p = scipy.stats.ttest_1samp(data, 0, axis=1, alternative="greater").pvalue
    assert np.mean(p < 0.025) == pytest.approx(0.8, abs=0.012)


@pytest.mark.parametrize("n", [2, 3, 6, 10, 50, 400, 1200])
def test_the_detectable_mean_has_the_planned_power(n):
    assert power_of(min_detectable(1.0, n), n) == pytest.approx(0.8, abs=1e-4)


def test_the_detectable_mean_shrinks_with_n_and_grows_with_the_spread():
    found = [min_detectable(0.1, n) for n in range(2, 60)]
    assert (np.diff(found) < 0).all()
    assert min_detectable(0.2, 10) == pytest.approx(2 * min_detectable(0.1, 10))
    assert min_detectable(0.0, 10) == 0


@pytest.mark.parametrize(("sd", "n"), [(0.1, 1), (0.1, 0), (math.nan, 10), (math.inf, 10)])
def test_what_has_no_detectable_mean(sd, n):
    assert math.isnan(min_detectable(sd, n))


@pytest.mark.parametrize("effect", [1.4, 1.0, 0.7, 0.5, 0.31, 0.2, 0.1, 0.031, 0.01, 0.003])
def test_the_pairs_needed_have_the_planned_power_and_one_fewer_has_not(effect):
    n = pairs_needed(0.1 * effect, 0.1)
    assert n > MIN_DECISIVE
    assert power_of(effect, n) >= 0.8 - 1e-6
    assert power_of(effect, n - 1) < 0.8
    assert pairs_needed(-0.1 * effect, 0.1) == n


@pytest.mark.parametrize("n", [6, 7, 8, 13, 50, 400])
def test_pairs_needed_inverts_min_detectable(n):
    found = min_detectable(0.2, n)
    assert pairs_needed(found * 1.001, 0.2) == n
    assert pairs_needed(found * 0.999, 0.2) == n + 1


def test_pairs_needed_has_bounds():
    assert pairs_needed(3.0, 0.1) == pairs_needed(1e-9, 0.0) == MIN_DECISIVE
    assert MAX_PAIRS * 0.98 < pairs_needed(2.82e-3, 1.0) <= MAX_PAIRS
    for nothing in [2.80e-3, 1e-17, 1e-200, 0.0]:
        assert pairs_needed(nothing, 1.0) is None
    assert pairs_needed(0.0, 0.0) is None


@pytest.mark.parametrize(("mean", "sd"), [(math.nan, 1), (0.1, math.nan), (math.inf, 1)])
def test_no_pairs_are_said_to_be_needed_where_figures_are_missing(mean, sd):
    assert pairs_needed(mean, sd) is None


# slopes, page_test, trend

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


# item_level


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


# verdict


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


# estimate, pooled_estimate


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


# items_from_margins


def margin_frame(rows):
    return pd.DataFrame(rows, columns=["pair_id", "category", "alpha", "seed", "margin"])


def test_items_are_means_over_seeds():
    frame = margin_frame(
        [
            ("size-1", "size", 0.5, 1, 0.2),
            ("color-1", "color", 0.5, 0, 0.1),
            ("color-1", "color", 1.0, 0, -0.5),
            ("size-1", "size", 0.5, 0, 0.4),
        ]
    )
    before = frame.copy()
    items = items_from_margins(frame)
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(
        items,
        pd.DataFrame(
            {
                "pair_id": ["color-1", "color-1", "size-1"],
                "category": ["color", "color", "size"],
                "alpha": [0.5, 1.0, 0.5],
                "margin": [0.1, -0.5, (0.2 + 0.4) / 2],
                "n_seeds": [1, 1, 2],
            }
        ),
    )


def test_items_pivot_to_what_pooled_estimate_takes():
    rows = [
        (f"pair-{i}", "color", alpha, seed, i + alpha + seed)
        for i in range(4)
        for alpha in (0.5, 1.0)
        for seed in (0, 1)
    ]
    items = items_from_margins(margin_frame(rows))
    table = items.pivot(index="pair_id", columns="alpha", values="margin")
    assert table.shape == (4, 2)
    assert pooled_estimate(table.to_numpy()).mean == pytest.approx(1.5 + 0.75 + 0.5)


def test_float32_margins_are_averaged_in_float64():
    frame = margin_frame([("p", "c", 0.5, s, m) for s, m in enumerate([1.0, 2.0**-24, 0.0])])
    items = items_from_margins(frame.astype({"margin": np.float32}))
    assert items["margin"].item() == (1.0 + 2.0**-24) / 3


def test_no_margins_are_no_items():
    assert len(items_from_margins(margin_frame([]))) == 0


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="missing: alpha, margin"):
        items_from_margins(pd.DataFrame(columns=["pair_id", "category", "seed"]))


def test_a_repeated_image_is_refused():
    rows = [("p", "c", 0.5, 0, 0.1), ("p", "c", 0.5, 1, 0.1), ("p", "c", 0.5, 1, 0.2)]
    with pytest.raises(ValueError, match=r"another of pair p, alpha 0.5, seed 1, margin 0.2"):
        items_from_margins(margin_frame(rows))


def test_a_margin_that_is_not_finite_is_refused():
    rows = [("p", "c", 0.5, 0, 0.1), ("p", "c", 0.5, 1, math.nan)]
    with pytest.raises(ValueError, match=r"got pair p, alpha 0.5, seed 1, margin nan"):
        items_from_margins(margin_frame(rows))


@settings(quick, max_examples=25)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=12), seeds)
def test_items_are_invariant_to_the_order_of_rows_and_seeds(values, seed):
    assume(len(set(values)) > 1)
    rows = [("p", "c", alpha, s, v) for alpha in (0.5, 1.0) for s, v in enumerate(values)]
    items = items_from_margins(margin_frame(rows))
    reordered = margin_frame([rows[i] for i in shuffled(range(len(rows)), seed)])
    pd.testing.assert_frame_equal(items_from_margins(reordered), items, check_exact=True)
    relabelled = margin_frame(rows).assign(
        seed=[*shuffled(range(len(values)), seed), *shuffled(range(len(values)), seed + 1)]
    )
    pd.testing.assert_frame_equal(items_from_margins(relabelled), items, check_exact=True)
