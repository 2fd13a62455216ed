"""The work of the command ``export``."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from analogy.cli.base import refuse, show_lines
from analogy.core.errors import ExitCode, OptionError
from analogy.core.files import write_output
from analogy.core.text import analogy_command
from analogy.results import kept
from analogy.runs import command_to_score
from analogy.settings.request import RunRequest
from analogy.store.folder import RunFolder
from analogy.studies.exporting import export_of_command, export_of_request, job_to_json


def export(
    request: RunRequest, given: Collection[str], run: Path | None, out: Path, method_name: str
) -> None:
    """Write the jobs that lack an image, and print how to import the images."""
    if run is None:
        study = export_of_request(request, method_name)
    else:
        if others := sorted(set(given) - {"run_dir"}):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in others)
            raise OptionError(
                place=flags, expected="no option of a grid beside RUN, whose own is exported",
                got="one", advice="leave out RUN or the option",
            )  # fmt: skip
        folder = RunFolder(kept.folder_of(run), read_only=True)
        try:
            command = command_to_score(folder)
        finally:
            folder.close()
        study = export_of_command(command, method_name, request.run_dir)
    try:
        jobs = study.jobs()
        left = study.folder.without_image(jobs)
        lines = [json.dumps(job_to_json(job, study), ensure_ascii=False) + "\n" for job in left]
        write_output(out, "".join(lines).encode())
    except OSError as error:
        refuse(ExitCode.USAGE, f"expected a file that can be written, got: {error}")
    finally:
        study.close()
    config = study.config
    of_judge = ["--clip-model", config.clip_model]
    if config.clip_pretrained is not None:
        of_judge += ["--clip-pretrained", config.clip_pretrained]
    place = study.folder.path
    show_lines(
        [
            f"model     {study.grid.model}",
            f"jobs      {out}: {len(left):,}, {len(jobs) - len(left):,} have their images already",
            f"run       {place}",
            f"next      {analogy_command('import', place, out)} # once the images are made",
            f"          {analogy_command('score', place, *of_judge)}",
        ]
    )
