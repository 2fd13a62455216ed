"""All conversions of image range, size and file format.

Images travel through the suite as uint8, 0..255, sRGB, NHWC numpy arrays.

Reading a file gives the pixels that a viewer shows, so two files that look alike give one image:

- only PNG, JPEG, WebP and BMP are opened, detected by content and never by name;
- 16-bit values lose their low byte; grey, 1-bit and palette images become RGB;
- an EXIF orientation is applied;
- transparent pixels are laid on white; an image that is entirely transparent is refused;
- an RGB or grey ICC profile is applied, unless it is sRGB's within rounding. A damaged profile, or
  one of another colour space, is ignored, as viewers do;
- refused, because viewers differ or there is no single image: CMYK, an animation, a PNG that
  names a gamma, primaries or a colour space other than sRGB's, and a single transparent shade in a
  PNG of 2, 4 or 16 bits. Of a JPEG with several pictures (MPO) the first is taken;
- refused, because decoding could exhaust the memory: files above ``MAX_PIXELS``,
  ``MAX_FILE_BYTES`` or ``MAX_RATIO``. A truncated file is refused, too.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError
from torch import Tensor

from analogy.core.errors import AnalogyError
from analogy.core.files import read_regular

Images = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Pillow's names of the formats that are read. Pillow's other decoders are never used."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Endings of file names by which the images of a folder are found, in any letter case."""

MAX_PIXELS = 8192 * 8192
MAX_RATIO = 64
"""Largest ratio of the longer side to the shorter, which judges resize to their own size."""
MAX_FILE_BYTES = 2**30
"""Twice the bytes of an uncompressed image of ``MAX_PIXELS`` with 4 channels of 16 bits."""

CLUTTER = frozenset(
    {
        "__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
        "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    }
)  # fmt: skip
"""Folders that operating systems make among a user's own, in lower case. Hidden names, with a
leading dot, are left out as well: ``.ipynb_checkpoints``, ``._x.png``."""


class ImageError(AnalogyError, ValueError):
    """An image file or folder cannot be used; the message says what to do."""


def from_unit(images: Tensor) -> Images:
    """Float NCHW 0..1, as a diffusers pipeline gives with ``output_type="pt"``, to uint8 NHWC.

    Rounded, as diffusers' own conversion to PIL does. Raises ``ValueError`` for another shape, and
    for NaN or infinity: the image failed.
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
    """The reason why each of float NCHW 0..1 images failed, None if it did not.

    A decoder that overflows gives NaN or infinity. Other software turns such an image black from
    edge to edge, and a safety checker replaces an image by a black one.
    """
    is_finite = torch.isfinite(images).flatten(1).all(dim=1).tolist()
    brightest = images.nan_to_num().flatten(1).amax(dim=1).tolist()
    return [
        "NaN or infinity from the decoder" if not finite else "black" if top < 0.5 / 255 else None
        for finite, top in zip(is_finite, brightest, strict=True)
    ]


def to_tensor(images: Images) -> Tensor:
    """uint8 NHWC to a uint8 NCHW tensor. Do not write to it: it may share the memory.

    Only the strides change (torch's channels_last), not the order of the values in memory. That
    saves a copy, and torchvision resizes such a tensor in half the time.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            "images: expected uint8 of shape (n, height, width, 3), "
            f"got {images.dtype} of shape {images.shape}"
        )
    # torch takes no read-only array and none with gaps: np.require copies such an array.
    return torch.from_numpy(np.require(images, requirements=["C", "W"])).permute(0, 3, 1, 2)


def to_png(image: Images) -> bytes:
    """One uint8 HWC image as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def from_png(data: bytes) -> Images:
    """A PNG file's bytes as uint8 HWC. Raises :class:`ImageError` if they cannot be used."""
    return _decoded(data, ("PNG",))


def read_image(path: Path) -> Images:
    """An image file as uint8 HWC. Raises :class:`ImageError` if it cannot be used.

    Not thread-safe: it changes Pillow's global settings while it reads.
    """
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: expected an image file ({what}); check the path") from error
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # if a script has set it, missing pixels are grey
    try:
        with warnings.catch_warnings():
            # Warnings about metadata change no pixel; those about sizes are checked below.
            warnings.simplefilter("ignore")
            return _decoded(data, FORMATS, MAX_PIXELS)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def image_files(folder: Path) -> list[Path]:
    """The image files in and below a folder. Raises :class:`ImageError` for fewer than 2 files."""
    files = list_images(folder)
    if len(files) < 2:
        raise ImageError(
            f"expected a folder with 2 images or more ({', '.join(SUFFIXES)}), got {folder} with "
            f"{len(files)}"
        )
    return files


def check_images(files: Sequence[Path]) -> None:
    """Decode every file, one at a time. Raises :class:`ImageError` at the first that fails."""
    for file in files:
        read_image(file)


def list_images(folder: Path) -> list[Path]:
    """The image files in and below a folder, by ``SUFFIXES``, sorted.

    Leaves out hidden files and folders, ``CLUTTER``, and folders behind a link. Raises
    :class:`ImageError` if a folder cannot be read, or if an image's name is not a regular file:
    leaving it out silently would lose an image.
    """
    try:
        files = sorted(_walked(folder))
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        where = getattr(error, "filename", None) or folder
        raise ImageError(f"{where}: expected a folder that can be read ({what})") from error
    for file in files:
        if not file.is_file():
            what = "a link to no file" if file.is_symlink() else "a pipe, socket or device"
            raise ImageError(
                f"{file}: expected an image file, got {what}; put the image there, or remove the "
                "entry"
            )
    return files


def is_clutter(name: str) -> bool:
    """True for the name of a file or folder that is hidden or made by the operating system."""
    return name.startswith(".") or name.lower() in CLUTTER


def _walked(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not is_clutter(name)]
        for name in files:
            if not is_clutter(name) and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(place, name)


# --- what a file shows

_SRGB_GAMMA = 0.45455
_SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_SRGB_CICP = b"\x01\x0d"  # primaries 1 (BT.709), transfer 13 (sRGB)
_NEAR = 0.01  # the programs that write gamma and primaries round them

_ORIENTATION = 0x0112
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _decoded(data: bytes, formats: tuple[str, ...], most: int | None = None) -> Images:
    """A file's bytes as uint8 HWC by this module's rules; ``most``: the most pixels allowed."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            chunks = _png_chunks(data) if image.format == "PNG" else {}
            _check_size(*image.size, most)
            _check_kind(image, chunks)
            image.load()
            return np.asarray(_shown(image))
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"expected an image file of {_listed(formats)}, got another format or a damaged file; "
            "convert it to PNG"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"expected an image file of fewer pixels ({error})") from error
    except Exception as error:  # decoders raise errors of every kind on damaged files
        raise ImageError(
            f"expected an image file of {_listed(formats)} that is complete, got: {error}; "
            "restore or remove it"
        ) from error


def _check_size(width: int, height: int, most: int | None) -> None:
    """Refuse an image that can exhaust the memory, before any pixel is decoded."""
    if most is not None and width * height > most:
        raise ImageError(
            f"expected an image file of at most {most:,} pixels, got {width} x {height}; make it "
            "smaller"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(
            f"expected an image file whose longer side is at most {MAX_RATIO} times the shorter, "
            f"got {width} x {height}; crop it"
        )


def _check_kind(image: Image.Image, chunks: Mapping[bytes, bytes]) -> None:
    """Refuse files without a single image, and images that viewers show differently."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError(
            f"expected an image file with one image, got an animation of {frames}; save the one "
            "to use as PNG"
        )
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"):
        raise ImageError(
            f"expected an image file in grey or RGB, got {image.mode}, which viewers show "
            "differently; convert it to RGB"
        )
    if b"tRNS" in chunks and image.mode != "P" and chunks[b"IHDR"][8] not in (1, 8):
        raise ImageError(
            "expected an image file whose transparency is a channel or is of 8 bits, got a "
            f"transparent shade at {chunks[b'IHDR'][8]} bits; save it with an alpha channel"
        )
    if b"cICP" in chunks:
        is_srgb = chunks[b"cICP"][:2] == _SRGB_CICP
    elif b"iCCP" in chunks or b"sRGB" in chunks:
        is_srgb = True  # _in_srgb applies the profile
    else:
        gamma = image.info.get("gamma") or _SRGB_GAMMA
        primaries = image.info.get("chromaticity", _SRGB_PRIMARIES)
        pairs = zip((gamma, *primaries), (_SRGB_GAMMA, *_SRGB_PRIMARIES), strict=True)
        is_srgb = all(abs(value - expected) <= _NEAR for value, expected in pairs)
    if not is_srgb:
        raise ImageError(
            "expected an image file in sRGB or with an ICC profile, got a PNG that names other "
            "colours (gAMA, cHRM or cICP), which viewers show differently; convert it to sRGB"
        )


