"""Runs an engine for a run folder: missing images are generated, new images are scored.

Engines return results in the order of the batches; the process that owns the run folder writes
them. :mod:`analogy.generation.engine` defines an engine, :mod:`analogy.core.engines` lists those
available.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property

import torch

from analogy.core.engines import ENGINES
from analogy.core.records import WHOLE
from analogy.generation.engine import (
    Engine,
    EngineFactory,
    GeneratedBatch,
    Progress,
    Setup,
    no_progress,
)
from analogy.generation.worker import Worker, change_of, changed_alike
from analogy.judges.base import Judge
from analogy.metrics.efficiency import CUDA, Memory
from analogy.models.defaults import machine
from analogy.models.memory import memory_said
from analogy.store.folder import RunFolder
from analogy.store.grid import AnyJob, Job, W, digest
from analogy.store.work_index import BatchRow, FitWork

#: The most images, and the most pixels of images (200 MB), that are read and scored at a time.
SCORE_BATCH, SCORE_PIXELS = 250, 64 * 2**20


class Execution:
    """Does the work of one run, and writes its folder. Models are loaded at their first use.

    ``engine``: makes the engine; None for the engine that the configuration names. ``worker``: this
    process's own worker, if others use its models as well. Raises ``UnknownNameError`` if the
    configuration names an engine that does not exist.
    """

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        *,
        engine: EngineFactory | None = None,
        worker: Worker | None = None,
    ) -> None:
        ENGINES.check(setup.config.engine)
        self._setup = setup
        self._folder = folder
        self._make_engine = engine
        self._own_worker = worker
        self._failed: set[str] = set()  # keys of images that failed here and are not tried again
        self._fits: dict[str, FitWork] = {}

    @cached_property
    def _worker(self) -> Worker:
        """The local worker; on the CPU if this process has no GPU and the other workers do."""
        if self._own_worker is not None:
            return self._own_worker
        setup = self._setup
        if setup.config.engine != "serial" and not torch.cuda.is_available():
            setup = replace(setup, config=replace(setup.config, device="cpu"))
        return Worker(setup)

    @cached_property
    def engine(self) -> Engine:
        """The engine, started at its first use."""
        make: EngineFactory = self._make_engine or ENGINES.get(self._setup.config.engine)
        return make(self._setup, self._worker)

    @property
    def judge(self) -> Judge:
        """The judge, in this process."""
        with memory_said("loading the judge"):
            return self._worker.judge

    @property
    def _judge(self) -> str:
        """The judge's fingerprint."""
        if self._setup.judge is None:
            raise TypeError("a run without a judge scores nothing")
        return self._setup.judge.fingerprint

    def prepare(self, jobs: Iterable[Job]) -> None:
        """Load only what these jobs need; nothing if all of them are done.

        Called before the work, so that a model or judge that cannot be loaded costs no image.
        Raises ``ModelError``, ``MemoryFullError`` or ``ClusterError``.
        """
        jobs = list(jobs)
        generates = bool(self.missing(jobs))
        with memory_said("loading the models"):
            if generates:
                self.engine.prepare()
            if generates or self._folder.without_score(jobs, self._judge):
                self.engine.prepare_judge()

    def prepare_judge(self) -> None:
        """Load the judge if images are scored, so that loading is not timed."""
        self.engine.prepare_judge()

    def missing(self, jobs: Iterable[W]) -> list[W]:
        """The jobs that have no image and have not failed in this process."""
        return [job for job in self._folder.without_image(jobs) if job.key not in self._failed]

    def generate(
        self,
        jobs: Iterable[AnyJob],
        progress: Progress = no_progress,
        *,
        ahead: Iterable[Iterable[AnyJob]] = (),
    ) -> None:
        """Generate the images that are missing, in batches of any pairs, alphas and seeds.

        Each batch is kept as soon as it is done. A failed image is kept as failed, and only another
        run tries it again. ``ahead``: the jobs of the next calls. An engine of several workers
        generates them along with ``jobs``, in the same batches as it would later.
        """
        with memory_said("generating"):
            self._generate(jobs, progress, ahead)

    def _generate(
        self, jobs: Iterable[AnyJob], progress: Progress, ahead: Iterable[Iterable[AnyJob]]
    ) -> None:
        groups = [list(jobs)]
        if not self.missing(groups[0]):
            return  # jobs ahead are generated by their own calls
        capacity = self.engine.prepare()
        if capacity.looks_ahead:
            groups += [list(group) for group in ahead]
        left = {job.key: job for job in self.missing(job for group in groups for job in group)}
        batches = [
            batch
            for group in groups
            for alike in changed_alike(left.pop(job.key) for job in group if job.key in left)
            for batch in even_batches(alike, capacity.batch_size)
        ]
        clock = time.perf_counter()
        with closing(self.engine.generate(batches)) as results:
            for batch, generated, worker in results:
                now = time.perf_counter()
                self._folder.add_pngs(
                    batch,
                    generated.pngs,
                    now - clock,
                    faults=generated.faults,
                    peak_bytes=_on_device(generated.memory),
                    worker=None
                    if worker is None
                    else (worker, generated.seconds / capacity.at_once),
                    cost=self._cost(batch, generated, capacity.at_once),
                )
                clock = now
                self._keep_fits(generated.fits)
                self._failed |= {batch[i].key for i in generated.faults}
                progress(len(batch))

    def _cost(
        self, batch: Sequence[AnyJob], generated: GeneratedBatch, at_once: int
    ) -> BatchRow | None:
        """What a batch cost; None if its images are not all unsteered or all of one method."""
        steered = [job for job in batch if isinstance(job, Job)]
        alike = {None if job.is_unsteered else (job.method, job.window) for job in steered}
        if len(steered) < len(batch) or len(alike) != 1:
            return None
        change, _ = change_of(batch[0])
        beside = 1 if change is not None and change.exclusive else at_once
        method, window = alike.pop() or (None, WHOLE)
        memory = generated.memory
        return BatchRow(
            method,
            window.start,
            window.end,
            images=len(batch),
            seconds=generated.seconds / beside,
            memory=None if memory is None else memory.kind,
            peak_bytes=None if memory is None else memory.peak_bytes,
            machine=self._machine,
        )

    @cached_property
    def _machine(self) -> str:
        """Identifies the machine on which times are measured."""
        return digest(machine(self._setup.config.device))

    @property
    def fits(self) -> tuple[FitWork, ...]:
        """What was fitted so far for the images that were generated here.

        One entry for each method and category, with the sums over all workers, each of which fits
        for itself.
        """
        return tuple(self._fits.values())

    def _keep_fits(self, fits: Sequence[FitWork]) -> None:
        for fit in fits:
            self._folder.add_fit(fit)
            so_far = self._fits.get(fit.inputs, fit._replace(images=0, seconds=0.0))
            self._fits[fit.inputs] = so_far._replace(
                images=so_far.images + fit.images,
                seconds=so_far.seconds + fit.seconds,
            )

    def score(self, jobs: Iterable[Job]) -> int:
        """Score the images that this judge has not scored; returns the number of them."""
        with memory_said("scoring"):
            return self._score(jobs)

    def _score(self, jobs: Iterable[Job]) -> int:
        missing = self._folder.without_score(jobs, self._judge)
        if not missing:
            return 0  # and no engine is started
        size = min(SCORE_BATCH, max(SCORE_PIXELS // self._setup.config.size**2, 1))
        batches = [missing[i : i + size] for i in range(0, len(missing), size)]

        def read(batch: Sequence[Job]) -> list[bytes]:
            return [self._folder.read_png(job) for job in batch]

        clock = time.perf_counter()
        with closing(self.engine.score(batches, read)) as results:
            for batch, scored, _ in results:
                now = time.perf_counter()
                self._folder.add_scores(
                    batch, self._judge, scored.cosines, now - clock, features=scored.features
                )
                clock = now
        return len(missing)

    def close(self) -> None:
        """Release the workers, if there are any."""
        if "engine" in self.__dict__:
            self.engine.close()
            del self.engine


def _on_device(memory: Memory | None) -> int | None:
    """The bytes of a CUDA device; None for any other memory."""
    return memory.peak_bytes if memory is not None and memory.kind == CUDA else None


def even_batches(jobs: Sequence[W], size: int) -> list[Sequence[W]]:
    """The fewest batches of at most ``size``; their sizes differ by at most one.

    If some batches are done, the rest is divided in the same way. So a killed run continues with
    the batches of a run that was not killed; rounding depends on a batch's size.
    """
    batches = []
    start = 0
    while start < len(jobs):
        left = len(jobs) - start
        count = -(-left // size)
        batches.append(jobs[start : start + -(-left // count)])
        start += len(batches[-1])
    return batches
