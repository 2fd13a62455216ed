"""Methods that are not the suite's own: named by module, or added by an installed package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import own
import processes
import pytest
import torch
from cases import ROOT
from verbs import verb

from analogy.core.errors import OptionError
from analogy.core.records import Need, RunConfig
from analogy.core.registry import ExtensionError
from analogy.evaluation import Task
from analogy.evaluation.protocol import TaskError
from analogy.generation.worker import changed_alike, steered, texts
from analogy.models.generator import Generator
from analogy.models.memory import MemoryFullError
from analogy.settings.options import OPTIONS, parse_options
from analogy.steering.base import DEFAULT_METHOD, METHODS, Identity, with_method
from analogy.steering.conditioning import mean
from analogy.store.grid import Grid
from analogy.studies import resolve
from analogy.studies.study import Study

SMALL = (
    "--categories=color", "--limit=2", "--alphas=1", "--seeds=0", "--steps=1", "--dtype=float32",
)  # fmt: skip


@pytest.fixture
def keys(config, pairs):
    """Keys of the grid of a configuration, by (pair, alpha, seed)."""

    def keyed(config: RunConfig, pairs=pairs) -> dict[tuple[str, float, int], str]:
        jobs = Grid(config, "model", "Euler/1", pairs).jobs()
        return {(job.pair.id, job.alpha, job.seed): job.key for job in jobs}

    return keyed


def test_the_default_can_be_chosen():
    assert DEFAULT_METHOD in METHODS.builtin
    [default] = [option.default for option in OPTIONS if option.flag == "--method"]
    assert default == DEFAULT_METHOD


@pytest.mark.parametrize("name", [name for name in METHODS.builtin if name != "slider"])
def test_what_is_built_in_has_its_name_and_no_version(name):
    """With a version its images would have other keys, and those that exist would be lost. That of
    the sliders is their files' digest.
    """
    method = METHODS.get(name)
    assert (method.name, method.version) == (name, "")


def test_names_are_listed_without_torch():
    code = "import sys, analogy.steering.base as b; b.METHODS.names(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "analogy.core.registry" in done.stdout.split()
    assert "torch" not in done.stdout.split()


# --- keys


def test_a_version_is_in_the_keys_of_steered_images_alone(config, keys):
    first = replace(config, method="own:pooled")
    second = replace(first, method_version="2")
    old, new = keys(first), keys(second)
    assert {place for place in old if old[place] == new[place]} == {
        place for place in old if place[1] == 0.0
    }
    assert keys(with_method(config, "own:pooled")) == new


def test_other_pairs_are_in_the_keys_of_a_method_that_needs_them(config, keys, pairs):
    mine = with_method(config, "own:others")
    assert mine.method_needs == (Need.OTHERS,)
    place = (pairs[0].id, 1.0, 0)
    assert keys(mine)[place] != keys(mine, pairs[:5])[place]
    alone = with_method(config, "own:pooled")
    assert keys(alone)[place] == keys(alone, pairs[:5])[place]


def test_a_configuration_of_a_built_in_method_is_written_as_before(config):
    assert not {"method_version", "method_needs"} & config.to_dict().keys()
    assert with_method(with_method(config, "own:pooled"), "word") == config


def test_a_configuration_keeps_the_version_and_the_needs(config):
    mine = with_method(config, "own:pooled")
    kept = json.loads(json.dumps(mine.to_dict()))
    assert (kept["method_version"], kept["method_needs"]) == ("2", ["words"])
    assert RunConfig.from_dict(kept) == mine
    with pytest.raises(ValueError, match="expected some of target, target alone, words"):
        RunConfig.from_dict({**kept, "method_needs": ["all"]})


def test_a_recorded_name_is_not_imported(config):
    theirs = replace(config, method="no.such.module:method", method_needs=("others",))
    assert Identity.in_config(theirs) == Identity("", frozenset({Need.OTHERS}))


# --- refusals


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrod", "--method: expected one of lerp, .* did you mean 'word'"),
        ("no_such_module:it", "--method: .*expected .* to be importable"),
        ("own:missing", "--method: .*expected own:missing to be importable"),
        ("own:nothing", "--method: .*expected an object with what Method asks"),
    ],
)
def test_a_method_that_cannot_be_used_is_refused_before_a_model_is_looked_for(
    tmp_path, monkeypatch, name, said
):
    monkeypatch.setattr(resolve, "find_pipeline", pytest.fail)
    monkeypatch.setattr(resolve, "find_judge", pytest.fail)
    texts = {"analogy_method": name, "analogy_run_dir": str(tmp_path / "run")}
    with pytest.raises(OptionError, match=said):
        Study.open(parse_options(texts.get))
    assert not (tmp_path / "run").exists()
    with pytest.raises(TaskError, match=said.removeprefix("--")):
        Task("alignment", ["a cup"], method=name)


def test_a_conditioning_of_another_shape_is_an_error_of_the_method(config, pairs, generator):
    mine = with_method(config, "own:short")
    job = next(job for job in Grid(mine, "model", "Euler/1", pairs).jobs(alpha=1.0))
    encoded = generator.encode(texts(pairs))
    with pytest.raises(ExtensionError, match=r"method short: expected .* shapes, \{'prompt_emb"):
        steered(job, pairs, encoded)


def test_a_methods_own_strengths_are_the_default():
    raw = {option.name: option.default for option in OPTIONS}
    assert parse_options(raw.get).alphas == (0.5, 0.8, 1.0)
    raw["analogy_method"] = "own:pooled"
    assert parse_options(raw.get).alphas == (0.5, 0.8, 1.0)
    raw["analogy_method"] = "own:louder"
    assert parse_options(raw.get).alphas == (1.0, 2.0)
    raw["analogy_alphas"] = "0.5"
    assert parse_options(raw.get).alphas == (0.5,)
    del raw["analogy_alphas"]
    raw["analogy_method"] = "own:missing"
    with pytest.raises(OptionError, match="--method: expected own:missing to be importable"):
        parse_options(raw.get)


# --- the whole way


def test_the_command_line_takes_a_method_by_its_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = verb("run", "--method=own:pooled", "--run-dir=run", *SMALL)
    assert done.exit_code in (0, 1), done.output
    assert "steering  own:pooled" in done.output
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["config"]["method"] == "own:pooled"
    assert written["config"]["method_version"] == "2"
    again = verb("verify", "run")
    assert again.exit_code == 0, again.output
    assert verb("report", "run").exit_code == 0


def test_methods_compares_those_of_an_installed_package(tmp_path, monkeypatch, install):
    monkeypatch.chdir(tmp_path)
    install("analogy.methods", "mine", "own:others")
    done = verb("methods", "--methods=word,mine,own:pooled", "--run-dir=run", *SMALL, "--json=m")
    assert done.exit_code == 0, done.output
    assert "the method mine looks at no other pairs" in done.output
    written = json.loads((tmp_path / "m").read_text())
    assert {row["method"] for row in written["ranking"]} == {"word", "mine", "own:pooled"}
    assert not {"method", "method_version", "method_needs"} & written["config"].keys()
    alone = verb("methods", "--methods=word,mine", "--run-dir=run", "--limit=1", *SMALL[2:],
                 "--categories=color")  # fmt: skip
    assert alone.exit_code == 2
    assert "mine needs 2 pairs or more in each category" in alone.stderr


def test_pytest_takes_a_method_by_its_module(tmp_path):
    done = processes.run_module(
        "pytest", str(ROOT / "benchmarks" / "test_margin.py"),
        "--config-file", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-q",
        "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning",
        "--method=own:pooled", "--run-dir=run", *SMALL, cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["config"]["method"], written["config"]["method_needs"]) == (
        "own:pooled", ["words"],
    )  # fmt: skip


# --- methods that learn, and methods that change the pipeline


def test_a_method_learns_once_for_each_pair_and_never_from_it(
    make_study, pairs, generator, monkeypatch
):
    given = []

    def fit(self, others):
        given.append({(other.source_word, other.target_word) for other in others})
        return own.Directions(mean([other.target.minus(other.source) for other in others]))

    monkeypatch.setattr(own.Directions, "fit", fit)
    mine = with_method(make_study().config, "own:directions")
    study = make_study(pairs=pairs[:3], **{n: getattr(mine, n) for n in ("method", "method_needs")})
    study.generate(study.jobs())
    words = {(pair.source_word, pair.target_word) for pair in pairs[:3]}
    assert len(study.folder.image_rows()) == 3 * 2 * 3
    assert sorted(map(len, given)) == [2, 2, 2]
    assert {frozenset(words - each) for each in given} == {frozenset({word}) for word in words}


def test_a_change_of_the_pipeline_is_seen_by_its_own_batches_alone(make_study, pairs):
    """With two generators on the same weights, each in a thread of its own."""
    before = torch.get_num_threads()
    images = []
    try:
        for threads, batch_size in ((1, 1), (2, 4)):
            torch.set_num_threads(threads)
            study = make_study(
                pairs=pairs[:4], method="own:louder", control=True, batch_size=batch_size
            )
            study.generate(study.jobs())
            assert own.louder.at_work == 0
            pool = study.execution._worker._pool
            assert len(pool.generators) == threads
            assert not pool.generators[0]._denoiser._forward_hooks
            jobs = study.jobs()
            images.append({job.key: study.folder.read_image(job).astype(int) for job in jobs})
    finally:
        torch.set_num_threads(before)
    alone, together = images
    assert len(alone) == 4 * 2 * (3 + 2)
    assert max(abs(alone[key] - together[key]).max() for key in alone) <= 1
    by_place = {(job.pair.id, job.seed, job.method, job.alpha): alone[job.key] for job in jobs}
    for pair in pairs[:4]:
        control = next(alone[j.key] for j in jobs if j.pair == pair and j.alpha == j.seed == 0)
        for alpha in (0.5, 1.0):
            assert abs(by_place[pair.id, 0, "own:louder", alpha] - control).max() > 1


def test_a_change_is_undone_after_an_error(make_study, pairs, monkeypatch):
    study = make_study(pairs=pairs[:1], method="own:louder", seeds=(0,))
    hooked = []

    def fail(generator, *_):
        hooked.append(bool(generator._denoiser._forward_hooks))
        raise MemoryFullError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "_denoise", fail)
        for job in study.jobs():
            with pytest.raises(MemoryFullError):
                study.generate([job])
    assert hooked == [False, True, True]
    assert not study.execution._worker._pool.generators[0]._denoiser._forward_hooks
    study.generate(study.jobs())
    assert len(study.folder.image_rows()) == 3


def test_batches_are_of_one_change(config, pairs):
    louder = replace(config, method="own:louder")
    jobs = Grid(replace(louder, control=True), "model", "Euler/1", pairs[:2]).jobs()
    groups = changed_alike(jobs)
    assert [{(job.method, job.alpha) for job in group} for group in groups] == [
        {("own:louder", 0.0), ("random", 0.5), ("random", 1.0)},
        {("own:louder", 0.5)},
        {("own:louder", 1.0)},
    ]
    assert sorted(job.key for group in groups for job in group) == sorted(job.key for job in jobs)
    plain = Grid(config, "model", "Euler/1", pairs).jobs()
    assert changed_alike(plain) == [plain]
