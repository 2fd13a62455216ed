"""Checks of JSON that may come from anywhere: each takes a value and its place in the file.

The first checks are for values that decide something: a comparison, a verdict, a name. They raise
:class:`InvalidValueError` if a value is invalid. The checks from ``figure`` on are for figures that
are only shown: an invalid one counts as missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from analogy.core.fields import ALPHA_LIMIT, MAX_COUNT, MAX_GUIDANCE, MAX_SEED, MAX_TEXT, shown
from analogy.core.records import MARGIN_LIMIT, Verdict
from analogy.core.strict_json import is_integer, is_number
from analogy.core.text import is_printable
from analogy.results.model import Machine

T = TypeVar("T")

Object = Mapping[str, object]
"""An object of JSON."""


class InvalidValueError(ValueError):
    """A value is invalid. The message has its place, what was expected and what came."""


# --- values that decide something


def value_of(data: object, key: str, place: str) -> object:
    """The value of a required key."""
    if not isinstance(data, Mapping) or key not in data:
        raise InvalidValueError(f"{place}{key}: expected a value, got none")
    return data[key]


def at(data: Object, place: str, key: str, check: Callable[[object, str], T]) -> T:
    """The checked value of a key."""
    return check(value_of(data, key, f"{place}."), f"{place}.{key}")


def optional(check: Callable[[object, str], T]) -> Callable[[object, str], T | None]:
    """The check of a value that may be null."""
    return lambda value, place: None if value is None else check(value, place)


def each(check: Callable[[object, str], T]) -> Callable[[object, str], tuple[T, ...]]:
    """The check of a list of distinct values. It returns them in ascending order, since no mean
    depends on the order.
    """

    def check_each(value: object, place: str) -> tuple[T, ...]:
        values = list_of(value, place)
        checked: Iterable[object] = [check(one, place) for one in values]
        ordered = tuple(sorted(set(checked)))  # type: ignore[type-var]
        if not ordered or len(ordered) < len(values):
            raise InvalidValueError(
                f"{place}: expected a value or more, each once, got {shown(value)}"
            )
        return ordered  # type: ignore[return-value]

    return check_each


def object_of(value: object, place: str) -> Object:
    """The value, if it is an object."""
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"{place}: expected an object, got {shown(value)}")
    return value


def list_of(value: object, place: str) -> list[object] | tuple[object, ...]:
    """The value, if it is a list."""
    if not isinstance(value, (list, tuple)):
        raise InvalidValueError(f"{place}: expected a list, got {shown(value)}")
    return value


def text(value: object, place: str) -> str:
    """A text to be shown: not empty, without control characters."""
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
        raise InvalidValueError(f"{place}: expected a text, got {shown(value)}")
    if not is_printable(value):
        raise InvalidValueError(
            f"{place}: expected a text without control characters, got {shown(value)}"
        )
    return value


def texts(value: object, place: str) -> dict[str, str]:
    """An object whose values are texts."""
    return {
        text(key, place): text(one, f"{place}[{shown(key)}]")
        for key, one in object_of(value, place).items()
    }


def machine(value: object, place: str) -> Machine:
    """The machine's properties: plain values, which are compared and shown."""
    made: dict[str, str | int | float | None] = {}
    for key, one in object_of(value, place).items():
        if not isinstance(one, (str, int, float, type(None))):
            raise InvalidValueError(
                f"{place}[{shown(key)}]: expected a plain value, got {shown(one)}"
            )
        made[text(key, place)] = one
    if not made:
        raise InvalidValueError(f"{place}: expected the machine's properties, got none")
    return made


def verdict(value: object, place: str) -> Verdict:
    """A verdict's name."""
    found = verdict_or_none(value)
    if found is None:
        raise InvalidValueError(
            f"{place}: expected one of {', '.join(Verdict)}, got {shown(value)}"
        )
    return found


def number(value: object, place: str, low: float, high: float) -> float:
    """A number from ``low`` to ``high``."""
    if not is_number(value) or not low <= value <= high:  # false for NaN
        raise InvalidValueError(
            f"{place}: expected a number from {low:g} to {high:g}, got {shown(value)}"
        )
    return float(value)


def integer(value: object, place: str, low: int, high: int) -> int:
    """An integer from ``low`` to ``high``."""
    if not is_integer(value) or not low <= value <= high:
        raise InvalidValueError(
            f"{place}: expected an integer from {low} to {high}, got {shown(value)}"
        )
    return value


def count(value: object, place: str) -> int:
    """An integer >= 1."""
    return integer(value, place, 1, MAX_COUNT)


def seed(value: object, place: str) -> int:
    """A seed, from 0 to `MAX_SEED`."""
    return integer(value, place, 0, MAX_SEED)


def margin(value: object, place: str) -> float:
    """A margin, in -2..2 with room for rounding."""
    return number(value, place, -MARGIN_LIMIT, MARGIN_LIMIT)


def guidance(value: object, place: str) -> float:
    """A guidance scale."""
    return number(value, place, 0.0, MAX_GUIDANCE)


def share(value: object, place: str) -> float:
    """A share, in 0..1."""
    return number(value, place, 0.0, 1.0)


def rate(value: object, place: str) -> float:
    """Images per second."""
    return number(value, place, 1e-9, 1e9)


def alpha(value: object, place: str) -> float:
    """A strength other than 0."""
    found = number(value, place, -ALPHA_LIMIT, ALPHA_LIMIT)
    if found == 0:
        raise InvalidValueError(f"{place}: expected a strength other than 0, got {shown(value)}")
    return found


def margins(value: object, place: str) -> dict[str, float]:
    """Pair id to margin."""
    found = object_of(value, place)
    made: dict[str, float] = {}
    for pair, one in found.items():
        # A file may have a million margins: the text of the place is only made for an error.
        if type(one) is not float or not -MARGIN_LIMIT <= one <= MARGIN_LIMIT:
            one = margin(one, f"{place}[{shown(pair)}]")
        made[text(pair, place)] = one
    return made


# --- values that are only shown


def figure(value: object) -> float:
    """A finite number; NaN for anything else."""
    if not is_number(value):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an integer beyond float64
        return math.nan


def size(value: object) -> int | None:
    """An integer from 0 to `MAX_COUNT`; None for anything else."""
    return value if is_integer(value) and 0 <= value <= MAX_COUNT else None


def verdict_or_none(value: object) -> Verdict | None:
    """A verdict; None for any other value."""
    return next((verdict for verdict in Verdict if verdict == value), None)


def name(value: object) -> str | None:
    """A text; None for anything else."""
    return value if isinstance(value, str) else None


def part(row: Object, key: str) -> Object:
    """An object within another; empty if it is missing."""
    found = row.get(key)
    return found if isinstance(found, Mapping) else {}


def rows(data: Object, key: str) -> list[Object]:
    """The objects of a list within an object; empty if it is missing."""
    found = data.get(key)
    if not isinstance(found, (list, tuple)):
        return []
    return [row for row in found if isinstance(row, Mapping)]
