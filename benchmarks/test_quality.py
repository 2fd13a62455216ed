"""What steering does beside the margin: alignment, preservation, distribution; on the same grid.

Recorded in results.json and the table. A case fails only where the user sets limits (`--limits`),
and only if its whole interval is beyond them, or if a limit's metric could not be measured; CMMD
and KID have no interval, and are compared as they are.
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
