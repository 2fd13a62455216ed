"""The command ``methods``: several steering methods on one grid, compared pair by pair."""

from __future__ import annotations

from typing import Annotated

from tqdm import tqdm

from analogy.cli.base import GENERATING, Json, app, option, refuse, show_lines, with_options, write
from analogy.core.errors import AnalogyError, ExitCode, OptionError
from analogy.results.writing import header_to_json
from analogy.settings.options import parse_methods
from analogy.settings.request import RunRequest
from analogy.steering.base import METHODS, Need

METHODS_VERSION = 1
"""The schema version of what ``methods --json`` writes."""

METHODS_OPTIONS = (
    "gpu", "device", "offline", "model", "lora", "clip_model", "clip_pretrained", "clip_dtype",
    "pairs", "categories", "alphas", "seeds", "steps", "guidance", "size", "dtype", "limit",
    "sequential", "order_seed",
    "batch_size", "memory", "engine", "num_workers", "ray_address", "run_dir", "ceiling",
)  # fmt: skip


_OF_ONE = ("method", "method_version", "method_needs")
"""Settings of a run by one method."""


@app.command(rich_help_panel=GENERATING)
@with_options(METHODS_OPTIONS)
def methods(
    request: RunRequest,
    names: Annotated[
        str, option("--methods", metavar="LIST", help="Two or more, separated by commas.")
    ] = ",".join(METHODS.builtin),
    json: Json = None,
) -> None:
    """Compare steering methods on one grid: paired differences, and a ranking.

    Generates and scores the missing images of all methods in one run folder, the same that 'run'
    uses for each of them. Unsteered images (alpha 0) are generated once for all methods. Two
    methods count as different by Holm's p of their overall difference. None of this is a verdict on
    whether steering works.

    Exit code: 0 compared, 2 wrong usage, 4 the run cannot be read or written.
    """
    try:
        chosen = parse_methods(names)
    except OptionError as error:
        refuse(ExitCode.USAGE, f"--methods: {error}")

    from analogy.report import text
    from analogy.sessions.running import fault_code
    from analogy.sessions.summary import unread_lines
    from analogy.studies.run_methods import all_jobs, open_methods, run_methods

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
        f"sampling  {config.steps} steps, guidance {config.guidance:g}, {config.size} px, "
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
