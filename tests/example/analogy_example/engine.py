"""An engine: this process, as ``serial``, but its worker has a name in the results."""

from collections.abc import Iterable, Sequence

from analogy.generation.engine import GeneratedBatch, ReadPngs, Results, ScoredBatch
from analogy.generation.serial import Serial
from analogy.store.grid import AnyJob, Job


class NamedEngine(Serial):
    """A :class:`Serial` whose worker is called ``example``."""

    def generate(self, batches: Iterable[Sequence[AnyJob]]) -> Results[AnyJob, GeneratedBatch]:
        """Each batch with its images and the worker's name."""
        for batch, images, _ in super().generate(batches):
            yield batch, images, "example"

    def score(self, batches: Iterable[Sequence[Job]], read: ReadPngs) -> Results[Job, ScoredBatch]:
        """Each batch with its scores and the worker's name."""
        for batch, scores, _ in super().score(batches, read):
            yield batch, scores, "example"
