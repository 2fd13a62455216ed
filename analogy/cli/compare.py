"""The commands ``compare`` and ``baseline``. They generate nothing and load no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analogy.cli.base import (
    REPORTING,
    Json,
    Quiet,
    Wide,
    app,
    checked_output,
    examples,
    option,
    refuse,
)
from analogy.cli.completion import runs
from analogy.core.deferred import deferred
from analogy.core.errors import ExitCode, OptionError
from analogy.core.fields import TOLERANCE
from analogy.settings.options import parse_tolerance

if TYPE_CHECKING:
    from analogy.cli.work import compare as work
else:
    work = deferred("analogy.cli.work.compare")


@app.command(
    rich_help_panel=REPORTING,
    epilog=examples(
        "compare before.json RUN --tolerance 0.01", "compare before.json RUN --decide -q"
    ),
)
def compare(
    old: Annotated[
        Path,
        typer.Argument(help="The baseline: a results file or a run folder.", autocompletion=runs),
    ],
    new: Annotated[
        Path,
        typer.Argument(
            help="The run to compare: a results file or run folder.", autocompletion=runs
        ),
    ],
    tolerance: Annotated[
        str, option(metavar="T", help="The largest loss of margin that is not a regression.")
    ] = str(TOLERANCE),
    json: Json = None,
    junit: Annotated[
        Path | None,
        option(
            metavar="FILE", help="Also write JUnit XML, a case per cell.", callback=checked_output
        ),
    ] = None,
    decide: Annotated[
        bool,
        option("--decide", help="End with exit code 6 if nothing is worse, better or equal."),
    ] = False,
    quiet: Quiet = False,
    wide: Wide = False,
) -> None:
    """Compare two runs cell by cell and pair by pair, without generating anything.

    The last line says what is shown. That nothing regressed does not show that nothing is worse:
    with few pairs every cell is undecided. A job that needs a decision gives --decide.

    Exit code: 0 nothing regressed, 1 something did, 3 not comparable or incomplete, 6 with --decide
    if nothing was decided, 2 wrong usage or a file that cannot be read.
    """
    try:
        most = parse_tolerance(tolerance)
    except OptionError as error:
        refuse(ExitCode.USAGE, f"--tolerance: {error}")
    work.compare(
        old, new, tolerance=most, json=json, junit=junit, decide=decide, quiet=quiet, wide=wide
    )


@app.command(rich_help_panel=REPORTING)
def baseline(
    run: Annotated[
        Path, typer.Argument(help="A run folder or its results file.", autocompletion=runs)
    ],
    output: Annotated[
        Path,
        option(
            "--output", "-o", metavar="FILE", help="The file to write.", callback=checked_output
        ),
    ],
) -> None:
    """Make a run the baseline that later runs are compared with.

    Exit code: 0 written, 2 not written: an existing baseline may only be replaced by a complete
    run of the same measurement.
    """
    work.baseline(run, output)
