"""A metric and a judge of the user's own, by name from a module outside the package."""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import EIGHT, results_of, run_cases, write_eight
from hypothesis import given
from hypothesis import strategies as st
from verbs import verb

import analogy
from analogy.core.errors import ModelError
from analogy.core.images import read_image
from analogy.core.registry import ExtensionError
from analogy.grid_metrics import (
    DEFAULT,
    Described,
    GridMetric,
    Input,
    Inputs,
    MetricError,
    Per,
    described,
    grid_metrics,
    shown_metrics,
)
from analogy.judges.base import OwnJudge, find_judge
from analogy.studies.quality import _value, _values

pytest_plugins = ["pytester"]

MODULE = '''
import numpy as np
from analogy.grid_metrics import GridMetric, Input

def share(of):
    moved = np.abs(of.images.astype(int) - of.unsteered).max(axis=-1)
    return (moved < 16).mean(axis=(1, 2))

left_alone = GridMetric(
    name="left_alone", label="left alone", unit="share", higher_is_better=True, unchanged=1.0,
    inputs=frozenset({Input.IMAGES, Input.UNSTEERED}), compute=share, version="2",
)
other = GridMetric(name="another", label="x", inputs=frozenset({Input.IMAGES}), compute=share)

class Redness:
    """How red an image is, and how blue where blue is asked for."""

    name, version = "redness", "1"

    def load(self, device):
        return self

    def score(self, images, prompts):
        red, _, blue = images.mean(axis=(1, 2)).T / 255
        return np.where(["blue" in prompt for prompt in prompts], blue, red)

redness = Redness()

class Loud(Redness):
    name = "loud"

    def score(self, images, prompts):
        return np.full(len(images), 3.0)

loud = Loud()
nothing = object()
'''

RUN = ("--metrics=ssim,tried:left_alone", *EIGHT)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the module, which can be imported."""
    path = tmp_path_factory.mktemp("own")
    (path / "tried.py").write_text(MODULE)
    write_eight(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        patch.chdir(path)
        yield path
    sys.modules.pop("tried", None)


@pytest.fixture(scope="module")
def measured(own):
    """A run with the user's metric and a limit on it that no image keeps; and what it printed."""
    result = verb("run", *RUN, "--limits=left_alone>=0.9999", "--report=report.html")
    assert result.exit_code == 1, result.output
    return result


def stored(own):
    db = sqlite3.connect(own / "run" / "index.sqlite")
    try:
        return dict(db.execute("SELECT metric, COUNT(*) FROM metrics GROUP BY metric").fetchall())
    finally:
        db.close()


def test_a_users_metric_is_measured_kept_shown_and_limited(own, measured):
    images = analogy.load_run("run").images.set_index(["pair_id", "alpha"])
    module = importlib.import_module("tried")
    [row] = results_of(own / "results.json")["quality"]["cells"]
    assert list(row) == ["category", "alpha", "ssim", "left_alone"]
    values = images.xs(1.0, level="alpha")["left_alone"]
    assert row["left_alone"]["mean"] == pytest.approx(values.mean())
    assert 0 < row["left_alone"]["mean"] < 1
    assert row["left_alone"]["n"] == 8
    assert stored(own) == {"ssim": 8, "left_alone@2": 8}
    assert "left alone (share)" in measured.output
    assert "left_alone 0." in measured.output
    assert "limit left_alone>=0.9999" in measured.output
    page = (own / "report.html").read_text("utf-8")
    assert "left alone (share)" in page
    assert "Gain against preservation" in page
    assert module.left_alone.version == "2"


def test_pytests_cases_measure_it_and_hold_it_to_a_limit(own, measured, pytester):
    shutil.copytree(own / "run", "run")
    shutil.copy(own / "eight.csv", "eight.csv")
    options = ("--metrics=ssim,tried:left_alone", "--limits=left_alone>=0.9999")
    run = run_cases(pytester, *options, "-rs", cases=("test_quality",))
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(["*left_alone 0.*limit left_alone>=0.9999*"])
    run.stdout.fnmatch_lines(["*no metric per set is measured*"])
    run = run_cases(pytester, *options)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["*left_alone>=0.9999: expected a case that measures it, got none*"])
    wrong = run_cases(pytester, "--metrics=tried:other", "--limits=other>=1")
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR


