"""Sequential looks: levels, order, decisions, comparisons, futility, and what changes none."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from analogy.core.records import Outcome, Verdict
from analogy.statistics.bootstrap import bootstrap_ci, bootstrap_test
from analogy.statistics.estimates import estimate
from analogy.statistics.items import items_from_margins
from analogy.statistics.sequential import (
    TOTAL,
    Decision,
    Design,
    decide,
    decide_change,
    items_at,
    order,
    order_digest,
    predictive,
    unsteered_look,
)
from analogy.statistics.tests import t_test
from analogy.statistics.variances import variances

S, F, OPEN = Verdict.SUCCESS, Verdict.FAILURE, Verdict.INCONCLUSIVE
R = Design.of(50, 3)

few = partial(settings, deadline=None, derandomize=True, database=None)


def cell(effect, seed=0, pairs=50, seeds=3, icc=0.8):
    """Normal margins of variance 1."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((pairs, seeds))
    return effect + math.sqrt(icc) * rng.standard_normal((pairs, 1)) + math.sqrt(1 - icc) * own


def shape(design):
    return [(look.pairs, look.seeds, round(1e4 * look.level, 6)) for look in design.looks]


# The design


def test_the_design_of_a_cell_of_the_suite():
    assert shape(R) == [(16, 1, 3), (30, 1, 7), (50, 1, 10), (50, 3, 230)]
    assert [look.is_last for look in R.looks] == [False, False, False, True]
    assert [look.images for look in R.looks] == [16, 30, 50, 150]
    critical = [scipy.stats.t.isf(look.level, look.pairs - 1) for look in R.looks]
    assert critical == pytest.approx([4.3257, 3.5324, 3.2651, 2.0474], abs=5e-5)
    assert R.looks[0].n_resamples == 33_334
    assert R.looks[0].confidence == pytest.approx(0.9994, abs=1e-12)


@pytest.mark.parametrize(
    ("pairs", "seeds", "expected"),
    [
        (20, 3, [(16, 1, 7), (20, 1, 13), (20, 3, 230)]),
        (
            200,
            3,
            [(16, 1, 1), (30, 1, 3), (60, 1, 4), (120, 1, 5), (200, 1, 7), (200, 3, 230)],
        ),
        (12, 3, [(12, 1, 20), (12, 3, 230)]),
        (50, 1, [(16, 1, 7), (30, 1, 13), (50, 1, 230)]),
        (12, 1, [(12, 1, 250)]),
        (5, 3, [(5, 3, 250)]),
        (1, 1, [(1, 1, 250)]),
    ],
)
def test_designs_of_other_sizes(pairs, seeds, expected):
    assert shape(Design.of(pairs, seeds)) == expected


@given(
    pairs=st.integers(1, 6_000),
    seeds=st.integers(1, 5),
    cells=st.integers(1, 500),
    comparisons=st.integers(1, 60),
    reserve=st.sampled_from([0.0, 0.005]),
)
@few(max_examples=60)
def test_the_levels_of_a_design_sum_to_what_was_promised(pairs, seeds, cells, comparisons, reserve):
    design = Design.of(pairs, seeds, cells=cells, comparisons=comparisons, reserve=reserve)
    levels = [look.level for look in design.looks]
    spent = (sum(levels) + design.reserve) * comparisons
    assert spent == pytest.approx(TOTAL, abs=1e-12)
    assert min(levels) > 0
    if comparisons == 1:
        assert sum(levels[:-1]) <= min(0.002, 0.05 / cells) + 1e-12
    # Each look has all images of the one before, and only the last all of them.
    images = [(look.pairs, look.seeds) for look in design.looks]
    assert images == sorted(images)
    assert len(set(images)) == len(images)
    assert images[-1] == (pairs, seeds)
    assert [look.is_last for look in design.looks] == [False] * (len(images) - 1) + [True]
    assert all(look.n_resamples * look.level >= 10 - 1e-6 for look in design.looks)


def test_a_comparisons_looks_have_a_tenth_each_of_a_share():
    design = Design.of(50, 3, comparisons=25)
    assert [25 * look.level for look in design.looks] == pytest.approx([0.0025] * 3 + [0.0175])


