"""Verifying and repairing a run folder: what is planted is found, named, and made again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import index
from typer.testing import CliRunner

from analogy import cli
from analogy.core.errors import StoreError
from analogy.core.images import from_png, to_png
from analogy.generation import worker as work
from analogy.judges.open_clip import JudgeSource
from analogy.models.places import ModelSource
from analogy.store.folder import RunFolder
from analogy.store.image_store import MAX_IMAGE_BYTES
from analogy.store.index import LOST
from analogy.studies.repair import repair
from analogy.studies.study import Study
from analogy.studies.verify import verify

SCORES = "SELECT key, judge, cos_target, cos_source, margin FROM scores ORDER BY key"


@pytest.fixture
def path(whole_run, tmp_path):
    """A copy of that run's folder."""
    return shutil.copytree(whole_run / "run", tmp_path / "run")


@pytest.fixture
def opened(path):
    """Open the copy."""
    folders = []

    def open_(**given):
        folders.append(RunFolder(path, **given))
        return folders[-1]

    yield open_
    for folder in folders:
        folder.close()


@pytest.fixture
def run(path, monkeypatch, pipeline, judge):
    """``verify`` on the copy, in this process, with the models that are loaded."""
    monkeypatch.setattr(work, "load_pipeline", lambda *_, **__: pipeline)
    monkeypatch.setattr(JudgeSource, "load", lambda *_: judge)

    def invoke(*options):
        result = CliRunner().invoke(cli.app, ["verify", str(path), *options])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def images_of(path):
    return sorted((path / "images").rglob("*.png"))


def hashes_of(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in images_of(path)}


def pixels_of(path):
    return {file.name: from_png(file.read_bytes()).astype(int) for file in images_of(path)}


def scores_of(path):
    """Key and judge to the cosines and the margin."""
    db = sqlite3.connect(path / "index.sqlite")
    try:
        return {row[:2]: row[2:] for row in db.execute(SCORES)}
    finally:
        db.close()


def about(scores):
    """Scores up to rounding: those made again are so in a batch of their own."""
    return {key: pytest.approx(row, abs=1e-3) for key, row in scores.items()}


def assert_as_before(path, pixels, victims):
    """All images are what they were; those made again up to rounding, in a batch of their own."""
    now = pixels_of(path)
    assert now.keys() == pixels.keys()
    for name, image in now.items():
        assert np.abs(image - pixels[name]).max() <= (1 if name in victims else 0)


def change(path, query, *values):
    db = sqlite3.connect(path / "index.sqlite")
    with db:
        db.execute(query, values)
    db.close()


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-20])


def delete(file):
    file.unlink()


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_whole_run_is_whole(run, path):
    before = hashes_of(path)
    result = run()
    assert result.exit_code == 0
    assert "36 images in the index" in result.stdout
    assert "every image is as it was written; the grid's 36 are complete" in result.stdout
    assert hashes_of(path) == before


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (flip, "it is not what was written (SHA-256 differs"),
        (truncate, "it is not what was written (SHA-256 differs"),
        (delete, "there is no such file"),
    ],
)
def test_damage_is_named_and_only_that_is_made_again(run, path, plant, said):
    before, scores = pixels_of(path), scores_of(path)
    victims = images_of(path)[3:5]
    times = {file: file.stat().st_mtime_ns for file in images_of(path)}
    for victim in victims:
        plant(victim)
    found = run("--json", "-")
    assert found.exit_code == 1
    data = json.loads(found.stdout)
    assert {each["path"].split("/")[-1] for each in data["damaged"]} == {v.name for v in victims}
    assert all(said in each["reason"] for each in data["damaged"])
    assert all(each.keys() >= {"pair_id", "alpha", "seed"} for each in data["damaged"])
    assert (data["whole"], data["exit_code"]) == (False, 1)

    repaired = run("--repair")
    assert repaired.exit_code == 0, repaired.output
    assert "repaired  2 images" in repaired.stdout
    assert "the grid's 36 are complete" in repaired.stdout
    assert_as_before(path, before, {victim.name for victim in victims})
    assert scores_of(path) == about(scores)
    changed = {file for file, time in times.items() if file.stat().st_mtime_ns != time}
    assert changed == set(victims)


def test_a_repair_that_was_killed_is_gone_on_with(run, path, monkeypatch):
    before, victim = pixels_of(path), images_of(path)[0]
    truncate(victim)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Study, "generate", killed)
        with pytest.raises(KeyboardInterrupt):
            cli.folders.verify(path, repair=True)
    found = run()
    assert found.exit_code == 1
    assert f": {LOST}it is not what was written" in found.stdout
    assert run("--repair").exit_code == 0
    assert_as_before(path, before, {victim.name})


def test_what_nobody_scored_is_scored(run, path):
    scores = scores_of(path)
    change(path, "DELETE FROM scores WHERE key IN (SELECT key FROM scores LIMIT 5)")
    found = run()
    assert found.exit_code == 1
    assert "unscored" in found.stdout
    assert run("--repair").exit_code == 0
    assert scores_of(path) == about(scores)


