"""Task and EvaluationAgent on the embedded models: data forms, both modes, metrics, results."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from cases import ROOT
from PIL import Image
from tiny import build

from analogy.core import registry
from analogy.core.errors import ModelError
from analogy.core.images import to_png
from analogy.core.records import Pair
from analogy.evaluation import (
    EvaluationAgent,
    Measurement,
    MetricResult,
    Report,
    Task,
    TaskError,
    lpips_metric,
    metric,
    subjects,
    timed,
)
from analogy.evaluation import metrics as evaluated_by
from analogy.evaluation.samples import FeatureCache
from analogy.generation.engine import no_progress
from analogy.generation.serial import Serial
from analogy.grid_metrics import METRICS
from analogy.judges.open_clip import Judge
from analogy.metrics import (
    Lpips,
    clip_score,
    cmmd,
    directional_similarity,
    fid,
    kid,
    lpips,
    psnr,
    ssim,
)
from analogy.models.generator import Generated, Generator, latents_for, noise
from analogy.models.memory import MemoryFullError
from analogy.models.sources import find_pipeline
from analogy.settings.pairs import load_pairs
from analogy.statistics.bootstrap import bootstrap_ci, cluster_bootstrap_ci
from analogy.store.folder import RunFolder
from tools.distort import drawings, random_backbone
from tools.distort import noise as grain

PROMPTS = ("a red car", "two blue cups", "a green hat")
SEEDS = (0, 1)
KEYS = [f"{prompt} #{seed}" for prompt in PROMPTS for seed in SEEDS]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Where this file's images are kept, so that each is made once."""
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(autouse=True)
def one_pipeline(monkeypatch, pipeline):
    """The embedded pipeline is loaded once a session."""
    monkeypatch.setattr(subjects, "load_pipeline", lambda source, **settings: pipeline)


@pytest.fixture
def make_task(run_dir, judge):
    """Build a task of two steps on the embedded models."""

    def build_task(what, data=PROMPTS, **settings):
        given = {"seeds": SEEDS, "steps": 2, "judge": judge, "dtype": "float32"}
        return Task(what, data, run_dir=run_dir, **{**given, **settings})

    return build_task


