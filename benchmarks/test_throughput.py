"""A run's speed against the loop that a user would write, and against the limit of the machine.

``tox -e perf``. Every case times its sides in turn in one run, with the same weights, steps and
images, checks that the outputs are equal, and asserts ratios, since absolute times depend on the
machine. docs/performance.md has the figures and how they were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from analogy.core.records import Pair, RunConfig
from analogy.judges.open_clip import find_judge
from analogy.metrics import psnr
from analogy.models.defaults import native_dtype
from analogy.models.folders import native_size
from analogy.models.places import shipped
from analogy.models.samplings import EMBEDDED_SAMPLING
from analogy.models.sources import find_pipeline
from analogy.sessions.progress import uncaptured
from analogy.settings.pairs import load_pairs, select
from analogy.steering.base import METHODS
from tools import ssd1b
from tools.method_ratios import ratios
from tools.side_by_side import Row, Side, Table, compare, in_turn, wall_rate
from tools.throughput import (
    Generation,
    Scoring,
    analysis_of,
    bca_by_scipy,
    cells_and_pools,
    cpu_seconds,
    difference,
    generation_rows,
    intervals,
    margins,
    pictures,
    vit_b_32,
)

pytestmark = [
    pytest.mark.perf,
    # A library's deprecation warning must not fail a case about speed.
    pytest.mark.filterwarnings("default", "ignore::DeprecationWarning:diffusers.*"),
]

ROUNDS = 5
IMAGES = 512

Hold = Callable[[list[Row]], None]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """The rows of this run, printed at its end."""
    made = Table()
    yield made
    with uncaptured(request.config):
        print("", "", *made.lines(), "", sep="\n")


@pytest.fixture
def hold(table: Table, record_property: Callable[[str, object], None]) -> Hold:
    """Keep the rows of a case, and fail if one is below its bar."""

    def keep(rows: list[Row]) -> None:
        table.rows.extend(rows)
        for row in rows:
            for name, value in asdict(row).items():
                record_property(f"{row.against}: {name}", value)
        below = [str(row) for row in rows if not row.holds]
        if below:
            pytest.fail("below the bar: " + "; ".join(below), pytrace=False)

    return keep


def some_pairs(per_category: int) -> list[Pair]:
    return select(load_pairs(str(shipped("pairs.csv"))), None, per_category)


def config_of(**settings: object) -> RunConfig:
    steps, guidance = EMBEDDED_SAMPLING
    embedded = RunConfig(
        model="embedded", clip_model="embedded", clip_pretrained=None,
        pairs=str(shipped("pairs.csv")), categories=None, alphas=(0.5, 0.8, 1.0), seeds=(0,),
        method="word", steps=steps, guidance=guidance, size=64, dtype=native_dtype("cpu"),
        device="cpu", batch_size=None, limit=None,
    )  # fmt: skip
    return replace(embedded, **settings)  # type: ignore[arg-type]


# --- generation


def equal_images(generation: Generation, n: int) -> None:
    """All sides make the same images of the same latents: within 2/255 in float32, else 35 dB."""
    ours, *others = generation.same_latents(n)
    for other in others:
        is_exact = generation.config.dtype == "float32"
        if difference(ours, other) > 2 if is_exact else psnr(ours, other).min() <= 35.0:
            pytest.fail("the sides do not make the same images of the same latents")


def test_generation(hold: Hold, tmp_path: Path) -> None:
    """The embedded default: 4 times the usual loop, 1.8 times at equal dtype, 85% of the limit.

    576 images a round: 16 batches of 36, as many for each of 2 or 4 threads.
    """
    generation = Generation(
        config_of(), some_pairs(18), find_pipeline("embedded", dtype="float32"), tmp_path
    )
    equal_images(generation, 12)
    hold(
        generation_rows(
            generation, usual=16, rounds=ROUNDS, batches=(16, 32, 64, 75), bars=(4.0, 1.8, 0.85)
        )
    )


def test_methods(hold: Hold, table: Table) -> None:
    """The cost of methods, with mixed alphas in a batch; `tools.method_ratios` has the bars."""
    found = ratios(list(METHODS.builtin), rounds=ROUNDS)
    table.notes.extend(found.notes)
    hold(found.rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_generation_of_ssd_1b(hold: Hold, tmp_path: Path) -> None:
    """SSD-1B's architecture at random weights: 1.5 times the usual loop, 85% of the limit."""
    folder = ssd1b.write(tmp_path / "ssd-1b", device="cuda")
    config = config_of(
        model="SSD-1B at random weights", steps=30, guidance=9.0, size=native_size(folder),
        dtype=native_dtype("cuda"), device="cuda", alphas=(0.5,),
    )  # fmt: skip
    source = find_pipeline(str(folder), dtype=config.dtype)
    generation = Generation(config, some_pairs(2), source, tmp_path)
    equal_images(generation, 4)
    hold(generation_rows(generation, usual=4, rounds=3, batches=(4, 8, 16), bars=(1.5, 1.5, 0.85)))


