"""Finds what a request needs: models, judge, pairs and run folder. Loads no model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from analogy.core.errors import OptionError
from analogy.core.records import Pair, RunConfig, Window
from analogy.core.text import command_line, short_name
from analogy.grid_metrics import GridMetric, chosen_metrics
from analogy.judges.base import FoundJudge
from analogy.models.places import ModelSource
from analogy.settings.options import csv_list
from analogy.settings.pairs import UnevenPairsWarning, UnreadPairsWarning, categories, named
from analogy.settings.request import RunRequest
from analogy.steering.base import METHODS, Identity, Need, SelectiveMethod, mixes_prompts
from analogy.store.folder import folder_name
from analogy.store.grid import Command, ImageSettings
from analogy.studies import ceiling as ceilings
from analogy.studies.ceiling import CeilingError, GroundTruth
from analogy.studies.provenance import scheduler_of
from analogy.studies.resolve import resolve
from analogy.studies.sequential import chosen_pairs
from analogy.studies.tokenizers import (
    read_by_judge,
    readers_of,
    same_to_judge,
    uneven_pairs,
    unsteered,
)

RUNS = Path(".analogy", "runs")
"""The default parent of run folders."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a request resolves to on this machine: its command, its files, and its run folder.

    ``truth``: None without ground truth for this judge; ``unsteered``: as in
    :class:`~analogy.studies.study.Study`; ``path``: the run folder.
    """

    command: Command
    model: ModelSource
    judge: FoundJudge
    truth: GroundTruth | None
    unsteered: Sequence[str]
    metrics: Sequence[GridMetric]
    path: Path


def find(
    request: RunRequest,
    pairs: Sequence[Pair] | None = None,
    methods: Sequence[str] | None = None,
) -> Found:
    """Resolve a request.

    ``pairs``: used in place of the request's file; ``methods``: the methods to compare, by default
    the request's one. Raises ``OptionError``, ``PairsError``, ``ModelError`` or ``CeilingError``.
    """
    metrics = chosen_metrics(request.metrics)
    config, model, judge = resolve(request)
    if pairs is None:
        pairs = chosen_pairs(config)
    uneven = left_out(model, pairs, methods or [config.method], config.window)
    pairs = [pair for pair in pairs if pair.id not in uneven]
    refuse_pairs(config, pairs)
    unread = unread_pairs(judge, pairs)
    left = unsteered_pairs(model, pairs, config.method)
    truth = ground_truth(request.ceiling, judge)
    scheduler = scheduler_of(model.folder)
    subject = ImageSettings.of(config, scheduler).subject(model.fingerprint)
    # One folder for all runs that can share images: more pairs, alphas or methods extend it.
    name = folder_name(subject, judge=judge.fingerprint)
    command = Command(
        config, tuple(pairs), model.fingerprint, judge.fingerprint, scheduler, request.lora,
        unread=tuple(unread), uneven=uneven,
    )  # fmt: skip
    path = Path(request.run_dir or RUNS / name)
    return Found(command, model, judge, truth, left, metrics, path)


def refuse_pairs(config: RunConfig, pairs: Sequence[Pair]) -> None:
    """Raises an error if the configuration's method cannot steer these pairs.

    ``OptionError`` if it needs a pair's neighbours and a category has only one pair; whatever the
    method's own check raises if it is a ``SelectiveMethod``.
    """
    counts = Counter(pair.category for pair in pairs)
    lone = [category for category, count in counts.items() if count < 2]
    if lone and Need.OTHERS in Identity.in_config(config).needs:
        raise OptionError(
            f"--method: {config.method} needs 2 pairs or more in each category, got 1 in "
            f"{', '.join(lone)}; raise --limit, add pairs or choose another method"
        )
    method = METHODS.get(config.method)
    if isinstance(method, SelectiveMethod):
        method.check_pairs(pairs)


def unread_pairs(judge: FoundJudge, pairs: Sequence[Pair]) -> list[str]:
    """The ids of the pairs whose two prompts are the same tokens to the judge.

    Warns about them. Raises ``OptionError`` if they are all pairs of a category. Empty if the
    judge's tokenizer is unknown.
    """
    tokenizer = judge.tokenizer()
    same = [] if tokenizer is None else same_to_judge(read_by_judge(tokenizer), pairs)
    if not same:
        return []
    read = {pair.id for pair in pairs} - {pair.id for pair in same}
    dark = [name for name in categories(same) if not _any_of(name, pairs, read)]
    what = f"the judge {short_name(judge.fingerprint)} reads both prompts"
    if dark:
        mine = [pair for pair in same if pair.category in dark]
        others = [name for name in categories(pairs) if name not in dark]
        leave = command_line(f"--categories={csv_list(others)}") if others else ""
        which = f" of every pair in {csv_list(dark)}" if len(pairs) > 1 else ""
        raise OptionError(
            f"{what}{which} as one ({named(mine)}): the same tokens, whose margin is 0 whatever an "
            f"image shows; {f'leave them out with {leave}, ' if leave else ''}say what differs "
            "earlier or in other words, or choose another judge with --clip-model"
        )
    warnings.warn(
        f"{what} of {len(same):,} of {len(pairs):,} pairs as one ({named(same)}); they are not "
        "judged; they are in no figure",
        UnreadPairsWarning,
        stacklevel=3,
    )
    return [pair.id for pair in same]


def left_out(
    model: ModelSource, pairs: Sequence[Pair], methods: Sequence[str], window: Window
) -> tuple[str, ...]:
    """The ids of the pairs that a run leaves out, because their prompts have different numbers of
    tokens and one of its methods mixes the two prompts' conditionings.

    Tensors or masks of different lengths cannot be interpolated. Warns about these pairs. Raises
    ``OptionError`` if they are all pairs of a category.
    """
    mixing = [name for name in methods if mixes_prompts(METHODS.get(name), window)]
    uneven = uneven_pairs(model.folder, pairs) if mixing else []
    if not uneven:
        return ()
    why = (
        f"the prompts of {len(uneven):,} of {len(pairs):,} pairs have different numbers of tokens "
        f"({named(uneven)}), and in this model {csv_list(mixing)} needs equal ones"
    )
    kept = {pair.id for pair in pairs} - {pair.id for pair in uneven}
    empty = [name for name in categories(uneven) if not _any_of(name, pairs, kept)]
    if empty:
        raise OptionError(
            f"{why}: no pair is left of {csv_list(empty)}; leave it out with --categories, choose "
            "prompts of equal numbers, or a method that does not mix the two prompts: word, span, "
            "category or prompt"
        )
    warnings.warn(f"{why}; they are left out", UnevenPairsWarning, stacklevel=3)
    return tuple(pair.id for pair in uneven)


def _any_of(category: str, pairs: Sequence[Pair], ids: Collection[str]) -> bool:
    return any(pair.id in ids for pair in pairs if pair.category == category)


def unsteered_pairs(model: ModelSource, pairs: Sequence[Pair], method: str) -> list[str]:
    """The ids of the pairs that the method cannot steer with this model's text encoders.

    Warns about them. Raises ``OptionError`` if no pair can be steered.
    """
    same = unsteered(readers_of(model.folder), pairs, method)
    if not same:
        return []
    what = f"the model's text encoders read as one what the method {method} steers between"
    if Need.TOKENS in METHODS.get(method).needs:
        what = "the model's text encoders read both words as one, or no token of the source word"
    if len(same) == len(pairs):
        raise OptionError(
            f"{what}, in every pair ({named(same)}): nothing would be steered; say what differs "
            "earlier or in other words, or choose another --method or --model"
        )
    warnings.warn(
        f"{what} in {len(same):,} of {len(pairs):,} pairs ({named(same)}); their images stay "
        "those of alpha 0",
        UnreadPairsWarning,
        stacklevel=3,
    )
    return [pair.id for pair in same]


def ground_truth(path: str | None, judge: FoundJudge) -> GroundTruth | None:
    """The judge's margins on ground truth, from the file at ``path`` or the shipped one.

    Returns None if the shipped file is missing or of another judge. Raises ``CeilingError`` if the
    file at ``path`` cannot be read or is of another judge.
    """
    file = Path(path) if path else ceilings.default_path()
    if file is None:
        return None
    truth = ceilings.load(file)
    if truth.judge == judge.fingerprint:
        return truth
    if path is None:
        return None
    raise CeilingError(
        f"--ceiling {path}: expected the margins of the judge {judge.fingerprint}, got those of "
        f"{truth.judge}; write them anew with python -m analogy.world.ceiling"
    )