def test_a_reserve_comes_off_the_last_look_and_is_the_extensions():
    design = Design.of(50, 3, reserve=0.005)
    assert shape(design) == [(16, 1, 3), (30, 1, 7), (50, 1, 10), (50, 3, 180)]
    more = design.extended(80)
    assert shape(more) == [*shape(design), (80, 3, 50)]
    assert sum(look.level for look in more.looks) == pytest.approx(TOTAL, abs=1e-12)
    assert [look.is_last for look in more.looks] == [False, False, False, True, True]
    with pytest.raises(ValueError, match="reserve"):  # and no second one
        more.extended(100)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Design.of(0, 3), "n_pairs"),
        (lambda: Design.of(50, 0), "n_seeds"),
        (lambda: Design.of(50, 3, cells=0), "cells"),
        (lambda: Design.of(50, 3, comparisons=0), "comparisons"),
        (lambda: Design.of(50, 3, reserve=0.023), "reserve"),
        (lambda: Design.of(50, 3, reserve=-0.001), "reserve"),
        (lambda: R.extended(80), "reserve: expected one that was set before the first look"),
        (lambda: Design.of(50, 3, reserve=0.005).extended(50), "n_pairs"),
        (lambda: decide(np.zeros((49, 3)), R), r"\(50, 3\)"),
        (lambda: decide(np.full((50, 3), np.inf), R), "infinity"),
        (lambda: decide(np.zeros((50, 3)), R, until=4), "until"),
        (lambda: decide(np.zeros((50, 3)), R, futility=1.0), "futility"),
        (lambda: decide(np.zeros((50, 3)), R, icc=1.1), "icc"),
        (lambda: decide_change(np.zeros((50, 3)), -1, R), "tolerance"),
        (lambda: decide_change(np.zeros((3, 50)), 0.1, R), r"\(50, 3\)"),
    ],
)
def test_bad_input_is_refused_by_name(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# The order


WORDS = st.text("abé\0 ", max_size=3)
TEXTS = st.lists(st.tuples(WORDS, WORDS), max_size=8)


@given(texts=TEXTS, seed=st.integers(0, 3), data=st.data())
@few(max_examples=40)
def test_the_order_does_not_depend_on_the_rows(texts, seed, data):
    shuffled = data.draw(st.permutations(texts))
    in_order = [texts[i] for i in order(texts, seed)]
    assert sorted(order(texts, seed)) == list(range(len(texts)))
    assert [shuffled[i] for i in order(shuffled, seed)] == in_order
    assert order_digest(shuffled, seed) == order_digest(texts, seed)


def test_the_order_is_that_of_the_digests():
    texts = [(f"a drawing of {i}", f"a drawing of {i + 1}") for i in range(40)]
    digests = [hashlib.sha256(f"7\0{a}\0{b}".encode()).hexdigest() for a, b in texts]
    assert order(texts, 7) == np.argsort(digests).tolist()
    assert order(texts, 8) != order(texts, 7)
    assert order_digest(texts, 8) != order_digest(texts, 7)
    assert order_digest(texts[1:], 7) != order_digest(texts, 7)


def test_pairs_of_equal_prompts_stay_as_they_came():
    assert [i for i in order([("a", "b"), ("c", "d"), ("a", "b")], 0) if i != 1] == [0, 2]


# Decisions


@pytest.mark.parametrize(("effect", "look"), [(2.5, 0), (1.0, 1), (0.6, 2), (0.4, 3)])
def test_a_look_stops_with_the_larger_p_at_its_level(effect, look):
    margins = cell(effect, seed=1)
    found = decide(margins, R)
    assert (found.look, found.verdict) == (look, S)
    at = R.looks[look]
    items = margins[: at.pairs, : at.seeds].mean(axis=1)
    by_t = scipy.stats.ttest_1samp(items, 0, alternative="greater").pvalue
    by_bootstrap = bootstrap_test(items, n_resamples=at.n_resamples)
    assert found.p_up == pytest.approx(max(by_t, by_bootstrap), abs=1e-12)
    spent = sum(one.level for one in R.looks[:look])
    assert found.p_seq == pytest.approx(spent + found.p_up, abs=1e-12)
    assert found.mean == pytest.approx(items.mean())
    # The look's own interval, and not the one that does not allow for looks.
    own = bootstrap_ci(items, confidence=1 - 2 * at.level, n_resamples=at.n_resamples)
    assert (found.ci_low, found.ci_high) == pytest.approx(own)
    naive = bootstrap_ci(items)
    assert found.ci_low < naive.low
    assert found.ci_high > naive.high
    assert found.is_early is (look < 3)
    if found.is_early:
        assert found.p_seq <= 0.002 < 0.05 / 24
    for earlier in R.looks[:look]:  # no look before would have stopped
        before = margins[: earlier.pairs, : earlier.seeds].mean(axis=1)
        by_t = t_test(before)
        assert max(by_t, bootstrap_test(before, n_resamples=earlier.n_resamples)) > earlier.level


def test_students_p_alone_does_not_stop():
    """A long tail downwards: a sample without it has too small a spread for Student."""
    rng = np.random.default_rng(0)
    look, found = R.looks[0], 0
    samples = 1 - rng.standard_exponential((30_000, 16))
    p = scipy.stats.ttest_1samp(samples, 0.0, axis=1, alternative="greater").pvalue
    for sample in samples[p <= look.level][:12]:
        margins = np.full((50, 3), np.nan)
        margins[:16, 0] = sample
        by_bootstrap = bootstrap_test(sample, n_resamples=look.n_resamples)
        stops = not decide(margins, R).is_open
        assert stops is (by_bootstrap <= look.level)
        found += not stops
    assert found > 0


@given(effect=st.floats(-1.5, 1.5), seed=st.integers(0, 10**6))
@few(max_examples=12)
def test_a_change_of_sign_exchanges_success_and_failure(effect, seed):
    margins = cell(effect, seed)
    one, other = decide(margins, R), decide(-margins, R)
    assert one.look == other.look
    assert one.mean == pytest.approx(-other.mean)
    assert (one.p_up, one.p_down) == pytest.approx((other.p_down, other.p_up), abs=1e-12)
    if not one.is_early:  # its interval's ends are of other resamples than its mirror's
        width = one.ci_high - one.ci_low
        if min(abs(one.ci_low), abs(one.ci_high)) < 0.05 * width:
            return
    assert {S: F, F: S, OPEN: OPEN}[one.verdict] is other.verdict


@given(effect=st.floats(-1.5, 1.5), seed=st.integers(0, 10**6), data=st.data())
@few(max_examples=10)
def test_images_beyond_the_stop_change_nothing(effect, seed, data):
    margins = cell(effect, seed)
    found = decide(margins, R)
    look = R.looks[found.look]
    cut = margins.copy()
    cut[look.pairs :] = np.nan
    cut[:, look.seeds :] = np.nan
    assert decide(cut, R) == found
    if found.look < 3:
        cut[-1, 1:] = 99.0
        assert decide(cut, R) == found
    # One image less, and the look cannot be taken.
    pair = data.draw(st.integers(0, look.pairs - 1))
    cut[pair, look.seeds - 1] = np.nan
    open_ = decide(cut, R)
    assert open_.is_open
    assert open_.look <= found.look
    assert math.isnan(open_.p_seq)
    needed = R.looks[open_.look]
    assert pair < needed.pairs
    assert (open_.pairs, open_.seeds) == (needed.pairs, needed.seeds)


def test_an_empty_cell_needs_its_first_look():
    found = decide(np.full((50, 3), np.nan), R)
    assert (found.look, found.verdict, found.pairs, found.seeds) == (0, None, 16, 1)


@pytest.mark.parametrize(("value", "verdict"), [(0.1, S), (-0.1, F)])
def test_a_cell_without_spread_stops_at_the_first_look(value, verdict):
    found = decide(np.full((50, 3), value), R)
    assert (found.look, found.verdict) == (0, verdict)
    assert (found.ci_low, found.ci_high) == (value, value)


def test_a_cell_of_zeros_is_never_decided():
    found = decide(np.zeros((50, 3)), R)
    assert (found.look, found.verdict, found.p_seq) == (3, OPEN, pytest.approx(0.502))


@pytest.mark.parametrize("effect", [-0.5, -0.3, 0.0, 0.25, 0.3, 0.35, 0.6])
def test_one_look_is_the_suites_own_verdict(effect):
    margins = cell(effect, pairs=12, seeds=1)
    found, fixed = decide(margins, Design.of(12, 1)), estimate(margins[:, 0])
    assert found.verdict is fixed.verdict
    assert (found.ci_low, found.ci_high) == (fixed.ci_low, fixed.ci_high)
    assert found.p_up == max(fixed.p, fixed.p_bootstrap)
    assert found.mean == fixed.mean
    assert not found.is_early


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_few_pairs_decide_nothing(pairs):
    found = decide(np.full((pairs, 3), 0.3), Design.of(pairs, 3))
    assert (found.look, found.verdict) == (0, Verdict.TOO_FEW)


def test_an_extension_looks_on_only_where_the_last_look_did_not_decide():
    design = Design.of(50, 3, reserve=0.005).extended(80)
    open_ = cell(0.0, seed=12, pairs=80)
    open_ += 0.28 - open_[:50].mean()
    before = decide(open_[:50], Design.of(50, 3, reserve=0.005))
    assert before.verdict is OPEN
    after = decide(open_, design)
    assert (after.look, after.pairs, after.is_early) == (4, 80, False)
    assert after.p_seq == pytest.approx(0.02 + after.p_up)
    decided = open_ + 0.1
    decided[50:] = np.nan
    found = decide(decided, design)
    assert (found.look, found.verdict) == (3, S)
    assert found == decide(decided[:50], Design.of(50, 3, reserve=0.005))


def test_a_cell_may_stop_for_another_reason_and_then_claims_nothing():
    margins = cell(0.5, seed=1)
    found = decide(margins, R, until=0)
    assert (found.look, found.verdict, found.p_seq, found.is_early) == (0, OPEN, 1.0, True)
    assert found.confidence == R.looks[0].confidence
    assert decide(margins, R, until=3) == decide(margins, R)
    assert decide(cell(2.5, seed=1), R, until=2) == decide(cell(2.5, seed=1), R)


def test_a_failure_has_no_p_of_a_success():
    assert decide(cell(-2), R).p_seq == 1.0
    assert decide(cell(-0.5), R).p_seq == 1.0


def test_items_are_those_of_the_whole_suite():
    margins = cell(0.3).astype(np.float32).astype(np.float64)  # as a judge gives them
    frame = pd.DataFrame(
        [
            {
                "pair_id": f"{i:02}",
                "category": "c",
                "alpha": 1.0,
                "seed": k,
                "margin": margins[i, k],
            }
            for k in (2, 0, 1)
            for i in range(50)
        ]
    )
    assert items_at(margins, R.looks[-1]).tolist() == items_from_margins(frame)["margin"].tolist()
    assert items_at(margins, R.looks[0]).tolist() == margins[:16, 0].tolist()


# Futility


@pytest.mark.parametrize(("mean", "icc"), [(0.0, 1.0), (0.3, 1.0), (-0.5, 1.0), (0.2, 0.5)])
def test_predictive_chances_are_those_of_simulated_rests(mean, icc):
    """The rest drawn pair by pair from the posterior of the mean; 100,000 times."""
    rng = np.random.default_rng(3)
    n, full = 16, round(50 / (icc + (1 - icc) / 3))
    x = rng.standard_normal(n)
    x = mean + (x - x.mean()) / x.std(ddof=1)
    truth = mean + rng.standard_t(n - 1, 100_000) / math.sqrt(n)
    # A mean of m normal values has the spread 1/sqrt(m); scaled as Student's predictive is.
    spread = np.sqrt((n - 1) / rng.chisquare(n - 1, 100_000))
    centre = mean + (truth - mean) * 0 + spread * rng.standard_normal(100_000) / math.sqrt(n)
    rest = centre + spread * rng.standard_normal(100_000) / math.sqrt(full - n)
    z = math.sqrt(full) * (n * mean + (full - n) * rest) / full
    critical = scipy.stats.t.isf(0.023, 50 / (icc + (1 - icc) / 3) - 1)
    expected = (z >= critical).mean(), (z <= -critical).mean()
    assert predictive(x, R, icc=icc) == pytest.approx(expected, abs=0.01)


def test_futility_stops_what_is_improbable_and_nothing_else():
    rng = np.random.default_rng(0)
    margins = rng.standard_normal((50, 1)) * np.ones((1, 3))
    margins -= margins[:30].mean() - 0.01
    plain = decide(margins, R)
    assert (plain.verdict, plain.is_futile) == (OPEN, False)
    found = decide(margins, R, futility=0.5, icc=0.85)
    assert (found.verdict, found.is_futile, found.p_seq) == (OPEN, True, 1.0)
    assert found.look < plain.look
    assert sum(predictive(items_at(margins, R.looks[found.look]), R, icc=0.85)) < 0.5
    strong = cell(2.5)
    assert decide(strong, R, futility=0.5) == decide(strong, R)


def test_predictive_chances_of_values_without_spread():
    assert [predictive(np.full(16, v), R, icc=0.5) for v in (1, -1, 0)] == [(1, 0), (0, 1), (0, 0)]
    assert predictive(cell(1.0)[:, 0], R, icc=1.0) == (1.0, 0.0)  # nothing is left to come


# Unsteered images


def by_steps(margin, gain):
    """The last look with unsteered images, taken one look after the other."""
    last = 0
    for look in range(4):
        takes = [m >= look for m in margin]
        if any(t and g >= look for t, g in zip(takes, gain, strict=True)):
            last = look
    return last


@given(looks=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4))
@few(max_examples=50)
def test_unsteered_images_follow_the_open_gains_of_open_cells(looks):
    at = [
        Decision(i, None, look.pairs, look.seeds, look.confidence) for i, look in enumerate(R.looks)
    ]
    margin, gain = zip(*looks, strict=True)
    assert unsteered_look((at[m], at[g]) for m, g in looks) == by_steps(margin, gain)


