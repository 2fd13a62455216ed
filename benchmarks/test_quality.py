"""What steering does beside the margin: alignment, preservation, distribution; on the same grid.

Recorded in results.json and the table. A case fails only where the user sets limits (`--limits`),
and only if its whole interval is beyond them, or if a limit's metric could not be measured; CMMD
and KID have no interval, and are compared as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from analogy.bench import Bench, judge_quality, load_references
from analogy.grid_metrics import Absent, Per
from analogy.plugin import measure, settle
from analogy.records import Cell

if TYPE_CHECKING:
    from analogy.metrics import Lpips
    from analogy.quality import References


@pytest.fixture(scope="module")
def lpips(bench: Bench) -> Lpips | Absent:
    """LPIPS's network, or the reason why there is none."""
    return bench.lpips


@pytest.fixture(scope="module")
def references(bench: Bench) -> References | Absent:
    """The images that the grid's should be distributed like, or the reason why there are none."""
    return load_references(bench)


@pytest.mark.measures(Per.IMAGE)
def test_quality(
    cell: Cell, bench: Bench, lpips: Lpips | Absent, request: pytest.FixtureRequest
) -> None:
    """The metrics of single images keep the user's limits in this cell."""
    study = bench.study
    measure(bench, study.cell_jobs(*cell), request)
    found = study.quality.cell(cell, lpips=lpips)
    settle(judge_quality(bench, str(cell), found, Per.IMAGE), request)


@pytest.mark.measures(Per.SET)
def test_distribution(
    strength: float, bench: Bench, references: References | Absent, request: pytest.FixtureRequest
) -> None:
    """The distances of all images at this alpha from the references keep the user's limits."""
    study = bench.study
    measure(bench, study.jobs(alpha=strength), request)
    found = study.quality.alpha(strength, references=references)
    settle(judge_quality(bench, f"alpha {strength:g}", found, Per.SET), request)
