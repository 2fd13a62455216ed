"""Writes the files of a run: results, report, other requested files, and the baseline."""

from __future__ import annotations

from dataclasses import replace

from analogy.results import baseline as baselines
from analogy.results import kept
from analogy.results.comparison import Comparison, compare
from analogy.results.model import Results
from analogy.sessions.requirements import outputs
from analogy.sessions.session import Session
from analogy.writers import Context, write


def write_outputs(session: Session, results: Results, *, shows_results: bool = True) -> bool:
    """Write results, other files and baseline as requested. Returns False if a requested baseline
    was not written.

    ``shows_results``: whether the default results file is written if none was named. If the
    baseline may not be replaced, the session's note gets the reason. Raises ``OSError`` or an
    ``AnalogyError`` if another file cannot be written.
    """
    request, folder = session.request, session.study.folder.path
    results = replace(results, unknown=session.unknown)
    session.kept = kept.keep(results, folder)
    written = session.kept.results
    if request.results is None and shows_results:
        session.stays = kept.put(written, session.results)
    named = outputs(request)
    is_shown = any(flag != "--results" for flag, _ in named)
    comparison = _comparison(session, written) if is_shown else None
    context = Context(folder, comparison, baseline=session.baseline)
    for _, output in named:
        write(output, written, context)
    if session.update is not None:
        try:
            baselines.write(written, session.update)
            session.note = f"written to {session.update}"
        except baselines.BaselineError as error:
            session.note = f"NOT written: {error}"
            return False
    return True


def _comparison(session: Session, results: Results) -> Comparison | None:
    """The comparison with the run's baseline; None without a baseline."""
    if session.baseline is None:
        return None
    return compare(
        session.baseline,
        results,
        tolerance=session.request.tolerance,
        known=session.changes if session.study.config.sequential else None,
    )
