"""The methods that add a direction between words: the pair's own, or those of other pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from analogy.core.words import folded
from analogy.steering.base import Need, steering_method
from analogy.steering.conditioning import Conditioning, Edit, mean


@steering_method(Need.WORDS)
def word(edit: Edit, alpha: float) -> Conditioning:
    """The analogy proper: E_A + alpha (E(target word) - E(source word)).

    The words are encoded alone, as prompts, and their difference is added position by position
    (word2vec's offset, Mikolov et al. 2013, on a text encoder's token states and pooled vector).
    """
    return edit.source.plus(word_direction(edit), alpha)


def word_direction(edit: Edit) -> Conditioning:
    """E(target word) - E(source word), each word encoded as a prompt of its own."""
    return edit.target_word.minus(edit.source_word)


@steering_method(Need.WORDS, Need.TOKENS)
def span(edit: Edit, alpha: float) -> Conditioning:
    """``word``'s direction, added only to the source word's own tokens; pooled vectors stay.

    It adds alpha (mean E(target word) - mean E(source word)) to each of these tokens. The means are
    over the tokens of each word, encoded alone as a prompt, so the words may have different numbers
    of tokens. Attribute control (arXiv 2403.17064) and text-embedding interpolation (arXiv
    2603.17998) steer selected tokens, too. Each text encoder's states are steered at its own
    tokens. If no encoder reads the source word in its prompt, nothing is steered.
    """
    if alpha == 0.0:
        return edit.source
    if edit.tokens is None:
        raise ValueError("method 'span' needs the words' tokens, got none")
    moved = {name: states.clone() for name, states in edit.source.states.items()}
    tokens = edit.tokens
    for here, source, target in zip(tokens.prompt, tokens.source, tokens.target, strict=True):
        direction = target.of(edit.target_word) - source.of(edit.source_word)
        start, end = here.dims
        moved[here.states][..., list(here.tokens), start:end] += alpha * direction[..., None, :]
    return Conditioning(moved, edit.source.pooled, edit.source.carried)


@steering_method(Need.OTHERS)
def category(edit: Edit, alpha: float) -> Conditioning:
    """E_A + alpha times the mean direction of the category's other pairs (leave one out).

    If both words are in other pairs, the direction is between their means: the mean over the other
    pairs' prompts with the target word minus the mean over those with the source word. In a
    balanced category (red to blue, blue to red) the plain mean of all directions is about zero. It
    is used only if the words are not in other pairs (king to queen among man to woman). Words are
    compared without letter case, which text encoders ignore, too. Raises ``ValueError`` if the
    category has no other pair.
    """
    if not edit.others:
        raise ValueError(
            "method 'category' needs at least one other pair in the category, got none; "
            "add pairs to the category or choose the method 'word'"
        )
    return edit.source.plus(category_direction(edit), alpha)


def category_direction(edit: Edit) -> Conditioning:
    """The direction that :func:`category` adds."""
    said = [(folded(o.source_word), o.encoded, o.source_prompt) for o in edit.others]
    said += [(folded(o.target_word), o.encoded, o.target_prompt) for o in edit.others]
    source, target = (
        [(encoded, text) for word, encoded, text in said if word == name]
        for name in map(folded, edit.words)
    )
    if source and target:
        end, start = (mean(encoded[text] for encoded, text in side) for side in (target, source))
        return end.minus(start)
    return mean(other.target.minus(other.source) for other in edit.others)


@steering_method(Need.WORDS)
def random(edit: Edit, alpha: float) -> Conditioning:
    """The null: a random direction as long as ``word``'s, for each token and each pooled vector."""
    generator = torch.Generator().manual_seed(edit.seed)
    drawn = word_direction(edit).map(
        lambda like: _as_long_as(torch.randn(like.shape, generator=generator), like)
    )
    return edit.source.plus(drawn, alpha)


def _as_long_as(drawn: Tensor, like: Tensor) -> Tensor:
    return drawn * (like.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
