"""The time that is left of a run, from what it has recorded of its own work."""

from __future__ import annotations

from collections.abc import Sequence

from analogy.report.numbers import counted, duration, size
from analogy.store.grid import Job
from analogy.store.image_store import FOLDER as IMAGES
from analogy.studies.study import Study

LONG = 600.0
"""Seconds: a run that will take longer says so at its start."""


class Forecast:
    """Expects the work that is left to go as fast as that since this was made.

    ``jobs``: the images of the run. Images and scores are extrapolated apart: one may be done long
    before the other. Fitting, quality metrics and statistics are left out. ``tried``: the images
    that were generated, or failed.
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
        """What the images that are left will take on the disk, if they are like those there."""
        folder = self._study.folder
        each = folder.n_bytes(IMAGES) / max(folder.n_images(), 1)
        return round(each * (self.total - self.tried))

    @property
    def is_known(self) -> bool:
        """Whether a whole round of batches is done: the first ones of a round are no measure."""
        capacity = self._study.execution.engine.prepare()
        return self.tried >= min(capacity.batch_size * capacity.at_once, self.total)

    @property
    def seconds(self) -> float | None:
        """The seconds that are left; None before the first image.

        Scores are left out before the first of them.
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
    """Two lines to say at the start of a run that takes long; none for another run."""
    seconds = forecast.seconds
    if seconds is None or seconds <= LONG:
        return []
    return [
        f"plan      {counted(forecast.total, 'image')} to make: about {duration(seconds)} and "
        f"{size(forecast.disk_bytes)} of disk more",
        "          'analogy plan' with the same options shows what a smaller run would do",
    ]
