"""The values in a run's plots, for the report and for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analogy.core.records import SIGNIFICANCE, Cell, Estimate, Verdict
from analogy.grid_metrics import shown_metrics
from analogy.report.marks import cell_mark
from analogy.report.numbers import (
    WithInterval,
    confidence,
    interval,
    number,
    symbol,
    verdict_name,
)
from analogy.report.plots import IntervalRow, Limits, Point, StoppedCell, short
from analogy.results.comparison import Comparison
from analogy.results.model import Analysis, Ceiling, CellFigures, Results, Stop

# --- category x alpha


@dataclass(frozen=True, slots=True)
class HeatCell:
    """An entry of the heat map.

    - ``verdict``: as in `numbers.SYMBOLS`;
    - ``is_raw``: whether it is a success that does not survive Holm's correction;
    - ``strength``: that of the colour, in percent, 0..60;
    - ``interval``: that of the mean, as text, in a sequential run with its confidence;
    - ``note``: as :func:`analogy.report.marks.cell_mark` returns it.
    """

    mean: float | None
    verdict: str
    is_raw: bool
    strength: int
    interval: str
    note: str = ""

    @property
    def side(self) -> str:
        """``pos`` above 0, else ``neg``; ``none`` without a mean."""
        if self.mean is None:
            return "none"
        return "pos" if self.mean > 0 else "neg"

    @property
    def mark(self) -> str:
        """The verdict's symbol."""
        return f"({symbol(self.verdict)})" if self.is_raw else symbol(self.verdict)


@dataclass(frozen=True, slots=True)
class HeatRow:
    """The row of a category, or of all categories: at alpha 0, at each other alpha, and pooled."""

    name: str
    cells: Sequence[HeatCell]


def verdict_map(results: Results) -> list[HeatRow]:
    """The heat map: a row per category, and one for all of them together.

    ``strength``: |margin| as a share of the largest one, times 60%.
    """
    analysis, alphas = results.analysis, results.header.measurement.alphas
    figures = [*analysis.cells.values(), *analysis.unsteered.values()]
    means = [abs(mean) for one in figures if (mean := number(one.margin.mean)) is not None]
    most = max(means, default=0.0) or 1.0

    def entry(
        margin: Estimate | None,
        stop: Stop | None,
        p_holm: float = 0.0,
        *,
        of: Iterable[CellFigures],
    ) -> HeatCell:
        mean = None if margin is None else number(margin.mean)
        verdict = None if margin is None else margin.verdict
        return HeatCell(
            mean=mean,
            verdict=verdict_name(verdict),
            is_raw=verdict is Verdict.SUCCESS and p_holm >= SIGNIFICANCE,
            strength=0 if mean is None else round(min(abs(mean) / most, 1.0) * 60),
            interval="" if margin is None else _with_confidence(interval(margin), stop),
            note=cell_mark(results, *of),
        )

    made = []
    for name in results.header.categories:
        unsteered, pool = analysis.unsteered.get(name), analysis.categories.get(name)
        own = [analysis.cells[Cell(name, alpha)] for alpha in alphas]
        cells = [
            entry(None, None, of=())
            if unsteered is None
            else entry(unsteered.margin, unsteered.stop, of=[unsteered]),
            *(entry(one.margin, one.stop, one.p_holm, of=[one]) for one in own),
            entry(None, None, of=()) if pool is None else entry(pool.margin, pool.stop, of=own),
        ]
        made.append(HeatRow(name, cells))
    pools = [*(analysis.alphas.get(alpha) for alpha in alphas), analysis.overall]
    whole = [
        entry(None, None, of=())
        if one is None
        else entry(one.margin, one.stop, of=analysis.cells.values())
        for one in (None, *pools)
    ]
    made.append(HeatRow("all", whole))
    return made


def _with_confidence(text: str, stop: Stop | None) -> str:
    return text if stop is None else f"{confidence(stop)} {text}"


# --- intervals


def row_of(label: str, figures: Estimate | None, stop: Stop | None = None) -> IntervalRow:
    """A row of an estimate; its figures are None without an estimate.

    ``stop``: the look that determines the interval's confidence; None for 95%.
    """
    if figures is None:
        return IntervalRow(label, None, None, None, verdict_name(None))
    low, high = number(figures.ci_low), number(figures.ci_high)
    at = "" if stop is None else confidence(stop)
    return IntervalRow(label, number(figures.mean), low, high, verdict_name(figures.verdict), at)


def forest_rows(analysis: Analysis, name: str) -> list[IntervalRow]:
    """The ``margin`` or the ``gain`` of every cell, as `plots.forest` takes them."""
    return [
        row_of(
            f"{short(cell.category)} {cell.alpha:g}",
            figures.margin if name == "margin" else figures.gain,
            figures.stop if name == "margin" else figures.gain_stop,
        )
        for cell, figures in analysis.cells.items()
    ]


