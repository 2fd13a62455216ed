"""The check for a GPU: each way in which a step ends, and a rehearsal of every step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tools import gpu_wheels
from tools.gpu_check.__main__ import SHARED
from tools.gpu_check.plans import PLANS, SSD_1B, chosen
from tools.gpu_check.results import Machine, Report, State
from tools.gpu_check.runner import NotRunError, Plan, run, start_server


@pytest.fixture(scope="module", autouse=True)
def server():
    """These steps share nothing; by itself the server would import pytest's main module."""
    start_server([])


def good(check):
    check.add("speed", 2.5, "images/s", bar=2.0)
    check.add("PSNR of equal images", float("inf"), "dB")


def slow_bar(check):
    check.add("speed", 1.5, "images/s", bar=2.0)


def failing(check):
    check.add("before the failure", 1)
    raise RuntimeError("the kernel\nis missing")


def hanging(check):
    check.add("before the end", 1)
    time.sleep(3600)


def dying(check):
    check.add("before the death", 1)
    os._exit(7)


def missing(check):
    raise NotRunError("the package ray is not installed")


def deaf(check):
    """A grandchild in a session of its own that ignores SIGTERM and keeps all that is open."""
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        check.add("grandchild", os.getpid())
        time.sleep(600)
    while not check.setting.work.joinpath("0.json").exists():
        time.sleep(0.01)


def deaf_and_hanging(check):
    deaf(check)
    time.sleep(600)


def named(work):
    """A step's function as a plan names it."""
    return f"{work.__module__}:{work.__name__}"


def empty_report(*, rehearse=False):
    return Report(rehearse, "a commit", Machine("a device", "a processor", 2, "3.12", {}))


def run_one(work, folder, *, rehearse=False, seconds=600.0):
    plan = Plan("a step", seconds, named(work))
    report = run([plan], folder, empty_report(rehearse=rehearse))
    return report, report.steps[0]


@pytest.mark.parametrize(
    ("work", "state", "reason", "figures"),
    [
        (failing, State.FAILED, "RuntimeError: the kernel", ["before the failure"]),
        (dying, State.FAILED, "the process died with exit code 7", ["before the death"]),
        (missing, State.NOT_RUN, "the package ray is not installed", []),
    ],
)
def test_a_step_that_does_not_finish_keeps_its_figures(tmp_path, work, state, reason, figures):
    report, step = run_one(work, tmp_path)
    assert (step.state, step.reason) == (state, reason)
    assert [figure.name for figure in step.figures] == figures
    assert not report.is_complete


def test_a_step_beyond_its_time_is_stopped_and_the_next_one_runs(tmp_path):
    plans = [Plan("long", 6.0, named(hanging)), Plan("next", 600.0, named(good))]
    report = run(plans, tmp_path, empty_report())
    assert [step.state for step in report.steps] == [State.TIMED_OUT, State.DONE]
    assert [figure.name for figure in report.steps[0].figures] == ["before the end"]
    assert report.seconds < 300
    log = (tmp_path / "gpu_check.log").read_text()
    assert "Timeout" in log
    assert "in hanging" in log  # where it was


def has_ended(pid, seconds=10.0):
    """Whether the process ends within ``seconds``; a dead one may wait for its parent."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        end = time.monotonic() + seconds
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
    return True


CHECK = """
import sys
from pathlib import Path

from tools.gpu_check.runner import end_descendants, start_server

sys.path.insert(0, str(Path(sys.argv[1]).parent))
module = __import__(Path(sys.argv[1]).stem)
start_server([])
try:
    print(module.run_one(getattr(module, sys.argv[2]), Path(sys.argv[3]), seconds=6.0)[1].state)
finally:
    end_descendants()
