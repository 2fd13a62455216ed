"""Runs a session without pytest, from its first case to its files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from analogy.core.errors import AnalogyError, ExitCode, ModelError
from analogy.generation.engine import Progress
from analogy.models.memory import memory_said
from analogy.results.model import Analysis, Results
from analogy.sessions import cases
from analogy.sessions.findings import CaseOutcome, Finding, unmeasured
from analogy.sessions.outputs import write_outputs
from analogy.sessions.session import Session
from analogy.store.grid import Job


@dataclass(slots=True)
class Ending:
    """How a run ended: its exit code, the failed cases, and the error that stopped it, or None."""

    code: ExitCode = ExitCode.OK
    failed: list[str] = field(default_factory=list)
    fault: AnalogyError | None = None
    lost: Exception | None = None
    """Why the results could not be written: an ``AnalogyError`` or ``OSError``."""

    def fail(self, message: str) -> None:
        """Record a failed case, or a limit or baseline that no case checked."""
        self.code = ExitCode.FAILED
        self.failed.append(message)


def fault_code(error: AnalogyError) -> ExitCode:
    """The exit code of an error that stopped a run after its start; never that of wrong usage."""
    return max(error.exit_code, ExitCode.UNREADABLE)


def run_cases(
    session: Session,
    *,
    began: Callable[[], None] | None = None,
    decided: Callable[[Finding], None] | None = None,
) -> Ending:
    """Generate, score and decide every case; continues what an earlier process began.

    ``began``: called before the work, when the run's images are known; ``decided``: called after
    each case.

    A fault of the machine, or Ctrl-C, ends the run and is recorded in the returned ``Ending``.
    Finished work is kept and can still be analysed.

    Raises ``ModelError`` if a model cannot be loaded, before any image.
    """
    ending = Ending()
    session.planned |= dict.fromkeys(cases.cells(session))
    if began is not None:
        began()
    is_prepared = False
    try:
        session.prepare()
        is_prepared = True
        with memory_said("scoring and analysing"):
            for case in cases.all_cases(session):
                for jobs in case.rounds():
                    _measure(session, jobs)
                finding = case.decide()
                if decided is not None:
                    decided(finding)
                if finding.outcome is CaseOutcome.FAILED:
                    ending.fail(finding.message)
        for line in unmeasured(session.request, session):
            ending.fail(line)
    except KeyboardInterrupt:
        ending.code = ExitCode.INTERRUPTED
    except AnalogyError as error:
        if isinstance(error, ModelError) and not is_prepared:
            raise
        ending.fault = error
    return ending


def finish(
    session: Session, ending: Ending, *, shows_results: bool = True
) -> tuple[Analysis, Results]:
    """Analyse the scored images and write the files. Returns the analysis and the results.

    ``shows_results``: whether the default results file in the current folder is written. An error
    in writing is recorded in ``ending.lost``.
    """
    analysis = session.study.analysis()
    results = session.study.results(analysis)
    try:
        if not write_outputs(session, results, shows_results=shows_results):
            ending.code = ending.code or ExitCode.FAILED
    except (AnalogyError, OSError) as error:
        ending.lost = error
    return analysis, results


def _measure(session: Session, jobs: Sequence[Job]) -> None:
    """Generate and score the missing images, with a progress bar on a terminal."""
    study = session.study
    progress: Progress = partial(session.report, shows_bar=sys.stderr.isatty())
    study.generate(jobs, progress, ahead=session.ahead())
    study.score(jobs)
