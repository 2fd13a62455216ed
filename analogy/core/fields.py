"""One check for each field of a run's configuration.

The request that a user makes and the configuration that is kept with a run both use these checks.
Each check takes a field's name and value, and raises ``FieldError`` unless it accepts the value.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from analogy.core.errors import FieldError
from analogy.core.text import is_printable

ALPHA_LIMIT = 5.0
"""Largest |alpha| accepted: far outside anything that still gives an image."""

DTYPES = ("float32", "bfloat16", "float16")
"""Names of the number formats a model may compute in."""

OFFLOADS = ("model", "sequential", "group")
"""Ways to keep a model's networks on the CPU until they are used, by diffusers' names."""

QUANTIZATIONS = ("bitsandbytes_8bit", "bitsandbytes_4bit", "torchao_int8", "torchao_float8")
"""Ways to quantize a model's weights: a package and a number format."""

MAX_SEED = 2**63 - 1
"""Largest seed: SQLite, where scores are kept, stores signed 64-bit integers."""

MAX_COUNT = 10**9
"""Largest number of steps, pairs, images at once or workers: beyond any run."""

MAX_GUIDANCE = 1e6
"""Largest guidance scale: beyond any that still gives an image."""

MAX_TEXT = 10_000
"""Most characters of a name or a path."""

MAX_SIZE = 16_384
"""Largest image, in pixels a side: larger than any model draws, so only typing errors exceed it."""

TOLERANCE = 0.005
"""Default for how far below the baseline a mean margin may be."""

MAX_TOLERANCE = 1e9
"""Largest tolerance accepted: beyond any margin."""

Check = Callable[[str, Any], None]
"""Raises ``FieldError`` if the value is invalid for the field of this name."""


def shown(value: Any) -> str:
    """Any value as a short text on one line, for a message."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python prints
        return "a value that is too long to show"


def check_text(name: str, value: Any) -> None:
    """Accepts a non-empty string, such as a path, of at most `MAX_TEXT` characters and no NUL."""
    if not isinstance(value, str) or not value.strip():
        raise FieldError(place=name, expected="a non-empty string", got=shown(value))
    if len(value) > MAX_TEXT or "\0" in value:
        expected = f"at most {MAX_TEXT:,} characters and no NUL"
        raise FieldError(place=name, expected=expected, got=shown(value))


def check_name(name: str, value: Any) -> None:
    """Accepts a text without control characters, since results contain it and readers show it."""
    check_text(name, value)
    if not is_printable(value):
        expected = "a text without control characters"
        raise FieldError(place=name, expected=expected, got=shown(value))


def check_switch(name: str, value: Any) -> None:
    """Accepts True and False."""
    if not isinstance(value, bool):
        raise FieldError(place=name, expected="true or false", got=shown(value))


def check_integer(name: str, value: Any, low: int, high: int = MAX_COUNT) -> None:
    """Accepts an integer from ``low`` to ``high``."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        expected = f"an integer in {low}..{high}"
        raise FieldError(place=name, expected=expected, got=shown(value))


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Accepts a finite number from ``low`` to ``high``."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # false for NaN
        expected = f"a finite number from {low:g} to {high:g}"
        raise FieldError(place=name, expected=expected, got=shown(value))


def check_size(name: str, value: Any) -> None:
    """Accepts pixels a side: a multiple of 8, from 8 to `MAX_SIZE`."""
    check_integer(name, value, 8)
    if value % 8:
        raise FieldError(place=name, expected="a multiple of 8 pixels", got=str(value))
    if value > MAX_SIZE:
        raise FieldError(place=name, expected=f"at most {MAX_SIZE:,} pixels", got=f"{value:,}")


def _check_alpha(name: str, value: Any) -> None:
    check_number(name, value, -ALPHA_LIMIT, ALPHA_LIMIT)
    if value == 0:
        raise FieldError(
            place=name,
            expected="strengths other than 0",
            got=repr(value),
            advice="alpha 0 (unsteered) is always in the grid, so leave it out",
        )


def _check_seed(name: str, value: Any) -> None:
    check_integer(name, value, 0, MAX_SEED)


def _check_count(name: str, value: Any) -> None:
    check_integer(name, value, 1)


def _check_guidance(name: str, value: Any) -> None:
    check_number(name, value, 0.0, MAX_GUIDANCE)


def _check_share(name: str, value: Any) -> None:
    check_number(name, value, 0.0, 1.0)


def check_window(start: float, end: float) -> None:
    """Raises ``FieldError`` unless steering starts before it ends; both are shares, 0..1."""
    if not start < end:
        raise FieldError(
            place="steer_until", expected=f"a share above steer_from, {start:g}", got=f"{end:g}"
        )


def check_steps(start: float, end: float, within: range, steps: int) -> None:
    """Raises ``FieldError`` if ``within``, the steered ones of a schedule's steps, is empty."""
    check_window(start, end)
    if not within:
        raise FieldError(
            place="steer_until",
            expected=f"a part of the schedule with at least one of its {steps} steps",
            got=f"{start:g} to {end:g}",
            advice=f"a step is {1 / steps:.3g} of the schedule",
        )


def _check_memory(name: str, value: Any) -> None:
    check_number(name, value, 0.0, MAX_COUNT)


def one_of(names: tuple[str, ...]) -> Check:
    """A check that accepts only these names."""

    def check(name: str, value: Any) -> None:
        if value not in names:
            near = get_close_matches(str(value), names, n=1)
            raise FieldError(
                place=name, expected=f"one of {', '.join(names)}", got=repr(value),
                advice=f"did you mean {near[0]!r}?" if near else None,
            )  # fmt: skip

    return check


def each(check: Check) -> Check:
    """A check that accepts a non-empty tuple of distinct values that ``check`` accepts."""

    def check_each(name: str, values: Any) -> None:
        if not isinstance(values, tuple) or not values:
            raise FieldError(place=name, expected="a non-empty tuple", got=shown(values))
        for value in values:
            check(name, value)
        if len(set(values)) < len(values):
            raise FieldError(place=name, expected="each value once", got=shown(values))

    return check_each


CHECKS: Mapping[str, Check] = {
    "model": check_text,  # these may be paths
    "clip_model": check_text,
    "pairs": check_text,
    "transformer": check_text,
    "lora": check_text,
    "method": check_name,
    "device": check_name,
    "engine": check_name,
    "clip_pretrained": check_name,
    "ray_address": check_name,
    "categories": each(check_name),
    "alphas": each(_check_alpha),
    "seeds": each(_check_seed),
    "steps": _check_count,
    "guidance": _check_guidance,
    "second_guidance": _check_guidance,
    "size": check_size,
    "dtype": one_of(DTYPES),
    "quantize": one_of(QUANTIZATIONS),
    "offload": one_of(OFFLOADS),
    "batch_size": _check_count,
    "num_workers": _check_count,
    "memory": _check_memory,
    "limit": _check_count,
    "control": check_switch,
    "target": check_switch,
    "sequential": check_switch,
    "order_seed": _check_seed,
    "full_unsteered": check_switch,
    "futility": check_switch,
    "reserve": check_switch,
    "steer_from": _check_share,
    "steer_until": _check_share,
}
"""The fields of a configuration in the order in which they are checked."""
