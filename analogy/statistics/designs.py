"""Smaller designs of a run: what fewer pairs and seeds would detect, given a known spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analogy.core.records import Figures
from analogy.statistics.power import min_detectable, pairs_needed
from analogy.statistics.values import MIN_DECISIVE
from analogy.statistics.variances import variances

MIN_PAIRS = 10
"""With fewer pairs a cell's mean and spread are too uncertain to plan with."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The margins of one cell as they were measured: their mean and variance components.

    `mean`: of all images; `between`: the variance between pairs; `within`: the variance between the
    seeds of a pair. With one seed `within` is 0, and `between` contains it.
    """

    mean: float
    between: float
    within: float

    @classmethod
    def of(cls, margins: ArrayLike) -> Spread | None:
        """The spread of margins, shape (pairs, seeds); None below `MIN_PAIRS` complete pairs."""
        table = np.asarray(margins, dtype=np.float64)
        table = table[~np.isnan(table).any(axis=1)]
        if len(table) < MIN_PAIRS:
            return None
        mean = float(table.mean())
        if table.shape[1] < 2:
            return cls(mean, float(table.var(ddof=1)), 0.0)
        found = variances(table)
        return cls(mean, found.between, found.within)

    def sd(self, seeds: int) -> float:
        """The standard deviation of a pair's mean over this number of seeds."""
        return float(np.sqrt(self.between + self.within / seeds))


@dataclass(frozen=True, slots=True)
class SampleSize(Figures):
    """A number of pairs in each category and of seeds, with what they would detect.

    - `detectable`: the true mean margin that a cell of the median spread shows as a success with
      80% power;
    - `decided`: the number of cells, `of` all with a known spread, that are decided either way with
      that power if their true means are those measured.
    """

    pairs: int
    seeds: int
    detectable: float
    decided: int
    of: int


def designs(spreads: Sequence[Spread], *, pairs: int, seeds: int) -> tuple[SampleSize, ...]:
    """The design with these numbers of pairs and seeds, then smaller ones, the largest first.

    The smaller ones have a half or a quarter of the pairs, or just enough pairs for every cell that
    the first design decides; each with all seeds and with one. Empty without spreads.
    """
    if not spreads:
        return ()
    chosen = [(pairs, seeds)]
    for some in dict.fromkeys((seeds, 1)):
        needed = [need for need in _needs(spreads, some) if need <= pairs]
        sizes = {pairs, pairs // 2, pairs // 4, max(needed, default=pairs)}
        chosen += [(n, some) for n in sorted(sizes, reverse=True) if n >= MIN_DECISIVE]
    return tuple(_design(spreads, *size) for size in dict.fromkeys(chosen))


def _design(spreads: Sequence[Spread], pairs: int, seeds: int) -> SampleSize:
    return SampleSize(
        pairs=pairs,
        seeds=seeds,
        detectable=min_detectable(float(np.median([each.sd(seeds) for each in spreads])), pairs),
        decided=sum(need <= pairs for need in _needs(spreads, seeds)),
        of=len(spreads),
    )


def _needs(spreads: Sequence[Spread], seeds: int) -> Iterator[int]:
    """The number of pairs that each cell needs; cells without an effect are left out."""
    for each in spreads:
        need = pairs_needed(each.mean, each.sd(seeds))
        if need is not None:
            yield need
