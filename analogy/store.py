"""The run folder: which images and scores there are, so that a killed run loses nothing.

Layout (docs/run-folder.md)::

    <run>/index.sqlite     images, scores, work done, and the configurations (SQLite, WAL)
    <run>/images/ab/<key>.png
    <run>/writer.lock, writer.json     the lock of the one process that writes, and who that is

An image is written under another name, flushed and renamed, and only then named in the index, one
transaction a batch: what the index names exists. A key is a digest of all that produced the image,
so an image of another model, dtype or step count is never taken for this run's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar
from urllib.parse import quote

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analogy import checked
from analogy.files import (
    PlaceError,
    check_own,
    check_regular,
    flush_folder,
    write_atomically,
)
from analogy.grid import Command, Job, Subject, TrueMargins, W, Wanted, canonical, digest
from analogy.images import ImageError, Images, from_png, to_png
from analogy.lock import LockedError, WriterLock
from analogy.records import MARGIN_LIMIT, MAX_SIZE, RunConfig, shown
from analogy.text import analogy_command

SCHEMA_VERSION = 2

#: What stands before the reason of an image that was there once and is to be made again.
LOST = "lost: "

#: A larger file is no image of this suite.
MAX_IMAGE_BYTES = 4 * MAX_SIZE**2

#: What the suite writes at the top of a run folder.
_OWN_FILES = re.compile(
    r"index\.sqlite(-wal|-shm|-journal)?|writer\.(lock|json)|results(-[\w.-]+)?\.json|metadata\.jsonl"
)
_OWN_FOLDERS = ("images", "results")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    key TEXT PRIMARY KEY, what TEXT NOT NULL, path TEXT NOT NULL, sha256 TEXT NOT NULL,
    made TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS failures (
    key TEXT PRIMARY KEY, what TEXT NOT NULL, reason TEXT NOT NULL, made TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scores (
    key TEXT NOT NULL REFERENCES images (key), judge TEXT NOT NULL, cos_target REAL NOT NULL,
    cos_source REAL NOT NULL, margin REAL NOT NULL, PRIMARY KEY (key, judge));
CREATE TABLE IF NOT EXISTS features (
    key TEXT NOT NULL REFERENCES images (key), judge TEXT NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (key, judge));
CREATE TABLE IF NOT EXISTS metrics (
    key TEXT NOT NULL REFERENCES images (key), metric TEXT NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (key, metric));
CREATE TABLE IF NOT EXISTS work (
    stage TEXT NOT NULL, images INTEGER NOT NULL, seconds REAL NOT NULL, peak_bytes INTEGER,
    done TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS workers (
    name TEXT PRIMARY KEY, images INTEGER NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS commands (
    digest TEXT PRIMARY KEY, config TEXT NOT NULL, pairs TEXT NOT NULL, model TEXT NOT NULL,
    judge TEXT NOT NULL, scheduler TEXT NOT NULL, lora TEXT, done TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ceilings (command TEXT PRIMARY KEY, margins TEXT NOT NULL);
"""
_OF_IMAGES = ("scores", "features", "metrics")

# Keys that are looked up in one query; SQLite of old takes 999 parameters.
_LOOKED_UP = 500

# Of the index in memory, where SQLite's own 2,000 KB are read anew for almost every key: the keys
# of a million images take 46 MB.
_CACHE_KB = 64_000


class StoreError(RuntimeError):
    """A run folder cannot be used; the message says why and what to do."""


class ImageRow(NamedTuple):
    """What the index has of an image: ``what`` is JSON, ``path`` relative to the folder."""

    key: str
    what: str
    path: str
    sha256: str


P = ParamSpec("P")
T = TypeVar("T")


def _explained(
    method: Callable[Concatenate[RunFolder, P], T],
) -> Callable[Concatenate[RunFolder, P], T]:
    """What the disk or SQLite refuses becomes a :class:`StoreError` that says what to do."""

    @wraps(method)
    def call(self: RunFolder, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):  # of our own making
            raise
        except (OSError, sqlite3.DatabaseError) as error:
            raise StoreError(f"run folder {self.path}: {_advice(error)}") from error

    return call


