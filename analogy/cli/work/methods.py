"""The work of the command ``methods``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tqdm import tqdm

from analogy.cli.base import refuse, show_lines, write
from analogy.core.errors import AnalogyError, ExitCode
from analogy.report import text
from analogy.report.text_methods import cost_table, method_tables
from analogy.results.writing import header_to_json
from analogy.sessions.running import fault_code
from analogy.sessions.summary import unread_notes
from analogy.settings.request import RunRequest
from analogy.steering.base import METHODS, Need
from analogy.studies.run_methods import all_jobs, open_methods, run_methods
from analogy.studies.study import Study

METHODS_VERSION = 1
"""The schema version of the JSON of ``methods --json``."""

_OF_ONE = ("method", "method_version", "method_needs")
"""Settings that differ between the compared methods, left out of their common settings."""


def methods(
    request: RunRequest, chosen: Sequence[str], json: str | None, *, own_alphas: bool
) -> None:
    """Generate and score with each of the methods, and write and print their comparison.

    ``own_alphas``: whether each method uses its own default strengths instead of the request's.
    """
    studies = open_methods(request, chosen, own_alphas=own_alphas)
    study = studies[0]
    try:
        jobs = all_jobs(studies)
        left = len(study.folder.without_image(jobs))
        heading = (text.beside(*each) for each in _heading(studies, left, len(jobs)))
        show_lines([*heading, ""], json)
        study.prepare(jobs)
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
    failed = text.failure_lines(failures)
    show_lines([*failed, *method_tables(found), "", *cost_table(found.costs)], json)


def _heading(studies: Sequence[Study], missing: int, n_jobs: int) -> Iterator[tuple[str, str]]:
    """The settings of the run and the amount of work left: labels, each with its text."""
    study, config = studies[0], studies[0].config
    alphas = {each.config.method: each.config.alphas for each in studies}
    one = len({*alphas.values()}) == 1
    yield "model", study.grid.model
    yield "judge", study.judge.fingerprint
    strengths = _listed(config.alphas) if one else "of each method"
    seeds = ", ".join(map(str, config.seeds))
    sampling = f"{study.sampling_text}, {config.dtype} on {config.device}"
    yield "sampling", f"{sampling}, alpha {strengths}, seeds {seeds}"
    if not one:
        yield from (("alphas", f"{name}: {_listed(of)}") for name, of in alphas.items())
    yield "run", str(study.folder.path)
    yield from unread_notes(study)
    if config.limit is not None:
        limit = f"{config.limit} pairs per category: not the whole measurement"
        if wide := [name for name in alphas if Need.OTHERS in METHODS.get(name).needs]:
            limit += f"; the method {', '.join(wide)} looks at no other pairs"
        yield "limit", limit
    yield "images", f"{missing:,} to make, {n_jobs - missing:,} are there"


def _listed(alphas: Sequence[float]) -> str:
    return ", ".join(f"{alpha:g}" for alpha in alphas)
