"""Faults, planted: nothing that was recorded is lost, and what is said helps.

``ANALOGY_SLOW=1`` kills the run at 25 moments instead of 3.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest

from analogy.core import files
from analogy.core.errors import StoreError
from analogy.store.database import SCHEMA_VERSION
from analogy.store.folder import RunFolder
from analogy.store.grid import Grid

SLOW = bool(os.environ.get("ANALOGY_SLOW"))


@pytest.fixture
def folder(tmp_path):
    """A new run folder."""
    made = RunFolder(tmp_path / "run")
    yield made
    made.close()


@pytest.fixture
def jobs(config, pairs):
    """A small grid."""
    return Grid(config, "model", "Euler/1", pairs[:2]).jobs()


def pictures(n):
    return np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), np.uint8)


def assert_kept(path, n):
    """Each of the ``n`` images that the index names can be read back."""
    reader = RunFolder(path, read_only=True)
    rows = reader.image_rows()
    reader.close()
    assert len(rows) == n
    for row in rows:
        assert (path / row.path).is_file()


# --- killed


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(whole_run, tmp_path):
    """SIGKILL at random moments of generating, scoring and writing; continued each time."""
    kills = 25 if SLOW else 3
    expected = processes.outcome(whole_run)
    processes.write_pairs(tmp_path)
    moments = random.Random(kills)
    began = time.monotonic()
    process, connection = processes.start(processes.run, tmp_path)
    processes.wait_for(connection, "done")
    process.join(600)
    seconds = time.monotonic() - began  # of a whole run, on this machine, now
    shutil.rmtree(tmp_path / "run")

    notes = 0
    for _ in range(kills):
        process, connection = processes.start(processes.run, tmp_path)
        time.sleep(moments.uniform(0.1, 2 * seconds / kills))
        os.kill(process.pid, signal.SIGKILL)
        process.join(600)
        connection.close()
        if (tmp_path / "run" / "index.sqlite").is_file():
            reader = RunFolder(tmp_path / "run", read_only=True)
            images = len(reader.image_rows())
            reader.close()
            assert_kept(tmp_path / "run", images)
            notes += 1
    assert notes, "every kill came before the run had begun"
    process, connection = processes.start(processes.run, tmp_path)
    processes.wait_for(connection, "done")
    process.join(600)

    found = processes.outcome(tmp_path)
    assert found["images"] == expected["images"]
    assert found["table"] == expected["table"]
    assert found["scores"] == expected["scores"]
    # Every image was recorded once, whatever was in flight when a kill came.
    assert found["generated"] == expected["generated"] == (36.0,)
    assert found["scored"] == expected["scored"] == (36.0,)


def test_two_runs_on_one_folder(tmp_path):
    processes.write_pairs(tmp_path)
    first, connection = processes.start(processes.run, tmp_path)
    processes.wait_for(connection, "open")
    with pytest.raises(StoreError, match=f"expected no other writer, but process {first.pid} of"):
        RunFolder(tmp_path / "run")
    processes.wait_for(connection, "done")
    first.join(600)
    assert len(processes.outcome(tmp_path)["images"]) == 36


# --- the disk


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full .* kept: free space and give the same command again"),
        (errno.EDQUOT, "the disk is full .* kept: free space and give the same command again"),
        (errno.EACCES, "a folder that can be written .* kept: give this user the right to write"),
        (errno.EROFS, "a folder that can be written .* kept: give this user the right to write"),
        (errno.EIO, "kept: see to the disk, and give the same command again"),
    ],
    ids=lambda value: errno.errorcode.get(value, ""),
)
def test_an_image_that_cannot_be_written(folder, jobs, monkeypatch, number, said):
    folder.add_images(jobs[:2], pictures(2), 1.0)
    written = []

    def refuse(handle):
        written.append(handle)
        if len(written) == 2:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", refuse)
        with pytest.raises(StoreError, match=said):
            folder.add_images(jobs[2:6], pictures(4), 1.0)
    assert_kept(folder.path, 2)
    assert not list(folder.path.rglob("*.partial"))
    folder.add_images(jobs[2:6], pictures(4), 1.0)
    assert_kept(folder.path, 6)


def test_an_index_that_cannot_grow(folder, jobs):
    folder.add_images(jobs[:2], pictures(2), 1.0)
    pages = folder._index.db.execute("PRAGMA page_count").fetchone()[0]
    folder._index.db.execute(f"PRAGMA max_page_count = {pages}")
    values = {f"{i:032x}": 1.0 for i in range(2000)}
    with pytest.raises(StoreError, match=r"the disk is full .*: free space"):
        folder.add_metric("psnr", values)
    assert folder.metric("psnr", jobs) == {}
    assert_kept(folder.path, 2)


def mounted(options):
    """A small file system of its own, where this user may mount one."""
    place = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    try:
        is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        is_mounted = False
    if not is_mounted:
        place.rmdir()
        pytest.skip("needs the right to mount a file system: run as root on Linux")
    return place


@pytest.fixture
def disk():
    """A disk of 300 kB."""
    place = mounted("size=300k")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
    place.rmdir()


def test_a_disk_that_is_full(disk, jobs):
    folder = RunFolder(disk / "run")
    done = 0

    def fill():
        nonlocal done
        while done < 100:
            folder.add_images(plan_of(jobs, done), pictures(2), 1.0)
            done += 2

    with pytest.raises(StoreError, match=r"the disk is full .*: free space"):
        fill()
    folder.close()
    assert done
    subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
    assert_kept(disk / "run", done)
    again = RunFolder(disk / "run")
    again.add_images(plan_of(jobs, 99), pictures(2), 1.0)
    again.close()
    assert_kept(disk / "run", done + 2)


def plan_of(jobs, i):
    """Two jobs with keys of their own."""
    return [replace(job, key=f"{i:02x}{n:030x}") for n, job in enumerate(jobs[:2])]


def test_a_disk_that_may_only_be_read(disk, jobs):
    folder = RunFolder(disk / "run")
    folder.add_images(jobs[:1], pictures(1), 1.0)
    folder.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreError, match=r"expected a folder that can be written, .*--run-dir"):
        RunFolder(disk / "run")
    assert_kept(disk / "run", 1)


needs_root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can act as another user"
)
NOBODY = 65534


@pytest.fixture
def shared():
    """A folder that every user can reach."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@needs_root
