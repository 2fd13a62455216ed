"""The study: what its options resolve to, what its cells say, and what its results hold."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import write_results
from tiny import build

from analogy.core.errors import ModelError, OptionError, StoreError
from analogy.core.records import Verdict
from analogy.generation.worker import steered, texts
from analogy.models import samplings
from analogy.models.defaults import DEFAULT_GPU_CLIP, DEFAULT_GPU_MODEL, native_dtype, sampling
from analogy.results.model import RESULTS_VERSION
from analogy.results.writing import to_json
from analogy.settings import options
from analogy.settings.pairs import PairsError
from analogy.settings.request import RunRequest
from analogy.statistics.estimates import estimate
from analogy.steering.conditioning import Conditioning
from analogy.store.folder import RunFolder
from analogy.store.grid import Role
from analogy.studies import resolve
from analogy.studies.ceiling import CeilingError
from analogy.studies.study import Study

FIGURES = {"n", "n_items", "mean", "ci_low", "ci_high", "p", "success_rate", "verdict"}


@pytest.fixture
def open_study(tmp_path):
    """Open a study from options' text, as the command line would."""
    made = []
    defaults = {option.name: option.default for option in options.OPTIONS}

    def build(**given) -> Study:
        raw = {**defaults, "analogy_run_dir": str(tmp_path / "run")}
        raw |= {f"analogy_{name}": text for name, text in given.items()}
        made.append(Study.open(options.parse_options(raw.__getitem__)))
        return made[-1]

    yield build
    for one in made:
        one.folder.close()


def spread(job) -> float:
    """Margins that succeed at alpha 1, fail at 0.5, and differ between pairs and seeds."""
    noise = 0.01 * math.sin(sum(job.pair.id.encode())) + 0.001 * job.seed
    return {0.0: 0.0, 0.5: -0.1, 1.0: 0.1}[job.alpha] + noise


# --- options


def test_the_default_study_is_the_whole_grid_on_the_embedded_models(open_study):
    opened = open_study()
    assert len(opened.pairs) == 400
    assert len(opened.jobs()) == 400 * 4 * 3
    assert len(opened.cell_jobs("color", 0.5)) == 50 * 2 * 3
    config = opened.config
    assert (config.model, config.clip_model, config.device) == ("embedded", "embedded", "cpu")
    assert (config.steps, config.guidance) == samplings.EMBEDDED_SAMPLING
    assert (config.size, config.batch_size, config.memory) == (64, None, None)
    assert config.dtype == native_dtype("cpu")
    assert opened.model.fingerprint.startswith("sdxl-tiny@sha256:")
    assert opened.scheduler.startswith("EulerDiscreteScheduler/")


def test_options_are_taken_over(open_study):
    opened = open_study(
        categories="size,color",
        alphas="-0.5",
        seeds="4",
        method="lerp",
        steps="3",
        guidance="0",
        size="32",
        dtype="bfloat16",
        batch_size="7",
        memory="12",
        limit="2",
    )
    assert {(job.alpha, job.seed) for job in opened.jobs()} == {(0.0, 4), (-0.5, 4)}
    assert opened.categories == ["color", "size"]
    assert len(opened.pairs) == 4
    config = opened.config
    assert (config.method, config.steps, config.guidance, config.limit) == ("lerp", 3, 0.0, 2)
    assert (config.size, config.dtype, config.batch_size, config.memory) == (32, "bfloat16", 7, 12)


@pytest.mark.parametrize(
    ("model", "folder", "expected"),
    [
        ("embedded", "sdxl", (8, 4.0)),
        ("segmind/SSD-1B", "sdxl", (50, 9.0)),
        ("segmind/SSD-1B@main", "sdxl", (50, 9.0)),
        ("stabilityai/sdxl-turbo", "sdxl", (1, 0.0)),
        ("mine/sdxl", "sdxl", (50, 5.0)),
        ("mine/sd1", "sd1", (50, 7.5)),
        ("mine/sd3", "sd3", (28, 7.0)),
    ],
)
def test_sampling_follows_the_model_and_not_the_device(tmp_path, model, folder, expected):
    index = {"_class_name": type(build(folder)).__name__}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert sampling(model, tmp_path) == expected