def test_workers(hold: Hold, tmp_path: Path) -> None:
    """One Ray worker has 90% of the serial rate, and two have 1.6 times the rate of one.

    The first comparison uses all threads on both sides, the second one thread for each worker. 288
    images a round.
    """
    ray = pytest.importorskip("ray")
    from analogy.generation.engine import Setup
    from analogy.generation.ray_engine import RayEngine

    config = config_of()
    source, judge = find_pipeline("embedded", dtype=config.dtype), find_judge("embedded", None)
    generation = Generation(config, some_pairs(9), source, tmp_path)
    ray.init(address="local", num_cpus=8, include_dashboard=False)  # more than run at a time
    try:

        def workers(count: int, threads: int) -> Side:
            settings = replace(config, engine="ray", num_workers=count)
            setup = Setup(settings, generation.pairs, source, judge)
            engine = RayEngine(setup, n_threads=threads)
            engine.prepare()
            engine.wait_for_all()
            return partial(generation.ours, engine=engine)

        rates = in_turn(
            {
                "serial": generation.ours,
                "one with all threads": workers(1, torch.get_num_threads()),
                "two with one": workers(2, 1),
                "one with one": workers(1, 1),
            },
            rounds=3,
        )
    finally:
        ray.shutdown()
    work = partial(compare, rates=rates, unit="images/s")
    hold(
        [
            work("one worker of Ray's", ours="one with all threads", against="serial", bar=0.9),
            work("two workers", ours="two with one", against="one with one", bar=1.6),
        ]
    )


# --- scoring


def equal_scores(scoring: Scoring, n: int) -> None:
    """Features within 1e-3 in the cosine, and margins within 1e-2, of open_clip's own transform."""
    ours, usual = scoring.ours(slice(n)), scoring.usual(slice(n))
    if (ours.features * usual.features).sum(axis=1).min() <= 1 - 1e-3:
        pytest.fail("the features are not those by open_clip's own transform")
    if np.abs(ours.margins - usual.margins).max() >= 1e-2:
        pytest.fail("the margins are not those by open_clip's own transform")


def test_scoring(hold: Hold) -> None:
    """512 images of 1024 pixels: 2.5 times the usual loop, 90% of the bare image tower."""
    scoring = Scoring(vit_b_32("cpu"), pictures(IMAGES, 1024), some_pairs(10), per_pair=12)
    equal_scores(scoring, 12)
    batch_size = scoring.best_batch((8, 16, 32, 64))
    rates = scoring.rates(4, ours=128, usual=16, tower=128, batch_size=batch_size)
    row = partial(compare, "scoring, ViT-B-32, 1024 px, float32", rates, unit="images/s")
    rows = [
        replace(row("ours", "usual", bar=2.5), against="usual loop, one PIL image at a time"),
        replace(
            row("images alone", "tower", bar=0.9),
            against=f"bare image tower, batch {batch_size} (no prompts)",
        ),
    ]
    hold(rows)


