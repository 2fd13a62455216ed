"""Are the images closer to the target than to the source after the edit? Cell by cell, and overall.

Every case generates what is missing of its cell and of its controls, scores it under
pytest-benchmark, and asserts success: the 95% interval of the mean margin above 0 and one-sided
p < 0.05, as a test by itself. A cell that its baseline records as no success is an expected failure
with its figures.
"""

from __future__ import annotations

import pytest

from analogy.plugin import Bench, measure
from analogy.records import Cell, Estimate, Verdict
from analogy.report.text import failed_images, figures_line

# A library's deprecation warning is no verdict on a model.
pytestmark = pytest.mark.filterwarnings("default", "ignore::DeprecationWarning:diffusers.*")


def test_margin(cell: Cell, bench: Bench, request: pytest.FixtureRequest) -> None:
    """Steering succeeds in this category at this alpha."""
    jobs = bench.study.cell_jobs(*cell)
    measure(bench, jobs, request)
    figures = bench.study.cell(*cell)
    known = bench.known_verdict(cell)
    if known is not None:
        bench.known.add(cell)
    record_property = request.getfixturevalue("record_property")
    if figures.gain is not None:
        for name in ("mean", "ci_low", "ci_high", "p"):
            record_property(f"gain_{name}", figures.gain.to_dict()[name])
    if figures.share is not None:
        record_property("share_of_ceiling", figures.share)
    _judge(str(cell), figures.margin, known, request, len(bench.study.failures(jobs)))


def test_overall(bench: Bench, request: pytest.FixtureRequest) -> None:
    """Steering succeeds over all categories and alphas together."""
    jobs = bench.study.jobs()
    measure(bench, jobs, request)
    figures, failed = bench.study.overall().margin, len(bench.study.failures(jobs))
    _judge("all categories and alphas", figures, bench.known_verdict(None), request, failed)


def _judge(
    what: str, figures: Estimate, known: str | None, request: pytest.FixtureRequest, failed: int
) -> None:
    """Assert success, after putting the figures where JUnit's reader finds them.

    ``failed``: images that came out as no picture.
    """
    record_property = request.getfixturevalue("record_property")
    record_property("failed_images", failed)
    for name, value in figures.to_dict().items():
        record_property(name, value)
    if figures.verdict in (Verdict.TOO_FEW, Verdict.INCOMPLETE, Verdict.BLIND):
        why = failed_images(failed) if failed else figures_line(figures)
        pytest.skip(f"{figures.verdict}: {what} cannot be judged ({why})")
    message = f"{what}: {figures.verdict}, {figures_line(figures)}"
    if figures.verdict is not Verdict.SUCCESS:
        if known is not None:
            pytest.xfail(f"known {known}; now {message}")
        pytest.fail(f"{message}; success needs the interval above 0 and p < 0.05", pytrace=False)
