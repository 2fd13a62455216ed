"""The pairs that represent their categories on the report's first screen."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analogy.core.records import UNSTEERED
from analogy.report.gallery import GalleryImage, Strip


@dataclass(frozen=True, slots=True)
class Median:
    """A category's median pair, with its images of the first seed, ascending in alpha."""

    category: str
    strip: Strip
    seed: int
    images: tuple[GalleryImage, ...]


def medians(strips: Sequence[Strip], categories: Sequence[str]) -> Iterator[Median]:
    """The median pair of each category that has images.

    Pairs are ordered by the mean of their margins over the strengths. If their number is even, the
    lower of the two in the middle is taken. A pair that lacks a strength that others have is left
    out.
    """
    for category in categories:
        own = [strip for strip in strips if strip.pair.category == category and strip.rows]
        if own:
            strip = _median(own)
            seed, images = strip.rows[0]
            yield Median(
                category, strip, seed, tuple(image for image in images if not image.is_target)
            )


def _median(strips: Sequence[Strip]) -> Strip:
    margins = [
        [margin for alpha, margin in strip.items.items() if alpha != UNSTEERED] for strip in strips
    ]
    most = max(len(of) for of in margins)
    if not most:
        return strips[0]
    means = [(statistics.fmean(of), i) for i, of in enumerate(margins) if len(of) == most]
    return strips[sorted(means)[(len(means) - 1) // 2][1]]
