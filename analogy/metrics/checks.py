"""Checks of the arguments of metrics, made before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analogy.core.images import Images

PIXELS_AT_ONCE = 2**20
"""The pixels of a batch if no batch size is given: 256 images of 64x64, one of 1024x1024."""


def check_images(images: Any, what: str = "images") -> None:
    """Raise ``ValueError`` unless images are uint8, ``(n, height, width, 3)``, n > 0."""
    if images is None:
        raise ValueError(f"{what}: this metric compares with {what}, got None")
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[-1] != 3
    ):
        got = (
            f"{images.dtype} of shape {images.shape}"
            if isinstance(images, np.ndarray)
            else type(images).__name__
        )
        raise ValueError(f"{what}: expected uint8 of shape (n, height, width, 3), got {got}")
    if not images.size:
        raise ValueError(f"{what}: expected at least one, got the shape {images.shape}")


def check_same_shape(images: Images, references: Images, metric: str) -> None:
    """Raise ``ValueError`` unless images and references can be compared pixel by pixel."""
    check_images(images)
    check_images(references, "references")
    if images.shape != references.shape:
        raise ValueError(
            f"{metric} compares image by image and pixel by pixel: expected images and references "
            f"of one shape, got {images.shape} and {references.shape}; resize one of the two, or "
            "use a metric of features or of sets (clip_score, fid, kid, cmmd)"
        )


def check_prompts(prompts: Sequence[str], n: int, what: str = "prompts") -> None:
    """Raise ``ValueError`` unless there is one prompt per image."""
    if isinstance(prompts, str):
        raise ValueError(f"{what}: expected a sequence, one per image, got the string {prompts!r}")
    if prompts is None or len(prompts) != n:
        got = "None" if prompts is None else str(len(prompts))
        raise ValueError(f"{what}: expected one for each of the {n} image(s), got {got}")


def finite_features(features: ArrayLike, what: str) -> NDArray[np.float64]:
    """Features as float64 ``(n, dim)``.

    Raises ``ValueError`` for another shape, NaN and infinity.
    """
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"{what}: expected features of shape (n, dim), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what}: expected finite features, got NaN or infinity")
    return values


def two_sets(
    features: ArrayLike, references: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two sets of features as float64 ``(n, dim)`` and ``(m, dim)``.

    Raises ``ValueError`` if one has fewer than two rows, or if their dims differ.
    """
    x, y = finite_features(features, "features"), finite_features(references, "references")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            "features, references: expected the same dim from the same model, "
            f"got the shapes {x.shape} and {y.shape}"
        )
    check_sizes(len(x), len(y))
    return x, y


def check_sizes(n: int, n_references: int) -> None:
    """Raise ``ValueError`` for a set of fewer than two, which has no spread to compare."""
    if min(n, n_references) < 2:
        raise ValueError(
            "a metric of sets compares spreads: expected at least 2 images and 2 references, "
            f"got {n} and {n_references}"
        )


def batches(images: Images, batch_size: int | None) -> Iterator[slice]:
    """Slices over ``images``, ``batch_size`` at a time; None for about a million pixels."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    n, height, width, _ = images.shape
    step = batch_size or max(1, PIXELS_AT_ONCE // (height * width))
    for start in range(0, n, step):
        yield slice(start, start + step)
