"""The analysis: cells, gains, pools and families against their definitions, on planted tables."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from analogy.core.records import UNSTEERED, Cell, Pair, Verdict
from analogy.results.model import Ceiling
from analogy.results.writing import analysis_to_json
from analogy.statistics import bootstrap
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.statistics.estimates import estimate, item_level, pooled_estimate, trend
from analogy.studies.analysis import analyse, cell_figures, item_table, pool

ALPHAS = (0.0, 0.5, 0.8, 1.0)
N = 12
SEES = Ceiling(50, 0.4, 0.35, 0.45, -0.4, 0.8, 0.7, 0.9, 0.99, is_blind=False)
BLIND = Ceiling(50, 0.01, -0.02, 0.04, 0.0, 0.01, -0.02, 0.04, 0.52, is_blind=True)

# category -> mean margin at each alpha
PLANTED = {
    "color": (-0.2, -0.03, 0.15, 0.2),
    "size": (-0.2, -0.2, 0.0, 0.05),
}


def pairs_of(category: str, n: int = N) -> list[Pair]:
    return [
        Pair(f"{category}-{i}", category, "a", "b", f"{category} a {i}", f"{category} b {i}")
        for i in range(n)
    ]


PAIRS = [pair for category in PLANTED for pair in pairs_of(category)]


@pytest.fixture
def table():
    """Items with a pair effect of 0.05 and noise of 0.02 around the planted means."""
    rng = np.random.default_rng(0)
    rows = [
        np.array(PLANTED[pair.category]) + 0.05 * rng.normal() + 0.02 * rng.normal(size=4)
        for pair in PAIRS
    ]
    return pd.DataFrame(rows, index=[pair.id for pair in PAIRS], columns=list(ALPHAS))


@pytest.fixture
def null(table):
    """A null that does nothing but add noise."""
    rng = np.random.default_rng(1)
    made = table.copy()
    for alpha in ALPHAS[1:]:
        made[alpha] = table[UNSTEERED] + 0.01 * rng.normal(size=len(table))
    return made


def test_cells_pools_and_the_whole_are_the_estimates_of_their_items(table):
    found = analyse(table, PAIRS)
    assert list(found.cells) == [Cell(c, a) for c in PLANTED for a in ALPHAS[1:]]
    for category in PLANTED:
        mine = table.loc[[pair.id for pair in pairs_of(category)]]
        for alpha in ALPHAS[1:]:
            figures = found.cells[Cell(category, alpha)]
            assert figures.margin == estimate(mine[alpha])
            assert figures.gain == estimate(mine[alpha] - mine[UNSTEERED])
            assert figures.items == mine[alpha].to_dict()
        own = replace(estimate(mine[UNSTEERED]), verdict=None, n_needed=None)  # nothing is claimed
        assert found.unsteered[category].margin == own
        assert found.unsteered[category].gain is None
        steered = mine[list(ALPHAS[1:])].to_numpy()
        assert found.categories[category].margin == pooled_estimate(steered)
        assert found.categories[category].trend == trend(mine, ALPHAS)
    for alpha in ALPHAS[1:]:
        assert found.alphas[alpha].margin == estimate(table[alpha])
        assert found.alphas[alpha].trend is None  # one dose has no response
    steered = table[list(ALPHAS[1:])].to_numpy()
    assert found.overall.margin == pooled_estimate(steered)
    gains = steered - table[[UNSTEERED]].to_numpy()
    assert found.overall.gain == pooled_estimate(gains)
    assert found.overall.items == item_level(steered)


def test_an_analysis_draws_the_resamples_of_each_length_once(table, null, monkeypatch):
    drawn = []
    moments = bootstrap._moments

    def spy(units, *rest):
        drawn.append(units.shape)
        return moments(units, *rest)

    monkeypatch.setattr(bootstrap, "_moments", spy)
    analyse(table, PAIRS, null=null)
    # Categories: 4 margins, 3 gains and, for each steered alpha, the null's margin, gain and
    # advantage; a pool's margin and gain and its trend. All pairs: 3 alphas (whose items are their
    # margins), and the whole with its trend. Items: two categories', and the whole's.
    expected = [(2 * (4 + 3 + 9 + 3), N), (3 * 2 + 3, 2 * N), (2, 3 * N), (1, 6 * N)]
    assert sorted(drawn) == sorted(expected)


def test_a_pool_resamples_pairs_and_its_naive_interval_is_narrower(table):
    whole = analyse(table, PAIRS).overall
    assert (whole.margin.n, whole.margin.n_items, whole.items.n) == (24, 72, 72)
    means = table[list(ALPHAS[1:])].mean(axis=1)
    assert (whole.margin.ci_low, whole.margin.ci_high) == pytest.approx(bootstrap_ci(means))
    by_pair = pool(table.loc[[pair.id for pair in pairs_of("color")]])
    flat = table - np.array([PLANTED[p.category] for p in PAIRS])  # the pairs' effects alone
    by_item = pool(flat)
    assert by_item.items.ci_high - by_item.items.ci_low < 0.8 * (
        by_item.margin.ci_high - by_item.margin.ci_low
    )
    assert by_pair.margin.n == N


def test_the_gain_is_paired(table):
    """The pairs' own levels cancel: its interval is narrower than the margin's."""
    figures = cell_figures(table.loc[[pair.id for pair in pairs_of("color")]], Cell("color", 1.0))
    assert figures.gain.mean == pytest.approx(0.4, abs=0.03)
    assert figures.gain.ci_high - figures.gain.ci_low < 0.9 * (
        figures.margin.ci_high - figures.margin.ci_low
    )
    mine = table.loc[[pair.id for pair in pairs_of("color")]]
    expected = scipy.stats.ttest_rel(mine[1.0], mine[UNSTEERED], alternative="greater").pvalue
    assert figures.gain.p == pytest.approx(expected)


def test_a_family_is_adjusted_as_a_whole_and_a_cell_alone_is_not(table):
    found = analyse(table, PAIRS)
    cells = found.cells.values()
    p = [max(figures.margin.p, figures.margin.p_bootstrap) for figures in cells]
    holm = multipletests(p, method="holm")[1]
    bh = multipletests(p, method="fdr_bh")[1]
    assert [figures.p_holm for figures in found.cells.values()] == pytest.approx(holm)
    assert [figures.p_bh for figures in found.cells.values()] == pytest.approx(bh)
    assert np.isnan(cell_figures(table, Cell("color", 1.0)).p_holm)


def test_a_success_may_not_survive_its_family():
    """One cell at p about 0.01 among 24 nulls is a success by itself and none in its family."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(N, 25))
    noise = 0.1 * (noise - noise.mean(axis=0)) / noise.std(axis=0, ddof=1)
    names = [f"c{i}" for i in range(24)]
    members = [pair for name in names for pair in pairs_of(name)]
    margins = np.concatenate([noise[:, i] for i in range(24)])
    margins[:N] += 0.1 * 2.8 / np.sqrt(N)
    table = pd.DataFrame({0.0: -0.2, 1.0: margins}, index=[pair.id for pair in members])
    found = analyse(table, members)
    first = found.cells[Cell("c0", 1.0)]
    assert first.margin.verdict is Verdict.SUCCESS
    assert first.p_holm > 0.05
    assert not first.survives
    assert found.not_after_holm == [Cell("c0", 1.0)]