# Changes


COMPARED = Design.of(50, 3, comparisons=2)  # more of them need more resamples, and time


@pytest.mark.parametrize(
    ("mean", "sd", "outcome", "look"),
    [
        (0.0, 0.0, Outcome.EQUIVALENT, 0),  # the same images
        (0.0, 1e-9, Outcome.EQUIVALENT, 0),
        (0.0, 0.002, Outcome.EQUIVALENT, 0),
        (-0.1, 0.04, Outcome.REGRESSED, 0),
        (-0.05, 0.04, Outcome.REGRESSED, None),
        (0.1, 0.04, Outcome.IMPROVED, 0),
        (0.0, 0.04, Outcome.INCONCLUSIVE, 3),
        (-0.005, 0.002, Outcome.INCONCLUSIVE, 3),
    ],
)
def test_changes(mean, sd, outcome, look):
    differences = cell(0.0, seed=5) * sd
    differences += mean - differences.mean()
    found = decide_change(differences, 0.005, COMPARED)
    assert found.outcome is outcome
    assert look in (None, found.look)


def test_equivalence_needs_both_sides_by_the_larger_p():
    """At the first look, against tests written out."""
    look, agreed = COMPARED.looks[0], set()
    for seed in range(20):
        x = 0.0052 * np.random.default_rng(seed).standard_normal(16)
        margins = np.full((50, 3), np.nan)
        margins[:16, 0] = x
        p = [
            max(
                scipy.stats.ttest_1samp(side, -0.005, alternative="greater").pvalue,
                bootstrap_test(side + 0.005 + 1e-12, n_resamples=look.n_resamples),
            )
            for side in (x, -x)
            if scipy.stats.ttest_1samp(side, -0.005, alternative="greater").pvalue <= look.level
        ]
        expected = len(p) == 2 and max(p) <= look.level
        found = decide_change(margins, 0.005, COMPARED).outcome
        assert found is (Outcome.EQUIVALENT if expected else None)
        agreed.add(expected)
    assert agreed == {True, False}


