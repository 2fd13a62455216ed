"""Plans a run: images, time, memory, disk and downloads, and what smaller runs would decide.

Nothing is written to the run folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from analogy.core.errors import ModelError
from analogy.core.records import Cell, Figures
from analogy.core.strict_json import Json
from analogy.models.folders import weight_files
from analogy.results import baseline as baselines
from analogy.results.reading import RecordedError, read
from analogy.sessions.rates import Rates, measured, recorded
from analogy.sessions.selection import chosen_pairs
from analogy.settings.request import RunRequest
from analogy.statistics.designs import MIN_PAIRS, SampleSize, Spread, designs
from analogy.statistics.items import seed_margins
from analogy.store.grid import Job, Role, once
from analogy.studies.study import Study, preview

PLAN_VERSION = 1
"""The schema version of a plan as JSON."""


@dataclass(frozen=True, slots=True)
class Smaller(Figures):
    """A design with its number of images, and the seconds for all of them (None: unknown)."""

    design: SampleSize
    images: int
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of a run. Sizes are in bytes.

    - ``images``: the number in the whole grid; ``missing``: the number to make; ``unscored``: the
      number to score, the missing ones included;
    - ``first_look``: in a sequential run, the number of missing images of its first looks, which is
      the least that it will make; None if the run is not sequential;
    - ``rates``: None if unknown;
    - ``fits``: the number of categories for which the method must be fitted;
    - ``memory_bytes``: the peak, or the weights alone if ``is_peak`` is false; None if unknown;
    - ``memory_free``, ``disk_free``: None if unknown;
    - ``disk_bytes``: the size of the missing images, None if unknown;
    - ``folder``: the run folder, None if a model is missing; ``device``: where it would run;
    - ``downloads``: commands that fetch a missing model. If there is one, only the number of images
      is known;
    - ``smaller``: the design of the run, first, and smaller ones; empty if no spread is known;
      ``spread_of``: the run folder or results file that the spread comes from, None if unknown.
    """

    images: int
    missing: int
    unscored: int
    folder: Path | None
    device: str
    first_look: int | None = None
    rates: Rates | None = None
    fits: int = 0
    memory_bytes: int | None = None
    is_peak: bool = False
    memory_free: int | None = None
    disk_bytes: int | None = None
    disk_free: int | None = None
    downloads: tuple[str, ...] = ()
    smaller: tuple[Smaller, ...] = ()
    spread_of: Path | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds to make and score what is missing, loading the models included; None if unknown.

        Without missing images and scores it is 0.
        """
        if self.missing == self.unscored == 0:
            return 0.0
        if self.rates is None:
            return None
        return seconds_of(self.rates, self.missing, self.unscored, self.fits)

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON."""
        return {
            "schema_version": PLAN_VERSION,
            "images": self.images,
            "missing": self.missing,
            "unscored": self.unscored,
            "first_look": self.first_look,
            "seconds": self.seconds,
            "rates": None if self.rates is None else self.rates.to_dict(),
            "memory_bytes": self.memory_bytes,
            "memory_is_peak": self.is_peak,
            "memory_free": self.memory_free,
            "disk_bytes": self.disk_bytes,
            "disk_free": self.disk_free,
            "run_folder": None if self.folder is None else str(self.folder),
            "device": self.device,
            "downloads": list(self.downloads),
            "spread_of": None if self.spread_of is None else str(self.spread_of),
            "designs": [
                {**one.design.to_dict(), "images": one.images, "seconds": one.seconds}
                for one in self.smaller
            ],
        }


def seconds_of(rates: Rates, missing: int, unscored: int, fits: int = 0) -> float:
    """Seconds to load the models, fit the method, and make and score these numbers of images."""
    return (
        (rates.load or 0.0) + fits * rates.fit + missing / rates.generate + unscored / rates.score
    )