def comparison_rows(comparison: Comparison, *, has_confidence: bool = False) -> list[IntervalRow]:
    """The difference of every cell, and of all together, from the baseline.

    ``has_confidence``: whether a row shows the confidence of its interval.
    """
    rows = []
    for change in comparison.all_changes:
        name = "overall"
        if change.category is not None:
            name = f"{short(change.category)} {change.alpha:g}"
        low, high = number(change.ci_low), number(change.ci_high)
        at = f"{100 * change.confidence:.8g}%" if has_confidence else ""
        rows.append(
            IntervalRow(name, number(change.difference), low, high, str(change.outcome), at)
        )
    return rows


# --- looks


def decided_rows(results: Results) -> Sequence[StoppedCell]:
    """The cells of a sequential run with their looks, as `plots.decisions` takes them."""
    rows = []
    for cell, figures in results.analysis.cells.items():
        stop, label = figures.stop, f"{short(cell.category)} {cell.alpha:g}"
        verdict = (figures.margin.verdict or Verdict.INCOMPLETE).value
        if stop is None:
            rows.append(StoppedCell(label, verdict))
        else:
            rows.append(StoppedCell(label, verdict, stop.look, stop.looks, stop.pairs, stop.seeds))
    return rows


# --- dose and response


@dataclass(frozen=True, slots=True)
class Responses:
    """A category at each alpha, ascending, 0 included.

    ``margins``: ``(pairs, alphas)``, NaN where an item is missing; ``rows``: the estimates;
    ``ceiling``, ``share``, ``target_share``: those of the cell at the last alpha.
    """

    alphas: Sequence[float]
    margins: NDArray[np.float64]
    rows: Sequence[IntervalRow]
    ceiling: Ceiling | None
    share: float | None
    target_share: float | None

    @property
    def ceiling_mean(self) -> float | None:
        """The ceiling's mean margin; None without a ceiling."""
        return None if self.ceiling is None else number(self.ceiling.mean)


def responses(analysis: Analysis, category: str) -> Responses:
    """The input of `plots.dose_response` and `plots.distribution` for a category."""
    figures = [one for cell, one in analysis.cells.items() if cell.category == category]
    if category in analysis.unsteered:
        figures.append(analysis.unsteered[category])
    figures.sort(key=lambda one: one.cell.alpha)
    last = figures[-1]
    return Responses(
        alphas=[one.cell.alpha for one in figures],
        margins=_margins(figures),
        rows=[row_of(f"{one.cell.alpha:g}", one.margin, one.stop) for one in figures],
        ceiling=last.ceiling,
        share=last.share,
        target_share=last.target_share,
    )


def _margins(figures: Sequence[CellFigures]) -> NDArray[np.float64]:
    """Items as ``(pairs, alphas)``, NaN where one is missing."""
    pairs = list(dict.fromkeys(pair for one in figures for pair in one.items))
    values = [[one.items.get(pair) for one in figures] for pair in pairs]
    return np.array(values, dtype=float).reshape(len(pairs), len(figures))


def margin_limits(of: Sequence[Responses]) -> Limits:
    """The lowest and highest margin of several categories, so that their plots share an axis."""
    found = [0.0]
    for each in of:
        found += each.margins[~np.isnan(each.margins)].tolist()
        ends = [end for row in each.rows for end in (row.mean, row.low, row.high)]
        found += [value for value in (*ends, each.ceiling_mean) if value is not None]
    return min(found), max(found)


# --- preservation


def preservation(results: Results) -> dict[str, str]:
    """The metrics of the trade-off plots: their names, and the labels of their axes."""
    shown = shown_metrics(results.quality.metrics)
    return {metric.name: metric.axis for metric in shown if metric.unchanged is not None}


def trade_off_series(results: Results, metric: str) -> Mapping[str, Sequence[Point]]:
    """The input of `plots.trade_off`: category to its points that have both figures.

    ``metric``: the name of a quality metric.
    """
    series: dict[str, list[Point]] = {}
    measured = sorted(results.quality.cells.items(), key=lambda one: one[0].alpha)
    for cell, metrics in measured:
        figures = results.analysis.cells.get(cell)
        if metric not in metrics or figures is None or figures.gain is None:
            continue
        of, gain = metrics[metric], figures.gain
        kept, mean = number(of.mean), number(gain.mean)
        if kept is not None and mean is not None:
            point = Point(cell.alpha, kept, mean, _ends(of), _ends(gain))
            series.setdefault(cell.category, []).append(point)
    return series


def _ends(figures: WithInterval) -> tuple[float, float] | None:
    low, high = number(figures.ci_low), number(figures.ci_high)
    return None if low is None or high is None else (low, high)
