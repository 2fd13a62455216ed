"""Samples of values: checks, the mean, an interval, and the sizes at which they decide."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_CLUSTERS = 2
"""With fewer pairs there is neither an interval nor a test."""

MIN_DECISIVE = 6
"""With fewer pairs, an interval and a test are computed but decide nothing; the loader of pairs
warns of such categories."""

ENOUGH_PAIRS = 10
"""With this many pairs or more, intervals also hold for skewed margins (docs/calibration.md)."""

# Values whose spread is below this share of the largest are treated as equal: below it a variance
# in float64 is rounding noise, and scipy's t-test warns (below 1e-14).
SAME = 1e-12


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


def finite(values: ArrayLike, *, ndim: int | None = None) -> NDArray[np.float64]:
    """`values` as float64. Raises `ValueError` if there are none or one is not finite."""
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
    """True if values in ascending order are equal up to rounding."""
    return bool(ordered[-1] - ordered[0] <= SAME * max(abs(ordered[0]), abs(ordered[-1])))


def ordered_mean(ordered: NDArray[np.float64]) -> float:
    """Mean of values in ascending order; rounding does not move it outside of them."""
    return float(np.clip(np.mean(ordered), ordered[0], ordered[-1]))
