"""The regression gate of sequential runs, look by look, on planted margins."""

from __future__ import annotations

from collections import Counter
from itertools import count

import looks
import pytest
from looks import normal, plant, run

from analogy.core.records import Cell
from analogy.results.comparison import Outcome
from analogy.sessions import running
from analogy.sessions.session import Session

CELLS = [*looks.MEANS]


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    """Results of a sequential run: two cells have all their images, the others 16."""
    path = tmp_path_factory.mktemp("sequential")
    plant(looks.margin)
    run(path)
    return path / "results.json"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Results of a full run."""
    path = tmp_path_factory.mktemp("full")
    plant(looks.margin)
    run(path, sequential=None)
    return path / "results.json"


@pytest.fixture
def gate(tmp_path):
    """Run against a baseline: how it ended, the changes, and the images that were made."""
    numbers = count()

    def held_to(baseline, margin, **given):
        planted = plant(margin)
        path = tmp_path / str(next(numbers))
        path.mkdir()
        session = Session.open(looks.request(path, baseline=str(baseline), **given))
        try:
            ending = running.run_cases(session)
            assert ending.fault is None
            _, results = running.finish(session, ending)
        finally:
            session.study.close()
        made = Counter((job.pair.category, job.alpha) for job in planted.made)
        return ending, session.changes, made, results

    return held_to


def shifted(by, sd=0.0):
    """The baseline's margins with a shift of some cells and noise of each image."""

    def margin(job):
        shift = by.get((job.pair.category, job.alpha), 0.0)
        return looks.margin(job) + shift + sd * normal("new", job.key)

    return margin


def test_an_unchanged_model_is_equivalent_at_the_first_look(gate, sequential):
    ending, changes, made, _ = gate(sequential, shifted({}, sd=0.002))
    assert {cell: change.outcome for cell, change in changes.items()} == dict.fromkeys(
        [*CELLS, None], Outcome.EQUIVALENT
    )
    assert [changes[cell].n for cell in CELLS] == [16] * 4
    # The comparisons need 16 images of a cell, which the cells' own looks have made anyway.
    assert made["color", 1.0] == made["object", 1.0] == 16
    assert ending.code == 0, ending.failed


def test_a_gate_alone_needs_16_images_of_a_cell_that_is_undecided_itself(sequential, tmp_path):
    """Its own looks go on to the end; the comparison has ended at the first."""
    plant(shifted({}, sd=0.002))
    session = Session.open(looks.request(tmp_path, baseline=str(sequential)))
    try:
        from analogy.sessions import gate as looked

        cell = Cell("color", 0.5)
        study = session.study
        jobs = study.plan.steered(cell, 16, 1)
        study.generate(jobs)
        study.score(jobs)
        found = looked.state(session, session.baseline, cell)
        assert found.needs is None
        assert found.change.outcome is Outcome.EQUIVALENT
        assert found.change.n == 16
    finally:
        session.study.close()


def test_a_real_drop_is_a_regression(gate, sequential):
    ending, changes, _, _ = gate(sequential, shifted({("color", 1.0): -0.1}, sd=0.002))
    outcomes = {cell: change.outcome for cell, change in changes.items()}
    assert outcomes["color", 1.0] is Outcome.REGRESSED
    assert changes["color", 1.0].new_verdict == "success"  # the drop, not a fall
    assert changes["color", 1.0].difference == pytest.approx(-0.1, abs=0.01)
    others = [cell for cell in CELLS if cell != ("color", 1.0)]
    assert {outcomes[cell] for cell in others} == {Outcome.EQUIVALENT}
    assert ending.code == 1
    assert any("color at alpha 1: regressed" in line for line in ending.failed)


def test_a_verdict_that_fell_is_a_regression_within_any_tolerance(gate, sequential):
    _, changes, _, _ = gate(sequential, shifted({("color", 1.0): -0.3}), tolerance="5")
    change = changes["color", 1.0]
    assert (change.old_verdict, change.new_verdict) == ("success", "inconclusive")
    assert change.outcome is Outcome.REGRESSED
    assert change.fell


def test_a_comparison_that_is_open_asks_for_images_beyond_the_cells_own_looks(gate, sequential):
    """Color 0.5 succeeds at once; how it compares with its baseline of other noise does not show.
    Object 1.0 of the baseline has the images of one look, and more would not help.
    """

    def margin(job):
        cell = job.pair.category, job.alpha
        if cell in (("color", 0.5), ("object", 1.0)):
            mean = 0.15 if cell[0] == "color" else -0.28
            return mean + 0.09 * normal("other", job.pair.source_prompt, job.alpha)
        return looks.margin(job)

    _, changes, made, results = gate(sequential, margin)
    assert results.analysis.cells["color", 0.5].stop.images == 16
    assert made["color", 0.5] == 60
    assert made["color", 0.0] == made["object", 0.0] == made["object", 1.0] == 16
    assert changes["color", 0.5].n == 20
    assert changes["object", 1.0].n == 16
    assert changes["object", 1.0].outcome is Outcome.INCONCLUSIVE


def test_a_full_run_is_a_baseline_of_a_sequential_one(gate, full):
    """Unchanged: nothing regresses, every comparison decides, and the gate passes."""
    ending, changes, _, _ = gate(full, looks.margin)
    outcomes = Counter(change.outcome for change in changes.values())
    assert {*changes} == {*CELLS, None}
    assert not outcomes[Outcome.REGRESSED]
    assert not outcomes[Outcome.INCOMPLETE], outcomes
    assert ending.code == 0, ending.failed


def test_a_drop_from_a_full_runs_baseline_is_a_regression(gate, full):
    ending, changes, _, _ = gate(full, shifted({("color", 1.0): -0.15}))
    assert changes["color", 1.0].outcome is Outcome.REGRESSED
    assert ending.code == 1


def test_a_sequential_run_is_a_baseline_of_a_full_one(gate, sequential):
    ending, changes, made, _ = gate(sequential, looks.margin, sequential=None)
    assert sum(made.values()) == 360
    assert {change.outcome for change in changes.values()} <= {
        Outcome.EQUIVALENT, Outcome.INCONCLUSIVE,
    }  # fmt: skip
    assert ending.code == 0, ending.failed
