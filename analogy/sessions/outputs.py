"""The files that a run writes: results, report and baseline."""

from __future__ import annotations

from pathlib import Path

from analogy import kept
from analogy.results import baseline as baselines
from analogy.results import comparison as comparisons
from analogy.results.model import Results
from analogy.results.writing import write_results
from analogy.sessions.session import Session


def write_outputs(session: Session, results: Results, *, shows_results: bool = True) -> bool:
    """Write results, report and baseline as asked for. Returns whether all of them were written.

    ``shows_results``: whether the default results file is written if none was named.

    A baseline that may not be replaced is said in the session's note. Raises ``OSError`` or
    ``StoreError`` if a file cannot be written.
    """
    request = session.request
    session.kept = kept.keep(results, session.study.folder.path)
    written = session.kept.results
    if request.results is not None:  # the user's own word
        write_results(written, session.results)
    elif shows_results:
        session.stays = kept.put(written, session.results)
    if request.report is not None:
        _write_report(session, written, Path(request.report))
    if session.update is not None:
        try:
            baselines.write(written, session.update)
            session.note = f"written to {session.update}"
        except baselines.BaselineError as error:
            session.note = f"NOT written: {error}"
            return False
    return True


def _write_report(session: Session, results: Results, path: Path) -> None:
    from analogy.report.html import write_report  # jinja2 and matplotlib are an extra

    comparison = None
    if session.baseline is not None:
        tolerance = session.request.tolerance
        comparison = comparisons.compare(session.baseline, results, tolerance=tolerance)
    write_report(results, path, folder=session.study.folder.path, comparison=comparison)
