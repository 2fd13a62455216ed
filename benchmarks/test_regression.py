"""Is any cell worse than in the baseline? Pair by pair, with an interval for the difference.

A case fails if the whole interval of the mean difference lies below -tolerance, or if the verdict
fell from success to failure or inconclusive. Without a baseline the cases are skipped.
"""

from __future__ import annotations

import pytest

from analogy.core.records import Cell
from analogy.plugin import conduct
from analogy.sessions import cases
from analogy.sessions.session import Session

pytestmark = pytest.mark.measures("baseline")


@pytest.fixture
def compared(bench: Session) -> Session:
    """The session, if it has a comparable baseline; else the case is skipped."""
    if bench.baseline is None:
        pytest.skip(f"nothing to compare with: {bench.note}")
    return bench


def test_regression(
    cell: Cell, compared: Session, bench: Session, request: pytest.FixtureRequest
) -> None:
    """The cell is no worse than in the baseline."""
    conduct(bench, cases.regression(bench, cell), request)


def test_overall_regression(
    compared: Session, bench: Session, request: pytest.FixtureRequest
) -> None:
    """All cells together are no worse than in the baseline."""
    conduct(bench, cases.regression(bench, None), request)
