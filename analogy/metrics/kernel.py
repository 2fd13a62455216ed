"""KID and CMMD: the maximum mean discrepancy between two sets of images, by two kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analogy.core.images import Images
from analogy.judges.margin import normalize
from analogy.judges.open_clip import Judge
from analogy.metrics.checks import two_sets
from analogy.metrics.features import (
    FeatureModel,
    SetScore,
    features_of_both,
    model_name,
    score_name,
)
from analogy.metrics.inception import Inception

Estimator = Literal["biased", "unbiased"]
Matrix: TypeAlias = NDArray[np.float64]
Kernel: TypeAlias = Callable[[Matrix, Matrix], Matrix]

CMMD_JUDGE = "ViT-L-14-336-quickgelu/openai"
"""Fingerprint of the published judge. In open_clip, ``ViT-L-14-336`` with the same weights has the
wrong activation (GELU for QuickGELU) and so other features."""

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0

BLOCK = 1024
"""Rows and columns of a kernel matrix held at once: 8 MiB in float64, for any n."""


def kid(
    images: Images,
    references: Images,
    features: FeatureModel,
    *,
    batch_size: int | None = None,
) -> SetScore:
    """Kernel inception distance of two sets, lower is closer; around 0 if from one distribution.

    Bińkowski et al. (2018), "Demystifying MMD GANs": the unbiased estimate of the squared MMD under
    the kernel (x'y / dim + 1)³. The estimate is unbiased for every n, and can be slightly negative.
    All images are used once. Published code averages over random subsets of 1,000. That has the
    same expectation and more noise, and needs a seed. The score's name is "kid" only with
    :class:`Inception`.

    ``images`` and ``references``: uint8 NHWC, of any sizes and numbers, at least 2 each.
    """
    name = score_name("kid", "" if isinstance(features, Inception) else model_name(features))
    x, y = features_of_both(images, references, features, batch_size)
    return SetScore(name, kernel_distance(x, y), len(x), len(y))


def kernel_distance(features: ArrayLike, references: ArrayLike, *, block: int = BLOCK) -> float:
    """KID of features ``(n, dim)`` and ``(m, dim)``: unbiased squared MMD, cubic kernel."""
    x, y = two_sets(features, references)
    return squared_mmd(x, y, cubic, estimator="unbiased", block=block)


def cmmd(
    images: Images,
    references: Images,
    judge: Judge,
    *,
    estimator: Estimator = "biased",
    batch_size: int | None = None,
) -> SetScore:
    """CLIP maximum mean discrepancy of two sets, lower is closer.

    Jayasumana et al. (2024), "Rethinking FID": 1000 times the squared MMD of unit CLIP features
    under exp(-|x - y|² / (2 10²)). The published code computes the ``biased`` estimate. It is at
    least 0, and too large by about (1/n + 1/m) times the spread. The ``unbiased`` one is around 0
    for sets of one distribution and may be below. The name is "cmmd" only with the published judge
    (``CMMD_JUDGE``). With others it has the judge's name, "cmmd (clip-tiny)", and the unbiased one
    is "cmmd (clip-tiny, unbiased)".

    ``images`` and ``references``: uint8 NHWC, of any sizes and numbers, at least 2 each.
    """
    _check_estimator(estimator)
    x, y = features_of_both(images, references, judge, batch_size)
    whose = "" if judge.fingerprint == CMMD_JUDGE else model_name(judge)
    name = score_name("cmmd", whose, "" if estimator == "biased" else estimator)
    return SetScore(name, mmd_distance(x, y, estimator=estimator), len(x), len(y))


def mmd_distance(
    features: ArrayLike,
    references: ArrayLike,
    *,
    estimator: Estimator = "biased",
    block: int = BLOCK,
) -> float:
    """CMMD of features ``(n, dim)`` and ``(m, dim)``, normalised here as in the published code."""
    _check_estimator(estimator)
    x, y = two_sets(features, references)
    x, y = normalize(x).astype(np.float64), normalize(y).astype(np.float64)
    return CMMD_SCALE * squared_mmd(x, y, gaussian_less_one, estimator=estimator, block=block)


def cubic(x: Matrix, y: Matrix) -> Matrix:
    """KID's kernel (x'y / dim + 1)³ between rows, ``(n, dim)`` and ``(m, dim)`` -> ``(n, m)``."""
    products = x @ y.T
    products /= x.shape[1]
    products += 1.0
    return products * products * products


def gaussian_less_one(x: Matrix, y: Matrix) -> Matrix:
    """CMMD's kernel exp(-|x - y|² / (2 sigma²)) between rows, minus 1.

    On unit vectors the kernel is 0.98..1, and MMD is a difference of its means, in which the 1
    cancels. Without the 1, the values keep all their digits.
    """
    exponents = x @ y.T  # -|x - y|² / 2 is x'y - |x|² / 2 - |y|² / 2
    exponents -= (x**2).sum(axis=1)[:, None] / 2.0
    exponents -= (y**2).sum(axis=1) / 2.0
    np.minimum(exponents, 0.0, out=exponents)  # rounding, for equal rows
    exponents /= CMMD_SIGMA**2
    return np.expm1(exponents, out=exponents)


def squared_mmd(
    x: Matrix, y: Matrix, kernel: Kernel, *, estimator: Estimator, block: int = BLOCK
) -> float:
    """Squared MMD of ``(n, dim)`` and ``(m, dim)``, n and m at least 2 and not necessarily equal.

    Gretton et al. (2012), "A Kernel Two-Sample Test": ``biased`` is eq. 5, ``unbiased`` eq. 3,
    which leaves each row's kernel with itself out. At most ``block`` x ``block`` values are held.
    """
    _check_estimator(estimator)
    if block < 1:
        raise ValueError(f"block: expected at least 1, got {block}")
    n, m = len(x), len(y)
    (within_x, own_x), (within_y, own_y) = _within(x, kernel, block), _within(y, kernel, block)
    across = _across(x, y, kernel, block) / (n * m)
    if estimator == "biased":
        squared = within_x / n**2 + within_y / m**2 - 2.0 * across
        return max(squared, 0.0)  # rounding, for equal sets
    return (within_x - own_x) / (n * (n - 1)) + (within_y - own_y) / (m * (m - 1)) - 2.0 * across


def _within(x: Matrix, kernel: Kernel, block: int) -> tuple[float, float]:
    """The kernel summed over all pairs of rows of one set, and over rows with themselves."""
    total = own = 0.0
    for i in range(0, len(x), block):
        rows = x[i : i + block]
        corner = kernel(rows, rows)
        total += float(corner.sum())
        own += float(np.trace(corner))
        # Symmetric: blocks above the diagonal count twice.
        for j in range(i + block, len(x), block):
            total += 2.0 * float(kernel(rows, x[j : j + block]).sum())
    return total, own


def _across(x: Matrix, y: Matrix, kernel: Kernel, block: int) -> float:
    """The kernel summed over all pairs of a row of ``x`` and a row of ``y``."""
    return sum(
        float(kernel(x[i : i + block], y[j : j + block]).sum())
        for i in range(0, len(x), block)
        for j in range(0, len(y), block)
    )


def _check_estimator(estimator: str) -> None:
    if estimator not in get_args(Estimator):
        raise ValueError(
            f"estimator: expected one of {', '.join(get_args(Estimator))}, got {estimator!r}"
        )
