"""Comparisons of sequential results: on the pairs and seeds that both sides have."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from planted import noise, results, small

from analogy.core.records import Cell, Estimate, Verdict
from analogy.results.comparison import Outcome, compare
from analogy.results.comparison_looks import baseline_margins, compare_common, compare_looks
from analogy.results.model import CellFigures, Stop
from analogy.results.reading import from_json
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.statistics.sequential import Design

PAIRS = [f"p{i:02}" for i in range(20)]
DESIGN = Design.of(20, 3, comparisons=5)
OLD = 0.2 + noise(60, 1).reshape(20, 3)


def figures(margins, *, looked=None, verdict=Verdict.SUCCESS, with_seeds=True, alpha=1.0):
    """A cell of margins, (pairs, seeds). ``looked``: index of the look, None in a full run."""
    pairs, seeds = margins.shape
    stop = None
    if looked is not None:
        look = Design.of(20, 3).looks[looked]
        pairs, seeds = look.pairs, look.seeds
        stop = Stop(looked + 1, 3, pairs, seeds, pairs * seeds, look.level, looked < 2)
    block = margins[:pairs, :seeds]
    return CellFigures(
        cell=Cell("color", alpha),
        margin=Estimate(n=pairs, n_items=pairs, mean=float(block.mean()), verdict=verdict),
        gain=None,
        items=dict(zip(PAIRS, block.mean(axis=1).tolist(), strict=False)),
        seeds={
            pair: tuple(row) for pair, row in zip(PAIRS, block.tolist(), strict=False)
        } if with_seeds else {},
        stop=stop,
    )  # fmt: skip


def common(old, new, **given):
    return compare_common([(old, new)], **{"tolerance": 0.02, "comparisons": 5, **given})


# --- results of two runs that have ended


@pytest.mark.parametrize(
    ("old_at", "new_at", "n", "seeds", "level"),
    [
        (0, 0, 16, 1, 0.0007), (0, 2, 16, 1, 0.0007), (1, 0, 16, 1, 0.0007), (1, 2, 20, 1, 0.0013),
        (2, 2, 20, 3, 0.023), (None, 0, 16, 1, 0.0007), (1, None, 20, 1, 0.0013),
    ],
)  # fmt: skip
def test_cells_are_compared_on_the_pairs_and_seeds_of_the_earlier_look(
    old_at, new_at, n, seeds, level
):
    now = OLD + 0.01 + 0.02 * noise(60, 2).reshape(20, 3)
    found = common(figures(OLD, looked=old_at), figures(now, looked=new_at))
    olds, news = OLD[:n, :seeds].mean(axis=1), now[:n, :seeds].mean(axis=1)
    assert found.n == n
    assert (found.old, found.new) == pytest.approx((olds.mean(), news.mean()))
    assert found.difference == pytest.approx((news - olds).mean())
    assert found.confidence == pytest.approx(1 - 2 * level / 5)
    low, high = bootstrap_ci(
        news - olds, confidence=1 - 2 * level / 5,
        n_resamples=max(10_000, math.ceil(round(5 * 10 / level, 6))),
    )  # fmt: skip
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high))


def test_means_alone_stand_for_every_seed():
    found = common(figures(OLD, with_seeds=False), figures(OLD, looked=0))
    assert found.n == 16
    assert found.old == pytest.approx(OLD[:16].mean())
    assert found.new == pytest.approx(OLD[:16, 0].mean())
    assert found.outcome is not Outcome.INCOMPLETE


def test_a_drop_regresses_and_no_difference_is_equivalent():
    dropped = common(figures(OLD, looked=0), figures(OLD - 0.1, looked=0))
    assert dropped.outcome is Outcome.REGRESSED
    assert common(figures(OLD), figures(OLD, looked=0)).outcome is Outcome.EQUIVALENT
    risen = common(figures(OLD, looked=0), figures(OLD + 0.1, looked=0))
    assert risen.outcome is Outcome.IMPROVED


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.INCONCLUSIVE, Outcome.REGRESSED), (Verdict.FAILURE, Outcome.REGRESSED),
        (Verdict.SUCCESS, Outcome.EQUIVALENT), (Verdict.BLIND, Outcome.INCONCLUSIVE),
        (Verdict.INCOMPLETE, Outcome.INCOMPLETE),
    ],
)  # fmt: skip
def test_a_fall_of_the_verdict_is_a_regression(verdict, outcome):
    found = common(figures(OLD, looked=0), figures(OLD, looked=0, verdict=verdict))
    assert found.outcome is outcome


def incomplete(margins, n_pairs, n_items):
    """A cell of which only some pairs have an item."""
    found = figures(margins[:n_pairs], verdict=Verdict.INCOMPLETE)
    items = {pair: found.items[pair] for pair in PAIRS[:n_items]}
    return replace(found, items=items)


@pytest.mark.parametrize(
    ("n_pairs", "n_items", "outcome"),
    [(20, 19, Outcome.INCOMPLETE), (20, 3, Outcome.INCOMPLETE), (5, 4, Outcome.TOO_FEW)],
)
def test_missing_images_and_too_few_pairs_have_the_order_of_a_full_run(n_pairs, n_items, outcome):
    found = common(figures(OLD, looked=0), incomplete(OLD, n_pairs, n_items))
    assert (found.outcome, found.n) == (outcome, min(n_pairs, 16))
    assert math.isnan(found.difference)


def test_several_cells_are_compared_by_each_pairs_mean():
    other = OLD + 0.3
    found = compare_common(
        [
            (figures(OLD, looked=2), figures(OLD + 0.02, looked=2)),
            (figures(other, looked=0, alpha=2.0), figures(other + 0.06, looked=1, alpha=2.0)),
        ],
        tolerance=0.02, comparisons=3,
    )  # fmt: skip
    assert found.n == 16
    assert found.old == pytest.approx((OLD[:16, 0].mean() + other[:16, 0].mean()) / 2)
    assert found.difference == pytest.approx(0.04)
    assert found.confidence == pytest.approx(1 - 2 * 0.0007 / 3)


# --- a run that goes on


def looked(margins, baseline=OLD, old=None, new=None, tolerance=0.02):
    return compare_looks(
        old or figures(OLD), new or figures(OLD, looked=0), margins, baseline,
        design=DESIGN, tolerance=tolerance,
    )  # fmt: skip


def until(margins, pairs, seeds):
    """Margins of which only those of a look are there."""
    found = np.full_like(margins, np.nan)
    found[:pairs, :seeds] = margins[:pairs, :seeds]
    return found


def test_an_unchanged_cell_needs_16_images():
    same = OLD + 0.002 * noise(60, 3).reshape(20, 3)
    lacking = looked(until(same, 15, 1))
    assert lacking.needs == (16, 1)
    assert lacking.change.outcome is Outcome.INCOMPLETE
    found = looked(until(same, 16, 1))
    assert found.needs is None
    assert (found.change.outcome, found.change.n) == (Outcome.EQUIVALENT, 16)
    # What came with a batch beyond the look changes nothing.
    more = until(same, 16, 1)
    more[16:, 1:] = -1.0
    assert looked(more) == found


def test_a_change_that_does_not_show_is_looked_at_to_the_end():
    now = OLD + noise(60, 4, sd=0.1).reshape(20, 3)
    needs = []
    for pairs, seeds in [(0, 0), (16, 1), (20, 1)]:
        found = looked(until(now, pairs, seeds))
        assert found.change.outcome is Outcome.INCOMPLETE
        needs.append(found.needs)
    assert needs == [(16, 1), (20, 1), (20, 3)]
    found = looked(now)
    assert found.needs is None
    assert found.change.outcome is Outcome.INCONCLUSIVE
    # The level of the last of the looks, of 5 comparisons.
    assert found.change.confidence == pytest.approx(1 - 2 * (0.025 - 2 * 0.0025) / 5)
    differences = (now - OLD).mean(axis=1)
    assert found.change.difference == pytest.approx(differences.mean())


def test_a_drop_regresses_at_the_first_look():
    found = looked(until(OLD - 0.1, 16, 1))
    assert found.needs is None
    assert found.change.outcome is Outcome.REGRESSED
    assert found.change.difference == pytest.approx(-0.1)


def test_a_fall_counts_at_the_look_that_decides():
    new = figures(OLD, looked=0, verdict=Verdict.INCONCLUSIVE)
    found = looked(until(OLD, 16, 1), new=new)
    assert found.change.outcome is Outcome.REGRESSED
    assert found.change.fell


# --- a baseline's margins


def test_a_baselines_margins_are_matched_by_seed_and_pair():
    old = figures(OLD, looked=2)
    found = baseline_margins(old, (4, 5, 6), [*PAIRS[::-1], "unknown"], (6, 4, 9))
    np.testing.assert_array_equal(found[:20, 0], OLD[::-1, 2])
    np.testing.assert_array_equal(found[:20, 1], OLD[::-1, 0])
    assert np.isnan(found[:, 2]).all()
    assert np.isnan(found[20]).all()


def test_a_look_lacks_the_seeds_that_it_did_not_take():
    found = baseline_margins(figures(OLD, looked=0), (0, 1, 2), PAIRS, (0, 1, 2))
    np.testing.assert_array_equal(found[:16, 0], OLD[:16, 0])
    assert np.isnan(found[16:]).all()
    assert np.isnan(found[:, 1:]).all()


def test_without_margins_of_images_a_mean_stands_for_every_seed():
    found = baseline_margins(figures(OLD, with_seeds=False), (0, 1, 2), PAIRS, (0, 1))
    np.testing.assert_allclose(found, np.repeat(OLD.mean(axis=1)[:, None], 2, axis=1))


# --- whole results


def test_what_was_decided_during_the_run_is_what_a_comparison_says():
    old = from_json(results(small()))
    new = from_json(results(small()))
    plain = compare(old, new)
    cell = next(iter(new.analysis.cells))
    known = replace(plain.changes[0], outcome=Outcome.IMPROVED, n=7)
    found = compare(old, new, known={cell: known})
    assert found.changes[0] == known
    assert found.changes[1:] == plain.changes[1:]
    assert found.overall == plain.overall
