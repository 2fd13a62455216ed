"""The suite in Python: one call runs a grid, another compares two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from analogy.core.errors import ExitCode
from analogy.core.fields import MAX_TOLERANCE, TOLERANCE, check_number
from analogy.core.records import Pair
from analogy.results import comparison
from analogy.results.comparison import Comparison
from analogy.results.model import Results
from analogy.results.reading import read
from analogy.runs import Run, load_run
from analogy.sessions.running import finish, run_cases
from analogy.sessions.session import Session
from analogy.settings.request import RunRequest, request_of


def run(
    request: RunRequest | None = None, *, pairs: Sequence[Pair] | str | Path | None = None,
    strict: bool = False, **options: Any,
) -> Run:  # fmt: skip
    """Generate and score a grid and decide its verdicts, as ``analogy run`` does.

    ``request``: all options in one; ``options``: fields of :class:`RunRequest`, such as
    ``model="embedded", method="word", limit=6``, which override it. ``pairs``: a CSV file, or pairs
    in memory. ``strict``: no cell is an expected failure, whatever the baseline has.

    Work that is already in the run folder is not repeated. Returns the finished run, as
    :func:`load_run` reads it. A failed cell raises no error: its verdict is in the returned run.

    Raises an ``AnalogyError`` for an option that cannot be used, before any model is loaded, and
    for an error that stopped the run; finished work is kept.
    """
    if isinstance(pairs, (str, Path)):
        options["pairs"], pairs = str(pairs), None
    given = {} if request is None else _fields(request)
    request = request_of(**{**given, **options})
    session = Session.open(request, pairs, is_strict=strict)
    try:
        ending = run_cases(session)
        finish(session, ending, shows_results=False)
    finally:
        session.close()
        session.study.close()
    if ending.code is ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if ending.fault is not None:
        raise ending.fault
    if ending.lost is not None:
        raise ending.lost
    return load_run(session.study.folder.path)


def compare(
    old: Run | str | Path, new: Run | str | Path, *, tolerance: float = TOLERANCE
) -> Comparison:
    """Compare two runs cell by cell and pair by pair, as ``analogy compare`` does.

    ``old``, ``new``: runs, run folders or results files; ``tolerance``: how far the mean margin of
    ``new`` may be below that of ``old``.

    Raises ``RecordedError`` if a file cannot be used, and ``NotComparableError`` if the runs are of
    different measurements.
    """
    check_number("tolerance", tolerance, 0.0, MAX_TOLERANCE)
    return comparison.compare(_recorded(old), _recorded(new), tolerance=tolerance)


def _recorded(run: Run | str | Path) -> Results:
    if isinstance(run, Run):
        return run.figures
    return read(Path(run))


def _fields(request: RunRequest) -> dict[str, object]:
    return {field.name: getattr(request, field.name) for field in fields(request)}
