"""Progress bars that leave pytest's line of dots intact."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TextIO

import pytest
from tqdm import tqdm

from analogy.core.text import display_width

_PATIENCE = 30.0
"""Seconds between two lines where there is no terminal."""

# Without tqdm's own estimate of the remaining time, which leaves out scoring.
_LONG = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
_SHORT = "{n_fmt}/{total_fmt} images{postfix}"
"""The short format, which fits beside pytest's dots."""


class Beside:
    """A stream for a bar at the end of a terminal's current line.

    tqdm writes a carriage return before a text that replaces its last one. This stream writes
    backspaces instead, so that the cursor returns to the start of the bar, not of the line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._columns = 0

    def write(self, text: str) -> None:
        """Write the text, over the last one if it begins with a carriage return."""
        if text.startswith("\r"):
            self._stream.write("\b" * self._columns)
            self._columns, text = 0, text[1:]
        self._stream.write(text)
        self._columns += display_width(text)

    def flush(self) -> None:
        """Flush the terminal."""
        self._stream.flush()


class Lines:
    """A stream for a bar without a terminal: every text goes on its own line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_new = True

    def write(self, text: str) -> None:
        """Write the text in a line, unless it is empty."""
        if text.strip():
            self._stream.write(f"{chr(10) if self._is_new else ''}{text.strip()}\n")
            self._is_new = False

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()


def bar(total: int | None, done: int, *, room: int | None) -> tqdm[Any]:
    """A bar of generated images on stderr; ``total``: None if unknown; ``done``: already made.

    ``room``: the free columns beside pytest's dots; None if the bar has its own line.
    """
    is_terminal = sys.stderr.isatty()
    made = partial(
        tqdm, total=total, initial=done, unit="img", leave=False,
        mininterval=0.5 if is_terminal else _PATIENCE,
    )  # fmt: skip
    if room is None:
        return made(desc="generating", bar_format=None if total is None else _LONG)
    if is_terminal:
        return made(file=Beside(sys.stderr), bar_format=f" {_SHORT}", ncols=room)
    return made(file=Lines(sys.stderr), bar_format=f"generating: {_SHORT}")


@contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let the progress bar through pytest's capture."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    with capture.global_and_fixture_disabled():
        yield


class HasBar(Protocol):
    """An object that shows a bar; ``room``: as in :func:`bar`."""

    room: int | None

    def close(self) -> None:
        """Take the bar away."""


@contextmanager
def beside_dots(session: HasBar, config: pytest.Config) -> Iterator[None]:
    """Show progress at the end of the line of dots, and take it away before the next dot."""
    session.room = None
    if config.pluginmanager.hasplugin("terminalreporter"):
        writer = config.get_terminal_writer()
        session.room = max(writer.fullwidth - writer.width_of_current_line - 1, 1)
    try:
        yield
    finally:
        session.close()
