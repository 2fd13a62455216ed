"""Baselines: what is known, how they are written, and how often the gate is wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
from compared import BEFORE, cell, of, of_header
from planted import ALPHAS, CATEGORIES, results, small

from analogy.core.records import Cell, Verdict
from analogy.results import baseline, comparison
from analogy.results.baseline import (
    BaselineError,
    check_replaceable,
    default_path,
    known_not_to_succeed,
)
from analogy.results.comparison import (
    Outcome,
    compare,
    compare_items,
)
from analogy.results.reading import from_json, read
from analogy.results.writing import to_json


def write(data, path):
    baseline.write(from_json(data), path)


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
