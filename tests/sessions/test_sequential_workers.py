"""A sequential run has the same looks and verdicts whatever the number of workers."""

from __future__ import annotations

import pytest
from extras import extra

import analogy

ray = extra("ray")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The stops and margins of a small sequential run by a number of Ray workers, 0 for none."""

    def of(workers: int) -> dict:
        folder = tmp_path_factory.mktemp(f"workers-{workers}")
        engine = {"engine": "ray", "num_workers": workers} if workers else {}
        found = analogy.run(
            model="embedded", sequential=True, categories=("color",), limit=6,
            alphas=(0.5, 1.0), run_dir=folder / "run", results=folder / "out.json", **engine,
        )  # fmt: skip
        return found.figures.analysis.cells

    # Two whatever the machine has and other tests take.
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield of
    ray.shutdown()


@pytest.mark.slow
def test_looks_and_verdicts_are_those_of_one_process(run):
    serial = run(0)
    assert len({figures.stop.look for figures in serial.values()}) == 2  # some stop early
    cells = run(2)
    assert cells.keys() == serial.keys()
    for cell, figures in cells.items():
        own = serial[cell]
        assert figures.margin.verdict is own.margin.verdict
        assert (figures.stop.look, figures.stop.pairs, figures.stop.seeds) == (
            own.stop.look, own.stop.pairs, own.stop.seeds,
        )  # fmt: skip
        # Batches of other sizes round otherwise.
        assert figures.items == pytest.approx(own.items, abs=2e-3)
