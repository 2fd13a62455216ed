"""Inception features for FID and KID: the published network, with clean-fid's resizing."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as blocks

from analogy.core.errors import ModelError
from analogy.core.images import Images, to_tensor
from analogy.metrics.checks import check_images
from analogy.metrics.weights import find_weights, read_weights
from analogy.models.fingerprints import file_fingerprint

INPUT_SIDE = 299


class Inception:
    """The Inception v3 of FID (TensorFlow's of 2015-12-05), by torch-fidelity; 2048 features.

    ``weights`` is a file in the format of torch-fidelity's
    ``weights-inception-2015-12-05-6726825d.pth`` (pytorch-fid's has the same names). None looks
    where torch keeps its downloads. Raises :class:`ModelError` for missing weights, with the file's
    name and the command that fetches it.
    """

    def __init__(self, *, weights: str | PathLike[str] | None = None, device: str = "cpu") -> None:
        path = find_weights(weights, blocks.URL_INCEPTION_V3)
        state = read_weights(path)
        model = _network()
        wanted = set(model.state_dict())
        try:
            found = model.load_state_dict(
                {name: value for name, value in state.items() if name in wanted},
                strict=False,
                assign=True,
            )
        except RuntimeError as error:
            raise ModelError(f"{path}: expected FID's Inception v3 ({error})") from error
        # Batch counters matter to training only, and older files have none.
        missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
        if missing:
            raise ModelError(f"{path}: expected FID's Inception v3, found no {missing[0]}")
        for name in found.missing_keys:
            module, _, buffer = name.rpartition(".")
            setattr(model.get_submodule(module), buffer, None)
        self.fingerprint = file_fingerprint("inception", path)
        self.device = device
        self.model: Any = model.requires_grad_(False).eval().to(device)

    @torch.inference_mode()
    def image_features(self, images: Images, *, batch_size: int = 32) -> NDArray[np.float32]:
        """uint8 NHWC images of any size -> ``(n, 2048)``, the pooled layer before the logits."""
        check_images(images)
        features = [
            self.model(
                (clean_resize(to_tensor(images[i : i + batch_size]).to(self.device)) - 128.0)
                / 128.0
            )
            for i in range(0, len(images), batch_size)
        ]
        return torch.cat(features).float().cpu().numpy()


def clean_resize(images: Tensor, side: int = INPUT_SIDE) -> Tensor:
    """uint8 NCHW -> float NCHW 0..255, ``side`` pixels a side, as clean-fid does: bicubic with
    antialiasing, in floating point, not rounded to bytes.

    Parmar et al. (2022), "On Aliased Resizing and Surprising Subtleties in GAN Evaluation": the
    resizing without antialiasing in older code moves FID by more than models differ.
    """
    resized = F.interpolate(
        images.float(), size=(side, side), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(0.0, 255.0)


def _network() -> nn.Sequential:
    """torch-fidelity's blocks up to the pooled layer, under their names in its file of weights.

    torch-fidelity's own extractor is not used: it runs any code in a file of weights, and resizes.
    """
    with torch.device("meta"):
        layers = {
            "Conv2d_1a_3x3": blocks.BasicConv2d(3, 32, kernel_size=3, stride=2),
            "Conv2d_2a_3x3": blocks.BasicConv2d(32, 32, kernel_size=3),
            "Conv2d_2b_3x3": blocks.BasicConv2d(32, 64, kernel_size=3, padding=1),
            "MaxPool_1": nn.MaxPool2d(kernel_size=3, stride=2),
            "Conv2d_3b_1x1": blocks.BasicConv2d(64, 80, kernel_size=1),
            "Conv2d_4a_3x3": blocks.BasicConv2d(80, 192, kernel_size=3),
            "MaxPool_2": nn.MaxPool2d(kernel_size=3, stride=2),
            "Mixed_5b": blocks.InceptionA(192, pool_features=32),
            "Mixed_5c": blocks.InceptionA(256, pool_features=64),
            "Mixed_5d": blocks.InceptionA(288, pool_features=64),
            "Mixed_6a": blocks.InceptionB(288),
            "Mixed_6b": blocks.InceptionC(768, channels_7x7=128),
            "Mixed_6c": blocks.InceptionC(768, channels_7x7=160),
            "Mixed_6d": blocks.InceptionC(768, channels_7x7=160),
            "Mixed_6e": blocks.InceptionC(768, channels_7x7=192),
            "Mixed_7a": blocks.InceptionD(768),
            "Mixed_7b": blocks.InceptionE_1(1280),
            "Mixed_7c": blocks.InceptionE_2(2048),
            "AvgPool": nn.AdaptiveAvgPool2d((1, 1)),
            "Flatten": nn.Flatten(),
        }
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network
