"""The JSON Schemas hold what we write, refuse what we do not, and describe every field."""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import cache
from importlib.resources import files

import numpy as np
import pytest
from extras import extra
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from injected import Injected
from looked import draw_looks, pairs
from planted import write_results
from reported import draw, picture
from typer.testing import CliRunner

from analogy import cli
from analogy.core.records import Cell, Estimate, RunConfig, Verdict
from analogy.grid_metrics import Absent, Per, grid_metrics
from analogy.models.places import shipped
from analogy.results import comparison
from analogy.results.model import RESULTS_NAME, Saved, Stop
from analogy.results.reading import from_json
from analogy.results.writing import to_json
from analogy.studies.quality import References

jsonschema = extra("jsonschema")

NAMES = ("results", "comparison", "verification")


def schema(name):
    return json.loads((files("analogy") / f"schemas/{name}.json").read_text("utf-8"))


@cache
def validator(name):
    return jsonschema.Draft202012Validator(
        schema(name), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def problems(name, data):
    """Where and why ``data`` is not what the schema says."""
    return [f"{e.json_path}: {e.message[:200]}" for e in validator(name).iter_errors(data)]


@pytest.fixture
def study(make_study, judge):
    """Scored by the real judge, with the null; one image failed, one is not there."""
    made = make_study(control=True, judge=Injected.of(judge))
    jobs = made.jobs()
    bad, absent = made.jobs("object", 1.0)[:2]
    there = [job for job in jobs if job != absent]
    made.record(None)
    images = np.stack([picture(job, 64) for job in there])
    made.folder.add_images(there, images, 1.0, faults={there.index(bad): "nearly one colour"})
    made.score(jobs)
    return made


@pytest.fixture
def results(study):
    """All that a results.json can hold: quality, a failure, the null, incomplete cells."""
    rng = np.random.default_rng(0)
    references = References("noise", rng.normal(size=(9, 128)).astype(np.float32))
    for alpha in study.config.alphas:
        study.quality.alpha(alpha, references=references)
        for category in study.categories:
            study.quality.cell(Cell(category, alpha), lpips=Absent("no weights"))
    write_results(study.results(), study.folder.path / RESULTS_NAME)
    return json.loads((study.folder.path / RESULTS_NAME).read_text())


def test_results_of_a_run_are_what_the_schema_says(results):
    assert problems("results", results) == []
    verdicts = {cell["verdict"] for cell in results["cells"]}
    assert "incomplete" in verdicts
    assert len(verdicts) > 1
    assert results["failures"][0]["reason"] == "nearly one colour"
    assert results["cells"][0]["random"] is not None
    assert results["quality"]["cells"][0]["psnr"]["mean"] > 0
    assert results["quality"]["alphas"][0]["kid"]["n_references"] == 9


def test_results_of_a_sequential_run_are_what_the_schema_says(make_study):
    study = make_study(pairs=pairs()[:20], sequential=True, reserve=True, target=True)
    data = to_json(draw_looks(study))
    assert problems("results", data) == []
    assert {cell["stop"]["look"] for cell in data["cells"]} == {1, 3}
    assert data["cells"][0]["stop"].keys() == {f.name for f in dataclasses.fields(Stop)}
    assert data["overall"]["gain_stop"]["look"] == data["targets"][0]["stop"]["look"] == 1
    assert data["sequential"].keys() == {f.name for f in dataclasses.fields(Saved)}
    assert to_json(from_json(data)) == data
    for place, name, wrong in (
        (("cells", 0, "stop"), "level", 0.5),
        (("cells", 0, "stop"), "look", 0),
        (("cells", 0, "gain_stop"), "p_seq", 1.1),
        (("sequential", "order"), "color", "abc"),
        (("sequential",), "images", -1),
        (("config",), "futility", False),
    ):
        changed = copy.deepcopy(data)
        at(changed, place)[name] = wrong
        assert problems("results", changed), (place, name)
        if place != ("config",) and place[-1] != "order":
            del at(changed, place)[name]
            assert problems("results", changed), (place, name)


@pytest.mark.parametrize("name", ["embedded", "smoke"])
def test_the_shipped_baselines_are_results(name):
    data = json.loads(shipped(f"baselines/{name}.json").read_text())
    assert problems("results", data) == []
    assert data["cells"][0]["ceiling"]["n"] > 5


def test_four_lines_of_python_validate_a_file(results, study, monkeypatch):
    """As docs/formats.md has them."""
    text = (shipped("pairs.csv").parents[1] / "docs" / "formats.md").read_text("utf-8")
    [block] = [part for part in text.split("```") if part.startswith("python\n")]
    monkeypatch.chdir(study.folder.path)
    exec(compile(block.removeprefix("python\n"), "docs/formats.md", "exec"), {})
    results["cells"][0]["p"] = 2
    write_results(results, study.folder.path / RESULTS_NAME)
    with pytest.raises(jsonschema.ValidationError, match="2 is greater than the maximum of 1"):
        exec(compile(block.removeprefix("python\n"), "docs/formats.md", "exec"), {})


def test_comparisons_are_what_the_schema_says(study, make_study, tmp_path):
    write_results(study.results(), tmp_path / "old.json")
    new = make_study(alphas=(1.0,))
    write_results(draw(new), tmp_path / "other.json")
    whole = make_study()
    write_results(draw(whole), tmp_path / "new.json")
    found = set()
    for old, now in (("new", "new"), ("old", "new"), ("new", "other")):
        arguments = ["compare", f"{tmp_path / old}.json", f"{tmp_path / now}.json", "--json"]
        CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "out.json")])
        data = json.loads((tmp_path / "out.json").read_text())
        assert problems("comparison", data) == []
        found.add((data["comparable"], data["exit_code"]))
        data["verdict"] = "success"
        assert problems("comparison", data)
    assert found == {(True, 0), (True, 3), (False, 3)}


