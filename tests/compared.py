"""Cells with given margins, and their comparison."""

from __future__ import annotations

import numpy as np
from planted import noise, verdict_of

from analogy.core.records import Cell, Verdict
from analogy.results.comparison import (
    Side,
)
from analogy.results.reading import from_json, header_from_json

of, of_header = from_json, header_from_json


def cell(margins, verdict=None, *, category="color", alpha=0.5, n=None):
    """A cell of these margins, one per pair; NaN is a pair without images."""
    margins = np.asarray(margins, dtype=float)
    items = {f"{i:03}": float(m) for i, m in enumerate(margins) if np.isfinite(m)}
    if verdict is None:
        is_whole = len(items) == len(margins)
        verdict = Verdict(verdict_of(margins)) if is_whole else Verdict.INCOMPLETE
    return Side(Cell(category, alpha), verdict, n or len(margins), items)


BEFORE = 0.2 + noise(50, 1)
