"""The command ``steering fit``: writes a steering file from pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from analogy.cli.base import (
    GENERATING,
    Commands,
    app,
    checked_output,
    option,
    show_lines,
    with_options,
)
from analogy.core.files import write_output
from analogy.core.text import analogy_command
from analogy.settings.request import RunRequest

FIT_OPTIONS = (
    "gpu", "device", "offline", "model", "lora", "pairs", "categories", "limit", "steps", "size",
    "dtype",
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
    from analogy.generation.engine import Setup
    from analogy.generation.steering_fit import fit_steering
    from analogy.settings.pairs import load_pairs, select
    from analogy.steering.files import write
    from analogy.studies.resolve import resolve

    resolved = resolve(request)
    config = resolved.config
    pairs = select(load_pairs(config.pairs), config.categories, limit=config.limit)
    setup = Setup(config, pairs, resolved.model, None)
    with tqdm(total=2 * len(pairs), desc="fitting", unit="img", disable=None, leave=False) as bar:

        def advance(images: int) -> None:
            bar.update(images)

        made = fit_steering(setup, advance)
    data = write(made)
    write_output(out, data)
    show_lines(
        [
            f"model     {resolved.model.fingerprint}",
            f"fitted    on {len(pairs)} pairs, {config.steps} steps",
            f"written   {out}: {len(made.entries)} entries, {len(data) / 1e6:.1f} MB",
            f"use       {analogy_command('run', '--method', f'file:{out}')}, on other pairs",
        ]
    )
