"""Finds run folders on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

INDEX_NAME = "index.sqlite"

MAX_DEPTH = 3
"""The number of levels below a folder in which run folders are looked for."""


def run_folders(places: Iterable[Path]) -> list[Path]:
    """The run folders at or below these places, each once, sorted within each place.

    A place that is itself a run folder is searched no further. Links below a place are not
    followed, and a folder that cannot be read counts as empty.
    """
    found: dict[str, Path] = {}
    for place in places:
        for path in sorted(_below(place, MAX_DEPTH)):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _below(place: Path, depth: int) -> list[Path]:
    if (place / INDEX_NAME).is_file():
        return [place]
    if depth == 0:
        return []
    try:
        with os.scandir(place) as entries:
            folders = [Path(each) for each in entries if each.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [path for folder in folders for path in _below(folder, depth - 1)]
