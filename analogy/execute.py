"""A run's work by an engine, into its folder: what is missing is generated, what is new scored.

An engine works on batches and hands the results back in order; the process that owns the run folder
writes them. :class:`Serial` is that process itself; :mod:`analogy.cluster` has Ray's.
"""

from __future__ import annotations

import collections.abc
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Protocol, TypeVar

import torch

from analogy.clip import Judge, JudgeSource
from analogy.grid import Job, W
from analogy.memory import memory_said
from analogy.models import ModelSource
from analogy.records import Pair, RunConfig
from analogy.store import RunFolder
from analogy.work import Drawn, Ready, Seen, Worker

#: Images that are read and scored at a time, and their pixels: 200 MB of them.
SCORE_BATCH, SCORE_PIXELS = 250, 64 * 2**20

Report = Callable[[int], None]
Batch = Sequence[Job]
Read = Callable[[Batch], list[bytes]]
B = TypeVar("B")
R = TypeVar("R")


class ClusterError(RuntimeError):
    """Workers on other processes or machines cannot do the work; the message says what to do."""


class ClusterLostError(ClusterError):
    """The cluster itself is gone in the middle of the work; what was done is kept."""


class Engine(Protocol):
    """Who does the work. Results come in the order of the batches, whoever made them.

    Each with the name of its worker, None if there is one alone. A generator that is closed early
    leaves what is in flight undone.
    """

    def prepare(self) -> Ready:
        """Have workers load the generator; what one of them says, ``at_once`` of each."""
        ...

    def prepare_judge(self) -> None:
        """Have workers load the judge."""
        ...

    def draw(self, batches: Iterable[Batch]) -> Results[Drawn]:
        """Generate."""
        ...

    def see(self, batches: Iterable[Batch], read: Read) -> Results[Seen]:
        """Score; ``read`` gives the PNG files of a batch."""
        ...

    def close(self) -> None:
        """Let go of the workers."""
        ...


Results = collections.abc.Generator[tuple[Batch, R, str | None], None, None]


class Serial:
    """The engine of one process: whole batches in threads on a CPU, one after another on a GPU."""

    def __init__(self, worker: Worker, device: str) -> None:
        self._worker = worker
        self._device = device

    def prepare(self) -> Ready:
        """Load the generator."""
        return self._worker.prepare()

    def prepare_judge(self) -> None:
        """Load the judge."""
        self._worker.judge  # noqa: B018

    def draw(self, batches: Iterable[Batch]) -> Results[Drawn]:
        """Generate, a few batches ahead of whoever takes the results."""
        at_once = self.prepare().at_once
        with closing(in_threads(self._worker.draw, batches, at_once, self._device)) as results:
            for batch, drawn in results:
                yield batch, drawn, None

    def see(self, batches: Iterable[Batch], read: Read) -> Results[Seen]:
        """Score, one batch at a time with all threads."""
        for batch in batches:
            yield batch, self._worker.see(batch, read(batch)), None

    def close(self) -> None:
        """Nothing to let go of."""


