"""The work of the command ``steering fit``."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from analogy.cli.base import show_lines
from analogy.core.files import write_output
from analogy.core.text import analogy_command
from analogy.generation.engine import Setup
from analogy.generation.steering_fit import fit_steering
from analogy.settings.pairs import load_pairs, select
from analogy.settings.request import RunRequest
from analogy.steering.files import write
from analogy.studies.resolve import resolve


def fit(request: RunRequest, out: Path) -> None:
    """Fit directions on the pairs of a request, and write them into a steering file."""
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
