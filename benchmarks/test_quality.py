"""What steering does beside the margin: alignment, preservation, distribution; on the same grid.

Recorded in results.json and the table. A case fails only where the user sets limits (`--limits`),
and only if its whole interval is beyond them, or if a limit's metric could not be measured; CMMD
and KID have no interval, and are compared as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from analogy.bench import Bench, judge_quality, load_references
from analogy.plugin import measure, settle
from analogy.records import PER_IMAGE, PER_SET, Cell

if TYPE_CHECKING:
    from analogy.metrics import Lpips
    from analogy.quality import References


@pytest.fixture(scope="module")
def lpips(bench: Bench) -> Lpips | str:
    """LPIPS's network, or the reason why there is none."""
    return bench.lpips


@pytest.fixture(scope="module")
def references(bench: Bench) -> References | str:
    """The images that the grid's should be distributed like, or the reason why there are none."""
    return load_references(bench)


@pytest.mark.measures(*PER_IMAGE)
def test_quality(
    cell: Cell, bench: Bench, lpips: Lpips | str, request: pytest.FixtureRequest
) -> None:
    """The metrics of single images keep the user's limits in this cell."""
    study = bench.study
    measure(bench, study.cell_jobs(*cell), request)
    study.quality.lpips = lpips
    found = study.quality.cell(cell)
    settle(judge_quality(bench, str(cell), found, PER_IMAGE), request)


@pytest.mark.measures(*PER_SET)
def test_distribution(
    strength: float, bench: Bench, references: References | str, request: pytest.FixtureRequest
) -> None:
    """The distances of all images at this alpha from the references keep the user's limits."""
    study = bench.study
    measure(bench, study.jobs(alpha=strength), request)
    study.quality.references = references
    found = study.quality.alpha(strength)
    settle(judge_quality(bench, f"alpha {strength:g}", found, PER_SET), request)
