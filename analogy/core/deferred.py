"""Modules that are imported when they are first used.

Used in modules that must be quick to import, for libraries that take seconds to import and for code
that needs them. Elsewhere a plain import is better: its time is spent once, and its error comes at
the start. A type checker sees the plain import::

    if TYPE_CHECKING:
        import open_clip
    else:
        open_clip = deferred("open_clip")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Deferred:
    """Stands for a module, which is imported when a public attribute is first read.

    ``lazy_loader`` and ``importlib.util.LazyLoader`` put an unfinished module into ``sys.modules``.
    torch looks at the files of all modules there while it is imported itself (by
    ``inspect.getmodule``), which loads them at once and ends in a circular import. This object is
    not in ``sys.modules``.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest and others probe every object for such names
            raise AttributeError(f"deferred module {self._name!r} has no attribute {attribute!r}")
        return getattr(import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"<deferred module {self._name!r}>"


def deferred(name: str) -> Any:
    """The module of this full name, imported when one of its attributes is first read.

    Raises ``ImportError`` at that read if the module cannot be imported.
    """
    return Deferred(name)
