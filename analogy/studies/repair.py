"""Repairs a run folder: removes what is damaged and makes it again with the run's own models."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from analogy.core.errors import AnalogyError, ModelError
from analogy.core.fields import DTYPES
from analogy.core.records import is_imported
from analogy.judges.base import FoundJudge, find_judge
from analogy.models.places import EMBEDDED, ModelSource, go_offline
from analogy.models.sources import find_pipeline
from analogy.steering.base import METHODS, with_method
from analogy.store.folder import RunFolder
from analogy.store.grid import Command, Job
from analogy.store.index import LOST
from analogy.studies.study import Study
from analogy.studies.verify import Verified, remove_leftover


@dataclass(frozen=True, slots=True)
class Repaired:
    """The result of a repair.

    ``same``: images made again that are bit for bit as recorded; ``different``: those that are not;
    ``removed``: leftover files that were removed.
    """

    same: int
    different: int
    removed: int

    def lines(self) -> Iterator[str]:
        """What was done, for people."""
        yield f"repaired  {self.same + self.different:,} images, {self.removed:,} leftovers removed"
        if self.different:
            yield (
                f"note      {self.different:,} of them differ from what they were: made in another "
                "batch, or by another device or library; write the results anew with pytest "
                "benchmarks and the run's options"
            )


class NotConfirmedError(AnalogyError, ValueError):
    """A repair would load models, a judge or a method that only the run folder names.

    The message lists each path and id.
    """


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What the user lets a repair load besides the embedded models and installed methods.

    ``everything``: whatever the run folder names. The other fields name models and a method as the
    options of a run do. A named model is used in place of the run folder's if both have the same
    fingerprint.
    """

    everything: bool = False
    model: str | None = None
    transformer: str | None = None
    lora: str | None = None
    clip_model: str | None = None
    clip_pretrained: str | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True)
class _Task:
    """A command whose images or scores must be made again, and the confirmed models for it.

    ``model``: None if no image of it is lost, or if its images were imported.
    """

    command: Command
    model: ModelSource | None
    judge: FoundJudge


