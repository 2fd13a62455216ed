"""Methods and a family that are not the suite's own, as a user writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from analogy.models.families import SDXL
from analogy.steering.base import Need, Row, steering_method
from analogy.steering.conditioning import Conditioning, Edit, Words, mean
from analogy.steering.words import category_direction, word_direction


@steering_method(Need.WORDS, version="2")
def pooled(edit: Edit, alpha: float) -> Conditioning:
    """The method word, in the pooled vectors alone."""
    direction = word_direction(edit)
    still = {name: torch.zeros_like(states) for name, states in direction.states.items()}
    return edit.source.plus(Conditioning(still, direction.pooled), alpha)


@steering_method(Need.OTHERS)
def others(edit: Edit, alpha: float) -> Conditioning:
    """The method category, under another name."""
    return edit.source.plus(category_direction(edit), alpha)


@steering_method()
def short(edit: Edit, alpha: float) -> Conditioning:
    """One that loses a token."""
    return Conditioning({name: states[1:] for name, states in edit.source.states.items()})


class Directions:
    """Learns the mean direction of the pairs it is given; counts its fits."""

    name, version, needs = "directions", "", frozenset({Need.OTHERS})

    def __init__(self, direction: Conditioning | None = None) -> None:
        self.direction = direction
        self.fits = 0

    def fit(self, others: tuple[Words, ...]) -> Directions:
        self.fits += 1
        return Directions(mean([other.target.minus(other.source) for other in others]))

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        return edit.source.plus(self.direction, alpha)


directions = Directions()


class Louder:
    """Scales what the denoiser predicts by 1 + alpha / 4, by a hook on it."""

    name, version, needs = "louder", "", frozenset()
    exclusive, per_row = True, False
    default_alphas = (1.0, 2.0)
    at_work = 0

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        return edit.source

    @contextmanager
    def applied(self, pipeline: Any, rows: Sequence[Row], start: int = 0) -> Iterator[None]:
        [alpha] = {row.alpha for row in rows}

        def scaled(module: Any, given: Any, made: Any) -> Any:
            return (made[0] * (1 + alpha / 4), *made[1:])

        assert not self.at_work  # no other's change is seen
        self.at_work += 1
        handle = pipeline.unet.register_forward_hook(scaled)
        try:
            yield
        finally:
            handle.remove()
            self.at_work -= 1


louder = Louder()


class OldLouder:
    """An intervention of an earlier protocol."""

    name, version, needs, exclusive = "old", "", frozenset(), True

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        return edit.source

    def applied(self, pipeline: Any, alpha: float) -> None: ...


old_louder = OldLouder()


class WithoutCondition:
    """Not a method."""

    name = "none"


nothing = WithoutCondition()


class PerturbedSDXL(SDXL):
    """SDXL with perturbed-attention guidance, which predicts twice with the prompt."""

    pipeline = "StableDiffusionXLPAGPipeline"


perturbed = PerturbedSDXL()
