"""Imports images of other tools into a run folder, as listed in a manifest.

Images of exported jobs are stored under the jobs' own keys (:func:`bring_back`). Other images
belong to a model that the user names (:func:`bring_in`); its fingerprint has that name and a digest
of all images, so they are never mixed with another model's.

A manifest is CSV with a header, or JSON lines (``.jsonl``), with ``pair_id``, ``alpha``, ``seed``,
``file`` (relative to the manifest) and optionally ``method`` and, for exported jobs, ``key``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analogy.core.errors import AnalogyError
from analogy.core.fields import ALPHA_LIMIT, MAX_SEED
from analogy.core.files import read_regular
from analogy.core.images import Images, read_image
from analogy.core.records import IMPORTED, UNSTEERED, Pair, RunConfig, is_imported
from analogy.core.strict_json import Json
from analogy.core.text import is_printable, lines_of
from analogy.judges.base import FoundJudge
from analogy.store.folder import RunFolder
from analogy.store.grid import Command, Job, digest
from analogy.studies.study import Study

MAX_FILE_BYTES = 64_000_000
MAX_SIZE = 8192
MAX_TEXT = 4_096
"""The most characters of a name. Readers of results accept 10,000, suffixes included."""
BATCH = 64

_INTEGER = re.compile(r"[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


REQUIRED = ("pair_id", "alpha", "seed", "file")


class ManifestError(AnalogyError, ValueError):
    """A manifest, or a file named in it, is missing or invalid; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image: its pair, alpha and seed, its file, and its line in the manifest.

    ``key``: the key of the exported job that it is the image of; None if no job was exported.
    """

    pair_id: str
    alpha: float
    seed: int
    file: Path
    method: str
    line: int
    key: str | None = None


def read_manifest(path: Path, *, exported: bool = False) -> list[ManifestRow]:
    """The manifest's entries.

    ``exported``: whether they are images of exported jobs, which may be any subset of the grid.

    Raises ``ManifestError`` if the manifest cannot be read, if a (pair, alpha, seed) occurs twice,
    or, unless ``exported``, if there are no steered images or those of several methods.
    """
    entries: dict[tuple[str, float, int], ManifestRow] = {}
    for line, row in _rows(path, _text(path)):
        entry = _entry(path, line, row)
        first = entries.setdefault((entry.pair_id, entry.alpha, entry.seed), entry)
        if first is not entry:
            raise ManifestError(
                f"{path}, line {line}: expected each image once, got that of line {first.line}"
            )
    methods = {entry.method for entry in entries.values() if entry.alpha != UNSTEERED}
    if len(methods) != 1 and not (exported and entries):
        raise ManifestError(
            f"{path}: expected images of one method, at an alpha other than 0 among them, got "
            f"{', '.join(sorted(methods)) or 'none'}; one manifest for each method"
        )
    return list(entries.values())


def _entry(path: Path, line: int, row: Any) -> ManifestRow:
    where = f"{path}, line {line}"
    if not isinstance(row, dict) or any(row.get(name) in (None, "") for name in REQUIRED):
        raise ManifestError(f"{where}: expected pair_id, alpha, seed and file, got {row!r:.200}")
    pair_id, file = row["pair_id"], row["file"]
    method = row.get("method")
    if isinstance(pair_id, int) and not isinstance(pair_id, bool):
        pair_id = str(pair_id)
    return ManifestRow(
        check_name(pair_id, f"{where}: pair_id"),
        _alpha(row["alpha"], where),
        _seed(row["seed"], where),
        path.parent / check_name(file, f"{where}: file"),
        "imported" if method in (None, "") else check_name(method, f"{where}: method"),
        line,
        None if row.get("key") in (None, "") else check_name(row["key"], f"{where}: key"),
    )


def check_name(value: Any, where: str) -> str:
    """The text itself. Raises `ManifestError` if it is empty, longer than `MAX_TEXT`, not printable
    or not a string.
    """
    if not isinstance(value, str) or not value.strip():
        raise ManifestError(f"{where}: expected text, got {value!r:.80}")
    if len(value) > MAX_TEXT:
        raise ManifestError(
            f"{where}: expected at most {MAX_TEXT:,} characters, got {len(value):,}; shorten it"
        )
    if not is_printable(value):
        raise ManifestError(
            f"{where}: expected text without control characters, got {value!r:.80}; take them out"
        )
    return value


def _alpha(value: Any, where: str) -> float:
    """A number from JSON, or text that is a decimal number. Raises `ManifestError` otherwise."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    alpha = math.nan
    if is_number or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        with suppress(OverflowError):
            alpha = float(value) + 0.0  # -0.0 is 0.0
    if not abs(alpha) <= ALPHA_LIMIT:
        raise ManifestError(
            f"{where}: expected alpha to be a number from -{ALPHA_LIMIT:g} to {ALPHA_LIMIT:g}, got "
            f"{value!r:.80}"
        )
    return alpha


