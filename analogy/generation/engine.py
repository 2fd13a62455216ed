"""The seam of engines: what an engine is, its input and its results.

An engine works on batches of jobs and returns their results in the batches' order. It does not use
the run folder: :class:`~analogy.generation.execution.Execution` writes the results.
:class:`~analogy.generation.serial.Serial` works in this process,
:class:`~analogy.generation.ray_engine.RayEngine` on other processes and machines. An engine of
another package is chosen by an entry point of the group ``analogy.engines``, or as ``--engine
package.module:attribute``.
"""

from __future__ import annotations

import collections.abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from analogy.core.errors import AnalogyError, ExitCode
from analogy.core.records import Pair, RunConfig
from analogy.judges.base import FoundJudge
from analogy.judges.open_clip import Features
from analogy.metrics.efficiency import Memory
from analogy.models.places import ModelSource
from analogy.store.grid import AnyJob, Job
from analogy.store.work_index import FitWork

R = TypeVar("R")
J = TypeVar("J", bound=AnyJob)

Progress: TypeAlias = Callable[[int], object]
"""Called after each piece of work with its number of images."""


def no_progress(images: int) -> None:
    """A :data:`Progress` for callers that need none."""


class ClusterError(AnalogyError, RuntimeError):
    """Workers in other processes or machines cannot do the work; the message says what to do."""

    exit_code = ExitCode.UNREADABLE


class ClusterLostError(ClusterError):
    """The cluster was lost during the work; finished work is kept."""

    exit_code = ExitCode.CLUSTER_LOST


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker needs to know about a run. It can be pickled and sent to other machines.

    - ``pairs``: all of the run, since a method may use the other pairs of a category;
    - ``model``: None if nothing is generated; ``judge``: None if nothing is scored;
    - ``prompts``: texts of the run's :class:`~analogy.store.grid.PromptJob` s.
    """

    config: RunConfig
    pairs: Sequence[Pair]
    model: ModelSource | None
    judge: FoundJudge | None
    prompts: Sequence[str] = ()


class Capacity(NamedTuple):
    """How much an engine processes at a time, known once the generator is loaded.

    ``batch_size``: images in a batch; ``at_once``: batches that one worker generates side by side;
    ``looks_ahead``: True if batches of later requests should be given together with the present
    one's. Several workers would otherwise wait for each other.
    """

    batch_size: int
    at_once: int
    looks_ahead: bool = False


@dataclass(frozen=True, slots=True)
class GeneratedBatch:
    """A batch of images as PNG files, with its time and memory.

    - ``pngs``: None for a failed image; ``faults``: the reason for each failed image, by its index;
    - ``seconds``: of one generator, without fitting;
    - ``memory``: the most that was in use while it was generated and fitted; None if not measured;
    - ``fits``: what was fitted for this batch; its time is not in ``seconds``.
    """

    pngs: list[bytes | None]
    faults: Mapping[int, str]
    seconds: float
    memory: Memory | None
    fits: tuple[FitWork, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """The judge's scores of a batch.

    - ``cosines``: for each image the scores of the target prompt and of the source prompt, and
      their difference;
    - ``features``: float32 ``(n, dim)``; None if the judge gives none.
    """

    cosines: list[tuple[float, float, float]]
    features: Features | None


Results: TypeAlias = collections.abc.Generator[tuple[Sequence[J], R, str | None], None, None]
"""Batches in the order in which they were given, each with its result and the name of its worker.
The name is None if there is only one worker. Closing this early abandons the work in progress."""

ReadPngs: TypeAlias = Callable[[Sequence[Job]], list[bytes]]
"""Gives the PNG files of a batch."""


class Engine(Protocol):
    """Runs the work of a run."""

    def prepare(self) -> Capacity:
        """Load the generator, and return the engine's capacity."""
        ...

    def prepare_judge(self) -> None:
        """Load the judge."""
        ...

    def generate(self, batches: Iterable[Sequence[AnyJob]]) -> Results[AnyJob, GeneratedBatch]:
        """Generate the images of batches."""
        ...

    def score(self, batches: Iterable[Sequence[Job]], read: ReadPngs) -> Results[Job, ScoredBatch]:
        """Score the images of batches, whose files ``read`` gives."""
        ...

    def close(self) -> None:
        """Release the workers."""
        ...


class BatchWorker(Protocol):
    """Processes one batch at a time in this process.

    :class:`~analogy.generation.worker.Worker` is one.
    """

    def prepare(self) -> Capacity:
        """Load the generator, and return its capacity."""
        ...

    def prepare_judge(self) -> None:
        """Load the judge."""
        ...

    def generate(self, jobs: Sequence[AnyJob]) -> GeneratedBatch:
        """Generate one batch; may be called by several threads."""
        ...

    def score(self, jobs: Sequence[Job], pngs: Sequence[bytes]) -> ScoredBatch:
        """Score one batch of PNG files."""
        ...


class EngineFactory(Protocol):
    """Makes an engine for one run: a class or a function. :mod:`analogy.core.engines` lists them.

    ``worker`` is this process's own for the same setup. It loads each model on first use, so an
    engine that does its work elsewhere may ignore it.
    """

    def __call__(self, setup: Setup, worker: BatchWorker) -> Engine:
        """The engine. Raises ClusterError if it cannot be started."""
        ...
