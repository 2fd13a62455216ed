"""The gate: every rule at its border, what is comparable, and how often it is wrong."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ALPHAS, CATEGORIES, noise, results, small, verdict_of

from analogy.core.records import Cell, Verdict
from analogy.results import baseline, comparison
from analogy.results.baseline import (
    BaselineError,
    check_replaceable,
    default_path,
    known_not_to_succeed,
)
from analogy.results.comparison import (
    SAMPLING,
    NotComparableError,
    Outcome,
    Side,
    compare,
    compare_cell,
    compare_items,
    compare_overall,
    measurement_differences,
    n_comparisons,
    simultaneous_confidence,
    subject_differences,
)
from analogy.results.reading import from_json, header_from_json, read
from analogy.results.writing import to_json
from analogy.statistics.values import Interval

of, of_header = from_json, header_from_json


def write(data, path):
    baseline.write(from_json(data), path)


def cell(margins, verdict=None, *, category="color", alpha=0.5, n=None):
    """A cell of these margins, one per pair; NaN is a pair without images."""
    margins = np.asarray(margins, dtype=float)
    items = {f"{i:03}": float(m) for i, m in enumerate(margins) if np.isfinite(m)}
    if verdict is None:
        is_whole = len(items) == len(margins)
        verdict = Verdict(verdict_of(margins)) if is_whole else Verdict.INCOMPLETE
    return Side(Cell(category, alpha), verdict, n or len(margins), items)


def changed(old, new, **arguments):
    """The change between two arrays of margins."""
    return compare_items(cell(old), cell(new), **{"comparisons": 25, **arguments})


# --- outcomes: each rule


BEFORE = 0.2 + noise(50, 1)
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
    assert difference.startswith(shown)
    with pytest.raises(NotComparableError) as caught:
        compare(old, new)
    assert caught.value.differences == [difference]
    assert difference in str(caught.value)
    with pytest.raises(NotComparableError):
        compare(new, old)


def test_other_alphas_are_refused():
    old, new = of(results(small())), of(results(small(alphas=(0.5, 1.0, 2.0))))
    differences = ["alphas: baseline [0.5, 1.0], this run [0.5, 1.0, 2.0]"]
    assert measurement_differences(old.header, new.header) == differences
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
    assert difference.startswith(shown)
    found = compare(old, new)
    assert found.subject_differences == (difference,)
    assert {one.outcome for one in found.all_changes} == {Outcome.EQUIVALENT}
    assert measurement_differences(old.header, new.header) == []
    assert subject_differences(old.header, old.header) == []


def test_some_of_the_subject_may_be_asked_for():
    old = of_header(results(small()))
    new = of_header(results(small(), method="lerp", dtype="bfloat16", model="another"))
    assert len(subject_differences(old, new)) == 3
    assert subject_differences(old, new, of=SAMPLING) == ["method: baseline word, this run lerp"]
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


# --- what is known


def test_a_baseline_knows_what_did_not_succeed():
    margins = small(categories=("color", "size", "scene"))
    margins["color", 0.5] -= 0.3
    margins["size", 0.5] -= margins["size", 0.5].mean()
    margins["size", 1.0][0] = math.nan
    recorded = of(results(margins, verdicts={("scene", 0.5): "blind"}))
    assert known_not_to_succeed(recorded, Cell("color", 0.5)) is Verdict.FAILURE
    assert known_not_to_succeed(recorded, Cell("size", 0.5)) is Verdict.INCONCLUSIVE
    assert known_not_to_succeed(recorded, Cell("scene", 0.5)) is Verdict.BLIND
    assert known_not_to_succeed(recorded, Cell("color", 1.0)) is None
    assert known_not_to_succeed(recorded, Cell("size", 1.0)) is None  # incomplete: not known
    assert known_not_to_succeed(recorded, Cell("color", 0.75)) is None
    assert known_not_to_succeed(recorded, Cell("texture", 0.5)) is None
    few = of(results({("color", 0.5): BEFORE[:3]}))
    assert known_not_to_succeed(few, Cell("color", 0.5)) is Verdict.TOO_FEW


def test_the_overall_verdict_is_known_of_its_categories():
    below = of(results(small(shift=-0.1)))
    assert known_not_to_succeed(below, None) is Verdict.FAILURE
    assert known_not_to_succeed(below, None, ["size", "color"]) is Verdict.FAILURE
    assert known_not_to_succeed(below, None, ["size"]) is None
    assert known_not_to_succeed(of(results(small())), None) is None


def test_only_the_embedded_model_has_a_baseline_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(baseline, "shipped", lambda name: tmp_path / name)
    assert default_path("embedded") == tmp_path / "baselines" / "embedded.json"
    assert default_path("segmind/SSD-1B") is None


# --- writing


def test_a_baseline_is_a_results_file(tmp_path):
    data = results(small())
    write(data, tmp_path / "new" / "baseline.json")
    assert json.loads((tmp_path / "new" / "baseline.json").read_text()) == to_json(of(data))
    assert read(tmp_path / "new" / "baseline.json") == of(data)


def test_a_run_of_the_same_measurement_replaces_it(tmp_path):
    path = tmp_path / "baseline.json"
    write(results(small()), path)
    write(results(small(shift=0.2), method="lerp", model="another"), path)
    assert read(path).header.subject.method == "lerp"
    more = results(small(categories=("color", "size", "scene")))
    write(more, path)
    assert read(path).header.categories == ("color", "size", "scene")


@pytest.mark.parametrize(
    "setting",
    [
        {"judge": "x"}, {"size": 128}, {"seeds": [0]}, {"limit": 10},
        {"pairs": {"color": "digest of color", "size": "x"}},
    ],
    ids=lambda setting: next(iter(setting)),
)  # fmt: skip
def test_another_measurement_replaces_nothing(tmp_path, setting):
    path = tmp_path / "baseline.json"
    write(results(small()), path)
    before = path.read_bytes()
    with pytest.raises(BaselineError, match=r"another measurement \(.*: .*\); name another file"):
        write(results(small(), **setting), path)
    assert path.read_bytes() == before


def test_whether_a_run_may_replace_it_is_known_before_it_is_measured(tmp_path):
    path = tmp_path / "baseline.json"
    check_replaceable(path, of_header(results(small(), size=128)))
    write(results(small()), path)
    check_replaceable(path, of_header(results(small(), method="lerp")))
    with pytest.raises(BaselineError, match="another measurement"):
        check_replaceable(path, of_header(results(small(), size=128)))


def test_fewer_categories_replace_nothing(tmp_path):
    path = tmp_path / "baseline.json"
    write(results(small()), path)
    before = path.read_bytes()
    with pytest.raises(BaselineError, match=r"lacks \(color\); run all of them, name another"):
        write(results(small(categories=("size",))), path)
    with pytest.raises(BaselineError, match=r"alphas: .*; name another file"):
        write(results(small(alphas=(0.5,))), path)
    assert path.read_bytes() == before


def test_incomplete_cells_are_no_baseline(tmp_path):
    margins = small()
    margins["size", 0.5][3] = math.nan
    with pytest.raises(BaselineError, match=r"got 1 incomplete ones \(size at alpha 0\.5 the"):
        write(results(margins), tmp_path / "baseline.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ['{"mine": 1}', "notes", "", '{"schema_version": 1}'])
def test_what_is_no_results_file_is_not_replaced(tmp_path, content):
    path = tmp_path / "notes.json"
    path.write_text(content)
    with pytest.raises(BaselineError, match="expected a results file or none, to replace it"):
        write(results(small()), path)
    assert path.read_text() == content


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(
        BaselineError, match=r"expected a file that can be written, got .* a folder"
    ):
        write(results(small()), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(
        BaselineError, match=r"can be written, got .* \(Not a directory\); name another"
    ):
        write(results(small()), tmp_path / "file" / "baseline.json")


# --- how often the gate is wrong

# The mean margins of the embedded model's grid (README), category x alpha.
REAL_MEANS = np.array(
    [
        [-0.035, 0.168, 0.205],
        [-0.161, 0.150, 0.289],
        [0.008, 0.145, 0.211],
        [-0.019, 0.228, 0.242],
        [-0.090, 0.167, 0.256],
        [0.117, 0.277, 0.289],
        [-0.132, 0.221, 0.255],
        [-0.063, 0.076, 0.153],
    ]
)
N_RUNS, N_PAIRS, N_SEEDS = 100, 50, 3
PAIR_SD, SEED_SD = 0.12, 0.08  # between pairs, and between the images of one item
CUT, CUT_CATEGORY = 0.05, 3  # a fifth of a strong cell's margin


class Gate:
    """What the gate says in ``N_RUNS`` runs measured again with other seeds, all else the same.

    By run: the cells that regressed by their interval (``by_interval``) or by a fall from success
    (``fell``), shape (runs, categories, alphas); the cells of the category that is cut (``cut``,
    (runs, alphas)); ``overall``; and the cells whose plain 95% interval, Student's, lies below
    -tolerance (``plain``).
    """

    def __init__(self) -> None:
        shape = (N_RUNS, len(CATEGORIES), len(ALPHAS))
        self.by_interval = np.zeros(shape, dtype=bool)
        self.fell = np.zeros(shape, dtype=bool)
        self.plain = np.zeros(shape, dtype=bool)
        self.cut = np.zeros((N_RUNS, len(ALPHAS)), dtype=bool)
        self.overall = np.zeros(N_RUNS, dtype=bool)
        for run in range(N_RUNS):
            self._measure(run, np.random.default_rng([run, 3]))

    def _measure(self, run, rng) -> None:
        pair = rng.normal(0, PAIR_SD, (len(CATEGORIES), 1, N_PAIRS))
        pair -= pair.mean(axis=-1, keepdims=True)  # the cells' means are the real ones
        true = REAL_MEANS[:, :, np.newaxis] + pair
        item_sd = SEED_SD / math.sqrt(N_SEEDS)
        old, new = (true + rng.normal(0, item_sd, true.shape) for _ in range(2))
        for i, j in np.ndindex(self.plain.shape[1:]):
            change = self._change(old[i, j], new[i, j])
            self.by_interval[run, i, j] = change.ci_high < -change.tolerance
            self.fell[run, i, j] = change.fell
            said = change.outcome is Outcome.REGRESSED
            assert said == (self.by_interval[run, i, j] or self.fell[run, i, j])
        for j in range(len(ALPHAS)):
            change = self._change(old[CUT_CATEGORY, j], new[CUT_CATEGORY, j] - CUT)
            self.cut[run, j] = change.outcome is Outcome.REGRESSED
        overall = self._change(old.mean(axis=1).ravel(), new.mean(axis=1).ravel())
        self.overall[run] = overall.outcome is Outcome.REGRESSED
        differences = new - old
        error = differences.std(axis=-1, ddof=1) / math.sqrt(N_PAIRS)
        high = differences.mean(axis=-1) + scipy.stats.t.ppf(0.975, N_PAIRS - 1) * error
        self.plain[run] = high < -comparison.TOLERANCE

    def _change(self, old, new):
        """By 1,000 resamples where they put the interval's end above 0, well above the limit."""
        sides, among = (cell(old), cell(new)), {"comparisons": REAL_MEANS.size + 1}
        change = compare_items(*sides, **among, n_resamples=1_000)
        return change if change.ci_high > 0 else compare_items(*sides, **among)


