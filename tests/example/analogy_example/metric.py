"""A metric of the grid: how much brighter an image is than the unsteered one."""

import numpy as np
from numpy.typing import NDArray

from analogy.grid_metrics import GridMetric, Input, Inputs


def _difference(of: Inputs) -> NDArray[np.float64]:
    """Mean grey levels, ``(n,)``, -255..255."""
    return (of.images.astype(float) - of.unsteered).mean(axis=(1, 2, 3))


brightened = GridMetric(
    name="brightened",
    label="brightened",
    unit="levels",
    unchanged=0.0,
    inputs=frozenset({Input.IMAGES, Input.UNSTEERED}),
    compute=_difference,
)
