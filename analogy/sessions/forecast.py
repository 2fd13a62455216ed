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
    Fitting, quality metrics and statistics are left out.
    """

    def __init__(self, study: Study, jobs: Sequence[Job]) -> None:
        self._study = study
        self._begun = {stage: study.folder.work(stage) for stage in ("generate", "score")}
        missing = len(study.missing(jobs))
        self.total = missing
        self._left = {"generate": missing, "score": missing + len(study.unscored(jobs))}
        self.tried = 0

    def add(self, images: int) -> None:
        """Count images that were generated, or failed."""
        self.tried += images

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
        left = 0.0
        for stage, begun in self._begun.items():
            images, seconds = (
                now - then for now, then in zip(self._study.folder.work(stage), begun, strict=True)
            )
            done = self.tried if stage == "generate" else images
            if done:
                left += seconds / done * max(self._left[stage] - done, 0)
            elif stage == "generate":
                return None
        return left


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
