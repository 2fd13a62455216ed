"""Features for metrics of sets, from a judge, Inception or any callable; and names of scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analogy.core.images import Images
from analogy.core.text import short_name
from analogy.judges.base import FeatureEncoder
from analogy.judges.open_clip import judge_batch
from analogy.metrics.checks import batches, check_images, check_sizes, finite_features


class SmallSampleWarning(UserWarning):
    """A set is so small that the metric is more bias than distance."""


@runtime_checkable
class Encoder(Protocol):
    """Turns images into features.

    :class:`analogy.judges.open_clip.Judge` and ``Inception`` are encoders.
    """

    fingerprint: str

    def image_features(self, images: Images, *, batch_size: int) -> NDArray[np.float32]:
        """uint8 NHWC images -> ``(n, dim)``."""
        ...


FeatureModel: TypeAlias = Encoder | Callable[[Images], ArrayLike]
"""An encoder, or a function of a batch of uint8 NHWC images that returns ``(batch, dim)``."""


class SetScore(NamedTuple):
    """A metric of two sets: its name with the features used, its value, and the set sizes."""

    name: str
    value: float
    n: int
    n_references: int


def model_name(model: FeatureModel) -> str:
    """The part of a metric's name: the fingerprint up to ``@``, or the function's name.

    Raises ``ValueError`` for a lambda, which has no name: scores of two would share one.
    """
    if isinstance(model, Encoder):
        return short_name(model.fingerprint)
    name = getattr(model, "__name__", type(model).__name__)
    if name == "<lambda>":
        raise ValueError("features: expected a function with a name, got a lambda; use def")
    return name


def score_name(metric: str, *qualifiers: str) -> str:
    """A score's name, such as ``fid``, ``fid (clip-tiny)``, ``cmmd (clip-tiny, unbiased)``."""
    said = ", ".join(qualifier for qualifier in qualifiers if qualifier)
    return f"{metric} ({said})" if said else metric


def set_features(
    images: Images, model: FeatureModel, *, batch_size: int | None = None, what: str = "images"
) -> NDArray[np.float64]:
    """Features of all images, float64 ``(n, dim)``, a batch at a time.

    ``batch_size``: None for a judge's own batch size, and for 32 with other networks, which may be
    as large as Inception.

    Several metrics of the same images and model can share them: ``frechet_distance``,
    ``kernel_distance`` and ``mmd_distance`` take features.
    """
    check_images(images, what)
    if batch_size is None:
        batch_size = judge_batch(images) if isinstance(model, FeatureEncoder) else 32
    rows = []
    for batch in batches(images, batch_size):
        part = images[batch]
        given = (
            model.image_features(part, batch_size=len(part))
            if isinstance(model, Encoder)
            else model(part)
        )
        features = finite_features(given, f"features of {what}")
        if len(features) != len(part):
            raise ValueError(
                f"features of {what}: expected one row for each of {len(part)} image(s), "
                f"got the shape {features.shape}"
            )
        rows.append(features)
    return np.concatenate(rows)


def features_of_both(
    images: Images, references: Images, model: FeatureModel, batch_size: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features of two sets, both checked before any is computed."""
    check_images(images)
    check_images(references, "references")
    check_sizes(len(images), len(references))
    return (
        set_features(images, model, batch_size=batch_size),
        set_features(references, model, batch_size=batch_size, what="references"),
    )
