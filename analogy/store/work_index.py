"""The tables of a run folder's index that record its work: rates, memory, and costs of methods."""

from __future__ import annotations

import math
from typing import NamedTuple

from analogy.core import checked
from analogy.store.database import Database, timestamp

#: The longest accepted time of a piece of work, in seconds.
MAX_SECONDS = 1e9


class WorkRow(NamedTuple):
    """A piece of work. ``stage``: generate, score or import; ``peak_bytes``: of a CUDA device, None
    if not measured.
    """

    stage: str
    images: int
    seconds: float
    peak_bytes: int | None = None


class BatchRow(NamedTuple):
    """The cost of a batch whose images are all of one method and window, or all unsteered.

    - ``method``: None for unsteered images; ``steer_from``, ``steer_until``: of the window;
    - ``seconds``: of one worker, without fitting and writing;
    - ``memory``: which memory ``peak_bytes`` is of
      (:class:`~analogy.metrics.efficiency.Memory`); both are None if it was not measured;
    - ``machine``: a digest of the machine. Seconds of different machines are not comparable.
    """

    method: str | None
    steer_from: float
    steer_until: float
    images: int
    seconds: float
    memory: str | None
    peak_bytes: int | None
    machine: str


class FitWork(NamedTuple):
    """The work of fitting a method.

    - ``method``, ``category``: what was fitted; ``inputs``: a digest of all that the category's fit
      depends on;
    - ``images``: the number denoised for it, without decoding; 0 if the method observes no images
      or all of them were observed before;
    - ``seconds``: of one generator.
    """

    method: str
    category: str
    inputs: str
    images: int
    seconds: float


class WorkIndex(Database):
    """The records of work in the index of a run folder. Raises what its subclass says."""

    def add_fit(self, fit: FitWork) -> None:
        """Record the work of fitting a method."""
        with self.db:
            self.db.execute("INSERT INTO fits VALUES (?, ?, ?, ?, ?, ?)", (*fit, timestamp()))

    def fits(self, method: str) -> list[FitWork]:
        """The work of fitting a method: a row for each category and its inputs."""
        if not self._has_table("fits"):
            return []
        found = self.db.execute(
            "SELECT method, category, inputs, SUM(images), SUM(seconds) FROM fits "
            "WHERE method = ? GROUP BY category, inputs ORDER BY MIN(rowid)",
            (method,),
        )
        return [
            FitWork(
                method,
                checked.name(category, "fits.category"),
                checked.key(inputs, "fits.inputs"),
                checked.count(images, "fits.images"),
                checked.number(seconds, "fits.seconds", 0.0, MAX_SECONDS),
            )
            for _, category, inputs, images, seconds in found
        ]

    def batches(self, method: str | None, start: float, end: float) -> list[BatchRow]:
        """The costs of batches of one method and window, in their order; None: unsteered images."""
        if not self._has_table("batches"):
            return []
        found = self.db.execute(
            "SELECT images, seconds, memory, peak_bytes, machine FROM batches "
            "WHERE method IS ? AND steer_from = ? AND steer_until = ? ORDER BY rowid",
            (method, start, end),
        )
        return [
            BatchRow(
                method,
                start,
                end,
                checked.count(images, "batches.images"),
                checked.number(seconds, "batches.seconds", 0.0, MAX_SECONDS),
                None if memory is None else checked.name(memory, "batches.memory"),
                None if peak is None else checked.count(peak, "batches.peak_bytes"),
                checked.key(machine, "batches.machine"),
            )
            for images, seconds, memory, peak, machine in found
        ]

    def work(self, stage: str) -> tuple[int, float]:
        """The images and seconds of all recorded work of a stage; both 0 if there is none."""
        images, seconds = self.db.execute(
            "SELECT SUM(images), SUM(seconds) FROM work WHERE stage = ?", (stage,)
        ).fetchone()
        return (
            checked.count(images or 0, "work.images"),
            checked.number(seconds or 0.0, "work.seconds", 0.0, math.inf),
        )

    def rate(self, stage: str) -> float | None:
        """Images per second over all recorded work of a stage, None if nothing was recorded."""
        images, seconds = self.db.execute(
            "SELECT TOTAL(images), TOTAL(seconds) FROM work WHERE stage = ?", (stage,)
        ).fetchone()
        return checked.rate(images, seconds, "work")

    def worker_rates(self) -> dict[str, float]:
        """Images per second of each worker; empty if there was only one, or no work yet."""
        if not self._has_table("workers"):
            return {}
        found = self.db.execute("SELECT name, images, seconds FROM workers ORDER BY name")
        rates = {
            checked.name(name, "workers.name"): checked.rate(images, seconds, "workers")
            for name, images, seconds in found
        }
        return {name: rate for name, rate in rates.items() if rate is not None}

    def peak_memory(self) -> int | None:
        """The peak device memory of generating, in bytes; None if it was not measured."""
        (most,) = self.db.execute("SELECT MAX(peak_bytes) FROM work").fetchone()
        return None if most is None else checked.count(most, "work.peak_bytes")

    def _add_work(self, work: WorkRow) -> None:
        self.db.execute("INSERT INTO work VALUES (?, ?, ?, ?, ?)", (*work, timestamp()))
