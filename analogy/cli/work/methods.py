"""What ``methods`` does."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from analogy.cli.base import refuse, show_lines, write
from analogy.core.errors import AnalogyError, ExitCode
from analogy.report import text
from analogy.results.writing import header_to_json
from analogy.sessions.running import fault_code
from analogy.sessions.summary import unread_lines
from analogy.settings.request import RunRequest
from analogy.steering.base import METHODS, Need
from analogy.studies.run_methods import all_jobs, open_methods, run_methods

METHODS_VERSION = 1
"""The schema version of what ``methods --json`` writes."""

_OF_ONE = ("method", "method_version", "method_needs")
"""Settings of a run by one method."""


def methods(request: RunRequest, chosen: Sequence[str], json: str | None) -> None:
    """Generate and score by each of the methods, write and print the comparison."""
    studies = open_methods(request, chosen)
    study = studies[0]
    try:
        jobs = all_jobs(studies)
        study.prepare(jobs)
        left = len(study.folder.without_image(jobs))
        with tqdm(total=left, desc="generating", unit="img", disable=None, leave=False) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            try:
                found = run_methods(studies, advance)
            except AnalogyError as error:
                refuse(fault_code(error), error)
        failures = study.failures(jobs)
        header = header_to_json(study.header())
    finally:
        study.close()
    config = study.config
    settings = {name: value for name, value in config.to_dict().items() if name not in _OF_ONE}
    write(
        {
            **header,
            "schema_version": METHODS_VERSION,
            "exit_code": int(ExitCode.OK),
            "config": settings,
            "methods": list(chosen),
            **found.to_dict(),
        },
        json,
    )
    lines = [
        f"model     {study.grid.model}",
        f"judge     {study.judge.fingerprint}",
        f"sampling  {study.sampling_text}, "
        f"{config.dtype} on {config.device}, alpha {', '.join(f'{a:g}' for a in config.alphas)}, "
        f"seeds {', '.join(map(str, config.seeds))}",
        f"run       {study.folder.path}",
        *unread_lines(study),
    ]
    if config.limit is not None:
        limit = f"limit     {config.limit} pairs per category: not the whole measurement"
        if wide := [name for name in chosen if Need.OTHERS in METHODS.get(name).needs]:
            limit += f"; the method {', '.join(wide)} looks at no other pairs"
        lines.append(limit)
    failed = text.failure_lines(failures)
    show_lines([*lines, *failed, "", *text.method_tables(found)], json)
