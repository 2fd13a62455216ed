"""Baselines: kept, compared and updated; and whatever stands in the file, no other error."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from analogy import baseline
from analogy.baseline import BaselineError, default_path, load, setting_of, update
from analogy.records import Verdict


def mixed(job) -> float:
    """Color succeeds at alpha 1, nothing else does."""
    noise = 0.01 * math.sin(sum(job.pair.id.encode()))
    return noise + (0.1 if (job.pair.category, job.alpha) == ("color", 1.0) else -0.1)


@pytest.fixture
def study(make_study, fill):
    """A study whose every image has a score."""
    made = make_study()
    fill(made, mixed)
    return made


@pytest.fixture
def path(study, tmp_path):
    """The study's baseline."""
    update(study, tmp_path / "baseline.json")
    return tmp_path / "baseline.json"


# --- what is known


def test_a_baseline_knows_what_did_not_succeed(study, path):
    known = load(path)
    assert known.path == path
    assert known.differences(study) == []
    assert known.known_not_to_succeed(study, "color", 1.0) is None
    assert known.known_not_to_succeed(study, "color", 0.5) == "failure"
    assert known.known_not_to_succeed(study, "object", 1.0) == "failure"
    assert known.known_not_to_succeed(study, "object", 0.75) is None
    assert known.known_not_to_succeed(study, "size", 1.0) is None
    assert known.overall_known_not_to_succeed(study) == str(study.overall().verdict)


def test_a_baseline_holds_the_figures_and_where_they_are_from(study, path):
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert data["setting"] == setting_of(study)
    assert data["provenance"]["model"] == study.model.fingerprint
    assert [(cell["category"], cell["alpha"]) for cell in data["cells"]] == [
        (category, alpha) for category in ("color", "object") for alpha in (0.5, 1.0)
    ]
    for cell in data["cells"]:
        figures = study.cell(cell["category"], cell["alpha"]).to_dict()
        assert {name: cell[name] for name in figures} == figures


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "lerp"},
        {"steps": 3},
        {"guidance": 1.0},
        {"size": 128},
        {"seeds": (0,)},
        {"model": "another"},
        {"judge": "another"},
        {"scheduler": "another"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_setting_is_not_comparable(
    study, path, make_study, model_source, judge_source, changed
):
    [(name, value)] = changed.items()
    sources = {"model": model_source, "judge": judge_source}
    if name in sources:
        changed = {name: replace(sources[name], fingerprint=value)}
    other = make_study(**({} if name == "scheduler" else changed))
    if name == "scheduler":
        other.scheduler = value
    known = load(path)
    [difference] = known.differences(other)
    shown = list(value) if name == "seeds" else value
    assert difference == f"{name}: baseline {known.setting[name]}, this run {shown}"
    assert known.known_not_to_succeed(other, "color", 0.5) is None
    assert known.overall_known_not_to_succeed(other) is None


@pytest.mark.parametrize("changed", [{"dtype": "bfloat16"}, {"batch_size": 1}, {"alphas": (0.5,)}])
def test_what_does_not_change_a_verdict_is_comparable(path, make_study, changed):
    known = load(path)
    other = make_study(**changed)
    assert known.differences(other) == []
    assert known.known_not_to_succeed(other, "color", 0.5) == "failure"


def test_other_pairs_are_another_cell(path, make_study, pairs):
    known = load(path)
    fewer = make_study(pairs=[pair for pair in pairs if pair.id != "color-0"])
    assert known.differences(fewer) == []
    assert known.known_not_to_succeed(fewer, "color", 0.5) is None
    assert known.known_not_to_succeed(fewer, "object", 0.5) == "failure"
    assert known.overall_known_not_to_succeed(fewer) is None


def test_the_overall_figure_is_of_its_alphas(path, make_study):
    known = load(path)
    assert known.overall_known_not_to_succeed(make_study(alphas=(0.5,))) is None


# --- updating


def test_an_update_keeps_the_cells_that_it_did_not_measure(study, path, make_study, fill, pairs):
    before = json.loads(path.read_text())
    part = make_study(pairs=[p for p in pairs if p.category == "object"], alphas=(0.5, 2.0))
    fill(part, lambda job: 0.2 + mixed(job))
    assert update(part, path) == 2
    after = json.loads(path.read_text())
    kept = {(cell["category"], cell["alpha"]): cell for cell in after["cells"]}
    assert len(kept) == 5
    for cell in before["cells"]:
        same = kept[cell["category"], cell["alpha"]] == cell
        assert same == ((cell["category"], cell["alpha"]) != ("object", 0.5))
    assert kept["object", 2.0]["verdict"] == "success"
    assert load(path).known_not_to_succeed(study, "color", 0.5) == "failure"


def test_an_update_of_another_setting_starts_anew(study, path, make_study, fill, pairs):
    other = make_study(pairs=pairs[:6], steps=3)
    fill(other, mixed)
    assert update(other, path) == 2
    data = json.loads(path.read_text())
    assert {cell["category"] for cell in data["cells"]} == {"color"}
    assert data["setting"]["steps"] == 3


def test_incomplete_cells_are_not_recorded(make_study, fill, tmp_path):
    study = make_study()
    fill(study, mixed, study.jobs("color", 0.5))
    path = tmp_path / "baseline.json"
    assert update(study, path) == 1
    known = load(path)
    assert set(known.cells) == {("color", 0.5)}
    assert known.overall is None
    assert known.overall_known_not_to_succeed(study) is None


def test_an_update_refuses_to_replace_what_is_no_baseline(study, tmp_path):
    path = tmp_path / "notes.json"
    path.write_text('{"mine": 1}')
    with pytest.raises(BaselineError, match="not a baseline of this suite"):
        update(study, path)
    assert path.read_text() == '{"mine": 1}'


# --- the default


def test_only_the_embedded_model_has_a_baseline_by_default(make_study, tmp_path, monkeypatch):
    monkeypatch.setattr(baseline, "shipped", lambda name: tmp_path / name)
    study = make_study()
    assert default_path(study) == tmp_path / "baselines" / "embedded.json"
    study.config = replace(study.config, model="segmind/SSD-1B")
    assert default_path(study) is None


# --- what is refused


def test_a_missing_file_is_said(tmp_path):
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "none" / "none.json"):
        with pytest.raises(BaselineError, match=r"cannot be read .*--update-baseline"):
            load(path)