def test_rows_of_no_image_are_named_and_removed(run, path):
    scores = scores_of(path)
    change(path, "INSERT INTO scores VALUES ('0', 'judge', 0, 0, 0)")
    change(path, "INSERT INTO metrics VALUES ('0', 'psnr', 0)")
    found = run()
    assert found.exit_code == 1
    assert "1 rows of scores belong to no image" in found.stdout
    assert run("--repair").exit_code == 0
    assert scores_of(path) == about(scores)


def test_leftovers_are_named_and_removed_and_the_users_files_are_not(run, path):
    key, dead = "a" * 32, gone()
    ours = [
        f"images/aa/{key}.png", f"images/aa/{key}.png.1.partial",
        f"results.json.{dead}.partial", f"results-a-b.json.{dead}.partial",
        f"report.html.{dead}.partial", f"results/{'0' * 12}.json.{dead}.partial",
    ]  # fmt: skip
    theirs = [
        "notes.partial", "images/thesis.partial", f"notes.txt.{dead}.partial",
        f"results.json.{os.getppid()}.partial", "results.json.partial", "images/notes.txt",
        f"images/aa/{'b' * 32}.png", f"images/{key}.png", f"images/aa/{key}.png.x.partial",
        f"images/aa/{key}.png.1.partial.partial",
    ]  # fmt: skip
    for name in [*ours, *theirs]:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    found = run()
    assert found.exit_code == 0
    assert f"leftover  {ours[0]}" in found.stdout
    assert json.loads(run("--json", "-").stdout)["leftovers"] == sorted([*ours, *theirs])
    assert f"{len(ours)} leftovers removed" in run("--repair").stdout
    assert not any((path / name).exists() for name in ours)
    assert all((path / name).exists() for name in theirs)


@pytest.mark.parametrize("name", ["/outside.partial", "../outside.partial", "x/../../outside.png"])
def test_a_repair_removes_nothing_outside_of_its_folder(run, path, tmp_path, name):
    outside = tmp_path / Path(name).name
    outside.write_bytes(b"precious")
    planted = str(outside) if name.startswith("/") else name
    change(path, "UPDATE images SET path = ? WHERE rowid = 1", planted)
    found = run()
    assert found.exit_code == 1
    assert "the index names a place where this suite writes no images" in found.stdout
    assert run("--repair").exit_code == 0
    assert outside.read_bytes() == b"precious"
    assert run().exit_code == 0


