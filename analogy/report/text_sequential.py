"""The looks of a sequential run as lines of text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from analogy.core.records import Verdict
from analogy.core.text import display_width, padded, printable, shortened
from analogy.report import numbers
from analogy.results.model import Analysis, Saved, Stop

EARLY = (
    "stopped early: the mean is biased upward, of a failure downward; for a number run the full "
    "grid"
)

_WIDE = 32


def confidence(stop: Stop | None) -> str:
    """The confidence of an interval in percent: that of its look, 95% without a look."""
    return "95%" if stop is None else numbers.confidence(stop)


def look(stop: Stop) -> str:
    """The look in words."""
    return f"look {stop.look} of {stop.looks}"


def is_sequential(analysis: Analysis) -> bool:
    """Whether any figure has a look, as in a sequential run."""
    of = (analysis.overall.stop, *(cell.stop for cell in analysis.cells.values()))
    return any(stop is not None for stop in of)


def looks_table(analysis: Analysis, saved: Saved | None) -> Iterator[str]:
    """The look at which each cell was decided, and the savings; empty if not sequential."""
    if saved is None:
        return
    names = [printable(cell.category) for cell in analysis.cells]
    width = min(max([10, *map(display_width, names)]), _WIDE)
    yield (
        f"{'decided':<{width}} {'alpha':>5} {'look':>6} {'pairs':>5} {'seeds':>5} {'images':>6} "
        f"{'interval':>8} {'p_seq':>8}  verdict"
    )
    for cell, figures in analysis.cells.items():
        name = padded(shortened(printable(cell.category), width), width)
        head, stop = f"{name} {cell.alpha:>5g}", figures.stop
        if stop is None:
            yield f"{head}  {Verdict.INCOMPLETE}: images of a look are missing"
            continue
        at = f"{stop.look} of {stop.looks}"
        mark = " *" if stop.is_early else ""
        yield (
            f"{head} {at:>6} {stop.pairs:>5} {stop.seeds:>5} {stop.images:>6} "
            f"{confidence(stop):>8} {stop.p_seq:>8.2g}  {figures.margin.verdict}{mark}"
        )
    if any(each.stop is not None and each.stop.is_early for each in analysis.cells.values()):
        yield f"*: {EARLY}."
    yield (
        "interval: the confidence of the cell's intervals above, of its look alone; together the "
        "looks' intervals hold with 95%."
    )
    yield from saved_lines(analysis, saved)


def saved_lines(analysis: Analysis, saved: Saved) -> Iterator[str]:
    """The images made and saved, and the ICC, which determines the savings."""
    share = 1 - saved.images / saved.of if saved.of else 0.0
    time = (
        "" if saved.seconds is None else f", {numbers.duration(saved.seconds)} at this run's rate"
    )
    yield (
        f"{saved.images:,} of {saved.of:,} images were needed: {saved.of - saved.images:,} saved "
        f"({share:.1%}{time}); order seed {saved.order_seed}."
    )
    shares = [c.stop.icc for c in analysis.cells.values() if c.stop is not None]
    shares = [each for each in shares if not math.isnan(each)]
    if shares:
        yield (
            f"{statistics.median(shares):.0%} of an image's variance lies between pairs, the rest "
            f"between seeds (median of the {len(shares)} cells with several seeds): the more, the "
            "more one seed of each pair tells."
        )
