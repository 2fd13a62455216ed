"""The result of a metric of sets or of cost: one number for all images, or for a model."""

from __future__ import annotations

from typing import NamedTuple


class Measurement(NamedTuple):
    """One number for all images or for a model.

    ``n``: the number of images behind it, None for the number of samples; ``notes``: shown beside
    the value.
    """

    value: float
    n: int | None = None
    notes: tuple[str, ...] = ()
