"""Formats numbers, verdicts and counts for the report."""

from __future__ import annotations

import math
from typing import Protocol

from analogy.core.records import Verdict
from analogy.results.model import Stop

#: A symbol for each verdict, for places where the word does not fit.
SYMBOLS = {
    "success": "✓", "failure": "✗", "inconclusive": "?", "too_few": "<6", "incomplete": "…",
    "blind": "∅", "unsteered": "",
}  # fmt: skip

#: The symbol of an answer that is a success for some categories only.
PARTIAL = "\N{CIRCLE WITH LEFT HALF BLACK}"

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


class WithInterval(Protocol):
    """Figures that have an interval."""

    @property
    def ci_low(self) -> float:
        """Its lower end, NaN without an interval."""

    @property
    def ci_high(self) -> float:
        """Its upper end, NaN without an interval."""


def number(value: float | None) -> float | None:
    """The value if it is finite; otherwise (NaN, infinite or None) None."""
    return None if value is None or not math.isfinite(value) else float(value)


def signed(value: float | None, digits: int = 3) -> str:
    """A margin or another figure with its sign; a dash if it is not finite."""
    found = number(value)
    return DASH if found is None else f"{found:+.{digits}f}".replace("-", MINUS)


def percent(value: float | None) -> str:
    """A share in percent."""
    found = number(value)
    return DASH if found is None else f"{found:.0%}".replace("-", MINUS)


def significant(value: float | None) -> str:
    """A figure to three significant digits."""
    found = number(value)
    return DASH if found is None else f"{found:.3g}".replace("-", MINUS)


def p_value(value: float | None) -> str:
    """The p of a test, to three significant digits; a dash if it is not finite."""
    found = number(value)
    return DASH if found is None else f"{found:.3g}"


def interval(figures: WithInterval, digits: int = 3) -> str:
    """An interval as ``[low, high]``; a dash if an end is not finite."""
    if number(figures.ci_low) is None or number(figures.ci_high) is None:
        return DASH
    return f"[{signed(figures.ci_low, digits)}, {signed(figures.ci_high, digits)}]"


def confidence(stop: Stop) -> str:
    """The confidence of the intervals at a look of a sequential run, with all its digits."""
    return f"{100 * stop.confidence:.8g}%"


def interval_name(stop: Stop | None) -> str:
    """``95% interval``, or the same at the confidence of a look."""
    return f"{'95%' if stop is None else confidence(stop)} interval"


def duration(seconds: float) -> str:
    """A time in s, min or h, in the largest unit of which it is 1.5 or more: ``26 s``, ``4.3 min``,
    ``17 h``.
    """
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            found = seconds / size
            return f"{found:.1f} {unit}" if found < 10 else f"{found:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(n: float) -> str:
    """Bytes in kB, MB or GB (powers of 1,000): ``640 kB``, ``1.2 GB``."""
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if n >= one:
            return f"{n / one:.1f} {unit}" if n < 10 * one else f"{n / one:,.0f} {unit}"
    return f"{n / 1e3:.0f} kB"


def verdict_name(verdict: Verdict | None) -> str:
    """A verdict as in `SYMBOLS`; ``unsteered`` for figures without one."""
    return "unsteered" if verdict is None else verdict.value


def symbol(verdict: str) -> str:
    """A verdict's symbol."""
    return SYMBOLS.get(verdict, verdict)


def words(name: str) -> str:
    """A verdict or an outcome as words."""
    return name.replace("_", " ")


def counted(count: int, one: str) -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"
