"""What steering changes beside the margin: alignment, preservation, distribution; on the same grid.

The figures are recorded in results.json and the table. A case fails only if the user sets limits
(`--limits`): if its whole interval is beyond a limit, or if a limit's metric could not be measured.
CMMD and KID have no interval: their values are compared with the limit.
"""

from __future__ import annotations

import pytest

from analogy.core.records import Cell
from analogy.grid_metrics import Per
from analogy.plugin import conduct
from analogy.sessions import cases
from analogy.sessions.session import Session


@pytest.mark.measures(Per.IMAGE)
def test_quality(cell: Cell, bench: Session, request: pytest.FixtureRequest) -> None:
    """The metrics of single images keep the user's limits in this cell."""
    conduct(bench, cases.quality(bench, cell), request)


@pytest.mark.measures(Per.SET)
def test_distribution(strength: float, bench: Session, request: pytest.FixtureRequest) -> None:
    """The distances of all images at this alpha from the references keep the user's limits."""
    conduct(bench, cases.distribution(bench, strength), request)
