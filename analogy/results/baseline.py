"""Baselines: where they are, how they are written, and the failures that they record."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from analogy.core.errors import AnalogyError
from analogy.core.files import PlaceError, check_output, write_output
from analogy.core.records import Cell, Verdict
from analogy.models.places import EMBEDDED, shipped
from analogy.results.differences import setting_differences
from analogy.results.model import Header, Results
from analogy.results.reading import RecordedError, ResultsFile, read
from analogy.results.writing import encoded


class BaselineError(AnalogyError, ValueError):
    """A baseline cannot be written; the message says what to do."""


def known_not_to_succeed(
    results: Results, cell: Cell | None, categories: Collection[str] | None = None
) -> Verdict | None:
    """The recorded verdict of a cell that did not succeed: an expected failure.

    ``cell`` None is the overall figure. Its verdict counts only for a run of the same
    ``categories`` as the baseline (None: all of them). Returns None if the cell succeeded, was
    incomplete, or is not recorded: then no failure is expected.
    """
    verdict: Verdict | None = None
    if cell is not None:
        cells = results.analysis.cells
        verdict = cells[cell].margin.verdict if cell in cells else None
    elif categories is None or set(categories) == set(results.header.categories):
        verdict = results.analysis.overall.margin.verdict
    return None if verdict in (Verdict.SUCCESS, Verdict.INCOMPLETE) else verdict


def default_path(model: str) -> Path | None:
    """The shipped baseline of the embedded model; other models have none."""
    if model != EMBEDDED:
        return None
    return shipped("pairs.csv").parent / "baselines" / "embedded.json"


def write(new: Results | ResultsFile, path: Path) -> None:
    """Make results, or a copy of a file of them, a baseline, atomically.

    Raises :class:`BaselineError` if the results are incomplete or the file cannot be written, and
    if ``path`` has something that they cannot replace: a file that is not a results file, another
    measurement, or categories that they lack.
    """
    results, data = (new.results, new.data) if isinstance(new, ResultsFile) else (new, encoded(new))
    try:
        incomplete = [
            str(cell)
            for cell, figures in results.analysis.cells.items()
            if figures.margin.verdict is Verdict.INCOMPLETE
        ]
        if incomplete:
            raise BaselineError(
                f"baseline {path}: expected complete cells, got {len(incomplete)} incomplete ones "
                f"({incomplete[0]} the first); finish the run: the same command continues it"
            )
        check_replaceable(path, results.header)
        write_output(path, data)
    except OSError as error:
        raise BaselineError(
            f"baseline {path}: cannot be written ({error}); name another file"
        ) from error


def check_replaceable(path: Path, new: Header) -> None:
    """Raises :class:`BaselineError` if ``new`` may not become the baseline at ``path``.

    A baseline is only replaced by one of the same measurement that has all its categories.
    """
    try:
        check_output(path)
    except PlaceError as error:
        raise BaselineError(f"baseline {path}: {error}") from error
    if not path.is_file():  # missing, or a device, which keeps nothing
        return
    try:
        old = read(path).header
    except RecordedError as error:
        raise BaselineError(
            f"baseline {path}: expected a results file or none, to replace it ({error}); name "
            "another file, or delete this one"
        ) from error
    different = setting_differences(old.measurement, new.measurement)
    if different:
        raise BaselineError(
            f"baseline {path}: it is of another measurement ({'; '.join(map(str, different))}); "
            "name another file, or delete this one"
        )
    lacking = [name for name in old.categories if name not in new.measurement.pairs]
    if lacking:
        raise BaselineError(
            f"baseline {path}: it has categories that this run lacks ({', '.join(lacking)}); run "
            "all of them, name another file, or delete this one"
        )
