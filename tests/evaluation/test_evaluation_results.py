"""Costs, and the results of an evaluation: as JSON, as a frame and in the terminal."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from evaluated import BRIGHT, KEYS, noisy
from tiny import build

from analogy.evaluation import (
    EvaluationAgent,
    Measurement,
    MetricResult,
    Report,
    TaskError,
    metric,
    timed,
)
from analogy.evaluation.results import PairVerdict

pytestmark = pytest.mark.usefixtures("one_pipeline")

# --- costs


@pytest.fixture
def quick(monkeypatch):
    """Few repetitions."""
    monkeypatch.setattr(timed, "LATENCY_REPEATS", 2)
    monkeypatch.setattr(timed, "THROUGHPUT_REPEATS", 1)
    monkeypatch.setattr(timed, "ENERGY_SECONDS", 0.2)


def test_costs_are_measured_on_images_of_their_own(make_task, quick, pipeline, tmp_path):
    task = make_task("efficiency", batch_size=2)
    task.run_dir = tmp_path
    report = EvaluationAgent(task).evaluate("embedded")
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert report["parameters"].value == sum(p.numel() for part in parts for p in part.parameters())
    assert report["latency"].n == 2
    assert 0 < report["latency"].value <= report["latency_p90"].value
    assert report["throughput"].value > 0
    assert "2 images a call" in report["throughput"].notes[0]
    assert report["macs"].value > 1e8
    assert report["size_on_disk"].value > 1e6
    assert report["peak_memory"].units == "bytes"
    assert {result.ci_low for result in report} == {None}
    assert set(report.left_out) == {"energy", "carbon"}
    assert "country" in report.left_out["energy"]
    assert not list(tmp_path.iterdir())  # nothing was generated to be kept


def test_electricity_is_measured_once_for_energy_and_carbon(make_task, quick):
    task = make_task(["energy", "carbon", "model_memory"], country="deu", batch_size=2)
    report = EvaluationAgent(task).evaluate("embedded")
    assert report["energy"].value > 0
    assert 0.1 < report["carbon"].value / report["energy"].value < 1  # kg CO2e per kWh in Germany
    assert "DEU" in report["energy"].notes[0]
    assert "estimated" in report["energy"].notes[0]


def test_costs_of_two_models_and_what_has_none(make_task, quick, made, write_folder, pipeline):
    tiny = build("sd1")
    task = make_task(["parameters"])
    result = EvaluationAgent(task).compare("embedded", tiny)["parameters"]
    assert result.value == result.value_b - result.value_a < 0
    folder = write_folder(made)
    with pytest.raises(TaskError, match="parameters needs a model that generates"):
        EvaluationAgent(task).evaluate(folder)
    with pytest.raises(TaskError, match="efficiency: none of its metrics can be had here"):
        EvaluationAgent(make_task("efficiency")).evaluate(folder)
    with pytest.raises(TaskError, match="size_on_disk needs a model that has files"):
        EvaluationAgent(make_task(["size_on_disk"])).evaluate(pipeline)


def test_a_user_may_measure_the_model_itself(make_task, pipeline):
    def steps(samples):
        images = samples.model.run(2)
        return Measurement(len(images), 7, ("counted",))

    task = make_task([metric("mine", steps, higher_is_better=None, needs="model")])
    [result] = EvaluationAgent(task).evaluate("embedded")
    assert (result.value, result.n, result.notes) == (2.0, 7, ("counted",))


# --- results


@pytest.fixture
def report(make_task, made, write_folder):
    """A report of two models with everything in it that a report can have."""
    half = {**noisy(made), KEYS[0]: made[KEYS[0]]}
    task = make_task([BRIGHT, "psnr", "fid"])
    return EvaluationAgent(task).compare(write_folder(made, "a"), write_folder(half, "b"))


def test_a_report_is_strict_json_and_comes_back_equal(report):
    def refuse(constant):
        pytest.fail(f"no JSON: {constant}")

    text = report.to_json()
    plain = json.loads(text, parse_constant=refuse)
    assert plain["results"][1]["values"][KEYS[0]] is None
    assert plain["results"][1]["n_infinite"] == 1
    again = Report.from_json(text)
    assert again == report
    assert again.to_json() == text
    with pytest.raises(ValueError, match="schema version"):
        Report.from_json(text.replace('"schema_version": 1', '"schema_version": 99'))


def test_one_infinite_value_is_said_and_not_left_out(report):
    result = report["psnr"]
    finite = [value for value in result.values.values() if value is not None]
    assert (len(finite), result.value, result.n) == (5, None, 6)
    assert result.ci_absent.startswith(
        "1 of 6 values are infinite, and so is their mean; the median"
    )
    assert f"{np.median([*finite, np.inf]):.4g}" in result.ci_absent
    assert "infinite" in str(report)


def test_a_result_is_frozen_and_holds_nothing_live(report):
    for result in report:
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.value = 1.0
        for field in dataclasses.fields(MetricResult):
            value = getattr(result, field.name)
            assert json.loads(json.dumps(value)) == (
                list(value) if isinstance(value, tuple) else value
            )


def test_a_report_is_a_frame_with_a_row_for_each_metric(report):
    frame = report.to_frame()
    assert list(frame.index) == ["brightness", "psnr", "fid (clip-tiny)"]
    assert frame.loc["brightness", "value"] == report["brightness"].value
    assert {"ci_low", "ci_high", "n", "n_failed", "higher_is_better", "value_a"} <= {*frame.columns}
    assert "values" not in frame.columns


def test_the_terminal_has_all_within_100_columns(report, make_task):
    single = EvaluationAgent(make_task("image_generation_quality")).evaluate("embedded")
    for one in (report, single):
        lines = str(one).splitlines()
        assert max(map(len, lines)) <= 100
    text = str(report)
    for result in report:
        assert result.name in text
    assert f"{report['brightness'].value_a:.4g}" in text
    assert "left out: psnr, ssim: needs a reference for each image" in str(single)


def test_large_figures_and_costs_fit_the_terminal_too(make_task, quick):
    task = make_task("efficiency", batch_size=1, country="DEU")
    report = EvaluationAgent(task).compare("embedded", build("sd1"))
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"^parameters +8\.709 M +1\.192 M +-7\.517 M +- +1 +lower", text, re.MULTILINE)
    # Settings of sampling that differ are flagged.
    flagged = ", ".join(map(str, report.unequal))
    assert "guidance (a 4, b 7.5)" in flagged
    said = " ".join(text.split())
    assert f"unequal: {flagged}: a difference may be due to this, and not to the models" in said
    assert Report.from_json(report.to_json()).unequal == report.unequal
    same = replace(report, unequal=())
    assert "unequal" not in str(same) + same.to_json()


@pytest.mark.parametrize(
    ("low", "high", "n", "higher_is_better", "verdict"),
    [
        (0.1, 0.2, 6, True, "better"),
        (0.1, 0.2, 6, False, "worse"),
        (-0.2, -0.1, 6, False, "better"),
        (-0.2, -0.1, 6, True, "worse"),
        (-0.2, -0.1, 6, None, "different"),
        (-0.1, 0.2, 6, True, "undecided"),
        (0.0, 0.0, 6, True, "undecided"),
        (0.1, 0.2, 5, True, "too_few"),
    ],
)
def test_an_interval_of_a_difference_has_a_verdict(low, high, n, higher_is_better, verdict):
    found = PairVerdict.of(low, high, n_prompts=n, higher_is_better=higher_is_better)
    assert found == verdict


def test_a_metric_that_is_not_there_is_asked_for_by_its_near_name(report):
    with pytest.raises(KeyError, match="did you mean 'psnr'"):
        report["psnrr"]


def test_the_progress_bar_is_quiet_where_there_is_no_terminal(make_task, made, capsys):
    EvaluationAgent(make_task([BRIGHT])).evaluate("embedded")
    assert capsys.readouterr() == ("", "")
