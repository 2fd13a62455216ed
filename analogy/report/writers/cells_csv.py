"""The writer ``csv``: one row for each cell, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from analogy.core.files import write_output
from analogy.results.model import CellFigures, Results
from analogy.writers import Context

COLUMNS = (
    "category", "alpha", "n", "mean", "ci_low", "ci_high", "p", "p_holm", "success_rate",
    "effect_size", "verdict", "gain", "gain_ci_low", "gain_ci_high", "ceiling_share",
    "target_share",
)  # fmt: skip
"""The first columns; a column for each metric follows, the cell's mean, under the metric's name."""


class CellsCsv:
    """Writes the cells of the grid, without the unsteered images (alpha 0)."""

    suffixes = (".csv",)

    def write(self, results: Results, path: Path, context: Context) -> None:
        """Write the rows in the order of the results. A figure that does not exist is empty."""
        measured = results.quality.cells
        metrics = list(dict.fromkeys(name for means in measured.values() for name in means))
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([*COLUMNS, *map(_text, metrics)])
        for cell, figures in results.analysis.cells.items():
            means = measured.get(cell, {})
            values = [means[name].mean if name in means else None for name in metrics]
            rows.writerow([*_figures(figures), *map(_number, values)])
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


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def _text(text: str) -> str:
    """A name that a spreadsheet does not take for a formula: results may be a stranger's."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


writer = CellsCsv()
