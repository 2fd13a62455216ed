"""Fingerprints of a model's files, and the file SHA256SUMS."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from analogy.core.errors import ModelError
from analogy.core.text import command_line, lines_of
from analogy.models.networks import reason

CHECKSUMS = "SHA256SUMS"


def fingerprint(folder: Path, *, without: str | None = None) -> str:
    """``<folder name>@sha256:<16 hex>`` over the folder's configuration and weight files.

    If the folder has a SHA256SUMS, every file that it lists is checked. Raises
    :class:`ModelError` if one is missing or has another digest. ``without``: the name of a part
    whose weights are left out, and may be missing from a folder without SHA256SUMS.
    """
    files = sorted(
        path
        for pattern in ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
        for path in folder.rglob(pattern)
        if path.is_file() and not (path.parent.name == without and ".safetensors" in path.name)
    )
    sums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    listed = folder / CHECKSUMS
    if listed.is_file():
        _check_sums(folder, listed, sums)
    whole = hashlib.sha256()
    for name, digest in sums.items():
        whole.update(f"{digest}  {name}\n".encode())
    return f"{folder.name}@sha256:{whole.hexdigest()[:16]}"


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over the folder's files, in the format of ``sha256sum``."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), "utf-8")


def _check_sums(folder: Path, listed: Path, found: dict[str, str]) -> None:
    for name, digest in _read_sums(folder, listed).items():
        actual = found.get(name) or (
            sha256_of(folder / name) if (folder / name).is_file() else None
        )
        if actual != digest:
            command = command_line("git", "checkout", "--", folder)
            raise ModelError(
                f"{folder / name}: expected SHA-256 {digest} (from {CHECKSUMS}), "
                f"got {actual or 'no such file'}; restore it with: {command}"
            )


def _read_sums(folder: Path, listed: Path) -> dict[str, str]:
    """The digest of each file that SHA256SUMS lists.

    Raises ``ModelError`` for a line of another format, or a file outside the folder.
    """
    try:
        lines = list(lines_of(listed.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{listed}: expected lines of sha256sum, got {reason(error)}") from error
    expected = {}
    for i, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        name = "" if match is None else match["name"]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(
                f"{listed}, line {i}: expected names of files in {folder}, got {name!r:.200}"
            )
        if match:
            expected[name] = match["digest"]
        elif line.strip():
            raise ModelError(
                f"{listed}, line {i}: expected '<64 hex digits>  <file in {folder}>' as sha256sum "
                f"writes it, got {line[:80]!r}; write it anew, or remove {listed.name} to check "
                "nothing"
            )
    return expected


_SUM = re.compile(r"(?P<digest>[0-9a-f]+) [ *](?P<name>[^\0]+)")


def file_fingerprint(name: str, path: Path) -> str:
    """``<name>@sha256:<16 hex>`` of one file."""
    return f"{name}@sha256:{sha256_of(path)[:16]}"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
