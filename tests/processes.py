"""What other processes do in the tests: hold a run folder, work on one, look at one, run a command.

They are forked from a server that has imported the suite once, so that each starts in a moment.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["processes", "served"])

from analogy.core.errors import StoreError  # noqa: E402
from analogy.generation import execution as execute  # noqa: E402
from analogy.results.model import RESULTS_NAME  # noqa: E402
from analogy.results.writing import write_results  # noqa: E402
from analogy.settings import options  # noqa: E402
from analogy.settings.request import RunRequest  # noqa: E402
from analogy.store.folder import RunFolder  # noqa: E402
from analogy.studies.study import Study  # noqa: E402

_INSTALLED = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"
NOUNS = ("car", "cup", "hat", "boat", "star", "tree")


def start(work: Any, *arguments: Any, daemon: bool = True) -> Any:
    """Start ``work(connection, *arguments)`` in another process; returns it and our connection."""
    with pytest.MonkeyPatch.context() as patch:  # the server, once, finds modules as we do
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=work, args=(theirs, *arguments), daemon=daemon)
    process.start()
    theirs.close()
    return process, ours


def run_module(*words: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run what :func:`start_module` starts, and return its exit code and output."""
    return end_module(start_module(*words, cwd=cwd, env=env))


def start_module(*words: str, cwd: Path, env: Mapping[str, str]) -> Any:
    """Start ``python -m`` with ``words`` in the folder ``cwd``, with ``env`` added to ours.

    The new process is forked from the server. Libraries such as torch are imported already, which
    otherwise takes 7 s; the suite itself is imported anew, from ``PYTHONPATH``.
    """
    output = [cwd / f".output-{i}-{os.getpid()}" for i in (1, 2)]
    process, connection = start(
        _run_module, words, cwd, {**os.environ, **env}, output, daemon=False
    )
    connection.close()
    process.output = output
    return process


def end_module(process: Any, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Wait for the process of :func:`start_module`; returns its exit code and output."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"no end within {timeout:g} s")
    said = [file.read_text() for file in process.output]
    for file in process.output:
        file.unlink()
    return subprocess.CompletedProcess((), process.exitcode, *said)


def _run_module(
    connection: Any, words: tuple[str, ...], cwd: Path, env: dict[str, str], output: list[Path]
) -> None:
    for descriptor, file in enumerate(output, 1):
        with open(file, "wb") as stream:
            os.dup2(stream.fileno(), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env, TOKENIZERS_PARALLELISM="false")  # their threads are the server's
    for name in list(sys.modules):
        if name.partition(".")[0] in {"analogy", "benchmarks", "tools"}:
            del sys.modules[name]
    sys.path[:] = [str(cwd), *env.get("PYTHONPATH", "").split(os.pathsep), *_INSTALLED]
    importlib.invalidate_caches()
    sys.modules["torch"].set_num_threads(int(env.get("OMP_NUM_THREADS", 1)))  # served has set it
    sys.argv = list(words)
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def hold(connection: Any, path: Path) -> None:
    """Open a run folder for writing, say so, and keep it until told to end."""
    folder = RunFolder(path)
    connection.send(os.getpid())
    connection.recv()
    folder.close()


def become(user: int) -> None:
    """Give up being root."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def look(connection: Any, path: Path, user: int, read_only: bool) -> None:
    """Open a run folder as another user and say how that went: images, or the error."""
    become(user)
    try:
        folder = RunFolder(path, read_only=read_only)
        connection.send(len(folder.image_rows()))
        folder.close()
    except StoreError as error:
        connection.send(str(error))


def add_twice(connection: Any, path: Path, user: int, jobs: Any, images: Any) -> None:
    """Add images as another user, then others once told to; say how that went."""
    become(user)
    folder = RunFolder(path)
    folder.add_images(jobs[: len(images)], images, 1.0)
    connection.send("first")
    connection.recv()
    try:
        folder.add_images(jobs[len(images) :], images, 1.0)
        connection.send("second")
    except StoreError as error:
        connection.send(str(error))


def write_pairs(path: Path) -> None:
    """Two categories of three pairs."""
    rows = [
        f"{c}{i},{c},{a},{b},a {a} {noun},a {b} {noun}\n"
        for c, a, b in (("color", "red", "blue"), ("size", "tiny", "large"))
        for i, noun in enumerate(NOUNS)
    ]
    (path / "pairs.csv").write_text(HEADER + "".join(rows))


def values(path: Path, **given: str) -> RunRequest:
    """A small run in ``path``'s folder ``run``: 2 steps, batches of 2."""
    texts = {option.name.removeprefix("analogy_"): option.default for option in options.OPTIONS}
    texts |= {
        "pairs": str(path / "pairs.csv"), "run_dir": str(path / "run"), "steps": "2",
        "alphas": "0.5,1", "seeds": "0", "batch_size": "2", "dtype": "float32", **given,
    }  # fmt: skip
    return options.parse_options(lambda name: texts[name.removeprefix("analogy_")])


def run(connection: Any, path: Path) -> None:
    """Generate, score and write the results of a run, cell by cell, as pytest does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    execute.SCORE_BATCH = 4  # so that scoring is in more than one transaction
    study = Study.open(values(path))
    connection.send("open")
    for category in study.categories:
        for alpha in study.config.alphas:
            study.generate(study.cell_jobs(category, alpha))
            connection.send(f"generated {category} {alpha}")
            study.score(study.cell_jobs(category, alpha))
            write_results(study.results(), study.folder.path / RESULTS_NAME)
            connection.send(f"scored {category} {alpha}")
    study.folder.close()
    connection.send("done")


def outcome(path: Path) -> dict[str, Any]:
    """What a run has come to: its table, its images by name, its scores, and its work."""
    run = path / "run"
    table = json.loads((run / RESULTS_NAME).read_text())
    db = sqlite3.connect(run / "index.sqlite")
    images = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for (name,) in db.execute("SELECT path FROM images")
    }
    recorded_ = dict(db.execute("SELECT path, sha256 FROM images"))
    found = {
        "table": {name: table[name] for name in ("cells", "controls", "alphas", "overall")},
        "images": images,
        "scores": sorted(db.execute("SELECT * FROM scores")),
        "generated": db.execute("SELECT TOTAL(images) FROM work WHERE stage='generate'").fetchone(),
        "scored": db.execute("SELECT TOTAL(images) FROM work WHERE stage='score'").fetchone(),
    }
    db.close()
    assert recorded_ == images
    return found


def wait_for(connection: Any, word: str, seconds: float = 600.0) -> None:
    """Wait until the other process says a message that starts so."""
    end = time.monotonic() + seconds
    while connection.poll(max(end - time.monotonic(), 0.0)):
        if connection.recv().startswith(word):
            return
    raise TimeoutError(f"no {word!r} within {seconds:g} s")
