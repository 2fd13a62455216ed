"""Keeps warnings of a pytest session from becoming errors, except the suite's own warnings."""

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
    """Keep warnings from becoming errors, whatever the filters, so that no verdict depends on them.

    Warnings that would be raised are shown. Filters that name one of the suite's own warnings still
    apply.
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
    """Like :func:`calm`, and record the warnings for pytest's summary.

    For the places where pytest does not record them itself.
    """
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
    """Keep warnings from becoming errors for the rest of a session whose cases have ended.

    Hooks of other plugins run then, and pytest sets its filters again for each of them: first those
    of the configuration file, then those of ``-W``. Both lists are therefore changed.
    """
    shown = ExitStack()
    shown.enter_context(calm())
    config.add_cleanup(shown.close)
    for filters in (config.getini("filterwarnings"), config.known_args_namespace.pythonwarnings):
        if filters:
            filters[:] = [_calmed(text) for text in filters]


def _calmed(text: str) -> str:
    """A filter in pytest's notation with ``error`` replaced by ``default``.

    pytest accepts shortened actions, such as ``e``. Filters of the suite's own warnings stay.
    """
    action, colon, rest = text.partition(":")
    is_error = bool(action.strip()) and "error".startswith(action.strip())
    is_ours = any(of.__name__ in rest for of in _OURS)
    return f"default{colon}{rest}" if is_error and not is_ours else text
