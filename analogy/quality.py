"""Beyond the margin, on the grid's own images: alignment, preservation, distribution.

Per image: **CLIPScore** to the target prompt; **directional similarity**, whether the image moved
the way the prompt did; and **preservation**, PSNR, SSIM and LPIPS against the same pair and seed at
alpha 0, since steering that moves everything is no edit. Per alpha, over all categories: **CMMD**
and **KID** against reference images. Values of single images are kept in the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analogy import records
from analogy.clip import Judge
from analogy.images import Images, image_files, read_image
from analogy.metrics import (
    SMALLEST_SIDE,
    Lpips,
    SetScore,
    clip_score_of_features,
    directional_similarity_of_features,
    kernel_distance,
    lpips,
    mmd_distance,
    psnr,
    ssim,
)
from analogy.metrics.features import score_name
from analogy.records import Cell, RunConfig
from analogy.results.model import Distance, Mean, QualityFigures
from analogy.stats import bootstrap_ci
from analogy.store import Job, RunFolder

#: What is left of an image: by a metric's name, its values of images and their controls, uint8
#: (n, height, width, 3), one for each image. LPIPS, which needs a network, is beside them.
KEPT: dict[str, Callable[[Images, Images], NDArray[np.float64]]] = {
    "psnr": lambda images, controls: psnr(images, controls),
    "ssim": lambda images, controls: ssim(images, controls),
}

#: Pixels of the images that are read and compared at a time.
BATCH_PIXELS = 64 * 2**20


@dataclass(frozen=True, slots=True)
class References:
    """Images that those of the grid should be distributed like, as the judge sees them.

    ``name``: what they are; ``features``: ``(m, dim)``.
    """

    name: str
    features: NDArray[np.float32]

    @classmethod
    def of_folder(cls, folder: Path, judge: Judge) -> References:
        """Every image file in a folder and those below it, of any sizes."""
        features = [judge.image_features(read_image(file)[None]) for file in image_files(folder)]
        return cls(f"images of {folder}", np.concatenate(features))


class Quality:
    """The quality metrics of one run: computes what the folder does not have, and keeps it there.

    ``jobs``: the grid's, controls among them; ``judge`` loads the judge when it is needed, whose
    features scoring has kept. ``lpips`` and ``references`` are what they are named after, or the
    reason why there is none.
    """

    def __init__(
        self,
        config: RunConfig,
        jobs: Iterable[Job],
        folder: RunFolder,
        judge: Callable[[], Judge],
        fingerprint: str,
    ) -> None:
        self._config = config
        self._jobs = list(jobs)
        self._folder = folder
        self._judge = judge
        self._fingerprint = fingerprint
        self._controls = {(job.pair.id, job.seed): job for job in self._jobs if job.alpha == 0.0}
        self.lpips: Lpips | str = "not asked for"
        self.references: References | str = "not asked for"
        self.cells: dict[Cell, dict[str, Mean]] = {}
        self.alphas: dict[float, dict[str, SetScore]] = {}

    def cell(self, cell: Cell) -> dict[str, Mean]:
        """Every metric of single images over one cell, by name."""
        values = self.values([job for job in self._jobs if (job.pair.category, job.alpha) == cell])
        names = [name for name in records.PER_IMAGE if name in values]
        by_pair = values.groupby("pair_id", sort=False)[names]
        items = by_pair.mean()[by_pair.size() == len(self._config.seeds)]
        found = {name: _mean(items[name].to_numpy()) for name in names}
        self.cells = {each: self.cells.get(each, found) for each in self._in_order(cell)}
        self.cells[cell] = found
        return found

    def _in_order(self, cell: Cell) -> list[Cell]:
        """What has been asked for, and ``cell``, in the order of the run, whatever was first."""
        categories = dict.fromkeys(job.pair.category for job in self._jobs)
        places = {category: i for i, category in enumerate(categories)}
        alphas = {alpha: i for i, alpha in enumerate(self._config.alphas)}
        return sorted(
            {*self.cells, cell},
            key=lambda each: (places.get(each.category, -1), alphas.get(each.alpha, -1)),
        )

    def alpha(self, alpha: float) -> dict[str, SetScore]:
        """CMMD and KID of all images at one alpha against the references, by name.

        Empty without references or with fewer than 2 images.
        """
        kept = self._folder.features(
            [job for job in self._jobs if job.alpha == alpha], self._fingerprint
        )
        if isinstance(self.references, str) or len(kept) < 2:
            return {}
        x, y = np.stack(list(kept.values())), self.references.features
        judge = self._fingerprint.partition("@")[0]
        found = {
            name: SetScore(score_name(name, judge), distance(x, y), len(x), len(y))
            for name, distance in (("cmmd", mmd_distance), ("kid", kernel_distance))
        }
        order = {each: i for i, each in enumerate(self._config.alphas)}
        self.alphas = dict(
            sorted({**self.alphas, alpha: found}.items(), key=lambda each: order.get(each[0], -1))
        )
        return found

    def values(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """A row per image that is scored, as is its control: pair_id, seed and every metric.

        ``jobs`` are steered ones. LPIPS has a column where its network is there, and it and SSIM
        where the images are large enough.
        """
        controls = [self._control(job) for job in jobs]
        seen = self._folder.features([*jobs, *controls], self._fingerprint)
        jobs = [job for job in jobs if {job.key, self._control(job).key} <= seen.keys()]
        columns: dict[str, list[Any]] = {
            "pair_id": [job.pair.id for job in jobs],
            "seed": [job.seed for job in jobs],
        }
        for names, compute in (
            (self._of_features(), lambda batch: self._aligned(batch, seen)),
            (self._of_pixels(), self._kept),
        ):
            found = {name: self._folder.metric(stored, jobs) for name, stored in names.items()}
            missing = [job for job in jobs if any(job.key not in have for have in found.values())]
            for batch in self._batches(missing):
                for name, values in compute(batch).items():
                    new = dict(zip((job.key for job in batch), values.tolist(), strict=True))
                    self._folder.add_metric(names[name], new)
                    found[name] |= new
            for name, have in found.items():
                columns[name] = [have[job.key] for job in jobs]
        return pd.DataFrame(columns)

    def figures(self) -> QualityFigures:
        """What has been computed, as results have it."""
        lpips, references = self.lpips, self.references
        return QualityFigures(
            cells=dict(self.cells),
            alphas={
                alpha: {name: Distance(*score) for name, score in found.items()}
                for alpha, found in self.alphas.items()
            },
            lpips=lpips if isinstance(lpips, str) else lpips.fingerprint,
            references=references if isinstance(references, str) else references.name,
        )

    def _of_features(self) -> dict[str, str]:
        """Names of the metrics of features, and those under which their values are stored."""
        names = ("clip_score", "directional_similarity")
        return {name: f"{name}/{self._fingerprint}" for name in names}

    def _of_pixels(self) -> dict[str, str]:
        names = {name: name for name in KEPT}
        if not isinstance(self.lpips, str):
            names["lpips"] = self.lpips.fingerprint
        size = self._config.size
        return {name: kept for name, kept in names.items() if size >= SMALLEST_SIDE.get(name, 0)}

    def _aligned(
        self, batch: Sequence[Job], seen: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float64]]:
        features = np.stack([seen[job.key] for job in batch])
        target, source = (
            self._judge().text_features(prompts)
            for prompts in (
                [job.pair.target_prompt for job in batch],
                [job.pair.source_prompt for job in batch],
            )
        )
        controls = np.stack([seen[self._control(job).key] for job in batch])
        # Half precision may give two prompts one embedding: no direction, and so no similarity.
        differ = (target != source).any(axis=1)
        similarity = np.zeros(len(batch))
        if differ.any():
            similarity[differ] = directional_similarity_of_features(
                features[differ], controls[differ], target[differ], source[differ]
            )
        return {
            "clip_score": clip_score_of_features(features, target),
            "directional_similarity": similarity,
        }

    def _kept(self, batch: Sequence[Job]) -> dict[str, NDArray[np.float64]]:
        both = self._folder.read_images([*batch, *(self._control(job) for job in batch)])
        images, controls = np.split(both, 2)
        wanted = self._of_pixels()
        found = {
            name: compute(images, controls) for name, compute in KEPT.items() if name in wanted
        }
        if "lpips" in wanted and not isinstance(self.lpips, str):
            found["lpips"] = lpips(images, controls, self.lpips)
        return found

    def _control(self, job: Job) -> Job:
        return self._controls[job.pair.id, job.seed]

    def _batches(self, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
        size = max(BATCH_PIXELS // self._config.size**2, 1)
        for i in range(0, len(jobs), size):
            yield jobs[i : i + size]


def _mean(items: NDArray[np.float64]) -> Mean:
    n_equal = int(np.isinf(items).sum())
    if not len(items) or n_equal:
        return Mean(math.inf if n_equal else math.nan, math.nan, math.nan, len(items), n_equal)
    low, high = bootstrap_ci(items)
    return Mean(float(items.mean()), low, high, len(items), 0)
