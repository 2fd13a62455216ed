"""The engine of one process: batches in threads on a CPU, one after another on a GPU."""

from __future__ import annotations

import collections.abc
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from analogy.generation.engine import (
    BatchWorker,
    Capacity,
    GeneratedBatch,
    ReadPngs,
    Results,
    ScoredBatch,
    Setup,
)
from analogy.store.grid import AnyJob, Job

B = TypeVar("B")
R = TypeVar("R")


class Serial:
    """An :class:`~analogy.generation.engine.Engine` of one worker, in this process."""

    def __init__(self, setup: Setup, worker: BatchWorker) -> None:
        self._worker = worker
        self._device = setup.config.device

    def prepare(self) -> Capacity:
        """Load the generator."""
        return self._worker.prepare()

    def prepare_judge(self) -> None:
        """Load the judge."""
        self._worker.prepare_judge()

    def generate(self, batches: Iterable[Sequence[AnyJob]]) -> Results[AnyJob, GeneratedBatch]:
        """Generate, a few batches ahead of the caller that takes the results."""
        at_once = self.prepare().at_once
        with closing(in_threads(self._worker.generate, batches, at_once, self._device)) as results:
            for batch, generated in results:
                yield batch, generated, None

    def score(self, batches: Iterable[Sequence[Job]], read: ReadPngs) -> Results[Job, ScoredBatch]:
        """Score, one batch at a time with all threads."""
        for batch in batches:
            yield batch, self._worker.score(batch, read(batch)), None

    def close(self) -> None:
        """Nothing to release."""


def in_threads(
    work: Callable[[B], R], batches: Iterable[B], at_once: int, device: str
) -> collections.abc.Generator[tuple[B, R], None, None]:
    """Each batch with its result, in order; ``at_once`` are in progress and a few are queued.

    Except on a CPU there is one thread more: it makes the next batch's conditioning and latents
    while the device is busy. Close the iterator to stop early.
    """
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
