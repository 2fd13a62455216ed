"""Estimates the remaining time of a run from the work that it has recorded so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from analogy.report.numbers import counted, duration, size
from analogy.store.grid import Job
from analogy.store.image_store import FOLDER as IMAGES
from analogy.studies.study import Study

LONG = 600.0
"""Seconds: a run that is expected to take longer prints a notice after its first batches."""


class _Work(NamedTuple):
    """What was done up to a time, in images and seconds; ``clock``: that time."""

    clock: float
    generated: int
    generating: float
    scored: int
    scoring: float


class Forecast:
    """Extrapolates the remaining time from the rates since this object was created.

    ``jobs``: the images of the run; ``tried``: the number of images that were generated or failed.
    Generating and scoring are extrapolated separately, since one may be done long before the other,
    and all other work (statistics, fits) in proportion to them. The first batches, in which
    libraries warm up, count only until others are done.
    """

    def __init__(self, study: Study, jobs: Sequence[Job]) -> None:
        self._study = study
        self.total = len(study.missing(jobs))
        self.tried = 0
        self._unscored = self.total + len(study.unscored(jobs))
        self._begun = self._work()
        self._warm: _Work | None = None  # the work at the end of the first batches

    def add(self, images: int) -> None:
        """Count images that were generated, or failed."""
        self.tried += images
        if self._warm is None and self.is_known:
            self._warm = self._work()

    @property
    def disk_bytes(self) -> int:
        """Bytes that the remaining images will take, at the mean size of the existing ones."""
        folder = self._study.folder
        each = folder.n_bytes(IMAGES) / max(folder.n_images(), 1)
        return round(each * (self.total - self.tried))

    @property
    def is_known(self) -> bool:
        """Whether a whole round of batches is done: before that the rate is unreliable."""
        capacity = self._study.execution.engine.prepare()
        return self.tried >= min(capacity.batch_size * capacity.at_once, self.total)

    @property
    def seconds(self) -> float | None:
        """The remaining seconds; None before the first image.

        Before the first score the time for scoring is left out.
        """
        now, begun = self._work(), self._begun
        unscored = self._unscored - (now.scored - begun.scored)
        if self._warm is not None and now.generated > self._warm.generated:
            begun = self._warm
        generated, generating = now.generated - begun.generated, now.generating - begun.generating
        scored, scoring = now.scored - begun.scored, now.scoring - begun.scoring
        if not generated:
            return None
        left = generating / generated * (self.total - now.generated)
        if scored:
            left += scoring / scored * max(unscored, 0)
        recorded = generating + scoring
        return left * (now.clock - begun.clock) / recorded if recorded else left

    def _work(self) -> _Work:
        folder = self._study.folder
        _, generating = folder.work("generate")
        return _Work(time.perf_counter(), self.tried, generating, *folder.work("score"))


def notice(forecast: Forecast) -> list[str]:
    """Two lines to print early in a run that will take more than `LONG`; otherwise empty."""
    seconds = forecast.seconds
    if seconds is None or seconds <= LONG:
        return []
    return [
        f"plan      {counted(forecast.total, 'image')} to make: about {duration(seconds)} and "
        f"{size(forecast.disk_bytes)} of disk more",
        "          'analogy plan' with the same options shows what a smaller run would do",
    ]
