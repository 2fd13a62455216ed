"""The shipped grid's margins, and what sequential looks make of them in one random order."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from analogy.core.records import Verdict
from analogy.statistics.bootstrap import resampled_together
from analogy.statistics.estimates import estimate
from analogy.statistics.sequential import Design, decide, items_at, order, unsteered_look

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "embedded_margins.npz"
DESIGN = Design.of(50, 3)


@dataclass(frozen=True)
class Grid:
    """Margins of the embedded default: (categories, alphas, pairs, seeds), alpha 0 the first."""

    margins: np.ndarray
    categories: tuple[str, ...]
    alphas: tuple[float, ...]
    pairs: tuple[tuple[str, ...], ...]

    @property
    def cells(self):
        return [(c, a) for c in range(len(self.categories)) for a in range(1, len(self.alphas))]


@cache
def grid():
    with np.load(DATA) as data:
        return Grid(
            data["margins"],
            tuple(data["categories"].tolist()),
            tuple(data["alphas"].tolist()),
            tuple(map(tuple, data["pairs"].tolist())),
        )


@cache
def full_verdicts():
    """The suite's verdicts from all images, by (category, alpha), both indices."""
    margins = grid().margins
    return {
        cell: estimate(items_at(margins[cell], DESIGN.looks[-1])).verdict for cell in grid().cells
    }


@cache
def prompts():
    """Source and target prompt by pair id."""
    with (ROOT / "fixtures" / "pairs.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["id"]: (row["source_prompt"], row["target_prompt"]) for row in csv.DictReader(file)
        }


@dataclass(frozen=True)
class Outcome:
    """Of one order. Shares of all 4,800 images that were saved; cells that agree, of 24.

    `plain`: unsteered images are made while a cell of their category is open; `by_gains`: while an
    open cell's gain is. `lost`: cells decided in the full grid that became anything else; `won`:
    the others that were decided.
    """

    plain: float
    by_gains: float
    agree: int
    lost: int
    won: tuple[tuple[int, int], ...]


def outcome(seed: int, *, seeds: tuple[int, ...] = (0, 1, 2)) -> Outcome:
    """`seeds`: in which order the seeds come."""
    data = grid()
    ordered = np.empty_like(data.margins)
    for c, ids in enumerate(data.pairs):
        ordered[c] = data.margins[c][:, order([prompts()[pair] for pair in ids], seed)]
    ordered = ordered[..., list(seeds)]
    first = DESIGN.looks[0]
    gains = ordered - ordered[:, :1]
    samples = [items_at(table[cell], first) for cell in data.cells for table in (ordered, gains)]
    samples += [-items for items in samples if items.mean() < 0]
    with resampled_together(samples, n_resamples=first.n_resamples):  # most cells stop there
        margin = {cell: decide(ordered[cell], DESIGN) for cell in data.cells}
        gain = {cell: decide(gains[cell], DESIGN) for cell in data.cells}
    images = [look.images for look in DESIGN.looks]
    steered = sum(images[margin[cell].look] for cell in data.cells)
    plain = by_gains = 0
    for c in range(len(data.categories)):
        cells = [cell for cell in data.cells if cell[0] == c]
        plain += max(images[margin[cell].look] for cell in cells)
        by_gains += images[unsteered_look((margin[cell], gain[cell]) for cell in cells)]
    full = full_verdicts()
    decided = (Verdict.SUCCESS, Verdict.FAILURE)
    other = [cell for cell in data.cells if margin[cell].verdict is not full[cell]]
    return Outcome(
        plain=1 - (steered + plain) / data.margins.size,
        by_gains=1 - (steered + by_gains) / data.margins.size,
        agree=len(data.cells) - len(other),
        lost=sum(full[cell] in decided for cell in other),
        won=tuple(cell for cell in other if full[cell] not in decided),
    )