def test_its_description_is_in_the_results_and_the_report_needs_no_module(own, measured):
    quality = results_of(own / "results.json")["quality"]
    assert [each["name"] for each in quality["metrics"]] == ["ssim", "left_alone"]
    assert quality["metrics"][1]["unit"] == "share"
    shown = {each.name: each for each in shown_metrics(described(quality["metrics"]))}
    assert shown["left_alone"].column == "left alone (share)"
    assert shown["left_alone"].axis.startswith("left alone to the image at alpha 0 (1: ")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((importlib.resources.files("analogy") / "schemas/results.json").read_text())
    jsonschema.validate(results_of(own / "results.json"), schema)


def test_its_values_are_computed_once_and_again_by_another_version(own, measured, monkeypatch):
    module = importlib.import_module("tried")
    first = module.left_alone
    again = replace(first, compute=lambda of: pytest.fail("computed again"))
    monkeypatch.setattr(module, "left_alone", again)
    assert verb("run", *RUN).exit_code in (0, 1)
    newer = replace(first, compute=lambda of: np.zeros(len(of.images)), version="3")
    monkeypatch.setattr(module, "left_alone", newer)
    assert verb("run", *RUN, "--results=newer.json").exit_code in (0, 1)
    assert stored(own) == {"ssim": 8, "left_alone@2": 8, "left_alone@3": 8}
    [row] = results_of(own / "newer.json")["quality"]["cells"]
    assert row["left_alone"]["mean"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics=tried:other"], "expected a metric of that name, got 'another'"),
        (["--metrics=tried:nothing"], "expected a GridMetric"),
        (["--metrics=no_module_here:x"], "expected no_module_here:x to be importable"),
        (["--metrics=ssim,ssim"], "expected each metric once"),
        (["--metrics=latency"], "which is measured by a Task"),
        (["--metrics=sim"], "did you mean 'ssim'?"),
        (["--metrics=ssim", "--limits=psnr>=3"], "--limits: expected one of ssim, got 'psnr'"),
        (["--clip-model=tried:nothing"], "with what JudgeMaker asks for, got object"),
        (["--clip-model=tried:redness", "--clip-pretrained=x"], "expected none for the judge"),
        (["--clip-model=tried:redness", "--clip-dtype=float16"], "--clip-dtype: expected float32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_no_metric_or_judge_is_said_before_the_work(own, options, message):
    result = verb("run", *EIGHT, *options)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_a_judge_that_gives_no_features_judges_a_grid(own, measured):
    result = verb("run", *EIGHT, "--clip-model=tried:redness", "--results=red.json")
    assert result.exit_code in (0, 1), result.output
    results = results_of(own / "red.json")
    assert results["provenance"]["judge"] == "redness@1"
    [cell] = results["cells"]
    rows = analogy.load_run("run").images.query("alpha == 1")
    pixels = np.stack([read_image(Path(path)) for path in rows["path"]])
    score = importlib.import_module("tried").redness.score
    margins = score(pixels, rows["target_prompt"]) - score(pixels, rows["source_prompt"])
    assert len(margins) == 8
    assert cell["mean"] == pytest.approx(margins.mean(), abs=1e-6)
    [quality] = results["quality"]["cells"]
    assert list(quality) == ["category", "alpha", "psnr", "ssim"]
    why = "the judge redness@1 gives scores and no features"
    assert results["quality"]["features"] == why
    said = " ".join(result.output.split())
    assert f"CLIPScore and direction are not measured: {why}" in said
    assert f"CMMD and KID are not measured: {why}" in said


def test_a_score_outside_its_range_is_said(own, measured):
    shutil.copytree("run", "loud-run")
    result = verb("run", *EIGHT, "--clip-model=tried:loud", "--run-dir=loud-run")
    assert "judge loud@1: expected a score in -1..1 for each of" in result.output
    assert result.exit_code == 4


def test_what_a_run_folder_names_is_imported_only_if_confirmed(own, measured, monkeypatch):
    assert verb("run", *EIGHT, "--clip-model=tried:redness").exit_code in (0, 1)
    db = sqlite3.connect(own / "run" / "index.sqlite")
    with db:
        db.execute("DELETE FROM scores WHERE judge = 'redness@1' AND rowid IN "
                   "(SELECT rowid FROM scores WHERE judge = 'redness@1' LIMIT 1)")  # fmt: skip
    db.close()
    module = sys.modules.pop("tried")
    refused = verb("verify", "run", "--repair")
    assert refused.exit_code == 2
    assert "the judge 'tried:redness'" in refused.output
    assert "tried" not in sys.modules
    assert verb("verify", "run", "--repair", "--trust").exit_code == 0
    sys.modules["tried"] = module


def test_a_judge_of_ones_own_can_be_sent_to_a_worker(own):
    found = pickle.loads(pickle.dumps(find_judge("tried:redness", None)))
    assert found == OwnJudge("tried:redness", "redness@1")
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, ..., 0] = images[1, ..., 2] = 255
    np.testing.assert_allclose(found.load("cpu").score(images, ["red", "blue"]), [1.0, 1.0])
    with pytest.raises(ModelError, match="expected redness@0, got redness@1"):
        OwnJudge("tried:redness", "redness@0").load("cpu")


def test_a_name_of_no_judge_is_open_clips(own):
    assert find_judge("embedded", None).fingerprint.startswith("clip-tiny@")
    with pytest.raises(ModelError, match="--clip-model 'ViT'"):
        find_judge("ViT", None)
    with pytest.raises(ModelError, match="to be importable"):
        find_judge("no_module_here:x", None)


def metric_of(compute, **more):
    return GridMetric(
        name="tried", label="tried", inputs=frozenset({Input.IMAGES}), compute=compute, **more
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], r"a number for each of 2 images, \(2,\), got the shape \(1,\)"),
        ([0.0, float("nan")], "or infinity, got nan for 1 of 2"),
        ([-float("inf"), 0.0], "or infinity, got -inf for 1 of 2"),
    ],
)
def test_a_value_that_is_none_is_said(value, message):
    with pytest.raises(MetricError, match=message):
        _values(metric_of(lambda of: value), Inputs({}), 2)
    with pytest.raises(MetricError, match="one finite number for all images"):
        _value(metric_of(lambda of: [1.0, 2.0]), Inputs({}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "left alone"}, "expected an identifier"),
        ({"name": "alpha"}, "a name that results do not use otherwise"),
        ({"inputs": frozenset()}, "got none"),
        ({"inputs": frozenset({"x"})}, "expected some of images"),
        ({"per": Per.SET}, "features and references"),
        ({"version": "a/b"}, "letters, digits"),
    ],
)
def test_a_metric_that_is_none_is_refused(changed, message):
    given = {"name": "x", "label": "x", "inputs": frozenset({Input.IMAGES}), "compute": len}
    with pytest.raises(MetricError, match=message):
        GridMetric(**{**given, **changed})


