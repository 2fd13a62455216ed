"""The commands ``run``, what ``pytest benchmarks`` does without pytest, and ``plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from analogy.cli.base import GENERATING, Json, app, option, with_options
from analogy.core.deferred import deferred
from analogy.settings.request import RunRequest

if TYPE_CHECKING:
    from analogy.cli.work import runs as work
else:
    work = deferred("analogy.cli.work.runs")


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
    work.run(request, strict=strict, json=json)


@app.command(rich_help_panel=GENERATING)
@with_options()
def plan(
    request: RunRequest,
    measure: Annotated[
        bool | None,
        option(
            "--measure/--no-measure",
            help="Whether a few images are made to measure the time [default: only if no earlier "
            "run of this machine says it].",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Say what 'run' with the same options would take, and what a smaller run would do.

    Images to make and already there, time, memory, disk and downloads; and for fewer pairs and
    seeds, the cells that would be decided with a power of 80%. Nothing is downloaded, and nothing
    is written to the run folder.

    Exit code: 0 planned, 2 wrong usage, 4 the run folder cannot be read.
    """
    work.plan(request, measures=measure, json=json)
