"""Strict JSON: reads a value or raises a ``ValueError`` that says what is wrong; writes JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias, TypeGuard

MAX_DEPTH = 100
"""Most lists and objects nested within one another: more than any file of this suite has, and few
enough for recursive code."""


Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"
"""A JSON value. A value that was read has dicts and lists; tuples are written as lists."""


def parse(text: str) -> Any:
    """The value of a JSON text.

    Raises ``ValueError`` if it is invalid, and for what strict JSON excludes: NaN, infinities
    (such as 1e999, too), a repeated key, and values nested more than `MAX_DEPTH` deep.
    """
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_once_each,
        )
        if not _is_deep(value):
            return value
    except RecursionError:
        pass
    raise ValueError(f"nested too deeply, more than {MAX_DEPTH} levels")


def is_integer(value: object) -> TypeGuard[int]:
    """True for a JSON integer, which Python's True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """True for a JSON number, which Python's True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def encoded(data: Mapping[str, object]) -> bytes:
    """An object as the bytes of a JSON file. Raises ``ValueError`` for NaN and infinities."""
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            one
            for each in level
            if isinstance(each, (list, dict))
            for one in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is beyond float64")
    return value


def _once_each(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} twice in one object")
    return made
