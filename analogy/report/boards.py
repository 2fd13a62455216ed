"""Leaderboards: runs of the same measurement, ranked by paired differences, with ties shown.

A run's place is an interval of ranks: behind all runs that are significantly better, before all
that are significantly worse (Mogstad, Romano, Shaikh and Wilhelm 2024, "Inference for ranks").
Significance is by Holm's p of the paired difference, corrected for all pairs of runs of the board
(:func:`analogy.studies.method_comparison.compared`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analogy.core.records import Estimate, Verdict
from analogy.report.overview import Entry
from analogy.results.model import Measurement, Results
from analogy.studies.method_comparison import Difference, compared

MOST_RANKED = 50
"""The largest number of runs that a board ranks. Comparisons grow with its square."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A run's place.

    ``run``: its index in the list of runs; ``margin``: over all strengths but 0; ``first``,
    ``last``: the ranks that it may have, from 1; ``like``: the indices of the runs from which it
    does not differ significantly.
    """

    run: int
    margin: Estimate
    first: int
    last: int
    like: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """The runs of one measurement, the highest mean first.

    ``unranked``: the index of each run of the same measurement that is not ranked, with the reason.
    """

    measurement: Measurement
    n_pairs: int
    ranked: tuple[Standing, ...]
    unranked: Mapping[int, str]


def boards(entries: Sequence[Entry]) -> list[Board]:
    """A board for each measurement that two or more runs have, the largest first."""
    groups: list[tuple[Measurement, list[int]]] = []
    for i, entry in enumerate(entries):
        if entry.results is None:
            continue
        mine = entry.results.header.measurement
        for measurement, runs in groups:
            if measurement == mine:
                runs.append(i)
                break
        else:
            groups.append((mine, [i]))
    made = [_board(of, runs, entries) for of, runs in groups if len(runs) > 1]
    return sorted(made, key=lambda board: -len(board.ranked))


def _board(measurement: Measurement, runs: Sequence[int], entries: Sequence[Entry]) -> Board:
    unranked: dict[int, str] = {}
    values: dict[int, NDArray[np.float64]] = {}
    n_pairs = 0
    for run in runs:
        results = entries[run].results
        if results is None:
            continue
        reason = _why_not(results)
        if reason is None and len(values) == MOST_RANKED:
            reason = f"only the latest {MOST_RANKED} runs are ranked"
        if reason is not None:
            unranked[run] = reason
            continue
        values[run] = _means(results)
        n_pairs = len(values[run])
    order = sorted(values, key=lambda run: -values[run].mean())
    differences = compared({str(run): values[run] for run in order})
    ranked = [_standing(run, order, differences, entries) for run in order]
    return Board(measurement, n_pairs, tuple(ranked), unranked)


def _why_not(results: Results) -> str | None:
    """Why a run cannot be ranked; None if it can."""
    if results.header.config.sequential:
        return "a sequential run has other pairs in each cell"
    if results.analysis.overall.margin.verdict in (None, Verdict.INCOMPLETE):
        return "images are missing"
    if any(one.margin.n_items < one.margin.n for one in results.analysis.cells.values()):
        return "images are missing"
    return None


def _means(results: Results) -> NDArray[np.float64]:
    """Each pair's mean over the strengths, in the order of the pairs' ids."""
    margins: dict[str, list[float]] = {}
    for figures in results.analysis.cells.values():
        for pair, margin in figures.items.items():
            margins.setdefault(pair, []).append(margin)
    return np.array([np.mean(margins[pair]) for pair in sorted(margins)])


def _standing(
    run: int, order: Sequence[int], differences: Sequence[Difference], entries: Sequence[Entry]
) -> Standing:
    mine = [one for one in differences if str(run) in (one.first, one.second)]
    better = sum(one.is_distinct and one.second == str(run) for one in mine)
    worse = sum(one.is_distinct and one.first == str(run) for one in mine)
    like = [
        int(one.second if one.first == str(run) else one.first)
        for one in mine
        if not one.is_distinct
    ]
    results = entries[run].results
    if results is None:
        raise TypeError("a run without results has no place")
    return Standing(
        run, results.analysis.overall.margin, 1 + better, len(order) - worse, tuple(like)
    )
