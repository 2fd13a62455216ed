"""Steering methods: pure functions from what a pair's words and prompts encode to, and a strength,
to the conditioning that the denoiser gets.

Every method has the signature ``method(edit, alpha) -> Conditioning``, leaves its input alone and
gives the source's conditioning bit for bit at alpha 0. They differ in what they look at:

=============  =====================================================================
``lerp``       the target prompt; a straight line to it
``slerp``      the target prompt; along the sphere
``word``       the pair's two words alone (the analogy proper); never the target prompt
``category``   the category's other pairs; neither the target prompt nor the words alone
``random``     nothing: the null control, as long as ``word``'s direction
=============  =====================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from analogy.words import folded


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the denoiser is conditioned on, for one image.

    ``states``: the prompt's token states, ``(tokens, dim)``; ``pooled``: the pooled vector,
    ``(pooled_dim,)``, empty in a family that has none (Stable Diffusion 1 and 2). Both float32 on
    the CPU.
    """

    states: Tensor
    pooled: Tensor

    def __post_init__(self) -> None:
        if self.states.ndim != 2 or self.pooled.ndim != 1:
            raise ValueError(
                "conditioning: expected states (tokens, dim) and pooled (dim,), "
                f"got {tuple(self.states.shape)} and {tuple(self.pooled.shape)}"
            )

    def plus(self, other: Conditioning, alpha: float) -> Conditioning:
        """``self + alpha * other``; itself at alpha 0, where adding 0 would make a -0 to +0."""
        if alpha == 0.0:
            return self
        return Conditioning(
            torch.add(self.states, other.states, alpha=alpha),
            torch.add(self.pooled, other.pooled, alpha=alpha),
        )

    def minus(self, other: Conditioning) -> Conditioning:
        """``self - other``: the direction from ``other`` to here."""
        return Conditioning(self.states - other.states, self.pooled - other.pooled)


@dataclass(frozen=True, slots=True)
class Words:
    """A word pair, encoded: each word alone as a prompt, and each of the pair's prompts."""

    source_word: str
    target_word: str
    source: Conditioning
    target: Conditioning


@dataclass(frozen=True, slots=True)
class Edit:
    """All that a steering method may look at.

    ``source`` and ``target``: the encoded prompts; ``source_word`` and ``target_word``: the bare
    words, encoded as prompts of their own; ``others``: the category's other pairs, with their
    prompts encoded; ``seed``: for the random control, different for every pair.
    """

    source: Conditioning
    target: Conditioning
    words: tuple[str, str]
    source_word: Conditioning
    target_word: Conditioning
    others: tuple[Words, ...]
    seed: int


Method = Callable[[Edit, float], Conditioning]


def lerp(edit: Edit, alpha: float) -> Conditioning:
    """Straight line: E_A + alpha (E_T - E_A); the target's own conditioning at alpha 1."""
    if alpha == 1.0:
        return edit.target
    return edit.source.plus(edit.target.minus(edit.source), alpha)


def slerp(edit: Edit, alpha: float) -> Conditioning:
    """Along the sphere, vector by vector (Shoemake 1985), lengths along a straight line."""
    if alpha in (0.0, 1.0):
        return edit.target if alpha else edit.source
    return Conditioning(
        _slerp(edit.source.states, edit.target.states, alpha),
        _slerp(edit.source.pooled, edit.target.pooled, alpha),
    )


def _slerp(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Spherical interpolation along the last axis; straight where there is no arc: between
    parallel vectors, and from or to zero.

    In float64: rounding to float32 makes an arc, any arc, out of two opposite vectors.
    """
    a, b = a.double(), b.double()
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    unit_a, unit_b = a / length_a.clamp_min(1e-12), b / length_b.clamp_min(1e-12)
    cosine = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    on_arc = (torch.sin((1 - alpha) * angle) * unit_a + torch.sin(alpha * angle) * unit_b) / sine
    length = (1 - alpha) * length_a + alpha * length_b
    no_arc = (sine < 1e-4) | (length_a == 0.0) | (length_b == 0.0)
    return torch.where(no_arc, a + alpha * (b - a), on_arc * length).float()


def word(edit: Edit, alpha: float) -> Conditioning:
    """The analogy proper: E_A + alpha (E(target word) - E(source word)).

    The words are encoded alone, as prompts, and their difference is added position by position
    (word2vec's offset, Mikolov et al. 2013, on a text encoder's token states and pooled vector).
    """
    return edit.source.plus(word_direction(edit), alpha)


def word_direction(edit: Edit) -> Conditioning:
    """E(target word) - E(source word), each word a prompt of its own."""
    return edit.target_word.minus(edit.source_word)


def category(edit: Edit, alpha: float) -> Conditioning:
    """E_A + alpha times the mean direction of the category's other pairs (leave one out).

    Where both words recur among the others, the direction is between their means: the mean over
    the others' prompts that say the target word minus that over those that say the source word.
    In a balanced category (red to blue, blue to red) the plain mean of all directions is about
    zero and would say nothing; it is used where the words do not recur (king to queen among man
    to woman). Letter case does not count where words are compared, as it does not to the text
    encoders. A category of one pair has no direction: ``ValueError``.
    """
    if not edit.others:
        raise ValueError(
            "method 'category' needs at least one other pair in the category, got none; "
            "add pairs to the category or choose the method 'word'"
        )
    return edit.source.plus(category_direction(edit), alpha)


def category_direction(edit: Edit) -> Conditioning:
    """The direction that :func:`category` adds."""
    prompts = [(folded(other.source_word), other.source) for other in edit.others]
    prompts += [(folded(other.target_word), other.target) for other in edit.others]
    source, target = (
        [encoded for said, encoded in prompts if said == name] for name in map(folded, edit.words)
    )
    if source and target:
        return _mean(target).minus(_mean(source))
    return _mean([other.target.minus(other.source) for other in edit.others])


def _mean(values: list[Conditioning]) -> Conditioning:
    return Conditioning(
        torch.stack([value.states for value in values]).mean(0),
        torch.stack([value.pooled for value in values]).mean(0),
    )


def random(edit: Edit, alpha: float) -> Conditioning:
    """The null control: a random direction as long as ``word``'s, token by token and pooled."""
    generator = torch.Generator().manual_seed(edit.seed)
    direction = word_direction(edit)
    drawn = Conditioning(
        _as_long_as(torch.randn(direction.states.shape, generator=generator), direction.states),
        _as_long_as(torch.randn(direction.pooled.shape, generator=generator), direction.pooled),
    )
    return edit.source.plus(drawn, alpha)


def _as_long_as(drawn: Tensor, like: Tensor) -> Tensor:
    return drawn * (like.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))


METHODS: dict[str, Method] = {
    "lerp": lerp,
    "slerp": slerp,
    "word": word,
    "category": category,
    "random": random,
}

#: The methods whose result depends on the category's other pairs.
OTHERS_MATTER = frozenset({"category"})

#: The default: see "Which method" in the README for the measurement behind the choice.
DEFAULT_METHOD = "word"
