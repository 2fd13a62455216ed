"""The gate: every rule at its border, and what is comparable."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from compared import BEFORE, cell, of, of_header
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ALPHAS, noise, results, small

from analogy.core.records import Verdict
from analogy.results import comparison
from analogy.results.comparison import (
    NotComparableError,
    Outcome,
    compare,
    compare_cell,
    compare_items,
    compare_overall,
    n_comparisons,
    simultaneous_confidence,
)
from analogy.results.differences import (
    SAMPLING,
    SettingDifference,
    measurement_differences,
    subject_differences,
)
from analogy.statistics.values import Interval


def changed(old, new, **arguments):
    """The change between two arrays of margins."""
    return compare_items(cell(old), cell(new), **{"comparisons": 25, **arguments})


# --- outcomes: each rule

JITTER = noise(50, 2, sd=0.01)  # of the mean: about 0.0014


@pytest.mark.parametrize(
    ("shift", "outcome"),
    [
        (-0.05, Outcome.REGRESSED),
        (-0.004, Outcome.INCONCLUSIVE),
        (0.0, Outcome.INCONCLUSIVE),
        (0.05, Outcome.IMPROVED),
    ],
)
def test_outcomes_of_planted_shifts(shift, outcome):
    assert changed(BEFORE, BEFORE + JITTER + shift, tolerance=0.002).outcome is outcome


def test_equivalent_is_an_interval_within_the_tolerance():
    jitter = JITTER - JITTER.mean()
    assert changed(BEFORE, BEFORE + jitter, tolerance=0.02).outcome is Outcome.EQUIVALENT
    assert changed(BEFORE, BEFORE + jitter, tolerance=0.002).outcome is Outcome.INCONCLUSIVE


def test_a_gain_within_the_tolerance_is_still_one():
    change = changed(BEFORE, BEFORE + 0.001, tolerance=0.005)
    assert change.outcome is Outcome.IMPROVED
    assert change.ci_high < 0.005


def test_a_loss_within_the_tolerance_is_equivalent():
    change = changed(BEFORE, BEFORE - 0.001, tolerance=0.005)
    assert change.outcome is Outcome.EQUIVALENT
    assert change.ci_high < 0


def at_interval(monkeypatch, low, high, **verdicts):
    """The outcome where the difference has this interval, at a tolerance of 0.25."""
    monkeypatch.setattr(comparison, "bootstrap_ci", lambda *_, **__: Interval(low, high))
    old = cell(BEFORE, verdicts.get("old", Verdict.SUCCESS))
    new = cell(BEFORE, verdicts.get("new", Verdict.SUCCESS))
    return compare_items(old, new, tolerance=0.25, comparisons=25).outcome


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.5, -0.251, Outcome.REGRESSED),
        (-0.5, -0.25, Outcome.INCONCLUSIVE),  # an end at the limit is not below it
        (-0.25, -0.25, Outcome.EQUIVALENT),
        (-0.25, 0.25, Outcome.EQUIVALENT),
        (-0.251, 0.25, Outcome.INCONCLUSIVE),
        (-0.25, 0.251, Outcome.INCONCLUSIVE),
        (-0.2, -0.1, Outcome.EQUIVALENT),
        (0.0, 0.1, Outcome.EQUIVALENT),  # an end at 0 is not above it
        (0.0, 0.3, Outcome.INCONCLUSIVE),
        (0.001, 0.1, Outcome.IMPROVED),
        (0.001, 0.3, Outcome.IMPROVED),
        (0.0, 0.0, Outcome.EQUIVALENT),
        (1e-17, 2e-17, Outcome.EQUIVALENT),  # rounding is no gain,
        (-0.25 - 1e-16, -0.25 - 1e-16, Outcome.EQUIVALENT),  # and no loss
    ],
)
def test_the_borders(monkeypatch, low, high, outcome):
    assert at_interval(monkeypatch, low, high) is outcome


DECISIVE = (Verdict.SUCCESS, Verdict.FAILURE, Verdict.INCONCLUSIVE)


@pytest.mark.parametrize("old", DECISIVE)
@pytest.mark.parametrize("new", DECISIVE)
def test_only_a_fall_from_success_regresses_by_itself(monkeypatch, old, new):
    fell = old is Verdict.SUCCESS and new is not Verdict.SUCCESS
    for low, high, otherwise in [
        (-0.3, 0.3, Outcome.INCONCLUSIVE),
        (-0.1, 0.1, Outcome.EQUIVALENT),
        (0.1, 0.3, Outcome.IMPROVED),
    ]:
        found = at_interval(monkeypatch, low, high, old=old, new=new)
        assert found is (Outcome.REGRESSED if fell else otherwise)
    assert at_interval(monkeypatch, -0.5, -0.4, old=old, new=new) is Outcome.REGRESSED


@pytest.mark.parametrize("side", ["old", "new"])
def test_what_the_judge_does_not_see_is_inconclusive(monkeypatch, side):
    found = at_interval(monkeypatch, -0.5, -0.4, **{side: Verdict.BLIND})
    assert found is Outcome.INCONCLUSIVE


def test_fewer_than_six_pairs_decide_nothing():
    for n, outcome in [(1, Outcome.TOO_FEW), (5, Outcome.TOO_FEW), (6, Outcome.REGRESSED)]:
        change = changed(BEFORE[:n], BEFORE[:n] - 0.5)
        assert change.outcome is outcome
        assert change.n == n
        assert change.difference == pytest.approx(-0.5)
    assert math.isnan(changed(BEFORE[:1], BEFORE[:1]).ci_low)


def test_missing_images_are_no_pass_and_no_failure():
    gone = BEFORE - 0.5
    gone[7] = math.nan
    for old, new in [(BEFORE, gone), (gone, BEFORE), (gone, gone)]:
        change = changed(old, new)
        assert change.outcome is Outcome.INCOMPLETE
        assert change.n == 50
        assert math.isnan(change.difference)
        assert not change.is_decided
    assert changed(BEFORE[:5], gone[3:8]).outcome is Outcome.TOO_FEW


def test_other_pairs_are_missing_pairs():
    other = cell(BEFORE - 0.5)
    other.items["another"] = other.items.pop("007")
    assert compare_items(cell(BEFORE), other, comparisons=25).outcome is Outcome.INCOMPLETE


# --- figures


def test_the_figures_are_those_of_the_differences():
    old, new = 0.1 + noise(50, 3), 0.08 + noise(50, 4)
    change = changed(old, new)
    assert change.old == pytest.approx(np.mean(old))
    assert change.new == pytest.approx(np.mean(new))
    assert change.difference == pytest.approx(np.mean(new - old))
    assert change.ci_low < change.difference < change.ci_high
    assert change.confidence == pytest.approx(0.998)
    paired = scipy.stats.ttest_rel(new, old).confidence_interval(0.998)
    width = change.ci_high - change.ci_low
    assert width == pytest.approx(paired.high - paired.low, rel=0.15)


@pytest.mark.parametrize("shift", [-0.03, -0.02, 0.02, 0.03])
def test_a_decided_sign_is_the_paired_t_test_s(shift):
    new = BEFORE + noise(50, 5) + shift
    change = changed(BEFORE, new, tolerance=0)
    p = scipy.stats.ttest_rel(new, BEFORE).pvalue
    assert (change.outcome is Outcome.IMPROVED) == (p < 0.002 and shift > 0)
    assert (change.outcome is Outcome.REGRESSED) == (p < 0.002 and shift < 0)


def test_pairing_is_by_id_and_sees_what_two_means_do_not():
    old = noise(50, 6, sd=0.3) + 0.4
    new = old - 0.02 + noise(50, 7, sd=0.005)
    assert scipy.stats.ttest_ind(new, old).pvalue > 0.5
    assert changed(old, new).outcome is Outcome.REGRESSED


def test_more_comparisons_need_more_evidence():
    assert simultaneous_confidence(1) == 0.95
    assert simultaneous_confidence(25) == pytest.approx(0.998)
    jitter = noise(50, 8)
    new = BEFORE + jitter - jitter.mean() - 0.023
    alone, among = changed(BEFORE, new, comparisons=1), changed(BEFORE, new, comparisons=25)
    assert among.ci_low < alone.ci_low < alone.ci_high < among.ci_high
    assert (alone.outcome, among.outcome) == (Outcome.REGRESSED, Outcome.INCONCLUSIVE)
    with pytest.raises(ValueError, match="comparisons: expected 1 or more, got 0"):
        changed(BEFORE, new, comparisons=0)


def test_an_interval_of_many_comparisons_has_resamples_beyond_its_ends(monkeypatch):
    asked = []

    def spy(values, *, confidence, n_resamples):
        asked.append(n_resamples * (1 - confidence) / 2)
        return Interval(0, 0)

    monkeypatch.setattr(comparison, "bootstrap_ci", spy)
    for comparisons in (1, 25, 1000):
        changed(BEFORE, BEFORE, comparisons=comparisons)
    assert asked == pytest.approx([250, 10, 10], rel=1e-3)


@pytest.mark.parametrize("tolerance", [-0.001, math.nan, math.inf])
def test_a_tolerance_is_finite_and_not_negative(tolerance):
    with pytest.raises(ValueError, match="tolerance: expected a finite number >= 0, got"):
        changed(BEFORE, BEFORE, tolerance=tolerance)


def test_the_message_says_all_of_it():
    old, new = cell(BEFORE, alpha=0.8), cell(BEFORE - 0.3, alpha=0.8)
    change = compare_items(old, new, tolerance=0.01, comparisons=25)
    figures = f"{BEFORE.mean():+.4f} -> {BEFORE.mean() - 0.3:+.4f}, difference -0.3000"
    assert change.message() == (
        f"color at alpha 0.8: regressed: margin {figures}, 99.8% CI [-0.3000, -0.3000], "
        "limit -0.01, n 50; the verdict fell from success to failure"
    )
    still = compare_items(cell(BEFORE), cell(BEFORE - 0.05), comparisons=25).message()
    assert "regressed" in still
    assert "fell" not in still
    few = changed(BEFORE[:5], BEFORE[:5]).message()
    assert few == "color at alpha 0.5: too_few: n 5, and 6 pairs or more decide"
    gone = changed(BEFORE, np.full(50, math.nan)).message()
    assert gone == "color at alpha 0.5: incomplete: of 50 pairs, not all images are there"


def test_a_change_is_plain_in_json():
    gone = changed(BEFORE, np.full(50, math.nan)).to_dict()
    text = json.dumps(gone, allow_nan=False)
    assert json.loads(text)["difference"] is None
    assert gone["outcome"] == "incomplete"
    assert type(gone["outcome"]) is str
    assert changed(BEFORE, BEFORE - 0.05).to_dict()["outcome"] == "regressed"


margins = st.lists(st.floats(-2, 2), min_size=6, max_size=12)


@settings(deadline=None, max_examples=40)
@given(margins, st.randoms())
def test_swapping_old_and_new_negates(values, random):
    others = values.copy()
    random.shuffle(others)
    there = changed(values, others, n_resamples=500)
    back = changed(others, values, n_resamples=500)
    assert there.difference == -back.difference
    assert (there.old, there.new) == (back.new, back.old)
    if Outcome.IMPROVED is there.outcome:
        assert back.ci_high < 0


@settings(deadline=None, max_examples=40)
@given(margins, st.floats(0, 1))
def test_equal_items_are_equivalent(values, tolerance):
    change = changed(values, values, tolerance=tolerance)
    assert change.outcome is Outcome.EQUIVALENT
    assert (change.difference, change.ci_low, change.ci_high) == (0, 0, 0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=6, max_size=12), st.data())
def test_the_order_of_pairs_changes_nothing(values, data):
    old, new = (cell(side) for side in zip(*values, strict=True))
    order = data.draw(st.permutations(sorted(old.items)))
    other = replace(new, items={pair: new.items[pair] for pair in order})
    straight = compare_items(old, new, comparisons=25, n_resamples=500)
    assert compare_items(old, other, comparisons=25, n_resamples=500) == straight


# --- comparisons


def test_a_comparison_has_every_cell_and_the_whole():
    margins = small(50, shift=0.2)
    lower = {key: values - 0.1 * (key[0] == "size") for key, values in margins.items()}
    found = compare(of(results(margins)), of(results(lower)))
    assert [(one.category, one.alpha) for one in found.changes] == list(margins)
    assert {one.name for one in found.regressed} == {
        "size at alpha 0.5", "size at alpha 1", "overall",
    }  # fmt: skip
    assert found.overall.n == 100
    assert found.overall.difference == pytest.approx(-0.05)
    assert {one.confidence for one in found.all_changes} == {0.99}
    assert (found.categories, found.scope) == (("color", "size"), "all 2 categories")
    assert (found.old, found.new) == ("this run", "this run")
    assert found.incomplete == []
    assert found.is_decided


def test_the_overall_change_is_over_pairs_with_all_their_alphas():
    margins = small(20, alphas=ALPHAS)
    other = {key: values + noise(20, 9, i) for i, (key, values) in enumerate(margins.items())}
    overall = compare(of(results(margins)), of(results(other))).overall
    differences = np.concatenate(
        [
            np.mean([other[name, alpha] - margins[name, alpha] for alpha in ALPHAS], axis=0)
            for name in ("color", "size")
        ]
    )
    assert overall.n == len(differences) == 40
    assert overall.difference == pytest.approx(differences.mean())
    t = scipy.stats.ttest_1samp(differences, 0).confidence_interval(overall.confidence)
    assert overall.ci_high - overall.ci_low == pytest.approx(t.high - t.low, rel=0.2)
    assert (overall.old_verdict, overall.new_verdict) == ("success", "success")


def test_one_missing_image_leaves_the_other_cells_and_not_the_whole():
    margins = small()
    gone = {key: values.copy() for key, values in margins.items()}
    gone["color", 1.0][0] = math.nan
    found = compare(of(results(margins)), of(results(gone)))
    assert [one.name for one in found.incomplete] == ["color at alpha 1", "overall"]
    assert [one.outcome for one in found.changes] == [
        "equivalent", "incomplete", "equivalent", "equivalent",
    ]  # fmt: skip
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_too_few_pairs_everywhere_is_no_comparison():
    few = {key: values[:3] for key, values in small(categories=("color",)).items()}
    found = compare(of(results(few)), of(results(few)))
    assert {one.outcome for one in found.all_changes} == {Outcome.TOO_FEW}
    assert not found.is_decided


def test_few_pairs_in_each_cell_may_be_enough_together():
    few = {key: values[:3] for key, values in small().items()}
    found = compare(of(results(few)), of(results(few)))
    assert found.overall.outcome is Outcome.EQUIVALENT
    assert found.is_decided


def test_some_of_the_categories_are_compared_on_those():
    margins = small(50, shift=0.2)
    part = {key: values - 0.1 for key, values in margins.items() if key[0] == "size"}
    found = compare(of(results(margins)), of(results(part)))
    assert [one.category for one in found.changes] == ["size", "size"]
    assert found.scope == "1 of 2 categories (size)"
    assert found.overall.n == 50
    assert found.overall.old == pytest.approx(np.mean([margins["size", a] for a in (0.5, 1.0)]))
    assert (found.overall.old_verdict, found.overall.new_verdict) == (None, None)
    assert found.overall.outcome is Outcome.REGRESSED


def test_a_category_that_the_baseline_lacks_does_not_pass():
    part = {key: values for key, values in small().items() if key[0] == "size"}
    with pytest.raises(NotComparableError, match="pairs: the baseline has size, this run also col"):
        compare(of(results(part)), of(results(small())))


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"judge": "ViT-B-32"}, "judge: baseline clip-tiny@sha256:8b4b0ad3c8f0a561, this run ViT"),
        ({"size": 128}, "size: baseline 64, this run 128"),
        ({"seeds": [0]}, "seeds: baseline [0, 1, 2], this run [0]"),
        ({"limit": 10}, "limit: baseline none, this run 10"),
        ({"pairs": {"color": "digest of color", "size": "x"}}, "pairs: other ones in size"),
        ({"pairs": {"color": "x", "size": "x"}}, "pairs: other ones in color, size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_measurement_is_refused(setting, shown):
    old, new = of(results(small())), of(results(small(), **setting))
    [difference] = measurement_differences(old.header, new.header)
    assert str(difference).startswith(shown)
    with pytest.raises(NotComparableError) as caught:
        compare(old, new)
    assert caught.value.differences == [difference]
    assert str(difference) in str(caught.value)
    with pytest.raises(NotComparableError):
        compare(new, old)


def test_other_alphas_are_refused():
    old, new = of(results(small())), of(results(small(alphas=(0.5, 1.0, 2.0))))
    [difference] = measurement_differences(old.header, new.header)
    assert difference == SettingDifference("alphas", (0.5, 1.0), (0.5, 1.0, 2.0))
    assert str(difference) == "alphas: baseline [0.5, 1.0], this run [0.5, 1.0, 2.0]"
    with pytest.raises(NotComparableError):
        compare(old, new)


def test_all_differences_are_said_at_once():
    new = of(results(small(), seeds=[0], size=128))
    with pytest.raises(NotComparableError, match=re.escape("; seeds: ")) as caught:
        compare(of(results(small())), new)
    assert len(caught.value.differences) == 2


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"model": "SSD-1B@1"}, "model: baseline sdxl-tiny@sha256:4a73e691038acf97, this run SSD"),
        ({"method": "lerp"}, "method: baseline word, this run lerp"),
        ({"steps": 3}, "steps: baseline 8, this run 3"),
        ({"guidance": 1}, "guidance: baseline 4.0, this run 1.0"),
        ({"scheduler": "DDIM/1"}, "scheduler: baseline EulerDiscreteScheduler/85496828, this run "),
        ({"dtype": "bfloat16"}, "dtype: baseline float32, this run bfloat16"),
        ({"device": "cuda"}, "device: baseline cpu, this run cuda"),
        ({"suite": "0.2.0"}, "suite: baseline 0.1.0, this run 0.2.0"),
        ({"git_commit": "abc"}, "commit: baseline none, this run abc"),
        ({"packages": {"torch": "3", "numpy": "2.4.6"}}, "torch: baseline 2.15.0, this run 3"),
        ({"packages": {"torch": "2.15.0"}}, "numpy: baseline 2.4.6, this run none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_subject_is_compared_and_said(setting, shown):
    old, new = of(results(small())), of(results(small(), **setting))
    [difference] = subject_differences(old.header, new.header)
    assert str(difference).startswith(shown)
    found = compare(old, new)
    assert found.subject_differences == (difference,)
    assert {one.outcome for one in found.all_changes} == {Outcome.EQUIVALENT}
    assert measurement_differences(old.header, new.header) == []
    assert subject_differences(old.header, old.header) == []


def test_some_of_the_subject_may_be_asked_for():
    old = of_header(results(small()))
    new = of_header(results(small(), method="lerp", dtype="bfloat16", model="another"))
    assert len(subject_differences(old, new)) == 3
    [difference] = subject_differences(old, new, of=SAMPLING)
    assert difference == SettingDifference("method", "word", "lerp")
    assert len(subject_differences(old, new, of=("model", *SAMPLING))) == 2


def test_a_run_in_progress_is_compared_cell_by_cell():
    """As pytest does: by the header first, then a cell at a time, then the whole."""
    before, now = results(small()), results(lowered := small(shift=0.05), method="lerp")
    old, header = of(before), of_header({k: v for k, v in now.items() if k != "cells"})
    assert measurement_differences(old.header, header) == []
    assert n_comparisons(header) == len(lowered) + 1 == 5
    whole = compare(old, of(now))
    for figures, change in zip(of(now).analysis.cells.values(), whole.changes, strict=True):
        assert compare_cell(old, figures, comparisons=5) == change
    assert compare_overall(old, of(now)) == whole.overall


def test_throughput_is_a_ratio_between_equal_machines_only():
    old = of(results(small(), rates={"generate": 20.0, "score": None}))
    new = of(results(small(), rates={"generate": 30.0, "score": 400.0}))
    found = compare(old, new)
    assert (found.throughput, found.throughput_note) == ({"generate": 1.5}, "")
    machine = {"processor": "Xeon", "threads": 8, "device": "cpu"}
    other = compare(old, of(results(small(), machine=machine)))
    assert other.throughput == {}
    assert other.throughput_note == "not compared: another machine (threads)"
    untimed = of(results(small(), rates={"generate": None, "score": 400.0}))
    assert compare(old, untimed).throughput_note == "not compared: not timed on both sides"
