"""The base class of every error that a user can correct, and the exit codes of commands."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of the command line. Python exits with 1 after an uncaught exception, so the
    command line exits with ``INTERNAL`` instead.
    """

    OK = 0
    FAILED = 1
    """A cell did not succeed, a cell regressed, or a run folder is damaged."""
    USAGE = 2
    """An option, or a file that an option names, is invalid; nothing was done."""
    NOT_COMPARABLE = 3
    """Two results are of different measurements."""
    UNREADABLE = 4
    """A run folder or file cannot be read or written, or memory or a device failed in the work."""
    CLUSTER_LOST = 5
    """Ray's cluster was lost during the work."""
    UNDECIDED = 6
    """With ``--decide``: a comparison found nothing worse, better or equal."""
    INTERNAL = 70
    """An error of the suite itself."""
    INTERRUPTED = 130
    """Ctrl-C."""


class AnalogyError(Exception):
    """An error that a user can correct. Its text has what was expected, what came and what to do.

    The command line catches only this class: an error of any other class is a bug of the suite.

    Takes either a whole ``message`` or its parts, from which the message is made as
    ``place: expected ..., got ...; advice``:

    - ``place``: the option, file or field that holds the value;
    - ``expected``, ``got``: what was expected there and what came instead;
    - ``advice``: what to do.

    A part that was not given is None.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE

    def __init__(
        self,
        message: str = "",
        *,
        place: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(message or _message(place, expected, got, advice))
        self.place = place
        self.expected = expected
        self.got = got
        self.advice = advice


def _message(place: str | None, expected: str | None, got: str | None, advice: str | None) -> str:
    found = ", ".join(
        f"{word} {text}" for word, text in (("expected", expected), ("got", got)) if text
    )
    text = f"{place}: {found}" if place else found
    return f"{text}; {advice}" if advice else text


class FieldError(AnalogyError, ValueError):
    """A field of a configuration or of a record has an invalid value.

    ``place`` is the field's name.
    """


class OptionError(AnalogyError, ValueError):
    """An option's value cannot be used; ``place`` is the option."""


class ModelError(AnalogyError, ValueError):
    """A model cannot be used; the message says what was expected, what came and what to do.

    ``command``: the command that fetches the missing files; empty if no command does.
    """

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(message)
        self.command = command


class StoreError(AnalogyError, RuntimeError):
    """A run folder cannot be used; the message says why and what to do."""

    exit_code = ExitCode.UNREADABLE
