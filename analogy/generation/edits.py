"""Make the edit of a pair, which is a steering method's input, from the encoded texts."""

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
"""Finds the tokens of a pair's words by the tokenizers' offsets."""

Places: TypeAlias = Sequence[tuple[int, int]]
"""The places of a word in a text: of each its first character, and the one after its last."""


def edit_of(
    pair: Pair,
    method: Method,
    others: Sequence[Pair],
    encoded: Mapping[str, Conditioning],
    tokens: TokensOf | None = None,
) -> Edit:
    """The input of a method that steers a pair.

    ``others``: the category's other pairs, for a method that needs them; ``encoded``: the
    conditionings of all their texts. If conditionings have a length, those that are compared with
    the source prompt are mapped onto its tokens (:func:`onto`). ``tokens``: finds the words' tokens
    for pipelines whose conditionings have no readings.
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
    """Conditionings of texts, mapped onto the tokens of a source prompt at each access.

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
    """The seed of the null's direction, different for each pair."""
    return derived_seed(pair.source_prompt, pair.target_prompt)


def onto(
    source: Conditioning, source_word: Places, other: Conditioning, other_word: Places
) -> Conditioning:
    """Another prompt's conditioning on the tokens and with the mask of the source prompt.

    - The tokens of the source's word all get the mean over the tokens of the other's word.
    - The tokens of the template's tail get those of the other's tail, one by one from the end.
    - The tokens of padding all get the mean over the other's padding.

    All other tokens stay the source's, so that they are the same in every conditioning that is
    mapped onto these tokens. If a prompt does not contain its word, all its tokens count as the
    word's. Pooled vectors are the other's. If readings are unknown, the other's states are used
    position by position; then it raises ``ModelError`` if their numbers of tokens differ.
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
    """Raise ``ModelError`` if the pair's prompts have conditionings of different lengths or masks.

    Runs with a method that mixes the two prompts leave out such pairs.
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
    """The tokens of the pair's words; None if they are unknown."""
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
    """The tokens of a word that is encoded as a prompt of its own; empty if they are unknown."""
    return word.readings[name].tokens() if name in word.readings else ()