@pytest.mark.parametrize("read_only", [False, True])
def test_a_folder_of_another_user(shared, jobs, read_only):
    """Who may not write there cannot open it for writing, is told so, and can read it."""
    folder = RunFolder(shared / "run")
    folder.add_images(jobs[:1], pictures(1), 1.0)
    folder.close()
    process, connection = processes.start(processes.look, shared / "run", NOBODY, read_only)
    assert connection.poll(120)
    said = connection.recv()
    process.join(600)
    assert said == 1 if read_only else "expected a folder that can be written" in said


@needs_root
def test_permission_that_is_lost_in_mid_run(shared, jobs):
    run = shared / "run"
    run.mkdir()
    os.chown(run, NOBODY, NOBODY)
    process, connection = processes.start(processes.add_twice, run, NOBODY, jobs[:4], pictures(2))
    assert connection.poll(120)
    assert connection.recv() == "first"
    for place in [run, *run.rglob("*")]:
        if place.is_dir():
            os.chown(place, 0, 0)
    connection.send("go on")
    assert connection.poll(120)
    said = connection.recv()
    process.join(600)
    assert "expected a folder that can be written ([Errno 13] Permission denied" in said
    assert "What was done before is kept: give this user the right to write there" in said
    assert_kept(run, 2)


# --- the index


def closed(folder, jobs):
    """A folder with images whose index has no log beside it."""
    folder.add_images(jobs[:2], pictures(2), 1.0)
    folder.close()
    return folder.path / "index.sqlite"


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_index_that_was_truncated(folder, jobs, share):
    index = closed(folder, jobs)
    data = index.read_bytes()
    index.write_bytes(data[: int(share * len(data))])
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"its index is damaged .*Bring index.sqlite back"):
            RunFolder(folder.path, read_only=read_only).check_index()
    assert index.read_bytes() == data[: int(share * len(data))]
    assert len(list(folder.path.rglob("*.png"))) == 2


def test_an_index_of_a_later_suite_is_left_as_it_is(folder, jobs):
    index = closed(folder, jobs)
    db = sqlite3.connect(index)
    with db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (SCHEMA_VERSION + 1,))
        db.execute("DROP TABLE work")
    db.close()
    before = index.read_bytes()
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"expected schema version 2, got 3; .*that version"):
            RunFolder(folder.path, read_only=read_only)
    assert index.read_bytes() == before


def test_an_index_that_is_damaged_in_mid_run(folder, jobs):
    folder.add_images(jobs[:2], pictures(2), 1.0)
    folder.close()
    index = folder.path / "index.sqlite"
    opened = RunFolder(folder.path)
    data = bytearray(index.read_bytes())
    data[4096:] = b"\x55" * (len(data) - 4096)
    index.write_bytes(data)
    with pytest.raises(StoreError, match=r"its index is damaged .*Bring index.sqlite back"):
        opened.without_image(jobs)
    opened.close()


# --- Ctrl-C


def test_an_interrupted_run_stops_within_a_batch_and_goes_on(whole_run, tmp_path):
    processes.write_pairs(tmp_path)
    process, connection = processes.start(processes.run, tmp_path)
    processes.wait_for(connection, "generated color 0.5")
    os.kill(process.pid, signal.SIGINT)
    process.join(600)
    assert process.exitcode not in (0, None)
    made = len(list((tmp_path / "run" / "images").rglob("*.png")))
    assert made < len(processes.outcome(whole_run)["images"])
    assert not list(tmp_path.rglob("*.partial"))
    process, connection = processes.start(processes.run, tmp_path)
    processes.wait_for(connection, "done")
    process.join(600)
    assert processes.outcome(tmp_path)["images"] == processes.outcome(whole_run)["images"]
