"""The figures of a sequential run, each computed at its look, with that look's interval.

A look's interval (of confidence 1 - 2 level) is valid at whatever look a run stops and for whatever
reason, also for gains, pools and trends (docs/sequential.md). The usual 95% interval is not, and is
never printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analogy.core.records import UNSTEERED, Cell, Estimate, Trend, Verdict
from analogy.results.model import Analysis, Ceiling, CellFigures, Null, Pool, Stop, TargetFigures
from analogy.statistics.estimates import trend
from analogy.statistics.sequential import Decision, Design, Look
from analogy.statistics.variances import variances
from analogy.studies.analysis import adjusted, complete, estimated, seen, unclaimed
from analogy.studies.sequential import CategoryState, Margins


def analyse(
    states: Mapping[str, CategoryState], ceilings: Mapping[str, Ceiling | None]
) -> Analysis:
    """All figures of a run from the states of its categories."""
    cells = [
        cell_figures(state, cell, ceilings.get(category))
        for category, state in states.items()
        for cell in sorted(state.cells, key=lambda cell: cell.alpha)
    ]
    alphas = sorted({cell.cell.alpha for cell in cells})
    return Analysis(
        cells={figures.cell: figures for figures in adjusted(cells)},
        unsteered={
            category: _unsteered(category, state, ceilings.get(category))
            for category, state in states.items()
        },
        targets={
            category: _target(category, state, state.targets, ceilings.get(category))
            for category, state in states.items()
            if state.targets is not None
        },
        categories={category: pool([state], alphas) for category, state in states.items()},
        alphas={alpha: pool([*states.values()], [alpha]) for alpha in alphas},
        overall=pool([*states.values()], alphas),
    )


def cell_figures(state: CategoryState, cell: Cell, ceiling: Ceiling | None = None) -> CellFigures:
    """The figures of one cell; ``incomplete`` while images of its look are missing."""
    progress, margins = state.cells[cell], state.margins[cell.alpha]
    look, gain_look = state.design.looks[progress.look], min(progress.gain_look, progress.look)
    gains = margins - state.margins[UNSTEERED]
    if not progress.is_stopped:
        block = state.block(margins, progress.look)
        there = int((~np.isnan(block).any(axis=1)).sum())
        items = complete(state.items(margins, progress.look))
        open_ = Estimate(n=look.pairs, n_items=there)
        return CellFigures(
            cell=cell, margin=open_, gain=open_, items=items, ceiling=ceiling,
            seeds=_seeds(state, margins, progress.look, items),
        )  # fmt: skip
    items = complete(state.items(margins, progress.look))
    margin = replace(
        at_look(state.items(margins, progress.look).to_numpy(), look),
        verdict=progress.margin.verdict,
    )
    gain = at_look(state.items(gains, gain_look).to_numpy(), state.design.looks[gain_look])
    if progress.gain.verdict is not None and gain.verdict is not Verdict.INCOMPLETE:
        gain = replace(gain, verdict=progress.gain.verdict)
    return CellFigures(
        cell=cell,
        margin=seen(margin, ceiling),
        gain=seen(gain, ceiling),
        items=items,
        ceiling=ceiling,
        null=_null(state, cell, progress.look, gain_look),
        target_share=_target_share(state, margins, progress.look),
        seeds=_seeds(state, margins, progress.look, items),
        stop=stop(state, progress.look, progress.margin, state.block(margins, progress.look)),
        gain_stop=stop(state, gain_look),
    )


def at_look(items: NDArray[np.float64], look: Look) -> Estimate:
    """The estimate of items, ``(pairs,)`` or ``(pairs, alphas)``, with the look's interval."""
    values = items if items.ndim == 2 else items[:, np.newaxis]
    made = estimated(values, confidence=look.confidence, n_resamples=look.n_resamples)
    # The error rate is spent, so pairs may not be added, and no number of pairs is advised.
    return replace(made, n_needed=None)


def stop(
    state: CategoryState,
    look: int,
    decision: Decision | None = None,
    block: Margins | None = None,
) -> Stop:
    """The look at index ``look`` as it is recorded in results.

    ``decision``: the decision on a margin, for its sequential p; ``block``: the look's margins,
    (pairs, seeds), for their ICC. Without these the figure is NaN.
    """
    return replace(
        stop_of(state.design, look),
        p_seq=float("nan") if decision is None else decision.p_seq,
        icc=float("nan") if block is None else variances(block).icc,
    )


def stop_of(design: Design, look: int) -> Stop:
    """As :func:`stop`, without the figures of a cell. ``look``: the index in the design."""
    at, last = design.looks[look], len(design.looks) - 1
    return Stop(
        look=look + 1,
        looks=last + 1,
        pairs=at.pairs,
        seeds=at.seeds,
        images=at.images,
        level=at.level,
        is_early=look < last,
    )


