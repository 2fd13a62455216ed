"""What terminals show of a run: every figure where its column says, every caveat beside it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analogy.core.records import Cell, Pair, Verdict
from analogy.core.text import display_width
from analogy.report import text
from analogy.report.text_methods import method_tables
from analogy.results.model import Ceiling
from analogy.studies.analysis import analyse
from analogy.studies.method_comparison import Difference, MethodComparison

N = 12
SEES = Ceiling(50, 0.4, 0.35, 0.45, -0.4, 0.8, 0.7, 0.9, 0.99, is_blind=False)
BLIND = Ceiling(50, 0.01, -0.02, 0.04, 0.0, 0.01, -0.02, 0.04, 0.52, is_blind=True)
PAIRS = [
    Pair(f"{category}-{i}", category, "a", "b", f"{category} a {i}", f"{category} b {i}")
    for category in ("color", "size")
    for i in range(N)
]


@pytest.fixture
def table():
    """Colour succeeds at alpha 1, size is open there; at 0.5 both fail."""
    noise = np.random.default_rng(0).normal(size=(2 * N, 3))
    noise -= noise.reshape(2, N, 3).mean(axis=1).repeat(N, axis=0)
    means = np.repeat([[-0.2, -0.1, 0.2], [-0.2, -0.1, 0.02]], N, axis=0)
    ids = [pair.id for pair in PAIRS]
    return pd.DataFrame(means + 0.05 * noise, index=ids, columns=[0.0, 0.5, 1.0])


def test_every_cell_has_a_row_with_its_figures(table):
    found = analyse(table, PAIRS, ceilings={"color": SEES, "size": SEES})
    lines = list(text.verdict_table(found, wide=True))
    assert len(lines) == 2 + 6 + 1 + 3
    rows = {tuple(line.split()[:2]): line for line in lines}
    success = rows["color", "1"]
    figures = found.cells[Cell("color", 1.0)]
    for value in (
        f"{figures.margin.mean:+.4f}",
        f"[{figures.margin.ci_low:+.4f}, {figures.margin.ci_high:+.4f}]",
        f"{figures.gain.mean:+.4f}",
        f"[{figures.gain.ci_low:+.4f}, {figures.gain.ci_high:+.4f}]",
        " 50% ",  # 0.2 of a ceiling of 0.4
    ):
        assert value in success
    assert success.endswith(" success")
    assert rows["color", "0.5"].endswith(" failure")
    assert rows["color", "0"].endswith(" unsteered")
    needed = found.cells[Cell("size", 1.0)].margin.n_needed
    assert rows["size", "1"].endswith(f"inconclusive ({needed} pairs would decide)")
    assert rows["overall", "all"].split()[2] == "24"


@pytest.mark.parametrize("wide", [True, False])
def test_columns_stand_under_their_heads(table, wide):
    head, rule, *rows = text.verdict_table(
        analyse(table, PAIRS, ceilings={"color": SEES}), wide=wide
    )
    at = head.index("verdict")
    for row in rows:
        if row != rule:
            assert row[at - 2 : at] == "  "
            assert row[at] != " "


def test_long_and_wide_names_keep_the_columns():
    names = ("capital-common-countries", "颜色", "x" * 9_000)
    pairs = [Pair(f"{n[:9]}-{i}", n, "a", "b", f"a {i}", f"b {i}") for n in names for i in range(6)]
    values = np.random.default_rng(0).normal(0, 0.1, (len(pairs), 2))
    found = analyse(pd.DataFrame(values, [pair.id for pair in pairs], [0.0, 1.0]), pairs)
    head, rule, *rows = text.verdict_table(found, wide=True)
    at = head.index("verdict")
    for row in rows:
        if row != rule:
            end = len(row) - (display_width(row) - at)  # the Chinese letters take two columns
            assert row[end - 2 : end] == "  "
            assert row[end] != " "
    assert rows[0].startswith("capital-common-countries  ")
    assert len(rule) == max(map(display_width, [head, *rows]))
    narrow = list(text.verdict_table(found))
    assert max(map(display_width, narrow)) <= 80
    assert narrow[2].startswith("capital-c…countries  ")


def test_a_table_of_80_columns_has_the_figures_that_decide(table):
    table.loc["color-0":"color-11", 1.0] += 0.001
    found = analyse(
        table, PAIRS, ceilings={"color": SEES, "size": SEES}, null=table, targets=table[1.0]
    )
    known = {Cell("size", 1.0)}
    for lines in (
        text.verdict_table(found, known, marked={"size"}), text.reading_notes(found),
        text.null_table(found), text.target_table(found), text.trend_table(found),
        text.answer_lines(found),
    ):  # fmt: skip
        assert max(map(display_width, lines)) <= 80
    rows = {tuple(line.split()[:2]): line for line in text.verdict_table(found, known)}
    figures = found.cells[Cell("color", 1.0)]
    for value in (
        f"{figures.margin.mean:+.3f}",
        f"[{figures.margin.ci_low:+.3f}, {figures.margin.ci_high:+.3f}]",
        f"{figures.gain.mean:+.3f}",
    ):
        assert value in rows["color", "1"]
    assert rows["size", "1"].endswith("inconclusive (known)")
    marked = {tuple(line.split()[:2]): line for line in text.verdict_table(found, marked={"size"})}
    assert marked["size", "1"].endswith("inconclusive *")
    assert marked["color", "1"].endswith("success")
    assert marked["overall", "all"].endswith(" *")


def test_how_many_pairs_would_decide_is_said_from_10_pairs_on(table):
    found = analyse(table, PAIRS)
    needed = found.cells[Cell("size", 1.0)].margin.n_needed
    assert any(f"size at 1: {needed}" in line for line in text.reading_notes(found))
    nine = [pair for pair in PAIRS if int(pair.id.partition("-")[2]) < 9]
    few = analyse(table.loc[[pair.id for pair in nine]], nine)
    assert few.cells[Cell("size", 1.0)].margin.verdict is Verdict.INCONCLUSIVE
    assert few.cells[Cell("size", 1.0)].margin.n_needed is not None
    cells = [line for line in text.verdict_table(few, wide=True) if line.startswith(("co", "si"))]
    assert "would decide" not in " ".join([*cells, *text.reading_notes(few)])


def test_two_pairs_are_too_few_to_say_how_many_would_decide():
    pairs = PAIRS[:2]
    values = [[-0.1, 0.1], [-0.1, 0.2]]
    found = analyse(pd.DataFrame(values, [pair.id for pair in pairs], [0.0, 1.0]), pairs)
    lines = list(text.verdict_table(found, wide=True))
    assert found.overall.margin.n_needed is not None
    assert sum(line.endswith("  too_few") for line in lines) == 3


def test_known_cells_are_marked(table):
    found = analyse(table, PAIRS)
    known = {Cell("color", 0.5), Cell("color", 1.0)}
    lines = list(text.verdict_table(found, known, wide=True))
    assert any(line.endswith("failure (known)") for line in lines)
    assert any(line.endswith("success (better than its baseline)") for line in lines)
    assert sum("known" in line for line in lines) == 1


def test_a_success_that_its_family_does_not_bear_out_is_marked(table):
    found = analyse(table, PAIRS)
    figures = found.cells[Cell("color", 1.0)]
    assert text.verdict_words(figures) == "success"
    object.__setattr__(figures, "p_holm", 0.2)
    assert text.verdict_words(figures) == "success (not after Holm)"
    assert "2 of 4" not in " ".join(text.reading_notes(found))
    assert any("1 of 4 cells succeed; 0 after Holm's" in note for note in text.reading_notes(found))


def test_missing_images_leave_blanks_not_figures(table):
    table.loc["color-0", 1.0] = np.nan
    found = analyse(table, PAIRS)
    lines = list(text.verdict_table(found, wide=True))
    assert not any("nan" in line for line in [*lines, *text.trend_table(found)])
    assert sum(line.endswith(" incomplete") for line in lines) == 3  # the cell, alpha 1, overall
    assert sum(line.endswith(" incomplete") for line in text.trend_table(found)) == 2


def test_a_blind_judge_is_said(table):
    found = analyse(table, PAIRS, ceilings={"color": SEES, "size": BLIND})
    assert sum(line.endswith(" blind") for line in text.verdict_table(found, wide=True)) == 2
    assert any(
        "does not see the true change in: size" in line for line in text.reading_notes(found)
    )


def test_dose_and_response(table):
    lines = list(text.trend_table(analyse(table, PAIRS)))
    assert [line.split()[0] for line in lines] == ["dose-response", "color", "size", "overall"]
    assert lines[1].split()[2].startswith("+0.4")
    assert list(text.trend_table(analyse(table[[0.0, 1.0]], PAIRS))) == []


def test_the_random_control_has_a_table_when_measured(table):
    assert list(text.null_table(analyse(table, PAIRS))) == []
    null = table.copy()
    null[0.5] = null[1.0] = table[0.0] + 0.001
    found = analyse(table, PAIRS, null=null)
    lines = list(text.null_table(found, wide=True))
    assert len(list(text.null_table(found))) == len(lines)
    assert len(lines) == 1 + 4
    lucky = null + 1.0
    lines = " ".join(text.null_table(analyse(table, PAIRS, null=lucky)))
    assert "A random direction succeeds in color at alpha 0.5, color at" in lines


def test_the_target_prompts_own_images_have_a_table_when_measured(table):
    assert list(text.target_table(analyse(table, PAIRS))) == []
    found = analyse(table, PAIRS, targets=2 * table[1.0])
    head, *rows, _, _ = text.target_table(found)
    assert head.split()[-2:] == ["0.5", "1"]
    assert [row.split()[0] for row in rows] == ["color", "size"]
    assert [row.split()[-1] for row in rows] == ["50%", "50%"]
    gone = (2 * table[1.0]).copy()
    gone["color-0"] = np.nan
    head, *rows, _, _ = text.target_table(analyse(table, PAIRS, targets=gone))
    assert rows[0].endswith("incomplete")
    assert rows[1].endswith("50%")


def test_published_figures_stand_beside_a_runs(table):
    published = {
        "overall": {
            "mean": -0.00014, "ci_low": -0.00198, "ci_high": 0.00173, "p": 0.56,
            "success_rate": 0.406, "n_items": 1200,
        },
        "cells": [
            {"category": 1, "alpha": 1.0, "mean": None, "success_rate": None,
             "success_rate_range": [0.24, 0.31], "finding": "negative"},
            {"category": 2, "alpha": 1.0, "mean": None, "success_rate": None,
             "success_rate_range": None, "finding": "near zero"},
            {"category": 5, "alpha": 1.0, "mean": 0.0466, "success_rate": 1.0,
             "success_rate_range": None, "finding": None},
        ],
    }  # fmt: skip
    own = analyse(table, PAIRS).overall
    theirs, mine, by_category = text.published_lines(published, own)
    assert "-0.00014" in theirs
    assert f"{own.items.ci_low:+.5f}" in mine
    assert own.margin.verdict is not Verdict.INCOMPLETE
    assert by_category.endswith(
        "1: negative, success 24% to 31%; 2: near zero; 5: mean +0.0466, success 100%"
    )


@pytest.mark.parametrize(
    ("mean", "ci_low", "ci_high", "shown"),
    [
        (0.02, 0.01, 0.03, "+0.0200*"),
        (0.02, -0.01, 0.05, "+0.0200 "),
        (-0.02, -0.03, -0.01, "-0.0200*"),
        # Two methods with the same images, apart from the rounding of their arithmetic.
        (2e-9, 1e-9, 3e-9, "+0.0000 "),
    ],
)
def test_a_difference_is_marked_if_what_is_printed_of_it_lies_on_one_side_of_0(
    mean, ci_low, ci_high, shown
):
    found = Difference("lerp", "word", "color", None, 50, mean, ci_low, ci_high)
    tables = method_tables(MethodComparison(50, 0, (), (found,), (), (found,)))
    [row] = [line for line in tables if line.startswith("lerp - word ") and "[" not in line]
    assert row.endswith(shown)
