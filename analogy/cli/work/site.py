"""The work of the command ``site``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analogy.cli.base import refuse, say, show_lines
from analogy.cli.work.runs import found_runs
from analogy.core.deferred import deferred
from analogy.core.errors import ExitCode
from analogy.report.numbers import counted
from analogy.writers import check_writer

if TYPE_CHECKING:
    from analogy.report import site as sites
else:
    sites = deferred("analogy.report.site")  # jinja2 and matplotlib, which may not be installed


def site(folders: Sequence[Path] | None, output: Path, *, comparisons: int) -> None:
    """Write the site and print what it contains."""
    check_writer("site", "html")
    entries = found_runs(folders)
    if len(entries) > sites.MOST_RUNS:
        say(f"{len(entries):,} runs; the latest {sites.MOST_RUNS} are on the site")
    try:
        written = sites.write_site(entries, output, most_comparisons=comparisons)
    except OSError as error:
        refuse(ExitCode.USAGE, f"-o {output}: expected a folder that can be written, got: {error}")
    for fault in written.faults:
        say(f"no report of {fault}")
    show_lines(
        [
            f"site      {output / 'index.html'}: {counted(written.runs, 'run')}, "
            f"{counted(written.reports, 'report')} written, "
            f"{counted(written.comparisons, 'comparison')}"
        ]
    )