def test_a_metric_is_given_the_inputs_that_it_names():
    with pytest.raises(MetricError, match=r"expected unsteered among its inputs.*Input.UNSTEERED"):
        Inputs({Input.IMAGES: 1}).unsteered  # noqa: B018


def test_values_of_the_built_in_metrics_keep_the_keys_that_run_folders_have():
    keys = {each.name: each.key("clip@1", "lpips-alex@sha256:2") for each in grid_metrics()}
    assert list(keys) == [*DEFAULT]
    assert keys | {"cmmd": "", "kid": ""} == {
        "clip_score": "clip_score/clip@1",
        "directional_similarity": "directional_similarity/clip@1",
        "psnr": "psnr",
        "ssim": "ssim",
        "lpips": "lpips-alex@sha256:2",
        "cmmd": "",
        "kid": "",
    }


def test_the_smallest_sides_are_those_of_the_metrics():
    from analogy.metrics import perceptual

    sides = {each.name: each.smallest_side for each in grid_metrics()}
    assert sides["ssim"] == len(perceptual.SSIM_WINDOW)
    assert sides["lpips"] == perceptual._SMALLEST["alex"]


PLAIN = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just([])
ROWS = st.dictionaries(
    st.sampled_from(["name", "label", "unit", "title", "higher_is_better", "unchanged"]), PLAIN
)


@given(st.lists(ROWS | PLAIN, max_size=3))
def test_what_strangers_results_say_of_metrics_is_shown_or_left_out(rows):
    shown = shown_metrics(described(rows))
    assert [each.name for each in shown[: len(DEFAULT)]] == [*DEFAULT]
    assert all(isinstance(each, Described) for each in shown)
    assert shown_metrics(described(None)) == shown_metrics(()) == grid_metrics()


def test_extension_errors_name_what_was_expected():
    with pytest.raises(ExtensionError, match="measured by a Task"):
        grid_metrics(["margin"])
