"""The benchmarks run within a test, by a judge of known margins."""

from __future__ import annotations

from functools import partial

import open_clip  # noqa: F401 - for `bench`
import pytest
from cases import ROOT, judge_by, write_eight


@pytest.fixture
def bench(pytester, pipeline, judge):
    """Run the benchmarks in this process, under the checkout's own configuration.

    The models' libraries are imported by now: pytester forgets what a run is the first to import,
    and each would be imported again, for ten seconds, by every run of every test.
    """

    def run(*options: str, cases: tuple[str, ...] = ("test_margin",)) -> pytest.RunResult:
        return pytester.runpytest_inprocess(
            *(str(ROOT / "benchmarks" / f"{name}.py") for name in cases),
            f"--rootdir={ROOT}",
            f"--config-file={ROOT / 'pyproject.toml'}",
            "-p", "no:cacheprovider",
            "-p", "no:hypothesispytest",
            "--steps=2",
            "--seeds=0",
            *options,
            no_reraise_ctrlc=True,
        )  # fmt: skip

    run.path = pytester.path
    return run


@pytest.fixture
def eight(pytester):
    """Options for eight pairs of one category at alpha 1: the fewest cases with a verdict."""
    write_eight(pytester.path)
    return ["--pairs=eight.csv", "--alphas=1", "--run-dir=run"]


@pytest.fixture
def judged(monkeypatch):
    """Let the judge find the margins of a function of the job, whatever the images show."""
    return partial(judge_by, monkeypatch)
