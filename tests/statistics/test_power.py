"""Effect sizes, detectable means and the pairs needed, against the noncentral t."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from samples import quick, samples, seeds, shuffled
from scipy.optimize import brentq

from analogy.statistics.power import MAX_PAIRS, effect_size, min_detectable, pairs_needed
from analogy.statistics.values import MIN_DECISIVE

# --- effect_size


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


# --- min_detectable, pairs_needed


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
