"""Makes text safe to print on a terminal and to paste into a shell."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import Iterable

# Characters with no place on a terminal's line or in XML: control characters, line and paragraph
# separators, bidirectional controls, lone surrogates, non-characters.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """The text on one line; U+FFFD replaces every character that a terminal or XML must not get."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def is_printable(text: str) -> bool:
    """True if :func:`printable` leaves the text as it is."""
    return _UNPRINTABLE.search(text) is None


def display_width(text: str) -> int:
    """The terminal columns that the text takes: 2 for a Chinese letter, 0 for a combining mark."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def padded(text: str, width: int) -> str:
    """The text padded with spaces to the given number of terminal columns."""
    return text + " " * (width - display_width(text))


def shortened(text: str, width: int) -> str:
    """The text shortened in its middle to at most the given number of columns."""
    if display_width(text) <= width:
        return text
    half, start, end = (width - 1) // 2, "", ""
    while display_width(start + text[len(start)]) <= half + (width - 1) % 2:
        start += text[len(start)]
    while display_width(text[-1 - len(end)] + end) <= half:
        end = text[-1 - len(end)] + end
    return f"{start}…{end}"


def listed(values: Iterable[str]) -> str:
    """The values in words, such as ``a, b and c``; there must be one or more."""
    *most, last = values
    return f"{', '.join(most)} and {last}" if most else last


def short_name(fingerprint: str) -> str:
    """The name of a model or judge, without the digest that its fingerprint has after an ``@``."""
    return fingerprint.partition("@")[0]


def worded(value: object) -> str:
    """A setting's value in words, such as ``none``, ``4.0`` or ``[0.5, 1.0]``."""
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value is None else str(value)


def command_line(*words: str | os.PathLike[str]) -> str:
    """The words as one command that a shell reads as exactly these words (``shlex.join``).

    A message that shows a command ends with it, after a colon: quotes around it would mix with
    the command's own.
    """
    return shlex.join(os.fspath(word) for word in words)


def analogy_command(*words: str | os.PathLike[str]) -> str:
    """A command of this suite, ``python -m analogy`` and the words, safe to paste."""
    return command_line("python", "-m", "analogy", *words)


def lines_of(text: str) -> list[str]:
    """The lines of a file's text, without their endings, split only at LF and CR LF.

    ``str.splitlines`` also splits at U+2028, U+0085, vertical tabs and form feeds, which JSON and
    file names may hold.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def guidance_text(guidance: float, second: float | None, sets: str | None) -> str:
    """The guidance scales of a run, for headers. ``sets``: what the first one sets, if unusual."""
    text = f"guidance {guidance:g}" if sets is None else f"guidance {guidance:g} ({sets})"
    return text if second is None else f"{text}, second guidance {second:g}"
