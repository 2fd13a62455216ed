"""Distances between two images, pixel by pixel: PSNR, SSIM and LPIPS, per image."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from scipy.stats import norm
from torchvision.models import get_model_weights

from analogy.core.deferred import deferred
from analogy.core.images import Images, to_tensor
from analogy.metrics.checks import batches, check_same_shape
from analogy.metrics.weights import find_weights
from analogy.models.fingerprints import file_fingerprint

if TYPE_CHECKING:
    from analogy.metrics import lpips_network
else:
    lpips_network = deferred("analogy.metrics.lpips_network")

DATA_RANGE = 255.0
"""From black to white in uint8: a fact of the number format, never taken from an image."""

SSIM_WINDOW = norm.pdf(np.arange(-5, 6), scale=1.5)
SSIM_WINDOW /= SSIM_WINDOW.sum()
"""One axis of SSIM's Gaussian window of 11x11 pixels, sigma 1.5 (Wang et al. 2004)."""

Network = Literal["alex", "vgg", "squeeze"]

BACKBONES: dict[Network, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""Each network's backbone, as torchvision names it."""

_SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}  # in smaller images a layer has nothing to pool


def psnr(
    images: Images, references: Images, *, data_range: float = DATA_RANGE
) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio 10 log10(range² / MSE) per image, in dB; higher is closer.

    Infinite if an image equals its reference. ``images`` and ``references``: uint8 of one shape
    ``(n, height, width, 3)``, paired in order. Returns ``(n,)``.
    """
    check_same_shape(images, references, "psnr")
    _check_range(data_range)
    errors = [_squared_error(x, y) for x, y in zip(images, references, strict=True)]
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(data_range**2 / np.array(errors))


def _squared_error(image: Images, reference: Images) -> float:
    """Mean squared difference of two images of one shape."""
    difference = np.subtract(image, reference, dtype=np.int16).astype(np.float32).ravel()
    return float(difference @ difference) / difference.size


def ssim(
    images: Images,
    references: Images,
    *,
    data_range: float = DATA_RANGE,
    borders: bool = False,
) -> NDArray[np.float64]:
    """Structural similarity per image, -1..1, 1 for equal images; higher is closer.

    Wang et al. (2004), "Image Quality Assessment: From Error Visibility to Structural Similarity",
    eq. 13: a Gaussian window of 11x11, sigma 1.5, K1 0.01, K2 0.03, on each colour channel,
    averaged over the windows that lie within the image, as in the paper and in scikit-image.
    torchmetrics (and Pruna with it) averages windows around every pixel, with mirrored pixels
    beyond the edges. ``borders=True`` does that; its values differ on small images.

    It is computed in float64. torchmetrics' default, float32, loses the variances of flat areas
    (SSIM of a drawing with itself: 0.9997), and its float64 takes ten times as long: see
    docs/metrics.md.

    ``images`` and ``references``: uint8 of one shape ``(n, height, width, 3)``, paired in order, 11
    pixels or more a side. Returns ``(n,)``.
    """
    check_same_shape(images, references, "ssim")
    _check_range(data_range)
    _check_side(images, len(SSIM_WINDOW), "ssim's window")
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = [_ssim(x, y, c1, c2, borders) for x, y in zip(images, references, strict=True)]
    return np.array(values)


def _ssim(image: Images, reference: Images, c1: float, c2: float, borders: bool) -> float:
    """SSIM of two images of one shape, with the paper's constants C1 and C2."""
    x, y = image.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = _windows(x, borders), _windows(y, borders)
    products, squares = 2.0 * mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = 2.0 * _windows(x * y, borders) - products
    variances = _windows(x**2 + y**2, borders) - squares
    similarity = ((products + c1) * (covariance + c2)) / ((squares + c1) * (variances + c2))
    return float(similarity.mean())


def _windows(values: NDArray[np.float64], borders: bool) -> NDArray[np.float64]:
    """Gaussian means of ``(height, width, 3)`` over the windows within the image, or over all."""
    edge = 0 if borders else len(SSIM_WINDOW) // 2
    height, width, _ = values.shape
    columns = correlate1d(values, SSIM_WINDOW, axis=0, mode="mirror")[edge : height - edge]
    return correlate1d(columns, SSIM_WINDOW, axis=1, mode="mirror")[:, edge : width - edge]


class Lpips:
    """The network behind :func:`lpips`, loaded once: torchvision's backbone, and the linear layers
    of version 0.1, which torchmetrics ships.

    ``weights`` is a file in the format of torchvision's for the backbone (``alexnet``, ``vgg16`` or
    ``squeezenet1_1``). None looks where torch keeps its downloads. Raises :class:`ModelError` for
    missing weights, with the file's name and the command that fetches it.
    """

    def __init__(
        self,
        network: Network = "alex",
        *,
        weights: str | PathLike[str] | None = None,
        device: str = "cpu",
    ) -> None:
        if network not in get_args(Network):
            raise ValueError(
                f"network: expected one of {', '.join(get_args(Network))}, got {network!r}"
            )
        url = get_model_weights(BACKBONES[network]).DEFAULT.url
        path = find_weights(weights, url)
        self.network = network
        self.device = device
        self.fingerprint = file_fingerprint(f"lpips-{network}", path)
        self.model: Any = lpips_network.load(network, BACKBONES[network], path).to(device)


@torch.inference_mode()
def lpips(
    images: Images, references: Images, network: Lpips, *, batch_size: int | None = None
) -> NDArray[np.float64]:
    """LPIPS version 0.1 per image, from 0 for equal images; lower is closer.

    Zhang et al. (2018), "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
    by torchmetrics' network, at the images' own size. ``batch_size``: None for about a million
    pixels. ``images`` and ``references``: uint8 of one shape
    ``(n, height, width, 3)``, paired in order. Returns ``(n,)``.
    """
    check_same_shape(images, references, "lpips")
    _check_side(images, _SMALLEST[network.network], f"lpips by {network.network}")
    values = []
    for batch in batches(images, batch_size):
        x, y = (
            to_tensor(part[batch]).to(network.device).float() / 127.5 - 1.0
            for part in (images, references)
        )
        values.append(network.model(x, y).flatten())
    return _numpy(values)


def _check_range(data_range: float) -> None:
    if not 0 < data_range < np.inf:
        raise ValueError(f"data_range: expected a finite number above 0, got {data_range}")


def _check_side(images: Images, smallest: int, whose: str) -> None:
    if min(images.shape[1:3]) < smallest:
        raise ValueError(
            f"images: expected {smallest} pixels or more a side for {whose}, "
            f"got {images.shape[1]}x{images.shape[2]}"
        )


def _numpy(values: list[torch.Tensor]) -> NDArray[np.float64]:
    return torch.cat(values).double().cpu().numpy()
