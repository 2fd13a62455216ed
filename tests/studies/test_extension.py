"""Pairs that are added to a sequential run: refused, unless error was reserved for them."""

from __future__ import annotations

import looks
import pytest
from looks import figures_of, pairs_of, plant, run, write_pairs

from analogy.core.errors import OptionError
from analogy.core.records import Cell
from analogy.sessions.session import Session
from analogy.studies.study import Study

ALL = pairs_of("color", n=40)
OPEN = Cell("color", 0.5)


def margin(job):
    """Color 0.5 is undecided with 20 pairs; color 1 is a success at once."""
    return looks.margin(job)


def extended(path, n, *, first=0, **given):
    """A run of the first ``n`` pairs of color in the folder."""
    write_pairs(path / "pairs.csv", ALL[first:n])
    return run(path, **given)


def plan(path, n, **given):
    """The looks of a run of the first ``n`` pairs: pairs, seeds and level, and the order."""
    write_pairs(path / "pairs.csv", ALL[:n])
    study = Study.open(looks.request(path, **given))
    try:
        design = study.plan.designs["color"]
        return [(k.pairs, k.seeds, round(k.level, 6)) for k in design.looks], study.plan.pairs
    finally:
        study.close()


@pytest.fixture
def begun(tmp_path):
    """A run of 20 pairs that has ended with an undecided cell."""

    def begin(**given):
        plant(margin)
        results, _ = extended(tmp_path, 20, **given)
        assert results.analysis.cells[OPEN].margin.verdict == "inconclusive"
        assert results.analysis.cells["color", 1.0].margin.verdict == "success"
        return tmp_path

    return begin


def test_more_pairs_for_an_undecided_cell_are_refused_by_name(begun):
    path = begun()
    planted = plant(margin)
    with pytest.raises(OptionError) as error:
        extended(path, 24)
    assert planted.made == []
    text = str(error.value)
    assert text.startswith("--sequential: expected the 20 pairs of color that an earlier run in")
    assert "color at alpha 0.5 undecided" in text
    assert "color at alpha 1" not in text
    assert "got 24 pairs" in text
    assert "--reserve" in text
    # Nor by other options, nor some of these pairs together with others.
    for given in ({"limit": "22"}, {"batch_size": "4"}, {"futility": True}, {"reserve": True}):
        with pytest.raises(OptionError, match=r"got 2[24] pairs"):
            extended(path, 24, **given)


def test_the_same_pairs_again_fewer_pairs_or_fresh_ones_are_not_refused(begun):
    path = begun()
    plant(margin, dies_after=0)
    extended(path, 20)  # again: nothing to be made
    plan(path, 16)
    write_pairs(path / "pairs.csv", ALL[20:40])
    Session.open(looks.request(path)).study.close()


def test_another_study_in_the_folder_is_none_of_its_business(begun):
    path = begun()
    plan(path, 24, seeds="0,1")
    plan(path, 24, sequential=None)


def test_a_run_that_has_not_ended_may_have_more_pairs(tmp_path):
    """Nothing is spent before the last look."""
    plant(margin, dies_after=70)
    with pytest.raises(looks.Killed):
        extended(tmp_path, 20)
    plan(tmp_path, 24)


def test_a_run_whose_cells_are_decided_may_have_more_pairs(tmp_path):
    plant(margin)
    extended(tmp_path, 20, alphas="1")
    plan(tmp_path, 24, alphas="1")


def test_a_reserve_is_taken_from_the_last_look(tmp_path):
    looked, _ = plan(tmp_path, 20, reserve=True)
    assert looked == [(16, 1, 0.0007), (20, 1, 0.0013), (20, 3, 0.018)]


def test_a_reserve_pays_for_one_extension_whose_pairs_come_last(begun):
    path = begun(reserve=True)
    _, before = plan(path, 20, reserve=True)
    looked, after = plan(path, 26, reserve=True)
    assert looked == [
        (16, 1, 0.0007), (20, 1, 0.0013), (20, 3, 0.018), (26, 3, 0.005),
    ]  # fmt: skip
    assert after["color"][:20] == before["color"]
    assert {pair.id for pair in after["color"][20:]} == {pair.id for pair in ALL[20:26]}
    planted = plant(margin)
    results, _ = extended(path, 26, reserve=True)
    added = {(job.pair.id, job.alpha, job.seed) for job in planted.made}
    # The cell that was decided, and the gains, need no further image.
    assert added == {(pair.id, 0.5, seed) for pair in ALL[20:26] for seed in (0, 1, 2)}
    found = results.analysis.cells
    assert (found[OPEN].stop.look, found[OPEN].stop.looks) == (4, 4)
    assert (found[OPEN].stop.pairs, found[OPEN].margin.n) == (26, 26)
    assert found[OPEN].stop.level == pytest.approx(0.005)
    assert found[OPEN].stop.p_seq >= 0.0007 + 0.0013 + 0.018
    assert found["color", 1.0].stop.look == 1
    # The same again is the same.
    plant(margin, dies_after=0)
    again, _ = extended(path, 26, reserve=True)
    one, two = figures_of(again), figures_of(results)
    assert one["cells"] == two["cells"]


def test_a_second_extension_is_refused(begun):
    path = begun(reserve=True)
    plant(margin)
    results, _ = extended(path, 24, reserve=True)
    assert results.analysis.cells[OPEN].margin.verdict == "inconclusive"
    with pytest.raises(OptionError, match=r"expected the 24 pairs of color .* got 28 pairs"):
        extended(path, 28, reserve=True)


def test_a_reserved_run_is_not_extended_without_the_reserve(begun):
    path = begun(reserve=True)
    with pytest.raises(OptionError, match="expected the 20 pairs of color"):
        extended(path, 24)


def test_a_reserve_that_comes_after_the_last_look_is_none(begun):
    path = begun()
    with pytest.raises(OptionError, match="expected the 20 pairs of color"):
        extended(path, 24, reserve=True)
