"""Images made by other tools, brought into a run by a manifest: which file is which image.

A manifest is CSV with a header, or JSON lines (``.jsonl``), with ``pair_id``, ``alpha``, ``seed``,
``file`` (relative to the manifest) and perhaps ``method``. The images are known by a model's name
that the user gives and a digest of them all, so they are never taken for another model's.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from analogy.clip import JudgeSource
from analogy.images import read_image
from analogy.models import ModelSource
from analogy.records import ALPHA_LIMIT, MAX_SEED, Pair, RunConfig
from analogy.store import Job, RunFolder, digest
from analogy.study import Study

MAX_FILE_BYTES = 64_000_000
MAX_SIZE = 8192
BATCH = 64

#: What a fingerprint of imported images has between the name and the digest.
IMPORTED = "@imported:"


class ManifestError(ValueError):
    """A manifest, or a file that it names, cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: what it is, its file, and the line that says so."""

    pair_id: str
    alpha: float
    seed: int
    file: Path
    method: str
    line: int


def read_manifest(path: Path) -> list[Entry]:
    """The manifest's entries, each (pair, alpha, seed) once and all of one method."""
    entries: dict[tuple[str, float, int], Entry] = {}
    for line, row in _rows(path, _text(path)):
        where = f"{path}, line {line}"
        if not isinstance(row, dict) or not all(row.get(name) for name in ("pair_id", "file")):
            raise ManifestError(
                f"{where}: expected pair_id, alpha, seed and file, got {row!r:.200}"
            )
        try:
            alpha, seed = float(row["alpha"]), int(row["seed"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ManifestError(
                f"{where}: expected alpha to be a number and seed an integer ({error})"
            ) from error
        if not abs(alpha) <= ALPHA_LIMIT or not 0 <= seed <= MAX_SEED:
            raise ManifestError(
                f"{where}: expected alpha from -{ALPHA_LIMIT:g} to {ALPHA_LIMIT:g} and seed from 0 "
                f"to {MAX_SEED}, got {alpha:g} and {seed}"
            )
        file = path.parent / str(row["file"])
        method = str(row.get("method") or "imported")
        entry = Entry(str(row["pair_id"]), alpha, seed, file, method, line)
        first = entries.setdefault((entry.pair_id, alpha, seed), entry)
        if first is not entry:
            raise ManifestError(f"{where}: expected each image once, got that of line {first.line}")
    methods = {entry.method for entry in entries.values() if entry.alpha != 0.0}
    if len(methods) != 1:
        raise ManifestError(
            f"{path}: expected images of one method, at an alpha other than 0 among them, got "
            f"{', '.join(sorted(methods)) or 'none'}; one manifest for each method"
        )
    return list(entries.values())


def bring_in(
    folder: RunFolder,
    entries: Sequence[Entry],
    pairs: Sequence[Pair],
    judge: JudgeSource,
    *,
    name: str,
    pairs_file: str,
    clip_model: str,
    clip_pretrained: str | None,
) -> tuple[Study, int]:
    """Copy the entries' images into the folder; the study of them, and how many were new.

    Every file is read before any is copied. ``pairs``: those that the entries may name;
    ``clip_model`` and ``clip_pretrained``: what the judge was found by.
    """
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
        sums.append(hashlib.sha256(image.tobytes()).hexdigest())
    what = [[e.pair_id, e.alpha, e.seed, s] for e, s in zip(entries, sums, strict=True)]
    fingerprint = f"{name}{IMPORTED}{digest(sorted(what))[:16]}"
    named = {entry.pair_id for entry in entries}
    method = next(entry.method for entry in entries if entry.alpha != 0.0)
    try:
        config = RunConfig(
            model=name, clip_model=clip_model, clip_pretrained=clip_pretrained, pairs=pairs_file,
            categories=None, alphas=tuple(sorted({e.alpha for e in entries} - {0.0})),
            seeds=tuple(sorted({e.seed for e in entries})), method=method, steps=1, guidance=0.0,
            size=size, dtype="float32", device="cpu", batch_size=None, limit=None,
        )  # fmt: skip
    except ValueError as error:
        raise ManifestError(f"these images: {error}") from None
    study = Study(
        config, [pair for pair in pairs if pair.id in named], ModelSource(folder.path, fingerprint),
        judge, folder, scheduler="imported",
    )  # fmt: skip
    files = {(entry.pair_id, entry.alpha, entry.seed): entry for entry in entries}
    jobs = [job for job in study.jobs() if _place(job) in files]
    new = folder.without_image(jobs)
    for i in range(0, len(new), BATCH):
        batch = new[i : i + BATCH]
        images = np.stack([_picture(files[_place(job)], size) for job in batch])
        folder.add_images(batch, images, 0.0, stage="import")
    study.record(None)
    return study, len(new)


def _place(job: Job) -> tuple[str, float, int]:
    return job.pair.id, job.alpha, job.seed


def _picture(entry: Entry, size: int) -> Any:
    """A square RGB picture, of ``size`` unless that is 0."""
    try:
        with Image.open(entry.file) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ManifestError(
            f"line {entry.line}: {entry.file}: expected an image ({error})"
        ) from None
    if width != height or width > MAX_SIZE or size not in (0, width):
        raise ManifestError(
            f"line {entry.line}: {entry.file}: expected a square image of "
            f"{f'{size} pixels a side, as the first' if size else f'at most {MAX_SIZE} pixels'}, "
            f"got {width} x {height}"
        )
    try:
        return read_image(entry.file)
    except (ValueError, SyntaxError) as error:
        raise ManifestError(f"line {entry.line}: {error}") from None


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ManifestError(f"{path}: expected a manifest file, got something else")
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{path}: expected a manifest ({error}); check the path") from error
    if len(data) > MAX_FILE_BYTES:
        raise ManifestError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes; split the file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: expected UTF-8 text ({error})") from error


def _rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Each row with its line; CSV unless the file's name says JSON lines."""
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            for line, one in enumerate(text.split("\n"), 1):
                if one.strip():
                    yield line, json.loads(one)
            return
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        for row in reader:
            yield reader.line_num, {key: (value or "").strip() for key, value in row.items() if key}
    except (csv.Error, ValueError, RecursionError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{path}: expected CSV or JSON lines ({error})") from error
