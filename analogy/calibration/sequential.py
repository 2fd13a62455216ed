"""Simulations of sequential decisions: wrong verdicts, power, images, intervals, families.

Every cell is decided twice on the same data: look by look by `analogy.statistics.sequential`, and
from all of its images, as in a run that is not sequential. Figures depend only on their arguments.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from analogy.calibration.simulation import CELLS, CORRELATION, DISTRIBUTIONS, Share
from analogy.core.records import SIGNIFICANCE, Verdict
from analogy.statistics import estimates, multiplicity
from analogy.statistics.bootstrap import bootstrap_ci, bootstrap_test, resampled_together
from analogy.statistics.sequential import Decision, Design, decide, items_at
from analogy.statistics.tests import t_test

N_RESAMPLES = 10_000
"""Resamples of the last look and of the fixed verdict: as many as in a run."""

ICC = 0.8
"""Share of an image's variance that is between pairs; the shipped grid has 0.71 to 0.94."""

SEEDS = 3

MIRRORED: Mapping[str, str] = {"mirrored lognormal": "lognormal"}
"""Distributions that are mirrored here: the name of each to the one in `DISTRIBUTIONS`."""

SEQUENTIAL_DISTRIBUTIONS = (
    "normal",
    "clustered",
    "exponential",
    "mirrored exponential",
    "lognormal",
    "mirrored lognormal",
    "Student t(3)",
)

# Cells that share one set of resamples; drawing them one by one would take most of the time.
_TOGETHER = 100


@dataclass(frozen=True)
class Decided:
    """Cells of one configuration, all with the true mean `effect`, decided in both ways.

    `effect`: in standard deviations of a pair's mean over all seeds; `true_mean`: the same in units
    of the margin. `decisions`: look by look. `fixed`: the verdicts from all images; `fixed_p`: the
    larger p of their two tests, or Student's alone if it is too large for a success after Holm's
    adjustment.
    """

    distribution: str
    n: int
    effect: float
    true_mean: float
    decisions: tuple[Decision, ...]
    fixed: tuple[Verdict, ...]
    fixed_p: NDArray[np.float64]

    def share(self, verdict: Verdict) -> Share:
        """The share of cells with this verdict, look by look."""
        hits = sum(decision.verdict is verdict for decision in self.decisions)
        return Share(hits, len(self.decisions))

    def fixed_share(self, verdict: Verdict) -> Share:
        """The share of cells with this verdict, from all images."""
        return Share(sum(found is verdict for found in self.fixed), len(self.fixed))

    @cached_property
    def images(self) -> float:
        """The mean number of images of a cell."""
        return float(np.mean([decision.pairs * decision.seeds for decision in self.decisions]))

    @property
    def covered(self) -> Share:
        """The share of intervals, of the look at which a cell stopped, that hold the true mean."""
        hits = sum(one.ci_low <= self.true_mean <= one.ci_high for one in self.decisions)
        return Share(hits, len(self.decisions))

    def bias(self, *, early: bool) -> float:
        """The cells' mean less the true one, of early stops or of all cells; NaN without cells."""
        found = [one.mean for one in self.decisions if one.is_early or not early]
        return float(np.mean(found)) - self.true_mean if found else math.nan

    def family(self, *, cells: int = CELLS, fixed: bool = False) -> Share:
        """The share of families of ``cells`` cells that have a success after Holm's adjustment.

        The families consist of consecutive cells, in the order in which they were drawn.
        """
        if fixed:
            verdicts, p = list(self.fixed), self.fixed_p
        else:
            verdicts = [one.verdict or Verdict.INCOMPLETE for one in self.decisions]
            p = np.array([one.p_seq for one in self.decisions])
        of = len(p) // cells
        hits = 0
        for i in range(of):
            family = slice(i * cells, (i + 1) * cells)
            adjusted = multiplicity.holm(p[family].tolist())
            hits += any(
                found is Verdict.SUCCESS and value < SIGNIFICANCE
                for found, value in zip(verdicts[family], adjusted, strict=True)
            )
        return Share(hits, of)


