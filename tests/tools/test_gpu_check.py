"""The check for a GPU: each way in which a step ends, and a rehearsal of every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tools import gpu_wheels
from tools.gpu_check.__main__ import SHARED
from tools.gpu_check.results import State
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


def run_one(work, folder, *, rehearse=False, seconds=600.0):
    report = run([Plan("a step", seconds, work)], folder, rehearse=rehearse)
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
    # The first one starts the server that the others are forked from, which takes its time.
    plans = [Plan("first", 600.0, good), Plan("long", 8.0, hanging), Plan("next", 600.0, good)]
    report = run(plans, tmp_path, rehearse=False)
    assert [step.state for step in report.steps] == [State.DONE, State.TIMED_OUT, State.DONE]
    assert [figure.name for figure in report.steps[1].figures] == ["before the end"]


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


def test_without_a_cuda_device_the_check_says_how_to_rehearse(tmp_path):
    command = [sys.executable, "-m", "tools.gpu_check", "-o", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "expected a CUDA device" in result.stderr
    assert "--rehearse" in result.stderr
    assert not list(tmp_path.iterdir())


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
    assert len(ended) == 11
    assert all(step["figures"] for step in data["steps"])
    figures = [figure for step in data["steps"] for figure in step["figures"]]
    assert [f["name"] for f in figures if f["value"] is False] == []
    assert result.returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "gpu_check.json", "gpu_check.log", "gpu_check.md",
    ]  # fmt: skip


def test_the_wheels_are_fetched_for_the_other_machine(tmp_path, monkeypatch, capsys):
    def fetch(command, **_):
        if "download" in command:
            assert command[command.index("--python-version") + 1] == "3.12"
            for name in gpu_wheels.MISSING:
                assert any(word.startswith(f"{name}==") for word in command)
                (tmp_path / "w" / f"{name}.whl").write_bytes(bytes(2**20))
        return subprocess.CompletedProcess(command, 0, stdout=b"pyproject.toml\0")

    monkeypatch.setattr(gpu_wheels.subprocess, "run", fetch)
    monkeypatch.setattr(sys, "argv", ["gpu_wheels", "-o", str(tmp_path / "w")])
    assert gpu_wheels.main() == 0
    assert "6.0 MiB of wheels" in capsys.readouterr().out
    monkeypatch.setattr(gpu_wheels, "MOST", 2**20)
    for file in (tmp_path / "w").iterdir():
        file.unlink()
    assert gpu_wheels.main() == 1