def test_a_verification_is_what_the_schema_says(study, tmp_path):
    folder = study.folder.path
    for row in study.folder.image_rows()[:1]:
        (folder / row.path).write_bytes(b"")
    (folder / "images" / "stray.png").write_bytes(b"")
    out = tmp_path / "out.json"
    assert CliRunner().invoke(cli.app, ["verify", str(folder), "--json", str(out)]).exit_code == 1
    data = json.loads(out.read_text())
    assert problems("verification", data) == []
    assert [len(data[name]) for name in ("damaged", "failed", "missing", "leftovers")] == [1] * 4
    data["failed"][0]["reason"] = None
    assert problems("verification", data)


# --- the schemas say what the code says


def test_the_schemas_are_schemas_and_describe_every_field():
    for name in NAMES:
        found = schema(name)
        jsonschema.Draft202012Validator.check_schema(found)
        assert list(undescribed(found, found)) == []


def undescribed(part, root, at="$"):
    """Objects that may hold anything, and the places of figures without a description."""
    if isinstance(part, list):
        for i, one in enumerate(part):
            yield from undescribed(one, root, f"{at}[{i}]")
    if not isinstance(part, dict):
        return
    plain = {"category", "alpha", "pair_id", "seed", "schema_version", "comparable", "cells",
             "overall", "outcome", "cmmd", "kid", "verdict", "mean"}  # fmt: skip
    for name, value in part.get("properties", {}).items():
        if "description" not in value and name not in plain:
            yield f"{at}.{name}"
    for name, value in part.items():
        yield from undescribed(value, root, f"{at}.{name}")


def test_the_schema_has_the_fields_of_the_records():
    defs, top = schema("results")["$defs"], schema("results")["properties"]
    fields = {f.name for f in dataclasses.fields(RunConfig)}
    assert set(top["config"]["properties"]) == {*fields, "scheduler"}  # always null, for readers
    estimate = {*defs["figures"]["properties"], *defs["estimate"]["properties"]}
    assert estimate == {f.name for f in dataclasses.fields(Estimate)}
    assert defs["verdict"]["enum"] == [*Verdict]
    quality = top["quality"]["properties"]
    for rows, per in (("cells", Per.IMAGE), ("alphas", Per.SET)):
        names = {metric.name for metric in grid_metrics() if metric.per is per}
        assert names < set(quality[rows]["items"]["properties"])
    change = schema("comparison")["$defs"]["change"]["properties"]
    assert set(change) == {f.name for f in dataclasses.fields(comparison.Change)}
    assert schema("comparison")["$defs"]["outcome"]["enum"] == [
        "regressed", "improved", "equivalent", "inconclusive", "too_few", "incomplete",
    ]  # fmt: skip
    assert set(schema("comparison")["$defs"]["outcome"]["enum"]) == {*comparison.Outcome}


