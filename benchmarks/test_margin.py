"""Are the images closer to the target than to the source after the edit? Cell by cell, and overall.

Every case generates what is missing of its cell and of its unsteered images, scores it under
pytest-benchmark, and asserts success: the 95% interval of the mean margin above 0 and one-sided
p < 0.05, as a test by itself. A cell that its baseline records as no success is an expected failure
with its figures.
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
