"""The run folder: an index of images and scores, so that a killed run loses no finished work.

Layout (docs/run-folder.md)::

    <run>/index.sqlite     images, scores, work done, and the configurations (SQLite, WAL)
    <run>/images/ab/<key>.png
    <run>/writer.lock, writer.json     the lock of the one process that writes, and its record

An image is written under a temporary name, flushed and renamed, and only then recorded in the
index, in one transaction per batch: every image in the index exists. A key is a digest of
everything that produced the image, so an image of another model, dtype or step count is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analogy.core.errors import StoreError
from analogy.core.fields import shown
from analogy.core.images import ImageError, Images, from_png, to_png
from analogy.core.strict_json import Json
from analogy.store.database import SCHEMA_VERSION
from analogy.store.grid import Job, Subject, W, Wanted, digest
from analogy.store.image_store import image_name
from analogy.store.index import FailureRow, ImageRow, Scores
from analogy.store.opening import explained
from analogy.store.work import WorkFolder
from analogy.store.work_index import BatchRow, WorkRow


class RunFolder(WorkFolder):
    """Images, scores and timings of a run. One process at a time opens it for writing.

    ``read_only``: opens it without the lock and without the right to write, and never waits.
    ``note``: a message if the lock was taken over from a dead process, else None. Errors of the
    disk and of the index are raised as :class:`StoreError`.
    """

    @explained
    def n_images(self) -> int:
        """The number of images in the index."""
        return self._index.n_images()

    @explained
    def n_bytes(self, part: str = "") -> int:
        """The size of all files in the folder, or in a ``part`` of it such as ``images``."""
        return sum(
            os.lstat(os.path.join(place, name)).st_size
            for place, _, names in os.walk(self.path / part)
            for name in names
        )

    @explained
    def without_image(self, wanted: Iterable[W]) -> list[W]:
        """The jobs without an image, because it was not generated yet or because it failed."""
        wanted = list(wanted)
        have = self._index.with_image(each.key for each in wanted)
        return [each for each in wanted if each.key not in have]

    @explained
    def without_score(self, wanted: Iterable[W], judge: str) -> list[W]:
        """The jobs with an image that this judge has not scored."""
        wanted = list(wanted)
        unscored = self._index.without_score((each.key for each in wanted), judge)
        return [each for each in wanted if each.key in unscored]

    @explained
    def failures(self, wanted: Iterable[W]) -> list[tuple[W, str]]:
        """The jobs whose last generation failed, each with the reason."""
        wanted = list(wanted)
        reasons = self._index.failures(each.key for each in wanted)
        return [(each, reasons[each.key]) for each in wanted if each.key in reasons]

    @explained
    def add_images(
        self,
        wanted: Sequence[Wanted],
        images: Images,
        seconds: float,
        *,
        faults: Mapping[int, str] | None = None,
        peak_bytes: int | None = None,
        stage: str = "generate",
    ) -> None:
        """Write a batch of uint8 NHWC images as :meth:`add_pngs` does."""
        faults = faults or {}
        pngs = [None if i in faults else to_png(image) for i, image in enumerate(images)]
        self.add_pngs(wanted, pngs, seconds, faults=faults, peak_bytes=peak_bytes, stage=stage)

    @explained
    def add_pngs(
        self,
        wanted: Sequence[Wanted],
        pngs: Sequence[bytes | None],
        seconds: float,
        *,
        faults: Mapping[int, str],
        peak_bytes: int | None = None,
        stage: str = "generate",
        worker: tuple[str, float] | None = None,
        cost: BatchRow | None = None,
    ) -> None:
        """Write a batch of PNG files, generated in ``seconds``, and record them in the index.

        ``pngs``: None for a failed image; ``faults``: its place in the batch to the reason, which
        is recorded instead. ``peak_bytes``: the peak memory of the device, None if not measured.
        ``stage``: the kind of work, generate or import. ``worker``: if there are several, the name
        of the one that made the batch, and its own seconds. ``cost``: the cost of a batch of one
        method.
        """
        made, failed = [], []
        for i, (each, data) in enumerate(zip(wanted, pngs, strict=True)):
            what = json.dumps(each.what, sort_keys=True, ensure_ascii=False)
            if data is None:
                failed.append(FailureRow(each.key, what, faults[i]))
            else:
                sha256 = self._images.write(each.key, data)
                made.append(ImageRow(each.key, what, image_name(each.key), sha256))
        self._images.flush()
        self._index.add_images(
            made, failed, WorkRow(stage, len(made), seconds, peak_bytes), worker, cost
        )

    def read_image(self, wanted: Wanted) -> Images:
        """One image, uint8 HWC. Raises StoreError if the file is missing, changed or not PNG."""
        data = self.read_png(wanted)
        try:
            return from_png(data)
        except ImageError as error:
            raise StoreError(
                f"{self.path / image_name(wanted.key)}: expected a PNG file, got one that cannot "
                f"be decoded ({error}); {self._repair}"
            ) from error

    def read_images(self, wanted: Sequence[Wanted]) -> Images:
        """Images of one size, uint8 NHWC. Raises as :meth:`read_image`, and for other sizes."""
        return stacked([self.read_image(each) for each in wanted], wanted)

    @explained
    def read_png(self, wanted: Wanted) -> bytes:
        """One image's file. Raises :class:`StoreError` if it is missing or changed."""
        row = self._index.file_of(wanted.key)
        if row is None:
            what = ", ".join(f"{name} {value}" for name, value in wanted.what.items())
            raise StoreError(f"{self.path}: {what}: the index has no such image; generate it first")
        path = self.path / image_name(wanted.key)
        if row[0] != image_name(wanted.key):
            raise StoreError(
                f"{self.path}: the index has {shown(row[0])} as the place of an image, where this "
                f"suite writes none; {self._repair}"
            )
        try:
            data = self.read_file(wanted.key)
        except OSError as error:
            raise StoreError(
                f"{path}: the index names this image but it cannot be read ({error}); "
                f"{self._repair}"
            ) from error
        if hashlib.sha256(data).hexdigest() != row[1]:
            raise StoreError(
                f"{path}: the image is not the one that was written (SHA-256 differs); "
                f"{self._repair}"
            )
        return data

    def read_file(self, key: str) -> bytes:
        """The content of an image's file. Raises ``OSError`` if it is not a file of this folder.

        The path depends only on the key, not on the index, and no link on it is followed.
        """
        return self._images.read(key)

    def remove_file(self, key: str) -> None:
        """Remove an image's file if it exists and lies in this folder."""
        self._images.remove(key)

    @explained
    def add_scores(
        self,
        wanted: Sequence[Wanted],
        judge: str,
        rows: Iterable[tuple[float, float, float]],
        seconds: float,
        *,
        features: NDArray[np.float32] | None = None,
    ) -> None:
        """Record (cos_target, cos_source, margin) for each image, scored in ``seconds``.

        ``features``: the judge's, ``(n, dim)``, for metrics that need more than a score.
        """
        keys = [each.key for each in wanted]
        scores = {
            key: Scores(margin, cos_target, cos_source)
            for key, (cos_target, cos_source, margin) in zip(keys, rows, strict=True)
        }
        vectors = {} if features is None else dict(zip(keys, features, strict=True))
        self._index.add_scores(judge, scores, vectors, seconds)

    @explained
    def margins(self, jobs: Iterable[Job], judge: str) -> pd.DataFrame:
        """A row per scored job, in the jobs' order: key, pair_id, category, alpha, seed, margin,
        cos_target, cos_source.
        """
        jobs = list(jobs)
        scores = self._index.scores((job.key for job in jobs), judge)
        return pd.DataFrame(
            [
                (job.key, job.pair.id, job.pair.category, job.alpha, job.seed, *scores[job.key])
                for job in jobs
                if job.key in scores
            ],
            columns=["key", "pair_id", "category", "alpha", "seed", *Scores._fields],
        )

    @explained
    def image_table(self, jobs: Iterable[Job], judge: str) -> pd.DataFrame:
        """A row per job with an image: the job, this judge's score, and its metrics.

        Columns: key, pair_id, category, the pair's words and prompts, alpha, seed, method (None
        for an unsteered image, which has none), path (relative to the folder), margin, cos_target
        and cos_source (NaN if not scored), and one per recorded metric (NaN if not measured). A
        metric that is computed from features is this judge's.
        """
        jobs = list(jobs)
        keys, scores = self._index.images_with_scores({job.key for job in jobs}, judge)
        metrics = self._index.metrics(judge)
        none = Scores(np.nan, np.nan, np.nan)
        table = pd.DataFrame(
            [
                (
                    job.key, *astuple(job.pair), job.alpha, job.seed,
                    job.what.get("method"), image_name(job.key), *scores.get(job.key, none),
                )
                for job in jobs
                if job.key in keys
            ],
            columns=[
                "key", "pair_id", "category", "source_word", "target_word", "source_prompt",
                "target_prompt", "alpha", "seed", "method", "path", *Scores._fields,
            ],
        )  # fmt: skip
        for name in sorted(metrics):
            table[name] = table["key"].map(metrics[name])
        numbers = ["alpha", *Scores._fields, *metrics]
        return table.astype({"seed": "int64", **dict.fromkeys(numbers, "float64")})

    @explained
    def provenance(self) -> dict[str, Json]:
        """The provenance of the latest command; empty in a folder without a command."""
        return dict(self._index.meta("provenance", dict) or {})

    @explained
    def features(self, wanted: Iterable[Wanted], judge: str) -> dict[str, NDArray[np.float32]]:
        """A judge's features ``(dim,)`` by key, of the images that it has scored."""
        keys = [each.key for each in wanted]
        have = self._index.features(keys, judge)
        return {key: have[key] for key in keys if key in have}

    @explained
    def add_metric(self, metric: str, values: Mapping[str, float]) -> None:
        """Store a metric's value for each image, by key; ``metric`` names all it depends on."""
        self._index.add_metric(metric, values)

    @explained
    def metric(self, metric: str, wanted: Iterable[Wanted]) -> dict[str, float]:
        """The stored values, by key."""
        keys = [each.key for each in wanted]
        have = self._index.metric(metric, keys)
        return {key: have[key] for key in keys if key in have}


def stacked(images: Sequence[Images], wanted: Sequence[Wanted]) -> Images:
    """Images of one size as one array. Raises StoreError if their sizes differ."""
    first = images[0].shape
    for image, each in zip(images, wanted, strict=True):
        if image.shape != first:
            height, width, _ = image.shape
            raise StoreError(
                f"image {each.key}: expected {first[1]} x {first[0]} pixels as others of its run, "
                f"got {width} x {height}; repair the run folder with: "
                "python -m analogy verify RUN --repair"
            )
    return np.stack(images)


def folder_name(subject: Subject, **more: str) -> str:
    """The name of the run folder for all images of one subject; ``more``: further parts of it."""
    return digest({**subject, **more, "schema_version": SCHEMA_VERSION})[:12]
