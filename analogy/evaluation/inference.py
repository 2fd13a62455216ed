"""Gathers the images and costs of one model for a task, and prepares the input of its metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from analogy.core.images import Images
from analogy.evaluation.data import Sample
from analogy.evaluation.measurement import Measurement
from analogy.evaluation.protocol import Metric, TaskError, needs_of
from analogy.evaluation.samples import FeatureCache, Samples
from analogy.evaluation.subjects import Model, Subject
from analogy.evaluation.task import Task

OF_A_SET = (
    "one value of all images: resampling a set draws images twice, which by itself moves a "
    "distance of distributions"
)
OF_A_COST = "one value of a model on one machine: nothing of it is a sample of prompts"

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """The output of a metric: a value for each image, or a single one.

    - ``keys``: the images' keys; ``values``: one for each, ``(n,)``, or None if there is a single
      one;
    - ``single``: that one, NaN if there is one for each image;
    - ``n``: the number of images, or repetitions, behind it; ``notes``: shown beside the value.
    """

    keys: tuple[str, ...]
    values: Scores | None
    single: float
    n: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Gathered:
    """A model's part of an evaluation, once its weights are no longer needed.

    ``keys``: the samples that can be scored; ``images``: by key, including those at alpha 0;
    ``failed``: the samples that cannot be scored, each with the reason; ``costs``: by metric.
    """

    keys: tuple[str, ...]
    images: Mapping[str, Images]
    failed: Mapping[str, str]
    costs: Mapping[str, Scored]


class Inference:
    """Gathers a model's images and costs for a task, and prepares the input of metrics."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._cache = FeatureCache()

    def _sources(self, needs: frozenset[str]) -> dict[str, Sample]:
        """Sample's key to its image at alpha 0; empty if metrics with these needs use none."""
        return self.task.sources if needs & {"sources", "references"} else {}

    def _wanted(self, needs: frozenset[str]) -> list[Sample]:
        """Every image that metrics with these needs require of a model, each once."""
        samples = (*self.task.samples, *self._sources(needs).values())
        return list({sample.key: sample for sample in samples}.values())

    def _gather(
        self, subject: Subject, metrics: Sequence[Metric], needs: frozenset[str]
    ) -> Gathered:
        """A model's images, and its costs while it is loaded; then the model is released."""
        sources = self._sources(needs)
        images: Mapping[str, Images] = {}
        failed: Mapping[str, str] = {}
        costs: dict[str, Scored] = {}
        try:
            if wants_images(metrics):
                wanted = self._wanted(needs)
                with tqdm(total=len(wanted), desc="images", disable=None) as bar:
                    images, failed = subject.images(wanted, bar.update)
            keys, lost = self._usable(images, failed, sources)
            if not keys and wants_images(metrics):
                raise TaskError(
                    f"{subject.fingerprint}: no image to score: all {len(lost)} images "
                    f"failed ({', '.join(sorted(set(lost.values())))}); try dtype='float32'"
                )
            gathered = Gathered(keys, images, lost, costs)
            costly = [metric for metric in metrics if "model" in needs_of(metric)]
            if costly and isinstance(subject, Model):
                own = replace(self._samples(gathered, keys, needs), model=subject.timed())
                for metric in progress_bar(costly, "costs"):
                    costs[metric.name] = computed(metric, own)
        finally:
            subject.release()
        return gathered

    def _usable(
        self,
        images: Mapping[str, Images],
        failed: Mapping[str, str],
        sources: Mapping[str, Sample],
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """The samples that can be scored, and those that cannot, each with the reason.

        ``sources``: by sample's key, the image at alpha 0 without which it cannot be scored.
        """
        task = self.task
        if not task.samples:
            return tuple(images), dict(failed)
        lost = {}
        for sample in task.samples:
            needed = [sample.key]
            if sample.key in sources:
                needed.append(sources[sample.key].key)
            for key in needed:
                if key in failed:
                    lost[sample.key] = failed[key]
        present = (sample.key for sample in task.samples if sample.key in images)
        return tuple(key for key in present if key not in lost), lost

    def _samples(self, part: Gathered, keys: tuple[str, ...], needs: frozenset[str]) -> Samples:
        """The input of metrics with these needs."""
        task = self.task
        if not keys:
            return Samples(keys=keys, cache=self._cache)
        by_key = {sample.key: sample for sample in task.samples}
        own = task.data.given(
            part.images if by_key else {key: part.images[key] for key in keys},
            [by_key[key] for key in keys] if by_key else [],
            needs,
            lambda: task.reference_images,
            self._cache,
        )
        return replace(own, reference_set=task.reference_set) if "reference_set" in needs else own


REFERENCES = frozenset({"references", "reference_set"})


def needs_of_all(metrics: Sequence[Metric]) -> frozenset[str]:
    """The union of these metrics' needs."""
    return frozenset().union(*(needs_of(metric) for metric in metrics))


def wants_images(metrics: Sequence[Metric]) -> bool:
    """Whether any of these metrics needs images."""
    return bool(needs_of_all(metrics) - {"model", "files"})


def computed(metric: Metric, samples: Samples) -> Scored:
    """The checked output of a metric for these samples, with its warnings as notes.

    Raises :class:`TaskError` if it is not numeric, has another shape than () or (n,), or has NaN.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        given = metric.compute(samples)
    for warning in caught:
        if not issubclass(warning.category, UserWarning):  # not the metric's, but a library's
            warnings.showwarning(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    n = len(samples)
    if isinstance(given, Measurement):
        said += given.notes
        n = n if given.n is None else given.n
        given = given.value
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise TaskError(
            f"metric {metric.name!r}: expected numbers, got {type(given).__name__}"
        ) from None
    if values.shape not in ((), (len(samples),)):
        raise TaskError(
            f"metric {metric.name!r}: expected one number, or one for each of {len(samples)} "
            f"image(s), got the shape {values.shape}"
        )
    is_nan = np.flatnonzero(np.isnan(values))
    if len(is_nan):
        where = f" for {samples.keys[is_nan[0]]!r}" if values.ndim else ""
        raise TaskError(f"metric {metric.name!r}: expected numbers, got NaN{where}")
    notes = tuple(dict.fromkeys(said))
    if values.ndim:
        return Scored(samples.keys, values, math.nan, n, notes)
    return Scored(samples.keys, None, float(values), n, notes)


def n_infinite_of(values: Scores) -> str:
    """The message for values without a finite mean, with their median if that is finite."""
    count = np.count_nonzero(~np.isfinite(values))
    with np.errstate(invalid="ignore"):
        median = np.median(values)  # NaN if a value is the difference of two infinite ones
    other = f"; the median is {median:.4g}" if np.isfinite(median) else ""
    return f"{count} of {len(values)} values are infinite, and so is their mean{other}"


def progress_bar(items: Sequence[Metric], what: str) -> Any:
    """A progress bar on stderr; silent if stderr is not a terminal."""
    return tqdm(items, desc=what, disable=None)
