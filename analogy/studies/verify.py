"""Verifies that a run folder is undamaged and complete.

Each image is decoded and its SHA-256 compared with the recorded one. Every row of the index must
have its image, and the grid of the latest command must have all images and scores.
`analogy.studies.repair` repairs what is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from analogy.core import lock
from analogy.core.files import PlaceError, check_own, check_regular, is_left_by_the_dead
from analogy.core.images import ImageError, from_png
from analogy.core.records import Cell, is_imported
from analogy.core.strict_json import Json
from analogy.core.text import analogy_command, command_line
from analogy.generation.engine import Progress, no_progress
from analogy.store.folder import RunFolder
from analogy.store.grid import Facts, Job
from analogy.store.image_store import image_name
from analogy.store.index import ImageRow
from analogy.studies.extension import jobs_of

#: The number of images that are checked between two reports of progress, and the most lines of each
#: kind that are printed.
CHUNK = 1000
SHOWN = 20

# The files that this suite writes below images/ (_IMAGE) and beside that folder (_OUTPUT). Any
# other file is the user's own.
_IMAGE = re.compile(r"images/([0-9a-f]{2})/(\1[0-9a-f]{30})\.png(\.\d{1,10}\.partial)?")
_OUTPUT = re.compile(
    r"results(-[\w.-]+)?\.json|results/[0-9a-f]{12}\.json|writer\.json|metadata\.jsonl"
    r"|report(-[\w.-]+)?\.html"
)


@dataclass(frozen=True, slots=True)
class Damage:
    """An image whose file does not match the index, with the reason."""

    row: ImageRow
    reason: str

    @property
    def what(self) -> Facts:
        """What the image is in its run, such as its pair, alpha and seed."""
        return dict(json.loads(self.row.what))


@dataclass(frozen=True, slots=True)
class Verified:
    """The state of a run folder.

    - ``images``: the number of images in the index; ``damaged``: those whose files do not match it;
    - ``leftovers``: files without a row in the index, as a killed process leaves them; no damage;
    - ``strays``: table to the number of its rows without an image;
    - ``of``: the number of images in the latest command's grid, None without a command;
      ``missing`` and ``failed``: the images of that grid that were not made, and that failed;
    - ``unscored``: images that the judge of some command has not scored;
    - ``writer``: another process that may still write to the folder, None if there is none;
    - ``is_imported``: whether the latest command's images were imported.
    """

    path: Path
    images: int
    damaged: Sequence[Damage]
    leftovers: Sequence[str]
    strays: Mapping[str, int]
    of: int | None
    missing: Sequence[Job]
    failed: Sequence[tuple[Job, str]]
    unscored: Sequence[Job]
    writer: str | None
    is_imported: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged and nothing of the grid is missing."""
        lacking = (self.damaged, self.strays, self.missing, self.failed, self.unscored)
        return self.of is not None and not any(lacking)

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON."""
        return {
            "run": str(self.path),
            "whole": self.is_whole,
            "images": self.images,
            "grid": self.of,
            "damaged": [
                {**each.what, "path": each.row.path, "reason": each.reason} for each in self.damaged
            ],
            "rows_without_image": dict(self.strays),
            "missing": [job.what for job in self.missing],
            "failed": [{**job.what, "reason": reason} for job, reason in self.failed],
            "unscored": [job.what for job in self.unscored],
            "leftovers": list(self.leftovers),
            "writer": self.writer,
        }

    def lines(self) -> Iterator[str]:
        """What was found, for people."""
        yield f"run       {self.path}: {self.images:,} images in the index"
        if self.writer:
            yield f"writer    {self.writer} writes to it: leftovers may be its work in progress"
        yield from _some(
            "damaged", [f"{each.row.path} ({_said(each.what)}): {each.reason}"
                        for each in self.damaged]
        )  # fmt: skip
        for table, count in self.strays.items():
            yield f"stray     {count:,} rows of {table} belong to no image"
        if self.of is None:
            yield "grid      unknown: no configuration is kept; give the run's command once again"
        yield from _by_cell("missing", self.missing)
        yield from _some("failed", [f"{_said(job.what)}: {reason}" for job, reason in self.failed])
        yield from _by_cell("unscored", self.unscored)
        yield from _some("leftover", list(self.leftovers))
        if self.is_whole:
            yield f"whole     every image is as it was written; the grid's {self.of:,} are complete"
        if self.damaged or self.strays or (self.unscored and not self.missing):
            yield f"next      {analogy_command('verify', self.path, '--repair')}"
        if (self.missing or self.failed) and self.is_imported:
            again = analogy_command("import", self.path, "MANIFEST", "--model-name", "NAME")
            yield f"next      {again} # with the manifest of all images"
        elif self.missing or self.failed:
            command = command_line("pytest", "benchmarks", f"--run-dir={self.path}")
            yield f"next      {command} # with the run's other options"


def _said(what: Facts) -> str:
    return ", ".join(f"{name} {value}" for name, value in what.items())


def _some(kind: str, texts: Sequence[str]) -> Iterator[str]:
    for text in texts[:SHOWN]:
        yield f"{kind:<9} {text}"
    if len(texts) > SHOWN:
        yield f"{kind:<9} ... and {len(texts) - SHOWN:,} more"


def _by_cell(kind: str, jobs: Sequence[Job]) -> Iterator[str]:
    counts = Counter(f"{Cell(job.pair.category, job.alpha)}" for job in jobs)
    yield from _some(kind, [f"{cell}: {count:,} images" for cell, count in counts.items()])


def verify(folder: RunFolder, progress: Progress = no_progress) -> Verified:
    """Check the index, every image, and the grid of the latest command. Changes nothing.

    Takes time linear in the number of images. Raises ``StoreError`` if the index cannot be read.
    """
    folder.check_index()
    rows = folder.image_rows()
    commands = folder.commands()
    sizes = {job.key: command.config.size for command in commands for job in command.jobs()}
    damaged = []
    with ThreadPoolExecutor() as threads:
        for i in range(0, len(rows), CHUNK):
            chunk = rows[i : i + CHUNK]
            reasons = threads.map(lambda row: _fault(folder, row, sizes.get(row.key)), chunk)
            damaged += [Damage(r, why) for r, why in zip(chunk, reasons, strict=True) if why]
            progress(len(chunk))
    jobs = jobs_of(commands[0], folder) if commands else []
    unscored = {
        (job.key, command.judge): job
        for command in commands
        for job in folder.without_score(command.jobs(), command.judge)
    }
    failed = folder.failures(jobs)
    tried = {job.key for job, _ in failed}
    writer = lock.owner(folder.path)
    is_other = writer is not None and writer.pid != os.getpid() and writer.may_be_alive
    return Verified(
        path=folder.path,
        images=len(rows),
        damaged=damaged,
        leftovers=_leftovers(folder.path, {row.path for row in rows}),
        strays=folder.without_owner(),
        of=len(jobs) if commands else None,
        missing=[job for job in folder.without_image(jobs) if job.key not in tried],
        failed=failed,
        unscored=list(unscored.values()),
        writer=str(writer) if is_other else None,
        is_imported=bool(commands) and is_imported(commands[0].model),
    )


def _fault(folder: RunFolder, row: ImageRow, size: int | None) -> str | None:
    """Why a file is not the image that was written; None if it is.

    ``size``: the expected pixels a side, None if no command has this image.
    """
    if row.path != image_name(row.key):
        return "the index names a place where this suite writes no images"
    try:
        data = folder.read_file(row.key)
    except FileNotFoundError:
        return "there is no such file"
    except PlaceError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if hashlib.sha256(data).hexdigest() != row.sha256:
        return f"it is not what was written (SHA-256 differs; {len(data):,} bytes)"
    try:
        height, width, _ = from_png(data).shape
    except ImageError as error:
        return f"it does not decode as a PNG ({error})"
    if size is not None and (height, width) != (size, size):
        return f"it has {width} x {height} pixels, where its run has {size} x {size}"
    return None


def _leftovers(folder: Path, named: set[str]) -> list[str]:
    """Files below images/ without a row in the index, and unfinished files of killed processes.

    Files that the suite did not make are among them; these are reported but never removed.
    """
    images = folder / "images"
    found = () if images.is_symlink() else images.rglob("*")
    files = (path for path in found if path.is_symlink() or not path.is_dir())
    partial = chain(folder.glob("*.partial"), (folder / "results").glob("*.partial"))
    names = (path.relative_to(folder).as_posix() for path in chain(files, partial))
    return sorted(name for name in names if name not in named)


def remove_leftover(folder: RunFolder, name: str) -> bool:
    """Remove a leftover file if the suite made it. Returns whether it was removed.

    The suite made a file if its name is that of an image, in the subfolder that belongs to its key,
    below a folder that only this process writes to; or if it is that of an output (a report, say)
    with the id of a process that has ended. Links, folders and devices are never removed.
    """
    path = folder.path / name
    is_image = _IMAGE.fullmatch(name) is not None
    if not is_image and not is_left_by_the_dead(name, _OUTPUT):
        return False
    try:
        check_own(folder.path, path)
        check_regular(path, most=sys.maxsize)
        path.unlink()
    except OSError:
        return False
    return True