def _shown(image: Image.Image) -> Image.Image:
    """The decoded image in RGB, as a viewer shows it."""
    info = image.info
    if image.mode.startswith("I"):  # 16-bit grey, of a PNG
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        image = Image.fromarray(grey)
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in info else "RGB")
    elif "transparency" in info:  # a single shade
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    elif image.mode == "1":
        image = image.convert("L")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    if alpha is not None:
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if info.get("icc_profile"):
        image = _in_srgb(image, info["icc_profile"])
    image = image.convert("RGB")
    if alpha is not None:
        shares = np.asarray(alpha)
        if not shares.any():
            raise ImageError(
                "expected an image file with visible pixels, got one that is entirely transparent; "
                "remove it"
            )
        if shares.min() < 255:
            image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    turned = _TURNED.get(_orientation(info.get("exif")))
    return image if turned is None else image.transpose(turned)


def _orientation(exif: bytes | None) -> int:
    """EXIF's orientation; 1 (unchanged) if it is missing or damaged."""
    if not exif:
        return 1
    try:
        found = Image.Exif()
        found.load(exif)
        return int(found.get(_ORIENTATION, 1))
    except Exception:  # viewers ignore damaged EXIF, too
        return 1


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image in L or RGB, with its ICC profile applied."""
    transform = _transform(profile, image.mode)
    if transform is None:
        return image
    return ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from this profile to sRGB; None if it is sRGB, damaged, or of another mode."""
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if given.profile.xcolor_space.strip() != {"L": "GRAY", "RGB": "RGB"}[mode]:
            return None
        transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
        probe = _probe(mode)
        changed = ImageCms.applyTransform(probe, transform)
    except (OSError, ImageCms.PyCMSError):
        return None
    moved = np.asarray(changed, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    return None if np.abs(moved).max() <= 2 else transform


def _probe(mode: str) -> Image.Image:
    """An image of one row: every grey, and for RGB also a grid of 12 x 12 x 12 colours."""
    greys = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(greys[None])
    steps = np.linspace(0, 255, 12).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    return Image.fromarray(np.concatenate([np.stack([greys] * 3, axis=1), colours])[None])


def _png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The first bytes of each chunk of a PNG before its pixels, at most 16, by chunk name."""
    found: dict[bytes, bytes] = {}
    at = 8
    while at + 8 <= len(data) and (name := data[at + 4 : at + 8]) != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        found[name] = data[at + 8 : at + 8 + min(length, 16)]
        at += 12 + length
    return found


def _listed(formats: Sequence[str]) -> str:
    return ", ".join(formats)
