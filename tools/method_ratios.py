"""What steering methods cost against unsteered images, and against ``word``, side by side.

    python -m tools.method_ratios [--methods span,switch] [--rounds 7] [--images 38]

Each side is a run's batch of steered images, with the method's own alphas mixed, on one thread: the
conditioning, generating and PNG files. What is learned from other pairs is learned before. Sides
take turns; times are CPU seconds, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

from analogy.core.records import RunConfig
from analogy.generation.engine import Setup
from analogy.generation.worker import Worker, threads
from analogy.models.places import EMBEDDED, shipped
from analogy.models.sources import find_pipeline
from analogy.settings.pairs import load_pairs, select
from analogy.steering.base import METHODS, Intervention, default_alphas
from analogy.steering.course import GuidanceMethod
from analogy.store.grid import Grid, Job, Role
from tools.side_by_side import Row, Side, Table, compare, in_turn, rate

UNSTEERED, WORD = "unsteered", "word"

PAIRS = 13
"""The number of pairs, all of one category."""

BARS = {"span": 0.97, "switch": 0.97}
"""The smallest acceptable ratio to the rate of ``word``, by method."""

OF_PASSES, OF_UNSTEERED = 0.9, 0.85
"""The smallest acceptable ratios to the unsteered rate: for guidance methods, whose additional
noise prediction counts as work, and for methods that change the pipeline.
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS.builtin), help="separated by commas")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=38, help="in a batch")
    given = parser.parse_args()
    names = given.methods.split(",")
    table = ratios(
        names, dtype=given.dtype, steps=given.steps, rounds=given.rounds, images=given.images
    )
    print("\n".join(table.lines()))


def ratios(
    names: Sequence[str], *, dtype: str = "float32", steps: int = 8, rounds: int = 7,
    images: int = 38,
) -> Table:  # fmt: skip
    """The rates of methods on the embedded model, in rows of the denoiser's batch per CPU second.

    ``images``: the batch size. The notes have the range of each ratio over the rounds.
    """
    source = find_pipeline(EMBEDDED, dtype=dtype)
    pairs = select(load_pairs(shipped("pairs.csv")), ["color"], limit=PAIRS)
    config = RunConfig(
        model=EMBEDDED, clip_model=EMBEDDED, clip_pretrained=None, pairs="-", categories=None,
        alphas=(1.0,), seeds=(0, 1, 2), method=WORD, steps=steps, guidance=4.0, size=64,
        dtype=dtype, device="cpu", batch_size=images, limit=None,
    )  # fmt: skip
    compared = list(dict.fromkeys([*names, WORD]))
    jobs = {UNSTEERED: Grid(config, "-", "-", pairs).jobs(Role.UNSTEERED)}
    for name in compared:
        own = replace(config, method=name, alphas=default_alphas(name))
        jobs[name] = Grid(own, "-", "-", pairs).jobs(Role.STEERED)
    with threads(1):
        worker = Worker(Setup(config, pairs, source, None))
        sides = {name: _side(worker, own[:images], _work(name)) for name, own in jobs.items()}
        for side in sides.values():
            side(0)  # the first pass chooses kernels, and methods learn
        rates = in_turn(sides, rounds=rounds)
    rows: list[Row] = []
    notes = [f"{images} images in a batch, {steps} steps, {dtype}, {rounds} rounds"]
    for name in compared:
        for against in (UNSTEERED, WORD):
            if name == against:
                continue
            unit = "rows/CPU s"
            rows.append(compare(name, rates, name, against, unit=unit, bar=_bar(name, against)))
            found = [a / b for a, b in zip(rates[name], rates[against], strict=True)]
            notes.append(f"{name} against {against}: {min(found):.3f} to {max(found):.3f}")
    return Table(rows, notes)


def _side(worker: Worker, jobs: Sequence[Job], work: int) -> Side:
    return lambda round: rate(len(jobs) * work, lambda: worker.generate(jobs), time.process_time)


def _work(name: str) -> int:
    """The denoiser's rows per image and step: two, and one more for a guidance term."""
    is_more = name != UNSTEERED and isinstance(METHODS.get(name), GuidanceMethod)
    return 3 if is_more else 2


def _bar(name: str, against: str) -> float | None:
    """The smallest acceptable ratio; None if there is no bar."""
    if against == WORD:
        return BARS.get(name)
    method = METHODS.get(name)
    if isinstance(method, GuidanceMethod):
        return OF_PASSES
    return OF_UNSTEERED if isinstance(method, Intervention) else None


if __name__ == "__main__":
    main()
