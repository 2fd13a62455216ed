"""One number for all images, or for a model: the result of metrics of sets and of cost."""

from __future__ import annotations

from typing import NamedTuple


class Measurement(NamedTuple):
    """One number for all, with what it rests on and what should be said with it.

    ``n``: images that it is of, None if unknown; ``notes``: shown beside the value.
    """

    value: float
    n: int | None = None
    notes: tuple[str, ...] = ()
