"""Writes files completely or not at all, and reads the suite's files only inside their folder.

There are two ways of writing. :func:`write_atomically` is for the suite's own files and follows no
link. :func:`write_output` is for a file that a user named, which may be a link or a device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

if sys.platform != "win32":  # Windows has no paths such as /dev/fd/1, for which this is needed
    import fcntl

from analogy.core.errors import AnalogyError

#: Links that are followed before a path counts as a loop; Linux has the same limit.
_MOST_LINKS = 40

# Opening a terminal does not make it this process's own, and no open waits for a reader.
_QUIETLY = getattr(os, "O_NOCTTY", 0) | getattr(os, "O_NONBLOCK", 0)

# Types of files that cannot be an output.
_REFUSED = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a disk",
}


class PlaceError(AnalogyError, OSError):
    """A path cannot be written or must not be used; the message says what to do."""


def write_atomically(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write under a temporary name, flush, rename: ``path`` has the old content or the new one.

    A link at ``path`` is replaced and not followed. ``mode``: the file's permissions, None for the
    usual ones. If it raises ``OSError``, the old file is kept and no temporary file remains.
    """
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)  # left by an earlier process with the same id
    try:
        with open(temporary, "xb") as file:
            if mode is not None:
                with contextlib.suppress(OSError):  # a file system without permissions
                    temporary.chmod(mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a user named, if :func:`check_output` accepts it.

    A regular file is written atomically and keeps its permissions; a mount point is overwritten in
    place. Missing folders are made, and files that killed processes left beside it are removed. A
    device or an open file gets the data as it is. Raises ``OSError`` if it cannot be written.
    """
    place = _place_of(path)
    if place.descriptor is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        with open(place.descriptor, "wb", closefd=False) as stream:
            stream.write(data)
        return
    if place.is_device:
        with open(place.path, "wb") as stream:
            stream.write(data)
        return
    place.path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place.path)
    mode = stat.S_IMODE(place.path.stat().st_mode) if place.path.exists() else None
    try:
        write_atomically(place.path, data, mode=mode)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        with open(place.path, "wb") as stream:  # a mount point: containers mount single files
            stream.write(data)


def check_output(path: str | os.PathLike[str], *, may_link: bool = True) -> None:
    """Raises :class:`PlaceError` if :func:`write_output` cannot write to ``path``.

    Accepted: a regular file that is writable or does not exist yet, in a writable folder, which is
    made if it is missing; a character device such as ``/dev/null``; an open file such as
    ``/dev/stdout``; and a link to any of these. Refused: folders, named pipes, sockets, disks, and
    links to missing files, whose purpose is unknown. ``may_link``: False refuses all links, for a
    place that the user did not name.
    """
    named = Path(path)
    place = _place_of(named)
    if not may_link and named.is_symlink():
        raise _refusal(named, "which is a link", "remove it, or name the file that you mean")
    try:
        if place.descriptor is not None:
            os.fstat(place.descriptor)
        elif place.is_device:
            os.close(os.open(place.path, os.O_WRONLY | _QUIETLY))
        else:
            if place.path.exists() and not os.access(place.path, os.W_OK):
                raise _refusal(named, "which is read-only", "name another, or make it writable")
            place.path.parent.mkdir(parents=True, exist_ok=True)
            probe = _temporary(place.path)
            probe.unlink(missing_ok=True)
            with open(probe, "xb"):
                pass
            probe.unlink()
    except PlaceError:
        raise
    except OSError as error:
        raise _refusal(named, f"({error.strerror or error})", "name another") from error


def is_device(path: str | os.PathLike[str]) -> bool:
    """True if writing to ``path`` replaces nothing, because it is a device or an open file."""
    place = _place_of(Path(path))
    return place.is_device or place.descriptor is not None


def check_own(folder: Path, path: Path) -> None:
    """Raises :class:`PlaceError` unless ``path`` lies in ``folder``, without a link on the way.

    ``folder`` itself may be a link: that is the user's own. The suite makes no link below it, so a
    link there could only lead out of the folder.
    """
    where = os.fspath(folder)
    for part in path.relative_to(folder).parts:
        where = os.path.join(where, part)
        if part == os.pardir:
            raise PlaceError(f"{path}: expected a file inside {folder}")
        if os.path.islink(where):
            raise PlaceError(
                f"{where}: expected a file or folder of the suite's own, got a link; remove it, or "
                "put what it leads to in its place"
            )


def check_regular(path: Path, *, most: int) -> None:
    """Raises :class:`PlaceError` unless ``path`` is a regular file of at most ``most`` bytes.

    Raises ``FileNotFoundError`` if it is missing.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise PlaceError(f"{path}: expected a regular file, got {_kind(found.st_mode)}")
    if found.st_size > most:
        raise PlaceError(f"{path}: expected at most {most:,} bytes, got {found.st_size:,}")


def is_left_by_the_dead(name: str, of: re.Pattern[str]) -> bool:
    """True if ``name`` is a dead process's temporary file for a file whose name matches ``of``.

    A temporary file with this process's own id counts as well.
    """
    found = _PARTIAL.fullmatch(name)
    if found is None or of.fullmatch(found["name"]) is None:
        return False
    # No system gives a process such a number, so the name is not one of this suite's.
    pid = int(found["pid"])
    return pid == os.getpid() or (0 < pid < 2**31 and not psutil.pid_exists(pid))


def flush_folder(path: Path) -> None:
    """Flush a folder, so that its names survive a power failure; not needed on Windows."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_regular(path: Path, at_most: int) -> bytes:
    """A regular file's bytes. Raises ``ValueError`` for any other kind, and for a larger file.

    The kind is checked first: opening a pipe waits for its writer, and a device may be endless.
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


_PARTIAL = re.compile(r"(?P<name>.+)\.(?P<pid>[1-9][0-9]{0,9})\.partial", re.DOTALL)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _sweep(path: Path) -> None:
    """Remove what killed processes left of this file: regular files named for a dead process."""
    mine = re.compile(re.escape(path.name))
    with contextlib.suppress(OSError), os.scandir(path.parent) as found:
        for entry in found:
            if is_left_by_the_dead(entry.name, mine) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


@dataclass(frozen=True, slots=True)
class _Place:
    """The destination of an output: a file with all links followed, a device, or a descriptor."""

    path: Path
    is_device: bool = False
    descriptor: int | None = None


def _place_of(path: Path) -> _Place:
    try:
        place, linked = path, False
        for _ in range(_MOST_LINKS):
            descriptor = _descriptor(place)
            if descriptor is not None:
                return _Place(place, descriptor=_writable(path, descriptor))
            if not place.is_symlink():
                break
            place, linked = place.parent / os.readlink(place), True
        else:
            raise _refusal(path, "whose links lead to one another", "name another")
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            if linked:
                raise _refusal(
                    path, f"a link to {place}, where there is no file",
                    "name that file, or remove the link",
                ) from None  # fmt: skip
            return _Place(place)
    except PlaceError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or error
        raise _refusal(path, f"({why})", "name another") from error
    if stat.S_ISREG(mode):
        return _Place(place)
    if stat.S_ISCHR(mode):
        return _Place(place, is_device=True)
    raise _refusal(path, f"which is {_kind(mode)}", "name a file")


def _descriptor(path: Path) -> int | None:
    """The number of this process's open file that a path such as ``/dev/fd/1`` names, or None."""
    if not (path.name.isascii() and path.name.isdecimal()):
        return None
    parent = os.path.realpath(path.parent)
    is_one = parent in ("/dev/fd", f"/proc/{os.getpid()}/fd")
    return int(path.name) if is_one and len(path.name) < 7 else None


def _writable(path: Path, descriptor: int) -> int:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise _refusal(path, "which is open for reading", "name another")
    return descriptor


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    return _REFUSED.get(stat.S_IFMT(mode), "a device")


def _refusal(path: Path, what: str, do: str) -> PlaceError:
    comma = "" if what.startswith("(") else ","
    return PlaceError(f"expected a file that can be written, got {path}{comma} {what}; {do}")
