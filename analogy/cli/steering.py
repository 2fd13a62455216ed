"""The command ``steering fit``: writes a steering file from pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from analogy.cli.base import (
    GENERATING,
    Commands,
    app,
    checked_output,
    option,
    with_options,
)
from analogy.core.deferred import deferred
from analogy.settings.request import RunRequest

if TYPE_CHECKING:
    from analogy.cli.work import steering as work
else:
    work = deferred("analogy.cli.work.steering")

FIT_OPTIONS = (
    "gpu", "device", "offline", "model", "transformer", "lora", "pairs", "categories", "limit",
    "steps", "size",
    "dtype", "quantize", "offload",
)  # fmt: skip

steering_app = Commands(no_args_is_help=True, help="Make steering files.")
app.add_typer(steering_app, name="steering", rich_help_panel=GENERATING)


@steering_app.callback()
def _commands() -> None:
    """Make typer require the name of the only command: ``steering fit``, not ``steering``."""


@steering_app.command()
@with_options(FIT_OPTIONS)
def fit(
    request: RunRequest,
    out: Annotated[
        Path, option("--out", metavar="FILE", help="The file to write.", callback=checked_output)
    ],
) -> None:
    """Write a steering file, fitted on pairs by the recipe of the method activation.

    Denoises the images of each pair's two prompts once and writes a direction for each
    cross-attention module and step. 'run --method file:FILE' then steers other pairs by it: it
    refuses the pairs that the file was fitted on.

    Exit code: 0 written, 2 wrong usage, 4 the model cannot be used.
    """
    work.fit(request, out)
