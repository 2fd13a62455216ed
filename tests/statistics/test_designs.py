"""Smaller designs: held to the noncentral t distribution and to simulated runs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from analogy.statistics.designs import Spread, designs


def sample(rng, mean, pairs, seeds, between=0.08, within=0.05):
    return mean + between * rng.normal(size=(pairs, 1)) + within * rng.normal(size=(pairs, seeds))


def test_a_spread_is_that_of_the_pairs_and_of_the_seeds():
    table = sample(np.random.default_rng(1), 0.1, 4000, 3)
    spread = Spread.of(table)
    assert spread.mean == pytest.approx(table.mean())
    assert spread.between == pytest.approx(0.08**2, rel=0.1)
    assert spread.within == pytest.approx(0.05**2, rel=0.1)
    assert spread.sd(3) == pytest.approx(table.mean(axis=1).std(ddof=1), rel=1e-3)
    assert spread.sd(1) == pytest.approx(np.sqrt(0.08**2 + 0.05**2), rel=0.05)


def test_too_few_pairs_have_no_spread():
    table = sample(np.random.default_rng(1), 0.1, 10, 3)
    assert Spread.of(table) is not None
    assert Spread.of(table[:9]) is None
    table[0, 0] = np.nan
    assert Spread.of(table) is None
    assert designs([], pairs=50, seeds=3) == ()


def test_what_a_design_detects_is_detected_in_four_of_five_runs():
    """By the noncentral t distribution, for every design."""
    for design in designs([Spread(0.03, 0.08**2, 0.05**2)], pairs=50, seeds=3):
        sd = np.sqrt(0.08**2 + 0.05**2 / design.seeds)
        shift = design.detectable / sd * np.sqrt(design.pairs)
        bar = scipy.stats.t.ppf(0.975, design.pairs - 1)
        assert scipy.stats.nct.sf(bar, design.pairs - 1, shift) == pytest.approx(0.8, abs=1e-5)


def test_the_smallest_design_decides_as_much_with_fewer_pairs():
    spreads = [Spread(mean, 0.08**2, 0.0) for mean in (0.2, -0.08, 0.05, 0.01)]
    first, *others = designs(spreads, pairs=50, seeds=3)
    assert (first.pairs, first.seeds, first.decided, first.of) == (50, 3, 3, 4)
    smallest = min((one for one in others if one.decided == 3), key=lambda one: one.pairs)
    # 0.05 with sd 0.08: by a power table of the one-sided t-test at 2.5%, 23 pairs.
    power = scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, 22), 22, 0.05 / 0.08 * np.sqrt(23))
    assert smallest.pairs == 23
    assert 0.8 <= power < 0.82
    assert [one.pairs for one in others if one.seeds == 3] == [25, 23, 12]
    assert {one.seeds for one in others} == {3, 1}
