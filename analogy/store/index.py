"""The index of a run folder: its tables in SQLite, and every query on them.

It works with keys and rows, not with jobs or image files. An index may come from anywhere, so its
values are checked when they are read: :class:`~analogy.core.checked.DamageError` is raised for one
that the suite does not write. Errors of SQLite are raised as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analogy.core import checked
from analogy.core.records import MARGIN_LIMIT
from analogy.store.database import timestamp
from analogy.store.work_index import BatchRow, WorkIndex, WorkRow

#: Prefix of the reason of an image that existed once and must be made again.
LOST = "lost: "
_OF_IMAGES = ("scores", "features", "metrics")

# Most keys in one query; old versions of SQLite take 999 parameters.
_LOOKED_UP = 500


class ImageRow(NamedTuple):
    """An image in the index: ``what`` is JSON, ``path`` is relative to the run folder."""

    key: str
    what: str
    path: str
    sha256: str


class FailureRow(NamedTuple):
    """An image that could not be made, and the reason: ``what`` is JSON."""

    key: str
    what: str
    reason: str


class Scores(NamedTuple):
    """A judge's scores of an image."""

    margin: float
    cos_target: float
    cos_source: float


class Index(WorkIndex):
    """The tables of the run folder at ``folder``, open until :meth:`close`.

    Raises SQLite's errors, ``OSError``, :class:`SchemaVersionError`, and ``ValueError`` if an index
    without a schema version is opened read-only.
    """

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

    def n_images(self) -> int:
        """The number of images."""
        count: int = self.db.execute("SELECT COUNT(*) FROM images").fetchone()[0]
        return count

    def with_image(self, keys: Iterable[str]) -> set[str]:
        """The keys that have an image."""
        return {key for (key,) in self._rows_of(keys, "SELECT key FROM images WHERE")}

    def without_score(self, keys: Iterable[str], judge: str) -> set[str]:
        """The keys that have an image which this judge has not scored."""
        query = (
            "SELECT key FROM images WHERE NOT EXISTS "
            "(SELECT 1 FROM scores WHERE scores.key = images.key AND judge = ?) AND"
        )
        return {key for (key,) in self._rows_of(keys, query, judge)}

    def failures(self, keys: Iterable[str]) -> dict[str, str]:
        """The reason by key, for the keys whose generation failed when it was last tried."""
        found = self._rows_of(keys, "SELECT key, reason FROM failures WHERE")
        return {key: checked.text(reason, "failures.reason") for key, reason in found}

    def add_images(
        self,
        made: Sequence[ImageRow],
        failed: Sequence[FailureRow],
        work: WorkRow,
        worker: tuple[str, float] | None,
        cost: BatchRow | None = None,
    ) -> None:
        """Record images, failures and the time that they took, in one transaction.

        ``worker``: if there are several, the name of the one that made them, and its own seconds.
        ``cost``: the cost of a batch of one method.
        """
        now = timestamp()
        with self.db:
            self.db.executemany(
                "REPLACE INTO images VALUES (?, ?, ?, ?, ?)", [(*row, now) for row in made]
            )
            self.db.executemany("DELETE FROM failures WHERE key = ?", [row[:1] for row in made])
            self.db.executemany(
                "REPLACE INTO failures VALUES (?, ?, ?, ?)", [(*row, now) for row in failed]
            )
            self._add_work(work)
            if cost is not None:
                self.db.execute(
                    "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*cost, now)
                )
            if worker is not None:
                self.db.execute(
                    "INSERT INTO workers VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                    "images = images + excluded.images, seconds = seconds + excluded.seconds",
                    (worker[0], len(made), worker[1]),
                )

    def without_owner(self) -> dict[str, int]:
        """The number of rows whose image is missing by table, for tables with such rows."""
        counts = {
            table: self.db.execute(
                f"SELECT COUNT(*) FROM {table} WHERE key NOT IN (SELECT key FROM images)"
            ).fetchone()[0]
            for table in _OF_IMAGES
        }
        return {table: count for table, count in counts.items() if count}

    def remove(self, lost: Sequence[tuple[ImageRow, str]]) -> None:
        """Remove images, with their scores, features and metrics, in one transaction.

        Each is recorded as failed, with its reason, so that it can be made again. Metrics of images
        with the same pair and seed are removed, too: they compare with the unsteered image, which
        may be removed. Rows without an image are removed as well.
        """
        compared = {_compared(row) for row, _ in lost}
        stale = [row[:1] for row in self.image_rows() if _compared(row) in compared]
        failed = [(row.key, row.what, LOST + reason, timestamp()) for row, reason in lost]
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
        """Record a judge's scores and features by key, with the time that they took."""
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
        """A judge's scores by key, for the keys that it has scored."""
        query = "SELECT key, margin, cos_target, cos_source FROM scores WHERE judge = ? AND"
        return _scores(self._rows_of(keys, query, judge))

    def images_with_scores(
        self, keys: Collection[str], judge: str
    ) -> tuple[set[str], dict[str, Scores]]:
        """The keys that have an image, and this judge's scores of those that it scored.

        Makes one pass over the index, as tables of a whole run need.
        """
        found = self.db.execute(
            "SELECT images.key, margin, cos_target, cos_source FROM images "
            "LEFT JOIN scores ON scores.key = images.key AND scores.judge = ?",
            (judge,),
        )
        rows = [row for row in found if row[0] in keys]
        return {row[0] for row in rows}, _scores(row for row in rows if row[1] is not None)

    def features(self, keys: Iterable[str], judge: str) -> dict[str, NDArray[np.float32]]:
        """A judge's features ``(dim,)`` by key, for the images that it has scored."""
        query = "SELECT key, vector FROM features WHERE judge = ? AND"
        return checked.vectors(self._rows_of(keys, query, judge), "features.vector")

    def add_metric(self, metric: str, values: Mapping[str, float]) -> None:
        """Record a metric's values by key."""
        rows = [(key, metric, value) for key, value in values.items()]
        with self.db:
            self.db.executemany("REPLACE INTO metrics VALUES (?, ?, ?)", rows)

    def metric(self, metric: str, keys: Iterable[str]) -> dict[str, float]:
        """A metric's recorded values by key."""
        query = "SELECT key, value FROM metrics WHERE metric = ? AND"
        found = self._rows_of(keys, query, metric)
        return {key: checked.metric(value, "metrics.value") for key, value in found}

    def metrics(self, judge: str) -> dict[str, dict[str, float]]:
        """Every metric by name, with its values by key; metrics of features only by this judge."""
        metrics: dict[str, dict[str, float]] = {}
        for key, metric, value in self.db.execute("SELECT key, metric, value FROM metrics"):
            name, _, by = checked.name(metric, "metrics.metric").partition("/")
            if by in ("", judge):  # a metric with its own network is named name-network@digest
                of = metrics.setdefault(name.partition("@")[0], {})
                of[key] = checked.metric(value, "metrics.value")
        return metrics

    def _rows_of(self, keys: Iterable[str], query: str, *values: Any) -> Iterator[Any]:
        """The rows of these keys; ``query`` ends where the condition on the key goes.

        The time grows with the number of keys, not with the index. Keys are sorted, as in SQLite's
        own index, so that a query for a whole run reads that index once from front to back.
        """
        wanted = sorted(set(keys))
        for i in range(0, len(wanted), _LOOKED_UP):
            some = wanted[i : i + _LOOKED_UP]
            marks = ", ".join("?" * len(some))
            # fetchall: no query stays open if a row that is read turns out to be damaged.
            yield from self.db.execute(f"{query} key IN ({marks})", (*values, *some)).fetchall()


def _scores(rows: Iterable[Sequence[Any]]) -> dict[str, Scores]:
    """Scores by key, from rows of a key and the fields of :class:`Scores`.

    Raises DamageError if one is not a number within ±`MARGIN_LIMIT`.
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


def _compared(row: ImageRow) -> tuple[Any, Any, Any]:
    """The pair or prompt, and the seed, that an image shares with those it is compared with."""
    what = json.loads(row.what)  # an object: image_rows checked that
    return what.get("pair_id"), what.get("prompt"), what.get("seed")
