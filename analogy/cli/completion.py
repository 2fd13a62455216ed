"""Shell completion of values that are on the disk: categories and run folders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from glob import escape, glob
from pathlib import Path
from typing import Any

from analogy.core.errors import AnalogyError
from analogy.models.places import shipped
from analogy.settings.options import csv_list
from analogy.settings.pairs import categories, load_pairs

RUNS = Path(".analogy") / "runs"
"""The default parent of run folders, unless ``--run-dir`` is given."""


def category_names(ctx: Any, incomplete: str) -> list[str]:
    """Completions by the categories in the file ``--pairs``.

    Text before the last comma is kept, and categories in it are not offered again.
    """
    done, comma, begun = incomplete.rpartition(",")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = categories(load_pairs(ctx.params.get("pairs") or shipped("pairs.csv")))
    except AnalogyError:
        return []
    taken = done.split(",")
    return [
        f"{done}{comma}{csv_list([name])}"
        for name in names
        if name.startswith(begun) and name not in taken
    ]


def run_folders(incomplete: str) -> list[str]:
    """Run folders in the default place, and paths that begin with ``incomplete``.

    Folders that are not run folders end with a slash, so that completion can go on below them.
    """
    usual = [str(path) for path in sorted(RUNS.glob("*")) if _is_run(path)]
    found = [name for name in usual if name.startswith(incomplete)]
    found += [name for name in _paths(incomplete) if name not in found]
    return found


def runs(incomplete: str) -> list[str]:
    """Run folders and JSON files."""
    found = run_folders(incomplete)
    files = (path for path in glob(f"{escape(incomplete)}*.json") if Path(path).is_file())
    return [*found, *sorted(files)]


def _paths(incomplete: str) -> Iterator[str]:
    for name in sorted(glob(f"{escape(incomplete)}*")):
        path = Path(name)
        if path.is_dir():
            yield name if _is_run(path) else f"{name}/"


def _is_run(path: Path) -> bool:
    return (path / "index.sqlite").is_file()


COMPLETIONS: dict[str, Callable[..., list[str]]] = {
    "categories": category_names,
    "run_dir": run_folders,
}
"""Option key to the function that completes the option's value."""
