"""Where files may be written: whole, where the user said, and nowhere that nobody said."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from planted import results, small, write_results
from verbs import verb

from analogy.core import files
from analogy.core.files import PlaceError, check_output, is_device, write_atomically, write_output

DATA = b"what was asked for"


@pytest.fixture
def run(tmp_path):
    """A results file to do something with."""
    file = tmp_path / "in" / "results.json"
    write_results(results(small()), file)
    return file


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def bound(path):
    """A socket's name."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.close()


def dangling(path):
    path.symlink_to(path.with_name("nothing"))


def loop(path):
    path.symlink_to(path)


def to_a_folder(path):
    path.with_name("folder").mkdir()
    path.symlink_to("folder")


def below_a_file(path):
    path.parent.rmdir()
    path.parent.touch()


REFUSED = {
    "folder": (Path.mkdir, "which is a folder"),
    "pipe": (os.mkfifo, "which is a named pipe"),
    "socket": (bound, "which is a socket"),
    "dangling": (dangling, "where there is no file; name that file, or remove the link"),
    "loop": (loop, "lead to one another"),
    "to a folder": (to_a_folder, "which is a folder"),
    "below a file": (below_a_file, "name another"),
}


def place(tmp_path, plant):
    """A path in a folder of its own, with something planted."""
    made = tmp_path / "out" / "it.json"
    made.parent.mkdir()
    plant(made)
    return made


