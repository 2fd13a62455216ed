"""The shares of the variance of margins that are due to the pair and to the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analogy.core.records import Figures
from analogy.statistics.values import MIN_CLUSTERS

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Variances(Figures):
    """Variances of one image's margin, in squared units of the margin, from `pairs` pairs.

    `between`: between pairs; `within`: between the seeds of a pair. `icc`: the share of `between`,
    0..1; the closer to 1, the less further seeds tell. A missing figure is NaN.
    """

    pairs: int
    between: float = _NAN
    within: float = _NAN
    icc: float = _NAN


def variances(margins: ArrayLike) -> Variances:
    """Variance components of margins, shape (pairs, seeds), from the pairs that have all seeds.

    The analysis-of-variance estimator of the one-way random effects model (Searle, Casella and
    McCulloch 1992, section 3.5), with a negative component set to 0; `icc` is ICC(1,1) of Shrout
    and Fleiss (1979). All figures are NaN for fewer than two such pairs or two seeds.
    """
    table = np.asarray(margins, dtype=np.float64)
    table = table[~np.isnan(table).any(axis=1)]
    n, seeds = table.shape
    if n < MIN_CLUSTERS or seeds < 2:
        return Variances(n)
    within = float(table.var(axis=1, ddof=1).mean())
    between = max(0.0, float(table.mean(axis=1).var(ddof=1)) - within / seeds)
    total = between + within
    return Variances(n, between, within, between / total if total > 0 else _NAN)
