"""The metrics of an evaluation: built-in ones, those of users and packages, what each is given."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re

import numpy as np
import pytest
import torch
from cases import ROOT
from evaluated import KEYS, brightness, noisy, plain_folder

from analogy.core import registry
from analogy.core.errors import ModelError
from analogy.evaluation import (
    EvaluationAgent,
    MetricResult,
    TaskError,
    lpips_metric,
    metric,
)
from analogy.evaluation import metrics as evaluated_by
from analogy.evaluation.samples import FeatureCache
from analogy.grid_metrics import METRICS
from analogy.judges.open_clip import Judge
from analogy.metrics import (
    Lpips,
    kid,
    lpips,
)
from analogy.models.generator import Generator
from tools.distort import random_backbone

pytestmark = pytest.mark.usefixtures("one_pipeline")

# --- metrics


class Loudness:
    """A user's metric, all of it."""

    name = "loudness"
    higher_is_better = False

    def compute(self, samples):
        """The standard deviation of each image."""
        return [image.std() for image in samples.images]


def test_users_metrics_go_beside_built_in_ones(make_task, made):
    spread = metric(
        "spread", lambda samples: samples.images.std(), higher_is_better=True, units="grey levels"
    )
    report = EvaluationAgent(make_task([Loudness(), "clip_score", spread])).evaluate("embedded")
    assert [result.name for result in report] == ["loudness", "clip_score", "spread"]
    assert report["loudness"].values[KEYS[2]] == pytest.approx(made[KEYS[2]].std())
    assert report["loudness"].higher_is_better is False
    assert report["loudness"].units == ""
    assert report["spread"].value == pytest.approx(np.stack(list(made.values())).std())
    assert report["spread"].units == "grey levels"
    assert report["spread"].values is None


@pytest.fixture
def entry_points(monkeypatch):
    """Entry points of other packages, by name."""

    def offer(**targets):
        points = [
            importlib.metadata.EntryPoint(name, target, "analogy.metrics")
            for name, target in targets.items()
        ]

        def found(*, group):
            return tuple(point for point in points if point.group == group)

        monkeypatch.setattr(importlib.metadata, "entry_points", found)
        monkeypatch.setattr(registry, "entry_points", found)
        registry.rescan()

    yield offer
    registry.rescan()


def test_metrics_of_other_packages_are_found_by_name(make_task, made, entry_points):
    entry_points(loudness=f"{__name__}:Loudness", brightness="evaluated:BRIGHT")
    report = EvaluationAgent(make_task(["loudness", "brightness"])).evaluate("embedded")
    assert report["brightness"].values[KEYS[0]] == pytest.approx(made[KEYS[0]].mean())
    with pytest.raises(TaskError, match="unknown metric 'loudnes'; did you mean 'loudness'"):
        make_task(["loudnes"])


def test_a_name_taken_twice_is_an_error(make_task, entry_points):
    with pytest.raises(TaskError, match="'psnr' occurs twice"):
        make_task(["psnr", "ssim", "psnr"])
    mine = metric("clip_score", brightness, higher_is_better=None)
    with pytest.raises(TaskError, match="'clip_score' occurs twice"):
        make_task(["clip_score", mine])
    entry_points(psnr="evaluated:BRIGHT", other="evaluated:BRIGHT")
    with pytest.raises(TaskError, match="'psnr' is taken twice, by the suite and"):
        make_task(["psnr"])
    with pytest.raises(TaskError, match="expected a metric of that name, got 'brightness'"):
        make_task(["other"])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (["clip_scor"], "unknown metric 'clip_scor'; did you mean 'clip_score'"),
        ("image_quality", "unknown preset 'image_quality'"),
        ("analgy", "did you mean 'analogy'"),
        ([], "at least one metric"),
        (3, "what: expected a preset's name"),
        ([3], "got int"),
        ([Loudness], r"give an instance: Loudness\(\)"),
        ([brightness], "wrap a function"),
        ([metric("", brightness, higher_is_better=True)], "expected a name"),
        ([metric("x", brightness, higher_is_better="up")], "True, False or None, got 'up'"),
        ([metric("x", brightness, higher_is_better=True, needs=["promts"])], "mean 'prompts'"),
        (["energy"], "give the task country='DEU'"),
    ],
)
def test_what_is_no_metric_is_said_with_the_way_out(make_task, what, message):
    with pytest.raises(TaskError, match=message):
        make_task(what)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda samples: samples.images.mean(axis=(2, 3)), r"got the shape \(6, 64\)"),
        (lambda samples: "much", "expected numbers, got str"),
        (lambda samples: None, "NaN|numbers"),
        (lambda samples: np.array([0, 0, np.nan, 0, 0, 0]), f"got NaN for '{KEYS[2]}'"),
    ],
)
def test_a_metric_that_gives_no_figures_is_named(make_task, made, given, message):
    task = make_task([metric("mine", given, higher_is_better=True)])
    with pytest.raises(TaskError, match=f"'mine': .*{message}|{message}"):
        EvaluationAgent(task).evaluate("embedded")


