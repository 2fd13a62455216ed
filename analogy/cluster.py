"""Ray's engine: workers on the devices of this machine or of a cluster, which hold the models.

The process that owns the run folder sends batches of jobs to the workers and takes the results in
the order of the batches, so that a run that is killed leaves what a serial one leaves. A worker
that is lost (its process, its machine) loses what it was at; another gets that, and its place is
filled. A lost head or raylet ends the run: :class:`Watch`.
"""

from __future__ import annotations

import heapq
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TypeAlias, TypeVar

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

from analogy.execute import Batch, ClusterError, ClusterLostError, Read, Results
from analogy.judges import FoundJudge, find_judge
from analogy.models import ModelError, ModelSource, find_pipeline
from analogy.records import Pair, RunConfig
from analogy.work import Drawn, Ready, Seen, Worker

#: What a lost worker, or a lost machine, looks like to who waits for its result.
LOST = (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError, OutOfMemoryError)

#: Workers that a batch, or a start, may cost before it is taken for the cause.
MOST_LOST = 3

#: Batches that may be begun for each that is at work: results wait for those before them.
AHEAD = 3

#: Seconds to wait for a worker when none is left.
PATIENCE = 600.0

#: Seconds between two looks at the cluster, and for which one of its two servers on which this
#: process depends may give no answer. Ray's native code ends the whole process, with exit code 1,
#: about 10 s after a raylet was lost and 60 s after a head was, which may come back until then.
LOOK = 1.0
RAYLET_MAY_BE_SILENT, HEAD_MAY_BE_SILENT = 2.0, 20.0

#: Seconds after which a lost cluster is let go of, whatever else this process is busy with.
BUSY = 3.0

#: Where Ray writes what its processes say, and what every message about a lost run ends with.
LOGS = "/tmp/ray/session_latest/logs"
KEPT = "What was done is kept; the same command goes on from there"

#: What of the environment workers on other machines must have, too.
ENVIRONMENT = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")

#: Configuration, pairs, model, judge.
Given: TypeAlias = tuple[RunConfig, Sequence[Pair], ModelSource, FoundJudge]
S = TypeVar("S", ModelSource, FoundJudge)


class Actor:
    """A worker in a process of its own, with the device that Ray gives it."""

    def __init__(self, given: Given, threads: int) -> None:
        self._config, self._pairs, self._model, self._judge = given
        self._threads = threads
        self._lock = Lock()
        self._ready: Ready | None = None

    def start(self, *, is_to_draw: bool) -> tuple[str, str]:
        """Find the models' files here, and load the generator if asked: device and address."""
        device, address = self._config.device, ray.util.get_node_ip_address()
        if device == "cuda" and not torch.cuda.is_available():
            raise ClusterError(
                f"--device cuda: expected a CUDA device on {address}, but torch "
                f"{torch.__version__} sees none; check nvidia-smi there"
            )
        model, judge = _here(self._model, self._judge, self._config, address)
        self._worker = Worker(self._config, self._pairs, model, judge)
        if is_to_draw:
            self.load()
        return torch.cuda.get_device_name() if device == "cuda" else device, address

    def load(self) -> Ready:
        """Load the generator, once: while others draw, the threads are not to be set again."""
        with self._lock:
            if self._ready is None:
                torch.set_num_threads(self._threads)
                self._ready = self._worker.prepare()
            return self._ready

    def load_judge(self) -> None:
        """Load the judge, once."""
        with self._lock:
            self._worker.judge  # noqa: B018

    def draw(self, jobs: Batch) -> Drawn:
        """Generate one batch; called by several threads."""
        self.load()
        return self._worker.draw(jobs)

    def see(self, jobs: Batch, pngs: Sequence[bytes]) -> Seen:
        """Score one batch, with all threads."""
        with self._lock:
            torch.set_num_threads(self._threads)
            return self._worker.see(jobs, pngs)


