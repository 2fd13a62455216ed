"""Samples for the tests of statistics, as Hypothesis draws them and by name."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

N_RESAMPLES = 200
"""Few, for speed: the symmetries hold for any number."""

quick = settings(deadline=None, max_examples=40)
margins = st.integers(-2000, 2000).map(lambda k: k / 1000)
"""The range of a margin, in steps coarse enough for repeated values and ties."""
samples = st.lists(margins, min_size=2, max_size=25)

seeds = st.integers(0, 2**32 - 1)


def shuffled(values, seed):
    return np.random.default_rng(seed).permutation(values)


DEGENERATE = {
    "two_values": [0.0] * 6 + [1.0] * 6,
    "two_values_one_once": [0.1] * 49 + [0.2],
    "few_nonzero": [0.0] * 20 + [0.3, -0.2],
    "two_of_three_equal": [0.1, 0.1, 0.4],
    "one_far_off": [*np.linspace(0.0, 0.01, 20), 2.0],
    "close_together": 0.1 + 1e-10 * np.arange(9),
    "tiny": 1e-100 * np.arange(-3, 6),
    **{f"n_{n}": np.random.default_rng(n).normal(size=n) for n in range(2, 7)},
}
