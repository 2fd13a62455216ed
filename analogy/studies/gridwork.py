"""Finds, generates and scores the missing images of one configuration in its run folder."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analogy._version import __version__
from analogy.core.records import Cell, Pair, RunConfig
from analogy.core.text import guidance_text
from analogy.generation.engine import Progress, Setup, no_progress
from analogy.generation.execution import Execution
from analogy.grid_metrics import GridMetric
from analogy.judges.base import FoundJudge, Judge
from analogy.models.defaults import machine
from analogy.models.places import ModelSource
from analogy.results.model import Analysis, Ceiling, Failure, Provenance, Saved
from analogy.settings.pairs import categories
from analogy.store.folder import RunFolder
from analogy.store.grid import Grid, Job, Role, TrueMargins, content, digest, pairs_digest
from analogy.studies import ceiling as ceilings
from analogy.studies.ceiling import GroundTruth
from analogy.studies.provenance import (
    own_commit,
    package_versions,
    scheduler_of,
    unusual_guidance,
)
from analogy.studies.quality import Quality, Used
from analogy.studies.sequential import SequentialPlan


class GridWork:
    """One configuration over its pairs, in its run folder: generate and score what is missing."""

    def __init__(
        self,
        config: RunConfig,
        pairs: Sequence[Pair],
        model: ModelSource | None,
        judge: FoundJudge,
        folder: RunFolder,
        truth: GroundTruth | None = None,
        *,
        fingerprint: str | None = None,
        scheduler: str | None = None,
        unread: Collection[str] = (),
        unsteered: Collection[str] = (),
        uneven: Sequence[str] = (),
        metrics: Sequence[GridMetric] | None = None,
        base: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.config = config
        self.pairs = list(pairs)
        self.unread = frozenset(unread)
        self.unsteered = frozenset(unsteered)
        self.uneven = tuple(uneven)
        self.judged = [pair for pair in self.pairs if pair.id not in self.unread]
        self.model = model
        self.judge = judge
        self.folder = folder
        self.truth = truth
        self._ceilings: dict[str, Ceiling | None] = {}
        self._analysed: tuple[Any, Analysis] | None = None
        if model is not None:
            fingerprint = model.fingerprint
            scheduler = scheduler or scheduler_of(model.folder)
        if fingerprint is None or scheduler is None:
            raise TypeError("a study without a model needs its fingerprint and its scheduler")
        self.scheduler = scheduler
        self._guidance = None if model is None else unusual_guidance(model.folder)
        self.execution = Execution(Setup(config, self.pairs, model, judge), folder)
        self.grid = Grid(config, fingerprint, scheduler, pairs)
        self.plan = SequentialPlan(self.grid, self.judged, self._margins, base)
        self.quality = Quality(
            config,
            self._judged(self.grid.jobs(Role.UNSTEERED, Role.STEERED)),
            self.used,
            folder,
            lambda: self.execution.judge,
            judge.fingerprint,
            metrics,
        )

    @property
    def guidance(self) -> str | None:
        """What the guidance scale sets; None if it is ``guidance_scale`` for classifier-free
        guidance. Without a model (a reopened run) the value is read from the run folder.
        """
        if self.model is not None:
            return self._guidance
        recorded = self.folder.provenance().get("guidance")
        return recorded if isinstance(recorded, str) else None

    @property
    def sampling_text(self) -> str:
        """Steps, guidance and size, for headers."""
        config = self.config
        guidance = guidance_text(config.guidance, config.second_guidance, self.guidance)
        return f"{config.steps} steps, {guidance}, {config.size} px"

    @property
    def own_ceiling(self) -> TrueMargins | None:
        """The margins on ground truth that the user gave for these pairs.

        None without ground truth, or if it is the shipped file. The run folder keeps these margins,
        because the user's file may be gone when the folder is opened again.
        """
        default = ceilings.default_path()
        if self.truth is None or (default and self.truth.path.resolve() == default.resolve()):
            return None
        known = self.truth.pairs
        keys = (digest(content(pair)) for pair in self.pairs)
        return {key: known[key] for key in keys if key in known}

    @property
    def categories(self) -> list[str]:
        """The categories of this run, in the pairs' order."""
        return categories(self.pairs)

    def jobs(self, category: str | None = None, alpha: float | None = None) -> list[Job]:
        """The run's jobs, each key once; only those of one category or alpha if given.

        Target images have no alpha of the grid and are left out if ``alpha`` is given. In a
        sequential run only the jobs that are due by now.
        """
        roles = (*Role,) if alpha is None else (Role.UNSTEERED, Role.STEERED, Role.NULL)
        jobs = self.grid.jobs(*roles, category=category, alpha=alpha)
        if not self.config.sequential:
            return jobs
        cells = [cell for cell in self.plan.cells if category in (None, cell.category)]
        due = {job.key for job in self.plan.due(cells)}
        return [job for job in jobs if job.key in due]

    def cell_jobs(self, category: str, alpha: float) -> list[Job]:
        """A cell's jobs, with the unsteered, null and target images that it is compared with.

        In a sequential run only the jobs that are due by now.
        """
        cell = Cell(category, alpha)
        return self.plan.due([cell]) if self.config.sequential else self.grid.cell(cell)

    def _margins(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """The margins that exist by now, a row per scored job."""
        return self.folder.margins(jobs, self.judge.fingerprint)

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Load the models that these jobs still need, so that faults show before the first image.

        Raises ``ModelError``, ``MemoryFullError`` or ``ClusterError``.
        """
        self.execution.prepare(jobs)

    def generate(
        self,
        jobs: Sequence[Job],
        progress: Progress = no_progress,
        *,
        ahead: Iterable[Sequence[Job]] = (),
    ) -> None:
        """Generate the images among ``jobs`` that are missing.

        ``ahead``: the jobs of later calls; an engine of several workers starts on them at once.
        """
        self.execution.generate(jobs, progress, ahead=ahead)

    def prepare_judge(self) -> None:
        """Load the judge where images are scored, so that timing leaves it out."""
        self.execution.prepare_judge()

    def used(self, cell: Cell | None) -> Used | None:
        """The images that metrics of a cell, or of all cells together (None), are computed from.

        Returns None for all images, as in every run that is not sequential.
        """
        if not self.config.sequential:
            return None
        return self.plan.used(cell)

    def left(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that lack an image or a score and have not failed in this process."""
        missing = {job.key for job in (*self.missing(jobs), *self.unscored(jobs))}
        return [job for job in jobs if job.key in missing]

    def saved(self) -> Saved | None:
        """The images and seconds that a sequential run saved; None if it is not sequential."""
        if not self.config.sequential:
            return None
        used, of = len(self.jobs()), len(self._judged(self.grid.jobs()))
        rate = self.folder.rate("generate")
        return Saved(
            images=used,
            of=of,
            seconds=(of - used) / rate if rate else None,
            order_seed=self.config.order_seed,
            order=dict(self.plan.digests),
        )

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that have no image and have not failed in this process."""
        return self.execution.missing(jobs)

    def loaded_judge(self) -> Judge:
        """The judge, loaded in this process."""
        return self.execution.judge

    def score(self, jobs: Sequence[Job]) -> int:
        """Score the images among ``jobs`` that have no score. Returns their number."""
        return self.execution.score(jobs)

    def close(self) -> None:
        """Release the workers and the run folder."""
        self.execution.close()
        self.folder.close()

    def failures(self, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
        """The jobs whose image failed, each with the reason."""
        return self.folder.failures(jobs)

    def unscored(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs with an image that this run's judge has not scored."""
        return self.folder.without_score(jobs, self.judge.fingerprint)

    def _judged(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs without those of pairs whose two prompts are the same to the judge."""
        if not self.unread:
            return jobs
        return [job for job in jobs if job.pair.id not in self.unread]

    def pairs_digest(self, category: str) -> str:
        """A digest of a category's pairs: of their ids and contents, regardless of order."""
        return pairs_digest(pair for pair in self.pairs if pair.category == category)

    def provenance(self) -> Provenance:
        """What produced this run's figures."""
        own = self.own_ceiling
        return Provenance(
            suite=__version__,
            model=self.grid.model,
            judge=self.judge.fingerprint,
            scheduler=self.scheduler,
            packages=package_versions(),
            git_commit=own_commit(),
            machine=machine(self.config.device),
            python=sys.version.split()[0],
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ceiling=None if own is None else digest(dict(own)),
            guidance=self.guidance,
        )


def failure_of(job: Job, reason: str) -> Failure:
    """A failed job, and why."""
    method = None if job.alpha == 0.0 else job.method
    return Failure(job.pair.id, job.pair.category, job.alpha, job.seed, method, reason)
