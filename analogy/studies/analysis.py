"""From a table of items to all figures of a run: cells, gains, pools, trends, families of tests.

Pure functions of a table of items. A table has a row per pair and a column per alpha, ascending,
0 (unsteered) among them: `margin`, the mean over seeds, NaN where images are missing. Rows are
indexed by pair id, and belong to the category that `pairs` gives.

Every cell has two figures. The **margin** shows whether the images are now closer to the target
than to the source. The **gain**, margin(alpha) - margin(0) pair by pair, shows what steering
changed. The gain is positive as soon as an image has moved, even if steering merely destroyed it,
so claims rest on the margin; the gain shows how much of the margin is due to steering.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analogy.core.records import UNSTEERED, Cell, Estimate, Pair, Verdict
from analogy.results.model import Analysis, Ceiling, CellFigures, Null, Pool, TargetFigures
from analogy.statistics.bootstrap import resampled_together
from analogy.statistics.estimates import (
    DEFAULT_CONFIDENCE,
    item_level,
    pooled_estimate,
    trend,
)
from analogy.statistics.multiplicity import benjamini_hochberg, holm
from analogy.statistics.tests import slopes

RESOLUTION = 1e-6
"""Margins below this in magnitude count as 0: a judge's cosines are float32, precise to 6e-8."""

DECIDED = (Verdict.SUCCESS, Verdict.FAILURE, Verdict.INCONCLUSIVE)
"""The verdicts of a completed test; the other verdicts give the reason for having no test."""


def item_table(items: pd.DataFrame, pairs: Sequence[Pair], alphas: Sequence[float]) -> pd.DataFrame:
    """Complete items as a table: a row per pair, a column per alpha, NaN if incomplete.

    ``items`` has the columns pair_id, alpha and margin.
    """
    table = items.pivot(index="pair_id", columns="alpha", values="margin")
    return table.reindex(index=[pair.id for pair in pairs], columns=sorted(alphas)).astype(float)


def analyse(
    table: pd.DataFrame,
    pairs: Sequence[Pair],
    *,
    null: pd.DataFrame | None = None,
    targets: pd.Series | None = None,
    ceilings: Mapping[str, Ceiling | None] | None = None,
) -> Analysis:
    """All figures of a run.

    ``table``: the run's items; ``null``: the items of its null; ``targets``: pair id to the item
    of the target prompt's own images; ``ceilings``: by category.
    """
    ceilings = ceilings or {}
    members: dict[str, list[str]] = {}
    for pair in pairs:
        members.setdefault(pair.category, []).append(pair.id)
    tables = {category: table.loc[rows] for category, rows in members.items()}
    nulls = {} if null is None else {category: null.loc[rows] for category, rows in members.items()}
    steered = [alpha for alpha in _alphas(table) if alpha != UNSTEERED]
    by_alpha = {alpha: table[[UNSTEERED, alpha]] for alpha in steered}
    ends = {} if targets is None else {c: targets.loc[rows] for c, rows in members.items()}

    def figures(category: str, alpha: float) -> CellFigures:
        return cell_figures(
            tables[category],
            Cell(category, alpha),
            null=nulls.get(category),
            ceiling=ceilings.get(category),
        )

    pooled = [*tables.values(), *by_alpha.values(), table]
    drawn = _samples([(t, nulls.get(c)) for c, t in tables.items()], pooled)
    with resampled_together([*drawn, *(of.to_numpy() for of in ends.values())]):
        own = {
            category: TargetFigures(
                category=category,
                margin=unclaimed(estimated(of.to_numpy()[:, np.newaxis])),
                items=complete(of),
                ceiling=ceilings.get(category),
            )
            for category, of in ends.items()
        }
        unsteered = {category: figures(category, UNSTEERED) for category in members}
        cells = [figures(category, alpha) for category in members for alpha in steered]
        if own:
            cells = [_with_share(one, own[one.cell.category]) for one in cells]
            unsteered = {name: _with_share(c, own[name]) for name, c in unsteered.items()}
        return Analysis(
            cells={figures.cell: figures for figures in adjusted(cells)},
            unsteered=unsteered,
            targets=own,
            categories={category: pool(of) for category, of in tables.items()},
            alphas={alpha: pool(of) for alpha, of in by_alpha.items()},
            overall=pool(table),
        )


def with_seeds(
    analysis: Analysis, seeds: Mapping[Cell, Mapping[str, tuple[float, ...]]]
) -> Analysis:
    """The same analysis with the margins of single images (one per seed) added to each cell.

    ``seeds``: cell to pair id to margins. A cell stays without them if any of its items has none.
    """

    def of(figures: CellFigures) -> CellFigures:
        mine = seeds.get(figures.cell, {})
        found = {pair: mine[pair] for pair in figures.items if pair in mine}
        return replace(figures, seeds=found if found.keys() == figures.items.keys() else {})

    return replace(
        analysis,
        cells={cell: of(figures) for cell, figures in analysis.cells.items()},
        unsteered={name: of(figures) for name, figures in analysis.unsteered.items()},
    )


