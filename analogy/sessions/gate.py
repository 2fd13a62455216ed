"""The regression gate of a sequential run: each cell is compared look by look until it is decided.

A comparison has its own looks, whose levels are those of a cell divided by the number of
comparisons. It also needs the cell's verdict, which may be worse than in the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analogy.core.records import Cell
from analogy.results.comparison import n_comparisons
from analogy.results.comparison_looks import GateState, baseline_margins, compare_looks
from analogy.results.model import Results
from analogy.sessions.session import Session
from analogy.statistics.sequential import Design
from analogy.store.grid import Job, once


def state(session: Session, baseline: Results, cell: Cell) -> GateState:
    """A cell's comparison with the baseline by the scores that exist now."""
    study = session.study
    now, old = study.plan.state(cell.category), baseline.analysis.cells[cell]
    config, pairs = study.config, [pair.id for pair in now.pairs]
    before = baseline_margins(old, _seeds(baseline), pairs, config.seeds)
    comparisons = n_comparisons(study.header())
    design = Design.of(
        len(pairs), len(config.seeds), cells=len(study.plan.cells), comparisons=comparisons
    )
    # A baseline from a sequential run may lack the images of later looks.
    looks = [
        each for each in design.looks if not np.isnan(before[: each.pairs, : each.seeds]).any()
    ]
    design = Design(tuple(looks or design.looks[:1]))
    last = design.looks[-1]
    block = np.s_[: last.pairs, : last.seeds]
    return compare_looks(
        old,
        study.cell(*cell),
        now.margins[cell.alpha][block],
        before[block],
        design=design,
        tolerance=session.request.tolerance,
    )


def jobs(session: Session, baseline: Results, cell: Cell) -> list[Job]:
    """The images that the comparison needs by now, including those of the cell's own looks."""
    plan, needs = session.study.plan, state(session, baseline, cell).needs
    further = [] if needs is None else plan.steered(cell, *needs)
    return once([*plan.due([cell]), *further])


def _seeds(baseline: Results) -> Sequence[int]:
    """The baseline's seeds in the order of its items' margins."""
    recorded = baseline.header.config.values.get("seeds")
    if isinstance(recorded, (list, tuple)) and {*recorded} == {*baseline.header.measurement.seeds}:
        return [int(seed) for seed in recorded]
    return baseline.header.measurement.seeds
