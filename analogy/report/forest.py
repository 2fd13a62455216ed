"""The report's forest plots: sortable tables with a bar for each interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from analogy.report.figures import comparison_rows, forest_rows
from analogy.report.numbers import MINUS, signed
from analogy.report.plots import IntervalRow
from analogy.results.comparison import Comparison
from analogy.results.model import Analysis


@dataclass(frozen=True, slots=True)
class Axis:
    """The scale that a column's bars share. Positions are in percent of its width.

    ``ticks``: position and label; ``zero``: the position of 0.
    """

    name: str
    ticks: tuple[tuple[float, str], ...]
    zero: float


@dataclass(frozen=True, slots=True)
class IntervalBar:
    """A mean and its interval on an axis.

    ``at``: the mean's position; ``low`` and ``width``: the start and width of the interval, in
    percent of the axis; None if there is no such figure. ``mean``: the figure itself; ``text``: the
    interval as text.
    """

    mean: float | None
    at: float | None
    low: float | None
    width: float | None
    text: str


@dataclass(frozen=True, slots=True)
class ForestRow:
    """A cell, or all of them (category and alpha None), with a bar for each axis.

    ``verdict``: of the cell, or the outcome of its comparison.
    """

    category: str | None
    alpha: float | None
    bars: tuple[IntervalBar, ...]
    verdict: str


@dataclass(frozen=True, slots=True)
class Forest:
    """Rows of bars on shared axes; ``last``: the name of the verdicts' column."""

    name: str
    title: str
    axes: tuple[Axis, ...]
    rows: tuple[ForestRow, ...]
    last: str


def cells_forest(analysis: Analysis) -> Forest:
    """Margins and gains of all cells with their intervals."""
    margins, gains = (forest_rows(analysis, name) for name in ("margin", "gain"))
    axes = _axis("margin", margins), _axis("gain", gains)
    rows = [
        ForestRow(*cell, (_bar(margin, margins), _bar(gain, gains)), margin.verdict)
        for cell, margin, gain in zip(analysis.cells, margins, gains, strict=True)
    ]
    return Forest("forest", "Margins and gains", axes, tuple(rows), "verdict")


def comparison_forest(comparison: Comparison, *, has_confidence: bool) -> Forest:
    """The differences from the baseline. ``has_confidence``: whether rows show their confidence."""
    found = comparison_rows(comparison, has_confidence=has_confidence)
    rows = [
        ForestRow(change.category, change.alpha, (_bar(row, found),), row.verdict)
        for change, row in zip(comparison.all_changes, found, strict=True)
    ]
    axis = _axis(f"this run {MINUS} baseline", found)
    return Forest("differences", "Differences from the baseline", (axis,), tuple(rows), "outcome")


def _scale(rows: Sequence[IntervalRow]) -> tuple[float, float]:
    """The ends of an axis that holds every interval and 0, with a margin of 4% on each side."""
    ends = [v for row in rows for v in (row.mean, row.low, row.high) if v is not None]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.04 * (high - low) or 1.0
    return low - room, high + room


def _axis(name: str, rows: Sequence[IntervalRow]) -> Axis:
    low, high = _scale(rows)
    values = [
        v for v in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= v <= high
    ]
    return Axis(
        name,
        tuple((_place(value, low, high), f"{value:.3g}".replace("-", MINUS)) for value in values),
        _place(0.0, low, high),
    )


def _bar(row: IntervalRow, rows: Sequence[IntervalRow]) -> IntervalBar:
    low, high = _scale(rows)
    at = None if row.mean is None else _place(row.mean, low, high)
    if row.low is None or row.high is None:
        return IntervalBar(row.mean, at, None, None, "")
    start = _place(row.low, low, high)
    text = f"[{signed(row.low)}, {signed(row.high)}]"
    return IntervalBar(row.mean, at, start, round(_place(row.high, low, high) - start, 2),
               f"{row.confidence} {text}".strip())  # fmt: skip


def _place(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)
