"""Warnings of a pytest session: none becomes an error but the suite's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from analogy.settings.pairs import PairsWarning

#: The suite's own warnings, which a user may turn into errors.
_OURS: tuple[type[Warning], ...] = (PairsWarning, *PairsWarning.__subclasses__())


@contextmanager
def calm() -> Iterator[None]:
    """Let no warning become an error, whatever the filters: a verdict does not depend on them.

    What would be raised is shown. Filters that name a warning of the suite's own are kept.
    """
    with warnings.catch_warnings():
        _calm_filters()
        yield


def _calm_filters() -> None:
    calmed = []
    for action, text, of, module, line in warnings.filters:
        is_raised = action == "error" and of not in _OURS
        calmed.append(("default" if is_raised else action, text, of, module, line))
    warnings.filters = calmed


@contextmanager
def calm_and_shown(config: pytest.Config) -> Iterator[None]:
    """Like :func:`calm`, where pytest does not record warnings by itself: into its summary."""
    with warnings.catch_warnings(record=True) as seen:
        _calm_filters()
        try:
            yield
        finally:
            for message in seen:
                config.hook.pytest_warning_recorded.call_historic(
                    kwargs={
                        "warning_message": message, "when": "config", "nodeid": "", "location": None
                    }
                )  # fmt: skip


def calm_from_here(config: pytest.Config) -> None:
    """Let no warning become an error for the rest of a session whose cases have ended.

    What other plugins do then (save, report, say that there is nothing to) is in nobody's hands,
    and pytest sets its filters anew for each of it: those of the file, then those of ``-W``.
    """
    shown = ExitStack()
    shown.enter_context(calm())
    config.add_cleanup(shown.close)
    for filters in (config.getini("filterwarnings"), config.known_args_namespace.pythonwarnings):
        if filters:
            filters[:] = [_calmed(text) for text in filters]


def _calmed(text: str) -> str:
    """A filter as pytest reads it, whose action may be shortened, without its ``error``."""
    action, colon, rest = text.partition(":")
    is_error = bool(action.strip()) and "error".startswith(action.strip())
    is_ours = any(of.__name__ in rest for of in _OURS)
    return f"default{colon}{rest}" if is_error and not is_ours else text
