"""Task and EvaluationAgent on the embedded models: data forms, both modes, generation."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from cases import change_index
from evaluated import BRIGHT, KEYS, PROMPTS, SEEDS, noisy, plain_folder
from PIL import Image
from tiny import build

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.evaluation import (
    EvaluationAgent,
    TaskError,
    subjects,
)
from analogy.generation.engine import no_progress
from analogy.generation.serial import Serial
from analogy.metrics import (
    clip_score,
    cmmd,
    directional_similarity,
    fid,
    kid,
    psnr,
    ssim,
)
from analogy.models.generator import Generated, Generator, latents_for, noise
from analogy.models.memory import MemoryFullError
from analogy.models.sources import find_pipeline
from analogy.settings.pairs import load_pairs
from analogy.statistics.bootstrap import bootstrap_ci, cluster_bootstrap_ci
from analogy.store.folder import RunFolder
from tools.distort import drawings

pytestmark = pytest.mark.usefixtures("one_pipeline")

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
    assert bright.verdict == "too_few"  # three prompts
    assert report["psnr"].value_a is None
    assert report["psnr"].verdict is None
    assert not report.unequal  # of folders nothing is known
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
    folder.close()
    change_index(folder.path, "DELETE FROM images WHERE key = ?", job.key)
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
