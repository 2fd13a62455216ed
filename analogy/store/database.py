"""The file of a run folder's index: its schema, its version, and the commands recorded in it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from analogy.core import checked
from analogy.core.records import MARGIN_LIMIT, RunConfig
from analogy.store.grid import Command, TrueMargins, canonical, digest

SCHEMA_VERSION = 2

#: Name of the index's file.
FILE = "index.sqlite"

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
CREATE TABLE IF NOT EXISTS unread (command TEXT PRIMARY KEY, pairs TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS uneven (command TEXT PRIMARY KEY, pairs TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS comparisons (command TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS batches (
    method TEXT, steer_from REAL NOT NULL, steer_until REAL NOT NULL, images INTEGER NOT NULL,
    seconds REAL NOT NULL, memory TEXT, peak_bytes INTEGER, machine TEXT NOT NULL,
    done TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS fits (
    method TEXT NOT NULL, category TEXT NOT NULL, inputs TEXT NOT NULL, images INTEGER NOT NULL,
    seconds REAL NOT NULL, done TEXT NOT NULL);
"""

# The size of SQLite's page cache. With the default of 2,000 KB almost every key is read again from
# the disk; the keys of a million images take 46 MB.
_CACHE_KB = 64_000

T = TypeVar("T")


class SchemaVersionError(Exception):
    """The index is of another version of the suite, with the schema version ``version``."""

    def __init__(self, version: int) -> None:
        super().__init__(f"schema version {version}")
        self.version = version


class Database:
    """The SQLite file, open until :meth:`close`, and the commands that are recorded in it."""

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
        """A JSON value by name, None if it is missing."""
        row = self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else checked.json(row[0], "meta.value", kind)

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a value as JSON under a name. The caller opens and commits the transaction."""
        self.db.execute("REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    # --- commands

    def record_config(self, config: RunConfig, provenance: Mapping[str, object]) -> None:
        """Keep the configuration and provenance of the latest command."""
        with self.db:
            self.set_meta("config", config.to_dict())
            self.set_meta("provenance", dict(provenance))

    def record_command(self, command: Command) -> None:
        """Record a command. A repetition adds no row, but makes it the latest command."""
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
                (name, *row, timestamp()),
            )
            if margins is not None:
                self.db.execute("REPLACE INTO ceilings VALUES (?, ?)", (name, margins))
            for table, pair_ids in (("unread", command.unread), ("uneven", command.uneven)):
                if pair_ids:
                    ids = json.dumps(pair_ids, ensure_ascii=False)
                    self.db.execute(f"REPLACE INTO {table} VALUES (?, ?)", (name, ids))
            if command.is_comparison:
                self.db.execute("REPLACE INTO comparisons VALUES (?)", (name,))
            else:
                self.db.execute("DELETE FROM comparisons WHERE command = ?", (name,))
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
        ids = {table: self._ids(table) for table in ("unread", "uneven")}
        comparisons = set()
        if self._has_table("comparisons"):
            comparisons = {name for (name,) in self.db.execute("SELECT command FROM comparisons")}
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
                ids["unread"].get(name, ()),
                name in comparisons,
                ids["uneven"].get(name, ()),
            )
            for name, config, pairs, model, judge, scheduler, lora in found
        ]

    def _ids(self, table: str) -> dict[str, tuple[str, ...]]:
        """The ids of pairs by command, from the table ``unread`` or ``uneven``.

        Raises DamageError if an entry is not a list of texts.
        """
        if not self._has_table(table):
            return {}
        place = f"{table}.pairs"
        return {
            name: tuple(checked.text(one, place) for one in checked.json(ids, place, list))
            for name, ids in self.db.execute(f"SELECT command, pairs FROM {table}")
        }

    # --- images

    def check_file(self) -> None:
        """Have SQLite check its own file. Takes time linear in its size.

        Raises DamageError if it is damaged.
        """
        (found,) = self.db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise checked.DamageError(found)


def _true_margins(value: Any) -> TrueMargins:
    """A command's own ceiling, from its JSON in the index. Raises DamageError if it is invalid."""
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


def _connected_to_read(folder: Path) -> sqlite3.Connection:
    """A read-only connection to the index. Without a log to read, its folder may be read-only."""
    index = folder / FILE
    if not index.is_file():
        raise FileNotFoundError(f"there is no {index.name} in it")
    uri = f"file:{quote(os.fsencode(index.absolute()))}?mode=ro"  # a path need not be UTF-8
    db = sqlite3.connect(uri, uri=True, timeout=30.0)
    try:
        db.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.OperationalError:  # WAL needs a file beside the index, unless its log is empty
        db.close()
        log = folder / f"{FILE}-wal"
        if log.is_file() and log.stat().st_size:
            raise
        db = sqlite3.connect(f"{uri}&immutable=1", uri=True)
    except BaseException:
        db.close()
        raise
    return db


def timestamp() -> str:
    """The time now in UTC, in ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
