"""Effect sizes, detectable margins and the pairs needed."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike
from statsmodels.stats.power import TTestPower

from analogy.statistics.values import MIN_CLUSTERS, MIN_DECISIVE, all_same, finite, ordered_mean

POWER = 0.8
"""The chance of a decision on which the detectable margin and the pairs needed are based."""

MAX_PAIRS = 1_000_000
"""If more pairs than this would be needed, the effect counts as nil."""

# Beyond this d_z, only the uncertainty of the standard deviation matters, to 4 digits.
_LARGE_EFFECT = 100.0


class EffectSize(NamedTuple):
    """Cohen's d_z with its confidence interval."""

    d_z: float
    low: float
    high: float


def effect_size(values: ArrayLike, *, confidence: float = 0.95) -> EffectSize:
    """Cohen's d_z of `values`, shape (n,): their mean in units of their standard deviation.

    The interval inverts the noncentral t distribution (Cumming and Finch 2001) and so assumes
    normal values. It is descriptive: no verdict depends on it. Fewer than two values, and values
    that are equal (to 12 digits), have no d_z: NaN. No value, NaN and infinity raise `ValueError`.
    """
    sample = np.sort(finite(values, ndim=1))
    if len(sample) < MIN_CLUSTERS or all_same(sample):
        return EffectSize(np.nan, np.nan, np.nan)
    d_z = float(ordered_mean(sample) / np.std(sample, ddof=1))
    root, tail = math.sqrt(len(sample)), (1 - confidence) / 2
    if abs(d_z) > _LARGE_EFFECT:
        # Here the uncertainty of the mean is negligible. The inversion's time grows with d_z: for
        # values equal to 9 digits it would take hours.
        df = len(sample) - 1
        ends = d_z * np.sqrt(scipy.stats.chi2.ppf([tail, 1 - tail], df) / df)
        return EffectSize(d_z, float(ends.min()), float(ends.max()))
    low, high = (
        float(scipy.special.nctdtrinc(len(sample) - 1, level, d_z * root)) / root
        for level in (1 - tail, tail)
    )
    return EffectSize(d_z, low, high)


def min_detectable(sd: float, n: int) -> float:
    """Smallest true mean that `n` pairs of standard deviation `sd` show as success in 80% of runs.

    In units of `sd`. Uses the power of the one-sided t-test at 2.5%: a success needs the two-sided
    95% interval above 0, which is stricter than p < 0.05. Returns NaN for fewer than two pairs.
    """
    if n < MIN_CLUSTERS or not math.isfinite(sd):
        return float("nan")
    return sd * _detectable_effect(n)


def pairs_needed(mean: float, sd: float) -> int | None:
    """The number of pairs that decide a true `mean` and `sd`, either way, in 80% of runs.

    It is the inverse of `min_detectable`, and at least `MIN_DECISIVE`. Returns None if it is above
    `MAX_PAIRS`: there is no effect to find.
    """
    if not (math.isfinite(mean) and math.isfinite(sd)) or mean == 0:
        return None
    effect = abs(mean) / sd if sd > 0 else math.inf
    # Normal theory gives a sample size a little below the t-test's.
    if effect * math.sqrt(MAX_PAIRS) < sum(scipy.special.ndtri([1 - _TAIL, POWER])):
        return None
    if effect >= _detectable_effect(MIN_DECISIVE):
        return MIN_DECISIVE
    n = TTestPower().solve_power(effect_size=effect, alpha=_TAIL, power=POWER, alternative="larger")
    return math.ceil(float(n) - 1e-6)  # the solver's tolerance must not add a pair


# A success needs the 95% interval above 0, which is this level one-sided.
_TAIL = 0.025


@cache
def _detectable_effect(n: int) -> float:
    """The d_z that the one-sided t-test at 2.5% finds in 80% of samples of n."""
    effect = TTestPower().solve_power(nobs=n, alpha=_TAIL, power=POWER, alternative="larger")
    return float(effect)