class Execution:
    """The work of one run, into its folder. Loads a model when it is needed, not before."""

    def __init__(
        self,
        config: RunConfig,
        pairs: Sequence[Pair],
        model: ModelSource | None,
        judge: JudgeSource,
        folder: RunFolder,
    ) -> None:
        self._config = config
        self._given = pairs, model, judge
        self._judge = judge.fingerprint
        self._folder = folder
        self._failed: set[str] = set()  # tried here, and not to be tried here again

    @cached_property
    def _worker(self) -> Worker:
        """The one of this process; where it lacks the workers' GPU, on its CPU."""
        config = self._config
        if config.engine == "ray" and not torch.cuda.is_available():
            config = replace(config, device="cpu")
        return Worker(config, *self._given)

    @cached_property
    def engine(self) -> Engine:
        """Who does the work, brought up at its first use."""
        config = self._config
        if config.engine == "serial":
            return Serial(self._worker, config.device)
        from analogy.cluster import RayEngine

        return RayEngine(config, *self._given)

    @property
    def judge(self) -> Judge:
        """The judge, in this process."""
        with memory_said("loading the judge"):
            return self._worker.judge

    def prepare(self, jobs: Iterable[Job]) -> None:
        """Load what these jobs need, and no more: nothing where all of them are done.

        Before any of them is, so that a model or judge that cannot be loaded costs no image. Raises
        ``ModelError``, ``MemoryFullError`` or :class:`ClusterError`.
        """
        jobs = list(jobs)
        is_to_draw = bool(self.missing(jobs))
        with memory_said("loading the models"):
            if is_to_draw:
                self.engine.prepare()
            if is_to_draw or self._folder.without_score(jobs, self._judge):
                self.engine.prepare_judge()

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that have no image, and which have not been tried here in vain."""
        return [job for job in self._folder.without_image(jobs) if job.key not in self._failed]

    def generate(
        self,
        jobs: Iterable[Job],
        report: Report = lambda n: None,
        *,
        ahead: Iterable[Iterable[Job]] = (),
    ) -> None:
        """Generate the images that are missing, in batches of any pairs, alphas and seeds.

        Each batch is kept as soon as it is done; ``report`` gets its number of images. What comes
        out as no picture is kept as failed, and tried again by another run only. ``ahead``: what
        will be asked for next; several workers generate it at once, in the same batches.
        """
        with memory_said("generating"):
            self._generate(jobs, report, ahead)

    def _generate(
        self, jobs: Iterable[Job], report: Report, ahead: Iterable[Iterable[Job]]
    ) -> None:
        groups = [list(jobs)]
        if not self.missing(groups[0]):
            return  # what is ahead is asked for in its turn
        if self._config.engine != "serial":
            groups += [list(group) for group in ahead]
        left = {job.key: job for job in self.missing(job for group in groups for job in group)}
        ready = self.engine.prepare()
        batches = [
            batch
            for group in groups
            for batch in even_batches(
                [left.pop(job.key) for job in group if job.key in left], ready.batch_size
            )
        ]
        clock = time.perf_counter()
        with closing(self.engine.draw(batches)) as results:
            for batch, drawn, worker in results:
                now = time.perf_counter()
                self._folder.add_pngs(
                    batch,
                    drawn.pngs,
                    now - clock,
                    faults=drawn.faults,
                    peak_bytes=drawn.peak_bytes,
                    worker=None if worker is None else (worker, drawn.seconds / ready.at_once),
                )
                clock = now
                self._failed |= {batch[i].key for i in drawn.faults}
                report(len(batch))

    def score(self, jobs: Iterable[Job]) -> int:
        """Score the images that this judge has not scored; returns how many those were."""
        with memory_said("scoring"):
            return self._score(jobs)

    def _score(self, jobs: Iterable[Job]) -> int:
        missing = self._folder.without_score(jobs, self._judge)
        if not missing:
            return 0  # and no engine is brought up
        size = min(SCORE_BATCH, max(SCORE_PIXELS // self._config.size**2, 1))
        batches = [missing[i : i + size] for i in range(0, len(missing), size)]

        def read(batch: Batch) -> list[bytes]:
            return [self._folder.read_png(job) for job in batch]

        clock = time.perf_counter()
        with closing(self.engine.see(batches, read)) as results:
            for batch, seen, _ in results:
                now = time.perf_counter()
                self._folder.add_scores(
                    batch, self._judge, seen.cosines, now - clock, features=seen.features
                )
                clock = now
        return len(missing)

    def close(self) -> None:
        """Let go of the workers, if there are any."""
        if "engine" in self.__dict__:
            self.engine.close()
            del self.engine


def in_threads(
    work: Callable[[B], R], batches: Iterable[B], at_once: int, device: str
) -> collections.abc.Generator[tuple[B, R], None, None]:
    """Each batch with its result, in order, ``at_once`` of them at work and a few begun.

    Off the CPU one thread more: it makes the next batch's conditioning and latents while the
    device is busy. To be closed by a caller who stops early.
    """
    threads = torch.get_num_threads()  # a painter changes them
    workers = at_once + (device != "cpu")
    begun: deque[tuple[B, Future[R]]] = deque()
    executor = ThreadPoolExecutor(workers)
    try:
        for batch in batches:
            begun.append((batch, executor.submit(work, batch)))
            if len(begun) > workers:
                first, future = begun.popleft()
                yield first, future.result()
        while begun:
            first, future = begun.popleft()
            yield first, future.result()
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def even_batches(jobs: Sequence[W], size: int) -> list[Sequence[W]]:
    """As few batches as ``size`` allows, of equal size up to one: no small last batch.

    What is left after some of them is divided just the same, so that a run that was killed goes on
    with the batches of one that was not: rounding depends on a batch's size.
    """
    batches = []
    start = 0
    while start < len(jobs):
        left = len(jobs) - start
        count = -(-left // size)
        batches.append(jobs[start : start + -(-left // count)])
        start += len(batches[-1])
    return batches
