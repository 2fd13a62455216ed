"""The commands ``run``, ``plan``, ``runs`` and ``site``: a run, before it, and many after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analogy.cli.base import (
    GENERATING,
    REPORTING,
    Config,
    Json,
    Quiet,
    app,
    examples,
    option,
    with_options,
)
from analogy.core.deferred import deferred
from analogy.settings.request import RunRequest

if TYPE_CHECKING:
    from analogy.cli.work import runs as work
    from analogy.cli.work import site as work_site
else:
    work = deferred("analogy.cli.work.runs")
    work_site = deferred("analogy.cli.work.site")


@app.command(
    rich_help_panel=GENERATING,
    epilog=examples(
        "run --limit 10 --categories color,count --report report.html",
        "run --model segmind/SSD-1B --gpu --sequential",
        "run --pairs mine.csv --method lerp --alphas 0.5,1 --wide",
    ),
)
@with_options()
def run(
    request: RunRequest,
    strict: Annotated[
        bool, option("--strict", help="Expect every cell to succeed, whatever the baseline has.")
    ] = False,
    config: Config = None,
    json: Json = None,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, option("--verbose", "-v", help="Say on stderr how each case was decided.")
    ] = False,
) -> None:
    """Generate and score a grid and decide its verdicts, in the run folder of 'pytest benchmarks'.

    With --config FILE the options come from a file, such as RUN/run.toml, which every run writes.
    Either of the two commands continues what the other began, and nothing is generated twice. Cells
    that cannot be decided (too few pairs, missing images, a blind judge) are neither a success nor
    a failure, and nor are inconclusive ones, unless --inconclusive fail or a gate (--baseline,
    --limits, --strict) has them fail.

    Exit code: 0 no cell failed, or it was expected to, 1 some cell failed, or regressed, 2 wrong
    usage, 4 the run cannot be read or written, 5 the Ray cluster was lost, 130 interrupted.
    """
    work.run(request, strict=strict, json=json, quiet=quiet, verbose=verbose)


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
    config: Config = None,
    json: Json = None,
) -> None:
    """Say what 'run' with the same options would take, and what a smaller run would do.

    Images to make and already there, time, memory, disk and downloads; and for fewer pairs and
    seeds, the cells that would be decided with a power of 80%. Nothing is downloaded, and nothing
    is written to the run folder.

    Exit code: 0 planned, 2 wrong usage, 4 the run folder cannot be read.
    """
    work.plan(request, measures=measure, json=json)


Places = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Run folders, or folders of run folders [default: .analogy/runs].", metavar="FOLDER..."
    ),
]


@app.command("runs", rich_help_panel=REPORTING)
def runs_(folders: Places = None, json: Json = None) -> None:
    """List the runs in run folders: model, method, judge, pairs, what is done, and the answer.

    A line for each measurement; the size is that of its whole run folder. Nothing is loaded and
    nothing is written.

    Exit code: 0 listed, 2 there is no run folder.
    """
    work.runs(folders, json=json)


@app.command(rich_help_panel=REPORTING)
def site(
    folders: Places = None,
    output: Annotated[
        Path, option("--output", "-o", metavar="FOLDER", help="The folder to write.")
    ] = Path("site"),
    comparisons: Annotated[
        int, option(min=0, metavar="N", help="Comparisons of two runs that get a page, at most.")
    ] = 200,
) -> None:
    """Write a static site: all runs, leaderboards, reports, and comparisons of two.

    Only runs of the same judge, pairs, strengths, seeds and size are ranked or compared; for others
    the site says why not. Open FOLDER/index.html; no server is needed. Written again, it makes only
    the reports of new results.

    Exit code: 0 written, 2 there is no run folder, or the site cannot be written.
    """
    work_site.site(folders, output, comparisons=comparisons)
