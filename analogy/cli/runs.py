"""The command ``run``: what ``pytest benchmarks`` does, in the same run folder, without pytest."""

from __future__ import annotations

from typing import Annotated

import typer

from analogy.cli.base import (
    GENERATING,
    Json,
    app,
    option,
    refuse,
    say,
    show_lines,
    with_options,
    write,
)
from analogy.core.errors import ExitCode, StoreError
from analogy.results.writing import to_json
from analogy.settings.request import RunRequest


@app.command(rich_help_panel=GENERATING)
@with_options()
def run(
    request: RunRequest,
    strict: Annotated[
        bool, option("--strict", help="Expect every cell to succeed, whatever the baseline has.")
    ] = False,
    json: Json = None,
) -> None:
    """Generate and score a grid and decide its verdicts, in the run folder of 'pytest benchmarks'.

    Either of the two commands continues what the other began, and nothing is generated twice. Cells
    that cannot be decided (too few pairs, missing images, a blind judge) are neither a success nor
    a failure.

    Exit code: 0 every decidable cell succeeded, or was expected not to, 1 some cell did not
    succeed, or regressed, 2 wrong usage, 4 the run cannot be read or written, 5 the Ray cluster was
    lost, 130 interrupted.
    """
    from analogy.sessions.running import fault_code, finish, run_cases
    from analogy.sessions.session import Session
    from analogy.sessions.summary import interrupted, summary

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
