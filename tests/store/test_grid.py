"""The grid: what is planned for which role, category and cell, and the keys of old."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from cases import index

from analogy.core.records import Cell, Pair, RunConfig
from analogy.store.folder import RunFolder, folder_name
from analogy.store.grid import (
    Command,
    Grid,
    ImageSettings,
    Job,
    Role,
    once,
    pairs_digest,
    targets_of,
)

MODEL, JUDGE, SCHEDULER = "model@sha256:1", "judge@sha256:2", "Euler/1"
PAIRS = (
    Pair("c-1", "color", "red", "blue", "a red car", "a blue car"),
    Pair("c-2", "color", "Blue", "Red", "a blue hat", "a red hat"),
    Pair("s-1", "size", "tiny", "large", "a tiny cup", "a large cup"),
)
CONFIG = RunConfig(
    model="m", clip_model="j", clip_pretrained=None, pairs="p.csv", categories=None,
    alphas=(0.5, 1.0), seeds=(0,), method="word", steps=2, guidance=7.5, size=64, dtype="float32",
    device="cpu", batch_size=None, limit=None, control=True, target=True,
)  # fmt: skip


def grid(pairs=PAIRS, **settings) -> Grid:
    return Grid(replace(CONFIG, **settings), MODEL, SCHEDULER, pairs)


def described(jobs: list[Job]) -> list[tuple[str, float, str]]:
    return [(job.pair.id, job.alpha, job.method) for job in jobs]


# --- keys: run folders of earlier versions hold images under these


def test_the_keys_of_images_are_those_of_earlier_versions():
    found = [
        (job.alpha, "" if job.is_unsteered else job.method, job.key)
        for job in grid(PAIRS[:2]).jobs()
        if job.pair.id == "c-1"
    ]
    assert found == [
        (0.0, "", "513013a30abc813a48ece4de06e4972c"),
        (0.5, "word", "7fe73a7185bd0f8a71822c2d60434c78"),
        (1.0, "word", "c7b020ebfda486d769453f60eff9d0c8"),
        (0.5, "random", "013116c04c99e08ba66708615423be40"),
        (1.0, "random", "a599c513b55f166af00c9289f976f476"),
        (1.0, "lerp", "0ab77b22afbc15b2c515337cbf82ef5a"),
    ]
    steered = grid(PAIRS[:2], method="category").jobs(Role.STEERED)
    assert [job.key for job in steered if job.pair.id == "c-1"] == [
        "d54c1c83d81bad4b3cdca3d5d3951a48",
        "7af892a23f882b2029ccd55ffe68c26f",
    ]
    job = ImageSettings.of(CONFIG, SCHEDULER).prompt_job(MODEL, "a car", 3)
    assert job.key == "bb9cfefa363741c57d8d2117f13664a6"


def test_names_of_run_folders_are_those_of_earlier_versions():
    subject = ImageSettings.of(CONFIG, SCHEDULER).subject(MODEL)
    assert folder_name(subject, judge=JUDGE) == "d75d630a8a95"
    assert folder_name(subject) == "95ea3ad57be6"
    assert folder_name(subject, method="word") == "a446a7c15e05"


def test_digests_of_commands_and_pairs_are_those_of_earlier_versions(tmp_path):
    assert pairs_digest(PAIRS[:2]) == "c69a08ce578a571d3bc662d2d7d260ad"
    command = Command(replace(CONFIG, method="category"), PAIRS[:2], MODEL, JUDGE, SCHEDULER)
    folder = RunFolder(tmp_path)
    folder.record_command(command)
    folder.record_command(replace(command, lora="l", ceiling={"ab": ((0.5,), (-0.5,))}))
    found = [digest for [digest] in index(tmp_path, "SELECT digest FROM commands ORDER BY rowid")]
    assert found == ["ef288522329c351d6512cce0a5712a23", "81c1900f9810220e2eacf85e7057f660"]
    assert folder.commands()[1] == command
    folder.close()


# --- roles


def test_each_role_has_its_own_jobs():
    by_role = {role: described(grid(PAIRS[:1]).jobs(role)) for role in Role}
    assert by_role == {
        Role.UNSTEERED: [("c-1", 0.0, "word")],
        Role.STEERED: [("c-1", 0.5, "word"), ("c-1", 1.0, "word")],
        Role.NULL: [("c-1", 0.5, "random"), ("c-1", 1.0, "random")],
        Role.TARGET: [("c-1", 1.0, "lerp")],
    }


def test_null_and_target_images_are_there_only_if_they_are_asked_for():
    alone = grid(control=False, target=False)
    assert alone.jobs(Role.NULL) == alone.jobs(Role.TARGET) == []
    assert alone.jobs() == alone.jobs(Role.UNSTEERED, Role.STEERED)


def test_jobs_are_of_one_category_and_alpha_if_given():
    found = grid().jobs(Role.STEERED, Role.NULL, category="color", alpha=0.5)
    assert described(found) == [
        ("c-1", 0.5, "word"), ("c-2", 0.5, "word"), ("c-1", 0.5, "random"), ("c-2", 0.5, "random"),
    ]  # fmt: skip
    assert grid().jobs(category="weather") == grid().jobs(alpha=0.7) == []


def test_a_cell_has_all_that_it_is_compared_with():
    assert described(grid().cell(Cell("size", 0.5))) == [
        ("s-1", 0.0, "word"), ("s-1", 0.5, "word"), ("s-1", 0.5, "random"), ("s-1", 1.0, "lerp"),
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["lerp", "random"])
def test_each_key_is_there_once_whatever_roles_it_has(method):
    """lerp's images at alpha 1 are target images as well, and random's are null images."""
    keys = [job.key for job in grid(method=method).jobs()]
    assert len(keys) == len(set(keys)) == 3 * (1 + 2 + (1 if method == "random" else 2))
    assert {job.key for job in grid(method="lerp").jobs(Role.TARGET)} <= {
        job.key for job in grid(method="lerp").jobs(Role.STEERED)
    }


def test_a_pairs_target_images_are_those_of_the_grid_for_the_seeds_asked_for():
    found = targets_of(grid(target=False), PAIRS[1], (4, 0))
    assert [(job.pair.id, job.seed) for job in found] == [("c-2", 4), ("c-2", 0)]
    assert found[1] in grid().jobs(Role.TARGET)


def test_once_keeps_the_first_of_each_key():
    a, b = Job(PAIRS[0], 0.0, 0, "word", "k"), Job(PAIRS[0], 0.0, 0, "random", "k")
    assert once([a, b]) == [a]


def test_planning_imports_neither_torch_nor_sqlite():
    code = (
        "import sys, analogy.store.grid; print({'torch', 'sqlite3', 'pandas'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
