"""A report's sentences on the looks of a sequential run (docs/sequential.md)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from analogy.core.records import Verdict
from analogy.report.numbers import counted, duration, number, percent
from analogy.results.model import CellFigures, Results
from analogy.statistics.variances import Variances, variances

_BIASES = {Verdict.SUCCESS: "biased upward", Verdict.FAILURE: "biased downward"}
_NUMBER = "for a number run the full grid"


def is_sequential(results: Results) -> bool:
    """Whether the run is sequential: each cell stopped when it was decided."""
    return results.header.config.is_on("sequential")


def early_note(figures: CellFigures) -> str:
    """A warning about the mean of a cell that stopped early; "" for any other cell."""
    if figures.stop is None or not figures.stop.is_early:
        return ""
    return f"stopped early: the mean is {_bias(figures)}; {_NUMBER}"


def _bias(figures: CellFigures) -> str:
    """The bias of a mean that stopped early. Its direction is unknown if the cell stopped because
    it had little chance of a decision.
    """
    return _BIASES.get(figures.margin.verdict or Verdict.INCOMPLETE, "biased")


def seed_variances(figures: CellFigures) -> Variances | None:
    """The variance of an image's margin between and within pairs; None with one seed."""
    margins = list(figures.seeds.values())
    sizes = {len(of) for of in margins}
    return variances(margins) if len(sizes) == 1 and sizes.pop() > 1 else None


def saved_facts(results: Results) -> Iterator[str]:
    """Sentences on the images made and saved, and on cells that stopped early; none if the run is
    not sequential.
    """
    if not is_sequential(results):
        return
    saved, cells = results.saved, [*results.analysis.cells.values()]
    if saved is not None and saved.of and all(one.stop is not None for one in cells):
        left = saved.of - saved.images
        time = "" if saved.seconds is None else (
            f", which saved {duration(saved.seconds)} at this run's rate"
        )  # fmt: skip
        yield (
            f"Sequential run: {saved.images:,} of the full grid's {counted(saved.of, 'image')} "
            f"were needed; {left:,} ({percent(left / saved.of)}) were not{time}."
        )
    early = [figures for figures in cells if early_note(figures)]
    if early:
        biases = {_bias(figures) for figures in early}
        both = "biased away from 0" if "biased" not in biases else "biased"
        bias = biases.pop() if len(biases) == 1 else both
        yield (
            f"{len(early)} of {counted(len(cells), 'cell')} stopped early: the mean is {bias} "
            f"there; {_NUMBER}."
        )


def variance_said(results: Results) -> str:
    """A sentence on the share of the variance of images that lies between pairs (ICC), which
    determines how much a sequential run saves.
    """
    cells = results.analysis.cells.values()
    found = [figures.stop.icc for figures in cells if figures.stop is not None]
    shares = [icc for icc in found if number(icc) is not None]
    if not shares:
        return (
            "How an image's variance divides into that between pairs and that between the seeds of "
            "a pair (ICC) is not known: every cell stopped with one seed."
        )
    return (
        f"Of the variance of single images, {percent(statistics.median(shares))} lies between "
        "pairs and the rest between the seeds of a pair (ICC, median of "
        f"{counted(len(shares), 'cell')} with several seeds). The larger this share, the less is "
        "lost by looking at one seed of each pair first."
    )


def early_conclusion(results: Results) -> str | None:
    """What the means of cells that stopped early do not show; None without such cells."""
    if not any(early_note(figures) for figures in results.analysis.cells.values()):
        return None
    return (
        "How large the effect is in a cell that stopped early: its mean is too far from 0. "
        "The verdict and the interval hold; for a number run the full grid."
    )


def seeds_said(results: Results) -> str:
    """``3 seeds``, or ``1 or 3 seeds`` in a sequential run whose cells differ."""
    most = len(results.header.measurement.seeds)
    found = {c.stop.seeds for c in results.analysis.cells.values() if c.stop is not None}
    if not is_sequential(results) or not found or found == {most}:
        return counted(most, "seed")
    low, high = min(found), max(found)
    return counted(high, "seed") if low == high else f"{low} or {high} seeds"