def test_a_change_is_open_while_images_of_a_look_are_missing():
    differences = np.full((50, 3), np.nan)
    differences[:15, 0] = 0.0
    found = decide_change(differences, 0.005, COMPARED)
    assert found.is_open
    assert found.look == 0
    few_pairs = decide_change(np.zeros((5, 3)), 0.005, Design.of(5, 3))
    assert few_pairs.outcome is Outcome.TOO_FEW


# Variances


@pytest.mark.parametrize("icc", [0.0, 0.3, 0.8])
def test_variances_are_those_of_the_analysis_of_variance(icc):
    margins = cell(0.2, seed=9, icc=icc)
    ratio = scipy.stats.f_oneway(*margins).statistic
    found = variances(margins)
    assert found.icc == pytest.approx(max(0, (ratio - 1) / (ratio + 2)))
    assert found.pairs == 50
    missing = np.vstack([margins, [[1.0, np.nan, 2.0]]])
    assert variances(missing) == found


def test_one_seed_has_no_variance_within():
    assert math.isnan(variances(cell(0.2, seeds=1)).icc)
    assert math.isnan(variances(np.full((50, 3), np.nan)).icc)
    assert math.isnan(variances(np.ones((50, 3))).icc)


# Mutations


def test_levels_that_are_not_shared_would_raise_the_error():
    """The same cells at 0.025 a look: the bound of the design is what keeps them apart."""
    naive = Design(tuple(replace(look, level=TOTAL) for look in R.looks))
    assert sum(look.level for look in naive.looks) == pytest.approx(4 * TOTAL)
    rng = np.random.default_rng(4)
    tables = rng.standard_normal((3_000, 50, 1)) + 0.5 * rng.standard_normal((3_000, 50, 3))

    def wrong(design):
        stopped = np.zeros(len(tables), dtype=bool)
        for look in design.looks:
            items = tables[:, : look.pairs, : look.seeds].mean(axis=2)
            p = scipy.stats.ttest_1samp(items, 0, axis=1, alternative="greater").pvalue
            stopped |= p <= look.level
        return stopped.mean()

    assert wrong(R) < 0.032
    assert wrong(naive) > 0.045
