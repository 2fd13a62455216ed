"""What a method costs: measured per batch, kept in the run folder, missing where not measured."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

import pytest
from extras import extra

from analogy.core.records import WHOLE, Window
from analogy.report.provenance import provenance
from analogy.report.text_methods import cost_table
from analogy.results.cost import FitCost, MethodCost
from analogy.results.reading import from_json
from analogy.results.writing import to_json
from analogy.store.work_index import BatchRow, FitWork
from analogy.studies.cost import method_cost
from analogy.studies.run_methods import all_jobs

jsonschema = extra("jsonschema")

HERE, THERE = "a" * 32, "b" * 32


def batch(method, images, seconds, *, window=WHOLE, machine=HERE, peak=100):
    kind = None if peak is None else "resident set"
    return BatchRow(method, window.start, window.end, images, seconds, kind, peak, machine)


@pytest.fixture
def keep(make_study):
    """A study, and what records batches and fits in its folder."""
    study = make_study(method="word")

    def kept(*rows):
        for row in rows:
            if isinstance(row, FitWork):
                study.folder.add_fit(row)
            else:
                study.folder.add_pngs([], [], 0.0, faults={}, cost=row)
        return method_cost(study.folder, study.config)

    return study, kept


def test_nothing_measured_is_no_cost(keep):
    study, kept = keep
    assert kept() is None
    assert kept(batch(None, 4, 1.0), batch("lerp", 4, 1.0)) is None
    assert "cost" not in to_json(study.results())


def test_seconds_are_the_median_over_batches_of_the_method_alone(keep):
    _, kept = keep
    found = kept(
        batch(None, 10, 9.0), batch(None, 10, 2.0), batch(None, 5, 1.0),  # a slow first one
        batch("word", 10, 3.0), batch("word", 10, 4.0), batch("word", 10, 5.0, peak=300),
        batch("word", 10, 50.0, window=Window(0.5, 1.0)), batch("random", 10, 70.0),
    )  # fmt: skip
    assert found == MethodCost(30, 0.4, 0.2, "resident set", 300, None)
    assert found.ratio == pytest.approx(2.0)


def test_times_of_two_machines_are_never_compared(keep):
    _, kept = keep
    found = kept(
        batch(None, 10, 2.0), batch("word", 10, 9.0), batch("word", 10, 1.0, machine=THERE)
    )
    assert (found.seconds, found.unsteered_seconds, found.ratio) == (0.1, None, None)
    found = kept(batch(None, 10, 0.5, machine=THERE))
    assert found.ratio == pytest.approx(2.0)


def test_a_fit_is_summed_over_categories_with_its_inputs(keep):
    _, kept = keep
    found = kept(
        FitWork("word", "color", HERE, 8, 2.0), FitWork("word", "color", HERE, 2, 1.0),
        FitWork("word", "object", THERE, 6, 0.5), FitWork("lerp", "object", HERE, 60, 50.0),
    )  # fmt: skip
    fit = FitCost(3.5, 16, {"color": (HERE,), "object": (THERE,)})
    assert found == MethodCost(0, None, None, None, None, fit)


def test_results_have_the_cost_and_read_it_back(keep):
    study, kept = keep
    rows = (batch(None, 4, 1.0), batch("word", 4, 2.0), FitWork("word", "color", HERE, 8, 2.0))
    cost = kept(*rows)
    results = study.results()
    data = json.loads(json.dumps(to_json(results), allow_nan=False))
    schema = json.loads((files("analogy") / "schemas/results.json").read_text("utf-8"))
    held = jsonschema.Draft202012Validator(schema)
    assert list(held.iter_errors(data)) == []
    assert data["cost"] == {
        "images": 4, "seconds_per_image": 0.5, "unsteered_seconds_per_image": 0.25, "ratio": 2.0,
        "memory": "resident set", "peak_memory_bytes": 100,
        "fit": {"seconds": 2.0, "images": 8, "inputs": {"color": [HERE]}},
    }  # fmt: skip
    assert from_json(data).cost == results.cost == cost
    told = dict(provenance(results))
    assert told["cost of the method"].endswith("2.00 times an unsteered one (0.2500 s)")
    assert told["fit of the method"] == "2.0 s, 8 images denoised"
    for wrong in (-1.0, "much", None):
        data["cost"]["seconds_per_image"] = wrong
        assert not held.is_valid(data)
        assert from_json(data).cost.ratio is None  # a figure that is only shown is missing then


def test_a_table_has_a_dash_where_nothing_was_measured():
    unsure = MethodCost(3, 0.25, None, None, None, None)
    sure = MethodCost(3, 0.5, 0.25, "resident set", 3 * 2**20, FitCost(2.0, 1234, {}))
    lines = list(cost_table({"lerp": unsure, "activation": sure}))
    assert lines[1].split() == ["lerp", "3", "0.2500", "-", "-", "-", "-", "-"]
    assert lines[2].split() == ["activation", "3", "0.5000", "0.2500", "2.00", "3", "2.0", "1,234"]
    assert "resident set" in lines[3]
    assert list(cost_table({})) == []


def test_a_run_measures_what_it_generates(make_study):
    """Unsteered images come first, so that batches are of one method; mixed ones tell nothing."""
    first = make_study(method="lerp", alphas=(1.0,), seeds=(0,), batch_size=6)
    studies = [first, first.by("prompt")]
    n = len(first.pairs)
    jobs = all_jobs(studies)
    assert [job.is_unsteered for job in jobs] == [True] * n + [False] * 2 * n
    first.generate(jobs)
    costs = [method_cost(first.folder, study.config) for study in studies]
    for cost in costs:
        assert cost.images == n
        assert cost.seconds > 0
        assert cost.ratio > 0
        assert (cost.memory, cost.fit) == ("resident set", None)
        assert cost.peak_bytes > 2**20
    again = make_study(method="word", alphas=(1.0,), seeds=(0,), batch_size=100)
    again.generate(again.jobs())
    assert method_cost(again.folder, again.config) is None  # all in one batch
    assert replace(costs[0], unsteered_seconds=0.0).ratio is None