@pytest.fixture(scope="module")
def gate():
    """The simulated runs; about 15 s."""
    return Gate()


@pytest.mark.slow
def test_other_seeds_are_no_regression(gate):
    by_interval = gate.by_interval.any(axis=(1, 2)) | gate.overall
    fell = gate.fell.any(axis=(1, 2))
    alarms = int((by_interval | fell).sum())
    plain = int((gate.plain.any(axis=(1, 2)) | fell).sum())
    print(
        f"{N_RUNS} unchanged runs with other seeds: a regressed cell in {alarms} "
        f"(by interval in {int(by_interval.sum())}, by a fall from success alone in "
        f"{int((fell & ~by_interval).sum())}); with plain 95% intervals in {plain}"
    )
    assert alarms <= 5
    assert plain >= 10  # what simultaneous intervals are for


@pytest.mark.slow
def test_a_cut_in_one_category_is_caught_there_and_nowhere_else(gate):
    caught = gate.cut.any(axis=1)
    regressed = (gate.by_interval | gate.fell).any(axis=2)
    elsewhere = np.delete(regressed, CUT_CATEGORY, axis=1).any(axis=1)
    hits = int((caught & ~elsewhere).sum())
    print(
        f"{N_RUNS} runs with {CATEGORIES[CUT_CATEGORY]} cut by {CUT}: caught in "
        f"{int(caught.sum())}, its cells in {gate.cut.mean(axis=0)} of them; in that category and "
        f"no other in {hits}"
    )
    assert hits >= 95


