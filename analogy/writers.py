"""The seam of output writers: the protocol, the registry, and the choice of a file's writer.

Imports no torch, so that options can list and check the names quickly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from analogy.core.errors import AnalogyError, OptionError
from analogy.core.registry import ExtensionError, Registry, UnknownNameError

if TYPE_CHECKING:
    from analogy.results.comparison import Comparison
    from analogy.results.model import Results


@dataclass(frozen=True, slots=True)
class Context:
    """What a writer may use beside the results.

    - ``folder``: the run folder, which has the images;
    - ``comparison``: of the results with the baseline, None without a baseline;
    - ``baseline``: the baseline's results, None without one;
    - ``full_images``: True if the image files should be copied beside the file unchanged; a writer
      without images ignores it.
    """

    folder: Path
    comparison: Comparison | None = None
    full_images: bool = False
    baseline: Results | None = None


@runtime_checkable
class Writer(Protocol):
    """Writes results as a file of one format.

    ``suffixes``: the ends of file names that choose it, such as ``(".csv",)``; may be empty.
    """

    suffixes: tuple[str, ...]

    def write(self, results: Results, path: Path, context: Context) -> None:
        """Write the file. :func:`analogy.core.files.write_output` replaces an old one atomically.

        Raises ``OSError`` or an ``AnalogyError`` if it cannot be written.
        """
        ...


@runtime_checkable
class NeedsPackages(Protocol):
    """Optional protocol of a writer that imports packages only when it writes.

    ``packages``: modules that must be installed, which is checked before the run; ``install``: the
    command that installs them.
    """

    packages: tuple[str, ...]
    install: str


WRITERS = Registry[Writer](
    "writer",
    "analogy.writers",
    {
        "json": "analogy.report.writers.results_json:writer",
        "html": "analogy.report.writers.report_html:writer",
        "csv": "analogy.report.writers.cells_csv:writer",
        "md": "analogy.report.writers.verdicts_md:writer",
    },
    Writer,  # type: ignore[type-abstract]
)

_NAMED = re.compile(r"([A-Za-z_][\w.:-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Output:
    """A file to write, and the name of its writer."""

    path: str
    writer: str

    @classmethod
    def parse(cls, text: str) -> Output:
        """Read ``FILE``, whose suffix chooses the writer, or ``NAME=FILE``.

        Raises ``UnknownNameError`` for an unknown suffix or name, ``ExtensionError`` if the search
        for the suffix meets an installed writer that cannot be imported.
        """
        if named := _NAMED.fullmatch(text):
            return cls(named[2], WRITERS.check(named[1]))
        writer = by_suffix(text)
        if writer is None:
            suffixes = _suffixes(WRITERS.names())
            near = get_close_matches(Path(text).suffix.lower(), suffixes, n=1)
            raise UnknownNameError(
                expected=f"a file that ends in one of {', '.join(suffixes)}, or NAME=FILE with a "
                f"writer of {', '.join(WRITERS.names())}, or package.module:name",
                got=repr(text),
                advice=f"did you mean {near[0]!r}?" if near else None,
            )
        return cls(text, writer)

    def __str__(self) -> str:
        return f"{self.writer}={self.path}"


def by_suffix(path: str) -> str | None:
    """The name of the writer that a file's suffix chooses; the longest matching suffix decides.

    Returns None if no writer has the suffix. Built-in writers go first: those of installed packages
    are imported only if no built-in one has the suffix.
    """
    for names in (WRITERS.builtin, WRITERS.names()):
        suffixes = _suffixes(names)
        found = [suffix for suffix in suffixes if path.lower().endswith(suffix)]
        if found:
            return suffixes[max(found, key=len)]
    return None


def check_writer(flag: str, name: str) -> None:
    """Raise ``OptionError`` if a writer cannot be imported, or its packages are not installed."""
    try:
        writer = WRITERS.get(name)
    except AnalogyError as error:
        raise OptionError(f"{flag}: {error}") from None
    if not isinstance(writer, NeedsPackages):
        return
    missing = [package for package in writer.packages if find_spec(package) is None]
    if missing:
        raise OptionError(
            place=flag,
            expected=" and ".join(writer.packages),
            got=f"no {' and no '.join(missing)}",
            advice=f"install them with {writer.install}",
        )


def write(output: Output, results: Results, context: Context) -> None:
    """Write a file with its writer.

    Raises ``OSError`` or an ``AnalogyError`` if it cannot be written, and ``ExtensionError`` if a
    writer that is not built in raises anything else.
    """
    writer = WRITERS.get(output.writer)
    try:
        writer.write(results, Path(output.path), context)
    except (AnalogyError, OSError):
        raise
    except Exception as error:
        if WRITERS.is_builtin(output.writer):
            raise
        raise ExtensionError(
            place=f"writer {output.writer}",
            expected=f"{output.path} to be written",
            got=f"{type(error).__name__}: {error}",
        ) from error


def _suffixes(names: Iterable[str]) -> dict[str, str]:
    """Suffix to the name of the first writer that has it."""
    found: dict[str, str] = {}
    for name in names:
        for suffix in WRITERS.get(name).suffixes:
            found.setdefault(suffix.lower(), name)
    return found
