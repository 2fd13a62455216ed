"""Cost does not grow with the run, but where it must: counted, not timed.

Work on the index is counted in instructions of SQLite's machine, the rest in calls of functions.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest

from analogy.core.records import Pair
from analogy.store.folder import RunFolder
from analogy.store.grid import Command, Grid
from analogy.studies import verify as verifying
from tools import scale

MODEL, SCHEDULER, JUDGE = "model@sha256:1", "Euler/1", "judge@sha256:1"
FEW, MANY = 40, 400  # pairs; 6 images each


@pytest.fixture(scope="module")
def runs(tmp_path_factory, config):
    """Runs of few pairs and of ten times as many: folder and jobs. One of 12 images failed."""
    made = []
    for count in (FEW, MANY):
        pairs = [Pair(f"{i}", "color", "a", "b", f"a {i}", f"b {i}") for i in range(count)]
        folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
        folder.record_command(Command(config, tuple(pairs), MODEL, JUDGE, SCHEDULER))
        jobs = Grid(config, MODEL, SCHEDULER, pairs).jobs()
        faults = dict.fromkeys(range(0, len(jobs), 12), "black")
        with patch("analogy.core.files.os.fsync"):
            folder.add_images(jobs, np.zeros((len(jobs), 8, 8, 3), np.uint8), 1.0, faults=faults)
        there = [job for i, job in enumerate(jobs) if i not in faults]
        features = np.zeros((len(there), 4), np.float32)
        folder.add_scores(there, JUDGE, [(0.3, 0.1, 0.2)] * len(there), 1.0, features=features)
        folder.add_metric("psnr", {job.key: 20.0 for job in there})
        made.append((folder, jobs))
    yield made
    for folder, _ in made:
        folder.close()


def instructions(folder: RunFolder, work: Callable[[], object]) -> int:
    """How many of SQLite's machine ``work`` takes."""
    count = 0

    def one() -> None:
        nonlocal count
        count += 1

    folder._index.db.set_progress_handler(one, 1)
    try:
        work()
    finally:
        folder._index.db.set_progress_handler(None, 0)
    return count


def calls(work: Callable[[], object]) -> int:
    """How many functions ``work`` calls, in this thread."""
    with cProfile.Profile() as profile:
        work()
    return pstats.Stats(profile).total_calls


QUESTIONS = {
    "missing": lambda folder, jobs: folder.without_image(jobs),
    "unscored": lambda folder, jobs: folder.without_score(jobs, JUDGE),
    "unscored by another": lambda folder, jobs: folder.without_score(jobs, "another"),
    "failed": lambda folder, jobs: folder.failures(jobs),
    "margins": lambda folder, jobs: folder.margins(jobs, JUDGE),
    "features": lambda folder, jobs: folder.features(jobs, JUDGE),
    "metric": lambda folder, jobs: folder.metric("psnr", jobs),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_a_cells_question_costs_the_cell_and_not_the_index(runs, question):
    """Of as many jobs, in an index of ten times the size."""
    few, many = (
        instructions(folder, lambda f=folder, j=jobs: question(f, j[:120])) for folder, jobs in runs
    )
    assert few > 120  # it was counted
    assert many == pytest.approx(few, rel=0.02)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_continuing_costs_an_image_the_same_in_a_run_of_ten_times_the_size(runs, question):
    few, many = (
        instructions(folder, lambda f=folder, j=jobs: question(f, j)) / len(jobs)
        for folder, jobs in runs
    )
    assert few > 1
    assert many == pytest.approx(few, rel=0.05)


@pytest.mark.parametrize("count", [instructions, lambda _, work: calls(work)], ids=["index", "all"])
def test_verifying_costs_an_image_the_same_in_a_run_of_ten_times_the_size(runs, count):
    few, many = (
        count(folder, lambda f=folder: verifying.verify(f)) / len(jobs) for folder, jobs in runs
    )
    assert few > 1
    assert many <= 1.1 * few


def test_more_keys_than_one_query_takes_are_looked_up(runs):
    folder, jobs = runs[1]
    failed = [job for i, job in enumerate(jobs) if i % 12 == 0]
    assert folder.without_image(jobs) == failed
    assert [job for job, _ in folder.failures(jobs[::-1])] == failed[::-1]
    assert len(folder.margins(jobs, JUDGE)) == len(jobs) - len(failed)


def test_a_question_may_be_asked_of_what_can_be_read_but_once(runs):
    folder, jobs = runs[0]
    assert folder.without_image(job for job in jobs[:2]) == jobs[:1]
    assert len(folder.margins((job for job in jobs[:2]), JUDGE)) == 1


# --- the measurement itself, on a little


def test_the_measured_steps_do_what_they_say(tmp_path):
    folder = tmp_path / "run"
    scale.write_pairs(tmp_path / "run.csv", 600)
    names = []
    for block in (scale.starting, scale.continuing, scale.analysing, scale.checking):
        for name, work in block(folder):
            work()
            names.append(name)
    assert len(names) == len(set(names)) == 15
    assert not list(folder.rglob("*.png"))
    study = scale.open_study(folder)
    assert study.unscored(study.jobs()) == study.execution.missing(study.jobs()) == []
    assert (study.folder.path / "results.json").stat().st_size > 10_000
    scale.add_scores(study, study.jobs(), dim=4)
    assert len(study.folder.features(study.jobs()[:3], study.judge.fingerprint)) == 3
    study.folder.close()
