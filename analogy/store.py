"""The run folder: which images and scores there are, so that a killed run loses nothing.

Layout::

    <run>/index.sqlite     images, scores, work done, and the configuration (SQLite, WAL)
    <run>/images/ab/<key>.png

An image is written under another name, flushed and renamed, and only then named in the index, one
transaction a batch: what the index names exists. A key is a digest of all that produced the image,
so an image of another model, dtype or step count is never taken for this run's.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analogy.files import write_atomically
from analogy.images import Images, from_png, to_png
from analogy.records import Pair, RunConfig
from analogy.steering import OTHERS_MATTER

SCHEMA_VERSION = 2

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
"""


class StoreError(RuntimeError):
    """A run folder cannot be used; the message says why and what to do."""


class Wanted(Protocol):
    """An image that a run folder has or is to have.

    Its ``key`` is a digest of all that produces it; ``what`` says what it is, for those who read
    the index.
    """

    @property
    def key(self) -> str:
        """32 hex digits."""
        ...

    @property
    def what(self) -> Mapping[str, Any]:
        """Names and plain values."""
        ...


W = TypeVar("W", bound=Wanted)


@dataclass(frozen=True, slots=True)
class Job:
    """One image of the grid, the method that steers it, and its key in the run folder."""

    pair: Pair
    alpha: float
    seed: int
    method: str
    key: str

    @property
    def what(self) -> dict[str, Any]:
        """The image in the words of a run."""
        method = {} if self.alpha == 0.0 else {"method": self.method}
        pair = {"pair_id": self.pair.id, "category": self.pair.category}
        return {**pair, "alpha": self.alpha, "seed": self.seed, **method}


def plan(
    config: RunConfig,
    model_fingerprint: str,
    scheduler: str,
    pairs: Sequence[Pair],
    alphas: Iterable[float],
) -> list[Job]:
    """The grid's jobs for these pairs and alphas, in the order pair, alpha, seed.

    ``pairs`` are all pairs of the run: a method that looks at a pair's neighbours has them in the
    key. The control, alpha 0, is the same image for every method and has none in its key.
    """
    subject = {
        "model": model_fingerprint,
        "steps": config.steps,
        "guidance": config.guidance,
        "size": config.size,
        "dtype": config.dtype,
        "scheduler": scheduler,
    }
    by_category: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_category.setdefault(pair.category, []).append(pair)
    jobs = []
    for pair in pairs:
        others = [content(o) for o in by_category[pair.category] if o.id != pair.id]
        for alpha in alphas:
            method = {} if alpha == 0.0 else {"method": config.method, "alpha": alpha}
            if alpha != 0.0 and config.method in OTHERS_MATTER:
                method["others"] = others
            for seed in config.seeds:
                what = {**subject, **method, "pair": content(pair), "seed": seed}
                jobs.append(Job(pair, alpha, seed, config.method, digest(what)))
    return jobs


def content(pair: Pair) -> list[str]:
    """What of a pair determines its images: its words and prompts, not its id."""
    return [pair.source_word, pair.target_word, pair.source_prompt, pair.target_prompt]


