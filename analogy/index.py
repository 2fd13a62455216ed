"""The index of a run folder: its tables in SQLite, and every query on them.

It knows keys and rows, no jobs and no image files. An index may come from anywhere: what is read is
checked, and a value that the suite does not write is a :class:`~analogy.checked.DamageError`. What
SQLite refuses is raised as SQLite's own error.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from analogy import checked
from analogy.grid import Command, TrueMargins, canonical, digest
from analogy.records import MARGIN_LIMIT, RunConfig

SCHEMA_VERSION = 2

#: Name of the index's file.
FILE = "index.sqlite"

#: What stands before the reason of an image that was there once and is to be made again.
LOST = "lost: "

SCHEMA = """
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

# Keys that are looked up in one query; old versions of SQLite take 999 parameters.
_LOOKED_UP = 500

# Of the index in memory, where SQLite's own 2,000 KB are read anew for almost every key: the keys
# of a million images take 46 MB.
_CACHE_KB = 64_000

T = TypeVar("T")


class SchemaVersionError(Exception):
    """An index of another version of the suite; ``version``: which."""

    def __init__(self, version: int) -> None:
        super().__init__(f"schema version {version}")
        self.version = version


class ImageRow(NamedTuple):
    """What the index has of an image: ``what`` is JSON, ``path`` relative to the folder."""

    key: str
    what: str
    path: str
    sha256: str


class FailureRow(NamedTuple):
    """An image that could not be made, and why: ``what`` is JSON."""

    key: str
    what: str
    reason: str


class Scores(NamedTuple):
    """What a judge gave an image."""

    margin: float
    cos_target: float
    cos_source: float


class WorkRow(NamedTuple):
    """A piece of work. ``stage``: generate, score or import; ``peak_bytes``: of a CUDA device."""

    stage: str
    images: int
    seconds: float
    peak_bytes: int | None = None