def test_missing_images_make_their_cells_incomplete_and_no_others(table):
    table.loc["color-3", 0.8] = np.nan
    found = analyse(table, PAIRS)
    missing = found.cells[Cell("color", 0.8)]
    assert missing.margin.verdict is missing.gain.verdict is Verdict.INCOMPLETE
    assert (missing.margin.n, missing.margin.n_items, len(missing.items)) == (N, N - 1, N - 1)
    assert np.isnan(missing.p_holm)
    assert found.categories["color"].margin.verdict is Verdict.INCOMPLETE
    assert found.alphas[0.8].margin.verdict is Verdict.INCOMPLETE
    assert found.overall.margin.verdict is Verdict.INCOMPLETE
    assert found.overall.items is None
    assert found.cells[Cell("color", 1.0)].margin.verdict is Verdict.SUCCESS
    assert found.categories["size"].trend is not None
    others = [
        max(f.margin.p, f.margin.p_bootstrap)
        for cell, f in found.cells.items()
        if cell != Cell("color", 0.8)
    ]
    holm = multipletests(others, method="holm")[1]
    assert found.cells[Cell("color", 0.5)].p_holm == pytest.approx(holm[0])


def test_a_missing_control_takes_the_gains_and_leaves_the_margins(table):
    table.loc["color-3", UNSTEERED] = np.nan
    figures = analyse(table, PAIRS).cells[Cell("color", 1.0)]
    assert figures.gain.verdict is Verdict.INCOMPLETE
    assert figures.margin.verdict is Verdict.SUCCESS


