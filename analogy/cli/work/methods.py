"""What ``methods`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tqdm import tqdm

from analogy.cli.base import refuse, show_lines, write
from analogy.core.errors import AnalogyError, ExitCode
from analogy.report import text
from analogy.report.text_methods import cost_table, method_tables
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


def methods(
    request: RunRequest, chosen: Sequence[str], json: str | None, *, own_alphas: bool
) -> None:
    """Generate and score by each of the methods, write and print the comparison.

    ``own_alphas``: each method has its own default strengths, in place of the request's.
    """
    studies = open_methods(request, chosen, own_alphas=own_alphas)
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
    alphas = {each.config.method: list(each.config.alphas) for each in studies}
    of_one = {*_OF_ONE, "alphas"} if found.at else _OF_ONE
    settings = {name: value for name, value in config.to_dict().items() if name not in of_one}
    write(
        {
            **header,
            "schema_version": METHODS_VERSION,
            "exit_code": int(ExitCode.OK),
            "config": settings,
            "methods": list(chosen),
            **({"strengths": alphas} if found.at else {}),
            **found.to_dict(),
        },
        json,
    )
    lines = [
        f"model     {study.grid.model}",
        f"judge     {study.judge.fingerprint}",
        f"sampling  {config.steps} steps, guidance {config.guidance:g}, {config.size} px, "
        f"{config.dtype} on {config.device}, alpha {_listed(config.alphas, found.at)}, "
        f"seeds {', '.join(map(str, config.seeds))}",
        *(f"alphas    {name}: {_listed(of)}" for name, of in alphas.items() if found.at),
        f"run       {study.folder.path}",
        *unread_lines(study),
    ]
    if config.limit is not None:
        limit = f"limit     {config.limit} pairs per category: not the whole measurement"
        if wide := [name for name in chosen if Need.OTHERS in METHODS.get(name).needs]:
            limit += f"; the method {', '.join(wide)} looks at no other pairs"
        lines.append(limit)
    failed = text.failure_lines(failures)
    show_lines([*lines, *failed, "", *method_tables(found), "", *cost_table(found.costs)], json)


def _listed(alphas: Sequence[float], at: Mapping[str, float] | None = None) -> str:
    """Strengths as text, unless each method has its own, ``at`` one of which it is compared."""
    return "each method's own" if at else ", ".join(f"{alpha:g}" for alpha in alphas)
