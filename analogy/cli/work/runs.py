"""What ``run`` does."""

from __future__ import annotations

import typer

from analogy.cli.base import refuse, say, show_lines, write
from analogy.core.errors import ExitCode, StoreError
from analogy.results.writing import to_json
from analogy.sessions.findings import Finding
from analogy.sessions.running import fault_code, finish, run_cases
from analogy.sessions.session import Session
from analogy.sessions.summary import closing, heading, interrupted, summary
from analogy.settings.request import RunRequest


def run(request: RunRequest, *, strict: bool, json: str | None, quiet: bool, verbose: bool) -> None:
    """Run all cases, write and print the results, and end with the run's exit code.

    ``quiet``: of all lines the last alone; ``verbose``: also a line for each case.
    """
    session = Session.open(request, is_strict=strict)

    def begin() -> None:
        if not quiet:
            show_lines([*heading(session), ""], json)

    def tell(finding: Finding) -> None:
        session.close()  # the progress bar would be cut
        say(finding.message)

    try:
        ending = run_cases(session, began=begin, decided=tell if verbose else None)
        try:
            analysis, results = finish(session, ending)
            lines = [*summary(session, analysis), *closing(session, analysis)]
        except StoreError:
            if ending.fault is None:
                raise
            refuse(fault_code(ending.fault), ending.fault)
    finally:
        session.close()
        session.study.close()
    write(to_json(results), json)
    show_lines(lines, json, quiet=quiet)
    for message in ending.failed:
        say(message)
    if ending.code is ExitCode.INTERRUPTED:
        say(interrupted(session))
    if ending.fault is not None:
        refuse(fault_code(ending.fault), ending.fault)
    if ending.lost is not None:
        refuse(ExitCode.UNREADABLE, f"results NOT written: {ending.lost}")
    raise typer.Exit(ending.code)
