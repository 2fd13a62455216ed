"""Predicts the speed of a run from an earlier run on this machine, or from one round of batches."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analogy.core.errors import StoreError
from analogy.core.records import Figures, RunConfig
from analogy.models.defaults import machine
from analogy.store.finding import run_folders
from analogy.store.folder import RunFolder
from analogy.store.grid import Command, Job
from analogy.store.image_store import FOLDER as IMAGES
from analogy.studies.finding import RUNS
from analogy.studies.study import Study


@dataclass(frozen=True, slots=True)
class Rates(Figures):
    """The rates of a run.

    - `generate`, `score`: images per second;
    - `image_bytes`: the mean size of an image on the disk;
    - `memory_bytes`: the peak of the device on CUDA, otherwise of this process; None if unknown;
    - `load`: seconds to load the models, None if unknown;
    - `fit`: seconds to fit the method for a category; 0 for a method that is not fitted;
    - `images`: the number of images that were measured;
    - `folder`: the run folder of the earlier run that recorded them, None if measured now.
    """

    generate: float
    score: float
    image_bytes: float
    images: int
    memory_bytes: int | None = None
    load: float | None = None
    fit: float = 0.0
    folder: str | None = None


def recorded(study: Study, path: Path) -> Rates | None:
    """The rates of an earlier run on this machine. Returns None if there was none.

    The earlier run has the same model, judge, sampling, method and device. It is looked for in the
    run folder ``path``, in those beside it, and in the default place of run folders.
    """
    here = machine(study.config.device)
    for folder in dict.fromkeys([path, *run_folders([path.parent, RUNS])]):
        if not (folder / "index.sqlite").is_file():
            continue
        try:
            store = RunFolder(folder, read_only=True)
        except StoreError:
            continue
        try:
            if store.provenance().get("machine") == here and any(
                _is_alike(command, study) for command in store.commands()
            ):
                generate, score = store.rate("generate"), store.rate("score")
                n_images = store.n_images()
                if generate and score and n_images:
                    return Rates(
                        generate=generate,
                        score=score,
                        image_bytes=store.n_bytes(IMAGES) / n_images,
                        images=store.work("generate")[0],
                        memory_bytes=store.peak_memory(),
                        folder=str(folder),
                    )
        except StoreError:
            continue
        finally:
            store.close()
    return None


def _is_alike(command: Command, study: Study) -> bool:
    """Whether an image of a command takes as long as one of the study."""
    if (command.model, command.judge, command.scheduler) != (
        study.grid.model, study.judge.fingerprint, study.scheduler,
    ):  # fmt: skip
        return False
    return _cost(command.config) == _cost(study.config)


def _cost(config: RunConfig) -> tuple[object, ...]:
    return (
        config.method, config.window, config.steps, config.guidance, config.size, config.dtype,
        config.device, config.batch_size, config.engine, config.num_workers,
    )  # fmt: skip


def measured(
    study: Study,
    jobs: Sequence[Job],
    scratch: Path,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Rates:
    """Measure the rates of one round: as many batches as are generated at the same time.

    ``jobs``: the images that the run lacks, one or more. The images of the round belong to one
    category and go into a run folder in ``scratch``. One image is made before them and not timed.
    Raises what :meth:`Study.prepare` and :meth:`Study.generate` do.
    """
    folder = RunFolder(scratch / "measured")
    own = study.within(folder)
    mine = [job for job in jobs if job.pair.category == jobs[0].pair.category]
    try:
        start = clock()
        own.prepare(mine)
        load = clock() - start
        capacity = own.execution.engine.prepare()
        first, rest = mine[:1], mine[1:]
        if rest:
            own.generate(first)
            own.score(first)
        fit = _fit_seconds(own)
        batch = _spread(rest or first, capacity.batch_size * capacity.at_once)
        start = clock()
        own.generate(batch)
        seconds = clock() - start
        start = clock()
        own.score(batch)
        scoring = clock() - start
        later = (_fit_seconds(own)) - fit
        return Rates(
            generate=len(batch) / max(seconds - later, 1e-9),
            score=len(batch) / max(scoring, 1e-9),
            image_bytes=folder.n_bytes(IMAGES) / max(folder.n_images(), 1),
            images=len(batch),
            memory_bytes=folder.peak_memory() or _peak_of_this_process(),
            load=load,
            fit=fit + later,
        )
    finally:
        own.execution.close()
        folder.close()


def _spread(jobs: Sequence[Job], most: int) -> list[Job]:
    """Up to `most` jobs, evenly spaced among all, so that each kind has its share."""
    n = min(most, len(jobs))
    return [jobs[i * len(jobs) // n] for i in range(n)]


def _fit_seconds(study: Study) -> float:
    """The seconds that fitting the study's method took in its folder."""
    return sum(fit.seconds for fit in study.folder.fits(study.config.method))


def _peak_of_this_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
