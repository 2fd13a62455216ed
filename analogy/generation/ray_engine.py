"""The Ray engine: workers with the models, on the devices of this machine or of a cluster.

The process that owns the run folder sends batches of jobs to the workers and takes the results in
the order of the batches, so that a killed run leaves the same as a killed serial run. If a worker
is lost (its process, its machine), another one gets its batches, and a new worker is started. If
the head or the raylet is lost, the run ends: :class:`Watch`.
"""

from __future__ import annotations

import heapq
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from analogy.generation.engine import (
    BatchWorker,
    Capacity,
    ClusterError,
    ClusterLostError,
    GeneratedBatch,
    ReadPngs,
    Results,
    ScoredBatch,
    Setup,
)
from analogy.generation.ray_watch import (
    HEAD_MAY_BE_SILENT,
    KEPT,
    LOGS,
    LOOK,
    RAYLET_MAY_BE_SILENT,
    Watch,
)
from analogy.generation.ray_worker import ENVIRONMENT, Actor, Batch, WorkerHandle
from analogy.store.grid import AnyJob, Job

#: The errors of waiting for a result if the worker or its machine is lost.
LOST = (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError, OutOfMemoryError)

#: Lost workers after which a batch is taken for the cause. Without a finished batch, the run ends
#: after more than this number for each worker.
MOST_LOST = 3

#: Batches in progress or waiting for their turn, for each one that workers can have at once.
AHEAD = 3

#: Seconds to wait for a worker when none is left.
PATIENCE = 600.0
J = TypeVar("J", bound=AnyJob)