class Index:
    """The tables of the run folder at ``folder``, open until :meth:`close`.

    Raises what SQLite raises, ``OSError``, ``ValueError`` for an index without a schema version
    that is only read, and :class:`SchemaVersionError`.
    """

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        if read_only:
            self.db = _connected_to_read(folder)
        else:
            self.db = sqlite3.connect(folder / FILE, timeout=30.0)
        try:
            self._check(read_only=read_only)
        except BaseException:
            self.db.close()
            raise

    def _check(self, *, read_only: bool) -> None:
        self.db.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        self.db.execute("PRAGMA trusted_schema = OFF")
        checked.check_tables(self.db, SCHEMA)
        version = self.meta("schema_version", int) if self._has_table("meta") else None
        if version not in (None, SCHEMA_VERSION):
            raise SchemaVersionError(version)
        if not read_only:
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.executescript(SCHEMA)
            if version is None:
                with self.db:
                    self.set_meta("schema_version", SCHEMA_VERSION)
        elif version is None:
            raise ValueError("no schema version in it")

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def _has_table(self, name: str) -> bool:
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return self.db.execute(query, (name,)).fetchone() is not None

    def meta(self, name: str, kind: type[T]) -> T | None:
        """A JSON value by name, None if there is none."""
        row = self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else checked.json(row[0], "meta.value", kind)

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a value as JSON under a name; within a transaction of the caller's."""
        self.db.execute("REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    # --- commands

    def record_config(self, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        """Keep the configuration and provenance of the latest command."""
        with self.db:
            self.set_meta("config", config.to_dict())
            self.set_meta("provenance", dict(provenance))

    def record_command(self, command: Command) -> None:
        """Keep what a command ran: once, however often it is given."""
        pairs = [astuple(pair) for pair in command.pairs]
        row = (
            json.dumps(command.config.to_dict()), json.dumps(pairs, ensure_ascii=False),
            command.model, command.judge, command.scheduler, command.lora,
        )  # fmt: skip
        margins = None if command.ceiling is None else canonical(dict(command.ceiling))
        name = digest(row if margins is None else (*row, margins))
        with self.db:
            self.db.execute(
                "INSERT OR IGNORE INTO commands VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (name, *row, _now()),
            )
            if margins is not None:
                self.db.execute("REPLACE INTO ceilings VALUES (?, ?)", (name, margins))
            self.set_meta("command", name)

    def commands(self) -> list[Command]:
        """All commands, the latest first; empty for an index written before version 2.

        Raises ValueError for a configuration of another version of the suite.
        """
        if not self._has_table("commands"):
            return []
        ceilings = {}
        if self._has_table("ceilings"):
            ceilings = dict(self.db.execute("SELECT command, margins FROM ceilings"))
        found = self.db.execute(
            "SELECT digest, config, pairs, model, judge, scheduler, lora FROM commands "
            "ORDER BY digest = ? DESC, rowid DESC",
            (self.meta("command", str),),
        )
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

    # --- images

    def check_file(self) -> None:
        """Have SQLite check its own file, in time linear in its size.

        Raises DamageError if it is damaged.
        """
        (found,) = self.db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise checked.DamageError(found)

    def image_rows(self) -> list[ImageRow]:
        """All images, in the order in which they were made."""
        found = []
        for key, what, path, sha256 in self.db.execute(
            "SELECT key, what, path, sha256 FROM images ORDER BY rowid"
        ):
            checked.json(what, "images.what", dict)
            path, sha256 = checked.text(path, "images.path"), checked.text(sha256, "images.sha256")
            found.append(ImageRow(checked.key(key, "images.key"), what, path, sha256))
        return found

    def file_of(self, key: str) -> tuple[str, str] | None:
        """The path and SHA-256 of an image's file, None if there is no such image."""
        query = "SELECT path, sha256 FROM images WHERE key = ?"
        found: tuple[str, str] | None = self.db.execute(query, (key,)).fetchone()
        return found

    def with_image(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that have an image."""
        return {key for (key,) in self._rows_of(keys, "SELECT key FROM images WHERE")}

    def without_score(self, keys: Iterable[str], judge: str) -> set[str]:
        """Those of the keys that have an image which this judge has not scored."""
        query = (
            "SELECT key FROM images WHERE NOT EXISTS "
            "(SELECT 1 FROM scores WHERE scores.key = images.key AND judge = ?) AND"
        )
        return {key for (key,) in self._rows_of(keys, query, judge)}

    def failures(self, keys: Iterable[str]) -> dict[str, str]:
        """Key to the reason, of those whose generation failed when it was last tried."""
        found = self._rows_of(keys, "SELECT key, reason FROM failures WHERE")
        return {key: checked.text(reason, "failures.reason") for key, reason in found}

    def add_images(
        self,
        made: Sequence[ImageRow],
        failed: Sequence[FailureRow],
        work: WorkRow,
        worker: tuple[str, float] | None,
    ) -> None:
        """Name images, and keep failures and the time that they took, in one transaction.

        ``worker``: the name of the one among several that made them, and its own seconds.
        """
        now = _now()
        with self.db:
            self.db.executemany(
                "REPLACE INTO images VALUES (?, ?, ?, ?, ?)", [(*row, now) for row in made]
            )
            self.db.executemany("DELETE FROM failures WHERE key = ?", [row[:1] for row in made])
            self.db.executemany(
                "REPLACE INTO failures VALUES (?, ?, ?, ?)", [(*row, now) for row in failed]
            )
            self._add_work(work)
            if worker is not None:
                self.db.execute(
                    "INSERT INTO workers VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                    "images = images + excluded.images, seconds = seconds + excluded.seconds",
                    (worker[0], len(made), worker[1]),
                )

    def without_owner(self) -> dict[str, int]:
        """Table to the number of its rows whose image is missing, where there are some."""
        counts = {
            table: self.db.execute(
                f"SELECT COUNT(*) FROM {table} WHERE key NOT IN (SELECT key FROM images)"
            ).fetchone()[0]
            for table in _OF_IMAGES
        }
        return {table: count for table, count in counts.items() if count}

    def remove(self, lost: Sequence[tuple[ImageRow, str]]) -> None:
        """Remove images, with all that was found on them, in one transaction.

        Each is kept as failed with its reason, so that it can be made again. Metrics of the images
        of the same pair and seed go too: they compare with the unsteered image, which may be among
        these. Rows that belong to no image go as well.
        """
        compared = {_compared(row) for row, _ in lost}
        stale = [row[:1] for row in self.image_rows() if _compared(row) in compared]
        failed = [(row.key, row.what, LOST + reason, _now()) for row, reason in lost]
        with self.db:
            self.db.executemany("REPLACE INTO failures VALUES (?, ?, ?, ?)", failed)
            self.db.executemany("DELETE FROM metrics WHERE key = ?", stale)
            self.db.executemany("DELETE FROM images WHERE key = ?", [row[:1] for row, _ in lost])
            for table in _OF_IMAGES:
                self.db.execute(f"DELETE FROM {table} WHERE key NOT IN (SELECT key FROM images)")

    # --- scores, features and metrics

    def add_scores(
        self,
        judge: str,
        scores: Mapping[str, Scores],
        features: Mapping[str, NDArray[np.float32]],
        seconds: float,
    ) -> None:
        """Keep a judge's scores and features by key, with the time that they took."""
        with self.db:
            self.db.executemany(
                "REPLACE INTO scores VALUES (?, ?, ?, ?, ?)",
                [(key, judge, s.cos_target, s.cos_source, s.margin) for key, s in scores.items()],
            )
            self.db.executemany(
                "REPLACE INTO features VALUES (?, ?, ?)",
                [(key, judge, row.astype("<f4").tobytes()) for key, row in features.items()],
            )
            self._add_work(WorkRow("score", len(scores), seconds))

    def scores(self, keys: Iterable[str], judge: str) -> dict[str, Scores]:
        """A judge's scores by key, of those that it has scored."""
        query = "SELECT key, margin, cos_target, cos_source FROM scores WHERE judge = ? AND"
        return _scores(self._rows_of(keys, query, judge))

    def images_with_scores(
        self, keys: Collection[str], judge: str
    ) -> tuple[set[str], dict[str, Scores]]:
        """Those of the keys that have an image, and this judge's scores of those that it scored.

        In one pass over the index: for tables of a whole run.
        """
        found = self.db.execute(
            "SELECT images.key, margin, cos_target, cos_source FROM images "
            "LEFT JOIN scores ON scores.key = images.key AND scores.judge = ?",
            (judge,),
        )
        rows = [row for row in found if row[0] in keys]
        return {row[0] for row in rows}, _scores(row for row in rows if row[1] is not None)

    def features(self, keys: Iterable[str], judge: str) -> dict[str, NDArray[np.float32]]:
        """A judge's features ``(dim,)`` by key, of those images that it has scored."""
        query = "SELECT key, vector FROM features WHERE judge = ? AND"
        return checked.vectors(self._rows_of(keys, query, judge), "features.vector")

    def add_metric(self, metric: str, values: Mapping[str, float]) -> None:
        """Keep a metric's values by key."""
        rows = [(key, metric, value) for key, value in values.items()]
        with self.db:
            self.db.executemany("REPLACE INTO metrics VALUES (?, ?, ?)", rows)

    def metric(self, metric: str, keys: Iterable[str]) -> dict[str, float]:
        """A metric's values by key, of those that are kept."""
        query = "SELECT key, value FROM metrics WHERE metric = ? AND"
        found = self._rows_of(keys, query, metric)
        return {key: checked.metric(value, "metrics.value") for key, value in found}

    def metrics(self, judge: str) -> dict[str, dict[str, float]]:
        """Every metric by name, its values by key; of those of features, this judge's."""
        metrics: dict[str, dict[str, float]] = {}
        for key, metric, value in self.db.execute("SELECT key, metric, value FROM metrics"):
            name, _, by = checked.name(metric, "metrics.metric").partition("/")
            if by in ("", judge):  # a network of its own is named name-network@digest
                of = metrics.setdefault(name.partition("@")[0], {})
                of[key] = checked.metric(value, "metrics.value")
        return metrics

    # --- work

    def rate(self, stage: str) -> float | None:
        """Images per second over all recorded work of a stage, None if there is none."""
        images, seconds = self.db.execute(
            "SELECT TOTAL(images), TOTAL(seconds) FROM work WHERE stage = ?", (stage,)
        ).fetchone()
        return checked.rate(images, seconds, "work")

    def worker_rates(self) -> dict[str, float]:
        """Images per second of each worker; empty where there was one alone, or none yet."""
        if not self._has_table("workers"):
            return {}
        found = self.db.execute("SELECT name, images, seconds FROM workers ORDER BY name")
        rates = {
            checked.name(name, "workers.name"): checked.rate(images, seconds, "workers")
            for name, images, seconds in found
        }
        return {name: rate for name, rate in rates.items() if rate is not None}

    def peak_memory(self) -> int | None:
        """The most bytes of a device that generating took, None where that was not measured."""
        (most,) = self.db.execute("SELECT MAX(peak_bytes) FROM work").fetchone()
        return None if most is None else checked.count(most, "work.peak_bytes")

    def _add_work(self, work: WorkRow) -> None:
        self.db.execute("INSERT INTO work VALUES (?, ?, ?, ?, ?)", (*work, _now()))

    def _rows_of(self, keys: Iterable[str], query: str, *values: Any) -> Iterator[Any]:
        """Rows of those keys alone; ``query`` lacks the condition on their key, its last.

        Asking for a cell takes the time of a cell, not of the index. In the order of keys, in which
        their index lies: asking for the whole run reads it once from front to back.
        """
        wanted = sorted(set(keys))
        for i in range(0, len(wanted), _LOOKED_UP):
            some = wanted[i : i + _LOOKED_UP]
            marks = ", ".join("?" * len(some))
            # Whole, so that no query is left open where what is read turns out to be damaged.
            yield from self.db.execute(f"{query} key IN ({marks})", (*values, *some)).fetchall()


def _scores(rows: Iterable[Sequence[Any]]) -> dict[str, Scores]:
    """Scores by key, of rows of a key and the fields of :class:`Scores`.

    Raises DamageError if they are not numbers such as a judge gives.
    """
    found = list(rows)
    if not found:
        return {}
    keys, *columns = zip(*found, strict=True)
    for name, column in zip(Scores._fields, columns, strict=True):
        numbers = [math.nan if value is None else value for value in column]
        values = np.array(numbers)
        if values.dtype != np.float64 or not (np.abs(values) <= MARGIN_LIMIT).all():
            for value in numbers:
                checked.number(value, f"scores.{name}", -MARGIN_LIMIT, MARGIN_LIMIT)
    return dict(zip(keys, map(Scores._make, zip(*columns, strict=True)), strict=True))


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
    """The pair and seed that an image shares with the unsteered image it is compared with."""
    what = json.loads(row.what)  # an object: image_rows looked
    return what.get("pair_id"), what.get("seed")


def _connected_to_read(folder: Path) -> sqlite3.Connection:
    """The index, never written to. Without a log to read, its folder may be read-only."""
    index = folder / FILE
    if not index.is_file():
        raise FileNotFoundError(f"there is no {index.name} in it")
    uri = f"file:{quote(os.fsencode(index.absolute()))}?mode=ro"  # a path need not be UTF-8
    db = sqlite3.connect(uri, uri=True, timeout=30.0)
    try:
        db.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.OperationalError:  # WAL wants a file beside it; with nothing in it, it need not
        db.close()
        log = folder / f"{FILE}-wal"
        if log.is_file() and log.stat().st_size:
            raise
        db = sqlite3.connect(f"{uri}&immutable=1", uri=True)
    except BaseException:
        db.close()
        raise
    return db


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
