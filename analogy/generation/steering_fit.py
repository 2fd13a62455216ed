"""Fit a steering file on pairs, by the recipe of the method ``activation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.core.words import folded
from analogy.generation.engine import Progress, Setup, no_progress
from analogy.generation.fitting import observed
from analogy.generation.worker import generator_of, no_truncation_warnings, one_thread, texts
from analogy.models.generator import Generator
from analogy.models.loading import load_pipeline
from analogy.models.memory import memory_said
from analogy.steering.activation import ByModule, TooFewPairsError, activation
from analogy.steering.conditioning import Conditioning
from analogy.steering.files import Action, ModuleAction, Steering, pair_digest


def fit_steering(setup: Setup, progress: Progress = no_progress) -> Steering:
    """A steering file's content for a setup's model, fitted on its pairs.

    ``progress``: called with 2 after each pair's two images. Raises :class:`TooFewPairsError` for a
    category of one pair, before a model is loaded. Also raises what loading and generating raise.
    """
    config, model = setup.config, setup.model
    if model is None:
        raise ModelError("expected a model to fit on, got none")
    for category, own in by_category(setup.pairs).items():
        if len(own) < 2:
            raise TooFewPairsError(
                place=f"category {category}", expected="two pairs or more to fit on", got="one",
                advice="add pairs to it, or leave it out of --categories",
            )  # fmt: skip
    about = (
        f"activation, fitted on {len(setup.pairs)} pairs with {model.fingerprint}, "
        f"{config.steps} steps, {config.size} px, {config.dtype}"
    )
    with memory_said("fitting"), one_thread(config.device), no_truncation_warnings():
        pipeline = load_pipeline(
            model, device=config.device, dtype=config.dtype, offload=config.offload
        )
        generator = generator_of(pipeline, config)
        encoded = generator.encode(texts(setup.pairs))
        return steering_of(setup.pairs, generator, encoded, about=about, progress=progress)


def by_category(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by their category; categories and pairs stay in the given order."""
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.category, []).append(pair)
    return found


def steering_of(
    pairs: Sequence[Pair],
    generator: Generator,
    encoded: Mapping[str, Conditioning],
    *,
    about: str,
    progress: Progress = no_progress,
) -> Steering:
    """A steering file's content for these pairs, by the recipe of the method ``activation``.

    If each word of a category is in two prompts or more, there is a vector for each word, module
    and step: the mean over prompts with that word, minus the mean over all prompts. A pair's
    direction is then its target word's vector minus its source word's. Any other category has one
    direction for all pairs: the mean over target prompts minus that over source prompts.
    """
    entries: list[ModuleAction] = []
    for category, own in by_category(pairs).items():
        seen: list[tuple[ByModule, ByModule]] = []
        for pair in own:
            seen.append(observed(activation, pair, generator, encoded))
            progress(2)
        entries += _entries(category, own, seen)
    return Steering(
        tuple(entries),
        default_alphas=activation.default_alphas,
        pairs=frozenset(map(pair_digest, pairs)),
        about=about,
    )


def _entries(
    category: str, pairs: Sequence[Pair], seen: Sequence[tuple[ByModule, ByModule]]
) -> list[ModuleAction]:
    by_word: dict[str, list[ByModule]] = {}
    for pair, (source, target) in zip(pairs, seen, strict=True):
        by_word.setdefault(folded(pair.source_word), []).append(source)
        by_word.setdefault(folded(pair.target_word), []).append(target)
    sources, targets = [source for source, _ in seen], [target for _, target in seen]
    ends: dict[str | None, tuple[list[ByModule], list[ByModule]]] = {None: (targets, sources)}
    if min(map(len, by_word.values())) >= 2:
        ends = {word: (said, sources + targets) for word, said in by_word.items()}
    return [
        ModuleAction(
            module, Action.ADD, _mean(end, module) - _mean(start, module), category=category,
            word=word,
        )
        for word, (end, start) in ends.items()
        for module in sources[0]
    ]  # fmt: skip


def _mean(seen: Sequence[ByModule], module: str) -> Tensor:
    return torch.stack([each[module] for each in seen]).mean(0)
