"""One writer per run folder: an operating system lock, and a record of the process that holds it.

The system frees the lock of a process that dies, however it dies. The record of the process remains
and shows that it died. Readers take no lock.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from analogy.core.files import check_regular, write_atomically
from analogy.core.strict_json import parse

LOCK_NAME = "writer.lock"
OWNER_NAME = "writer.json"

_MOST_BYTES = 10_000


class LockedError(RuntimeError):
    """Another process writes to the folder."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that writes to a run folder; ``started``: ISO 8601 in UTC."""

    host: str
    pid: int
    user: str
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.started}"

    @property
    def may_be_alive(self) -> bool:
        """False if it has ended. True if it runs, or may run on another host."""
        return self.host != socket.gethostname() or psutil.pid_exists(self.pid)


class WriterLock:
    """The right to write to ``folder``, until :meth:`release` or the process's end.

    ``dead``: the previous owner, if it died without releasing the lock, else None. Raises
    :class:`LockedError` if another process holds it, ``OSError`` if the lock cannot be taken.
    """

    def __init__(self, folder: Path) -> None:
        self._owner = folder / OWNER_NAME
        # The process holds it, not a thread: any thread may close the folder and release it.
        self._lock = FileLock(folder / LOCK_NAME, thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise LockedError(str(owner(folder) or "another process")) from None
        try:
            self.dead = owner(folder)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            mine = Owner(socket.gethostname(), os.getpid(), _user(), now)
            write_atomically(self._owner, json.dumps(asdict(mine)).encode())
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let others write. Safe to call again."""
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            self._lock.release()


def owner(folder: Path) -> Owner | None:
    """The process that holds the lock or died with it; None if its record is missing or damaged."""
    file = folder / OWNER_NAME
    try:
        check_regular(file, most=_MOST_BYTES)
        values = parse(file.read_text("utf-8"))
        found = Owner(**{field.name: values[field.name] for field in fields(Owner)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    texts = (found.host, found.user, found.started)
    is_number = type(found.pid) is int and 0 < found.pid < 2**31
    return found if is_number and all(isinstance(text, str) for text in texts) else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"user {os.getuid()}"
