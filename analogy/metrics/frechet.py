"""FID: the Fréchet distance between two sets of images, with features modelled as Gaussians."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from analogy.core.images import Images
from analogy.metrics.checks import two_sets
from analogy.metrics.features import (
    FeatureModel,
    SetScore,
    SmallSampleWarning,
    features_of_both,
    model_name,
    score_name,
)
from analogy.metrics.inception import Inception

ENOUGH_IMAGES = 2048
"""Below this, FID's covariance of 2048 features is singular, and its bias, about 1/n, is large."""


def fid(
    images: Images,
    references: Images,
    features: FeatureModel,
    *,
    batch_size: int | None = None,
) -> SetScore:
    """Fréchet inception distance of two sets, from 0; lower is closer.

    Heusel et al. (2017), "GANs Trained by a Two Time-Scale Update Rule": |m1 - m2|² + tr(C1 + C2 -
    2 (C1 C2)^1/2) of the means and covariances of ``features``. Its name is "fid" only with
    :class:`Inception`. With other features it is named after them, as in "fid (clip-tiny)", and its
    scale is another one.

    Raises ``ValueError`` for fewer than 2 images in either set. Fewer than 2,048 give a
    :class:`SmallSampleWarning`, because FID falls with n by an amount that depends on the measured
    model: figures of different n are not comparable. KID has no such bias.

    ``images`` and ``references``: uint8 NHWC, of any sizes and numbers.
    """
    name = score_name("fid", "" if isinstance(features, Inception) else model_name(features))
    x, y = features_of_both(images, references, features, batch_size)
    warn_of_small_sample(name, len(x), len(y))
    return SetScore(name, frechet_distance(x, y), len(x), len(y))


def warn_of_small_sample(name: str, n: int, n_references: int) -> None:
    """Warn with :class:`SmallSampleWarning` if FID's bias may exceed the distance."""
    smallest = min(n, n_references)
    if smallest < ENOUGH_IMAGES:
        warnings.warn(
            f"{name} on {smallest} images: below {ENOUGH_IMAGES:,} its bias (about 1/n, different "
            "for every model) can exceed the differences between models; compare only figures of "
            "equal n, or use kid, which has no such bias",
            SmallSampleWarning,
            stacklevel=3,
        )


def frechet_distance(features: ArrayLike, references: ArrayLike) -> float:
    """Squared Fréchet distance between the Gaussians of two sets of features, float64, from 0.

    With C1 = A'A and C2 = B'B, tr (C1 C2)^1/2 is the sum of the singular values of A B'. So it
    needs no square root of a product of covariances. That product is singular for fewer images than
    features, or for constant features, and the usual code then adds 1e-6 to the diagonal or drops
    imaginary parts. Here A and B are the centred features, or their triangular factors, and nothing
    has to be corrected. Covariances divide by n - 1.

    ``features`` ``(n, dim)``, ``references`` ``(m, dim)``; n and m at least 2.
    """
    x, y = two_sets(features, references)
    a, b = _root(x), _root(y)
    shift = x.mean(axis=0) - y.mean(axis=0)
    overlap = scipy.linalg.svdvals(a @ b.T).sum()
    distance = shift @ shift + (a**2).sum() + (b**2).sum() - 2.0 * overlap
    return max(float(distance), 0.0)  # rounding, for equal sets


def _root(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """A of ``(min(n, dim), dim)`` with A'A the covariance of ``features``, ``(n, dim)``."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    return scipy.linalg.qr(centred, mode="r", check_finite=False, overwrite_a=True)[0][
        : centred.shape[1]
    ]
