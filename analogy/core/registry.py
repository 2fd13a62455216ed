"""Tables of what can be chosen by name: built-in entries and those of the user's packages.

A seam of the suite (steering methods, metrics, judges, model families, engines, writers) is one
protocol and one :class:`Registry`. A package adds an entry by an entry point of the registry's
group; code outside packages is named as ``package.module:attribute``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from analogy.core.errors import AnalogyError

T = TypeVar("T")

_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class UnknownNameError(AnalogyError, ValueError):
    """A name that is neither built in nor added by an installed package."""


class ExtensionError(AnalogyError, ValueError):
    """A named object cannot be imported, or does not implement its seam's protocol."""


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Names of one seam, and the objects that they stand for.

    - ``kind``: what the objects are, for messages, such as ``method``;
    - ``group``: the entry points' group, such as ``analogy.methods``;
    - ``builtin``: name to ``package.module:attribute``, which is imported only when it is used, so
      that names can be listed and checked without torch;
    - ``protocol``: a runtime-checkable protocol or a class that every object is an instance of;
    - ``openers``: for names of the form ``scheme:rest``, scheme to the ``package.module:function``
      that makes the object. The function is called with ``rest`` and the whole name.
    """

    kind: str
    group: str
    builtin: Mapping[str, str]
    protocol: type[T]
    openers: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """The available names: built-in ones first, then those of installed packages."""
        added = sorted(self._added().keys() - self.builtin.keys())
        return (*self.builtin, *added)

    def check(self, name: str) -> str:
        """Returns ``name`` if it can be chosen; imports nothing.

        Raises ``UnknownNameError``, which gives the nearest name, if it cannot. A
        ``package.module:attribute`` is accepted unchecked.
        """
        if name in self.builtin or self._opener(name) or is_spec(name) or name in self._added():
            return name
        near = get_close_matches(name, self.names(), n=1)
        opened = [f"{scheme}:PATH" for scheme in self.openers]
        raise UnknownNameError(
            expected=f"one of {', '.join((*self.names(), *opened))}, or package.module:name",
            got=repr(name),
            advice=f"did you mean {near[0]!r}?" if near else None,
        )

    def get(self, name: str) -> T:
        """The object that ``name`` stands for.

        Raises ``UnknownNameError`` if the name is unknown, ``ExtensionError`` if the object cannot
        be imported or does not implement ``protocol``, and whatever an opener raises.
        """
        self.check(name)
        opener = self._opener(name)
        spec = opener or self.builtin.get(name) or self._added().get(name, name)
        found = _imported(self.kind, name, spec)
        if opener and callable(found):
            found = found(name.partition(":")[2], name)
        if not isinstance(found, self.protocol):
            raise ExtensionError(
                place=f"{self.kind} {name}",
                expected=f"an object with what {self.protocol.__name__} asks for",
                got=f"{type(found).__name__} from {spec}",
                advice="see docs/extending.md",
            )
        return found

    def is_builtin(self, name: str) -> bool:
        """True if ``name`` stands for an object of the suite's own."""
        return name in self.builtin

    def is_installed(self, name: str) -> bool:
        """True if ``name`` is built in or added by an installed package, so that only installed
        code is imported for it.
        """
        return name in self.builtin or name in self._added()

    def _opener(self, name: str) -> str | None:
        scheme, colon, _ = name.partition(":")
        return self.openers.get(scheme) if colon else None

    def _added(self) -> Mapping[str, str]:
        return _installed(self.group)


def rescan() -> None:
    """Look anew for what installed packages add, after an installation in this process."""
    _installed.cache_clear()


def is_spec(name: str) -> bool:
    """True if ``name`` is of the form ``package.module:attribute``."""
    return _SPEC.fullmatch(name) is not None


@cache
def _installed(group: str) -> Mapping[str, str]:
    """Entry points of installed packages: name to ``package.module:attribute``."""
    return {entry.name: entry.value for entry in entry_points(group=group)}


def _imported(kind: str, name: str, spec: str) -> object:
    module, _, attribute = spec.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing a module runs its code, which may raise anything
        raise ExtensionError(
            place=f"{kind} {name}",
            expected=f"{spec} to be importable",
            got=f"{type(error).__name__}: {error}",
            advice="install its package, or check the name",
        ) from error
    return found
