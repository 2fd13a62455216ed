"""What ``run`` and ``plan`` do."""

from __future__ import annotations

import typer

from analogy.cli.base import refuse, say, show_lines, write
from analogy.core.errors import ExitCode, StoreError
from analogy.results.writing import to_json
from analogy.sessions.plan import make_plan
from analogy.sessions.plan_text import plan_lines
from analogy.sessions.running import fault_code, finish, run_cases
from analogy.sessions.session import Session
from analogy.sessions.summary import interrupted, summary
from analogy.settings.request import RunRequest


def run(request: RunRequest, *, strict: bool, json: str | None) -> None:
    """Run all cases, write and print the results, and end with the run's exit code."""
    session = Session.open(request, is_strict=strict)
    try:
        ending = run_cases(session)
        try:
            analysis, results = finish(session, ending)
            lines = list(summary(session, analysis))
        except StoreError:
            if ending.fault is None:
                raise
            refuse(fault_code(ending.fault), ending.fault)
    finally:
        session.close()
        session.study.close()
    write(to_json(results), json)
    show_lines(lines, json)
    for message in ending.failed:
        say(message)
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
