"""The metrics beside the margin on the grid's images: alignment, preservation, distribution.

Per image: **CLIPScore** to the target prompt; **directional similarity**, whether the image moved
as the prompt did; and **preservation**, PSNR, SSIM and LPIPS against the unsteered image of the
same pair and seed, since an edit should change nothing else. Per alpha, over all categories:
**CMMD** and **KID** against reference images. Values of single images are kept in the run folder.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analogy.core.checked import METRIC_LIMIT
from analogy.core.images import image_files, read_image
from analogy.core.records import Cell, RunConfig
from analogy.core.text import short_name
from analogy.grid_metrics import (
    DEFAULT,
    NOT_ASKED,
    OF_JUDGE,
    PIXELS,
    Absent,
    GridMetric,
    Input,
    Inputs,
    MetricError,
    Per,
    grid_metrics,
)
from analogy.judges.base import FeatureEncoder, Judge
from analogy.metrics import Lpips, SetScore
from analogy.metrics.features import score_name
from analogy.results.model import Distance, Mean, QualityFigures
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.store.folder import RunFolder
from analogy.store.grid import Job

#: The most pixels of images (2^26, height x width summed over them) in one batch of a metric.
BATCH_PIXELS = 64 * 2**20


@dataclass(frozen=True, slots=True)
class References:
    """The judge's features of the reference images that the grid's images are compared with.

    ``name``: a description of these images; ``features``: ``(m, dim)``.
    """

    name: str
    features: NDArray[np.float32]

    @classmethod
    def of_folder(cls, folder: Path, judge: FeatureEncoder) -> References:
        """Of every image file in a folder and its subfolders; the images may have any sizes."""
        features = [judge.image_features(read_image(file)[None]) for file in image_files(folder)]
        return cls(f"images of {folder}", np.concatenate(features))


def no_features(fingerprint: str) -> Absent:
    """The reason to skip metrics of features if the judge is not a
    :class:`~analogy.judges.base.FeatureEncoder`.
    """
    return Absent(f"the judge {fingerprint} gives scores and no features")


@dataclass(frozen=True, slots=True)
class Used:
    """The images from which a sequential run's metrics are computed, by key.

    ``confidence`` and ``n_resamples`` are those of the interval of their look.
    """

    keys: Set[str]
    confidence: float
    n_resamples: int


class Quality:
    """The quality metrics of one run: computes missing values and keeps them in the folder.

    - ``jobs``: those of the grid, alpha 0 included;
    - ``used``: returns the images behind the figures of a cell or of all cells together (None);
      None for all images;
    - ``judge``: loads the judge when it is needed; ``fingerprint``: the judge's. Features of images
      come from the folder, where scoring has kept them;
    - ``metrics``: those to measure, in the tables' order; by default the built-in ones;
    - ``lpips``, ``references``: what :meth:`cell` and :meth:`alpha` were last given;
    - ``features``: the reason why the judge has no features; None if it has some, or if no value
      was computed yet.
    """

    def __init__(
        self,
        config: RunConfig,
        jobs: Iterable[Job],
        used: Callable[[Cell | None], Used | None],
        folder: RunFolder,
        judge: Callable[[], Judge],
        fingerprint: str,
        metrics: Sequence[GridMetric] | None = None,
    ) -> None:
        self._config = config
        self._jobs = list(jobs)
        self._used = used
        self._folder = folder
        self._judge = judge
        self._fingerprint = fingerprint
        self._unsteered_jobs = {
            (job.pair.id, job.seed): job for job in self._jobs if job.is_unsteered
        }
        self.metrics = grid_metrics() if metrics is None else tuple(metrics)
        self.features: Absent | None = None
        self.lpips: Lpips | Absent = NOT_ASKED
        self.references: References | Absent = NOT_ASKED
        self.cells: dict[Cell, dict[str, Mean]] = {}
        self.alphas: dict[float, dict[str, SetScore]] = {}

    def names(self, per: Per) -> tuple[str, ...]:
        """The names of the metrics to measure that have one value per image, or per set."""
        return tuple(metric.name for metric in self.metrics if metric.per is per)

    def absent(self, metric: GridMetric) -> Absent | None:
        """Why a metric cannot be measured in this run; None if it can."""
        if self._config.size < metric.smallest_side:
            return Absent(f"it needs images of {metric.smallest_side} pixels a side or more")
        if metric.of_judge and self.features is not None:
            return self.features
        if Input.LPIPS in metric.inputs and isinstance(self.lpips, Absent):
            return self.lpips
        if Input.REFERENCES in metric.inputs and isinstance(self.references, Absent):
            return self.references
        return None

    def cell(self, cell: Cell, *, lpips: Lpips | Absent | None = None) -> dict[str, Mean]:
        """The mean over one cell of every metric of single images, by name.

        ``lpips``: LPIPS's network, or the reason for having none; None to keep that of the last
        call.
        """
        self.lpips = self.lpips if lpips is None else lpips
        used = self._used(cell)
        jobs = [
            job
            for job in self._jobs
            if (job.pair.category, job.alpha) == cell and (used is None or job.key in used.keys)
        ]
        n_seeds = Counter(job.pair.id for job in jobs)
        values = self.values(jobs)
        names = [name for name in self.names(Per.IMAGE) if name in values]
        by_pair = values.groupby("pair_id", sort=False)[names]
        sizes = by_pair.size()
        items = by_pair.mean()[sizes == sizes.index.map(n_seeds)]
        found = {name: _mean(items[name].to_numpy(), used) for name in names}
        self.cells = {each: self.cells.get(each, found) for each in self._in_order(cell)}
        self.cells[cell] = found
        return found

    def _in_order(self, cell: Cell) -> list[Cell]:
        """The cells computed so far and ``cell``, in the run's order of categories and alphas."""
        categories = dict.fromkeys(job.pair.category for job in self._jobs)
        places = {category: i for i, category in enumerate(categories)}
        alphas = {alpha: i for i, alpha in enumerate(self._config.alphas)}
        return sorted(
            {*self.cells, cell},
            key=lambda each: (places.get(each.category, -1), alphas.get(each.alpha, -1)),
        )

    def alpha(
        self, alpha: float, *, references: References | Absent | None = None
    ) -> dict[str, SetScore]:
        """Every metric that compares all images at one alpha with the references, by name.

        Empty without references or with fewer than 2 images. ``references``: the references, or the
        reason for having none; None to keep those of the last call.
        """
        self.references = self.references if references is None else references
        used = self._used(None)
        jobs = [job for job in self._jobs if job.alpha == alpha]
        if used is not None:
            jobs = [job for job in jobs if job.key in used.keys]
        kept = self._folder.features(jobs, self._fingerprint)
        chosen = [m for m in self.metrics if m.per is Per.SET and self.absent(m) is None]
        if isinstance(self.references, Absent) or len(kept) < 2 or not chosen:
            return {}
        x, y = np.stack(list(kept.values())), self.references.features
        inputs = Inputs({Input.FEATURES: x, Input.REFERENCES: y})
        judge = short_name(self._fingerprint)
        found = {
            metric.name: SetScore(
                score_name(metric.name, judge), _value(metric, inputs), len(x), len(y)
            )
            for metric in chosen
        }
        order = {each: i for i, each in enumerate(self._config.alphas)}
        self.alphas = dict(
            sorted({**self.alphas, alpha: found}.items(), key=lambda each: order.get(each[0], -1))
        )
        return found

    def values(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """A table of pair_id, seed and every metric, with a row per image.

        ``jobs``: steered images. An image is left out unless it and its unsteered image are scored.
        A metric that is :meth:`absent` has no column.
        """
        unsteered = [self._unsteered(job) for job in jobs]
        features = self._folder.features([*jobs, *unsteered], self._fingerprint)
        scored = features.keys() or self._scored([*jobs, *unsteered])
        jobs = [job for job in jobs if {job.key, self._unsteered(job).key} <= scored]
        columns: dict[str, list[Any]] = {
            "pair_id": [job.pair.id for job in jobs],
            "seed": [job.seed for job in jobs],
        }
        chosen = [m for m in self.metrics if m.per is Per.IMAGE and self.absent(m) is None]
        # Metrics that read the same images are computed together.
        for group in (
            [metric for metric in chosen if not metric.inputs & PIXELS],
            [metric for metric in chosen if metric.inputs & PIXELS],
        ):
            found = {metric: self._folder.metric(self._key(metric), jobs) for metric in group}
            lacking = [metric for metric, have in found.items() if len(have) < len(jobs)]
            missing = [job for job in jobs if any(job.key not in found[m] for m in lacking)]
            for batch in self._batches(missing):
                inputs = self._inputs(batch, lacking, features)
                for metric in lacking:
                    values = _values(metric, inputs, len(batch))
                    new = dict(zip((job.key for job in batch), values.tolist(), strict=True))
                    self._folder.add_metric(self._key(metric), new)
                    found[metric] |= new
            for metric, have in found.items():
                columns[metric.name] = [have[job.key] for job in jobs]
        return pd.DataFrame(columns)

    def _scored(self, jobs: Sequence[Job]) -> Set[str]:
        """The keys of the images that a judge without features has scored.

        Empty if the judge has features: those of these images are then lost.
        """
        lacking = [
            *self._folder.without_image(jobs),
            *self._folder.without_score(jobs, self._fingerprint),
        ]
        scored = {job.key for job in jobs} - {job.key for job in lacking}
        if scored and not isinstance(self._judge(), FeatureEncoder):
            self.features = no_features(self._fingerprint)
        return scored if self.features is not None else set()

    def figures(self) -> QualityFigures:
        """The computed figures, for results. ``metrics`` is empty if they are the default ones."""
        is_default = [metric.name for metric in self.metrics] == [*DEFAULT]
        lpips, references = self.lpips, self.references
        return QualityFigures(
            cells=dict(self.cells),
            alphas={
                alpha: {name: Distance(*score) for name, score in found.items()}
                for alpha, found in self.alphas.items()
            },
            lpips=lpips.reason if isinstance(lpips, Absent) else lpips.fingerprint,
            references=references.reason if isinstance(references, Absent) else references.name,
            metrics=() if is_default else self.metrics,
            features=None if self.features is None else self.features.reason,
        )

    def _key(self, metric: GridMetric) -> str:
        """The key under which a metric's values are kept."""
        network = None if isinstance(self.lpips, Absent) else self.lpips.fingerprint
        return metric.key(self._fingerprint, network)

    def _inputs(
        self,
        batch: Sequence[Job],
        metrics: Sequence[GridMetric],
        features: Mapping[str, NDArray[np.float32]],
    ) -> Inputs:
        """The inputs of these metrics for these jobs."""
        asked = frozenset[Input]().union(*(metric.inputs for metric in metrics))
        unsteered = [self._unsteered(job) for job in batch]
        values: dict[Input, Any] = {}
        if asked & PIXELS:
            both = self._folder.read_images([*batch, *unsteered])
            values[Input.IMAGES], values[Input.UNSTEERED] = np.split(both, 2)
        if asked & OF_JUDGE:
            values[Input.FEATURES] = np.stack([features[job.key] for job in batch])
            values[Input.UNSTEERED_FEATURES] = np.stack([features[job.key] for job in unsteered])
        if Input.TARGET_TEXT in asked:
            values[Input.TARGET_TEXT] = self._text([job.pair.target_prompt for job in batch])
        if Input.SOURCE_TEXT in asked:
            values[Input.SOURCE_TEXT] = self._text([job.pair.source_prompt for job in batch])
        if Input.LPIPS in asked:
            values[Input.LPIPS] = self.lpips
        if Input.REFERENCES in asked and isinstance(self.references, References):
            values[Input.REFERENCES] = self.references.features
        return Inputs(values)

    def _text(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        judge = self._judge()
        if not isinstance(judge, FeatureEncoder):
            raise TypeError(f"{self._fingerprint}: expected features, which were kept of images")
        return judge.text_features(prompts)

    def _unsteered(self, job: Job) -> Job:
        return self._unsteered_jobs[job.pair.id, job.seed]

    def _batches(self, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
        size = max(BATCH_PIXELS // self._config.size**2, 1)
        for i in range(0, len(jobs), size):
            yield jobs[i : i + size]


def _values(metric: GridMetric, inputs: Inputs, n: int) -> NDArray[np.float64]:
    """A metric's values for n images, shape (n,).

    Raises :class:`MetricError` for another shape, NaN, or magnitudes above ``METRIC_LIMIT`` other
    than infinity.
    """
    values = np.asarray(metric.compute(inputs), dtype=np.float64)
    if values.shape != (n,):
        raise MetricError(
            place=f"metric {metric.name}", expected=f"a number for each of {n} images, ({n},)",
            got=f"the shape {values.shape}",
        )  # fmt: skip
    wrong = np.flatnonzero(~((np.abs(values) <= METRIC_LIMIT) | (values == np.inf)))
    if len(wrong):
        raise MetricError(
            place=f"metric {metric.name}", expected=f"numbers up to {METRIC_LIMIT:g}, or infinity",
            got=f"{values[wrong[0]]} for {len(wrong)} of {n} images",
        )  # fmt: skip
    return values


def _value(metric: GridMetric, inputs: Inputs) -> float:
    """A metric's value for a set. Raises :class:`MetricError` if it is not one finite number."""
    value = np.asarray(metric.compute(inputs), dtype=np.float64)
    if value.shape != () or not np.isfinite(value):
        raise MetricError(
            place=f"metric {metric.name}", expected="one finite number for all images",
            got=f"{value}",
        )  # fmt: skip
    return float(value)


def _mean(items: NDArray[np.float64], used: Used | None) -> Mean:
    n_equal = int(np.isinf(items).sum())
    if not len(items) or n_equal:
        return Mean(math.inf if n_equal else math.nan, math.nan, math.nan, len(items), n_equal)
    if used is None:
        low, high = bootstrap_ci(items)
    else:
        low, high = bootstrap_ci(items, confidence=used.confidence, n_resamples=used.n_resamples)
    return Mean(float(items.mean()), low, high, len(items), 0)
