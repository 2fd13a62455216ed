"""From features to margins: how much closer an image is to the target than to the source.

Embeddings are `(..., dim)`, usually float32 `(n, dim)` as judges give them. Everything is computed
and returned in float32 whatever the input, so that a margin does not depend on the model's own
number format. A row's result does not depend on the other rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def normalize(x: ArrayLike) -> NDArray[np.float32]:
    """`x`, shape (..., dim), scaled to unit L2 length along the last axis.

    Raises `ValueError` for a zero vector, which has no direction, and for NaN and infinity, which
    mean that the encoder failed.
    """
    with np.errstate(over="ignore"):  # too large for float32: infinite, refused below
        vectors = np.asarray(x, dtype=np.float32)
    if vectors.ndim == 0:
        raise ValueError("embeddings: expected the shape (..., dim), got a single number")
    n_broken = np.count_nonzero(~np.isfinite(vectors).all(axis=-1))
    if n_broken:
        raise ValueError(
            f"embeddings: expected finite values, got NaN or infinity in {n_broken} "
            f"vector(s) of the shape {vectors.shape}"
        )
    # Float64 for the length alone: squares of float32 neither overflow nor vanish in it.
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    n_zero = np.count_nonzero(lengths == 0)
    if n_zero:
        raise ValueError(
            f"embeddings: expected vectors other than zero, got {n_zero} zero vector(s) "
            f"of the shape {vectors.shape}"
        )
    unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return unit


def cosine(x: ArrayLike, y: ArrayLike) -> NDArray[np.float32]:
    """Cosine similarity along the last axis, in -1..1.

    `x` and `y` have the same dim; their other axes broadcast as in numpy, so (n, dim) goes with
    (n, dim) row by row and with (dim,) as one vector for all rows. The result has the broadcast
    shape without dim. Raises `ValueError` if the dims differ.
    """
    a, b = normalize(x), normalize(y)
    if a.shape[-1] != b.shape[-1]:  # numpy would broadcast a dim of 1
        raise ValueError(f"embeddings: expected one dim, got the shapes {a.shape} and {b.shape}")
    similarity: NDArray[np.float32] = np.clip((a * b).sum(axis=-1), -1.0, 1.0)
    return similarity


def margin(image: ArrayLike, target: ArrayLike, source: ArrayLike) -> NDArray[np.float32]:
    """Margin cos(image, target) - cos(image, source), -2..2; above 0 if closer to the target.

    All three are embeddings (..., dim) that broadcast as in `cosine`; usually each is (n, dim), one
    row per image with its own pair's prompts. Exchanging target and source negates the margin
    exactly.
    """
    difference: NDArray[np.float32] = cosine(image, target) - cosine(image, source)
    return difference