@pytest.fixture(scope="module")
def made(run_dir, judge, pipeline):
    """The embedded model's images of the prompts, by key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "load_pipeline", lambda source, **settings: pipeline)
        task = Task(
            [metric("nothing", lambda samples: 0.0, higher_is_better=None)], PROMPTS,
            seeds=SEEDS, steps=2, judge=judge, dtype="float32", run_dir=run_dir,
        )  # fmt: skip
        model = subjects.Model("embedded", task)
        images, failed = model.images(task.samples, lambda n: None)
    assert not failed
    return images


@pytest.fixture
def write_folder(tmp_path):
    """Write images by key as a folder, under names that say nothing, in shuffled order."""

    def write(images, name="elsewhere", *, by_key=False, seed=0):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        order = np.random.default_rng(seed).permutation(len(images))
        for i, (key, image) in enumerate([list(images.items())[j] for j in order]):
            (folder / f"{i:03}.png").write_bytes(to_png(image))
            prompt, _, number = key.rpartition(" #")
            row = {"key": key} if by_key else {"text": prompt, "seed": int(number)}
            rows.append({"file_name": f"{i:03}.png", **row})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return write


def brightness(samples):
    """A value of each image that anyone can check."""
    return samples.images.mean(axis=(1, 2, 3))


BRIGHT = metric("brightness", brightness, higher_is_better=None, units="grey levels")


def noisy(images, strength=20):
    """The images under noise, by key."""
    changed = grain(np.stack(list(images.values())), strength)
    return dict(zip(images, changed, strict=True))


def plain_folder(folder, images):
    """Images by file name, without any metadata."""
    for name, image in images.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(image))
    return folder


# --- single mode


def test_prompts_are_scored_as_the_metric_itself_scores_the_images(make_task, made, judge):
    report = EvaluationAgent(make_task(["clip_score"])).evaluate("embedded")
    result = report["clip_score"]
    prompts = [prompt for prompt in PROMPTS for _ in SEEDS]
    expected = clip_score(np.stack([made[key] for key in KEYS]), prompts, judge)
    assert list(result.values) == KEYS
    np.testing.assert_allclose(list(result.values.values()), expected, atol=1e-4)
    assert result.value == pytest.approx(expected.mean())
    interval = cluster_bootstrap_ci(expected.reshape(len(PROMPTS), len(SEEDS)))
    assert (result.ci_low, result.ci_high) == pytest.approx(interval, abs=1e-4)
    assert (result.n, result.n_prompts, result.n_failed) == (6, 3, 0)
    assert result.higher_is_better is True
    assert result.judge == judge.fingerprint
    assert result.mode == "single"
    assert result.models["model"].startswith("sdxl-tiny@sha256:")


def test_images_come_of_the_prompt_and_the_seed_alone(make_task, made, pipeline):
    generator = Generator(pipeline, steps=2, guidance=4.0, size=64)
    latents = noise(generator.latent_shape, "two blue cups", "1")[None]
    encoded = generator.encode(["two blue cups"])["two blue cups"]
    alone = generator.generate([encoded], latents).images[0]
    assert np.abs(alone.astype(int) - made["two blue cups #1"]).max() <= 1


def test_nothing_is_generated_or_loaded_twice(make_task, monkeypatch):
    EvaluationAgent(make_task(["clip_score"])).evaluate("embedded")
    monkeypatch.setattr(subjects, "load_pipeline", lambda *a, **k: pytest.fail("loaded again"))
    again = EvaluationAgent(make_task(["clip_score", BRIGHT])).evaluate("embedded")
    assert again["brightness"].n == 6


def test_only_what_is_new_is_generated(make_task, made, monkeypatch):
    batches = []
    generate = Generator.generate

    def spy(self, conditionings, latents):
        batches.append(len(conditionings))
        return generate(self, conditionings, latents)

    monkeypatch.setattr(Generator, "generate", spy)
    task = make_task([BRIGHT], [*PROMPTS, "a pink boat"])
    assert EvaluationAgent(task).evaluate("embedded")["brightness"].n == 8
    assert sum(batches) == len(SEEDS)


def test_images_that_came_with_prompts_are_their_references(make_task, made, tmp_path):
    references = noisy({prompt: made[f"{prompt} #0"] for prompt in PROMPTS})
    Image.fromarray(references[PROMPTS[0]]).save(tmp_path / "one.png")
    data = [(prompt, image) for prompt, image in references.items()]
    data[0] = (PROMPTS[0], tmp_path / "one.png")
    report = EvaluationAgent(make_task(["psnr", "ssim", "kid"], data)).evaluate("embedded")
    images = np.stack([made[key] for key in KEYS])
    paired = np.stack([references[prompt] for prompt in PROMPTS for _ in SEEDS])
    for name, function in (("psnr", psnr), ("ssim", ssim)):
        np.testing.assert_allclose(list(report[name].values.values()), function(images, paired))
    # Of a set each reference counts once, however many seeds there are.
    expected = kid(images, np.stack(list(references.values())), make_task(["kid"]).judge).value
    assert report["kid (clip-tiny)"].value == pytest.approx(expected, abs=1e-6)


def test_an_image_folder_with_texts_is_prompts_with_references(make_task, made, tmp_path):
    folder = plain_folder(
        tmp_path / "data", {str(i): made[f"{p} #0"] for i, p in enumerate(PROMPTS)}
    )
    lines = [json.dumps({"file_name": f"{i}.png", "text": p}) for i, p in enumerate(PROMPTS)]
    (folder / "metadata.jsonl").write_text("\n".join(lines[::-1]))
    result = EvaluationAgent(make_task(["psnr"], folder)).evaluate("embedded")["psnr"]
    assert result.values["two blue cups #0"] is None  # equal: infinite
    assert result.values["two blue cups #1"] < 30


def test_sets_are_compared_with_a_folder_of_any_images(make_task, made, tmp_path, judge):
    drawn, _ = drawings(5, seed=1)
    folder = plain_folder(tmp_path / "refs", {f"sub/{i}": image for i, image in enumerate(drawn)})
    task = make_task(["fid", "kid", "cmmd", "cmmd_unbiased"], references=folder)
    report = EvaluationAgent(task).evaluate("embedded")
    images = np.stack([made[key] for key in KEYS])
    with pytest.warns(UserWarning, match="below 2,048"):
        expected = [fid(images, drawn, judge)]
    expected += [kid(images, drawn, judge), cmmd(images, drawn, judge)]
    expected += [cmmd(images, drawn, judge, estimator="unbiased")]
    assert [result.name for result in report] == [score.name for score in expected]
    for result, score in zip(report, expected, strict=True):
        assert result.value == pytest.approx(score.value, rel=1e-4, abs=1e-6)
        assert result.values is None
        assert result.ci_low is None
        assert "resampling" in result.ci_absent
        assert result.judge == judge.fingerprint
    assert any("below 2,048" in note for note in report["fid (clip-tiny)"].notes)
    by_array = EvaluationAgent(make_task(["kid"], references=drawn)).evaluate("embedded")
    assert by_array["kid (clip-tiny)"].value == report["kid (clip-tiny)"].value


def test_a_folder_of_images_alone_is_compared_by_file_name(make_task, made, tmp_path):
    numbered = {f"{i}": image for i, image in enumerate(made.values())}
    data = plain_folder(tmp_path / "data", numbered)
    changed = noisy(numbered)
    model = plain_folder(tmp_path / "model", dict(reversed(changed.items())))
    report = EvaluationAgent(make_task(["psnr", "kid"], data)).evaluate(model)
    expected = psnr(np.stack(list(changed.values())), np.stack(list(numbered.values())))
    assert report["psnr"].values == pytest.approx(dict(zip(numbered, expected, strict=True)))
    with pytest.raises(TaskError, match=r"needs images to score.*would not know what to make"):
        EvaluationAgent(make_task(["kid"], data)).evaluate("embedded")
    strange = plain_folder(tmp_path / "strange", {f"x{name}": i for name, i in changed.items()})
    with pytest.raises(TaskError, match=r"psnr needs a reference for each image"):
        EvaluationAgent(make_task(["psnr"], data)).evaluate(strange)
    assert EvaluationAgent(make_task(["kid"], data)).evaluate(strange).results[0].n == 6


def test_word_pairs_are_steered_and_compared_with_alpha_0(make_task, pairs, judge, pipeline):
    task = make_task("analogy", pairs[:3], alphas=(0.5, 1.0), method="lerp")
    report = EvaluationAgent(task).evaluate("embedded")
    assert [result.name for result in report] == [
        "margin", "clip_score", "directional_similarity", "psnr", "ssim",
    ]  # fmt: skip
    assert {result.n for result in report} == {3 * 2 * 2}
    assert {result.n_prompts for result in report} == {3}
    generator = Generator(pipeline, steps=2, guidance=4.0, size=64)
    pair = pairs[1]
    encoded = generator.encode([pair.source_prompt, pair.target_prompt])
    latents = latents_for(pair, 1, generator.latent_shape)[None]
    source, target = (generator.generate([e], latents).images for e in encoded.values())
    key = f"{pair.id} alpha 1 #1"
    prompts = [pair.target_prompt], [pair.source_prompt]
    expected = {
        "clip_score": clip_score(target, prompts[0], judge),
        "directional_similarity": directional_similarity(target, source, *prompts, judge),
        "psnr": psnr(target, source),
        "ssim": ssim(target, source),
    }
    for name, [value] in expected.items():
        assert report[name].values[key] == pytest.approx(value, rel=2e-2), name
    cosines = [clip_score(target, prompt, judge)[0] / 100 for prompt in prompts]
    assert report["margin"].values[key] == pytest.approx(cosines[0] - cosines[1], abs=2e-2)


def test_a_file_of_word_pairs_is_read_as_the_suite_reads_it(make_task, tmp_path, pairs):
    lines = [",".join(field.name for field in dataclasses.fields(Pair))]
    lines += [",".join(dataclasses.astuple(pair)) for pair in pairs]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    task = make_task("analogy", str(tmp_path / "pairs.csv"))
    assert list(task.data.pairs) == load_pairs(tmp_path / "pairs.csv") == pairs
    assert len(task.samples) == 12 * 3 * 2
    assert {sample.alpha for sample in task.samples} == {0.5, 0.8, 1.0}


def test_word_pairs_are_compared_between_models_and_folders(make_task, pairs):
    task = make_task("analogy", pairs[:3], alphas=(1.0,))
    agent = EvaluationAgent(task)
    alone = agent.evaluate("embedded")
    folder = subjects.Model("embedded", task).folder
    report = agent.compare("embedded", folder)
    for name in ("margin", "clip_score", "directional_similarity"):
        assert report[name].value == 0.0
        assert report[name].value_a == alone[name].value
        assert list(report[name].values) == [
            f"{p.id} alpha 1 #{seed}" for p in pairs[:3] for seed in SEEDS
        ]
    assert report["ssim"].value == pytest.approx(1.0)  # of b against a, not against alpha 0
    assert alone["ssim"].value < 0.99


# --- folders made elsewhere


def test_files_are_matched_by_prompt_and_seed_whatever_their_names_and_order(
    make_task, made, write_folder
):
    agent = EvaluationAgent(make_task([BRIGHT]))
    expected = {key: float(made[key].mean()) for key in KEYS}
    for i, by_key in enumerate((False, True)):
        folder = write_folder(made, f"folder-{i}", by_key=by_key, seed=i)
        report = agent.evaluate(folder)
        assert report["brightness"].values == pytest.approx(expected)
        assert list(report["brightness"].values) == KEYS


def test_a_run_folder_is_a_folder_of_images_by_itself(make_task, made, run_dir):
    task = make_task([BRIGHT])
    folder = subjects.Model("embedded", task).folder
    assert folder.parent == run_dir
    report = EvaluationAgent(task).evaluate(folder)
    assert report["brightness"].values == pytest.approx({k: made[k].mean() for k in KEYS})


def test_a_folder_that_lacks_images_is_not_judged_by_the_others(make_task, made, write_folder):
    some = {key: image for key, image in made.items() if key != KEYS[3]}
    with pytest.raises(
        TaskError, match=re.escape(f"no image for 1 of 6 samples, the first {KEYS[3]!r}")
    ):
        EvaluationAgent(make_task([BRIGHT])).evaluate(write_folder(some))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected JSON"),
        ('{"text": "a red car"}', "with file_name"),
        ('{"file_name": "no.png", "text": "a red car"}', "no such file"),
        ('{"file_name": "a.png", "text": "a red car", "seed": "0"}', "seed: expected int"),
        ('{"file_name": "a.png", "text": "a red car"}', "expected a seed"),
    ],
)
def test_wrong_metadata_is_said_with_its_line(make_task, tmp_path, line, message):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(TaskError, match=message):
        EvaluationAgent(make_task([BRIGHT])).evaluate(tmp_path)


def test_two_images_of_one_sample_are_refused(make_task, made, write_folder):
    folder = write_folder(made)
    file = folder / "metadata.jsonl"
    row = json.loads(file.read_text().splitlines()[0]) | {"file_name": "001.png"}
    file.write_text(file.read_text() + json.dumps(row))
    with pytest.raises(TaskError, match="expected one image of"):
        EvaluationAgent(make_task([BRIGHT])).evaluate(folder)


def test_images_of_other_sizes_and_files_that_are_none_are_said(make_task, made, write_folder):
    folder = write_folder(made)
    Image.new("RGB", (32, 32)).save(folder / "002.png")
    with pytest.raises(ValueError, match="images of one size, got"):
        EvaluationAgent(make_task([BRIGHT])).evaluate(folder)
    (folder / "002.png").write_text("no image")
    with pytest.raises(ValueError, match=r"002\.png: expected an image file"):
        EvaluationAgent(make_task([BRIGHT])).evaluate(folder)


# --- pairwise mode


def test_two_models_are_compared_prompt_by_prompt(make_task, made, write_folder, judge):
    changed = noisy(made)
    a, b = write_folder(made, "a", seed=1), write_folder(changed, "b", seed=2)
    task = make_task([BRIGHT, "clip_score", "psnr", "kid"])
    report = EvaluationAgent(task).compare(a, b)
    before, after = (np.stack([images[key] for key in KEYS]) for images in (made, changed))
    bright = report["brightness"]
    means = [images.mean(axis=(1, 2, 3)) for images in (before, after)]
    assert (bright.value_a, bright.value_b) == pytest.approx([m.mean() for m in means])
    difference = means[1] - means[0]
    assert bright.value == pytest.approx(difference.mean())
    assert bright.values == pytest.approx(dict(zip(KEYS, difference, strict=True)))
    assert bright.values_a == pytest.approx(dict(zip(KEYS, means[0], strict=True)))
    interval = bootstrap_ci(difference.reshape(3, 2).mean(axis=1))
    assert (bright.ci_low, bright.ci_high) == pytest.approx(interval)
    np.testing.assert_allclose(list(report["psnr"].values.values()), psnr(after, before))
    assert report["psnr"].value_a is None
    assert report["kid (clip-tiny)"].value == pytest.approx(
        kid(after, before, judge).value, abs=1e-6
    )
    assert report["clip_score"].value < 0  # noise makes it worse
    assert {result.mode for result in report} == {"pairwise"}
    assert report["psnr"].models.keys() == {"a", "b"}


def test_a_model_compared_with_itself_differs_in_nothing(make_task, made):
    task = make_task("image_generation_quality")
    report = EvaluationAgent(task).compare("embedded", "embedded")
    assert report["clip_score"].value == 0.0
    assert (report["clip_score"].ci_low, report["clip_score"].ci_high) == (0.0, 0.0)
    assert report["ssim"].value == pytest.approx(1.0)
    same = report["psnr"]
    assert (same.value, same.n_infinite, same.ci_low) == (None, 6, None)
    assert same.ci_absent == "6 of 6 values are infinite, and so is their mean"
    assert report["fid (clip-tiny)"].value == pytest.approx(0.0, abs=1e-9)
    assert not report.left_out


def test_folders_of_other_names_are_not_compared(make_task, made, tmp_path):
    numbered = {f"{i}": image for i, image in enumerate(made.values())}
    data = plain_folder(tmp_path / "data", numbered)
    other = plain_folder(tmp_path / "b", {f"{name}x": i for name, i in numbered.items()})
    with pytest.raises(TaskError, match="images of the same names in both, got 12 that only one"):
        EvaluationAgent(make_task(["kid"], data)).compare(data, other)


def test_a_live_pipeline_is_evaluated_as_it_is_and_left_as_it_was(make_task, made, pipeline):
    scheduler, settings = pipeline.scheduler, dict(pipeline.scheduler.config)
    task = make_task([BRIGHT], guidance=4.0)
    report = EvaluationAgent(task).compare("embedded", pipeline)
    assert list(report["brightness"].values_b.values()) == pytest.approx(
        [made[key].mean() for key in KEYS], abs=0.1
    )
    assert report["brightness"].models["b"].startswith("StableDiffusionXLPipeline@sha256:")
    assert pipeline.scheduler is scheduler
    assert dict(scheduler.config) == settings


def test_a_live_pipeline_is_known_by_its_weights():
    first, second = (build("sd1") for _ in range(2))
    assert subjects.pipeline_fingerprint(first) == subjects.pipeline_fingerprint(second)
    with torch.no_grad():
        next(second.unet.parameters()).view(-1)[0] += 1
    assert subjects.pipeline_fingerprint(first) != subjects.pipeline_fingerprint(second)
    half = build("sd1").to(torch.bfloat16)
    assert subjects.pipeline_fingerprint(first) != subjects.pipeline_fingerprint(half)


def test_what_is_no_supported_model_is_said(make_task):
    with pytest.raises(ModelError, match=r"StableDiffusionXLPipeline, .* got dict"):
        EvaluationAgent(make_task([BRIGHT])).evaluate({})
    with pytest.raises(ModelError, match="expected 'embedded'"):
        EvaluationAgent(make_task([BRIGHT])).evaluate("no-such-model")


# --- how images are generated: as those of a run


class Spied(Serial):
    """An engine of another package; ``prompts``: those of the runs that it was made for."""

    prompts: ClassVar[list[str]] = []

    def __init__(self, setup, worker):
        super().__init__(setup, worker)
        self.prompts.extend(setup.prompts)


def test_a_tasks_engine_generates(make_task, made, tmp_path):
    Spied.prompts.clear()
    task = make_task([BRIGHT], PROMPTS[:2], seeds=(0,), engine="test_evaluation:Spied")
    task.run_dir = tmp_path
    images, failed = subjects.Model("embedded", task).images(task.samples, no_progress)
    assert Spied.prompts == sorted(PROMPTS[:2])
    assert not failed
    for key, image in images.items():
        assert np.abs(image.astype(int) - made[key]).max() <= 1


def test_what_an_engine_cannot_do_is_said_at_once(make_task, pipeline):
    with pytest.raises(TaskError, match=r"engine: expected one of serial, ray, .* mean 'ray'"):
        make_task([BRIGHT], engine="rai")
    with pytest.raises(TaskError, match="num_workers: expected the engine ray with it, got serial"):
        make_task([BRIGHT], num_workers=2)
    task = make_task([BRIGHT], engine="ray")
    with pytest.raises(TaskError, match="expected serial for a pipeline in memory"):
        EvaluationAgent(task).evaluate(pipeline)


def test_memory_that_runs_out_is_said_as_for_a_run(make_task, tmp_path, monkeypatch):
    task = make_task([BRIGHT])
    task.run_dir = tmp_path
    monkeypatch.setattr(Generator, "generate", lambda *_: torch.empty(1 << 50))
    with pytest.raises(MemoryFullError, match="out of memory while generating: expected room"):
        EvaluationAgent(task).evaluate("embedded")


def test_a_model_with_a_lora_is_named_by_both(make_task, monkeypatch):
    asked = []

    def find(model, *, lora=None, **settings):
        asked.append((model, lora))
        return find_pipeline(model, **settings)

    monkeypatch.setattr(subjects, "find_pipeline", find)
    model = subjects.open_subject(("embedded", "style.safetensors"), make_task([BRIGHT]))
    assert asked == [("embedded", "style.safetensors")]
    assert (model.config.base_model, model.config.lora) == asked[0]
    with pytest.raises(ModelError, match=r"expected \(name or files, LoRA\) as texts"):
        subjects.open_subject(("embedded", 1), make_task([BRIGHT]))


# --- failed images


def test_images_that_failed_are_left_out_and_counted(make_task, made, tmp_path, monkeypatch):
    generate = Generator.generate

    def broken(self, conditionings, latents):
        done = generate(self, conditionings, latents)
        return Generated(done.images, {1: "black"} if len(conditionings) > 1 else {})

    monkeypatch.setattr(Generator, "generate", broken)
    task = make_task([BRIGHT, "kid"], references=np.stack(list(made.values())))
    task.run_dir = tmp_path
    task.config = dataclasses.replace(task.config, batch_size=6)
    report = EvaluationAgent(task).evaluate("embedded")
    lost = KEYS[1]
    for result in report:
        assert (result.n, result.n_failed) == (5, 1)
    assert lost not in report["brightness"].values
    assert report.config["failed"] == {lost: "black"}
    # Prompts count the same, however many of their images there are.
    by_prompt = [
        np.mean([v for key, v in report["brightness"].values.items() if key.startswith(prompt)])
        for prompt in PROMPTS
    ]
    assert report["brightness"].value == pytest.approx(np.mean(by_prompt))
    assert "1 failed image(s) left out" in str(report)
    paired = EvaluationAgent(task).compare(
        "embedded", subjects.Model("embedded", make_task([BRIGHT])).folder
    )
    assert (paired["brightness"].n, paired["brightness"].n_failed) == (6, 0)  # tried again


def test_a_steered_image_without_its_source_is_not_scored(make_task, pairs, tmp_path):
    task = make_task(["ssim"], pairs[:2], alphas=(0.5, 1.0), seeds=(0,))
    task.run_dir = tmp_path
    EvaluationAgent(task).evaluate("embedded")
    model = subjects.Model("embedded", task)
    job = model._jobs(list(task.sources.values()))[f"{pairs[0].id} alpha 0 #0"]
    folder = RunFolder(model.folder)
    with folder._index.db:
        folder._index.db.execute("DELETE FROM images WHERE key = ?", (job.key,))
    folder.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Generator, "generate",
            lambda self, c, latents: Generated(np.zeros((len(c), 64, 64, 3), np.uint8),
                                               dict.fromkeys(range(len(c)), "black")),
        )  # fmt: skip
        result = EvaluationAgent(task).evaluate("embedded")["ssim"]
    assert (result.n, result.n_failed, result.n_prompts) == (2, 2, 1)
    assert result.ci_absent.startswith("one prompt")


def test_a_model_whose_images_all_fail_has_no_figures(make_task, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Generator, "generate",
        lambda self, c, latents: Generated(
            np.zeros((len(c), 64, 64, 3), np.uint8), dict.fromkeys(range(len(c)), "black")
        ),
    )  # fmt: skip
    task = make_task([BRIGHT])
    task.run_dir = tmp_path
    with pytest.raises(TaskError, match=r"all 6 images failed \(black\)"):
        EvaluationAgent(task).evaluate("embedded")


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
        registry._installed.cache_clear()

    yield offer
    registry._installed.cache_clear()


def test_metrics_of_other_packages_are_found_by_name(make_task, made, entry_points):
    entry_points(loudness=f"{__name__}:Loudness", brightness=f"{__name__}:BRIGHT")
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
    entry_points(psnr=f"{__name__}:BRIGHT", other=f"{__name__}:BRIGHT")
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
    text = str(EvaluationAgent(task).compare("embedded", build("sd1")))
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"^parameters +8\.709 M +1\.192 M +-7\.517 M +- +1 +lower", text, re.MULTILINE)


def test_a_metric_that_is_not_there_is_asked_for_by_its_near_name(report):
    with pytest.raises(KeyError, match="did you mean 'psnr'"):
        report["psnrr"]


def test_the_progress_bar_is_quiet_where_there_is_no_terminal(make_task, made, capsys):
    EvaluationAgent(make_task([BRIGHT])).evaluate("embedded")
    assert capsys.readouterr() == ("", "")


# --- documentation


def examples(file):
    """The Python blocks of a document of this repository."""
    text = (ROOT / file).read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_readmes_metric_is_ten_lines_that_run(tmp_path, monkeypatch, capsys):
    [example] = [text for text in examples("README.md") if "analogy.evaluation" in text]
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "sharpness" in capsys.readouterr().out


def test_every_built_in_metric_is_documented():
    text = (ROOT / "docs/evaluation.md").read_text("utf-8")
    for name in [*METRICS.builtin, *evaluated_by.PRESETS]:
        assert f"`{name}`" in text, name
    for field in dataclasses.fields(MetricResult):
        assert f"`{field.name}`" in text, field.name
