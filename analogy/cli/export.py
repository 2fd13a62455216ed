"""The command ``export``: the jobs of a grid for another tool."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analogy.cli.base import GENERATING, app, checked_output, option, with_options
from analogy.core.deferred import deferred
from analogy.settings.request import RunRequest

if TYPE_CHECKING:
    from analogy.cli.work import export as work
else:
    work = deferred("analogy.cli.work.export")

EXPORT_OPTIONS = (
    "offline", "model", "transformer", "lora", "clip_model", "clip_pretrained", "pairs",
    "categories", "alphas", "seeds", "steps", "guidance", "size", "steer_from", "steer_until",
    "dtype", "limit", "run_dir",
)  # fmt: skip


@app.command(rich_help_panel=GENERATING)
@with_options(EXPORT_OPTIONS)
def export(
    request: RunRequest,
    given: Collection[str],
    out: Annotated[
        Path,
        option(
            "--output", "-o", metavar="FILE", help="The file to write.", callback=checked_output
        ),
    ],
    method_name: Annotated[
        str, option("--method-name", metavar="NAME", help="What the tool's method is called.")
    ],
    run: Annotated[
        Path | None,
        typer.Argument(help="A run folder whose grid is exported [default: that of the options]."),
    ] = None,
) -> None:
    """Write the jobs of a grid as JSON lines, for another tool to make their images.

    A job has its key, prompts, words, alpha, seed and sampling, and the seed that the same noise is
    drawn with. 'import' takes the images back under the same keys, into the run folder that this
    command begins. Jobs whose images are there already are left out. Loads no model.

    Exit code: 0 written, 2 wrong usage, 4 a run folder cannot be read or written.
    """
    work.export(request, given, run, out, method_name)
