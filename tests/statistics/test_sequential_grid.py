"""The shipped grid's images in random orders: what looks save, and that no verdict is lost.

``ANALOGY_SLOW=1`` takes 200 orders in the place of 40.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from grids import DESIGN, ROOT, full_verdicts, grid, outcome

from analogy.statistics.sequential import items_at

COLOR_HALF = (0, 1)
"""Color at alpha 0.5: inconclusive in the full grid with p_down 0.03, decided in a few orders."""


def check(outcomes):
    assert np.mean([one.plain for one in outcomes]) >= 0.54
    assert np.mean([one.by_gains for one in outcomes]) >= 0.68
    # Of a few orders one cell, of many a thousandth of the cells.
    assert sum(24 - one.agree for one in outcomes) <= max(1, 0.001 * 24 * len(outcomes))
    assert sum(one.lost for one in outcomes) == 0
    assert {cell for one in outcomes for cell in one.won} <= {COLOR_HALF}


def test_the_margins_are_those_of_the_shipped_baseline():
    baseline = json.loads((ROOT / "fixtures" / "baselines" / "embedded.json").read_text("utf-8"))
    data = grid()
    for row in (*baseline["cells"], *baseline["controls"]):
        c, a = data.categories.index(row["category"]), data.alphas.index(row["alpha"])
        items = [row["items"][pair] for pair in data.pairs[c]]
        # The images are of another processor than the baseline's.
        assert items_at(data.margins[c, a], DESIGN.looks[-1]) == pytest.approx(items, abs=2e-4)
        if a:
            assert full_verdicts()[c, a] == row["verdict"]


def test_three_orders():
    check([outcome(seed) for seed in range(3)])


@pytest.mark.slow
def test_many_orders():
    check([outcome(seed) for seed in range(200 if os.environ.get("ANALOGY_SLOW") else 40)])
