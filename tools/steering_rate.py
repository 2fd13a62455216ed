"""The rate of interventions against unsteered images, on the same batch, side by side.

    python -m tools.steering_rate [--dtype float32] [--rounds 7]

Directions are fitted before, so that only generating is timed. Strengths differ from row to row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch

from analogy.core.records import RunConfig
from analogy.generation.engine import Setup
from analogy.generation.fitting import Learning
from analogy.generation.steering_fit import steering_of
from analogy.generation.worker import generator_of, texts
from analogy.models.generator import latents_for
from analogy.models.loading import load_pipeline
from analogy.models.places import EMBEDDED, shipped
from analogy.models.slider import slider
from analogy.models.sources import find_pipeline
from analogy.settings.pairs import load_pairs, select
from analogy.steering.activation import activation
from analogy.steering.declared import DeclaredMethod
from analogy.store.grid import Grid
from tools.side_by_side import Side, Table, compare, in_turn, wall_rate

BAR = 0.85
"""Of the unsteered rate."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=38, help="in a batch")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = find_pipeline(EMBEDDED, dtype=given.dtype)
    pairs = select(load_pairs(shipped("pairs.csv")), ["color"], limit=26)
    config = RunConfig(
        model=EMBEDDED, clip_model=EMBEDDED, clip_pretrained=None, pairs="-", categories=None,
        alphas=(1.0, 2.0, 3.0), seeds=(0,), method="activation", steps=8, guidance=4.0, size=64,
        dtype=given.dtype, device="cpu", batch_size=given.images, limit=None,
    )  # fmt: skip
    generator = generator_of(load_pipeline(source, device="cpu", dtype=given.dtype), config)
    encoded = generator.encode(texts(pairs))
    steered, others = pairs[:13], pairs[13:]
    jobs = [job for job in Grid(config, "-", "-", steered).jobs() if job.alpha][: given.images]
    rows, _ = Learning(Setup(config, pairs, source, None)).rows(jobs, generator, encoded)
    latents = torch.stack([latents_for(job.pair, 0, generator.latent_shape) for job in jobs])
    conditionings = [encoded[job.pair.source_prompt] for job in jobs]
    content = replace(steering_of(others, generator, encoded, about=""), pairs=frozenset())
    file = DeclaredMethod("file:-", "1", content)

    def side(work: Callable[[], object]) -> Side:
        return lambda _: wall_rate(len(jobs), work)

    sides = {
        "unsteered": side(lambda: generator.generate(conditionings, latents)),
        "activation": side(lambda: generator.generate(conditionings, latents, activation, rows)),
        "file": side(lambda: generator.generate(conditionings, latents, file, rows)),
        "slider": side(lambda: generator.generate(conditionings, latents, slider, rows)),
    }
    for name in sides:
        sides[name](0)  # the first pass chooses kernels
    rates = in_turn(sides, rounds=given.rounds)
    table = Table(
        [
            compare(name, rates, name, "unsteered", unit="images/s", bar=BAR)
            for name in ("activation", "file", "slider")
        ],
        [f"{len(jobs)} images in a batch, 3 strengths, {given.dtype}, {given.rounds} rounds"],
    )
    print("\n".join(table.lines()))


if __name__ == "__main__":
    main()