def _here(
    model: ModelSource, judge: FoundJudge, config: RunConfig, address: str
) -> tuple[ModelSource, FoundJudge]:
    """The models on this machine: in the same place, or what their names stand for here."""

    def found(source: S, places: Sequence[Path], find: Callable[[], S]) -> S:
        if all(place.exists() for place in places):
            return source
        with suppress(ModelError):
            here = find()
            if here.fingerprint == source.fingerprint:
                return here
        raise ModelError(
            f"{address}: expected {source.fingerprint} in {', '.join(map(str, places))}, as on the "
            "machine that began the run; put it into a folder that all machines share"
        )

    return (
        found(
            model,
            model.places,
            lambda: find_pipeline(config.base_model, dtype=config.dtype, lora=config.lora),
        ),
        found(
            judge,
            judge.places,
            lambda: find_judge(config.clip_model, config.clip_pretrained).in_dtype(judge.dtype),
        ),
    )


@dataclass(eq=False, slots=True)
class Hand:
    """A worker as the run's own process sees it; ``busy``: batches that it has."""

    actor: Any
    number: int
    name: str = ""
    busy: int = 0


Address: TypeAlias = tuple[str, int]


class Watch:
    """Whether the cluster that this process is connected to still answers; looks from a thread.

    ``gone``: what does not, and None as long as all do. Ray's native code ends a process that has
    lost its raylet or the head, without any exception, unless the process lets go of Ray before.
    A server that did not answer at the beginning (behind a firewall) is not watched, nor is
    anything with a Ray client, which has neither.
    """

    def __init__(self, *, head_may_be_silent: float = HEAD_MAY_BE_SILENT) -> None:
        self.gone: str | None = None
        self._ended = Event()
        self._letting_go = Lock()
        allowed = {"raylet": RAYLET_MAY_BE_SILENT, "head": head_may_be_silent}
        self._servers = {
            (name, address): allowed[name]
            for name, address in _servers().items()
            if _answers(address)
        }
        if self._servers:
            Thread(target=self._look, name="watch over Ray", daemon=True).start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def let_go(self) -> None:
        """Disconnect from a cluster that is gone."""
        self.end()
        with self._letting_go, suppress(Exception):  # nothing else is to be said of it
            ray.shutdown()

    def _look(self) -> None:
        answered = dict.fromkeys(self._servers, time.monotonic())
        while not self._ended.wait(LOOK):
            for server, allowed in self._servers.items():
                (name, address), now = server, time.monotonic()
                if _answers(address):
                    answered[server] = now
                elif now - answered[server] >= allowed:
                    self.gone = f"the {name} at {address[0]}:{address[1]}"
                    if not self._ended.wait(BUSY):
                        self.let_go()
                    return


def _servers() -> dict[str, Address]:
    """Where this process's raylet and the cluster's head listen; empty with a Ray client."""
    if ray.util.client.ray.is_connected():
        return {}
    context = ray.get_runtime_context()
    found = {}
    host, _, port = str(context.gcs_address).rpartition(":")
    if port.isdigit():
        found["head"] = host.strip("[]"), int(port)
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            found["raylet"] = node["NodeManagerAddress"], int(node["NodeManagerPort"])
    return found


def _answers(address: Address) -> bool:
    try:
        socket.create_connection(address, timeout=5.0).close()
    except OSError:
        return False
    return True