@pytest.mark.parametrize("depth", [1, 2, 3], ids=["images", "folder", "file"])
def test_links_out_of_the_folder_are_not_followed(run, path, tmp_path, depth):
    """A stranger's folder has a link where the suite writes: nothing behind it is touched."""
    image = images_of(path)[0]
    place = path.joinpath(*image.relative_to(path).parts[:depth])
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    if depth < 3:
        image.with_name(f"{image.name[:2]}{'0' * 30}.png.1.partial").touch()
    outside = tmp_path / "outside"
    files = [file for file in (outside, *outside.rglob("*")) if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    assert before
    found, repaired = run(), run("--repair")
    if depth == 1:
        assert (found.exit_code, repaired.exit_code) == (4, 4)
        assert "images is no folder of its own but a link" in repaired.stderr
    else:
        assert found.exit_code == 1
        # A link in an image's place is replaced; one on the way to it is the user's to remove.
        assert repaired.exit_code == (0 if depth == 3 else 4)
    assert {file: file.read_bytes() for file in before} == before
    assert len([file for file in (outside, *outside.rglob("*")) if file.is_file()]) == len(before)


def test_no_link_or_pipe_is_opened_in_place_of_the_suites_own_files(run, path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("writer.lock", "writer.json", "results.json", "index.sqlite-wal", "results"):
        place = path / name
        place.unlink(missing_ok=True)
        for plant in (lambda place: place.symlink_to(victim), os.mkfifo):
            plant(place)
            for options in ((), ("--repair",)):
                result = run(*options)
                assert result.exit_code == 4, name
                assert f"{name} is no {'folder' if name == 'results' else 'file'} of its own" in (
                    result.stderr
                )
            place.unlink()
    assert victim.read_text() == "precious"
    assert run().exit_code == 0


def test_an_image_that_is_a_pipe_or_endless_is_damaged_and_not_read(run, path):
    first, second, third = images_of(path)[:3]
    first.unlink()
    os.mkfifo(first)
    os.truncate(second, MAX_IMAGE_BYTES + 1)  # a hole, that takes no disk
    third.unlink()
    third.mkdir()
    found = run()
    assert found.exit_code == 1
    for said in ("got a named pipe", "expected at most 1,073,741,824 bytes", "got a folder"):
        assert f"regular file, {said}" in found.stdout or said in found.stdout
    third.rmdir()
    assert run("--repair").exit_code == 0


def test_what_is_missing_of_the_grid_and_what_failed_is_told(run, path, opened):
    change(path, "DELETE FROM scores WHERE key = (SELECT key FROM images ORDER BY rowid LIMIT 1)")
    change(path, "DELETE FROM images WHERE rowid = (SELECT MIN(rowid) FROM images)")
    folder = opened()
    job = folder.commands()[0].jobs()[1]
    change(path, "DELETE FROM scores WHERE key = ?", job.key)
    change(path, "DELETE FROM images WHERE key = ?", job.key)
    folder.add_images([job], np.zeros((1, 64, 64, 3), np.uint8), 1.0, faults={0: "black"})
    folder.close()
    found = run()
    assert found.exit_code == 1
    assert "missing   color at alpha 0: 1 images" in found.stdout
    assert f"failed    pair_id {job.pair.id}" in found.stdout
    assert "black" in found.stdout
    assert "next      " in found.stdout


def test_a_file_with_the_recorded_sum_that_is_no_png_is_damaged(path, opened):
    file = images_of(path)[0]
    file.write_bytes(b"no picture")
    name = file.relative_to(path).as_posix()
    sha256 = hashlib.sha256(b"no picture").hexdigest()
    change(path, "UPDATE images SET sha256 = ? WHERE path = ?", sha256, name)
    [damage] = verify(opened(read_only=True)).damaged
    assert "does not decode as a PNG" in damage.reason


def test_an_image_of_another_size_is_damaged_and_never_stacked(path, opened):
    """With its recorded sum: nobody but who made the folder can have put it there."""
    file = images_of(path)[0]
    file.write_bytes(to_png(np.zeros((8, 8, 3), np.uint8)))
    name = file.relative_to(path).as_posix()
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    change(path, "UPDATE images SET sha256 = ? WHERE path = ?", sha256, name)
    folder = opened(read_only=True)
    [damage] = verify(folder).damaged
    assert damage.reason == "it has 8 x 8 pixels, where its run has 64 x 64"
    with pytest.raises(StoreError, match=r"expected \d+ x \d+ pixels as others of its run, got"):
        folder.read_images(folder.commands()[0].jobs())


def test_a_path_out_of_the_folder_is_neither_read_nor_removed(path, tmp_path, opened):
    outside = tmp_path / "outside.png"
    outside.write_bytes(to_png(np.zeros((8, 8, 3), np.uint8)))
    sha256 = hashlib.sha256(outside.read_bytes()).hexdigest()
    change(path, "UPDATE images SET path = '../outside.png', sha256 = ? WHERE rowid = 1", sha256)
    folder = opened()
    found = verify(folder)
    assert [damage.row.path for damage in found.damaged] == ["../outside.png"]
    folder.remove((each.row, each.reason) for each in found.damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analogy.studies.repair._make_again", lambda *_, **__: None)
        repair(folder, found)
    assert outside.exists()


def test_metrics_that_compare_with_a_lost_control_go_with_it(path, opened):
    folder = opened()
    rows = {row.key: json.loads(row.what) for row in folder.image_rows()}
    folder.add_metric("psnr", dict.fromkeys(rows, 20.0))
    control = next(row for row in folder.image_rows() if json.loads(row.what)["alpha"] == 0.0)
    pair = rows[control.key]["pair_id"]
    folder.remove([(control, "gone")])
    kept = dict(index(folder.path, "SELECT key, value FROM metrics"))
    assert kept.keys() == {key for key, what in rows.items() if what["pair_id"] != pair}
    lost = folder.failures(folder.commands()[0].jobs())
    assert [(job.key, reason) for job, reason in lost] == [(control.key, f"{LOST}gone")]


def test_another_model_repairs_nothing(run, path, monkeypatch):
    other = ModelSource(path, "other@sha256:0")
    monkeypatch.setattr("analogy.studies.repair.find_pipeline", lambda *_, **__: other)
    delete(images_of(path)[0])
    result = run("--repair")
    assert result.exit_code == 4
    assert "expected the model that the run was made with, sdxl-tiny@sha256:" in result.stderr
    assert "got other@sha256:0; put its files back" in result.stderr


def test_repair_waits_for_no_other_writer(run, path, opened):
    opened()
    result = run("--repair")
    assert result.exit_code == 4
    assert "expected no other writer" in result.stderr
    assert run().exit_code == 0


@pytest.mark.parametrize("content", [None, b"no database" * 100])
def test_what_is_no_run_folder_is_said_and_left_alone(run, path, content):
    index = path / "index.sqlite"
    for file in path.glob("index.sqlite*"):
        file.unlink()
    if content is not None:
        index.write_bytes(content)
    for options in ((), ("--repair",)):
        result = run(*options)
        assert result.exit_code == 4
        assert "expected a run folder of this suite that can be read" in result.stderr
        assert index.exists() == (content is not None)


def test_a_folder_without_a_configuration_is_not_called_complete(run, path):
    change(path, "DROP TABLE commands")
    result = run()
    assert result.exit_code == 1
    assert "grid      unknown" in result.stdout