def test_a_metric_cannot_change_what_others_are_given(make_task, made):
    def spoil(samples):
        samples.images[0] = 0
        return 0.0

    task = make_task([metric("spoil", spoil, higher_is_better=None)])
    with pytest.raises(ValueError, match="read-only"):
        EvaluationAgent(task).evaluate("embedded")


def test_what_data_or_mode_cannot_give_is_refused_before_any_image(
    make_task, monkeypatch, tmp_path
):
    monkeypatch.setattr(Generator, "generate", lambda *a: pytest.fail("generated"))
    agent = EvaluationAgent(make_task(["psnr"], seeds=(7,)))
    with pytest.raises(
        TaskError, match=r"psnr needs a reference for each image.*in single mode.*compare"
    ):
        agent.evaluate("embedded")
    with pytest.raises(
        TaskError, match=r"kid .clip-tiny. needs a set of reference images.*references=FOLDER"
    ):
        EvaluationAgent(make_task(["kid"], seeds=(7,))).evaluate("embedded")
    with pytest.raises(
        TaskError, match=r"directional_similarity needs the image before steering.*word pairs"
    ):
        make_task(["directional_similarity"])
    folder = plain_folder(tmp_path / "data", {"1": np.zeros((64, 64, 3), np.uint8)})
    with pytest.raises(TaskError, match="clip_score needs a prompt for each image"):
        make_task(["clip_score"], folder)
    with pytest.raises(TaskError, match="needs 2 images or more, and this task asks for 1"):
        EvaluationAgent(make_task(["kid"], folder)).evaluate(folder)
    with pytest.raises(TaskError, match="margin needs the prompt before steering"):
        make_task(["margin"])
    with pytest.raises(TaskError, match=r"parameters needs a model that generates.*with prompts"):
        EvaluationAgent(make_task(["parameters"], folder)).evaluate("embedded")
    small = [("a red car", np.zeros((32, 32, 3), np.uint8))]
    with pytest.raises(TaskError, match=r"'a red car': expected 64x64 .* got 32x32.*\(psnr\)"):
        EvaluationAgent(make_task(["psnr"], small)).evaluate("embedded")
    (tmp_path / "broken.png").write_text("no image")
    broken = [("a red car", tmp_path / "broken.png")]
    for name in ("ssim", "kid"):
        with pytest.raises(ValueError, match=r"broken\.png: expected an image file"):
            EvaluationAgent(make_task([name], broken)).evaluate("embedded")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a red car", r"goes into a list: \['a red car'\]"),
        ([], "expected prompts"),
        (3, "expected prompts"),
        (["a red car", 3], "int 3 at place 1"),
        (["a red car", " "], "got ' ' at place 1"),
        (["a red car", "a red car"], "got 'a red car' 2 times.*seeds"),
        ([("a red car", "no.png")], "no such file"),
        ([("a red car", np.zeros((64, 64)))], "expected uint8"),
        ([("a red car", 3)], "expected a path or array"),
    ],
)
def test_what_is_no_data_is_said(make_task, data, message):
    with pytest.raises(TaskError, match=message):
        make_task(["clip_score"], data)


def test_settings_are_checked(make_task, tmp_path):
    for settings, message in (
        ({"seeds": (0, 0)}, "seeds: expected each value once"),
        ({"steps": 0}, r"steps: expected an integer in 1\.\.1000000000"),
        ({"alphas": (0.0,)}, "alphas: .*alpha 0 .unsteered. is always"),
        ({"method": "wrod"}, "did you mean 'word'"),
        ({"device": "gpu"}, "device: expected cpu"),
        ({"references": tmp_path / "no"}, "references: expected a folder"),
        ({"references": tmp_path}, "expected images"),
        ({"references": np.zeros((2, 8, 8))}, "references: expected uint8"),
        ({"judge": 3}, "judge: expected a name"),
    ):
        with pytest.raises(ValueError, match=message):
            make_task(["clip_score"], **settings)
    with pytest.raises(TaskError, match="features: expected 'judge'"):
        make_task(["fid"], features="clip")