def _advice(error: OSError | sqlite3.DatabaseError) -> str:
    """What happened, that nothing is lost by it, and what to do."""
    number, text = getattr(error, "errno", None), str(error)
    again = "What was done before is kept"
    if number in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in text:
        return f"the disk is full ({text}). {again}: free space and give the same command again"
    if isinstance(error, PlaceError):
        return text
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or "readonly" in text:
        return (
            f"expected a folder that can be written ({text}). {again}: give this user the right to "
            "write there, and the same command again"
        )
    is_text = "Could not decode to UTF-8" in text  # that of a column, which is the index's damage
    if isinstance(error, (OSError, sqlite3.OperationalError)) and not is_text:
        return f"{text}. {again}: see to the disk, and give the same command again"
    return (
        f"its index is damaged ({text}). Bring index.sqlite back from a copy, save what can be "
        "read with 'sqlite3 index.sqlite .recover | sqlite3 new.sqlite', or delete index.sqlite "
        "and index.sqlite-wal to start anew"
    )


class RunFolder:
    """Images, scores and timings of a run. Opened for writing by one process at a time.

    ``read_only``: for those that only look; they need no right to write, and never wait. ``note``
    says if the lock was taken over from a process that died. Whatever the disk or the index
    refuses is a :class:`StoreError`.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.note: str | None = None
        self._lock: WriterLock | None = None
        self._plain: set[Path] = set()
        try:
            _check_own_files(path)
            if read_only:
                self._db = _connected_to_read(path)
            else:
                (path / "images").mkdir(parents=True, exist_ok=True)
                self._lock = WriterLock(path)
                self._db = sqlite3.connect(path / "index.sqlite", timeout=30.0)
        except LockedError as error:
            raise StoreError(
                f"run folder {path}: expected no other writer, but {error} writes to it; wait "
                "until it is done, stop it, or choose another folder with --run-dir"
            ) from error
        except (OSError, ValueError, sqlite3.Error) as error:  # ValueError: a NUL in the path
            self._release()
            raise self._unusable(error, read_only=read_only) from error
        try:
            self._db.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
            self._db.execute("PRAGMA trusted_schema = OFF")
            checked.check_tables(self._db, _SCHEMA)
            version = self._meta("schema_version", int) if self._has_table("meta") else None
            if version not in (None, SCHEMA_VERSION):
                raise StoreError(
                    f"run folder {path}: expected schema version {SCHEMA_VERSION}, got {version}; "
                    "it was written by another version of this suite: choose another with "
                    "--run-dir, or use that version"
                )
            if not read_only:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.executescript(_SCHEMA)
                if version is None:
                    with self._db:
                        self._set_meta("schema_version", SCHEMA_VERSION)
            elif version is None:
                raise ValueError("no schema version in it")
        except (OSError, ValueError, sqlite3.Error) as error:
            self.close()
            raise self._unusable(error, read_only=read_only) from error
        except BaseException:
            self.close()
            raise
        if self._lock is not None and self._lock.dead is not None:
            self.note = (
                f"the last writer ended without closing it ({self._lock.dead}); what it had "
                "recorded is whole, and this run goes on from there"
            )

    @property
    def _repair(self) -> str:
        """What makes a damaged image again."""
        return f"repair it with: {analogy_command('verify', self.path, '--repair')}"

    def _unusable(self, error: Exception, *, read_only: bool) -> StoreError:
        if "malformed" in str(error) and isinstance(error, sqlite3.DatabaseError):
            return StoreError(f"run folder {self.path}: {_advice(error)}")
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(f"run folder {self.path}: {_advice(error)}")  # type: ignore[arg-type]
        wanted = "a run folder of this suite that can be read"
        do = "check the path"
        if not read_only:
            wanted = "a folder that can be written, with this suite's index or none"
            do = "choose another with --run-dir"
        return StoreError(f"run folder {self.path}: expected {wanted} ({error}); {do}")

    def close(self) -> None:
        """Close the index, and let others write."""
        self._db.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _has_table(self, name: str) -> bool:
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return self._db.execute(query, (name,)).fetchone() is not None

    def _meta(self, name: str, kind: type[T]) -> T | None:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else checked.json(row[0], "meta.value", kind)

    def _set_meta(self, name: str, value: Any) -> None:
        self._db.execute("REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    @_explained
    def record_config(self, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        """Keep the configuration and provenance of the latest command on this folder."""
        with self._db:
            self._set_meta("config", config.to_dict())
            self._set_meta("provenance", dict(provenance))

    @_explained
    def record_command(self, command: Command) -> None:
        """Keep what a command ran: once, however often it is given."""
        pairs = [astuple(pair) for pair in command.pairs]
        row = (
            json.dumps(command.config.to_dict()), json.dumps(pairs, ensure_ascii=False),
            command.model, command.judge, command.scheduler, command.lora,
        )  # fmt: skip
        margins = None if command.ceiling is None else canonical(dict(command.ceiling))
        name = digest(row if margins is None else (*row, margins))
        with self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO commands VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (name, *row, _now()),
            )
            if margins is not None:
                self._db.execute("REPLACE INTO ceilings VALUES (?, ?)", (name, margins))
            self._set_meta("command", name)

    @_explained
    def commands(self) -> list[Command]:
        """What commands ran on this folder, the latest first; none in a folder of old."""
        if not self._has_table("commands"):
            return []
        ceilings = {}
        if self._has_table("ceilings"):
            ceilings = dict(self._db.execute("SELECT command, margins FROM ceilings"))
        found = self._db.execute(
            "SELECT digest, config, pairs, model, judge, scheduler, lora FROM commands "
            "ORDER BY digest = ? DESC, rowid DESC",
            (self._meta("command", str),),
        )
        try:
            return [
                Command(
                    RunConfig.from_dict(checked.json(config, "commands.config", dict)),
                    checked.pairs(pairs, "commands.pairs"),
                    checked.name(model, "commands.model"),
                    checked.name(judge, "commands.judge"),
                    checked.name(scheduler, "commands.scheduler"),
                    None if lora is None else checked.text(lora, "commands.lora"),
                    None if name not in ceilings else _true_margins(ceilings[name]),
                )
                for name, config, pairs, model, judge, scheduler, lora in found
            ]
        except ValueError as error:
            raise StoreError(
                f"run folder {self.path}: the configuration that its index keeps cannot be read "
                f"({error}); give the run's command again, which keeps it anew"
            ) from error

    @_explained
    def check_index(self) -> None:
        """Have SQLite check its own file; damage is a :class:`StoreError`. Linear in its size."""
        (found,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    @_explained
    def image_rows(self) -> list[ImageRow]:
        """All images that the index names."""
        found = []
        for key, what, path, sha256 in self._db.execute(
            "SELECT key, what, path, sha256 FROM images ORDER BY rowid"
        ):
            checked.json(what, "images.what", dict)
            path, sha256 = checked.text(path, "images.path"), checked.text(sha256, "images.sha256")
            found.append(ImageRow(checked.key(key, "images.key"), what, path, sha256))
        return found

    @_explained
    def without_owner(self) -> dict[str, int]:
        """Table to its rows of images that the index does not name, where there are some."""
        counts = {
            table: self._db.execute(
                f"SELECT COUNT(*) FROM {table} WHERE key NOT IN (SELECT key FROM images)"
            ).fetchone()[0]
            for table in _OF_IMAGES
        }
        return {table: count for table, count in counts.items() if count}

    @_explained
    def remove(self, lost: Iterable[tuple[ImageRow, str]]) -> None:
        """Take images out of the index, with all that was found on them, in one transaction.

        Each is kept as failed with its reason, so that it can be made again. Metrics of the images
        of the same pair and seed go too: they compare with the control, which may be among these.
        Rows that belong to no image go as well.
        """
        lost = list(lost)
        compared = {_compared(row) for row, _ in lost}
        stale = [row[:1] for row in self.image_rows() if _compared(row) in compared]
        failed = [(row.key, row.what, LOST + reason, _now()) for row, reason in lost]
        with self._db:
            self._db.executemany("REPLACE INTO failures VALUES (?, ?, ?, ?)", failed)
            self._db.executemany("DELETE FROM metrics WHERE key = ?", stale)
            self._db.executemany("DELETE FROM images WHERE key = ?", [row[:1] for row, _ in lost])
            for table in _OF_IMAGES:
                self._db.execute(f"DELETE FROM {table} WHERE key NOT IN (SELECT key FROM images)")

    @_explained
    def without_image(self, wanted: Iterable[W]) -> list[W]:
        """Those whose image is not there yet, because nobody tried or because it failed."""
        wanted = list(wanted)
        have = {key for (key,) in self._rows_of(wanted, "SELECT key FROM images WHERE")}
        return [each for each in wanted if each.key not in have]

    @_explained
    def without_score(self, wanted: Iterable[W], judge: str) -> list[W]:
        """Those with an image that this judge has not scored yet."""
        wanted = list(wanted)
        query = (
            "SELECT key FROM images WHERE NOT EXISTS "
            "(SELECT 1 FROM scores WHERE scores.key = images.key AND judge = ?) AND"
        )
        open_ = {key for (key,) in self._rows_of(wanted, query, judge)}
        return [each for each in wanted if each.key in open_]

    @_explained
    def failures(self, wanted: Iterable[W]) -> list[tuple[W, str]]:
        """Those whose generation failed when it was last tried, each with the reason."""
        wanted = list(wanted)
        found = self._rows_of(wanted, "SELECT key, reason FROM failures WHERE")
        reasons = {key: checked.text(reason, "failures.reason") for key, reason in found}
        return [(each, reasons[each.key]) for each in wanted if each.key in reasons]

    def _rows_of(self, wanted: Iterable[Wanted], query: str, *values: Any) -> Iterator[Any]:
        """Rows of those images alone; ``query`` lacks the condition on their keys, its last.

        A cell's question so costs the cell and not the index. In the order of keys, in which their
        index lies: a question of the whole run reads it once from front to back.
        """
        keys = sorted({each.key for each in wanted})
        for i in range(0, len(keys), _LOOKED_UP):
            some = keys[i : i + _LOOKED_UP]
            marks = ", ".join("?" * len(some))
            # Whole, so that no reading is left open where what is read turns out to be damaged.
            yield from self._db.execute(f"{query} key IN ({marks})", (*values, *some)).fetchall()

    @_explained
    def add_images(
        self,
        wanted: Sequence[Wanted],
        images: Images,
        seconds: float,
        *,
        faults: Mapping[int, str] | None = None,
        peak_bytes: int | None = None,
        stage: str = "generate",
    ) -> None:
        """Write a batch of uint8 NHWC images as :meth:`add_pngs` does."""
        faults = faults or {}
        pngs = [None if i in faults else to_png(image) for i, image in enumerate(images)]
        self.add_pngs(wanted, pngs, seconds, faults=faults, peak_bytes=peak_bytes, stage=stage)

    @_explained
    def add_pngs(
        self,
        wanted: Sequence[Wanted],
        pngs: Sequence[bytes | None],
        seconds: float,
        *,
        faults: Mapping[int, str],
        peak_bytes: int | None = None,
        stage: str = "generate",
        worker: tuple[str, float] | None = None,
    ) -> None:
        """Write a batch of PNG files, made in ``seconds``, and name them in the index.

        ``faults``: a place in the batch to the reason why there is None: that is kept in the
        image's place. ``peak_bytes``: the most memory of the device that was in use. ``stage``: the
        work that this is the outcome of. ``worker``: who did it, where there are several, and the
        seconds of its own that it took.
        """
        made, failed, touched = [], [], set()
        for i, (each, data) in enumerate(zip(wanted, pngs, strict=True)):
            what = json.dumps(each.what, sort_keys=True, ensure_ascii=False)
            if data is None:
                failed.append((each.key, what, faults[i], _now()))
                continue
            name = image_name(each.key)
            path = self.path / name
            path.parent.mkdir(exist_ok=True)
            self._check_place(path)
            write_atomically(path, data)
            touched.add(path.parent)
            made.append((each.key, what, name, hashlib.sha256(data).hexdigest(), _now()))
        for parent in touched:
            flush_folder(parent)
        with self._db:
            self._db.executemany("REPLACE INTO images VALUES (?, ?, ?, ?, ?)", made)
            self._db.executemany("DELETE FROM failures WHERE key = ?", [row[:1] for row in made])
            self._db.executemany("REPLACE INTO failures VALUES (?, ?, ?, ?)", failed)
            self._add_work(stage, len(made), seconds, peak_bytes)
            if worker is not None:
                self._db.execute(
                    "INSERT INTO workers VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                    "images = images + excluded.images, seconds = seconds + excluded.seconds",
                    (worker[0], len(made), worker[1]),
                )

    def read_image(self, wanted: Wanted) -> Images:
        """One image, uint8 HWC. A file that is missing, changed or no PNG is a StoreError."""
        data = self.read_png(wanted)
        try:
            return from_png(data)
        except ImageError as error:
            raise StoreError(
                f"{self.path / image_name(wanted.key)}: expected a PNG file, got one that cannot "
                f"be decoded ({error}); {self._repair}"
            ) from error

    def read_images(self, wanted: Sequence[Wanted]) -> Images:
        """Images of one size, uint8 NHWC. Raises as :meth:`read_image`, and for other sizes."""
        return stacked([self.read_image(each) for each in wanted], wanted)

    @_explained
    def read_png(self, wanted: Wanted) -> bytes:
        """One image's file. One that is missing or changed is a :class:`StoreError`."""
        query = "SELECT path, sha256 FROM images WHERE key = ?"
        row = self._db.execute(query, (wanted.key,)).fetchone()
        if row is None:
            what = ", ".join(f"{name} {value}" for name, value in wanted.what.items())
            raise StoreError(f"{self.path}: {what}: the index has no such image; generate it first")
        path = self.path / image_name(wanted.key)
        if row[0] != image_name(wanted.key):
            raise StoreError(
                f"{self.path}: the index has {shown(row[0])} as the place of an image, where this "
                f"suite writes none; {self._repair}"
            )
        try:
            data = self.read_file(wanted.key)
        except OSError as error:
            raise StoreError(
                f"{path}: the index names this image but it cannot be read ({error}); "
                f"{self._repair}"
            ) from error
        if hashlib.sha256(data).hexdigest() != row[1]:
            raise StoreError(
                f"{path}: the image is not the one that was written (SHA-256 differs); "
                f"{self._repair}"
            )
        return data

    def read_file(self, key: str) -> bytes:
        """What the file of an image holds. Raises ``OSError`` if it is not a file of this folder.

        Its place follows from its key, whatever the index says, and no link is followed to it.
        """
        path = self.path / image_name(key)
        self._check_place(path)
        check_regular(path, most=MAX_IMAGE_BYTES)
        return path.read_bytes()

    def remove_file(self, key: str) -> None:
        """Remove the file of an image, if there is one and it lies in this folder."""
        path = self.path / image_name(key)
        self._check_place(path)
        path.unlink(missing_ok=True)

    def _check_place(self, path: Path) -> None:
        """Have no link lead out of the folder on the way to an image."""
        if path.parent not in self._plain:
            check_own(self.path, path.parent)
            self._plain.add(path.parent)

    @_explained
    def add_scores(
        self,
        wanted: Sequence[Wanted],
        judge: str,
        rows: Iterable[tuple[float, float, float]],
        seconds: float,
        *,
        features: NDArray[np.float32] | None = None,
    ) -> None:
        """Record (cos_target, cos_source, margin) of each image, scored in ``seconds``.

        ``features``: ``(n, dim)``, what the judge saw, for metrics that ask for more than a score.
        """
        values = [(each.key, judge, *row) for each, row in zip(wanted, rows, strict=True)]
        vectors = [] if features is None else [
            (each.key, judge, row.astype("<f4").tobytes())
            for each, row in zip(wanted, features, strict=True)
        ]  # fmt: skip
        with self._db:
            self._db.executemany("REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", values)
            self._db.executemany("REPLACE INTO features VALUES (?, ?, ?)", vectors)
            self._add_work("score", len(values), seconds)

    @_explained
    def margins(self, jobs: Iterable[Job], judge: str) -> pd.DataFrame:
        """A row per scored job, in the jobs' order: key, pair_id, category, alpha, seed, margin,
        cos_target, cos_source.
        """
        jobs = list(jobs)
        query = "SELECT key, margin, cos_target, cos_source FROM scores WHERE judge = ? AND"
        scored = {row[0]: row[1:] for row in self._rows_of(jobs, query, judge)}
        table = pd.DataFrame(
            [
                (job.key, job.pair.id, job.pair.category, job.alpha, job.seed, *scored[job.key])
                for job in jobs
                if job.key in scored
            ],
            columns=[
                "key", "pair_id", "category", "alpha", "seed", "margin", "cos_target",
                "cos_source",
            ],
        )  # fmt: skip
        _check_scores(table)
        return table

    @_explained
    def image_table(self, jobs: Iterable[Job], judge: str) -> pd.DataFrame:
        """A row per job with an image: what it is, what this judge gave it, and its metrics.

        Columns: key, pair_id, category, the pair's words and prompts, alpha, seed, method (None
        for the control, which has none), path (relative to the folder), margin, cos_target and
        cos_source (NaN where not scored), and one per kept metric (NaN where not measured). A
        metric that looks at features is of this judge.
        """
        found = self._db.execute(
            "SELECT images.key, margin, cos_target, cos_source FROM images "
            "LEFT JOIN scores ON scores.key = images.key AND scores.judge = ?",
            (judge,),
        )
        scored = {key: rest for key, *rest in found}
        metrics: dict[str, dict[str, float]] = {}
        for key, metric, value in self._db.execute("SELECT key, metric, value FROM metrics"):
            name, _, by = checked.name(metric, "metrics.metric").partition("/")
            if by in ("", judge):  # a network of its own is named name-network@digest
                of = metrics.setdefault(name.partition("@")[0], {})
                of[key] = checked.metric(value, "metrics.value")
        jobs = [job for job in jobs if job.key in scored]
        table = pd.DataFrame(
            [
                (
                    job.key, *astuple(job.pair), job.alpha, job.seed,
                    job.what.get("method"), image_name(job.key), *scored[job.key],
                )
                for job in jobs
            ],
            columns=[
                "key", "pair_id", "category", "source_word", "target_word", "source_prompt",
                "target_prompt", "alpha", "seed", "method", "path", "margin", "cos_target",
                "cos_source",
            ],
        )  # fmt: skip
        _check_scores(table[table["margin"].notna()])
        for name in sorted(metrics):
            table[name] = table["key"].map(metrics[name])
        numbers = ["alpha", "margin", "cos_target", "cos_source", *metrics]
        return table.astype({"seed": "int64", **dict.fromkeys(numbers, "float64")})

    @_explained
    def provenance(self) -> dict[str, Any]:
        """What made the latest command's figures; empty in a folder without a command."""
        return dict(self._meta("provenance", dict) or {})

    @_explained
    def features(self, wanted: Iterable[Wanted], judge: str) -> dict[str, NDArray[np.float32]]:
        """What this judge saw of those images that it has scored: key to ``(dim,)``."""
        wanted = list(wanted)
        query = "SELECT key, vector FROM features WHERE judge = ? AND"
        have = checked.vectors(self._rows_of(wanted, query, judge), "features.vector")
        return {each.key: have[each.key] for each in wanted if each.key in have}

    @_explained
    def add_metric(self, metric: str, values: Mapping[str, float]) -> None:
        """Keep a metric's value for each image, by key. ``metric`` says all that it depends on."""
        rows = [(key, metric, value) for key, value in values.items()]
        with self._db:
            self._db.executemany("REPLACE INTO metrics VALUES (?, ?, ?)", rows)

    @_explained
    def metric(self, metric: str, wanted: Iterable[Wanted]) -> dict[str, float]:
        """The values that are kept, by key."""
        wanted = list(wanted)
        query = "SELECT key, value FROM metrics WHERE metric = ? AND"
        found = self._rows_of(wanted, query, metric)
        have = {key: checked.metric(value, "metrics.value") for key, value in found}
        return {each.key: have[each.key] for each in wanted if each.key in have}

    @_explained
    def rate(self, stage: str) -> float | None:
        """Images per second over all recorded work of ``generate`` or ``score``, None if none."""
        images, seconds = self._db.execute(
            "SELECT TOTAL(images), TOTAL(seconds) FROM work WHERE stage = ?", (stage,)
        ).fetchone()
        return checked.rate(images, seconds, "work")

    @_explained
    def worker_rates(self) -> dict[str, float]:
        """Images per second of each worker; empty where there was but one, or none yet."""
        if not self._has_table("workers"):
            return {}
        found = self._db.execute("SELECT name, images, seconds FROM workers ORDER BY name")
        rates = {
            checked.name(name, "workers.name"): checked.rate(images, seconds, "workers")
            for name, images, seconds in found
        }
        return {name: rate for name, rate in rates.items() if rate is not None}

    @_explained
    def peak_memory(self) -> int | None:
        """The most bytes of a device that generating took, None where that was not measured."""
        (most,) = self._db.execute("SELECT MAX(peak_bytes) FROM work").fetchone()
        return None if most is None else checked.count(most, "work.peak_bytes")

    def _add_work(
        self, stage: str, images: int, seconds: float, peak_bytes: int | None = None
    ) -> None:
        row = (stage, images, seconds, peak_bytes, _now())
        self._db.execute("INSERT INTO work VALUES (?, ?, ?, ?, ?)", row)