class RayEngine:
    """Ray's workers as an :class:`~analogy.execute.Engine`.

    On CUDA one for each GPU, on CPUs one for each machine, or ``num_workers``. ``threads``: of each
    on a CPU [default: what there is, shared out]. Uses the Ray that runs in this process, or else
    connects to ``ray_address``, or else starts one on this machine. Raises :class:`ClusterError`;
    where the cluster is lost in the middle, :class:`~analogy.execute.ClusterLostError`, after which
    this process is connected to none.
    """

    def __init__(
        self,
        config: RunConfig,
        pairs: Sequence[Pair],
        model: ModelSource,
        judge: FoundJudge,
        *,
        threads: int | None = None,
    ) -> None:
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _connect(config.ray_address)
        try:
            self._count, share = shares(config.device, config.num_workers)
        except ClusterError:
            if self._is_ours:
                ray.shutdown()
            raise
        self._threads = threads or share
        is_alone = config.ray_address is None  # then nobody brings the head back
        self._watch = Watch(
            head_may_be_silent=RAYLET_MAY_BE_SILENT if is_alone else HEAD_MAY_BE_SILENT
        )
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._actor = ray.remote(Actor).options(
            num_cpus=self._threads,
            num_gpus=int(config.device == "cuda"),
            max_concurrency=self._threads + 1,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": environment} if environment else None,
        )
        self._given = ray.put((config, pairs, model, judge))
        self._is_gpu = config.device == "cuda"
        self._hired = 0
        self._hands: list[Hand] = []
        self._joining: dict[Any, Hand] = {}  # by the reference to what their start will say
        self._lost = 0  # one after another, with no batch done in between
        self._is_to_draw = False

    def prepare(self) -> Ready:
        """Have all workers load the generator; what the first of them says."""
        self._is_to_draw = True
        self._hire()
        ready: Ready = self._ask_one(lambda actor: actor.load.remote())
        return ready

    def wait_for_all(self) -> None:
        """Wait until every worker has started; without it, work begins with the first."""
        while self._joining:
            self._finished([])

    def prepare_judge(self) -> None:
        """Have the first worker load the judge; the others do at their first batch."""
        self._hire()
        self._ask_one(lambda actor: actor.load_judge.remote())

    def draw(self, batches: Iterable[Batch]) -> Results[Drawn]:
        """Generate; a worker has a batch for each of its threads, and the next one."""
        most = self.prepare().at_once + 1
        return self._each(batches, lambda actor, batch: actor.draw.remote(batch), most)

    def see(self, batches: Iterable[Batch], read: Read) -> Results[Seen]:
        """Score; a worker has a batch, and the next one."""
        self._hire()
        return self._each(batches, lambda actor, batch: actor.see.remote(batch, read(batch)), 2)

    def close(self) -> None:
        """Let go of the workers, and of Ray if it is ours."""
        self._watch.end()
        self._dismiss()
        if self._watch.gone is not None:
            self._watch.let_go()
            return
        if self._is_ours:
            ray.shutdown()

    def _each(
        self, batches: Iterable[Batch], send: Callable[[Any, Batch], Any], most: int
    ) -> Results[Any]:
        """Each batch with its result and its worker's name, in order; ``most`` at once with each.

        No more than ``AHEAD`` times as many are begun, or done and waiting for their turn.
        """
        waiting = enumerate(batches)
        again: list[tuple[int, Batch]] = []  # a heap: the earliest first
        begun: dict[Any, tuple[int, Batch, Hand]] = {}
        done: dict[int, tuple[Batch, Any, str]] = {}
        costs: Counter[int] = Counter()
        turn = 0

        def take() -> tuple[int, Batch] | None:
            if again:
                return heapq.heappop(again)
            is_open = len(begun) + len(done) < AHEAD * most * len(self._hands)
            return next(waiting, None) if is_open else None

        try:
            while True:
                while (hand := self._with_place(most)) and (taken := take()):
                    self._check_cluster()
                    begun[send(hand.actor, taken[1])] = (*taken, hand)
                    hand.busy += 1
                if hand and not begun:  # then all that were begun have had their turn
                    return
                for reference in self._finished(begun):
                    index, batch, hand = begun.pop(reference)
                    hand.busy -= 1
                    try:
                        done[index] = batch, self._get(reference), hand.name
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
                        self._replace(hand, error)
                while turn in done:
                    yield done.pop(turn)
                    turn += 1
        finally:
            if begun:  # stopped early: nobody will take these
                self._dismiss()

    def _ask_one(self, ask: Callable[[Any], Any]) -> Any:
        """What the first worker says, or who comes after it if it is lost."""
        while True:
            while not self._hands:
                self._finished([])
            try:
                return self._get(ask(self._hands[0].actor))
            except LOST as error:
                self._replace(self._hands[0], error)

    def _with_place(self, most: int) -> Hand | None:
        """The least busy worker, if it may have another batch."""
        hand = min(self._hands, key=lambda hand: hand.busy, default=None)
        return None if hand is None or hand.busy >= most else hand

    def _finished(self, begun: Iterable[Any]) -> list[Any]:
        """Wait until one of ``begun`` is done, or a worker has joined: those that are done."""
        begun = list(begun)
        end = time.monotonic() + PATIENCE
        finished: list[Any] = []
        while not finished:
            self._check_cluster()
            finished, _ = ray.wait([*begun, *self._joining], timeout=LOOK)
            if not (finished or self._hands) and time.monotonic() > end:
                raise ClusterError(
                    f"expected a worker within {PATIENCE:g} s, got none of {self._count}: the "
                    f"cluster has no room for one with {self._threads} processors"
                    f"{' and a GPU' if self._is_gpu else ''} (ray status). {KEPT}"
                )
        for reference in finished:
            if reference in self._joining:
                self._join(reference)
        return [reference for reference in begun if reference in finished]

    def _get(self, reference: Any) -> Any:
        """What an actor returned, or the error that it raised itself."""
        while True:
            self._check_cluster()
            try:
                return ray.get(reference, timeout=LOOK)
            except GetTimeoutError:
                continue
            except RayTaskError as error:
                raise (error.cause or error) from error

    def _check_cluster(self) -> None:
        """End the run where the cluster is gone, and let go of it, before Ray ends the process."""
        if self._watch.gone is None:
            return
        self._hands.clear()
        self._joining.clear()
        self._watch.let_go()
        raise ClusterLostError(
            f"--engine ray: {self._watch.gone} answers no more, and the cluster is lost with it; "
            f"see Ray's logs in {LOGS}. {KEPT}"
        )

    def _hire(self) -> None:
        """Ask Ray for as many workers as are lacking; they join when they have started."""
        self._check_cluster()
        while len(self._hands) + len(self._joining) < self._count:
            self._hired += 1
            hand = Hand(self._actor.remote(self._given, self._threads), self._hired)
            self._joining[hand.actor.start.remote(is_to_draw=self._is_to_draw)] = hand

    def _join(self, reference: Any) -> None:
        hand = self._joining.pop(reference)
        try:
            device, address = self._get(reference)
        except LOST as error:
            self._count_loss(error)
        else:
            hand.name = f"{address} {device} {hand.number}"
            self._hands.append(hand)

    def _replace(self, hand: Hand, error: Exception) -> None:
        """Have another in the place of a worker that is lost; what it had comes back by itself."""
        self._check_cluster()
        if hand in self._hands:
            self._hands.remove(hand)
            ray.kill(hand.actor)
            self._count_loss(error)

    def _count_loss(self, error: Exception) -> None:
        self._lost += 1
        if self._lost > MOST_LOST * self._count:
            raise _lost(
                f"{self._lost} workers were lost one after another, with no batch done", error
            ) from error
        self._hire()

    def _dismiss(self) -> None:
        if self._watch.gone is None:
            for hand in [*self._hands, *self._joining.values()]:
                ray.kill(hand.actor)
        self._hands.clear()
        self._joining.clear()


def shares(device: str, num_workers: int | None) -> tuple[int, int]:
    """Workers, and processor threads of each, on the machines that Ray has now.

    ``num_workers``: None for one for each GPU, or on CPUs for each machine. More than there are
    GPUs or processors is a :class:`ClusterError`.
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
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark tells nobody
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
