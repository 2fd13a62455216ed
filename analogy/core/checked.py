"""Checks of the values in a run folder's index, which may come from anywhere.

Each check takes a value and its place, ``table.column``, and raises :class:`DamageError` if the
suite does not write such a value.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from analogy.core.fields import MAX_COUNT, MAX_TEXT, shown
from analogy.core.records import Pair
from analogy.core.strict_json import parse
from analogy.core.text import is_printable

#: Largest finite |value| of a metric of one image.
METRIC_LIMIT = 1e6

_KEY = re.compile(r"[0-9a-f]{32}")

_T = TypeVar("_T")


class DamageError(sqlite3.DatabaseError):
    """The index has a value that this suite does not write. The message has its place."""


def check_tables(db: sqlite3.Connection, schema: str) -> None:
    """Raises :class:`DamageError` if a table of the schema exists with other columns.

    Missing tables and additional tables are not damage; triggers are.
    """
    query = "SELECT name, type, sql FROM sqlite_master WHERE sql IS NOT NULL"
    new = sqlite3.connect(":memory:")
    try:
        new.executescript(schema)
        ours = {name: _words(sql) for name, _, sql in new.execute(query)}
    finally:
        new.close()
    for name, kind, sql in db.execute(query):
        if kind == "trigger":
            raise DamageError(f"expected no trigger in it, got {shown(name)}")
        if name in ours and _words(sql) != ours[name]:
            raise DamageError(f"expected the table {name} as this suite makes it, got another")


def _words(sql: Any) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text(sql, "sqlite_master.sql"))


def text(value: Any, place: str) -> str:
    """A text, of no more than `MAX_TEXT` characters."""
    if not isinstance(value, str):
        raise damage(place, "a text", value)
    if len(value) > MAX_TEXT:
        raise damage(place, f"at most {MAX_TEXT:,} characters", value)
    return value


def name(value: Any, place: str) -> str:
    """A text to be shown: not empty, without control characters."""
    if not text(value, place).strip() or not is_printable(value):
        raise damage(place, "a text without control characters", value)
    return str(value)


def key(value: Any, place: str) -> str:
    """An image's key: 32 hex digits."""
    if _KEY.fullmatch(text(value, place)) is None:
        raise damage(place, "32 hex digits", value)
    return str(value)


def number(value: Any, place: str, low: float, high: float) -> float:
    """A number from ``low`` to ``high``."""
    if not isinstance(value, (int, float)) or not low <= value <= high:  # false for NaN
        raise damage(place, f"a number from {low:g} to {high:g}", value)
    return float(value)


def metric(value: Any, place: str) -> float:
    """A metric's value: within ±`METRIC_LIMIT`, or infinity, the PSNR of equal images."""
    if value == np.inf:
        return np.inf
    return number(value, place, -METRIC_LIMIT, METRIC_LIMIT)


def count(value: Any, place: str) -> int:
    """An integer >= 0."""
    if not isinstance(value, int) or value < 0:
        raise damage(place, "an integer >= 0", value)
    return value


def rate(images: Any, seconds: Any, place: str) -> float | None:
    """Images per second, None if there are no images or no recorded time."""
    n = number(images, f"{place}.images", 0, MAX_COUNT**2)
    time = number(seconds, f"{place}.seconds", 0, MAX_COUNT)
    return n / time if n and time else None


def json(value: Any, place: str, kind: type[_T]) -> _T:
    """The object (``dict``) or list in a JSON text."""
    what = "an object" if kind is dict else "a list"
    try:
        if not isinstance(value, str):
            raise damage(place, f"{what} as JSON", value)
        found = parse(value)
    except ValueError as error:
        raise DamageError(f"{place}: expected {what} as JSON, got another text ({error})") from None
    if not isinstance(found, kind):
        raise damage(place, f"{what} as JSON", value)
    return found


def pairs(value: Any, place: str) -> tuple[Pair, ...]:
    """The pairs of a command: a list of one or more, with distinct ids."""
    fields = len(Pair.__dataclass_fields__)
    made: dict[str, Pair] = {}
    for row in json(value, place, list):
        if not isinstance(row, list) or len(row) != fields:
            raise damage(place, f"pairs of {fields} texts", row)
        pair = Pair(*(_encodable(one, place) for one in row))
        name(pair.id, place), name(pair.category, place)
        if made.setdefault(pair.id, pair) is not pair:
            raise damage(place, "each pair once", pair.id)
    if not made:
        raise damage(place, "a pair or more", value)
    return tuple(made.values())


def _encodable(value: Any, place: str) -> str:
    try:
        text(value, place).encode()
    except UnicodeEncodeError:
        raise damage(place, "a text of Unicode characters", value) from None
    return str(value)


def vectors(found: Iterable[tuple[str, Any]], place: str) -> dict[str, NDArray[np.float32]]:
    """A judge's features by key: vectors ``(dim,)`` of one length, all numbers finite."""
    made: dict[str, NDArray[np.float32]] = {}
    length = None
    for of, value in found:
        if not isinstance(value, bytes) or not value or len(value) % 4:
            raise damage(place, "float32 numbers", value)
        vector = np.frombuffer(value, "<f4")
        if len(vector) != (length := length or len(vector)) or not np.isfinite(vector).all():
            raise DamageError(
                f"{place}: expected {length} finite numbers for each image, got other ones"
            )
        made[of] = vector
    return made


def damage(place: str, expected: str, value: Any) -> DamageError:
    """The error for a value that this suite does not write at this place."""
    return DamageError(f"{place}: expected {expected}, got {shown(value)}")
