"""Modules that are imported when they are first used.

For libraries that take seconds to import, and for the part of a program that needs them, in modules
that must be quick to import. Elsewhere a plain import is better: its time is spent once, and its
error comes at the start. A type checker is shown the plain import::

    if TYPE_CHECKING:
        import open_clip
    else:
        open_clip = deferred("open_clip")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Deferred:
    """Stands for a module; the first public attribute that is read imports it.

    ``lazy_loader`` and ``importlib.util.LazyLoader`` put an unfinished module into ``sys.modules``.
    torch looks at the files of all modules there while it is imported itself (by
    ``inspect.getmodule``), which loads them at once and ends in a circular import. This object is
    in no table of modules.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # what pytest and others look for in whatever they are given
            raise AttributeError(f"deferred module {self._name!r} has no attribute {attribute!r}")
        return getattr(import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"<deferred module {self._name!r}>"


def deferred(name: str) -> Any:
    """The module of this full name, imported when one of its attributes is first read.

    A module that cannot be imported raises its ``ImportError`` there.
    """
    return Deferred(name)