def test_a_success_at_the_border_falls_in_half_of_the_runs_with_other_seeds():
    """The price of the rule of the fall, as ``Outcome`` says it."""
    rng = np.random.default_rng(5)
    item_sd = SEED_SD / math.sqrt(N_SEEDS)
    pair = rng.normal(0, PAIR_SD, N_PAIRS)
    sd = math.hypot(PAIR_SD, item_sd)
    border = scipy.stats.t.ppf(0.975, N_PAIRS - 1) * sd / math.sqrt(N_PAIRS)
    pair = border + PAIR_SD * scipy.stats.zscore(pair)
    old, new = (pair + rng.normal(0, item_sd, (2_000, N_PAIRS)) for _ in range(2))
    success = [
        scipy.stats.ttest_1samp(side, 0, axis=1).confidence_interval().low > 0
        for side in (old, new)
    ]
    fell = (success[0] & ~success[1]).sum() / success[0].sum()
    assert 0.3 < fell < 0.7


def test_a_cut_method_is_caught_from_file_to_message(tmp_path):
    rng = np.random.default_rng(0)
    old, new = {}, {}
    for i, category in enumerate(CATEGORIES):
        pair = rng.normal(0, PAIR_SD, N_PAIRS)
        for j, alpha in enumerate(ALPHAS):
            key = category, alpha
            old[key] = REAL_MEANS[i, j] + pair
            new[key] = old[key] + rng.normal(0, 0.02, N_PAIRS) - CUT * (i == CUT_CATEGORY)
    write(results(old), tmp_path / "old.json")
    write(results(new), tmp_path / "new.json")
    found = compare(read(tmp_path / "old.json"), read(tmp_path / "new.json"))
    assert {one.category for one in found.regressed} == {CATEGORIES[CUT_CATEGORY]}
    assert len(found.regressed) == len(ALPHAS)
    for one in found.regressed:
        assert one.message().startswith(f"count at alpha {one.alpha:g}: regressed: margin ")
    assert (
        found.changes[0].old_verdict
        == of(results(old)).analysis.cells[Cell("color", 0.5)].margin.verdict
    )
