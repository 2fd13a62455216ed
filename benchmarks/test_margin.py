"""Are the images closer to the target than to the source after the edit? Cell by cell, and overall.

Every case generates the missing images of its cell and the unsteered ones, scores them under
pytest-benchmark, and asserts success: the 95% interval of the mean margin lies above 0 and the
one-sided p is below 0.05, without a correction for several tests. If the baseline records that a
cell did not succeed, the case is an expected failure with its figures.
"""

from __future__ import annotations

import pytest

from analogy.core.records import Cell
from analogy.plugin import conduct
from analogy.sessions import cases
from analogy.sessions.session import Session

pytestmark = pytest.mark.measures("margin")


def test_margin(cell: Cell, bench: Session, request: pytest.FixtureRequest) -> None:
    """Steering succeeds in this category at this alpha."""
    conduct(bench, cases.margin(bench, cell), request)


def test_overall(bench: Session, request: pytest.FixtureRequest) -> None:
    """Steering succeeds over all categories and alphas together."""
    conduct(bench, cases.overall(bench), request)
