"""The work of the commands ``run``, ``plan`` and ``runs``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from analogy.cli.base import refuse, say, show_lines, write
from analogy.core.errors import ExitCode, StoreError
from analogy.report.overview import OVERVIEW_VERSION, Entry, overview, overview_lines
from analogy.results.writing import to_json
from analogy.sessions.findings import Finding
from analogy.sessions.plan import make_plan
from analogy.sessions.plan_text import plan_lines
from analogy.sessions.running import fault_code, finish, run_cases
from analogy.sessions.session import Session
from analogy.sessions.summary import closing, heading, interrupted, summary
from analogy.settings.request import RunRequest
from analogy.studies.finding import RUNS


def run(request: RunRequest, *, strict: bool, json: str | None, quiet: bool, verbose: bool) -> None:
    """Run all cases, write and print the results, and end with the run's exit code.

    ``quiet``: print only the last line; ``verbose``: also print a line for each case.
    """
    session = Session.open(request, is_strict=strict)

    def begin() -> None:
        if not quiet:
            show_lines([*heading(session), ""], json)

    def tell(finding: Finding) -> None:
        session.close()  # a line would break the progress bar
        say(finding.message)

    try:
        ending = run_cases(session, began=begin, decided=tell if verbose else None)
        try:
            analysis, results = finish(session, ending)
            lines, last = [*summary(session, analysis)], [*closing(session, analysis)]
        except StoreError:
            if ending.fault is None:
                raise
            refuse(fault_code(ending.fault), ending.fault)
    finally:
        session.close()
        session.study.close()
    write(to_json(results), json)
    if not quiet:
        show_lines(lines, json)
    for message in ending.failed:
        say(message)
    show_lines(last, json, quiet=quiet)
    if ending.code is ExitCode.INTERRUPTED:
        say(interrupted(session))
    if ending.fault is not None:
        refuse(fault_code(ending.fault), ending.fault)
    if ending.lost is not None:
        refuse(ExitCode.UNREADABLE, f"results NOT written: {ending.lost}")
    raise typer.Exit(ending.code)


def plan(request: RunRequest, *, measures: bool | None, json: str | None) -> None:
    """Write and print the plan of a run."""
    made = make_plan(request, measures=measures)
    write(made.to_dict(), json)
    show_lines(plan_lines(made), json)


def runs(folders: Sequence[Path] | None, *, json: str | None) -> None:
    """Write and print the list of runs."""
    entries = found_runs(folders)
    write(
        {"schema_version": OVERVIEW_VERSION, "runs": [entry.to_dict() for entry in entries]}, json
    )
    show_lines(overview_lines(entries), json)


def found_runs(folders: Sequence[Path] | None) -> list[Entry]:
    """The runs in these folders, or in the default place. Ends the command if there are none."""
    places = folders or [RUNS]
    entries = overview(places)
    if not entries:
        names = ", ".join(map(str, places))
        refuse(ExitCode.USAGE, f"{names}: expected run folders, got none; name their folder")
    return entries
