"""The writer ``csv``: one row for each cell, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from analogy.core.files import write_output
from analogy.report.looks import is_sequential
from analogy.results.model import CellFigures, Results
from analogy.writers import Context

COLUMNS = (
    "category", "alpha", "n", "mean", "ci_low", "ci_high", "p", "p_holm", "success_rate",
    "effect_size", "verdict", "gain", "gain_ci_low", "gain_ci_high", "ceiling_share",
    "target_share",
)  # fmt: skip
"""The first columns. A column for each metric follows, with its name and the cell's mean."""

LOOK_COLUMNS = (
    "look", "looks", "seeds", "images", "confidence", "p_seq", "stopped_early", "icc", "gain_look",
    "gain_confidence",
)  # fmt: skip
"""Columns between these in a sequential run, on the look at which the cell stopped. ``confidence``
is that of ``ci_low`` and ``ci_high``, and ``gain_confidence`` that of the gain's interval; in any
other run both have 0.95. ``p`` is that of the look alone; ``p_seq`` allows for all looks."""


class CellsCsv:
    """Writes the cells of the grid, without the unsteered images (alpha 0)."""

    suffixes = (".csv",)

    def write(self, results: Results, path: Path, context: Context) -> None:
        """Write the rows in the order of the results. A missing figure is an empty field."""
        measured = results.quality.cells
        metrics = list(dict.fromkeys(name for means in measured.values() for name in means))
        at_look = is_sequential(results)
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        looks = LOOK_COLUMNS if at_look else ()
        rows.writerow([*COLUMNS, *looks, *map(_text, metrics)])
        for cell, figures in results.analysis.cells.items():
            means = measured.get(cell, {})
            values = [means[name].mean if name in means else None for name in metrics]
            more = _looks(figures) if at_look else []
            rows.writerow([*_figures(figures), *more, *map(_number, values)])
        write_output(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _figures(of: CellFigures) -> list[str]:
    margin, gain = of.margin, of.gain
    gains = (None,) * 3 if gain is None else (gain.mean, gain.ci_low, gain.ci_high)
    return [
        _text(of.cell.category),
        *map(_number, (of.cell.alpha, margin.n, margin.mean, margin.ci_low, margin.ci_high)),
        *map(_number, (margin.p, of.p_holm, margin.success_rate, margin.effect_size)),
        "" if margin.verdict is None else margin.verdict.value,
        *map(_number, (*gains, of.share, of.target_share)),
    ]


def _looks(of: CellFigures) -> list[str]:
    """The columns of `LOOK_COLUMNS`."""
    stop, gain = of.stop, of.gain_stop
    own: tuple[float | None, ...] = (None,) * 6
    early = ""
    if stop is not None:
        own = (stop.look, stop.looks, stop.seeds, stop.images, stop.confidence, stop.p_seq)
        early = "true" if stop.is_early else "false"
    gains = (None, None) if gain is None else (gain.look, gain.confidence)
    icc = None if stop is None else stop.icc
    return [*map(_number, own), early, *map(_number, (icc, *gains))]


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def _text(text: str) -> str:
    """A name, with a quote before it if a spreadsheet would read it as a formula: results may come
    from anyone.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


writer = CellsCsv()