def repair(
    folder: RunFolder,
    found: Verified,
    *,
    device: str | None = None,
    offline: bool = False,
    confirmed: Confirmed | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Repaired:
    """Remove damaged images with their scores and metrics, and make exactly these again.

    Continues a repair that was killed. Images without scores are scored, by the judges of all
    commands that ran on the folder.

    ``device``: where to run; None for the device of the run. ``confirmed``: what may be loaded
    besides the embedded models and installed methods. ``say``: called with a line for each model,
    judge or method that is loaded because everything in the folder is trusted.

    Raises ``NotConfirmedError``, or ``ModelError`` if a model's files have changed, both before
    anything is changed; otherwise what a run raises.
    """
    tasks = _tasks(folder, found, confirmed or Confirmed(), offline=offline, say=say)
    was = {each.row.key: each.row.sha256 for each in found.damaged}
    if was or found.strays:
        folder.remove((each.row, each.reason) for each in found.damaged)
    for each in found.damaged:
        with contextlib.suppress(OSError):  # a link on the way: not the suite's to remove
            folder.remove_file(each.row.key)
    removed = sum(remove_leftover(folder, name) for name in found.leftovers)
    for task in tasks:
        _make_again(folder, task, device=device)
    now = {row.key: row.sha256 for row in folder.image_rows()}
    same = sum(now.get(key) == sha256 for key, sha256 in was.items())
    return Repaired(same, sum(key in now for key in was) - same, removed)


def _tasks(
    folder: RunFolder,
    found: Verified,
    confirmed: Confirmed,
    *,
    offline: bool,
    say: Callable[[str], object],
) -> list[_Task]:
    """The work for each command. Finds the models' files and loads none of them.

    A run folder, and the names in its index, may come from anyone. Only confirmed names are looked
    up.
    """
    if offline:
        go_offline()
    damaged = {each.row.key for each in found.damaged}
    tasks, unconfirmed = [], []
    for command in folder.commands():
        jobs = command.jobs()
        is_lost = any(job.key in damaged for job in jobs) or bool(_lost(folder, jobs))
        if not is_lost and not folder.without_score(jobs, command.judge):
            continue
        judge = _judge(command, confirmed, offline=offline)
        needs_model = is_lost and not is_imported(command.model)
        model = _model(command, confirmed, offline=offline) if needs_model else None
        named = _named_model(command) if needs_model and (model is None) else []
        named += _named_judge(command) if judge is None else []
        code = _named_method(command) if needs_model else []
        if command.config.method != confirmed.method and not confirmed.everything:
            named += code
        if judge is None or named:
            unconfirmed += named
            continue
        _check_same("judge", judge.fingerprint, command.judge)
        if model is not None:
            _check_same("model", model.fingerprint, command.model)
            _check_method(command)
        tasks.append(_Task(command, model, judge))
        if confirmed.everything:
            of_model = _named_model(command) if model is not None else []
            for name in [*of_model, *_named_judge(command), *code]:
                say(f"trusted: {name}, named by {folder.path}")
    if unconfirmed:
        raise NotConfirmedError(
            f"{folder.path}: to repair it, what its index names would be loaded: "
            f"{'; '.join(dict.fromkeys(unconfirmed))}. If you trust each of these, give --trust; "
            "or name your own copies, whose fingerprints must be the run's, with --model, "
            "--transformer, --lora, --clip-model and --clip-pretrained, and a method again with "
            "--method. Nothing was changed"
        )
    return tasks


def _named_model(command: Command) -> list[str]:
    """The model and LoRA of a command as its run folder names them; empty if embedded."""
    name, transformer, lora = _model_names(command)
    named = [] if name == EMBEDDED else [f"the model {_place(name)}"]
    named += [] if transformer is None else [f"the transformer {_place(transformer)}"]
    return named if lora is None else [*named, f"the LoRA {_place(lora)}"]


def _named_judge(command: Command) -> list[str]:
    """A command's judge as its run folder names it; empty if embedded."""
    config = command.config
    if config.clip_model == EMBEDDED:
        return []
    tag = config.clip_pretrained
    of = "" if tag is None else f" with the weights {_place(tag)}"
    return [f"the judge {_place(config.clip_model)}{of}"]


def _named_method(command: Command) -> list[str]:
    """A command's method as its run folder names it; empty if it is installed."""
    name = command.config.method
    return [] if METHODS.is_installed(name) else [f"the method {name!r}"]


def _check_method(command: Command) -> None:
    """Import the command's method. Raises ``ModelError`` if it is another version now."""
    config = command.config
    now = with_method(config, config.method)
    if (now.method_version, now.method_needs) != (config.method_version, config.method_needs):
        raise ModelError(
            f"expected the method {config.method} that the run was made with, version "
            f"{config.method_version!r}, got version {now.method_version!r}; install that version "
            "again, or start another run"
        )


def _place(name: str) -> str:
    """A model's name, quoted; its absolute path if there is such a path on this machine."""
    path = Path(os.path.expanduser(name)).absolute()
    return repr(str(path) if path.exists() else name)


def _model_names(command: Command) -> tuple[str, str | None, str | None]:
    """The options --model, --transformer and --lora of a command."""
    config, lora = command.config, command.lora
    name = config.model if lora is None else config.model.removesuffix(f"+{lora}")
    return name, config.transformer, lora


def _judge(command: Command, confirmed: Confirmed, *, offline: bool) -> FoundJudge | None:
    """The confirmed judge for a command. Returns None if only the run folder names it."""
    config = command.config
    given = (confirmed.clip_model, confirmed.clip_pretrained)
    recorded = (config.clip_model, config.clip_pretrained)
    names = [] if given[0] is None else [(given[0], given[1])]
    if confirmed.everything or config.clip_model == EMBEDDED or recorded == given:
        names.append(recorded)
    judge = None
    for name, tag in names:
        found = find_judge(name, tag, offline=offline)
        judge = next(
            (each for each in map(found.in_dtype, DTYPES) if each.fingerprint == command.judge),
            None,
        )
        if judge is not None:
            return judge
    # The recorded name now leads to other files: the caller compares the fingerprints.
    return found if recorded in names else None


def _model(command: Command, confirmed: Confirmed, *, offline: bool) -> ModelSource | None:
    """The confirmed model for a command, with its LoRA, found as in :func:`_judge`."""
    dtype = command.config.dtype
    recorded = _model_names(command)
    of_lora = EMBEDDED if confirmed.lora is not None else None
    given = (confirmed.model or of_lora, confirmed.transformer, confirmed.lora)
    names = [] if given[0] is None else [(given[0], given[1], given[2])]
    if confirmed.everything or recorded == (EMBEDDED, None, None) or recorded == given:
        names.append(recorded)
    model = None
    for name, transformer, lora in names:
        model = find_pipeline(
            name, dtype=dtype, offline=offline, transformer=transformer, lora=lora,
            quantize=command.config.quantize,
        )  # fmt: skip
        if model.fingerprint == command.model:
            return model
    return model if recorded in names else None


def _lost(folder: RunFolder, jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose image a repair has removed and not made again."""
    return [job for job, reason in folder.failures(jobs) if reason.startswith(LOST)]


def _make_again(folder: RunFolder, task: _Task, *, device: str | None) -> None:
    """Make the lost images of one command, and score what its judge has not scored."""
    command = task.command
    lost = _lost(folder, command.jobs())
    if lost and is_imported(command.model):
        raise ModelError(
            f"images of {command.model} are lost, and were imported: they cannot be made again; "
            "import their manifest again with: python -m analogy import RUN MANIFEST"
        )
    changed = {} if device is None else {"device": device}
    study = Study.reopen(folder, command, model=task.model, judge=task.judge, **changed)
    study.generate(lost)
    study.score(study.jobs())


def _check_same(kind: str, now: str, then: str) -> None:
    if now != then:
        raise ModelError(
            f"expected the {kind} that the run was made with, {then}, got {now}; put its files "
            "back, or start another run"
        )