def _seed(value: Any, where: str) -> int:
    """A JSON integer, or text of digits only. Raises `ManifestError` otherwise."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer or (isinstance(value, str) and _INTEGER.fullmatch(value)):
        seed = int(value)
        if 0 <= seed <= MAX_SEED:
            return seed
    raise ManifestError(
        f"{where}: expected seed to be an integer from 0 to {MAX_SEED}, got {value!r:.80}"
    )


def bring_in(
    folder: RunFolder,
    entries: Sequence[ManifestRow],
    pairs: Sequence[Pair],
    judge: FoundJudge,
    *,
    name: str,
    pairs_file: str,
    clip_model: str,
    clip_pretrained: str | None,
) -> tuple[Study, int]:
    """Copy the images into the folder. Returns their study and the number of new images.

    Every file is read before any is copied. ``pairs``: the pairs that entries may name; ``name``:
    the user's name for the images' model; ``clip_model`` and ``clip_pretrained``: the options that
    the judge was found by. Raises ``ManifestError`` for an invalid name, pair or image.
    """
    for what, value in (
        ("--model-name", name), ("--clip-model", clip_model),
        ("--clip-pretrained", clip_pretrained), ("--clip-model", judge.fingerprint),
    ):  # fmt: skip
        if value is not None:
            check_name(value, what)
    known = {pair.id: pair for pair in pairs}
    size = 0
    sums = []
    for entry in entries:
        if entry.pair_id not in known:
            raise ManifestError(
                f"line {entry.line}: expected a pair of {pairs_file}, got {entry.pair_id!r:.80}; "
                "name the file that has it with --pairs"
            )
        image = _picture(entry, size)
        size = len(image)
        sums.append(_sum(image))
    images = [[e.pair_id, e.alpha, e.seed, s] for e, s in zip(entries, sums, strict=True)]
    fingerprint = f"{name}{IMPORTED}{digest(sorted(images))[:16]}"
    named = {entry.pair_id for entry in entries}
    method = next(entry.method for entry in entries if entry.alpha != UNSTEERED)
    try:
        config = RunConfig(
            model=name, clip_model=clip_model, clip_pretrained=clip_pretrained, pairs=pairs_file,
            categories=None, alphas=tuple(sorted({e.alpha for e in entries} - {UNSTEERED})),
            seeds=tuple(sorted({e.seed for e in entries})), method=method, steps=1, guidance=0.0,
            size=size, dtype="float32", device="cpu", batch_size=None, limit=None,
        )  # fmt: skip
    except ValueError as error:
        raise ManifestError(f"these images: {error}") from None
    study = Study(
        config, [pair for pair in pairs if pair.id in named],
        None, judge, folder, fingerprint=fingerprint, scheduler="imported",
    )  # fmt: skip
    read = dict(zip(map(_place, entries), zip(entries, sums, strict=True), strict=True))
    files = {job.key: (job, *read[place]) for job in study.jobs() if (place := _at(job)) in read}
    new = _copied(folder, files, size)
    study.record(None)
    return study, new


def bring_back(folder: RunFolder, entries: Sequence[ManifestRow]) -> tuple[Command, int]:
    """Copy the images of exported jobs into the folder of their export, under the jobs' keys.

    Returns the command that exported them and the number of new images. Every file is read before
    any is copied. Raises ``ManifestError`` if the folder did not export these jobs, if an image is
    invalid, or if it differs from the one that the folder already has of the same job.
    """
    command, jobs = _exported(folder, entries)
    files: dict[str, tuple[Job, ManifestRow, str]] = {}
    for entry, job in zip(entries, jobs, strict=True):
        image = _picture(entry, command.config.size, "as its job has it")
        files[job.key] = (job, entry, _sum(image))
    new = {job.key for job in folder.without_image(jobs)}
    for job, entry, found in files.values():
        if job.key not in new and _sum(folder.read_image(job)) != found:
            raise ManifestError(
                f"line {entry.line}: {entry.file}: expected the image that {folder.path} has of "
                "this job already, got another; export the jobs into another folder (--run-dir), "
                "or by another --method-name"
            )
    _copied(folder, files, command.config.size)
    folder.record_command(command)
    return command, len(new)


def _exported(folder: RunFolder, entries: Sequence[ManifestRow]) -> tuple[Command, list[Job]]:
    """The command of the folder that exported the entries' jobs, and the job of each entry."""
    advice = "name the folder that 'analogy export' began, and the manifest that it wrote"
    for command in folder.commands():
        known = {job.key: job for job in command.jobs()} if is_imported(command.model) else {}
        if not any(entry.key in known for entry in entries):
            continue
        jobs = []
        for entry in entries:
            job = known.get(entry.key or "")
            if job is None or _at(job) != _place(entry):
                raise ManifestError(
                    f"line {entry.line}: expected a job that was exported from {folder.path}, with "
                    f"its pair_id, alpha and seed, got the key {entry.key!r:.80}; {advice}"
                )
            jobs.append(job)
        return command, jobs
    raise ManifestError(
        f"{folder.path}: expected a run folder that the manifest's jobs were exported from, got "
        f"one without any of their keys; {advice}, or give --model-name for images of no export"
    )


