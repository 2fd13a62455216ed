"""The benchmarks run by pytest within a test, on eight pairs and by a judge of known margins."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import pytest

from analogy.generation import worker as work

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"
NOUNS = ("car", "cup", "hat", "boat", "star", "tree", "fish", "heart")
EIGHT = ("--pairs=eight.csv", "--alphas=1", "--run-dir=run", "--steps=2", "--seeds=0")
"""Options for eight pairs of one category at alpha 1: the fewest cases with a verdict."""
GATE = ("test_margin", "test_regression")
"""The files of the cases that a baseline is held to."""


def write_eight(path: Path) -> None:
    rows = (f"c{i},color,red,blue,a red {noun},a blue {noun}\n" for i, noun in enumerate(NOUNS))
    (path / "eight.csv").write_text(HEADER + "".join(rows))


def run_cases(pytester, *options: str, cases=("test_margin",), plugins=()) -> pytest.RunResult:
    """Run the benchmarks in this process, under the checkout's own configuration."""
    return pytester.runpytest_inprocess(
        *(str(BENCHMARKS / f"{name}.py") for name in cases),
        f"--rootdir={ROOT}",
        f"--config-file={ROOT / 'pyproject.toml'}",
        "-p", "no:cacheprovider",
        "-p", "no:hypothesispytest",
        *EIGHT,
        *options,
        plugins=plugins,
        no_reraise_ctrlc=True,
    )  # fmt: skip


def results_of(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def index(folder: Path, query: str) -> list[tuple]:
    """Rows of a run folder's index."""
    db = sqlite3.connect(folder / "index.sqlite")
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def change_index(folder: Path, statement: str, *values: object) -> None:
    """Change a run folder's index from outside the suite."""
    db = sqlite3.connect(folder / "index.sqlite")
    with db:
        db.execute(statement, values)
    db.close()


def n_images(folder: Path) -> int:
    [[n]] = index(folder, "SELECT COUNT(*) FROM images")
    return n


def judge_by(monkeypatch, margin) -> None:
    """Let the judge find the margins of a function of the job, whatever the images show."""

    def cosines(worker, judge, batch, features):
        return [(margin(job), 0.0, margin(job)) for job in batch]

    monkeypatch.setattr(work.Worker, "_cosines", cosines)


def noise(job) -> float:
    return 0.01 * math.sin(sum(job.pair.source_prompt.encode()) + job.alpha)


def above(job) -> float:
    return 0.1 * (job.alpha > 0) + noise(job)