def decided(
    distribution: str,
    n: int,
    *,
    effect: float = 0.0,
    icc: float = ICC,
    seeds: int = SEEDS,
    design: Design | None = None,
    repetitions: int = 1_000,
    seed: int = 0,
) -> Decided:
    """Decide `repetitions` cells of `n` pairs with `seeds` seeds each.

    An image's margin is the sum of its pair's part and its own, both from the distribution, with
    the share `icc` of the variance between pairs; clustered data have the correlation 0.5 instead.
    `design`: the suite's unless given.
    """
    design = design or Design.of(n, seeds)
    share = CORRELATION if distribution == "clustered" else icc
    true_mean = effect * math.sqrt(share + (1 - share) / seeds)
    decisions: list[Decision] = []
    fixed: list[tuple[Verdict, float]] = []
    for start in range(0, repetitions, _TOGETHER):
        rng = np.random.default_rng([seed, zlib.crc32(distribution.encode()), n, start])
        tables = margins(rng, distribution, (_TOGETHER, n, seeds), icc=share) + true_mean
        at = int(rng.integers(2**32))  # or all intervals would share the bootstrap's own chance
        tables = tables[: repetitions - start]
        decisions += _decisions(tables, design, at)
        items = [items_at(table, design.looks[-1]) for table in tables]
        with resampled_together(items, n_resamples=N_RESAMPLES, seed=at):
            fixed += [_fixed(one, at) for one in items]
    verdicts, p = zip(*fixed, strict=True)
    return Decided(distribution, n, effect, true_mean, tuple(decisions), verdicts, np.array(p))


def _decisions(tables: NDArray[np.float64], design: Design, seed: int) -> list[Decision]:
    """`decide` for each table; tables that are likely to stop at one look share its resamples."""
    last = len(design.looks) - 1
    likely = np.full(len(tables), last)
    for index in reversed(range(last)):
        look = design.looks[index]
        items = np.stack([items_at(table, look) for table in tables])
        p = np.asarray(scipy.stats.ttest_1samp(items, 0.0, axis=1, alternative="greater").pvalue)
        likely[np.minimum(p, 1 - p) <= look.level] = index
    found: dict[int, Decision] = {}
    for index in set(likely.tolist()):
        look, those = design.looks[index], np.flatnonzero(likely == index).tolist()
        samples = [items_at(tables[i], look) for i in those]
        sides = [side for items in samples for side in (items, -items)]
        with resampled_together(sides, n_resamples=look.n_resamples, seed=seed):
            found |= {i: decide(tables[i], design, seed=seed) for i in those}
    return [found[i] for i in range(len(tables))]


def margins(
    rng: np.random.Generator, distribution: str, shape: tuple[int, int, int], *, icc: float
) -> NDArray[np.float64]:
    """Margins of true mean 0 and variance 1, shape (repetitions, pairs, seeds)."""
    repetitions, n, seeds = shape
    sign = -1.0 if distribution in MIRRORED else 1.0
    name = MIRRORED.get(distribution, distribution)
    if name == "clustered":
        name = "normal"
    source = DISTRIBUTIONS[name]
    pair = source.draw(rng, (repetitions, n))
    image = source.draw(rng, (repetitions, n * seeds)).reshape(shape)
    return sign * (math.sqrt(icc) * pair + math.sqrt(1 - icc) * image) / source.sd


def _fixed(items: NDArray[np.float64], seed: int) -> tuple[Verdict, float]:
    """The verdict from all images, and its p for Holm."""
    p = t_test(items)
    low, high = bootstrap_ci(items, n_resamples=N_RESAMPLES, seed=seed)
    found = estimates.verdict(n=len(items), ci_low=low, ci_high=high, p=p)
    if p < SIGNIFICANCE / CELLS:
        p = max(p, bootstrap_test(items, n_resamples=N_RESAMPLES, seed=seed))
    return found, p
