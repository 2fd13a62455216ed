"""A run folder's records of its work: rates, memory, and what methods cost."""

from __future__ import annotations

from analogy.core.records import WHOLE, Window
from analogy.store.opening import OpenFolder, explained
from analogy.store.work_index import BatchRow, FitWork


class WorkFolder(OpenFolder):
    """A run folder with the records of its work."""

    @explained
    def add_fit(self, fit: FitWork) -> None:
        """Record the work of fitting a method. Its time is part of that of ``generate``, too."""
        self._index.add_fit(fit)

    @explained
    def fits(self, method: str) -> list[FitWork]:
        """The work of fitting a method, by category and inputs; empty if it was not fitted."""
        return self._index.fits(method)

    @explained
    def batches(self, method: str | None, window: Window = WHOLE) -> list[BatchRow]:
        """The costs of the batches of this method and window alone; None: of unsteered images."""
        return self._index.batches(method, window.start, window.end)

    @explained
    def work(self, stage: str) -> tuple[int, float]:
        """The images and seconds of all recorded work of ``generate`` or ``score``."""
        return self._index.work(stage)

    @explained
    def rate(self, stage: str) -> float | None:
        """Images per second over all recorded work of ``generate`` or ``score``, None if none."""
        return self._index.rate(stage)

    @explained
    def worker_rates(self) -> dict[str, float]:
        """Images per second of each worker; empty if there were fewer than two."""
        return self._index.worker_rates()

    @explained
    def peak_memory(self) -> int | None:
        """The peak memory of a CUDA device while generating, in bytes; None if not measured."""
        return self._index.peak_memory()
