"""The input of a metric: images with their prompts and references, and cached features."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from analogy.core.images import Images
from analogy.metrics.features import FeatureModel, set_features

if TYPE_CHECKING:
    from analogy.evaluation.timed import Timed

NEEDS: dict[str, str] = {
    "images": "images to score",
    "prompts": "a prompt for each image",
    "references": "a reference for each image",
    "reference_set": "a set of reference images",
    "sources": "the image before steering of each image",
    "source_prompts": "the prompt before steering of each image",
    "model": "a model that generates",
    "files": "a model that has files",
}
"""The possible needs of a metric, with a description: fields of :class:`Samples`, and ``files``."""

Pictures = Literal["images", "references", "reference_set", "sources"]


class FeatureCache:
    """Features of images, computed once per model for each distinct image, whatever its array."""

    def __init__(self) -> None:
        self._rows: dict[tuple[object, bytes], NDArray[np.float64]] = {}
        self._digests: dict[int, tuple[weakref.ref[Images], list[bytes]]] = {}

    def __call__(self, images: Images, model: FeatureModel) -> NDArray[np.float64]:
        """uint8 NHWC images -> float64 ``(n, dim)``."""
        whose = getattr(model, "fingerprint", model)
        keys = [(whose, digest) for digest in self._digests_of(images)]
        missing = {key: i for i, key in enumerate(keys) if key not in self._rows}
        if missing:
            new = images[list(missing.values())] if len(missing) < len(images) else images
            self._rows.update(zip(missing, set_features(new, model), strict=True))
        return np.stack([self._rows[key] for key in keys])

    def _digests_of(self, images: Images) -> list[bytes]:
        """A digest of each image, computed once in the lifetime of the array."""
        known = self._digests.get(id(images))
        if known is None or known[0]() is not images:
            known = weakref.ref(images), [_digest(image) for image in images]
            self._digests[id(images)] = known
        return known[1]


def _digest(image: Images) -> bytes:
    size = repr(image.shape).encode()
    return hashlib.blake2b(image.tobytes(), digest_size=16, key=size).digest()


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples:
    """Images to measure, with the data of each; missing data is None.

    Images are uint8, 0..255, ``(n, height, width, 3)``, and cannot be written to.

    - `keys`: the name of each image in results; n;
    - `images`: the model's images; in pairwise mode the second model's; n;
    - `prompts`: what each image should show (for word pairs the target prompt); n;
    - `references`: the image that each one is compared with; n. Single mode: the image given with
      its prompt, or the image at alpha 0. Pairwise mode: the first model's image of the same key;
    - `reference_set`: the images that all are compared with; any number, all of one size. Pairwise
      mode: the first model's images;
    - `sources`, `source_prompts`: for word pairs, the image of the same pair and seed at alpha 0,
      and its prompt; n;
    - `model`: the model itself, to be timed; only for metrics that need it.
    """

    keys: tuple[str, ...]
    images: Images | None = None
    prompts: tuple[str, ...] | None = None
    references: Images | None = None
    reference_set: Images | None = None
    sources: Images | None = None
    source_prompts: tuple[str, ...] | None = None
    model: Timed | None = None
    cache: FeatureCache = field(default_factory=FeatureCache, repr=False)

    def __len__(self) -> int:
        return len(self.keys)

    def features(self, model: FeatureModel, of: Pictures = "images") -> NDArray[np.float64]:
        """Features ``(n, dim)`` of the images in one of the fields, computed once for all metrics.

        ``model``: a judge, ``Inception``, or a function of uint8 NHWC images. Raises ``ValueError``
        if the field is None.
        """
        images = getattr(self, of)
        if images is None:
            raise ValueError(f"features: these samples have no {of}; name it in the metric's needs")
        return self.cache(images, model)


def stacked(images: Mapping[str, Images], what: str) -> Images:
    """uint8 HWC images by name -> one read-only NHWC array.

    Raises ``ValueError`` if sizes differ; the message names two of them.
    """
    check_one_size(images, what)
    array = np.stack(list(images.values()))
    array.flags.writeable = False
    return array


def check_one_size(images: Mapping[str, Images], what: str) -> tuple[int, int] | None:
    """Height and width of all the images; None without images.

    Raises ``ValueError`` if sizes differ; the message names two of them.
    """
    if not images:
        return None
    first_name, first = next(iter(images.items()))
    for name, image in images.items():
        if image.shape != first.shape:
            raise ValueError(
                f"{what}: expected images of one size, got {_size(first)} ({first_name}) and "
                f"{_size(image)} ({name}); resize them to one"
            )
    return first.shape[0], first.shape[1]


def _size(image: Images) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