def test_where_the_judge_is_blind_no_method_is_blamed_or_praised(table):
    found = analyse(table, PAIRS, ceilings={"color": BLIND, "size": SEES})
    assert found.blind == ["color"]
    for alpha in ALPHAS[1:]:
        figures = found.cells[Cell("color", alpha)]
        assert figures.margin.verdict is figures.gain.verdict is Verdict.BLIND
        assert np.isnan(figures.p_holm)
        assert figures.margin.n_needed is None
    assert found.cells[Cell("size", 0.5)].margin.verdict is Verdict.FAILURE
    assert found.cells[Cell("size", 1.0)].share == pytest.approx(
        found.cells[Cell("size", 1.0)].margin.mean / 0.4
    )


def test_too_few_and_incomplete_stay_what_they_are_where_the_judge_is_blind(table):
    few = table.loc[["color-0", "color-1"]]
    cell = Cell("color", 1.0)
    assert cell_figures(few, cell, ceiling=BLIND).margin.verdict is Verdict.TOO_FEW
    few = few.assign(**{})
    few.loc["color-0", 1.0] = np.nan
    assert cell_figures(few, cell, ceiling=BLIND).margin.verdict is Verdict.INCOMPLETE


def test_the_random_control_stands_beside_the_method(table, null):
    figures = analyse(table, PAIRS, null=null).cells[Cell("color", 1.0)]
    mine = [pair.id for pair in pairs_of("color")]
    assert figures.null.margin == estimate(null.loc[mine, 1.0])
    assert figures.null.gain == estimate(null.loc[mine, 1.0] - null.loc[mine, UNSTEERED])
    assert figures.null.advantage == estimate(table.loc[mine, 1.0] - null.loc[mine, 1.0])
    assert figures.null.margin.verdict is Verdict.FAILURE
    assert figures.null.advantage.verdict is Verdict.SUCCESS


def test_items_become_a_table_in_the_pairs_order():
    items = pd.DataFrame(
        [("p1", 1.0, 0.1), ("p0", 0.0, 0.2), ("p1", 0.0, 0.3)],
        columns=["pair_id", "alpha", "margin"],
    )
    pairs = [Pair(f"p{i}", "c", "a", "b", f"a{i}", f"b{i}") for i in range(3)]
    table = item_table(items, pairs, (1.0, 0.0))
    assert list(table.index) == ["p0", "p1", "p2"]
    assert list(table.columns) == [0.0, 1.0]
    np.testing.assert_array_equal(table.to_numpy(), [[0.2, np.nan], [0.3, 0.1], [np.nan, np.nan]])
    empty = item_table(items.iloc[:0], pairs, (1.0, 0.0))
    assert empty.shape == (3, 2)
    assert empty.isna().all(axis=None)


def test_the_dictionary_is_strict_json(table, null):
    table.loc["color-3", 0.8] = np.nan
    found = analyse(table, PAIRS, null=null, ceilings={"size": SEES})
    made = json.loads(json.dumps(analysis_to_json(found), allow_nan=False))
    assert list(made) == ["cells", "controls", "targets", "categories", "alphas", "overall"]
    cell = made["cells"][1]
    assert (cell["category"], cell["alpha"], cell["verdict"]) == ("color", 0.8, "incomplete")
    assert cell["mean"] is cell["p_holm"] is cell["gain"]["mean"] is None
    assert len(cell["items"]) == N - 1
    assert made["cells"][5]["ceiling"]["share"] == pytest.approx(made["cells"][5]["mean"] / 0.4)
    assert made["cells"][5]["random"]["advantage"]["verdict"] == "success"
    assert "verdict" not in made["controls"][0]
    assert made["overall"]["blind"] == []
    assert made["overall"]["item_level"] is None


@pytest.mark.parametrize("level", [0.0, 3e-8, -3e-8])
def test_margins_below_what_cosines_resolve_decide_nothing(level):
    margins = level + 1e-8 * np.random.default_rng(0).normal(size=(N, 2))
    index = [pair.id for pair in pairs_of("color")]
    found = cell_figures(pd.DataFrame(margins, index, [0.0, 1.0]), Cell("color", 1.0)).margin
    assert (found.verdict, found.n_needed) == (Verdict.INCONCLUSIVE, None)
    wide = margins + np.where(np.arange(N) % 2, 0.1, -0.1)[:, np.newaxis]
    wide = cell_figures(pd.DataFrame(wide, index, [0.0, 1.0]), Cell("color", 1.0)).margin
    assert (wide.verdict, wide.n_needed) == (Verdict.INCONCLUSIVE, None)
