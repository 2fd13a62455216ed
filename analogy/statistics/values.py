"""Samples of values: their checks, their mean, an interval, and how many decide anything."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_CLUSTERS = 2
"""With fewer pairs there is neither an interval nor a test."""

MIN_DECISIVE = 6
"""With fewer, an interval and a test are computed but decide nothing: 5 pairs or fewer are too few,
as the loader warns."""

ENOUGH_PAIRS = 10
"""With this many or more, intervals also hold for skewed margins (docs/calibration.md)."""

# Values whose spread is below this share of the largest are one value: float64 resolves no more of
# a variance than rounding noise there, and scipy's t-test warns of it (below 1e-14).
SAME = 1e-12


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


def finite(values: ArrayLike, *, ndim: int | None = None) -> NDArray[np.float64]:
    """`values` as float64, at least one of them, all finite."""
    array = np.asarray(values, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"expected an array of {ndim} dimension(s), got the shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"expected at least one value, got the shape {array.shape}")
    n_broken = np.count_nonzero(~np.isfinite(array))
    if n_broken:
        raise ValueError(f"expected finite values, got {n_broken} NaN or infinite of {array.size}")
    return array


def all_same(ordered: NDArray[np.float64]) -> bool:
    """Whether values in ascending order are equal up to rounding."""
    return bool(ordered[-1] - ordered[0] <= SAME * max(abs(ordered[0]), abs(ordered[-1])))


def ordered_mean(ordered: NDArray[np.float64]) -> float:
    """Mean of values in ascending order, kept within them against rounding."""
    return float(np.clip(np.mean(ordered), ordered[0], ordered[-1]))