@pytest.mark.parametrize(("plant", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_file_is_refused_and_left_as_it_is(tmp_path, plant, said):
    path = place(tmp_path, plant)
    before = sorted((each, each.lstat().st_mode) for each in tmp_path.rglob("*"))
    expected = rf"expected a file that can be written, got {re.escape(str(path))},? .*{said}"
    with pytest.raises(PlaceError, match=expected):
        check_output(path)
    with contextlib.suppress(OSError):
        write_output(path, DATA)
        pytest.fail("written")
    assert sorted((each, each.lstat().st_mode) for each in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "a\0b", "y" * 300 + "/it.json"])
def test_a_name_that_cannot_be_is_refused(tmp_path, name):
    with pytest.raises(PlaceError, match="expected a file that can be written"):
        check_output(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_takes_no_file_is_refused(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(PlaceError, match=re.escape(os.strerror(number))):
        check_output(tmp_path / "it.json")


def test_a_file_that_is_read_only_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "it.json"
    path.touch()
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(PlaceError, match="which is read-only"):
        check_output(path)


def test_a_link_is_followed_and_stays_one(tmp_path):
    target, link = tmp_path / "there" / "target.json", tmp_path / "link.json"
    target.parent.mkdir()
    target.write_bytes(b"old")
    target.chmod(0o600)
    (tmp_path / "second.json").symlink_to(target)
    link.symlink_to("second.json")
    check_output(link)
    write_output(link, DATA)
    assert link.is_symlink()
    assert target.read_bytes() == DATA
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [each.name for each in target.parent.iterdir()] == ["target.json"]
    with pytest.raises(PlaceError, match="which is a link; remove it"):
        check_output(link, may_link=False)


def test_the_suites_own_files_never_follow_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    (tmp_path / f"link.{os.getpid()}.partial").symlink_to(target)
    write_atomically(link, DATA)
    assert target.read_bytes() == b"precious"
    assert (link.is_symlink(), link.read_bytes()) == (False, DATA)


def test_a_device_is_written_through():
    check_output("/dev/null")
    write_output(Path("/dev/null"), DATA)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert is_device("/dev/null")
    with pytest.raises(OSError, match="No space left"):
        write_output(Path("/dev/full"), DATA)


def test_a_link_to_a_device_is_written_through(tmp_path):
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    check_output(link)
    write_output(link, DATA)
    assert link.is_symlink()


PRINT = (
    "import sys; from pathlib import Path; from analogy.core.files import *; sys.stdout.write('1');"
    "path = Path(sys.argv[1]); check_output(path); write_output(path, b'2'); sys.stdout.write('3')"
)


def printed(name, **to):
    return subprocess.run([sys.executable, "-c", PRINT, name], check=True, timeout=600, **to).stdout


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_is_written_in_its_place(tmp_path, name):
    """Whatever it is: a pipe, or a file that others write to, which is not replaced."""
    assert printed(name, stdout=subprocess.PIPE) == b"123"
    with open(tmp_path / "log", "wb") as log:
        log.write(b"0")
        log.flush()
        printed(name, stdout=log)
        log.seek(0, os.SEEK_END)
        log.write(b"4")
    assert (tmp_path / "log").read_bytes() == b"01234"


def test_what_is_open_for_reading_is_refused(tmp_path):
    with open(os.devnull, "rb") as stream, pytest.raises(PlaceError, match="open for reading"):
        check_output(f"/dev/fd/{stream.fileno()}")
    with pytest.raises(PlaceError, match="expected a file that can be written"):
        check_output("/dev/fd/99999")


def test_what_the_dead_left_is_swept_up_and_nothing_else(tmp_path):
    dead = gone()
    ours = [f"it.json.{dead}.partial", f"it.json.{os.getpid()}.partial"]
    theirs = [
        f"it.json.{os.getppid()}.partial", f"other.json.{dead}.partial", "it.json.partial",
        "it.json.0.partial", "it.json.x.partial", f"it.json.{dead}.partial.txt",
        f"it.json.0{dead}.partial", f"xit.json.{dead}.partial", f"it_json.{dead}.partial",
    ]  # fmt: skip
    for name in [*ours, *theirs]:
        (tmp_path / name).write_text("partial")
    folder = tmp_path / f"it.json.{dead + 1 if dead < 2**22 - 2 else dead - 1}.partial"
    folder.mkdir()
    write_output(tmp_path / "it.json", DATA)
    assert {each.name for each in tmp_path.iterdir()} == {"it.json", *theirs, folder.name}


def test_a_file_that_cannot_be_renamed_is_written_in_its_place(tmp_path, monkeypatch):
    """A single file that a container mounts."""

    def busy(*_):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    path = tmp_path / "it.json"
    path.write_bytes(b"something longer than what comes")
    monkeypatch.setattr(files.os, "replace", busy)
    write_output(path, DATA)
    assert path.read_bytes() == DATA
    assert len(list(tmp_path.iterdir())) == 1


# --- each option that names an output


def compare(run, option, path):
    return verb("compare", run, run, option, path)


def baseline(run, option, path):
    return verb("baseline", run, option, path)


def report(run, option, path):
    return verb("report", run, option, path)


def check(run, option, path):
    pairs = run.with_name("pairs.csv")
    pairs.write_text("id,category,source_word,target_word,source_prompt,target_prompt\n")
    return verb("pairs", "check", pairs, option, path)


def steer(run, option, path):
    return verb("steer", "a red car", "a blue car", "--model", "no-such-model", option, path)


def run_it(run, option, path):
    folder = run.with_name("run")
    return verb("run", "--model", "no-such-model", "--run-dir", folder, option, path)


def write_it(run, option, path):
    return run_it(run, option, f"md={path}")


def score(run, option, path):
    return verb("score", run.parent, "--clip-model", "no-such-judge", option, path)


def methods(run, option, path):
    return verb("methods", "--model", "no-such-model", option, path)


def verify(run, option, path):
    return verb("verify", run.parent, option, path)


def models(run, option, path):
    return verb("models", option, path)


OPTIONS = [
    (compare, "--json"), (compare, "--junit"), (baseline, "-o"), (baseline, "--output"),
    (report, "-o"), (check, "--json"), (steer, "-o"), (steer, "--json"), (run_it, "--results"),
    (run_it, "--report"), (write_it, "--write"), (run_it, "--json"), (score, "--results"),
    (score, "--json"),
    (methods, "--json"), (verify, "--json"), (models, "--json"),
]  # fmt: skip


@pytest.mark.parametrize(("invoke", "option"), OPTIONS)
@pytest.mark.parametrize("kind", ["pipe", "dangling", "folder", "long"])
def test_every_output_is_checked_before_the_work(tmp_path, run, invoke, option, kind):
    """The model and the judge that these name are not there: so far a verb does not come."""
    path = tmp_path / "out" / ("x" * 300 if kind == "long" else "it.png")
    path.parent.mkdir()
    if kind != "long":
        REFUSED[kind][0](path)
    result = invoke(run, option, path)
    assert result.exit_code == 2
    flag = "-o" if option == "--output" else option
    assert f"analogy: {flag}: expected a file that can be written, got {path}" in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(("invoke", "option"), OPTIONS[:6])
def test_every_output_is_written_through_a_link_and_to_a_device(tmp_path, run, invoke, option):
    target = tmp_path / "target.json"
    link = tmp_path / "link.json"
    link.symlink_to(target)
    code = 2 if invoke is check else 0
    if invoke is baseline:
        write_results(results(small()), target)
        target.chmod(0o640)
    else:
        target.touch(mode=0o640)
        target.chmod(0o640)
    old = target.stat().st_ino
    for path in (link, Path("/dev/null")):
        assert invoke(run, option, path).exit_code == code
    assert link.is_symlink()
    assert target.stat().st_size > 0
    assert target.stat().st_ino != old  # it was replaced, and not written over
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("option", ["--json", "--junit"])
def test_an_output_below_the_home_is_checked_there(tmp_path, run, monkeypatch, option):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert verb("compare", run, run, option, "~/new/it.json").exit_code == 0
    assert (home / "new" / "it.json").is_file()
    assert not (tmp_path / "~").exists()
    os.mkfifo(home / "pipe")
    result = verb("compare", run, run, option, "~/pipe")
    assert result.exit_code == 2
    assert f"{option}: expected a file that can be written, got {home}/pipe, which" in result.stderr


def test_a_default_place_in_a_strangers_folder_is_no_link(tmp_path, run):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run.parent / "report.html").symlink_to(victim)
    result = verb("report", run.parent)
    assert result.exit_code == 2
    assert "report.html, which is a link; remove it, or name the file that you mean" in (
        result.stderr
    )
    assert victim.read_text() == "precious"
