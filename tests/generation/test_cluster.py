"""Ray's engine: a serial run's images, whatever the number of workers and their fate."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cases import ROOT
from echo import Echo, Stillborn, setup
from extras import extra
from verbs import verb

from analogy.core.errors import ModelError
from analogy.generation.engine import ClusterError, Setup
from analogy.generation.execution import Execution
from analogy.models.places import ModelSource
from analogy.store.folder import RunFolder
from analogy.store.grid import Grid

ray = extra("ray")

from analogy.generation import ray_engine as cluster  # noqa: E402
from analogy.generation import ray_worker  # noqa: E402
from analogy.generation.ray_engine import AHEAD, MOST_LOST, RayEngine, shares  # noqa: E402
from analogy.generation.ray_worker import Actor  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def environment():
    """What the processes of Ray inherit: where these tests' actors are."""
    with pytest.MonkeyPatch.context() as patch:
        here = [str(ROOT / "tests"), str(Path(__file__).parent)]
        patch.setenv("PYTHONPATH", os.pathsep.join([*here, os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def local(environment):
    """A Ray of two processors on this machine, for the module."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


# --- the order of work, with workers that hold no models


@pytest.fixture
def echo(local, config, monkeypatch):
    """Have workers echo: what comes back from a list of batches, and the engine."""
    engines = []

    def make(workers=2, actor=Echo):
        monkeypatch.setattr(cluster, "Actor", actor)
        engine = RayEngine(setup(replace(config, num_workers=workers)))
        engines.append(engine)
        engine._start_workers()
        if actor is Echo:
            engine.wait_for_all()
        return engine

    yield make
    for engine in engines:
        engine.close()


def results(engine, words, most=2):
    batches = ([word] for word in words)
    return [(b[0], r[0]) for b, r, _ in engine._each(batches, _draw, most)]


def _draw(actor, batch):
    return actor.generate.remote(batch)


def test_results_come_in_the_order_of_the_batches_from_all_workers(echo):
    engine = echo()
    words = ["slow", *map(str, range(20)), "slow", "20"]
    found = list(engine._each(([word] for word in words), _draw, 2))
    assert [batch[0] for batch, _, _ in found] == words
    assert [result[0] for _, result, _ in found] == words
    assert len({result[1] for _, result, _ in found}) == 2
    assert {name.split()[-1] for _, _, name in found} == {"1", "2"}


def test_no_more_is_begun_than_there_is_room_for(echo):
    engine = echo()
    asked = []

    def batches():
        for i in range(200):
            asked.append(i)
            yield [str(i)]

    for taken, _ in enumerate(engine._each(batches(), _draw, 2), 1):
        assert len(asked) - taken <= AHEAD * 2 * 2
    assert taken == len(asked) == 200


def test_a_worker_that_is_killed_costs_nothing_but_time(echo, tmp_path):
    engine = echo()
    words = [f"once{tmp_path / 'a'}", "1", "2", f"once{tmp_path / 'b'}", *map(str, range(3, 9))]
    assert results(engine, words) == [(word, word) for word in words]
    assert len(engine._workers) + len(engine._starting) == 2


def test_a_batch_that_kills_every_worker_is_named(echo):
    engine = echo()
    batch = [type("Job", (str,), {"what": {"pair_id": "color-1", "alpha": 0.5}})("die")]
    with pytest.raises(
        ClusterError, match=rf"{MOST_LOST} workers were lost at the batch that"
    ) as e:
        list(engine._each([["0"], batch, ["1"]], _draw, 1))
    assert "color-1" in str(e.value)
    assert "the same command goes on from there" in str(e.value)


def test_workers_that_never_start_end_the_run(echo):
    engine = echo(actor=Stillborn)
    with pytest.raises(ClusterError, match="workers were lost one after another"):
        results(engine, ["0"])


def test_an_error_of_the_work_is_raised_as_what_it_is(echo):
    with pytest.raises(LookupError, match="no such model"):
        results(echo(), ["0", "refuse", "1"])


def test_who_stops_early_leaves_no_worker_at_work(echo):
    engine = echo()
    given = engine._each(([word] for word in ["0", *["slow"] * 50]), _draw, 2)
    next(given)
    given.close()
    assert engine._workers == []
    engine._start_workers()
    assert results(engine, ["0", "1"]) == [("0", "0"), ("1", "1")]


def test_a_cluster_without_room_is_said_after_some_patience(echo, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    monkeypatch.setattr(cluster, "shares", lambda *_: (1, 64))
    with pytest.raises(ClusterError, match=r"no room for one with 64 processors \(ray status\)"):
        echo()


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [("cpu", None, (1, 2)), ("cpu", 1, (1, 2)), ("cpu", 2, (2, 1))],
)
def test_processors_are_shared_out(local, device, workers, expected):
    assert shares(device, workers) == expected


@pytest.mark.parametrize(("device", "workers"), [("cpu", 3), ("cuda", None), ("cuda", 1)])
def test_more_workers_than_devices_are_refused(local, device, workers):
    with pytest.raises(ClusterError, match="ask for fewer with --num-workers"):
        shares(device, workers)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    def init(**_):
        raise ConnectionError("nobody there\nand a trace")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match=r"--ray-address auto: .* answers \(nobody there\)$"):
        cluster._connect("auto")
    with pytest.raises(ClusterError, match=r"--ray-address 127.0.0.1:1: .* \(.*refused\)$"):
        cluster._connect("127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"start on this machine; .*logs \(nobody"):
        cluster._connect(None)


# --- files on other machines


def test_a_model_that_is_in_the_same_place_is_taken_from_there(config, model_source, judge_source):
    found = ray_worker.found_here(Setup(config, (), model_source, judge_source), "10.0.0.1")
    assert found.model is model_source
    assert found.judge is judge_source


def test_a_model_that_is_elsewhere_is_found_by_its_name(
    config, model_source, judge_source, tmp_path
):
    model = ModelSource(tmp_path / "away", model_source.fingerprint)
    judge = replace(judge_source, name=f"local-dir:{tmp_path / 'away'}")
    found = ray_worker.found_here(Setup(config, (), model, judge), "10.0.0.1")
    assert (found.model, found.judge) == (model_source, judge_source)


def test_another_model_of_that_name_is_refused(config, model_source, judge_source, tmp_path):
    away = ModelSource(tmp_path / "away", "mine@sha256:0")
    with pytest.raises(ModelError, match=r"10\.0\.0\.1: expected mine@sha256:0 in .* share"):
        ray_worker.found_here(Setup(config, (), away, judge_source), "10.0.0.1")
    away = replace(judge_source, name=f"local-dir:{tmp_path / 'away'}", fingerprint="mine")
    with pytest.raises(ModelError, match=r"10\.0\.0\.1: expected mine in .* share"):
        ray_worker.found_here(Setup(config, (), model_source, away), "10.0.0.1")


# --- the whole way


@pytest.fixture(scope="module")
def make_run(config, pairs, model_source, judge_source):
    """Open a run of 60 images in batches of 5, in a folder."""
    settings = replace(config, batch_size=5, steps=4)
    folders = []

    def make(path, **changed):
        mine = replace(settings, **changed)
        folder = RunFolder(path)
        folders.append(folder)
        jobs = Grid(mine, model_source.fingerprint, "Euler/1", pairs[:10]).jobs()
        return Execution(Setup(mine, pairs[:10], model_source, judge_source), folder), jobs, folder

    yield make
    for folder in folders:
        folder.close()


@pytest.fixture(scope="module")
def alone(make_run, tmp_path_factory):
    """What one process draws and scores: key to SHA-256, and the margins."""
    run, jobs, folder = make_run(tmp_path_factory.mktemp("alone"))
    groups = jobs[:24], jobs[12:]
    for group in groups:
        run.generate(group)
    run.score(jobs)
    return groups, hashes(folder), folder.margins(jobs, run._judge)


def hashes(folder):
    return {row.key: row.sha256 for row in folder.image_rows()}


@pytest.mark.numerics
def test_a_worker_steers_by_every_kind_of_method(local, tmp_path):
    """By step, by guidance, by weights, by activations, and by one of the user's own: as one
    process does, in one comparison.
    """
    found = []
    for name, engine in (("alone", []), ("worker", ["--engine=ray", "--num-workers=1"])):
        done = verb(
            "methods", "--methods=span,switch,guidance,slider,activation,prompt,own:pooled",
            "--categories=color", "--limit=6", "--seeds=0", "--steps=2", "--batch-size=8",
            "--dtype=float32", f"--run-dir={tmp_path / name}", *engine,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        folder = RunFolder(tmp_path / name, read_only=True)
        found.append(hashes(folder))
        whats = {row.key: json.loads(row.what) for row in folder.image_rows()}
        folder.close()
    assert len(found[0]) == 6 * (1 + 6 * 3 + 1)
    own = [key for key, what in whats.items() if what.get("method") == "own:pooled"]
    assert len({found[0][key] for key in own}) == len(own) == 6 * 3
    assert found[0] == found[1]


@pytest.fixture
def slow(monkeypatch):
    """Time to kill: workers that take a while over each batch."""
    monkeypatch.setattr(cluster, "Actor", Slow)


class Slow(Actor):
    """Draws with pauses."""

    def generate(self, jobs):
        time.sleep(0.5)
        return super().generate(jobs)

    def pid(self):
        return os.getpid()


@pytest.mark.numerics
def test_two_workers_go_on_with_a_run_bit_for_bit_though_one_is_killed(
    local, make_run, alone, tmp_path, slow
):
    groups, expected, margins = alone
    run, _, folder = make_run(tmp_path)
    run.generate(groups[0][:10])  # by one process
    folder.close()
    run, jobs, folder = make_run(tmp_path, engine="ray", num_workers=2)
    counts, killed = [], []

    def kill(count):
        counts.append(count)
        if not killed:
            killed.append(ray.get(run.engine._workers[0].actor.pid.remote()))
            os.kill(killed[0], signal.SIGKILL)

    try:
        run.generate(groups[0], kill, ahead=groups)
        assert killed
        assert sum(counts) == 60 - 10
        assert hashes(folder) == expected
        assert run.missing(jobs) == []
        run.score(jobs)
    finally:
        run.close()
    found = folder.margins(jobs, run._judge)
    assert (found["margin"] - margins["margin"]).abs().max() < 1e-6
    rates = folder.worker_rates()
    assert 2 <= len(rates) <= 3  # the killed one may have finished a batch
    assert all(rate > 0 for rate in rates.values())


@pytest.mark.numerics
def test_a_machine_that_is_lost_in_the_middle_leaves_the_run_complete(
    make_run, alone, tmp_path, slow
):
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    groups, expected, _ = alone
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [machines.add_node(num_cpus=1) for _ in range(2)]
        machines.wait_for_nodes()
        run, _, folder = make_run(
            tmp_path, engine="ray", ray_address=machines.address, num_workers=2
        )
        lost = []

        def lose(count):
            if len(run.engine._workers) == 2 and not lost:
                lost.append(nodes.pop())
                machines.remove_node(lost[0])

        try:
            run.generate(groups[0], lose, ahead=groups[1:])
            assert sum(node["Alive"] for node in ray.nodes()) == 2  # the head and the other
        finally:
            run.close()
        assert lost
        assert hashes(folder) == expected
    finally:
        if ray.is_initialized():
            ray.shutdown()
        machines.shutdown()
