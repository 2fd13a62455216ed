"""The answer: by strength and category, with what it leaves out."""

from __future__ import annotations

import math

import pytest

from analogy.core.records import Cell, Estimate, Verdict
from analogy.results.answer import answer_of
from analogy.results.model import Analysis, CellFigures, Pool

LETTERS = {
    "s": Verdict.SUCCESS, "f": Verdict.FAILURE, "i": Verdict.INCONCLUSIVE, "t": Verdict.TOO_FEW,
    "m": Verdict.INCOMPLETE, "b": Verdict.BLIND,
}  # fmt: skip


def answered(by_alpha: dict[float, str], *, p_holm: float = 0.01, pool: str = "i"):
    """Of cells whose verdicts are the letters, one for each category."""
    cells = {
        Cell(f"c{i}", alpha): CellFigures(
            Cell(f"c{i}", alpha), Estimate(10, 10, verdict=LETTERS[letter]), None, {},
            p_holm=p_holm,
        )
        for alpha, letters in by_alpha.items()
        for i, letter in enumerate(letters)
    }  # fmt: skip
    overall = Pool(Estimate(20, 40, verdict=LETTERS[pool]), None, None, None)
    return answer_of(Analysis(cells, {}, {}, {}, {}, overall))


@pytest.mark.parametrize(
    ("cells", "text", "verdict"),
    [
        ({0.5: "sffi", 0.8: "ssss", 1.0: "ssss"},
         "Yes at 0.8 and 1: 4 of 4 categories; at 0.5: 1 of 4", "success"),
        ({0.5: "ffff", 0.8: "sffi", 1.0: "ssff"},
         "In part at 1: 2 of 4 categories; at 0.8: 1 of 4; at 0.5: 0 of 4", "inconclusive"),
        ({0.5: "ff", 1.0: "ff"}, "No at 0.5 and 1: 0 of 2 categories", "failure"),
        ({0.5: "ff", 1.0: "fi"},
         "Not shown at 0.5 and 1: 0 of 2 categories; failure in 3 of 4 cells", "inconclusive"),
        ({0.5: "ii", 1.0: "ii"}, "Not shown at 0.5 and 1: 0 of 2 categories", "inconclusive"),
        ({1.0: "s"}, "Yes at 1: 1 of 1 category", "success"),
        ({1.0: "st"}, "In part at 1: 1 of 2 categories", "inconclusive"),
        ({0.5: "fm", 1.0: "sm"},
         "In part at 1: 1 of 2 categories; at 0.5: 0 of 2; not finished: images are missing in 2 "
         "of 4 cells", "inconclusive"),
        ({1.0: "tt"}, "Not decided: 5 pairs or fewer decide nothing", "too_few"),
        ({0.5: "mm", 1.0: "mm"}, "Not finished: images are missing", "incomplete"),
        ({1.0: "b"}, "Nothing can be said: the judge does not see the true change", "blind"),
    ],
)  # fmt: skip
def test_one_line_says_where_it_works(cells, text, verdict):
    found = answered(cells)
    assert (found.text, found.verdict) == (text, verdict)


def test_the_pool_does_not_change_the_answer():
    by_alpha = {0.5: "ff", 1.0: "ss"}
    found = answered(by_alpha, pool="f")
    assert found.text == answered(by_alpha, pool="s").text
    assert found.to_dict()["pool"] == "failure"


def test_notes_name_the_categories_that_do_not_succeed_at_the_best_strengths():
    found = answered({0.5: "fffff", 1.0: "ssfit"})
    assert list(found.notes()) == ["At 1: failure in c2; inconclusive in c3; undecided in c4."]
    assert list(answered({0.5: "ff", 1.0: "ss"}).notes()) == []


def test_successes_that_holm_does_not_bear_out_are_named():
    found = answered({0.5: "fs", 1.0: "ss"}, p_holm=0.2)
    assert list(found.notes()) == ["Not after Holm's correction: c1 at 0.5, c0 at 1 and c1 at 1."]
    assert list(answered({1.0: "ss"}, p_holm=math.nan).notes()) == []  # of an earlier suite


def test_its_json_has_every_category_once_at_each_strength():
    data = answered({1.0: "sfit", 0.5: "ssbm"}).to_dict()
    assert [at["alpha"] for at in data["strengths"]] == [0.5, 1.0]
    for at in data["strengths"]:
        names = [*at["success"], *at["failure"], *at["inconclusive"], *at["undecided"]]
        assert sorted(names) == ["c0", "c1", "c2", "c3"]