def digest(value: Any) -> str:
    """A short SHA-256 over the canonical JSON of ``value``."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def pairs_digest(pairs: Iterable[Pair]) -> str:
    """What identifies pairs: their ids and contents, whatever their order."""
    return digest(sorted([pair.id, *content(pair)] for pair in pairs))


class RunFolder:
    """Images, scores and timings of a run. Opened for writing by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            (path / "images").mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path / "index.sqlite", timeout=30.0)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_SCHEMA)
            version = self._meta("schema_version")
        except (OSError, ValueError, sqlite3.Error) as error:
            raise StoreError(
                f"run folder {path}: expected a folder that can be written, with this suite's "
                f"index or none ({error}); choose another with --run-dir"
            ) from error
        if version is None:
            self._set_meta("schema_version", SCHEMA_VERSION)
        elif version != SCHEMA_VERSION:
            raise StoreError(
                f"run folder {path}: expected schema version {SCHEMA_VERSION}, got {version}; "
                "it was written by another version of this suite: choose another with --run-dir"
            )

    def close(self) -> None:
        """Close the index."""
        self._db.close()

    def _meta(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def _set_meta(self, name: str, value: Any) -> None:
        with self._db:
            self._db.execute("REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    def record_config(self, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        """Keep the configuration and provenance of the latest command on this folder."""
        self._set_meta("config", config.to_dict())
        self._set_meta("provenance", dict(provenance))

    def record_pairs(self, pairs: Iterable[Pair]) -> None:
        """Keep the pairs of the latest command on this folder, for those who look at its images."""
        self._set_meta("pairs", [asdict(pair) for pair in pairs])

    def pairs(self) -> list[Pair]:
        """The pairs of the latest command; none in a folder of an earlier suite."""
        return [Pair(**values) for values in self._meta("pairs") or ()]

    def without_image(self, wanted: Iterable[W]) -> list[W]:
        """Those whose image is not there yet, because nobody tried or because it failed."""
        have = {row[0] for row in self._db.execute("SELECT key FROM images")}
        return [each for each in wanted if each.key not in have]

    def without_score(self, wanted: Iterable[W], judge: str) -> list[W]:
        """Those with an image that this judge has not scored yet."""
        rows = self._db.execute(
            "SELECT key FROM images EXCEPT SELECT key FROM scores WHERE judge = ?", (judge,)
        )
        open_ = {row[0] for row in rows}
        return [each for each in wanted if each.key in open_]

    def failures(self, wanted: Iterable[W]) -> list[tuple[W, str]]:
        """Those whose generation failed when it was last tried, each with the reason."""
        reasons = dict(self._db.execute("SELECT key, reason FROM failures"))
        return [(each, reasons[each.key]) for each in wanted if each.key in reasons]

    def add_images(
        self,
        wanted: Sequence[Wanted],
        images: Images,
        seconds: float,
        *,
        faults: Mapping[int, str] | None = None,
        peak_bytes: int | None = None,
    ) -> None:
        """Write a batch of uint8 NHWC images, made in ``seconds``, and name them in the index.

        ``faults``: a place in the batch to the reason why there is no picture: that is kept in the
        image's place. ``peak_bytes``: the most memory of the device that was in use.
        """
        faults = faults or {}
        rows, failed = [], []
        for i, (each, image) in enumerate(zip(wanted, images, strict=True)):
            what = json.dumps(each.what, sort_keys=True, ensure_ascii=False)
            if i in faults:
                failed.append((each.key, what, faults[i], _now()))
                continue
            data = to_png(image)
            path = self._image_path(each.key)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, data)
            name = path.relative_to(self.path).as_posix()
            rows.append((each.key, what, name, hashlib.sha256(data).hexdigest(), _now()))
        with self._db:
            self._db.executemany("REPLACE INTO images VALUES (?, ?, ?, ?, ?)", rows)
            self._db.executemany("DELETE FROM failures WHERE key = ?", [row[:1] for row in rows])
            self._db.executemany("REPLACE INTO failures VALUES (?, ?, ?, ?)", failed)
            self._add_work("generate", len(rows), seconds, peak_bytes)

    def read_image(self, wanted: Wanted) -> Images:
        """One image, uint8 HWC. A file that is missing or changed is a :class:`StoreError`."""
        query = "SELECT path, sha256 FROM images WHERE key = ?"
        row = self._db.execute(query, (wanted.key,)).fetchone()
        if row is None:
            what = ", ".join(f"{name} {value}" for name, value in wanted.what.items())
            raise StoreError(f"{self.path}: {what}: the index has no such image; generate it first")
        path = self.path / row[0]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(
                f"{path}: the index names this image but it cannot be read ({error}); "
                f"delete {self.path / 'index.sqlite'} to start the run anew"
            ) from error
        if hashlib.sha256(data).hexdigest() != row[1]:
            raise StoreError(
                f"{path}: the image is not the one that was written (SHA-256 differs); "
                f"delete {self.path / 'index.sqlite'} to start the run anew"
            )
        return from_png(data)

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

    def margins(self, jobs: Iterable[Job], judge: str) -> pd.DataFrame:
        """A row per scored job: pair_id, category, alpha, seed, margin, cos_target, cos_source."""
        rows = self._db.execute(
            "SELECT key, margin, cos_target, cos_source FROM scores WHERE judge = ?", (judge,)
        )
        scored = {row[0]: row[1:] for row in rows}
        return pd.DataFrame(
            [
                (job.pair.id, job.pair.category, job.alpha, job.seed, *scored[job.key])
                for job in jobs
                if job.key in scored
            ],
            columns=[
                "pair_id", "category", "alpha", "seed", "margin", "cos_target", "cos_source",
            ],
        )  # fmt: skip

    def features(self, wanted: Iterable[Wanted], judge: str) -> dict[str, NDArray[np.float32]]:
        """What this judge saw of those images that it has scored: key to ``(dim,)``."""
        rows = self._db.execute("SELECT key, vector FROM features WHERE judge = ?", (judge,))
        have = dict(rows)
        return {
            each.key: np.frombuffer(have[each.key], "<f4") for each in wanted if each.key in have
        }

    def add_metric(self, metric: str, values: Mapping[str, float]) -> None:
        """Keep a metric's value for each image, by key. ``metric`` says all that it depends on."""
        rows = [(key, metric, value) for key, value in values.items()]
        with self._db:
            self._db.executemany("REPLACE INTO metrics VALUES (?, ?, ?)", rows)

    def metric(self, metric: str, wanted: Iterable[Wanted]) -> dict[str, float]:
        """The values that are kept, by key."""
        have = dict(self._db.execute("SELECT key, value FROM metrics WHERE metric = ?", (metric,)))
        return {each.key: have[each.key] for each in wanted if each.key in have}

    def rate(self, stage: str) -> float | None:
        """Images per second over all recorded work of ``generate`` or ``score``, None if none."""
        images, seconds = self._db.execute(
            "SELECT TOTAL(images), TOTAL(seconds) FROM work WHERE stage = ?", (stage,)
        ).fetchone()
        return images / seconds if seconds else None

    def peak_memory(self) -> int | None:
        """The most bytes of a device that generating took, None where that was not measured."""
        (most,) = self._db.execute("SELECT MAX(peak_bytes) FROM work").fetchone()
        return most

    def _add_work(
        self, stage: str, images: int, seconds: float, peak_bytes: int | None = None
    ) -> None:
        row = (stage, images, seconds, peak_bytes, _now())
        self._db.execute("INSERT INTO work VALUES (?, ?, ?, ?, ?)", row)

    def _image_path(self, key: str) -> Path:
        return self.path / "images" / key[:2] / f"{key}.png"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