def test_weights_that_are_not_there_are_said_or_left_out_of_a_preset(
    make_task, made, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for what, settings in ((["fid"], {"features": "inception"}), (["lpips"], {})):
        with pytest.raises(ModelError, match=r"no such file.*curl"):
            make_task(what, **settings)
    task = make_task("image_generation_quality", features="inception")
    report = EvaluationAgent(task).compare("embedded", "embedded")
    assert set(report.left_out) == {"fid", "kid"}
    assert "curl" in report.left_out["fid"]
    assert "cmmd (clip-tiny)" in [result.name for result in report]


def test_lpips_is_given_as_an_object_with_its_weights(make_task, made, write_folder, tmp_path):
    network = Lpips("alex", weights=random_backbone(tmp_path / "alexnet.pth", "alexnet"))
    folder = write_folder(noisy(made))
    [result] = EvaluationAgent(make_task([lpips_metric(network)])).compare("embedded", folder)
    images, changed = (np.stack([i[key] for key in KEYS]) for i in (made, noisy(made)))
    assert list(result.values.values()) == pytest.approx(lpips(changed, images, network))
    assert (result.name, result.judge) == ("lpips (alex)", network.fingerprint)
    assert result.higher_is_better is False


def test_sets_may_be_seen_by_any_function(make_task, made):
    def corners(images):
        return images[:, ::63, ::63].reshape(len(images), -1).astype(float)

    references = np.stack(list(noisy(made).values()))
    task = make_task(["kid"], references=references, features=corners)
    [result] = EvaluationAgent(task).evaluate("embedded")
    expected = kid(np.stack([made[key] for key in KEYS]), references, corners)
    assert result.name == expected.name == "kid (corners)"
    assert result.value == pytest.approx(expected.value)


# --- features


def test_each_image_is_seen_once_by_the_judge_for_all_metrics(make_task, made, pairs, monkeypatch):
    seen = []
    look = Judge.image_features

    def spy(self, images, **options):
        seen.append(len(images))
        return look(self, images, **options)

    monkeypatch.setattr(Judge, "image_features", spy)
    references = np.stack(list(made.values()))[:4]
    task = make_task(["clip_score", "fid", "kid", "cmmd"], references=references)
    agent = EvaluationAgent(task)
    agent.evaluate("embedded")
    assert sum(seen) == 6  # the references are four of the six
    agent.compare("embedded", "embedded")
    assert sum(seen) == 6
    seen.clear()
    task = make_task(
        ["margin", "clip_score", "directional_similarity"], pairs[:2], alphas=(0.5, 1.0)
    )
    EvaluationAgent(task).evaluate("embedded")
    assert sum(seen) == 2 * 3 * 2  # alphas 0, 0.5 and 1 of two seeds


def test_features_are_kept_by_what_an_image_is_and_not_by_its_array():
    rng, calls = np.random.default_rng(0), []

    def flat(images):
        calls.append(len(images))
        return images.reshape(len(images), -1)[:, :5].astype(float)

    images = rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    cache = FeatureCache()
    np.testing.assert_array_equal(cache(images, flat), flat(images))
    doubled = np.concatenate([images[::-1], images[:2], 255 - images[:1]])
    calls.clear()
    np.testing.assert_array_equal(cache(doubled, flat), flat(doubled))
    assert calls[0] == 1  # the new one alone
    tall = images.reshape(4, 16, 4, 3)  # the same bytes in another shape
    cache(tall, flat)
    assert calls[-1] == 4


# --- documentation


def examples(file):
    """The Python blocks of a document of this repository."""
    text = (ROOT / file).read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_a_metric_of_ones_own_is_ten_lines_that_run(tmp_path, monkeypatch, capsys):
    [example] = [text for text in examples("docs/evaluation.md") if "def sharpness" in text]
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/evaluation.md", "exec"), {"__name__": "page"})
    assert "sharpness" in capsys.readouterr().out


def test_every_built_in_metric_is_documented():
    text = (ROOT / "docs/evaluation.md").read_text("utf-8")
    for name in [*METRICS.builtin, *evaluated_by.PRESETS]:
        assert f"`{name}`" in text, name
    for field in dataclasses.fields(MetricResult):
        assert f"`{field.name}`" in text, field.name