def test_one_folder_serves_all_runs_that_can_share_images(open_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folder(**given):
        opened = open_study(run_dir=None, **given).folder
        opened.close()
        return opened.path

    first = folder()
    assert first.parent.as_posix() == ".analogy/runs"
    assert folder(categories="color", limit="3", alphas="1", seeds="5", batch_size="1") == first
    assert folder(method="lerp", control=True, target=True) == first
    others = {folder(steps="3"), folder(guidance="2")}
    assert len(others | {first}) == 3


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"alphas": "0,1"}, OptionError, "--alphas: expected strengths other than 0, got 0.0"),
        ({"alphas": "9"}, OptionError, "--alphas: expected a finite number from -5 to 5, got 9.0"),
        ({"alphas": "1,1"}, OptionError, "--alphas: expected each value once"),
        ({"alphas": "nan"}, OptionError, "--alphas: expected a finite number"),
        ({"seeds": "1,1"}, OptionError, "--seeds: expected each value once"),
        (
            {"guidance": "-1"},
            OptionError,
            "--guidance: expected a finite number from 0 to .*, got -1.0",
        ),
        ({"categories": "colour"}, PairsError, "unknown category 'colour'.*mean 'color'"),
        ({"pairs": "none.csv"}, PairsError, "none.csv: expected a CSV file of word pairs"),
        ({"model": "none"}, ModelError, "--model 'none': expected 'embedded', a folder"),
        ({"clip_model": "none"}, ModelError, "--clip-model 'none': expected 'embedded', a folder"),
        (
            {"method": "category", "limit": "1"},
            OptionError,
            "--method: category needs 2 pairs or more in each category, got 1 in color",
        ),
    ],
)
def test_wrong_values_are_refused_before_anything_is_made(
    open_study, tmp_path, given, error, message
):
    with pytest.raises(error, match=message):
        open_study(**given)
    assert not (tmp_path / "run").exists()


