"""A second judge on a run that is there: not one new image, and the run's own results stay."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from typer.testing import CliRunner

from analogy import cli
from analogy.results.reading import read


@pytest.fixture
def path(whole_run, tmp_path):
    """A copy of a complete run."""
    return shutil.copytree(whole_run / "run", tmp_path / "run")


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def table(path, query):
    db = sqlite3.connect(path / "index.sqlite")
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def test_a_second_judge_scores_the_images_that_are_there(path, second):
    images = table(path, "SELECT * FROM images")
    first = table(path, "SELECT * FROM scores")
    own = (path / "results.json").read_bytes()
    result = run("score", path, "--clip-model", second)
    assert result.exit_code == 0, result.output
    assert "36 images scored now" in result.stdout
    assert "overall" in result.stdout

    assert table(path, "SELECT * FROM images") == images
    assert (path / "results.json").read_bytes() == own
    scores = table(path, "SELECT * FROM scores ORDER BY rowid")
    assert scores[: len(first)] == first
    assert len(scores) == 2 * len(first)
    by_judge = {judge: [] for _, judge, *_ in scores}
    for _, judge, *values in sorted(scores):
        by_judge[judge].append(values)
    one, other = by_judge.values()
    assert one != other

    [file] = path.glob("results-*.json")
    assert file.name.startswith("results-second-sha256-")
    found = read(file)
    assert found.header.measurement.judge.startswith("second@sha256:")
    assert found.header.subject.model == read(path).header.subject.model
    assert [row.margin.n for row in found.analysis.cells.values()] == [6] * len(
        found.analysis.cells
    )
    assert run("verify", path).exit_code == 0

    again = run("score", path, "--clip-model", second, "--results", path / "named.json")
    assert "0 images scored now" in again.stdout
    assert json.loads((path / "named.json").read_text())["cells"]


def test_a_judge_that_is_none_is_said_before_anything_is_written(path):
    result = run("score", path, "--clip-model", "none")
    assert result.exit_code == 2
    assert "--clip-model 'none': expected 'embedded'" in result.stderr
    assert not list(path.glob("results-*.json"))


def test_what_is_no_run_is_said(tmp_path):
    result = run("score", tmp_path, "--clip-model", "embedded")
    assert result.exit_code == 4
    assert "expected a run folder of this suite that can be read" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_of_old_without_its_command_is_told_what_to_do(path):
    db = sqlite3.connect(path / "index.sqlite")
    db.execute("DROP TABLE commands")
    db.close()
    result = run("score", path, "--clip-model", "embedded")
    assert result.exit_code == 4
    assert "give the run's command once again" in result.stderr


@pytest.mark.parametrize(
    ("device", "said"),
    [("tpu", "--device: expected cpu, mps, cuda or cuda:N, got 'tpu'"), ("cuda:99", "--device")],
)
def test_a_device_that_is_not_there_is_said(path, device, said):
    result = run("score", path, "--clip-model", "embedded", "--device", device)
    assert result.exit_code == 2
    assert said in result.stderr
