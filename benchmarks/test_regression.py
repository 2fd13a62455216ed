"""Is any cell worse than in the baseline? Pair by pair, with an interval for the difference.

A case fails if the whole interval of the mean difference lies below -tolerance, or if the verdict
has fallen from success. Without a baseline there is nothing to compare with.
"""

from __future__ import annotations

import pytest

from analogy import recorded
from analogy.baseline import Change, Outcome, compare_cell, compare_overall, n_comparisons
from analogy.plugin import Bench, measure
from analogy.recorded import Recorded
from analogy.records import Cell

# A library's deprecation warning is no verdict on a model.
pytestmark = pytest.mark.filterwarnings("default", "ignore::DeprecationWarning:diffusers.*")


@pytest.fixture
def baseline(bench: Bench) -> Recorded:
    """The baseline, comparable."""
    if bench.baseline is None:
        pytest.skip(f"nothing to compare with: {bench.note}")
    return bench.baseline


def test_regression(
    cell: Cell, bench: Bench, baseline: Recorded, request: pytest.FixtureRequest
) -> None:
    """The cell is no worse than in the baseline."""
    study = bench.study
    measure(bench, study.cell_jobs(*cell), request)
    change = compare_cell(
        baseline,
        recorded.of_cell(study.cell(*cell).to_dict()),
        tolerance=bench.tolerance,
        comparisons=n_comparisons(recorded.of_header(study.header())),
    )
    _judge(change, bench, request)


def test_overall_regression(
    bench: Bench, baseline: Recorded, request: pytest.FixtureRequest
) -> None:
    """All cells together are no worse than in the baseline."""
    study = bench.study
    measure(bench, study.jobs(), request)
    now = recorded.of(study.results())
    _judge(compare_overall(baseline, now, tolerance=bench.tolerance), bench, request)


def _judge(change: Change, bench: Bench, request: pytest.FixtureRequest) -> None:
    """Fail on a regression, after putting the figures where JUnit's reader finds them."""
    bench.changes.append(change)
    record_property = request.getfixturevalue("record_property")
    for name, value in change.to_dict().items():
        record_property(name, value)
    if not change.is_decided:
        pytest.skip(change.message())
    if change.outcome is Outcome.REGRESSED:
        pytest.fail(change.message(), pytrace=False)
