"""Bootstrap intervals and tests against scipy and loops; degenerate data; symmetries."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st
from samples import DEGENERATE, N_RESAMPLES, margins, quick, samples, seeds, shuffled

from analogy.statistics import bootstrap
from analogy.statistics.bootstrap import (
    Method,
    bootstrap_ci,
    bootstrap_test,
    cluster_bootstrap_ci,
    resampled_together,
)
from analogy.statistics.tests import (
    t_test,
)

METHODS = get_args(Method)

few_values = st.lists(st.sampled_from([-0.5, 0.0, 0.1]), min_size=2, max_size=25)


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


# --- bootstrap_ci


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


# --- how resamples are drawn


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


# --- cluster_bootstrap_ci


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


# --- bootstrap_test


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
