"""Images read from files: single pictures, folders, and their metadata.jsonl."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from analogy.core.files import read_regular
from analogy.core.images import SUFFIXES, ImageError, Images, list_images, read_image
from analogy.core.text import lines_of
from analogy.evaluation.protocol import TaskError

METADATA = "metadata.jsonl"
"""The metadata file beside images: a JSON object per line, as in Hugging Face's ImageFolder."""

MAX_METADATA_BYTES = 2**30

Picture: TypeAlias = "Path | Images"


def read_picture(picture: Picture) -> Images:
    """The image, uint8 HWC. Raises :class:`~analogy.core.images.ImageError` for an invalid file."""
    return picture if isinstance(picture, np.ndarray) else read_image(picture)


def check_file(path: Path, where: str) -> None:
    """Raises TaskError if the path is not a regular file."""
    if not path.is_file():
        is_there = path.exists()
        what = "expected a regular file, got another kind" if is_there else "no such file"
        raise TaskError(f"{where}: {what}: {path}")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a metadata file. A missing field is None; unknown names are ignored."""

    file_name: str
    text: str | None = None
    seed: int | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class FolderImage:
    """An image file with its fields of the folder's metadata, None if missing."""

    file: Path
    text: str | None = None
    seed: int | None = None
    key: str | None = None


def read_folder(folder: Path) -> list[FolderImage]:
    """The images that a folder's ``metadata.jsonl`` names; without that file, all images below it.

    A line has ``file_name``, relative to the folder, and may have ``text`` (the prompt), ``seed``
    and ``key`` (that of the image in results). Unknown names are ignored.

    Raises TaskError if there are no images, or if a line or a path in it is invalid.
    """
    file = folder / METADATA
    if not os.path.lexists(file):
        try:
            files = list_images(folder)
        except ImageError as error:
            raise TaskError(str(error)) from error
        if not files:
            raise TaskError(
                f"{folder}: expected images ({', '.join(SUFFIXES)}), found none; a pipeline's "
                "folder has model_index.json"
            )
        return [FolderImage(path) for path in files]
    entries = []
    for number, line in read_metadata(file):
        path = Path(line.file_name)
        if path.is_absolute() or path.drive or ".." in path.parts:
            raise TaskError(
                f"{file}, line {number}: file_name: expected a path below the folder, got "
                f"{line.file_name!r}"
            )
        check_file(folder / path, f"{file}, line {number}")
        entries.append(FolderImage(folder / path, line.text, line.seed, line.key))
    if not entries:
        raise TaskError(f"{file}: expected a line for each image, got none; {METADATA_EXAMPLE}")
    return entries


def read_metadata(file: Path) -> list[tuple[int, Line]]:
    """The lines of a metadata file with their numbers, without blank ones.

    Raises TaskError if the file cannot be read or a line is invalid.
    """
    try:
        text = read_regular(file, MAX_METADATA_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise TaskError(f"{file}: expected JSON lines in UTF-8 ({what})") from error
    return [
        (number, line_of(line, f"{file}, line {number}"))
        for number, line in enumerate(lines_of(text), start=1)
        if line.strip()
    ]


METADATA_EXAMPLE = 'such as {"file_name": "0001.png", "text": "a red car", "seed": 0}'


def line_of(line: str, where: str) -> Line:
    """A line of metadata. Raises TaskError if it is invalid."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: expected JSON, {METADATA_EXAMPLE} ({error})") from None
    kinds: dict[str, type] = {"file_name": str, "text": str, "seed": int, "key": str}
    if not isinstance(row, dict) or row.get("file_name") is None:
        raise TaskError(f"{where}: expected an object with file_name, {METADATA_EXAMPLE}")
    for name, kind in kinds.items():
        value = row.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise TaskError(f"{where}: {name}: expected {kind.__name__}, got {value!r}")
    return Line(row["file_name"], row.get("text"), row.get("seed"), row.get("key"))


def by_name(folder: Path) -> dict[str, Path]:
    """A folder's images by their relative path without suffix, so that PNG and JPEG match.

    Raises TaskError if two images have the same name.
    """
    found: dict[str, Path] = {}
    for entry in read_folder(folder):
        name = entry.file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise TaskError(
                f"{folder}: expected one image of a name, got {found[name].name} and "
                f"{entry.file.name}; rename one"
            )
        found[name] = entry.file
    return found


def shown(value: Any) -> str:
    """The type of a value, and its repr cut to 60 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