def stacked(images: Sequence[Images], wanted: Sequence[Wanted]) -> Images:
    """Images of one size as one array. Raises StoreError if they have several sizes."""
    first = images[0].shape
    for image, each in zip(images, wanted, strict=True):
        if image.shape != first:
            height, width, _ = image.shape
            raise StoreError(
                f"image {each.key}: expected {first[1]} x {first[0]} pixels as others of its run, "
                f"got {width} x {height}; repair the run folder with: "
                "python -m analogy verify RUN --repair"
            )
    return np.stack(images)


def folder_name(subject: Subject, **more: str) -> str:
    """The name of the run folder of all images of one subject; ``more``: what sets it apart."""
    return digest({**subject, **more, "schema_version": SCHEMA_VERSION})[:12]


def image_name(key: str) -> str:
    """The file of an image, relative to its run folder."""
    return f"images/{key[:2]}/{key}.png"


def _check_scores(table: pd.DataFrame) -> None:
    """Raises DamageError if scores are not numbers such as a judge gives."""
    for column in ("margin", "cos_target", "cos_source"):
        values = table[column]
        if values.dtype != np.float64 or not (values.abs() <= MARGIN_LIMIT).all():
            for value in values:
                checked.number(value, f"scores.{column}", -MARGIN_LIMIT, MARGIN_LIMIT)


