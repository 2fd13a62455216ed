"""Runs the steps: a process for each, killed at its time limit; writes the report after each."""

from __future__ import annotations

import json
import math
import multiprocessing
import multiprocessing.forkserver
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from analogy.core.files import write_atomically
from tools.gpu_check.results import Figure, Machine, Report, State, Step, Value

#: Seconds for all steps together: under nine minutes, of the ten that a command has.
TOTAL = 520.0


class NotRunError(RuntimeError):
    """A step cannot run on this machine; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a step gets: where it computes, in which size, and where it may write."""

    rehearse: bool
    work: Path

    @property
    def device(self) -> str:
        """The torch device of the step."""
        return "cpu" if self.rehearse else "cuda"


class Recorder:
    """Keeps a step's figures in a file from the moment that each is measured."""

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
    """One step: its name, its time limit in seconds, and what it does."""

    name: str
    seconds: float
    work: Callable[[Recorder], None]


def start_server(preload: Sequence[str]) -> None:
    """Start the server that all steps are forked from; it imports ``preload`` meanwhile.

    Nothing in ``preload`` may ask CUDA for its devices: a process forked after that has none.
    """
    multiprocessing.set_forkserver_preload(list(preload))
    multiprocessing.forkserver.ensure_running()


def run(plans: Sequence[Plan], folder: Path, *, rehearse: bool) -> Report:
    """Run every plan in order and return the report, which ``folder`` has too."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    report = Report(rehearse, _commit(), _machine())
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        setting = Setting(rehearse, Path(work))
        for number, plan in enumerate(plans):
            limit = min(plan.seconds, TOTAL - (time.perf_counter() - start))
            file = Path(work) / f"{number}.json"
            report.steps.append(_run_one(context, plan, setting, file, folder, limit))
            report.seconds = time.perf_counter() - start
            report.write(folder)
            step = report.steps[-1]
            print(
                f"{step.name}: {step.state.value}, {step.seconds:.0f} s {step.reason}", flush=True
            )
    return report


def _run_one(
    context: multiprocessing.context.ForkServerContext,
    plan: Plan,
    setting: Setting,
    file: Path,
    folder: Path,
    limit: float,
) -> Step:
    """One step in a process group of its own, so that what it started ends with it."""
    if limit < 1.0:
        return Step(plan.name, State.NOT_RUN, reason="no time was left")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(plan.work, setting, file, folder / "gpu_check.log", sender)
    )
    start = time.perf_counter()
    process.start()
    sender.close()
    state, reason = State.TIMED_OUT, f"stopped after {limit:.0f} s"
    if receiver.poll(limit):
        try:
            state, reason = receiver.recv()
        except EOFError:
            process.join(5.0)
            state, reason = State.FAILED, f"the process died with exit code {process.exitcode}"
    _end(process)
    seconds = time.perf_counter() - start
    figures = [Figure(**each) for each in json.loads(file.read_text())] if file.exists() else []
    return Step(plan.name, state, seconds, reason, figures)


def _child(
    work: Callable[[Recorder], None],
    setting: Setting,
    file: Path,
    log: Path,
    sender: multiprocessing.connection.Connection,
) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    print(f"--- {work.__name__}", flush=True)
    try:
        work(Recorder(setting, file))
    except NotRunError as error:
        sender.send((State.NOT_RUN, str(error)))
    except BaseException as error:  # a step's failure is a result, whatever it is
        traceback.print_exc()
        sys.stderr.flush()
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        sender.send((State.FAILED, f"{type(error).__name__}: {line[:500]}"))
    else:
        sender.send((State.DONE, ""))


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a step's process and all that it started."""
    process.join(5.0)
    assert process.pid is not None  # it was started
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join(10.0)


def _machine() -> Machine:
    import torch

    from analogy.models.defaults import machine
    from analogy.studies.provenance import package_versions

    is_cuda = torch.cuda.is_available()
    said = machine("cuda" if is_cuda else "cpu")
    return Machine(
        device=str(said["device"]) if is_cuda else "no CUDA device",
        processor=str(said["processor"]),
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        packages=package_versions(),
    )


def _commit() -> str:
    from analogy.studies.provenance import commit_of

    return commit_of(Path(__file__).resolve().parents[2]) or "unknown"
