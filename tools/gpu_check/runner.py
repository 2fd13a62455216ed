"""Runs each step in a process that is killed at its time limit, and writes the report after each.

This module does not import torch; only the steps' processes do.
"""

from __future__ import annotations

import faulthandler
import json
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import pkgutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from analogy.core.files import write_atomically
from tools.gpu_check.results import Figure, Report, State, Step, Value

#: Seconds for all steps together: under nine minutes, since a command may take ten.
TOTAL = 520.0

#: Seconds that a step's process may take to exit after it has sent its result.
TO_END = 5.0


class NotRunError(RuntimeError):
    """A step cannot run on this machine; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The setting of a step. ``rehearse``: small sizes on the CPU; ``work``: a folder for files."""

    rehearse: bool
    work: Path

    @property
    def device(self) -> str:
        """The torch device of the step."""
        return "cpu" if self.rehearse else "cuda"


class Recorder:
    """Writes a step's figures to a file, each as soon as it is measured."""

    def __init__(self, setting: Setting, file: Path) -> None:
        self.setting = setting
        self._file = file
        self._figures: list[Figure] = []

    def add(self, name: str, value: Value, unit: str = "", *, bar: float | None = None) -> None:
        """Record one figure. In a rehearsal no bar applies."""
        if self.setting.rehearse:
            bar = None
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # such as the PSNR of equal images
        self._figures.append(Figure(name, value, unit, bar))
        data = json.dumps([asdict(figure) for figure in self._figures])
        write_atomically(self._file, data.encode())
        print(f"  {name}: {value} {unit}", flush=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: its name, its time limit in seconds, and its function.

    ``work``: ``module:function``, which takes a :class:`Recorder` and is imported only in the
    step's process; ``after``: the name of the step whose files it needs, None if it needs none.
    """

    name: str
    seconds: float
    work: str
    after: str | None = None


def start_server(preload: Sequence[str]) -> None:
    """Start the server that all steps are forked from; it imports ``preload`` meanwhile.

    Nothing in ``preload`` may ask CUDA for its devices: processes forked later could not use them.
    """
    multiprocessing.set_forkserver_preload(list(preload))
    multiprocessing.forkserver.ensure_running()


def end_descendants() -> None:
    """Kill all descendants of this process."""
    _kill(psutil.Process().children(recursive=True))


def describe(folder: Path, *, rehearse: bool) -> Report:
    """An empty report on this machine.

    Raises NotRunError if the check needs a CUDA device and there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan("the machine", 120.0, "tools.gpu_check.machine:describe")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        setting = Setting(rehearse, Path(work))
        step = _run_one(plan, setting, Path(work) / "figures.json", folder, plan.seconds)
        if step.state is not State.DONE:
            raise NotRunError(step.reason)
        return Report.read(setting.work / "machine.json")


def run(plans: Sequence[Plan], folder: Path, report: Report) -> Report:
    """Run every plan in order. Returns the report with their results; it is also in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as work:
        setting = Setting(report.rehearsal, Path(work))
        for number, plan in enumerate(plans):
            limit = min(plan.seconds, TOTAL - (time.perf_counter() - start))
            file = Path(work) / f"{number}.json"
            step = _run_one(plan, setting, file, folder, limit)
            report.steps.append(step)
            report.seconds = time.perf_counter() - start
            report.write(folder)
            print(
                f"{step.name}: {step.state.value}, {step.seconds:.0f} s {step.reason}", flush=True
            )
    return report


def _run_one(plan: Plan, setting: Setting, file: Path, folder: Path, limit: float) -> Step:
    """Run one step in its own process group, so that processes that it started end with it."""
    if limit < 1.0:
        return Step(plan.name, State.NOT_RUN, reason="no time was left")
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(plan.work, setting, file, folder / "gpu_check.log", limit, sender)
    )
    start = time.perf_counter()
    process.start()
    sender.close()
    state, reason = State.TIMED_OUT, f"stopped after {limit:.0f} s; the log has its stacks"
    if receiver.poll(limit):
        try:
            state, reason = receiver.recv()
        except EOFError:
            process.join(TO_END)
            state, reason = State.FAILED, f"the process died with exit code {process.exitcode}"
    receiver.close()
    _end(process, grace=0.0 if state is State.TIMED_OUT else TO_END)
    seconds = time.perf_counter() - start
    figures = [Figure(**each) for each in json.loads(file.read_text())] if file.exists() else []
    return Step(plan.name, state, seconds, reason, figures)


def _child(
    work: str,
    setting: Setting,
    file: Path,
    log: Path,
    limit: float,
    sender: multiprocessing.connection.Connection,
) -> None:
    # A new process group but not a new session: ending the check's session also ends this step.
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Not to stderr, since pytest redirects it in its step.
    faulthandler.dump_traceback_later(max(0.9 * limit, limit - 2.0), file=output)
    threading.Thread(target=_end_with_the_check, name="check", daemon=True).start()
    print(f"--- {work}", flush=True)
    try:
        pkgutil.resolve_name(work)(Recorder(setting, file))
    except NotRunError as error:
        result = State.NOT_RUN, str(error)
    except BaseException as error:  # any failure of a step is a result
        traceback.print_exc()
        sys.stderr.flush()
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        result = State.FAILED, f"{type(error).__name__}: {line[:500]}"
    else:
        result = State.DONE, ""
    end_descendants()  # while they still are: also those that have left the process group
    sender.send(result)


def _end_with_the_check() -> None:
    """Kill this step's process group once the process that runs the check has ended."""
    check = multiprocessing.parent_process()
    assert check is not None  # this is a step's process
    multiprocessing.connection.wait([check.sentinel])
    os.killpg(0, signal.SIGKILL)


def _end(process: multiprocessing.process.BaseProcess, *, grace: float) -> None:
    """End a step's process and all that it started, after ``grace`` seconds to exit by itself."""
    process.join(grace)
    assert process.pid is not None  # it was started
    started: list[psutil.Process] = []
    with suppress(psutil.Error):
        step = psutil.Process(process.pid)
        started = [step, *step.children(recursive=True)]
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    _kill(started)  # processes that left the group, and a step that has not yet made its group
    process.join(10.0)


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