def make_plan(
    request: RunRequest,
    *,
    measures: bool | None = None,
    cells: Callable[[Study], Sequence[Cell]] | None = None,
) -> Plan:
    """The plan of a request. Downloads nothing and writes nothing to the run folder.

    ``measures``: whether to generate a round of batches to measure the time; None to do so only if
    no earlier run on this machine recorded it. ``cells``: returns the planned cells; None for the
    whole grid.

    Raises an ``AnalogyError`` for options that cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="analogy-plan-") as scratch:
        place = Path(scratch)
        try:
            with preview(replace(request, offline=True), place) as (study, path):
                mine = None if cells is None else cells(study)
                return plan_of(study, path, place, measures=measures, cells=mine)
        except ModelError as error:
            if not error.command:
                raise
            return _without_model(request, error.command)


def plan_of(
    study: Study,
    path: Path,
    scratch: Path | None,
    *,
    measures: bool | None = None,
    cells: Sequence[Cell] | None = None,
) -> Plan:
    """The plan of a study whose run folder is ``path``.

    ``scratch``: a folder for measured images; None to measure nothing. ``measures``: as in
    :func:`make_plan`; ``cells``: the planned cells, None for the whole grid.
    """
    config = study.config
    jobs = study.grid.jobs()
    if cells is not None:
        jobs = once(job for cell in cells for job in study.grid.cell(cell))
    missing = study.missing(jobs)
    unscored = len(missing) + len(study.unscored(jobs))
    rates = None if measures else recorded(study, path)
    if rates is None and missing and scratch is not None and measures is not False:
        rates = measured(study, missing, scratch)
    steered = {job.pair.category for job in missing if not job.is_unsteered}
    memory, is_peak = _weights(study), False
    if rates is not None and rates.memory_bytes is not None:
        memory, is_peak = rates.memory_bytes, True
    spreads, spread_of, seeds = _spreads(study, path)
    return Plan(
        images=len(jobs),
        missing=len(missing),
        unscored=unscored,
        first_look=len(study.missing(study.jobs())) if config.sequential else None,
        rates=rates,
        fits=len(steered) if rates is not None and rates.fit else 0,
        memory_bytes=memory,
        is_peak=is_peak,
        memory_free=_free_memory(config.device),
        disk_bytes=None if rates is None else round(len(missing) * rates.image_bytes),
        disk_free=_free_disk(path),
        folder=path,
        device=config.device,
        smaller=_smaller(jobs, spreads, rates, seeds),
        spread_of=spread_of,
    )


def _without_model(request: RunRequest, command: str) -> Plan:
    """The plan while a model is not on this machine: only the size of the grid is known."""
    roles = 1 + len(request.alphas) + request.control * len(request.alphas) + request.target
    images = len(chosen_pairs(request)) * len(request.seeds) * roles
    device = request.device or ("cuda" if request.gpu else "cpu")
    return Plan(
        images=images, missing=images, unscored=images, folder=None, device=device,
        downloads=(command,),
    )  # fmt: skip


def _weights(study: Study) -> int | None:
    """Bytes of the generator's weights."""
    if study.model is None:
        return None
    return sum(file.stat().st_size for file in weight_files(study.model, dtype=study.config.dtype))


def _free_memory(device: str) -> int | None:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else None
    return int(psutil.virtual_memory().available)


def _free_disk(path: Path) -> int | None:
    """Free bytes on the disk where a folder is or would be; None if unknown."""
    for place in (path.absolute(), *path.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return None


def _spreads(study: Study, path: Path) -> tuple[list[Spread], Path | None, int]:
    """The spreads of the run's cells, the place that they come from, and the number of seeds.

    They come from the scores in the run folder or, if there are too few, from the model's shipped
    baseline if that is by the same judge.
    """
    seeds, judge = study.config.seeds, study.judge.fingerprint
    frame = study.folder.margins(study.grid.jobs(Role.STEERED), judge)
    margins = seed_margins(frame, seeds) if len(frame) else {}
    found = [
        spread for pairs in margins.values() if (spread := Spread.of([*pairs.values()])) is not None
    ]
    if found:
        return found, path, len(seeds)
    default = baselines.default_path(study.config.model)
    try:
        results = None if default is None else read(default)
    except RecordedError:
        results = None
    if results is None or results.header.measurement.judge != judge:
        return [], None, len(seeds)
    for cell, figures in results.analysis.cells.items():
        if cell.category in study.categories and len(figures.seeds) >= MIN_PAIRS:
            spread = Spread.of([*figures.seeds.values()])
            found += [] if spread is None else [spread]
    return found, default if found else None, len(seeds)


def _smaller(
    jobs: Sequence[Job], spreads: Sequence[Spread], rates: Rates | None, seeds: int
) -> tuple[Smaller, ...]:
    """The designs with their images and times."""
    images = Counter(job.pair.category for job in jobs)
    pairs = Counter(category for category, _ in {(j.pair.category, j.pair.id) for j in jobs})
    made = []
    for design in designs(spreads, pairs=max(pairs.values(), default=0), seeds=seeds):
        n = sum(
            count * min(design.pairs, pairs[name]) * design.seeds // (pairs[name] * seeds)
            for name, count in images.items()
        )
        made.append(Smaller(design, n, None if rates is None else seconds_of(rates, n, n)))
    return tuple(made)
