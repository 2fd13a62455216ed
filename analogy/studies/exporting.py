"""Exports the jobs of a grid for another tool; ``analogy import`` reads the tool's images back.

Job keys depend on the tool's name, so an imported image is never mistaken for one that the suite
or another tool made.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from analogy.core.errors import OptionError
from analogy.core.fields import check_name
from analogy.core.records import IMPORTED, RunConfig
from analogy.core.strict_json import Json
from analogy.judges.base import FoundJudge, find_judge
from analogy.models.generator import latents_seed
from analogy.settings.request import RunRequest
from analogy.steering.base import METHODS
from analogy.store.folder import RunFolder, folder_name
from analogy.store.grid import Command, ImageSettings, Job
from analogy.studies.finding import unread_pairs
from analogy.studies.provenance import scheduler_of
from analogy.studies.resolve import resolve
from analogy.studies.sequential import chosen_pairs
from analogy.studies.study import Study


def export_of_request(request: RunRequest, tool: str) -> Study:
    """The study of a request, for a tool that makes its steered and unsteered images.

    Loads no model. Raises ``OptionError`` if the tool's name is that of a built-in method, and what
    :meth:`Study.open` raises.
    """
    config, model, judge = resolve(request)
    command = Command(
        config, tuple(chosen_pairs(config)), model.fingerprint, judge.fingerprint,
        scheduler_of(model.folder), request.lora,
    )  # fmt: skip
    return _opened(command, judge, tool, request.run_dir)


def export_of_command(command: Command, tool: str, run_dir: str | None) -> Study:
    """As :func:`export_of_request`, for the grid of an earlier command. Finds the judge's files."""
    config = command.config
    judge = find_judge(config.clip_model, config.clip_pretrained)
    return _opened(command, judge, tool, run_dir)


def _opened(command: Command, judge: FoundJudge, tool: str, run_dir: str | None) -> Study:
    _check_tool(tool)
    config = _of_tool(command.config, tool)
    base = command.model.partition(IMPORTED)[0]
    fingerprint = f"{base}{IMPORTED}{tool}"
    subject = ImageSettings.of(config, command.scheduler).subject(fingerprint)
    name = folder_name(subject, judge=judge.fingerprint)
    unread = unread_pairs(judge, command.pairs)
    folder = RunFolder(Path(run_dir or Path(".analogy") / "runs" / name))
    try:
        study = Study(
            config, command.pairs, None, judge, folder, fingerprint=fingerprint,
            scheduler=command.scheduler, unread=unread,
        )  # fmt: skip
        study.record(command.lora)
    except BaseException:
        folder.close()
        raise
    return study


def _of_tool(config: RunConfig, tool: str) -> RunConfig:
    """The configuration of a full grid of steered and unsteered images made by a tool."""
    return replace(
        config, method=tool, method_version="", method_needs=(), control=False, target=False,
        sequential=False, order_seed=0, full_unsteered=False, futility=False, reserve=False,
        device="cpu", batch_size=None, memory=None, engine="serial", num_workers=None,
        ray_address=None,
    )  # fmt: skip


def _check_tool(tool: str) -> None:
    check_name("method_name", tool)
    if METHODS.is_builtin(tool):
        raise OptionError(
            place="--method-name", expected="a name of the tool's own", got=f"{tool!r}",
            advice="which is a method of the suite; choose another name",
        )  # fmt: skip


def job_to_json(job: Job, study: Study) -> dict[str, Json]:
    """A job for another tool: what its image shows, and how it is sampled."""
    config, pair = study.config, job.pair
    return {
        "key": job.key,
        "file": f"{job.key}.png",
        "pair_id": pair.id,
        "category": pair.category,
        "source_word": pair.source_word,
        "target_word": pair.target_word,
        "source_prompt": pair.source_prompt,
        "target_prompt": pair.target_prompt,
        "method": job.method,
        "alpha": job.alpha,
        "seed": job.seed,
        "noise_seed": latents_seed(pair, job.seed),
        "model": config.model,
        "steps": config.steps,
        "guidance": config.guidance,
        "size": config.size,
        "dtype": config.dtype,
        "steer_from": config.steer_from,
        "steer_until": config.steer_until,
    }
