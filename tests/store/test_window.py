"""``--steer-from`` and ``--steer-until``: in keys, configurations, results and on the whole way."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from test_grid import grid
from verbs import verb

from analogy.core.errors import FieldError, OptionError
from analogy.core.records import WHOLE, RunConfig, Window
from analogy.generation.worker import changed_alike
from analogy.results.reading import read
from analogy.runs import load_run
from analogy.settings.options import parse_options
from analogy.settings.request import request_of
from analogy.steering.base import METHODS
from analogy.store.grid import Role

SMALL = ("--categories=color", "--limit=2", "--seeds=0", "--steps=4", "--dtype=float32")


# --- keys and configurations


def test_the_window_is_in_the_keys_of_steered_images_alone():
    plain, late = grid(steps=4), grid(steps=4, steer_from=0.25)
    for role in (Role.UNSTEERED, Role.TARGET):
        assert [job.key for job in plain.jobs(role)] == [job.key for job in late.jobs(role)]
        assert {job.window for job in late.jobs(Role.TARGET)} == {WHOLE}
    for role in (Role.STEERED, Role.NULL):
        assert not {job.key for job in plain.jobs(role)} & {job.key for job in late.jobs(role)}
        assert {job.window for job in late.jobs(role)} == {Window(0.25, 1.0)}
    other = grid(steps=4, steer_from=0.25, steer_until=0.5)
    steered = {job.key for each in (late, other) for job in each.jobs(Role.STEERED)}
    assert len(steered) == 2 * len(late.jobs(Role.STEERED))


def test_a_target_of_lerp_is_not_its_image_at_alpha_1_in_a_part_of_the_schedule():
    late = grid(method="lerp", steer_from=0.5)
    assert not {job.key for job in late.jobs(Role.TARGET)} & {
        job.key for job in late.jobs(Role.STEERED)
    }


def test_a_configuration_says_it_where_it_is_not_the_whole(config):
    assert not {"steer_from", "steer_until"} & config.to_dict().keys()
    late = replace(config, steps=8, steer_from=0.25)
    kept = json.loads(json.dumps(late.to_dict()))
    assert kept["steer_from"] == 0.25
    assert "steer_until" not in kept
    assert RunConfig.from_dict(kept) == late
    assert late.steering == "word, 0.25 to 1 of the steps"
    assert config.steering == "word"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"steer_from": -0.1}, "steer_from: expected a finite number from 0 to 1"),
        ({"steer_until": 1.5}, "steer_until: expected a finite number from 0 to 1"),
        ({"steer_from": 0.5, "steer_until": 0.5}, "steer_until: expected a share above .*0.5"),
        ({"steer_from": float("nan")}, "steer_from: expected a finite number"),
    ],
)
def test_a_part_that_is_none_is_refused(config, bad, said):
    with pytest.raises(FieldError, match=said):
        replace(config, **bad)
    with pytest.raises(FieldError, match=said):
        request_of(**bad)


def test_a_part_without_a_step_is_refused(config):
    assert replace(config, steps=10, steer_from=0.5, steer_until=0.56).window.steps(10)
    said = r"steer_until: expected a part .* with at least one of its 8 steps, got 0.5 to 0.56; "
    with pytest.raises(FieldError, match=said + r"a step is 0.125 of the schedule"):
        replace(config, steps=8, steer_from=0.5, steer_until=0.56)


@pytest.mark.parametrize(("flag", "text"), [("from", "a quarter"), ("until", "2"), ("from", "1")])
def test_the_option_names_itself(flag, text):
    with pytest.raises(OptionError, match=r"--steer-(from|until): expected a"):
        parse_options({f"analogy_steer_{flag}": text}.get)


@pytest.mark.parametrize(
    ("method", "alphas", "said"),
    [
        ("switch", "0.5,1.5", "--alphas: expected strengths of 0 to 1, .* switch takes, got 1.5"),
        ("prompt", "-1", "--alphas: expected strengths of 0 to 5, .* prompt takes, got -1"),
    ],
)
def test_a_strength_that_means_nothing_is_refused_before_any_model(tmp_path, method, alphas, said):
    done = verb("run", f"--method={method}", f"--alphas={alphas}", f"--run-dir={tmp_path / 'r'}")
    assert done.exit_code == 2
    assert re.search(said, done.stderr)
    assert not (tmp_path / "r").exists()


def test_interventions_are_grouped_by_their_part_of_the_schedule():
    jobs = [
        *grid(method="own:louder", alphas=(1.0,)).jobs(Role.STEERED),
        *grid(method="own:louder", alphas=(1.0,), steer_from=0.5).jobs(Role.STEERED),
    ]
    assert [{job.window for job in group} for group in changed_alike(jobs)] == [
        {WHOLE}, {Window(0.5, 1.0)},
    ]  # fmt: skip


# --- the whole way


def test_a_run_in_a_part_of_the_schedule(tmp_path, monkeypatch):
    """Its images, its results, what a comparison says, and what the run folder keeps."""
    monkeypatch.chdir(tmp_path)
    asked = ("run", "--run-dir=run", "--method=lerp", "--alphas=1", "--target", *SMALL)
    done = verb(*asked, "--steer-from=0.5", "--results=late.json")
    assert done.exit_code in (0, 1), done.output
    assert "steering  lerp, 0.5 to 1 of the steps; 4 steps" in done.output
    run = load_run("run")
    at_1 = run.images.query("alpha == 1")
    assert len(at_1) == 4  # of two pairs the steered image and the target prompt's own
    assert run.items.query("alpha == 1")["n_seeds"].tolist() == [1, 1]
    plain = verb(*asked, "--results=plain.json")
    assert plain.exit_code in (0, 1), plain.output
    late, whole = read(tmp_path / "late.json"), read(tmp_path / "plain.json")
    assert late.header.subject.window == Window(0.5, 1.0)
    assert whole.header.subject.window == WHOLE
    [(cell, figures)] = late.analysis.cells.items()
    assert figures.margin.mean != whole.analysis.cells[cell].margin.mean
    targets = [each.analysis.targets["color"].margin.mean for each in (late, whole)]
    assert targets[0] == targets[1] == whole.analysis.cells[cell].margin.mean
    compared = verb("compare", "plain.json", "late.json", "--json=-")
    said = json.loads(compared.stdout)["subject_differences"]
    assert said == ["window: baseline all steps, this run 0.5 to 1 of the steps"]
    assert verb("verify", "run").exit_code == 0


def test_images_of_one_batch_switch_at_their_own_steps(make_study, pairs):
    """Several strengths in full batches, and the same images one by one."""
    images = []
    for batch_size in (1, 4):
        study = make_study(
            pairs=pairs[:2], method="switch", steps=4, seeds=(0,), alphas=(0.25, 0.5, 1.0),
            batch_size=batch_size,
        )  # fmt: skip
        study.generate(study.jobs())
        images.append([study.folder.read_image(job).astype(int) for job in study.jobs()])
    assert max(abs(a - b).max() for a, b in zip(*images, strict=True)) <= 1
    assert len({image.tobytes() for image in images[0]}) == 8


def test_an_intervention_begins_where_it_is_told(make_study, pairs):
    made = {}
    for start in (0.0, 0.5):
        study = make_study(
            pairs=pairs[:1], method="own:louder", steps=2, seeds=(0,), alphas=(1.0,),
            steer_from=start,
        )  # fmt: skip
        study.generate(study.jobs())
        made[start] = [study.folder.read_image(job) for job in study.jobs()]
        assert not study.execution._worker._pool.generators[0]._denoiser._forward_hooks
    assert np.array_equal(made[0.0][0], made[0.5][0])
    assert len({made[0.0][0].tobytes(), made[0.0][1].tobytes(), made[0.5][1].tobytes()}) == 3
    assert METHODS.get("own:louder").at_work == 0
