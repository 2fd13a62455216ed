"""Measures whether steering a text-to-image model by analogy works, where, and how reliably.

``run`` generates and scores a grid, ``load_run`` reads a run folder, ``compare`` compares two runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from analogy._version import __version__

if TYPE_CHECKING:
    from analogy.core.errors import AnalogyError
    from analogy.front import compare, run
    from analogy.runs import Run, load_run
    from analogy.settings.request import RunRequest

__all__ = ["AnalogyError", "Run", "RunRequest", "__version__", "compare", "load_run", "run"]

_HOMES = {
    "AnalogyError": "analogy.core.errors",
    "Run": "analogy.runs",
    "RunRequest": "analogy.settings.request",
    "compare": "analogy.front",
    "load_run": "analogy.runs",
    "run": "analogy.front",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that ``import analogy`` stays cheap."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All names, those imported on demand included, so that completion offers them."""
    return sorted({*globals(), *__all__})
