"""Image range, size and file format: converted here and nowhere else.

Images travel through the suite as uint8, 0..255, sRGB, NHWC numpy arrays.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Images = NDArray[np.uint8]


def from_unit(images: Tensor) -> Images:
    """Float NCHW 0..1, as a diffusers pipeline gives with ``output_type="pt"``, to uint8 NHWC.

    Rounded, as diffusers' own conversion to PIL does. Another shape, and values that are not
    finite, are a ``ValueError``: they are no picture.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            "images: expected float of shape (n, 3, height, width), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if not torch.isfinite(images).all():
        raise ValueError(
            "images: expected finite values, got NaN or infinity from the decoder; "
            "a VAE that overflows in half precision needs dtype float32 or bfloat16"
        )
    scaled = images.float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def faults(images: Tensor) -> list[str | None]:
    """Why each of float NCHW 0..1 images is no picture, None where it is one.

    NaN and infinity are what a decoder gives that overflows; black from edge to edge is what such
    an image becomes in other software, and what a safety checker puts in an image's place.
    """
    is_finite = torch.isfinite(images).flatten(1).all(dim=1).tolist()
    brightest = images.nan_to_num().flatten(1).amax(dim=1).tolist()
    return [
        "NaN or infinity from the decoder" if not finite else "black" if top < 0.5 / 255 else None
        for finite, top in zip(is_finite, brightest, strict=True)
    ]


def to_tensor(images: Images) -> Tensor:
    """uint8 NHWC to a uint8 NCHW tensor, which is to be read only: it may share the memory.

    The axes are moved in the strides alone (torch's channels_last), in which the values stay where
    they are: that saves a copy, and torchvision resizes such a tensor in half the time.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            "images: expected uint8 of shape (n, height, width, 3), "
            f"got {images.dtype} of shape {images.shape}"
        )
    # torch takes no array that is read-only or has gaps: such a one is copied.
    return torch.from_numpy(np.require(images, requirements=["C", "W"])).permute(0, 3, 1, 2)


def to_png(image: Images) -> bytes:
    """One uint8 HWC image as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def from_png(data: bytes) -> Images:
    """A PNG file's bytes as uint8 HWC."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and those below it; fewer than 2 are a ``ValueError``."""
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if len(files) < 2:
        raise ValueError(
            f"expected a folder with 2 images or more ({', '.join(SUFFIXES)}), got {folder} with "
            f"{len(files)}"
        )
    return files


def read_image(path: Path) -> Images:
    """An image file as uint8 HWC; one that is none is a ``ValueError``."""
    try:
        return from_png(path.read_bytes())
    except OSError as error:  # Pillow's, too
        raise ValueError(f"{path}: expected an image file ({error})") from error
