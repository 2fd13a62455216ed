"""Sequential runs of planted margins: an engine without models, and small grids for it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analogy.core.images import to_png
from analogy.core.records import Cell, Pair
from analogy.generation.engine import Capacity, GeneratedBatch, ScoredBatch
from analogy.grid_metrics import Absent
from analogy.models.places import shipped
from analogy.results.model import Results
from analogy.results.writing import to_json
from analogy.sessions import running
from analogy.sessions.session import Session
from analogy.settings import options
from analogy.settings.pairs import load_pairs
from analogy.store.grid import Job

ENGINE = f"{__name__}:engine"
"""The value of ``--engine``."""

HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"

MEANS = {
    Cell("color", 0.5): 0.06,
    Cell("color", 1.0): 0.3,
    Cell("object", 0.5): 0.0,
    Cell("object", 1.0): -0.3,
}
"""Mean margins of the cells; unsteered images have :data:`UNSTEERED` on the mean."""

UNSTEERED = -0.3


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Planted:
    """What the next engine makes: margins by job, the images that fail, and when it dies."""

    margin: Callable[[Job], float]
    batch_size: int = 8
    dies_after: int | None = None
    fails: Callable[[Job], bool] = lambda job: False
    made: list[Job] = field(default_factory=list)


plan = Planted(lambda job: 0.0)
"""Set by :func:`plant`."""


def plant(margin: Callable[[Job], float], **settings: Any) -> Planted:
    """Have the engines from now on give these margins; returns what counts their images."""
    global plan
    plan = Planted(margin, **settings)
    return plan


class Engine:
    """Images of one grey, margins as planted."""

    def __init__(self, setup: Any, worker: Any) -> None:
        self._png = to_png(np.full((setup.config.size, setup.config.size, 3), 90, np.uint8))

    def prepare(self) -> Capacity:
        return Capacity(plan.batch_size, 1)

    def prepare_judge(self) -> None:
        pass

    def generate(self, batches):
        for batch in batches:
            if plan.dies_after is not None and len(plan.made) + len(batch) > plan.dies_after:
                raise Killed
            plan.made += batch
            faults = {i: "black" for i, job in enumerate(batch) if plan.fails(job)}
            pngs = [None if i in faults else self._png for i in range(len(batch))]
            yield batch, GeneratedBatch(pngs, faults, 0.01, None), None

    def score(self, batches, read):
        for batch in batches:
            margins = [plan.margin(job) for job in batch]
            yield batch, ScoredBatch([(each, 0.0, each) for each in margins], None), None

    def close(self) -> None:
        pass


def engine(setup: Any, worker: Any) -> Engine:
    return Engine(setup, worker)


def normal(*parts: Any) -> float:
    """A normal value that these parts determine."""
    seed = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return random.Random(seed).gauss(0, 1)


def margin(job: Job) -> float:
    """:data:`MEANS` and noise: sd 0.08 between pairs, 0.04 between seeds."""
    mean = MEANS.get(Cell(job.pair.category, job.alpha), UNSTEERED)
    pair, alpha = job.pair.source_prompt, job.alpha
    return mean + 0.08 * normal(pair, alpha) + 0.04 * normal(pair, alpha, job.seed)


def pairs_of(*categories: str, n: int = 20) -> list[Pair]:
    """The first pairs of the suite's own."""
    mine = load_pairs(shipped("pairs.csv"))
    return [p for name in categories for p in [p for p in mine if p.category == name][:n]]


def write_pairs(file: Path, pairs: list[Pair]) -> str:
    rows = (
        f'{p.id},{p.category},{p.source_word},{p.target_word},"{p.source_prompt}",'
        f'"{p.target_prompt}"\n'
        for p in pairs
    )
    file.write_text(HEADER + "".join(rows))
    return str(file)


def request(path: Path, **given: Any):
    """A sequential run of two categories of 20 pairs in the folder ``path/run``.

    ``given``: texts of options by name; True is a flag, None an option's default.
    """
    raw: dict[str, Any] = {option.name: option.default for option in options.OPTIONS}
    file = path / "pairs.csv"
    if "pairs" not in given and not file.exists():
        write_pairs(file, pairs_of("color", "object"))
    asked = {
        "pairs": str(file), "run_dir": str(path / "run"), "alphas": "0.5,1", "seeds": "0,1,2",
        "steps": "2", "sequential": True, "engine": ENGINE, "metrics": "ssim",
        "results": str(path / "results.json"), **given,
    }  # fmt: skip
    raw |= {f"analogy_{name}": value for name, value in asked.items()}
    return options.parse_options(raw.__getitem__)


def run(path: Path, **given: Any) -> tuple[Results, running.Ending]:
    """Do everything that ``analogy run`` does."""
    session = Session.open(request(path, **given))
    session._references = Absent("none is drawn, for speed")
    try:
        ending = running.run_cases(session)
        _, results = running.finish(session, ending)
    finally:
        session.study.close()
    return results, ending


def figures_of(results: Results) -> dict[str, Any]:
    """results.json without what another process, or another speed, changes."""
    found = to_json(results)
    for name in ("provenance", "throughput", "peak_memory_bytes", "config"):
        found.pop(name, None)
    return found
