"""The image files of a run folder: ``images/ab/<key>.png``, written completely or not at all.

A file's path follows only from its key. No link is followed out of the folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from analogy.core.fields import MAX_SIZE
from analogy.core.files import check_own, check_regular, flush_folder, write_atomically

#: The folder of images, within a run folder.
FOLDER = "images"

#: Most bytes of an image file: more than any that this suite writes.
MAX_IMAGE_BYTES = 4 * MAX_SIZE**2


def image_name(key: str) -> str:
    """The file of an image, relative to its run folder."""
    return f"{FOLDER}/{key[:2]}/{key}.png"


class ImageStore:
    """The image files of one run folder. Every method raises ``OSError`` if the disk fails."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checked: set[Path] = set()  # folders without a link on the way to them
        self._touched: set[Path] = set()  # folders with files that may not be on the disk yet

    def create(self) -> None:
        """Make the folder of images, and the run folder with it."""
        (self._folder / FOLDER).mkdir(parents=True, exist_ok=True)

    def write(self, key: str, data: bytes) -> str:
        """Write an image's file and return its SHA-256; safe on the disk after :meth:`flush`."""
        path = self._folder / image_name(key)
        path.parent.mkdir(exist_ok=True)
        self._check_place(path)
        write_atomically(path, data)
        self._touched.add(path.parent)
        return hashlib.sha256(data).hexdigest()

    def flush(self) -> None:
        """Flush the folders of all files that were written, so that the names are on the disk."""
        while self._touched:
            flush_folder(self._touched.pop())

    def read(self, key: str) -> bytes:
        """The bytes of an image's file. Raises ``OSError`` if it is not a file of this folder."""
        path = self._folder / image_name(key)
        self._check_place(path)
        check_regular(path, most=MAX_IMAGE_BYTES)
        return path.read_bytes()

    def remove(self, key: str) -> None:
        """Remove an image's file if it exists."""
        path = self._folder / image_name(key)
        self._check_place(path)
        path.unlink(missing_ok=True)

    def _check_place(self, path: Path) -> None:
        """Raise PlaceError, an ``OSError``, if a link on the way leads out of the folder."""
        if path.parent not in self._checked:
            check_own(self._folder, path.parent)
            self._checked.add(path.parent)