class RayEngine:
    """Ray's workers as an :class:`~analogy.generation.engine.Engine`.

    On CUDA there is one for each GPU, on CPUs one for each machine, or there are ``num_workers``.
    ``n_threads``: threads of each worker on a CPU; None to divide all processors among them. Uses
    the Ray to which this process is connected; otherwise connects to ``ray_address``, or starts Ray
    on this machine. Raises :class:`ClusterError` if it cannot start, and
    :class:`~analogy.generation.engine.ClusterLostError` if the cluster is lost during the work. The
    process is then disconnected from Ray.
    """

    def __init__(
        self, setup: Setup, worker: BatchWorker | None = None, *, n_threads: int | None = None
    ) -> None:
        del worker  # its models are loaded elsewhere
        config = setup.config
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _connect(config.ray_address)
        try:
            self._count, share = shares(config.device, config.num_workers)
        except ClusterError:
            if self._is_ours:
                ray.shutdown()
            raise
        self._n_threads = n_threads or share
        is_alone = config.ray_address is None  # then nobody restarts a lost head
        self._watch = Watch(
            head_may_be_silent=RAYLET_MAY_BE_SILENT if is_alone else HEAD_MAY_BE_SILENT
        )
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._actor = ray.remote(Actor).options(
            num_cpus=self._n_threads,
            num_gpus=int(config.device == "cuda"),
            max_concurrency=self._n_threads + 1,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": environment} if environment else None,
        )
        self._setup = ray.put(setup)
        self._is_gpu = config.device == "cuda"
        self._started = 0
        self._workers: list[WorkerHandle] = []
        self._starting: dict[Any, WorkerHandle] = {}  # by the reference to their start's result
        self._lost = 0  # workers that were lost since the last batch was done
        self._generates = False

    def prepare(self) -> Capacity:
        """Have all workers load the generator; returns the capacity of the first."""
        self._generates = True
        self._start_workers()
        capacity: Capacity = self._ask_one(lambda actor: actor.load.remote())
        return capacity._replace(looks_ahead=True)

    def wait_for_all(self) -> None:
        """Wait until every worker has started; without it, work begins with the first."""
        while self._starting:
            self._finished([])

    def prepare_judge(self) -> None:
        """Have the first worker load the judge; the others do at their first batch."""
        self._start_workers()
        self._ask_one(lambda actor: actor.load_judge.remote())

    def generate(self, batches: Iterable[Batch]) -> Results[AnyJob, GeneratedBatch]:
        """Generate; a worker has a batch for each of its threads, and one more that waits."""
        most = self.prepare().at_once + 1
        return self._each(batches, lambda actor, batch: actor.generate.remote(batch), most)

    def score(self, batches: Iterable[Sequence[Job]], read: ReadPngs) -> Results[Job, ScoredBatch]:
        """Score; a worker has a batch, and one more that waits."""
        self._start_workers()
        return self._each(batches, lambda actor, batch: actor.score.remote(batch, read(batch)), 2)

    def close(self) -> None:
        """Stop the workers, and disconnect from Ray if this engine connected to it."""
        self._watch.end()
        self._stop_workers()
        if self._watch.gone is not None:
            self._watch.let_go()
            return
        if self._is_ours:
            ray.shutdown()

    def _each(
        self, batches: Iterable[Sequence[J]], send: Callable[[Any, Sequence[J]], Any], most: int
    ) -> Results[J, Any]:
        """Each batch with its result and its worker's name, in order.

        A worker has at most ``most`` batches at once. At most ``AHEAD`` times as many as all
        workers can have are in progress, or done and waiting for their turn.
        """
        waiting = enumerate(batches)
        again: list[tuple[int, Sequence[J]]] = []  # a heap: the earliest first
        begun: dict[Any, tuple[int, Sequence[J], WorkerHandle]] = {}
        done: dict[int, tuple[Sequence[J], Any, str]] = {}
        costs: Counter[int] = Counter()
        turn = 0

        def take() -> tuple[int, Sequence[J]] | None:
            if again:
                return heapq.heappop(again)
            is_open = len(begun) + len(done) < AHEAD * most * len(self._workers)
            return next(waiting, None) if is_open else None

        try:
            while True:
                while (worker := self._with_room(most)) and (taken := take()):
                    self._check_cluster()
                    begun[send(worker.actor, taken[1])] = (*taken, worker)
                    worker.busy += 1
                if worker and not begun:  # then all that were begun have had their turn
                    return
                for reference in self._finished(begun):
                    index, batch, worker = begun.pop(reference)
                    worker.busy -= 1
                    try:
                        done[index] = batch, self._get(reference), worker.name
                        self._lost = 0
                    except LOST as error:
                        heapq.heappush(again, (index, batch))
                        costs[index] += 1
                        if costs[index] >= MOST_LOST:
                            raise _lost(
                                f"{costs[index]} workers were lost at the batch that begins with "
                                f"{batch[0].what}",
                                error,
                            ) from error
                        self._replace(worker, error)
                while turn in done:
                    yield done.pop(turn)
                    turn += 1
        finally:
            if begun:  # stopped early: nobody will take these
                self._stop_workers()

    def _ask_one(self, ask: Callable[[Any], Any]) -> Any:
        """What the first worker returns, or the next one if it is lost."""
        while True:
            while not self._workers:
                self._finished([])
            try:
                return self._get(ask(self._workers[0].actor))
            except LOST as error:
                self._replace(self._workers[0], error)

    def _with_room(self, most: int) -> WorkerHandle | None:
        """The least busy worker, if it may have another batch."""
        worker = min(self._workers, key=lambda worker: worker.busy, default=None)
        return None if worker is None or worker.busy >= most else worker

    def _finished(self, begun: Iterable[Any]) -> list[Any]:
        """Wait until one of ``begun`` is done, or a worker has started; return those done.

        Raises :class:`ClusterError` if there is no worker for ``PATIENCE`` seconds.
        """
        begun = list(begun)
        end = time.monotonic() + PATIENCE
        finished: list[Any] = []
        while not finished:
            self._check_cluster()
            finished, _ = ray.wait([*begun, *self._starting], timeout=LOOK)
            if not (finished or self._workers) and time.monotonic() > end:
                raise ClusterError(
                    f"expected a worker within {PATIENCE:g} s, got none of {self._count}: the "
                    f"cluster has no room for one with {self._n_threads} processors"
                    f"{' and a GPU' if self._is_gpu else ''} (ray status). {KEPT}"
                )
        for reference in finished:
            if reference in self._starting:
                self._add_started(reference)
        return [reference for reference in begun if reference in finished]

    def _get(self, reference: Any) -> Any:
        """What an actor returned. Raises the error that the actor itself raised."""
        while True:
            self._check_cluster()
            try:
                return ray.get(reference, timeout=LOOK)
            except GetTimeoutError:
                continue
            except RayTaskError as error:
                raise (error.cause or error) from error

    def _check_cluster(self) -> None:
        """Raise ``ClusterLostError`` if the cluster is lost, before Ray ends the process."""
        if self._watch.gone is None:
            return
        self._workers.clear()
        self._starting.clear()
        self._watch.let_go()
        raise ClusterLostError(
            f"--engine ray: {self._watch.gone} answers no more, and the cluster is lost with it; "
            f"see Ray's logs in {LOGS}. {KEPT}"
        )

    def _start_workers(self) -> None:
        """Ask Ray for the missing workers; they are used once they have started."""
        self._check_cluster()
        while len(self._workers) + len(self._starting) < self._count:
            self._started += 1
            actor: Any = self._actor.remote(self._setup, self._n_threads)
            started = actor.start.remote(generates=self._generates)
            self._starting[started] = WorkerHandle(actor, self._started)

    def _add_started(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            device, address = self._get(reference)
        except LOST as error:
            self._count_loss(error)
        else:
            worker.name = f"{address} {device} {worker.number}"
            self._workers.append(worker)

    def _replace(self, worker: WorkerHandle, error: Exception) -> None:
        """Start another worker for one that is lost; Ray reports each of its batches as lost."""
        self._check_cluster()
        if worker in self._workers:
            self._workers.remove(worker)
            ray.kill(worker.actor)
            self._count_loss(error)

    def _count_loss(self, error: Exception) -> None:
        self._lost += 1
        if self._lost > MOST_LOST * self._count:
            raise _lost(
                f"{self._lost} workers were lost one after another, with no batch done", error
            ) from error
        self._start_workers()

    def _stop_workers(self) -> None:
        if self._watch.gone is None:
            for worker in [*self._workers, *self._starting.values()]:
                ray.kill(worker.actor)
        self._workers.clear()
        self._starting.clear()


def shares(device: str, num_workers: int | None) -> tuple[int, int]:
    """The number of workers, and threads of each, on the machines that Ray has now.

    ``num_workers``: None for one for each GPU, or on CPUs for each machine. Raises
    :class:`ClusterError` if it is more than there are GPUs or processors.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kind = "GPU" if device == "cuda" else "CPU"
    have = [int(resources.get(kind, 0)) for resources in machines]
    if not any(have) or (num_workers or 1) > sum(have):
        raise ClusterError(
            f"--engine ray: expected {num_workers or 'a worker or more'} with a {kind} each, but "
            f"Ray has {sum(have)}; see ray status, or ask for fewer with --num-workers"
        )
    if kind == "GPU":
        return num_workers or sum(have), 1
    with_some = [count for count in have if count]
    count = num_workers or len(with_some)
    return count, min(sum(have) // count, *with_some)


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends no statistics of its use
    settings: dict[str, Any] = {"address": address}
    if address is None:
        settings = {
            "address": "local",
            "num_cpus": torch.get_num_threads(),
            "num_gpus": torch.cuda.device_count(),
            "include_dashboard": False,
        }
    try:
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        if host and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10.0).close()
        ray.init(**settings, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"--engine ray: expected Ray to start on this machine; its logs are in {LOGS}"
        if address is not None:
            what = f"--ray-address {address}: expected a Ray cluster that answers"
        raise ClusterError(f"{what} ({_first_line(error)})") from error


def _lost(what: str, error: Exception) -> ClusterError:
    return ClusterError(f"{what}: {_first_line(error)}; see Ray's logs in {LOGS}. {KEPT}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
