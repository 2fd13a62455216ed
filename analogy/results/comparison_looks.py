"""Comparisons of sequential runs, on the pairs and seeds that both sides have. Intervals are those
of a look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analogy.core.records import Cell, Outcome, Verdict
from analogy.results.changes import Change, fell, outcome_of, undecided
from analogy.results.model import CellFigures
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.statistics.sequential import TOTAL, Design, decide_change

Margins = NDArray[np.float64]
"""Margins of single images, ``(pairs, seeds)``; NaN where one is missing."""


def compare_common(
    cells: Sequence[tuple[CellFigures, CellFigures]], *, tolerance: float, comparisons: int
) -> Change:
    """One or more cells against their baselines, on the pairs and seeds that all of them have.

    Several cells are compared by each pair's mean over its cells. The interval is that of the
    earliest look among them, its level divided by ``comparisons``. If images are missing, the
    change counts all pairs, as :func:`~analogy.results.comparison.compare_items` does.
    """
    n_seeds = min((_n_seeds(one) for two in cells for one in two), default=0)
    common: dict[str, set[str]] = {}
    planned: dict[str, int] = {}  # the pairs of a category, with or without their images
    for two in cells:
        for one in two:
            mine = one.cell.category
            common[mine] = common.get(mine, {*one.items}) & one.items.keys()
            planned[mine] = min(planned.get(mine, one.margin.n), one.margin.n)
    stops = [one.stop for two in cells for one in two if one.stop is not None]
    level = min(TOTAL, *(stop.level for stop in stops)) / comparisons
    sums: dict[str, list[tuple[float, float]]] = {}
    for old, new in cells:
        for pair in sorted(common[old.cell.category]):
            sums.setdefault(pair, []).append((_item(old, pair, n_seeds), _item(new, pair, n_seeds)))
    means = np.array([np.mean(each, axis=0) for each in sums.values()]).reshape(-1, 2)
    is_missing = (
        any(one.margin.verdict is Verdict.INCOMPLETE for two in cells for one in two)
        or not np.isfinite(means).all()
    )
    verdicts = cells[0][0].margin.verdict, cells[0][1].margin.verdict
    is_blind = any(one.margin.verdict is Verdict.BLIND for two in cells for one in two)
    return _change(
        cells[0][0].cell, means[:, 0], means[:, 1], tolerance, level, verdicts,
        n=sum(planned.values()) if is_missing else len(means),
        is_missing=is_missing, is_blind=is_blind,
    )  # fmt: skip


def _n_seeds(figures: CellFigures) -> int:
    """The seeds of a cell's items; 2**31 if a file has no margins of single images to select by."""
    if figures.stop is not None:
        return figures.stop.seeds
    return len(next(iter(figures.seeds.values()), ())) or 2**31


def _item(figures: CellFigures, pair: str, n_seeds: int) -> float:
    """A pair's mean over the first seeds. A file without margins of single images has only the mean
    over all seeds, which is returned instead, as in :func:`baseline_margins`.
    """
    if not figures.seeds:
        return figures.items[pair]
    margins = figures.seeds.get(pair, ())[:n_seeds]
    return math.fsum(margins) / len(margins) if margins else math.nan


@dataclass(frozen=True, slots=True)
class GateState:
    """The current comparison of a cell with its baseline.

    ``needs``: the pairs and seeds whose images it lacks, None if it is decided.
    """

    change: Change
    needs: tuple[int, int] | None


def compare_looks(
    old: CellFigures,
    new: CellFigures,
    margins: Margins,
    baseline: Margins,
    *,
    design: Design,
    tolerance: float,
) -> GateState:
    """A cell of a running session against its baseline, look by look until one decides.

    ``margins``, ``baseline``: ``(pairs in the recorded order, seeds)``, NaN if missing;
    ``design``: its levels already share the error among all comparisons.
    """
    found = decide_change(margins - baseline, tolerance, design)
    look = design.looks[found.look]
    block = np.s_[: look.pairs, : look.seeds]
    change = _change(
        old.cell, baseline[block].mean(axis=1), margins[block].mean(axis=1), tolerance,
        look.level, (old.margin.verdict, new.margin.verdict),
        n=look.pairs,
        is_missing=found.is_open,
        is_blind=Verdict.BLIND in (old.margin.verdict, new.margin.verdict),
        outcome=found.outcome,
    )  # fmt: skip
    return GateState(change, (look.pairs, look.seeds) if found.is_open else None)


def baseline_margins(
    old: CellFigures, old_seeds: Sequence[int], pairs: Sequence[str], seeds: Sequence[int]
) -> Margins:
    """A baseline's margins of single images for these pairs and seeds; NaN for missing ones.

    A file without single margins has only each pair's mean, which stands for every seed.
    """
    found = np.full((len(pairs), len(seeds)), np.nan)
    for i, pair in enumerate(pairs):
        if pair in old.seeds:
            by_seed: Mapping[int, float] = dict(zip(old_seeds, old.seeds[pair], strict=False))
            found[i] = [by_seed.get(seed, math.nan) for seed in seeds]
        elif not old.seeds and pair in old.items:
            found[i] = old.items[pair]
    return found


def _change(
    cell: Cell,
    olds: NDArray[np.float64],
    news: NDArray[np.float64],
    tolerance: float,
    level: float,
    verdicts: tuple[Verdict | None, Verdict | None],
    *,
    n: int,
    is_missing: bool,
    is_blind: bool,
    outcome: Outcome | None = None,
) -> Change:
    """The change of a cell. ``n``: the number of pairs, with or without their images; ``outcome``:
    that of the looks' tests, None to take the interval's.
    """
    confidence = 1 - 2 * level
    before = after = difference = low = high = math.nan
    if len(olds) and not is_missing:
        before, after = float(olds.mean()), float(news.mean())
        difference = float((news - olds).mean())
        low, high = bootstrap_ci(
            news - olds,
            confidence=confidence,
            n_resamples=max(10_000, math.ceil(round(10 / level, 6))),
        )
    has_fallen = fell(*verdicts)
    if outcome is None or has_fallen:
        outcome = outcome_of(low, high, tolerance=tolerance, has_fallen=has_fallen)
    outcome = undecided(n, is_missing=is_missing, is_blind=is_blind) or outcome
    return Change(
        category=cell.category, alpha=cell.alpha, n=n, old=before, new=after,
        difference=difference, ci_low=low, ci_high=high, confidence=confidence,
        tolerance=tolerance, old_verdict=verdicts[0], new_verdict=verdicts[1], outcome=outcome,
    )  # fmt: skip
