"""A Ray head or raylet that dies in the middle: an error of ours, before Ray ends the process."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import processes
import psutil
import pytest
from cases import ROOT
from echo import Echo, setup

from analogy.generation.engine import ClusterLostError

ray = pytest.importorskip("ray")

from analogy.generation import ray_engine as cluster  # noqa: E402
from analogy.generation import ray_watch  # noqa: E402
from analogy.generation.ray_engine import RayEngine  # noqa: E402


@pytest.fixture
def engine(config, monkeypatch):
    """One worker that echoes, by a Ray of this test alone."""
    here = str(ROOT / "tests")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(cluster, "Actor", Echo)
    if ray.is_initialized():
        ray.shutdown()
    made = RayEngine(setup(replace(config, num_workers=1)))
    yield made
    made.close()
    assert not ray.is_initialized()


def kill(name, of=None):
    """Kill a server of Ray's among the children of a process, this one by default."""
    [found] = [c for c in psutil.Process(of).children(recursive=True) if c.name() == name]
    found.kill()


def draw(actor, batch):
    return actor.generate.remote(batch)


@pytest.mark.parametrize(("server", "said"), [("raylet", "the raylet"), ("gcs_server", "the head")])
def test_a_server_that_dies_in_the_middle_ends_the_run_and_not_the_process(engine, server, said):
    engine._start_workers()
    results = engine._each((["slow"] for _ in range(1000)), draw, 1)
    next(results)
    kill(server)
    with pytest.raises(ClusterLostError, match=f"{said} at .* answers no more.*the same command"):
        list(results)
    assert not ray.is_initialized()
    engine.close()


@pytest.mark.slow
def test_a_raylet_that_dies_while_this_process_is_busy_is_let_go_of_all_the_same(engine):
    """Between two batches the run may score or judge for longer than Ray waits."""
    engine._start_workers()
    kill("raylet")
    time.sleep(15)
    with pytest.raises(ClusterLostError, match="the raylet"):
        engine._start_workers()


def test_a_server_that_never_answered_is_not_missed(engine, monkeypatch):
    monkeypatch.setattr(ray_watch, "_answers", lambda address: False)
    assert ray_watch.Watch()._servers == {}


@pytest.mark.slow
def test_the_whole_way_ends_with_an_exit_code_of_its_own_and_the_table(tmp_path):
    process = processes.start_module(
        "analogy", "run", "--engine=ray", "--num-workers=1", "--alphas=1", "--seeds=0",
        "--categories=color,size", "--batch-size=2", "--steps=80", "--run-dir=run", cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.monotonic() + 600
    while not list(tmp_path.rglob("*.png")) and time.monotonic() < end:
        time.sleep(0.2)
    kill("raylet", process.pid)
    done = processes.end_module(process)
    assert done.returncode == 5
    assert "analogy: --engine ray: the raylet at " in done.stderr
    assert "color" in done.stdout
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert {cell["verdict"] for cell in cells} == {"incomplete"}
