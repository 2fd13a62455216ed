"""The edit of a pair, for steering methods, from the texts that were encoded for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.core.words import places
from analogy.models.generator import derived_seed
from analogy.steering.base import Method, Need
from analogy.steering.conditioning import Conditioning, Edit, Reading, Span, Words, WordTokens

TokensOf: TypeAlias = Callable[[Pair], WordTokens]
"""Finds which tokens are a pair's words, by the tokenizers' offsets."""

Places: TypeAlias = Sequence[tuple[int, int]]
"""Where a word is in a text: its first character, and the one after its last."""


def edit_of(
    pair: Pair,
    method: Method,
    others: Sequence[Pair],
    encoded: Mapping[str, Conditioning],
    tokens: TokensOf | None = None,
) -> Edit:
    """What a method is given to steer a pair.

    ``others``: the category's other pairs, for a method that needs them; ``encoded``: all their
    texts. Where conditionings are as long as their prompts, what is compared with the source prompt
    is brought onto its tokens (:func:`onto`). ``tokens``: for pipelines whose conditionings do not
    say which tokens are which.
    """
    source = encoded[pair.source_prompt]

    def beside(text_words: Mapping[str, str]) -> Mapping[str, Conditioning]:
        if not source.has_length or not method.needs & {Need.WORDS, Need.OTHERS}:
            return encoded
        return _Beside(source, places(pair.source_prompt, pair.source_word), encoded, text_words)

    words = (pair.source_word, pair.target_word)
    alone = beside({word: word for word in words})
    return Edit(
        source=source,
        target=encoded[pair.target_prompt],
        words=words,
        source_word=alone[pair.source_word],
        target_word=alone[pair.target_word],
        others=tuple(
            Words(
                other.source_word,
                other.target_word,
                other.source_prompt,
                other.target_prompt,
                beside(
                    {
                        other.source_prompt: other.source_word,
                        other.target_prompt: other.target_word,
                    }
                ),
            )
            for other in others
        ),
        seed=seed_of(pair),
        tokens=_tokens(pair, encoded, tokens) if Need.TOKENS in method.needs else None,
    )


@dataclass(frozen=True, slots=True)
class _Beside(Mapping[str, Conditioning]):
    """Texts brought onto the tokens of a source prompt when they are asked for.

    ``words``: the word of each text.
    """

    source: Conditioning
    source_word: Places
    encoded: Mapping[str, Conditioning]
    words: Mapping[str, str]

    def __getitem__(self, text: str) -> Conditioning:
        word = places(text, self.words[text])
        return onto(self.source, self.source_word, self.encoded[text], word)

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __len__(self) -> int:
        return len(self.words)


def seed_of(pair: Pair) -> int:
    """The seed of the null's direction: each pair's own."""
    return derived_seed(pair.source_prompt, pair.target_prompt)


def onto(
    source: Conditioning, source_word: Places, other: Conditioning, other_word: Places
) -> Conditioning:
    """Another prompt's conditioning on the tokens and with the mask of the source prompt.

    The tokens of the source's word get the mean of those of the other's word, the template's tail
    its tail's, token by token from the end, and padding the mean of its padding. All other tokens
    stay the source's, so that they are the same in every conditioning that is brought onto these
    tokens. A prompt that does not have its word takes part with all its tokens. Pooled vectors are
    the other's. Where it is not known which tokens are which, states stay position by position as
    they are; raises ``ModelError`` if their numbers differ.
    """
    states: dict[str, Tensor] = {}
    for name, own in source.states.items():
        here, there = source.readings.get(name), other.readings.get(name)
        if here is not None and there is not None:
            states[name] = _moved(own, here, source_word, other.states[name], there, other_word)
        elif own.shape == other.states[name].shape:
            states[name] = other.states[name]
        else:
            raise ModelError(
                f"expected prompts of equal token counts, since it is not known which tokens of "
                f"{name} are a word's, got {own.shape[-2]} and {other.states[name].shape[-2]}; "
                "choose the method prompt"
            )
    return replace(source, states=states, pooled=other.pooled)


def check_lengths(pair: Pair, method: Method, edit: Edit) -> None:
    """Raises ``ModelError`` if the pair's prompts have conditionings of different lengths or masks.

    Runs leave such pairs out of methods that mix the two prompts.
    """
    if edit.source.has_length and not edit.source.has_length_of(edit.target):
        raise ModelError(
            f"pair {pair.id}: expected prompts of equal token counts, between which the method "
            f"{method.name} is a curve, got {pair.source_prompt!r:.60} and "
            f"{pair.target_prompt!r:.60}; leave the pair out, or choose the method word, span, "
            "category or prompt"
        )


def _moved(
    own: Tensor, here: Reading, own_word: Places, others: Tensor, there: Reading, other_word: Places
) -> Tensor:
    made = own.clone()
    for to, of in (
        (here.tokens(own_word) or here.tokens(), there.tokens(other_word) or there.tokens()),
        (here.padding, there.padding),
    ):
        if to and of:
            made[..., list(to), :] = others[..., list(of), :].mean(dim=-2, keepdim=True)
    n = min(len(here.tail), len(there.tail))
    if n:
        made[..., list(here.tail[-n:]), :] = others[..., list(there.tail[-n:]), :]
    return made


def _tokens(
    pair: Pair, encoded: Mapping[str, Conditioning], by_offsets: TokensOf | None
) -> WordTokens | None:
    """Which tokens are the pair's words."""
    source = encoded[pair.source_prompt]
    if not source.readings:
        return None if by_offsets is None else by_offsets(pair)
    found = WordTokens((), (), ())
    for name, reading in source.readings.items():
        rows = reading.tokens(places(pair.source_prompt, pair.source_word))
        words = [_of(encoded[word], name) for word in (pair.source_word, pair.target_word)]
        if source.has_length:  # both are on the source's tokens
            words = [rows if each else () for each in words]
        if rows and all(words):
            dims = (0, source.states[name].shape[-1])
            found = found.plus(*(Span(name, each, dims) for each in (rows, *words)))
    return found


def _of(word: Conditioning, name: str) -> tuple[int, ...]:
    """A word's tokens, encoded as a prompt of its own."""
    return word.readings[name].tokens() if name in word.readings else ()
