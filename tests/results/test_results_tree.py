"""The tree of results: its JSON read back is the same, for runs, baselines and any figures."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import results as planted
from planted import small
from reported import draw_results

from analogy.core.records import Cell, Estimate, ItemLevel, Trend, Verdict
from analogy.grid_metrics import Absent
from analogy.models.places import shipped
from analogy.results.model import Ceiling, Distance, Failure, Mean, Null, QualityFigures
from analogy.results.reading import from_json
from analogy.results.writing import encoded, to_json
from analogy.studies.quality import References


def again(results):
    """Results written and read back."""
    return from_json(json.loads(encoded(results)))


@pytest.mark.parametrize("missing", [0, 5])
def test_a_run_s_results_survive_json(make_study, missing):
    study = make_study(control=True, target=True)
    jobs = study.jobs()
    study.quality.lpips, study.quality.references = (
        Absent("no weights"),
        References("x", np.ones((3, 2))),
    )
    results = draw_results(study, jobs[: len(jobs) - missing], faults=jobs[:3])
    assert len(results.failures) == 3
    assert len(results.analysis.cells) == 4
    assert results.analysis.targets.keys() == {"color", "object"}
    assert all(cell.null is not None for cell in results.analysis.cells.values())
    assert again(results) == results
    assert encoded(again(results)) == encoded(results)


@pytest.mark.parametrize("name", ["embedded", "smoke"])
def test_a_shipped_baseline_is_written_as_it_is_read(name):
    data = json.loads(shipped(f"baselines/{name}.json").read_text())
    written = to_json(from_json(data))
    for part, value in written.items():
        if part in data and part not in ("cells", "controls", "throughput"):
            assert value == data[part], part
    for part in ("cells", "controls"):
        for row, old in zip(written[part], data[part], strict=True):
            assert {key: value for key, value in row.items() if key in old} == old
            assert {value for key, value in row.items() if key not in old} <= {None}
    assert from_json(written) == from_json(data)


FIGURE = st.just(math.nan) | st.floats(-2, 2)
COUNT = st.integers(0, 1000)


def estimates(verdicts):
    by_type = {"int": COUNT, "float": FIGURE, "int | None": st.none() | COUNT,
               "Verdict | None": verdicts}  # fmt: skip
    return st.builds(Estimate, **{field.name: by_type[field.type] for field in fields(Estimate)})


def records(kind):
    by_type = {"int": COUNT, "float": FIGURE, "bool": st.booleans(), "str": st.text(min_size=1)}
    return st.builds(kind, **{field.name: by_type[field.type] for field in fields(kind)})


ESTIMATE = estimates(st.sampled_from(list(Verdict)))
UNCLAIMED = estimates(st.none()).map(lambda one: replace(one, n_needed=None))
BASE = from_json(planted(small(6)))
CELL = Cell("color", 0.5)
MEANS = records(Mean).map(lambda one: replace(one, mean=math.inf) if one.n_equal else one)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_the_figures_they_survive_json(data):
    draw = data.draw
    cells = {
        cell: replace(
            figures,
            margin=replace(
                draw(ESTIMATE), n=figures.margin.n, mean=figures.margin.mean,
                verdict=figures.margin.verdict,
            ),
            gain=draw(st.none() | ESTIMATE),
            ceiling=draw(st.none() | records(Ceiling)),
            null=draw(st.none() | st.builds(Null, ESTIMATE, ESTIMATE, ESTIMATE)),
            p_holm=draw(FIGURE),
            p_bh=draw(FIGURE),
            target_share=draw(st.none() | st.floats(-2, 2)),
        )
        for cell, figures in BASE.analysis.cells.items()
    }  # fmt: skip
    pool = replace(
        BASE.analysis.overall,
        gain=draw(st.none() | ESTIMATE),
        trend=draw(st.none() | records(Trend)),
        items=draw(st.none() | records(ItemLevel)),
    )
    unsteered = replace(
        cells[CELL], cell=Cell("color", 0.0), margin=draw(UNCLAIMED), gain=None, null=None,
        p_holm=math.nan, p_bh=math.nan,
    )  # fmt: skip
    results = replace(
        BASE,
        analysis=replace(
            BASE.analysis,
            cells=cells,
            unsteered={"color": unsteered},
            categories={"size": replace(pool, margin=draw(ESTIMATE))},
            alphas={1.0: replace(pool, margin=draw(ESTIMATE))},
            overall=pool,
        ),
        quality=QualityFigures(
            {CELL: {"ssim": draw(MEANS)}}, {0.5: {"kid": draw(records(Distance))}}, "a", "b"
        ),
        failures=(Failure("a", "color", 0.0, 3, None, "black"),
                  Failure("b", "size", 0.5, 2**63 - 1, "word", "x")),
        peak_memory_bytes=draw(st.none() | st.integers(0, 2**50)),
        unread=("a",),
        unsteered=("b", "c"),
        unknown=draw(st.just({}) | st.just({"a": ("Paris", "teal"), "c": ("Paris",)})),
    )  # fmt: skip
    assert again(results) == results
    assert encoded(again(results)) == encoded(results)
