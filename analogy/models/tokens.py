"""Find the tokens of a word in a text, for every text encoder of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.core.words import places
from analogy.steering.conditioning import Span, WordTokens

#: The most tokens of a prompt that diffusers gives to T5, which itself has no limit.
T5_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A text encoder's place in the token states of a family.

    - ``tokenizer``, ``encoder``: names of parts of the pipeline. A pipeline may lack them;
    - ``states``: the name of the token states in the conditioning;
    - ``is_after``: True if its tokens follow those of all encoders before it. Otherwise its states
      are the next dimensions of the same tokens as those of the encoder before it;
    - ``limit``: the most tokens that it is given, None for the tokenizer's own limit.
    """

    tokenizer: str
    encoder: str
    states: str = "prompt_embeds"
    is_after: bool = False
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class _Block:
    """An encoder's part of the token states: its most tokens, its first token, its dimensions."""

    tokenizer: Any
    most: int
    states: str
    first: int
    dims: tuple[int, int]


class WordReader:
    """Finds the tokens of words by the tokenizers' offsets. To be used by one thread at a time.

    It must be made while the pipeline has its text encoders, whose widths it keeps. ``layout``: of
    the pipeline's family; empty if unknown.
    """

    def __init__(self, pipeline: Any, layout: Sequence[TextEncoder]) -> None:
        self._name = type(pipeline).__name__
        self._blocks: list[_Block] = []
        tokens = width = first = 0
        for each in layout:
            tokenizer = getattr(pipeline, each.tokenizer, None)
            encoder = getattr(pipeline, each.encoder, None)
            if each.is_after:
                first, width = tokens, 0
            if tokenizer is None or encoder is None:
                continue
            most = min(tokenizer.model_max_length, each.limit or tokenizer.model_max_length)
            dims = (width, width + encoder.config.hidden_size)
            self._blocks.append(_Block(tokenizer, most, each.states, first, dims))
            tokens, width = max(tokens, first + most), dims[1]

    def __call__(self, pair: Pair) -> WordTokens:
        """The tokens of a pair's words, encoder by encoder.

        An encoder is left out if one of the words has no token in its input, such as a word beyond
        its limit. Raises ``ModelError`` if the layout is unknown or a tokenizer gives no offsets.
        """
        if not self._blocks:
            raise ModelError(
                f"{self._name}: expected a family that says where each text encoder's tokens are "
                "(the attribute layout), got one that does not; choose a method that steers all "
                "tokens"
            )
        found = WordTokens((), (), ())
        for block in self._blocks:
            spans = [
                self._span(block, pair.source_prompt, pair.source_word),
                self._span(block, pair.source_word),
                self._span(block, pair.target_word),
            ]
            if all(span.tokens for span in spans):
                found = found.plus(*spans)
        return found

    def _span(self, block: _Block, text: str, word: str | None = None) -> Span:
        """The tokens of a word in a text, or of the whole text if ``word`` is None."""
        tokens = word_tokens(block.tokenizer, text, word, most=block.most)
        return Span(block.states, tuple(block.first + i for i in tokens), block.dims)


def word_tokens(tokenizer: Any, text: str, word: str | None = None, *, most: int) -> list[int]:
    """The positions of a word's tokens among the first ``most`` of a text, special ones counted.

    Every occurrence of the word counts. If ``word`` is None, the whole text counts. Raises
    ``ModelError`` for a tokenizer without offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__}: expected a tokenizer that says where its tokens are in "
            "the text, a fast one, got one that does not; choose a method that steers all tokens"
        )
    parts = [(0, len(text))] if word is None else places(text, word)
    made = tokenizer(text, truncation=True, max_length=most, return_offsets_mapping=True)
    return [
        i
        for i, (start, end) in enumerate(made["offset_mapping"])
        if start < end and any(start < last and end > first for first, last in parts)
    ]