def cell_figures(
    table: pd.DataFrame,
    cell: Cell,
    *,
    null: pd.DataFrame | None = None,
    ceiling: Ceiling | None = None,
) -> CellFigures:
    """One cell, from the items of its category. At alpha 0 the margin has no verdict."""
    values = _cell_values(table, cell.alpha, null)
    figures = {name: estimated(column.to_numpy()[:, np.newaxis]) for name, column in values.items()}
    margin = seen(figures["margin"], ceiling)
    return CellFigures(
        cell=cell,
        margin=unclaimed(margin) if cell.alpha == UNSTEERED else margin,
        gain=seen(figures["gain"], ceiling) if "gain" in figures else None,
        items=complete(values["margin"]),
        ceiling=ceiling,
        null=Null(figures["null"], figures["null gain"], figures["advantage"])
        if "null" in figures
        else None,
    )


def complete(items: pd.Series) -> dict[str, float]:
    """Pair id to margin, for complete items."""
    return {str(pair): float(value) for pair, value in items.dropna().items()}


def _cell_values(
    table: pd.DataFrame, alpha: float, null: pd.DataFrame | None
) -> dict[str, pd.Series]:
    """The quantities that are estimated for a cell: a value for each pair."""
    values = {"margin": table[alpha]}
    if alpha != UNSTEERED:
        values["gain"] = table[alpha] - table[UNSTEERED]
        if null is not None:
            values["null"] = null[alpha]
            values["null gain"] = null[alpha] - null[UNSTEERED]
            values["advantage"] = table[alpha] - null[alpha]
    return values


def pool(table: pd.DataFrame) -> Pool:
    """All cells of a table pooled, without the unsteered images."""
    margins, gains = _pool_values(table)
    return Pool(
        margin=estimated(margins),
        gain=estimated(gains),
        trend=trend(table.to_numpy(), _alphas(table)) if _has_trend(table) else None,
        items=item_level(margins) if not np.isnan(margins).any() else None,
    )


def _pool_values(table: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Margins and gains of a pool, each (pairs, alphas)."""
    margins = table[[alpha for alpha in _alphas(table) if alpha != UNSTEERED]].to_numpy()
    return margins, margins - table[[UNSTEERED]].to_numpy()


def _has_trend(table: pd.DataFrame) -> bool:
    return len(table.columns) > 2 and not np.isnan(table.to_numpy()).any()


def _samples(
    cells: Iterable[tuple[pd.DataFrame, pd.DataFrame | None]], pools: Iterable[pd.DataFrame]
) -> Iterator[NDArray[np.float64]]:
    """Every sample that an analysis bootstraps, for cells with their nulls and for pools."""
    for table, null in cells:
        for alpha in _alphas(table):
            for column in _cell_values(table, alpha, null).values():
                yield column.to_numpy()
    for table in pools:
        margins, gains = _pool_values(table)
        yield from (margins.mean(axis=1), gains.mean(axis=1), margins.ravel())
        if _has_trend(table):
            yield slopes(table.to_numpy(), _alphas(table))


def _alphas(table: pd.DataFrame) -> list[float]:
    return [float(alpha) for alpha in table.columns]


def estimated(
    values: NDArray[np.float64],
    *,
    confidence: float = DEFAULT_CONFIDENCE,
    n_resamples: int = 10_000,
) -> Estimate:
    """The estimate from values of shape (pairs, alphas).

    It has only its counts if an item is missing.
    """
    is_there = ~np.isnan(values)
    if not is_there.all():
        return Estimate(n=len(values), n_items=int(is_there.sum()))
    made = pooled_estimate(values, confidence=confidence, n_resamples=n_resamples)
    if np.abs(values).max(initial=0.0) < RESOLUTION and made.verdict in DECIDED:
        return replace(made, verdict=Verdict.INCONCLUSIVE, n_needed=None)
    return replace(made, n_needed=None) if abs(made.mean) < RESOLUTION else made


def _largest_p(cell: CellFigures) -> float:
    if cell.stop is not None:
        return cell.stop.p_seq
    return max(cell.margin.p, cell.margin.p_bootstrap)


def unclaimed(figures: Estimate) -> Estimate:
    """The figures without a verdict, for images about which nothing is claimed."""
    return replace(figures, verdict=None, n_needed=None)


def _with_share(figures: CellFigures, target: TargetFigures) -> CellFigures:
    return replace(figures, target_share=target.share_of(figures.margin.mean))


def seen(figures: Estimate, ceiling: Ceiling | None) -> Estimate:
    """Figures with the verdict *blind* if the judge does not see the change."""
    if ceiling is None or not ceiling.is_blind or figures.verdict not in DECIDED:
        return figures
    return replace(figures, verdict=Verdict.BLIND, n_needed=None)


def adjusted(cells: Sequence[CellFigures]) -> list[CellFigures]:
    """The cells with p adjusted for the family of all cells that were tested.

    A sequential run's sequential p is adjusted; in any other run the larger p of the t-test and the
    bootstrap-t test. The first step of Holm's correction for 24 cells compares p with 0.05 / 24.
    So far into the tail the t-test depends on the shape of the data: with the t-test alone, 28% of
    families of null cells whose margins have a long lower tail (50 pairs) had a success after
    Holm; with the larger p of both tests, 9% (docs/calibration.md).
    """
    p = [_largest_p(cell) if cell.margin.verdict in DECIDED else float("nan") for cell in cells]
    return [
        replace(cell, p_holm=float(a), p_bh=float(b))
        for cell, a, b in zip(cells, holm(p), benjamini_hochberg(p), strict=True)
    ]
