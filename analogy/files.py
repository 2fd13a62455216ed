"""Files written so that a reader, or a run continued after a kill, finds them whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write under another name, flush, rename: what stands at ``path`` is the old file or this.

    An ``OSError`` leaves the old file, and nothing beside it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(path: Path) -> None:
    """Have the names in a folder survive a loss of power; Windows does that by itself."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_regular(path: Path, at_most: int) -> bytes:
    """A regular file's bytes. Raises ``ValueError`` for anything else, and for a larger file.

    Opening a pipe waits for its writer, and a device may have no end.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        is_folder = stat.S_ISDIR(found.st_mode)
        raise ValueError(
            f"expected a regular file, got a {'folder' if is_folder else 'pipe, socket or device'}"
        )
    if found.st_size > at_most:
        raise ValueError(f"expected at most {at_most:,} bytes, got {found.st_size:,}")
    with open(path, "rb") as file:
        return file.read()