def _copied(folder: RunFolder, files: Mapping[str, tuple[Job, ManifestRow, str]], size: int) -> int:
    """Copy the images that the folder lacks. Returns their number.

    ``files``: key to the job, its entry, and the digest of its image.
    """
    new = folder.without_image(job for job, _, _ in files.values())
    for i in range(0, len(new), BATCH):
        batch = new[i : i + BATCH]
        pictures = np.stack([_same_picture(*files[job.key][1:], size) for job in batch])
        folder.add_images(batch, pictures, 0.0, stage="import")
    return len(new)


def _place(entry: ManifestRow) -> tuple[str, float, int]:
    return entry.pair_id, entry.alpha, entry.seed


def _at(job: Job) -> tuple[str, float, int]:
    return job.pair.id, job.alpha, job.seed


def _sum(image: Images) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def _same_picture(entry: ManifestRow, expected: str, size: int) -> Images:
    """Read the image again. Raises ``ManifestError`` if its file has changed since then."""
    image = _picture(entry, size)
    if _sum(image) != expected:
        raise ManifestError(
            f"line {entry.line}: {entry.file}: expected the image that was read before, got "
            "another; import when nothing writes to the files"
        )
    return image


def _picture(entry: ManifestRow, size: int, why: str = "as the first") -> Images:
    """A square RGB image, (height, width, 3), with ``size`` pixels a side, or any if that is 0.

    ``why``: the reason for this size, for the message. Raises ``ManifestError`` if the file is not
    such an image.
    """
    try:
        image = read_image(entry.file)
    except ValueError as error:
        raise ManifestError(f"line {entry.line}: {error}") from None
    height, width, _ = image.shape
    if width != height or width > MAX_SIZE or size not in (0, width):
        raise ManifestError(
            f"line {entry.line}: {entry.file}: expected a square image of "
            f"{f'{size} pixels a side, {why}' if size else f'at most {MAX_SIZE} pixels'}, "
            f"got {width} x {height}"
        )
    return image


def _text(path: Path) -> str:
    try:
        return read_regular(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: expected UTF-8 text ({error})") from error
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise ManifestError(f"{path}: expected a manifest ({what}); check the path") from error


def _rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Each row with its line number. CSV unless the file's suffix is .jsonl or .ndjson."""
    line = 0
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            for line, one in enumerate(lines_of(text), 1):
                if one.strip():
                    yield line, json.loads(one, object_pairs_hook=_once_each)
            return
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header: list[str] = []
        for values in reader:
            line, row = reader.line_num, [value.strip() for value in values]
            if not any(row):
                continue
            if not header:
                header = row
                _once_each([(name, None) for name in header if name])
            elif len(row) != len(header):
                raise ManifestError(
                    f"{path}, line {line}: expected {len(header)} fields as in the header, got "
                    f"{len(row)}; put quotes around text that holds a comma"
                )
            else:
                yield line, dict(zip(header, row, strict=True))
    except ManifestError:
        raise
    except (csv.Error, ValueError, RecursionError) as error:
        raise ManifestError(
            f"{path}, line {max(line, 1)}: expected CSV or JSON lines ({error})"
        ) from error


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} occurs twice")
    return made
