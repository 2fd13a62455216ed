"""Saves drawings to a file that the user names. Does not import torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from analogy.core.errors import FieldError
from analogy.core.files import is_device, write_output

if TYPE_CHECKING:
    from PIL import Image

#: The formats of saved drawings, by the file's suffix.
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP",
    ".tif": "TIFF", ".tiff": "TIFF", ".pdf": "PDF",
}  # fmt: skip


def picture_format(path: Path) -> str:
    """Pillow's name of the format for a file's suffix; PNG for a device without one.

    Raises ``FieldError``, a ``ValueError``, if the suffix is not one of `FORMATS`.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None and is_device(path):
        return "PNG"
    if kind is None:
        raise FieldError(
            f"expected a name such as steer.png, got {str(path)!r}; end it in one of "
            f"{', '.join(FORMATS)}"
        )
    return kind


def save(drawing: Image.Image, path: Path) -> None:
    """Save a drawing with :func:`analogy.core.files.write_output`.

    Raises ``OSError`` if it cannot be written, and what :func:`picture_format` does.
    """
    stream = io.BytesIO()
    drawing.save(stream, picture_format(path), optimize=True)
    write_output(path, stream.getvalue())