def test_another_version_is_refused(path):
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "schema_version": 2}))
    with pytest.raises(BaselineError, match="expected schema version 1, got 2; write it anew"):
        load(path)


def damaged(change):
    """A baseline in small, after ``change``."""
    cell = {"category": "color", "alpha": 0.5, "pairs": "x", "verdict": "failure"}
    data = {"schema_version": 1, "setting": {}, "cells": [cell], "overall": cell.copy()}
    change(data)
    return data


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("setting"),
        lambda data: data.pop("cells"),
        lambda data: data.pop("overall"),
        lambda data: data.pop("schema_version"),
        lambda data: data.update(setting=3),
        lambda data: data.update(cells={"a": 1}),
        lambda data: data.update(cells=[3]),
        lambda data: data.update(overall="success"),
        lambda data: data["cells"][0].pop("pairs"),
        lambda data: data["cells"][0].pop("alpha"),
        lambda data: data["cells"][0].update(alpha="half"),
        lambda data: data["cells"][0].update(alpha=10**400),
        lambda data: data["cells"][0].update(alpha=math.nan),
        lambda data: data["cells"][0].update(category=["color"]),
        lambda data: data["cells"][0].update(verdict="great"),
        lambda data: data["cells"][0].update(verdict=[]),
        lambda data: data["overall"].update(verdict=None),
    ],
)
def test_a_damaged_baseline_is_refused(tmp_path, change):
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(damaged(lambda data: None)))
    load(path)
    path.write_text(json.dumps(damaged(change)))
    with pytest.raises(BaselineError, match=r"not a baseline of this suite .*--update-baseline"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b"1" * 5000, b"NaN"])
def test_what_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "baseline.json"
    path.write_bytes(content)
    with pytest.raises(BaselineError, match="not a baseline of this suite"):
        load(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([*Verdict, "color"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["category", "alpha", "pairs", "verdict", "x"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
hostile = values | st.fixed_dictionaries(
    {
        "schema_version": st.just(1) | values,
        "setting": st.just({}) | values,
        "cells": st.lists(values, max_size=2) | values,
        "overall": values,
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hostile)
@example({"schema_version": 1, "setting": {}, "cells": [], "overall": 0})
def test_whatever_json_it_holds_there_is_no_other_error(tmp_path, study_once, data):
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(data))
    try:
        known = load(path)
    except BaselineError:
        return
    known.differences(study_once)
    known.known_not_to_succeed(study_once, "color", 0.5)
    known.overall_known_not_to_succeed(study_once)


@pytest.fixture
def study_once(make_study):
    """A study without scores."""
    return make_study()
