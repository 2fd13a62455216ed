"""The command ``run``: what ``pytest benchmarks`` does, in the same run folder, without pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from analogy.cli.base import GENERATING, Json, Quiet, app, examples, option, with_options
from analogy.core.deferred import deferred
from analogy.settings.request import RunRequest

if TYPE_CHECKING:
    from analogy.cli.work import runs as work
else:
    work = deferred("analogy.cli.work.runs")


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
    json: Json = None,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, option("--verbose", "-v", help="Say on stderr how each case was decided.")
    ] = False,
) -> None:
    """Generate and score a grid and decide its verdicts, in the run folder of 'pytest benchmarks'.

    Either of the two commands continues what the other began, and nothing is generated twice. Cells
    that cannot be decided (too few pairs, missing images, a blind judge) are neither a success nor
    a failure, and nor are inconclusive ones, unless --inconclusive fail or a gate (--baseline,
    --limits, --strict) has them fail.

    Exit code: 0 no cell failed, or it was expected to, 1 some cell failed, or regressed, 2 wrong
    usage, 4 the run cannot be read or written, 5 the Ray cluster was lost, 130 interrupted.
    """
    work.run(request, strict=strict, json=json, quiet=quiet, verbose=verbose)
