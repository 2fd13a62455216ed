"""An open run folder: its lock, its index, its commands, and the advice in its errors."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from analogy.core.errors import StoreError
from analogy.core.files import PlaceError
from analogy.core.lock import LockedError, WriterLock
from analogy.core.records import RunConfig
from analogy.core.text import analogy_command
from analogy.store.database import SCHEMA_VERSION, SchemaVersionError
from analogy.store.grid import Command
from analogy.store.image_store import ImageStore
from analogy.store.index import ImageRow, Index

#: The files that the suite writes at the top of a run folder.
_OWN_FILES = re.compile(
    r"index\.sqlite(-wal|-shm|-journal)?|writer\.(lock|json)|results(-[\w.-]+)?\.json|metadata\.jsonl|run\.toml"
)
_OWN_FOLDERS = ("images", "results")

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="OpenFolder")


def explained(
    method: Callable[Concatenate[F, P], T],
) -> Callable[Concatenate[F, P], T]:
    """Turn errors of the disk and of SQLite into a :class:`StoreError` that says what to do."""

    @wraps(method)
    def call(self: F, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):  # bugs of this suite
            raise
        except (OSError, sqlite3.DatabaseError) as error:
            raise StoreError(f"run folder {self.path}: {advice(error)}") from error

    return call


def _sqlite_code(error: Exception) -> int | None:
    """SQLite's primary result code; None for an error that SQLite itself did not raise.

    Python's ``sqlite3`` and :mod:`analogy.core.checked` raise such errors for values that they
    cannot read.
    """
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF  # the rest is the extended code


def _is_full(error: Exception) -> bool:
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or _sqlite_code(error) == sqlite3.SQLITE_FULL


def advice(error: Exception) -> str:
    """The error, what is kept in spite of it, and what to do."""
    text, code = str(error), _sqlite_code(error)
    again = "What was done before is kept"
    if _is_full(error):
        return f"the disk is full ({text}). {again}: free space and give the same command again"
    if isinstance(error, PlaceError):
        return text
    is_refused = getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS)
    if is_refused or code == sqlite3.SQLITE_READONLY:
        return (
            f"expected a folder that can be written ({text}). {again}: give this user the right to "
            "write there, and the same command again"
        )
    if isinstance(error, OSError) or (
        isinstance(error, sqlite3.OperationalError) and code is not None
    ):
        return f"{text}. {again}: see to the disk, and give the same command again"
    return (
        f"its index is damaged ({text}). Bring index.sqlite back from a copy, save what can be "
        "read with 'sqlite3 index.sqlite .recover | sqlite3 new.sqlite', or delete index.sqlite "
        "and index.sqlite-wal to start anew"
    )


class OpenFolder:
    """A run folder, open until :meth:`close`. One process at a time opens it for writing."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.note: str | None = None
        self._lock: WriterLock | None = None
        self._images = ImageStore(path)
        try:
            _check_own_files(path)
            if not read_only:
                self._images.create()
                self._lock = WriterLock(path)
            self._index = Index(path, read_only=read_only)
        except LockedError as error:
            raise StoreError(
                f"run folder {path}: expected no other writer, but {error} writes to it; wait "
                "until it is done, stop it, or choose another folder with --run-dir"
            ) from error
        except SchemaVersionError as error:
            self._release()
            raise StoreError(
                f"run folder {path}: expected schema version {SCHEMA_VERSION}, got "
                f"{error.version}; it was written by another version of this suite: choose "
                "another with --run-dir, or use that version"
            ) from error
        except (OSError, ValueError, sqlite3.Error) as error:  # ValueError: a NUL in the path
            self._release()
            raise self._unusable(error, read_only=read_only) from error
        except BaseException:
            self._release()
            raise
        if self._lock is not None and self._lock.dead is not None:
            self.note = (
                f"the last writer ended without closing it ({self._lock.dead}); what it had "
                "recorded is whole, and this run goes on from there"
            )

    @property
    def _repair(self) -> str:
        """Advice for a damaged image: the command that makes it again."""
        return f"repair it with: {analogy_command('verify', self.path, '--repair')}"

    def _unusable(self, error: Exception, *, read_only: bool) -> StoreError:
        if _sqlite_code(error) == sqlite3.SQLITE_CORRUPT or _is_full(error):
            return StoreError(f"run folder {self.path}: {advice(error)}")
        wanted = "a run folder of this suite that can be read"
        do = "check the path"
        if not read_only:
            wanted = "a folder that can be written, with this suite's index or none"
            do = "choose another with --run-dir"
        return StoreError(f"run folder {self.path}: expected {wanted} ({error}); {do}")

    def close(self) -> None:
        """Close the index, and let others write."""
        self._index.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @explained
    def record_config(self, config: RunConfig, provenance: Mapping[str, object]) -> None:
        """Keep the configuration and provenance of the latest command on this folder."""
        self._index.record_config(config, provenance)

    @explained
    def record_command(self, command: Command) -> None:
        """Record a command. A repetition adds no row, but makes it the latest command."""
        self._index.record_command(command)

    @explained
    def commands(self) -> list[Command]:
        """The folder's commands, the latest first; empty for a folder written before version 2."""
        try:
            return self._index.commands()
        except ValueError as error:
            raise StoreError(
                f"run folder {self.path}: the configuration that its index keeps cannot be read "
                f"({error}); give the run's command again, which keeps it anew"
            ) from error

    @explained
    def check_index(self) -> None:
        """Have SQLite check its own file. Takes time linear in its size.

        Raises :class:`StoreError` if it is damaged.
        """
        self._index.check_file()

    @explained
    def image_rows(self) -> list[ImageRow]:
        """All images in the index."""
        return self._index.image_rows()

    @explained
    def without_owner(self) -> dict[str, int]:
        """The number of rows whose image is missing by table, for tables with such rows."""
        return self._index.without_owner()

    @explained
    def remove(self, lost: Iterable[tuple[ImageRow, str]]) -> None:
        """Remove images from the index, with their scores, features and metrics: one transaction.

        Each is recorded as failed, with its reason, so that it can be made again. Metrics of images
        with the same pair and seed are removed, too: they compare with the unsteered image, which
        may be removed. Rows without an image are removed as well.
        """
        self._index.remove(list(lost))


def _check_own_files(path: Path) -> None:
    """Raises PlaceError if a file or folder with a name of the suite's is a link or a pipe."""
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
