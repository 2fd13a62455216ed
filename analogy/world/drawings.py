"""Drawings of a word pair's prompts, if both are captions of the rendered world."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from analogy.core.records import Pair
from analogy.store.grid import content, digest
from analogy.world import CaptionError, Scene, read, render
from analogy.world.scene import TYPICAL_COLOR

SEED = "ceiling"


def scenes(pair: Pair, rng: random.Random) -> tuple[Scene, Scene]:
    """The scenes that a pair's prompts describe, source and target.

    Attributes that no prompt mentions are ordinary, the same in both scenes. A colour that neither
    prompt mentions is the typical one of the source's object or of the target's, drawn from
    ``rng``: with each its own, two things would change at once, and with always the same side's,
    that side would be favoured.

    Raises ``CaptionError``, which names the pair, if a prompt is not a caption of the world or if
    both prompts describe one scene.
    """
    try:
        (source, source_said), (target, target_said) = map(
            read, (pair.source_prompt, pair.target_prompt)
        )
    except CaptionError as error:
        raise CaptionError(f"pair {pair.id}: {error}") from None
    typical = rng.choice([TYPICAL_COLOR[source.object], TYPICAL_COLOR[target.object]])
    if "color" not in source_said | target_said:
        source, target = replace(source, color=typical), replace(target, color=typical)
    if source == target:
        raise CaptionError(
            f"pair {pair.id}: expected prompts that describe different scenes, got "
            f"{pair.source_prompt!r} and {pair.target_prompt!r}, both {source}; change one of them"
        )
    return source, target


def drawings(pair: Pair, renders: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Twins: a drawing of a pair's source and one of its target, each uint8 HWC (64, 64, 3).

    The jitter of both starts from one random state: they are laid out alike unless the category
    itself needs another number of draws (counts, scenes, weathers). It depends only on the pair's
    content and the twin's number, so a pair is drawn the same in any file, with any other pairs.
    """
    twins = []
    for i in range(renders):
        rng = random.Random(f"{SEED}/{digest(content(pair))}/{i}")
        source, target = scenes(pair, rng)
        state = rng.getstate()
        source_drawing = render(source, rng)
        rng.setstate(state)
        twins.append((source_drawing, render(target, rng)))
    return twins