# --- what is no results file


@pytest.fixture(scope="module")
def good():
    """A results file of one category, small enough to be checked many times."""
    data = json.loads(shipped("baselines/smoke.json").read_text())
    for name in ("cells", "controls", "categories", "alphas"):
        data[name] = data[name][:1]
    for row in [*data["cells"], *data["controls"]]:
        row["items"] = dict(list(row["items"].items())[:2])
        del row["seeds"], row["target_share"]
    # What is optional may be missing, and has tests of its own.
    for name in ("quality", "targets", "failures", "peak_memory_bytes"):
        del data[name]
    for name in ("engine", "lora", "memory", "num_workers", "ray_address", "target"):
        del data["config"][name]
    del data["throughput"]["workers"]
    return data


def places(data, at=()):
    """Every place in nested data."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield (*at, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*at, key))


def at(data, place):
    for key in place:
        data = data[key]
    return data


def free(place):
    """Whether any text or plain value may stand there, or nothing."""
    return place[:2] in {("provenance", "machine"), ("provenance", "packages")}


QUICK = settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUICK
@given(data=st.data())
def test_what_lacks_a_field_is_refused(good, data):
    names = [p for p in places(good) if isinstance(p[-1], str) and "items" not in p[:-1]]
    place = data.draw(st.sampled_from([p for p in names if not free(p) and p[0] != "pairs"] +
                                      [("pairs",)]))  # fmt: skip
    changed = copy.deepcopy(good)
    del at(changed, place[:-1])[place[-1]]
    assert not validator("results").is_valid(changed)


@QUICK
@given(data=st.data(), name=st.text(min_size=1, max_size=5))
def test_a_field_that_nobody_knows_is_refused(good, data, name):
    objects = [p for p in [(), *places(good)] if isinstance(at(good, p), dict)]
    open_ = {"items", "pairs", "packages", "machine"}  # names that are the run's own
    place = data.draw(st.sampled_from([p for p in objects if not p or p[-1] not in open_]))
    changed = copy.deepcopy(good)
    assume(name not in at(changed, place))
    at(changed, place)[name] = None
    assert not validator("results").is_valid(changed)


@QUICK
@given(data=st.data(), value=st.sampled_from([True, "x\n", [], {}, -7.5, [{}], 1e12 + 0.5]))
def test_a_value_of_another_kind_is_refused(good, data, value):
    place = data.draw(st.sampled_from([p for p in places(good) if not free(p)]))
    old = at(good, place)
    is_text = isinstance(old, str) or old is None
    is_signed = place[-1] in ("effect_size", "effect_low", "effect_high", "share", "slope")
    is_signed |= place[-2:-1] == ("trend",) or place[-1] in ("min_detectable", "memory")
    assume(not (is_text and isinstance(value, str)))
    assume(not (is_signed and isinstance(value, float)))
    assume(type(value) is not type(old) or isinstance(value, float))
    changed = copy.deepcopy(good)
    at(changed, place[:-1])[place[-1]] = value
    assert not validator("results").is_valid(changed)


def test_figures_beside_a_verdict_that_forbids_them_are_refused(good):
    for verdict, mean in (("incomplete", 0.1), ("success", None)):
        changed = copy.deepcopy(good)
        changed["cells"][0] |= {"verdict": verdict, "mean": mean}
        assert problems("results", changed)
        changed = copy.deepcopy(good)
        changed["overall"]["gain"] |= {"verdict": verdict, "mean": mean}
        assert problems("results", changed)