def pool(states: Sequence[CategoryState], alphas: Sequence[float]) -> Pool:
    """Several cells pooled, over the pairs and seeds that all of them have.

    These are the pairs and seeds of the cells' earliest look, whose interval is used, too. The gain
    and the trend use the earliest look of the gains.
    """
    progress = [
        state.cells[Cell(state.pairs[0].category, alpha)] for state in states for alpha in alphas
    ]
    look = min(each.look for each in progress)
    gain_look = min(look, *(each.gain_look for each in progress))
    margins = _table(states, alphas, look)
    if not all(each.is_stopped for each in progress):
        there = int((~np.isnan(margins)).sum())
        open_ = Estimate(n=len(margins), n_items=there)
        return Pool(open_, open_, None, None)
    with_unsteered = _table(states, [UNSTEERED, *alphas], gain_look)
    at, gain_at = _strictest(states, look), _strictest(states, gain_look)
    return Pool(
        margin=at_look(margins, at),
        gain=at_look(with_unsteered[:, 1:] - with_unsteered[:, :1], gain_at),
        trend=_trend(with_unsteered, [UNSTEERED, *alphas], gain_at) if len(alphas) > 1 else None,
        items=None,
        stop=_pool_stop(states, look),
        gain_stop=_pool_stop(states, gain_look),
    )


def _table(
    states: Sequence[CategoryState], alphas: Sequence[float], look: int
) -> NDArray[np.float64]:
    """Items of a look, (pairs of all categories, alphas)."""
    return np.concatenate(
        [
            np.column_stack([state.items(state.margins[a], look).to_numpy() for a in alphas])
            for state in states
        ]
    )


def _strictest(states: Iterable[CategoryState], look: int) -> Look:
    """The look with the smallest level: levels differ between categories of different sizes."""
    return min((state.design.looks[look] for state in states), key=lambda each: each.level)


def _pool_stop(states: Sequence[CategoryState], look: int) -> Stop:
    made = stop(states[0], look)
    strictest = _strictest(states, look)
    return replace(made, level=strictest.level)


def _trend(table: NDArray[np.float64], alphas: Sequence[float], look: Look) -> Trend | None:
    ascending = sorted(range(len(alphas)), key=lambda i: alphas[i])
    ordered = table[:, ascending]
    if np.isnan(ordered).any():
        return None
    return trend(ordered, sorted(alphas), confidence=look.confidence, n_resamples=look.n_resamples)


def _seeds(
    state: CategoryState, margins: Margins, look: int, items: Mapping[str, float]
) -> dict[str, tuple[float, ...]]:
    block = state.block(margins, look)
    rows = zip(state.pairs, block.tolist(), strict=False)
    return {pair.id: tuple(row) for pair, row in rows if pair.id in items}


def _null(state: CategoryState, cell: Cell, look: int, gain_look: int) -> Null | None:
    null = state.null.get(cell.alpha)
    if null is None:
        return None
    at, gain_at = state.design.looks[look], state.design.looks[gain_look]

    def of(margins: Margins, index: int) -> NDArray[np.float64]:
        return state.items(margins, index).to_numpy()

    return Null(
        at_look(of(null, look), at),
        at_look(of(null - state.margins[UNSTEERED], gain_look), gain_at),
        at_look(of(state.margins[cell.alpha] - null, look), at),
    )


def _unsteered_look(state: CategoryState) -> int:
    return state.unsteered_look(state.cells)


def _unsteered(category: str, state: CategoryState, ceiling: Ceiling | None) -> CellFigures:
    look, margins = _unsteered_look(state), state.margins[UNSTEERED]
    items = state.items(margins, look)
    return CellFigures(
        cell=Cell(category, UNSTEERED),
        margin=unclaimed(at_look(items.to_numpy(), state.design.looks[look])),
        gain=None,
        items=complete(items),
        ceiling=ceiling,
        target_share=_target_share(state, margins, look),
        seeds=_seeds(state, margins, look, complete(items)),
        stop=stop(state, look),
    )


def _target(
    category: str, state: CategoryState, margins: Margins, ceiling: Ceiling | None
) -> TargetFigures:
    look = _unsteered_look(state)
    items = state.items(margins, look)
    return TargetFigures(
        category=category,
        margin=unclaimed(at_look(items.to_numpy(), state.design.looks[look])),
        items=complete(items),
        ceiling=ceiling,
        stop=stop(state, look),
    )


def _target_share(state: CategoryState, margins: Margins, look: int) -> float | None:
    """The mean margin as a share of the target images', over the pairs and seeds that both have.

    Returns None without target images, with a missing item, or if their mean is not above 0.
    """
    if state.targets is None:
        return None
    look = min(look, _unsteered_look(state))
    own = state.items(margins, look).mean(skipna=False)
    best = state.items(state.targets, look).mean(skipna=False)
    return float(own / best) if best > 0 and np.isfinite(own) else None
