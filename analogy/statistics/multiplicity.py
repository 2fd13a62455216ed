"""P-values adjusted for the number of tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats
from numpy.typing import NDArray


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's (1979) adjusted p-values, which control the family-wise error; NaN stays NaN.

    A missing p belongs to no family: the others are adjusted as if it were not in the list.
    statsmodels' ``multipletests`` gives the same, but runs the garbage collector at every call,
    which takes half a second in a process that has imported torch.
    """
    return _of_those_that_exist(p_values, _step_down)


def benjamini_hochberg(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Benjamini and Hochberg's (1995) adjusted p-values, for the false discovery rate; NaN stays
    NaN.
    """
    return _of_those_that_exist(p_values, scipy.stats.false_discovery_control)


def _of_those_that_exist(
    p_values: Sequence[float], adjust: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Adjusted p-values, NaN for missing ones."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    exists = ~np.isnan(p)
    if exists.any():
        adjusted[exists] = adjust(p[exists])
    return adjusted


def _step_down(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each p, from the smallest on, times the number of p from it on; made non-decreasing."""
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return adjusted.clip(max=1.0)