def test_scoring_in_bfloat16(hold: Hold, table: Table) -> None:
    """8 times the usual loop in float32, if the processor computes bfloat16."""
    if native_dtype("cpu") != "bfloat16":
        reason = "scoring in bfloat16: not measured, this processor has no bfloat16"
        table.notes.append(reason)
        pytest.skip(reason)
    images, pairs = pictures(IMAGES, 1024), some_pairs(10)
    exact = Scoring(vit_b_32("cpu"), images, pairs, per_pair=12)
    half = Scoring(vit_b_32("cpu", "bfloat16"), images, pairs, per_pair=12)
    error = np.abs(half.ours(slice(48)).margins - exact.ours(slice(48)).margins)
    table.notes.append(
        f"bfloat16's margin against float32's: {error.max():.2g} at most, {error.mean():.2g} in "
        "the mean of 48 images (random weights)"
    )
    part = slice(128)
    rates = in_turn(
        {
            "ours": lambda i: wall_rate(128, lambda: half.ours(part)),
            "usual": lambda i: wall_rate(16, lambda: exact.usual(slice(16 * i, 16 * i + 16))),
        },
        rounds=4,
    )
    row = compare(
        "scoring, ViT-B-32, 1024 px, bfloat16", rates, "ours", "usual", unit="images/s", bar=8.0
    )
    hold([replace(row, against="usual loop in float32")])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scoring_on_a_gpu(hold: Hold) -> None:
    """2.5 times the usual loop. The table also has the rate, to be 1,000, and the bare tower's."""
    scoring = Scoring(vit_b_32("cuda"), pictures(IMAGES, 1024), some_pairs(10), per_pair=12)
    equal_scores(scoring, 48)
    batch_size = scoring.best_batch((64, 128, 256))
    rates = scoring.rates(4, ours=IMAGES, usual=64, tower=4096, batch_size=batch_size)
    row = partial(compare, "scoring on a GPU, ViT-B-32, 1024 px", rates, unit="images/s")
    rows = [row("ours", "usual", bar=2.5), row("images alone", "tower")]
    hold(rows)


# --- statistics


def test_statistics(hold: Hold) -> None:
    """The intervals of all cells and pools of 3,600 margins: twice the rate of scipy's BCa."""
    frame, _ = margins(50)
    samples = cells_and_pools(frame)
    n = len(samples)
    sides = {
        "studentized": lambda i: n / cpu_seconds(lambda: intervals(samples)),
        "BCa": lambda i: n / cpu_seconds(lambda: intervals(samples, "BCa")),
        "scipy": lambda i: n / cpu_seconds(lambda: bca_by_scipy(samples)),
    }
    in_turn(sides, rounds=1)  # imports the libraries
    rates = in_turn(sides, rounds=ROUNDS)
    rows = [
        compare(f"{n} intervals, {ours}", rates, ours, "scipy", unit="intervals/s", bar=bar)
        for ours, bar in (("studentized", 2.0), ("BCa", None))
    ]
    hold([replace(row, against="scipy.stats.bootstrap, BCa") for row in rows])


def test_the_growth_of_statistics(table: Table) -> None:
    """From margins to all figures: at most linear time, with 50% tolerance, up to a million."""
    seconds: dict[int, float] = {}
    analysis_of(*margins(50))  # imports the libraries
    for per_category in (50, 500, 5_000, 13_889):
        frame, pairs = margins(per_category)
        seconds[len(pairs) * 9] = cpu_seconds(lambda f=frame, p=pairs: analysis_of(f, p))  # type: ignore[misc]
    table.notes.append(
        "statistics: "
        + ", ".join(f"{n:,} margins {time:.2f} s" for n, time in seconds.items())
        + " of processor time"
    )
    sizes = sorted(seconds)
    for small, large in pairwise(sizes):
        if seconds[large] / seconds[small] >= 1.5 * large / small:
            pytest.fail(f"statistics of {large:,} margins: slower than linear", pytrace=False)