def test_gpu_needs_a_cuda_device(open_study, monkeypatch):
    monkeypatch.setattr(resolve.torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=r"--gpu: expected a CUDA device, but torch .* sees none"):
        open_study(gpu=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "cuda"}, "--device cuda: expected a CUDA device, but torch .* sees none"),
        ({"device": "cuda:1"}, "--device cuda:1: expected a CUDA device, but torch .* sees none"),
        ({"device": "mps"}, "--device mps: expected Apple's Metal, but torch .* sees none"),
        ({"device": "cpu", "gpu": True}, "--device: expected cuda or cuda:N with --gpu, got 'cpu'"),
    ],
)
def test_an_absent_device_is_refused(open_study, monkeypatch, given, message):
    monkeypatch.setattr(resolve.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(resolve.torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(OptionError, match=message):
        open_study(**given)


def test_a_device_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(resolve.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(resolve.torch.cuda, "device_count", lambda: 2)
    for gpu in (True, False):
        assert resolve.check_device("cuda:1", gpu=gpu) == "cuda:1"
    with pytest.raises(OptionError, match="one of the 2 CUDA devices that torch sees, cuda:0 to"):
        resolve.check_device("cuda:2", gpu=False)


def test_gpu_has_defaults_of_its_own(monkeypatch, model_source):
    asked = []

    def found(name, **settings):
        asked.append((name, settings.pop("dtype"), any(settings.values())))
        return model_source

    monkeypatch.setattr(resolve.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(resolve, "find_pipeline", found)
    config, _, judge = resolve.resolve(RunRequest(gpu=True))
    assert asked == [(DEFAULT_GPU_MODEL, "float16", False)]
    assert (config.clip_model, config.clip_pretrained) == DEFAULT_GPU_CLIP
    assert judge.fingerprint == "/".join(DEFAULT_GPU_CLIP)
    assert (config.device, config.dtype, config.batch_size) == ("cuda", "float16", None)
    assert (config.steps, config.guidance) == (50, 9.0)


# --- cells


def test_a_cell_is_the_estimate_of_its_items(make_study, fill):
    opened = make_study()
    fill(opened, spread)
    items = [
        np.mean([spread(job) for job in opened.jobs("color", 1.0) if job.pair == pair])
        for pair in opened.pairs
        if pair.category == "color"
    ]
    figures = opened.cell("color", 1.0).margin
    assert figures.n == figures.n_items == 6
    assert figures.mean == pytest.approx(np.mean(items))
    assert figures.ci_low == pytest.approx(estimate(items).ci_low)
    assert figures.success_rate == 1.0
    assert figures.verdict is Verdict.SUCCESS
    assert opened.cell("color", 0.5).margin.verdict is Verdict.FAILURE


def test_the_whole_leaves_the_control_out(make_study, fill):
    opened = make_study()
    fill(opened, lambda job: 2.0 if job.alpha == 0.0 else spread(job))
    figures = opened.overall().margin
    assert (figures.n, figures.n_items) == (12, 24)
    assert abs(figures.mean) < 0.02
    assert figures.success_rate == 0.5


def test_a_cell_without_all_its_images_is_incomplete(make_study, fill):
    opened = make_study()
    jobs = opened.jobs()
    assert opened.cell("color", 1.0).margin.verdict is Verdict.INCOMPLETE
    left_out = opened.jobs("color", 1.0)[0]
    fill(opened, spread, [job for job in jobs if job is not left_out])
    missing = opened.cell("color", 1.0).margin
    assert (missing.n, missing.n_items, missing.verdict) == (6, 5, Verdict.INCOMPLETE)
    assert math.isnan(missing.mean)
    assert opened.cell("color", 0.5).margin.verdict is Verdict.FAILURE
    assert opened.overall().margin.verdict is Verdict.INCOMPLETE
    assert opened.overall().margin.n_items == 23
    fill(opened, spread, [left_out])
    assert opened.overall().margin.verdict is not Verdict.INCOMPLETE


def test_five_pairs_are_too_few_for_a_verdict(make_study, fill, pairs):
    opened = make_study(pairs=pairs[:5])
    fill(opened, spread)
    assert opened.cell("color", 1.0).margin.verdict is Verdict.TOO_FEW
    assert opened.overall().margin.verdict is Verdict.TOO_FEW


def test_scores_of_another_judge_do_not_count(make_study, fill, judge_source):
    opened = make_study()
    fill(opened, spread)
    other = make_study(
        folder=opened.folder.path, judge=replace(judge_source, fingerprint="another")
    )
    assert other.cell("color", 1.0).margin.verdict is Verdict.INCOMPLETE


def test_a_table_has_a_row_for_each_pair_and_a_column_for_each_alpha(make_study, fill):
    opened = make_study()
    left_out = opened.jobs("color", 1.0)[0]
    fill(opened, spread, [job for job in opened.jobs() if job is not left_out])
    table = opened.table()
    assert list(table.index) == [pair.id for pair in opened.pairs]
    assert list(table.columns) == [0.0, 0.5, 1.0]
    assert math.isnan(table.at[left_out.pair.id, 1.0])
    assert table.isna().sum().sum() == 1
    for pair in opened.pairs[1:]:
        expected = np.mean([spread(j) for j in opened.jobs(alpha=0.5) if j.pair == pair])
        assert table.at[pair.id, 0.5] == pytest.approx(expected)
    assert list(opened.table("object").index) == [f"object-{i}" for i in range(6)]


def test_the_gain_is_over_the_control_pair_by_pair(make_study, fill):
    opened = make_study()
    fill(opened, spread)
    figures = opened.cell("color", 1.0)
    assert figures.gain.mean == pytest.approx(0.1)
    assert figures.gain.ci_high - figures.gain.ci_low < 1e-9  # the pairs' noise is their own
    assert opened.cell("color", 0.0).gain is None


def test_the_random_control_is_measured_on_request(make_study, fill):
    plain, opened = make_study(), make_study(control=True)
    assert len(opened.jobs()) == 12 * 2 * 5  # alpha 0 once, 0.5 and 1 by both methods
    assert {job.method for job in plain.jobs()} == {"word"}
    keys = {job.key for job in opened.jobs()}
    assert keys > {job.key for job in plain.jobs()}
    assert len(keys) == 12 * 2 * 5
    assert len(opened.cell_jobs("color", 1.0)) == 6 * 2 * 3

    fill(opened, lambda job: spread(job) * (0.1 if job.method == "random" else 1.0))
    figures = opened.cell("color", 1.0)
    assert figures.margin == plain_margin(plain, fill)
    assert figures.null.margin.mean == pytest.approx(figures.margin.mean / 10)
    assert figures.null.advantage.mean == pytest.approx(figures.margin.mean * 0.9)
    assert plain.cell("color", 1.0).null is None


def test_the_target_prompts_own_images_are_measured_on_request(make_study, fill):
    plain, opened = make_study(), make_study(target=True)
    own = [job for job in opened.jobs() if job.key not in {j.key for j in plain.jobs()}]
    assert {(job.method, job.alpha) for job in own} == {("lerp", 1.0)}
    assert {(job.pair.id, job.seed) for job in own} == {
        (pair.id, seed) for pair in opened.pairs for seed in (0, 1)
    }
    assert opened.jobs(alpha=1.0) == plain.jobs(alpha=1.0)
    assert len(opened.cell_jobs("color", 0.5)) == len(plain.cell_jobs("color", 0.5)) + 6 * 2

    fill(opened, lambda job: 0.4 if job in own else spread(job))
    fill(plain, spread)
    results, without = to_json(opened.results()), to_json(plain.results())
    assert [row["category"] for row in results["targets"]] == ["color", "object"]
    for row in results["targets"]:
        assert row.keys() >= FIGURES - {"verdict"}
        assert not row.keys() & {"verdict", "alpha", "gain", "p_holm", "target_share"}
        assert row["mean"] == pytest.approx(0.4)
        assert set(row["items"]) == {p.id for p in opened.pairs if p.category == row["category"]}
    for row in results["cells"]:
        assert row["target_share"] == pytest.approx(row["mean"] / 0.4)
    for row in (*results["cells"], *results["controls"]):
        del row["target_share"]
    for row in (*without["cells"], *without["controls"]):
        assert row.pop("target_share") is None
    assert without["targets"] == []
    for part in ("cells", "controls", "categories", "alphas", "overall"):
        assert results[part] == without[part]


def test_a_share_of_the_target_needs_its_images_and_a_margin_above_0(make_study, fill):
    opened = make_study(target=True)
    fill(opened, lambda job: -0.1 if job.method == "lerp" else spread(job))
    assert {figures.target_share for figures in opened.analysis().cells.values()} == {None}
    lost = make_study(target=True)
    [first, *_] = [job for job in lost.jobs() if job.method == "lerp"]
    fill(lost, lambda job: 0.1, [job for job in lost.jobs() if job is not first])
    analysis = lost.analysis()
    assert math.isnan(analysis.targets[first.pair.category].margin.mean)
    assert {f.target_share is None for c, f in analysis.cells.items()
            if c.category == first.pair.category} == {True}  # fmt: skip
    assert all(f.margin.verdict is not Verdict.INCOMPLETE for f in analysis.cells.values())


def test_a_run_by_lerp_has_the_target_prompts_own_images_in_its_grid(make_study, fill):
    plain, opened = make_study(method="lerp"), make_study(method="lerp", target=True)
    assert opened.jobs() == plain.jobs()
    assert opened.cell_jobs("color", 1.0) == plain.cell_jobs("color", 1.0)
    fill(opened, spread)
    for cell, figures in opened.analysis().cells.items():
        if cell.alpha == 1.0:
            assert figures.target_share == 1.0


def test_a_target_image_is_of_the_target_prompts_own_conditioning(make_study):
    opened = make_study(target=True)
    encoded = {text: Conditioning({"states": torch.zeros(1, 1)}) for text in texts(opened.pairs)}
    targets = opened.grid.jobs(Role.TARGET)
    assert targets
    for job in targets:
        assert steered(job, opened.pairs, encoded) is encoded[job.pair.target_prompt]


def test_a_folder_knows_the_target_images_of_its_command(make_study):
    opened = make_study(target=True, control=True)
    opened.record(None)
    [command] = opened.folder.commands()
    assert {job.key for job in command.jobs()} == {job.key for job in opened.jobs()}
    again = Study.reopen(opened.folder, command)
    assert {job.key for job in again.jobs()} == {job.key for job in opened.jobs()}


def test_a_report_asks_for_the_target_prompts_own_images(open_study):
    for given, has_target in (({}, False), ({"target": True}, True), ({"report": "r.html"}, True)):
        opened = open_study(**given)
        opened.folder.close()
        assert opened.config.target is has_target


def plain_margin(study, fill):
    fill(study, spread)
    return study.cell("color", 1.0).margin


def test_ground_truth_must_be_of_this_judge(open_study, tmp_path):
    shipped = open_study()
    assert shipped.truth.judge == shipped.judge.fingerprint
    for category in shipped.categories:
        assert not shipped.ceiling(category).is_blind
    other = json.loads(shipped.truth.path.read_text())
    other["judge"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(CeilingError, match=r"--ceiling .*other.json: expected the margins of the"):
        open_study(ceiling=str(tmp_path / "other.json"))


def own_truth(shipped, path):
    """Ground truth of a user's own: the shipped file's, its margins halved."""
    data = json.loads(shipped.truth.path.read_text())
    for record in data["pairs"].values():
        for side in ("target", "source"):
            record[side] = [margin / 2 for margin in record[side]]
    path.write_text(json.dumps(data))
    return str(path)


def test_a_study_opened_again_has_the_ceiling_that_its_command_was_given(open_study, tmp_path):
    shipped = open_study(run_dir=str(tmp_path / "run"), limit="2", categories="color")
    default = shipped.ceiling("color")
    shipped.folder.close()
    file = own_truth(shipped, tmp_path / "mine.json")
    opened = open_study(run_dir=str(tmp_path / "run"), limit="2", categories="color", ceiling=file)
    mine, of = opened.ceiling("color"), opened.provenance().ceiling
    assert mine.mean == pytest.approx(default.mean / 2)
    opened.folder.close()
    (tmp_path / "mine.json").unlink()

    folder = RunFolder(tmp_path / "run", read_only=True)
    own, first = folder.commands()
    assert len(own.ceiling) == len(own.pairs) == 2
    again = Study.reopen(folder, own)
    assert again.ceiling("color") == mine
    assert again.provenance().ceiling == of
    earlier = Study.reopen(folder, first)
    assert (earlier.ceiling("color"), earlier.provenance().ceiling) == (default, None)
    another = Study.reopen(folder, own, judge=replace(opened.judge, fingerprint="another"))
    assert another.ceiling("color") is None
    folder.close()


@pytest.mark.parametrize("margins", ["[]", '{"a": 1}', '{"a": [[1], [9]]}', '{"a": [[], []]}', "x"])
def test_a_ceiling_that_is_damaged_in_the_index_is_said(make_study, margins):
    opened = make_study()
    opened.record(None)
    db = sqlite3.connect(opened.folder.path / "index.sqlite")
    with db:
        db.execute("INSERT INTO ceilings SELECT digest, ? FROM commands", (margins,))
    db.close()
    with pytest.raises(StoreError, match=r"its index is damaged \(ceilings\.margins: expected"):
        opened.folder.commands()


def test_pairs_without_ground_truth_have_no_ceiling(make_study, open_study, fill):
    opened = make_study()
    opened.truth = open_study().truth  # knows the shipped pairs, not these
    fill(opened, spread)
    figures = opened.cell("color", 1.0)
    assert figures.ceiling is None
    assert figures.share is None


def test_a_digest_is_of_the_pairs_of_one_category_in_any_order(make_study, pairs):
    opened = make_study()
    renamed = make_study(pairs=[replace(pair, id=f"x-{pair.id}") for pair in pairs])
    fewer = make_study(pairs=[p for p in pairs if p.id != "color-0"])
    reversed_ = make_study(pairs=pairs[::-1])
    assert opened.pairs_digest("color") == reversed_.pairs_digest("color")
    assert opened.pairs_digest("color") != renamed.pairs_digest("color")
    assert opened.pairs_digest("color") != fewer.pairs_digest("color")
    assert opened.pairs_digest("object") == fewer.pairs_digest("object")


# --- results


@pytest.mark.parametrize("filled", [False, True])
def test_results_are_strict_json_with_the_documented_keys(make_study, fill, tmp_path, filled):
    opened = make_study()
    if filled:
        fill(opened, spread)
    path = tmp_path / "new" / "results.json"
    write_results(opened.results(), path)
    results = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert list(results) == [
        "schema_version", "config", "provenance", "pairs", "answer", "cells", "controls",
        "targets", "categories",
        "alphas", "overall", "quality", "failures", "throughput",
        "peak_memory_bytes",
    ]  # fmt: skip
    assert results["schema_version"] == RESULTS_VERSION
    assert results["config"] == opened.config.to_dict()
    assert results["provenance"].keys() >= {
        "suite", "model", "judge", "scheduler", "python", "packages", "git_commit", "machine",
    }  # fmt: skip
    assert results["provenance"]["packages"].keys() >= {"torch", "diffusers", "open_clip_torch"}
    assert [(cell["category"], cell["alpha"]) for cell in results["cells"]] == [
        (category, alpha) for category in ("color", "object") for alpha in (0.5, 1.0)
    ]
    assert [(row["category"], row["alpha"]) for row in results["controls"]] == [
        ("color", 0.0),
        ("object", 0.0),
    ]
    for row in results["controls"]:
        assert row.keys() >= FIGURES - {"verdict"}
        assert "verdict" not in row
    for row in [*results["cells"], results["overall"]]:
        assert row.keys() >= FIGURES
        assert (row["verdict"] == "incomplete") == (not filled)
        assert (row["mean"] is None) == (not filled)
    assert results["throughput"] == {
        "generate_images_per_s": None,
        "score_images_per_s": len(opened.jobs()) / 0.5 if filled else None,
        "workers": {},
    }
