"""Refuses to add pairs to a finished sequential run unless error was reserved for them.

The last look of a run spends the rest of its error rate. Looking again with more pairs at the
cells that it left undecided would make false verdicts more frequent than promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from analogy.core.errors import OptionError
from analogy.core.records import Cell, Verdict
from analogy.settings.pairs import categories
from analogy.store.folder import RunFolder
from analogy.store.grid import Command, Job
from analogy.studies.sequential import SequentialPlan


def base_of(folder: RunFolder, command: Command) -> dict[str, frozenset[str]]:
    """Category to the ids of the pairs that the run had before its extension.

    Categories that were not extended are left out. Empty if the command does not reserve error.
    """
    if not command.config.reserve:
        return {}
    found = {}
    for category in categories(command.pairs):
        earlier = _earlier(folder, command, category)
        reserved = [_ids(each, category) for each in earlier if each.config.reserve]
        reserved = [ids for ids in reserved if ids < _ids(command, category)]
        if reserved:
            found[category] = min(reserved, key=len)
    return found


def check_extension(folder: RunFolder, command: Command) -> None:
    """Raises ``OptionError`` if a sequential command adds pairs to a category in which an earlier
    command of the folder left cells undecided at its last look, without a reserve for that.
    """
    base = base_of(folder, command)
    for category in categories(command.pairs):
        for earlier in _earlier(folder, command, category):
            ids = _ids(earlier, category)
            if ids == base.get(category):
                continue  # its reserve pays for this look
            undecided = _undecided(folder, earlier, category)
            if undecided:
                raise OptionError(
                    place="--sequential",
                    expected=f"the {len(ids)} pairs of {category} that an earlier run in "
                    f"{folder.path} had: its last look left {', '.join(map(str, undecided))} "
                    "undecided and has spent the error that was promised",
                    got=f"{len(_ids(command, category))} pairs",
                    advice="judge the added pairs by themselves as a study of their own; or, if "
                    "the earlier run was only a trial, choose another --run-dir. A run that was "
                    "begun with --reserve may be extended once, with --reserve",
                )


def plan_of(command: Command, folder: RunFolder) -> SequentialPlan:
    """The looks of a sequential command by the scores of its folder."""

    def scores(jobs: Sequence[Job]) -> pd.DataFrame:
        return folder.margins(jobs, command.judge)

    judged = [pair for pair in command.pairs if pair.id not in command.unread]
    return SequentialPlan(command.grid, judged, scores, base_of(folder, command))


def jobs_of(command: Command, folder: RunFolder) -> list[Job]:
    """The jobs of a command. In a sequential run only the jobs that are due by the folder's scores.

    In a sequential comparison of methods only the jobs that have an image: which others are due
    depends on the other methods.
    """
    if not command.config.sequential:
        return command.jobs()
    if command.is_comparison:
        lacking = {job.key for job in folder.without_image(command.jobs())}
        return [job for job in command.jobs() if job.key not in lacking]
    plan = plan_of(command, folder)
    return plan.due(plan.cells)


def _earlier(folder: RunFolder, command: Command, category: str) -> Iterator[Command]:
    """The folder's commands of the same sequential study whose pairs of the category overlap with
    this command's, where this command has further pairs.
    """
    ids = _ids(command, category)
    for earlier in folder.commands():
        mine = _ids(earlier, category)
        if mine & ids and ids - mine and _study(earlier) == _study(command):
            yield earlier


def _study(command: Command) -> Command:
    """The command without what an extension may change, and without device and engine settings."""
    config = replace(
        command.config, pairs="-", categories=None, limit=None, reserve=False, futility=False,
        full_unsteered=False, device="cpu", batch_size=None, memory=None, engine="serial",
        num_workers=None, ray_address=None, control=False, target=False,
    )  # fmt: skip
    return replace(
        command, config=config, pairs=(), ceiling=None, unread=(), is_comparison=False, uneven=()
    )


def _ids(command: Command, category: str) -> frozenset[str]:
    return frozenset(pair.id for pair in command.pairs if pair.category == category)


def _undecided(folder: RunFolder, command: Command, category: str) -> list[Cell]:
    """The cells that the last look of a command left undecided."""
    state = plan_of(command, folder).state(category)
    last = len(state.design.looks) - 1
    return [
        cell
        for cell, progress in state.cells.items()
        if progress.look == last and progress.margin.verdict is Verdict.INCONCLUSIVE
    ]
