"""One writer per run folder, whoever dies; readers always."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import processes
import pytest

from analogy.core import lock
from analogy.core.errors import StoreError
from analogy.core.lock import OWNER_NAME, LockedError, WriterLock
from analogy.store.folder import RunFolder
from analogy.store.grid import Grid


@pytest.fixture
def held(tmp_path):
    """A run folder that another process writes to: its path, that process, and its end."""
    path = tmp_path / "run"
    process, connection = processes.start(processes.hold, path)
    assert connection.poll(120)
    assert connection.recv() == process.pid
    yield path, process, connection
    if process.is_alive():
        connection.send("end")
    process.join(600)


def test_a_second_writer_is_told_who_the_first_is(held):
    path, process, _ = held
    with pytest.raises(StoreError) as error:
        RunFolder(path)
    message = str(error.value)
    assert f"process {process.pid} of " in message
    assert "since 20" in message
    assert "wait until it is done, stop it, or choose another folder with --run-dir" in message


def test_the_next_writer_comes_in_once_the_first_has_ended(held):
    path, process, connection = held
    connection.send("end")
    process.join(600)
    folder = RunFolder(path)
    assert folder.note is None
    folder.close()


def test_a_killed_writer_is_followed_with_a_note(held):
    path, process, _ = held
    os.kill(process.pid, signal.SIGKILL)
    process.join(600)
    folder = RunFolder(path)
    assert f"ended without closing it (process {process.pid} of " in folder.note
    folder.close()
    again = RunFolder(path)
    assert again.note is None
    again.close()


def test_readers_read_beside_a_writer(held, config, pairs):
    path, _, _ = held
    reader = RunFolder(path, read_only=True)
    assert reader.image_rows() == []
    with pytest.raises(StoreError, match="expected a folder that can be written"):
        reader.add_metric("psnr", {"a": 1.0})
    reader.close()
    with pytest.raises(StoreError, match="writes to it"):  # and leave the lock as it is
        RunFolder(path)


def test_readers_see_what_is_written_meanwhile(tmp_path, config, pairs):
    folder = RunFolder(tmp_path)
    reader = RunFolder(tmp_path, read_only=True)
    jobs = Grid(config, "model", "Euler/1", pairs).jobs(alpha=0.5)[:2]
    folder.add_images(jobs, np.zeros((2, 8, 8, 3), np.uint8), 1.0)
    assert [row.key for row in reader.image_rows()] == [job.key for job in jobs]
    np.testing.assert_array_equal(reader.read_image(jobs[0]), np.zeros((8, 8, 3), np.uint8))
    reader.close()
    folder.close()


def test_a_reader_needs_a_run_folder(tmp_path):
    with pytest.raises(StoreError, match=r"a run folder of this suite that can be read .*no index"):
        RunFolder(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b'{"host": 1}', b"\xff", b"null"])
def test_a_damaged_record_of_the_owner_is_none(tmp_path, record):
    (tmp_path / OWNER_NAME).write_bytes(record)
    assert lock.owner(tmp_path) is None
    WriterLock(tmp_path).release()


def test_the_record_says_host_process_user_and_time(tmp_path):
    held = WriterLock(tmp_path)
    record = json.loads((tmp_path / OWNER_NAME).read_text())
    assert record.keys() == {"host", "pid", "user", "started"}
    assert record["pid"] == os.getpid()
    assert lock.owner(tmp_path).may_be_alive
    with pytest.raises(LockedError, match=f"process {os.getpid()} of"):
        WriterLock(tmp_path)
    held.release()
    held.release()
    assert not (tmp_path / OWNER_NAME).exists()
