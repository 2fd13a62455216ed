"""Finds out whether steering a text-to-image model by analogy works: where, and how surely."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analogy.runs import Run, load_run

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load_run"]


def __getattr__(name: str) -> Any:
    """What is loaded when it is first asked for, so that ``import analogy`` stays cheap."""
    if name in ("Run", "load_run"):
        from analogy import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names that are loaded on demand, too: they are what completion should offer."""
    return sorted({*globals(), *__all__})
