"""Estimates the remaining time of a run from the work that it has recorded so far."""

from __future__ import annotations

from collections.abc import Sequence

from analogy.report.numbers import counted, duration, size
from analogy.store.grid import Job
from analogy.store.image_store import FOLDER as IMAGES
from analogy.studies.study import Study

LONG = 600.0
"""Seconds: a run that is expected to take longer prints a notice after its first batches."""


class Forecast:
    """Extrapolates the remaining time from the rates since this object was created.

    ``jobs``: the images of the run; ``tried``: the number of images that were generated or failed.
    Generating and scoring are extrapolated separately, since one may be done long before the other.
    The first batches, in which libraries warm up, count only until others are done. Fitting,
    quality metrics and statistics are left out.
    """

    def __init__(self, study: Study, jobs: Sequence[Job]) -> None:
        self._study = study
        missing = len(study.missing(jobs))
        self.total = missing
        self.tried = 0
        self._generating = _Stage(0, study.folder.work("generate")[1], missing)
        images, seconds = study.folder.work("score")
        self._scoring = _Stage(images, seconds, missing + len(study.unscored(jobs)))

    def add(self, images: int) -> None:
        """Count images that were generated, or failed."""
        self.tried += images
        if self.is_known:
            self._generating.add(self.tried, self._study.folder.work("generate")[1])
        self._scoring.add(*self._study.folder.work("score"))

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
        folder = self._study.folder
        generating = self._generating.left(self.tried, folder.work("generate")[1])
        if generating is None:
            return None
        return generating + (self._scoring.left(*folder.work("score")) or 0.0)


class _Stage:
    """The rate of a stage. ``images``, ``seconds``: its work so far; ``total``: images to come."""

    def __init__(self, images: int, seconds: float, total: int) -> None:
        self._total = images + total
        self._begun = (images, seconds)
        self._warm: tuple[int, float] | None = None  # the work at the end of the first batches

    def add(self, images: int, seconds: float) -> None:
        """Note the end of the first batches: the first call after which there is any work."""
        if self._warm is None and images > self._begun[0]:
            self._warm = (images, seconds)

    def left(self, images: int, seconds: float) -> float | None:
        """The remaining seconds; None without any work."""
        begun = self._begun if self._warm is None or images == self._warm[0] else self._warm
        if images == begun[0]:
            return None
        return (seconds - begun[1]) / (images - begun[0]) * max(self._total - images, 0)


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