def _true_margins(value: Any) -> TrueMargins:
    """A command's own ceiling as the index keeps it. Raises DamageError if it is anything else."""
    place, made = "ceilings.margins", {}

    def margins(side: Any) -> tuple[float, ...]:
        if not isinstance(side, list) or not side:
            raise checked.damage(place, "a list of margins", side)
        return tuple(checked.number(one, place, -MARGIN_LIMIT, MARGIN_LIMIT) for one in side)

    for pair, sides in checked.json(value, place, dict).items():
        if not isinstance(sides, list) or len(sides) != 2:
            raise checked.damage(place, "two lists of margins for each pair", sides)
        target, source = map(margins, sides)
        if len(target) != len(source):
            raise checked.damage(place, "two equally long lists of margins", sides)
        made[checked.text(pair, place)] = (target, source)
    return made


def _compared(row: ImageRow) -> tuple[Any, Any]:
    """What an image's comparison with its control goes by: its pair and seed."""
    what = json.loads(row.what)  # an object: image_rows looked
    return what.get("pair_id"), what.get("seed")


def _check_own_files(path: Path) -> None:
    """Have what the suite writes in a run folder be its own: no link out of it, no pipe."""
    if not path.is_dir():
        return
    with os.scandir(path) as entries:
        for entry in entries:
            is_file = _OWN_FILES.fullmatch(entry.name) is not None
            if not is_file and entry.name not in _OWN_FOLDERS:
                continue
            expected = entry.is_file if is_file else entry.is_dir
            if not expected(follow_symlinks=False):
                raise PlaceError(
                    f"{entry.name} is no {'file' if is_file else 'folder'} of its own but a link "
                    "or something else, which this suite does not make"
                )


def _connected_to_read(path: Path) -> sqlite3.Connection:
    """The index, never written to. Where there is no log to read, its folder may be read-only."""
    index = path / "index.sqlite"
    if not index.is_file():
        raise FileNotFoundError(f"there is no {index.name} in it")
    uri = f"file:{quote(os.fsencode(index.absolute()))}?mode=ro"  # a path need not be UTF-8
    db = sqlite3.connect(uri, uri=True, timeout=30.0)
    try:
        db.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.OperationalError:  # WAL wants a file beside it; with nothing in it, it need not
        db.close()
        log = path / "index.sqlite-wal"
        if log.is_file() and log.stat().st_size:
            raise
        db = sqlite3.connect(f"{uri}&immutable=1", uri=True)
    except BaseException:
        db.close()
        raise
    return db


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
