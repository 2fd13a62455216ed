"""Adjusted p-values against the published example and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import quick, seeds
from statsmodels.stats.multitest import multipletests

from analogy.statistics.multiplicity import benjamini_hochberg, holm

# --- holm, benjamini_hochberg

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


@pytest.mark.parametrize(
    "p_values", [[0.03], [0.04, 0.01, 0.01, 0.5, 0.02], np.random.default_rng(0).random(24) / 20]
)
def test_holm_is_that_of_statsmodels_to_the_last_bit(p_values):
    assert holm(p_values).tolist() == multipletests(p_values, method="holm")[1].tolist()


@pytest.mark.parametrize("function", ADJUSTMENTS)
def test_a_p_that_does_not_exist_is_in_no_family(function):
    some = [0.01, 0.04, 0.5]
    with_gaps = function([math.nan, 0.01, 0.04, math.nan, 0.5])
    assert np.isnan(with_gaps[[0, 3]]).all()
    assert with_gaps[[1, 2, 4]].tolist() == function(some).tolist()
    assert function([0.03]).tolist() == [0.03]
    assert np.isnan(function([math.nan])).all()
    assert function([]).shape == (0,)