"""


@pytest.mark.parametrize(
    ("work", "state"), [(deaf, State.DONE), (deaf_and_hanging, State.TIMED_OUT)]
)
def test_what_a_step_started_keeps_nobody_waiting(tmp_path, work, state):
    """It ends with the step, and neither it nor the server keeps the check's output open."""
    command = [sys.executable, "-c", CHECK, __file__, work.__name__, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    [step] = json.loads((tmp_path / "gpu_check.json").read_text())["steps"]
    assert step["state"] == state.value
    [grandchild] = step["figures"]
    assert has_ended(grandchild["value"])


def test_a_step_ends_with_the_check_that_is_killed(tmp_path):
    command = [sys.executable, "-c", CHECK, __file__, "hanging", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as check:
        end = time.monotonic() + 60
        while "before the end" not in read(tmp_path / "gpu_check.log"):
            assert time.monotonic() < end
            time.sleep(0.05)
        started = psutil.Process(check.pid).children(recursive=True)
        check.kill()
        check.communicate(timeout=30)  # nobody keeps the pipes open
    assert all(has_ended(process.pid) for process in started)


def read(file):
    return file.read_text() if file.exists() else ""


def test_results_are_one_json_file_and_one_page(tmp_path):
    report, _ = run_one(good, tmp_path)
    assert report.is_complete
    data = json.loads((tmp_path / "gpu_check.json").read_text())
    [step] = data["steps"]
    assert step["state"] == "done"
    assert step["figures"][0] == {"name": "speed", "value": 2.5, "unit": "images/s", "bar": 2.0}
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| speed | 2.5 | images/s | 2 | yes |" in page
    assert "| PSNR of equal images | inf | dB |  |  |" in page
    assert "rehearsal" not in page


def test_a_missed_bar_is_said_and_no_bar_applies_in_a_rehearsal(tmp_path):
    report, _ = run_one(slow_bar, tmp_path / "real")
    assert not report.is_complete
    assert "| 2 | **no** |" in (tmp_path / "real" / "gpu_check.md").read_text()
    rehearsal, step = run_one(slow_bar, tmp_path / "rehearsal", rehearse=True)
    assert rehearsal.is_complete
    assert step.figures[0].bar is None
    assert "say nothing about any device" in (tmp_path / "rehearsal" / "gpu_check.md").read_text()


def test_a_step_that_is_chosen_brings_the_one_whose_files_it_needs():
    assert [plan.name for plan in chosen("memory 12")] == [SSD_1B, "--memory 12"]
    assert [plan.name for plan in chosen("scoring")] == ["scoring with ViT-B-32"]
    assert chosen("no such step") == []
    assert chosen(None) == list(PLANS)


def test_without_a_cuda_device_the_check_says_how_to_rehearse(tmp_path):
    import processes  # here, since the processes of other tests import this file

    result = processes.run_module(
        "tools.gpu_check", "-o", str(tmp_path), cwd=tmp_path,
        env={"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert result.returncode == 2
    assert "expected a CUDA device" in result.stderr
    assert "--rehearse" in result.stderr
    assert not (tmp_path / "gpu_check.json").exists()


@pytest.mark.slow
def test_what_all_steps_share_leaves_them_their_device():
    """A process forked from one that has asked CUDA for its devices can use none."""
    code = "import importlib, os, sys, torch\n"
    code += "for name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "child = os.fork() or os._exit(torch.cuda._is_in_bad_fork())\n"
    code += "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    subprocess.run([sys.executable, "-c", code, *SHARED], check=True)


@pytest.mark.slow
def test_every_step_of_the_rehearsal_is_done(tmp_path):
    command = [sys.executable, "-m", "tools.gpu_check", "-o", str(tmp_path), "--rehearse"]
    result = subprocess.run(command, capture_output=True, text=True)
    data = json.loads((tmp_path / "gpu_check.json").read_text())
    ended = {step["name"]: (step["state"], step["reason"]) for step in data["steps"]}
    log = (tmp_path / "gpu_check.log").read_text()
    assert all(end == ("done", "") for end in ended.values()), f"{ended}\n{log[-5000:]}"
    assert len(ended) == len(PLANS) == 11
    assert all(step["figures"] for step in data["steps"])
    figures = [figure for step in data["steps"] for figure in step["figures"]]
    assert [f["name"] for f in figures if f["value"] is False] == []
    assert result.returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "gpu_check.json", "gpu_check.log", "gpu_check.md",
    ]  # fmt: skip


def test_the_wheels_are_fetched_for_the_other_machine(tmp_path, monkeypatch, capsys):
    needed = gpu_wheels.missing(Path("pyproject.toml"), ray=False, python="3.12")

    def fetch(command, **_):
        if "download" in command:
            assert command[command.index("--python-version") + 1] == "3.12"
            for name in needed:
                assert any(word.startswith(f"{name}==") for word in command)
                (tmp_path / "w" / f"{name}.whl").write_bytes(bytes(2**20))
        return subprocess.CompletedProcess(command, 0, stdout=b"pyproject.toml\0")

    monkeypatch.setattr(gpu_wheels.subprocess, "run", fetch)
    monkeypatch.setattr(sys, "argv", ["gpu_wheels", "-o", str(tmp_path / "w")])
    assert gpu_wheels.main() == 0
    assert f"{len(needed)}.0 MiB of wheels" in capsys.readouterr().out
    monkeypatch.setattr(gpu_wheels, "MOST", 2**20)
    for file in (tmp_path / "w").iterdir():
        file.unlink()
    assert gpu_wheels.main() == 1


def test_the_wheels_are_what_pyproject_needs_and_the_machine_lacks(tmp_path, monkeypatch):
    project = tmp_path / "pyproject.toml"
    project.write_text(
        "[project]\n"
        'dependencies = ["torch>=2.6", "New_One>=1", "old; python_version < \'3.12\'"]\n'
        '[project.optional-dependencies]\nray = ["ray>=2"]\n'
    )
    further = {
        "new-one": ["numpy", "its-own", 'docs; extra == "docs"'],
        "its-own": ["new-one"],
        "ray": None,
    }
    monkeypatch.setattr(gpu_wheels, "requires", further.__getitem__)
    assert gpu_wheels.missing(project, ray=False, python="3.12") == ["its-own", "new-one"]
    assert gpu_wheels.missing(project, ray=True, python="3.12") == ["its-own", "new-one", "ray"]
    monkeypatch.setitem(further, "old", [])
    assert "old" in gpu_wheels.missing(project, ray=False, python="3.11")
