"""Find which token states belong to which part of a prompt, from the text encoders' input.

A pipeline's ``encode_prompt`` puts the prompt into a template, cuts it and pads it. So a
tokenizer's offsets in the prompt do not give the final positions of its tokens. The input of a text
encoder does: its token ids are decoded, and the prompt is found between the template's head and
tail.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, takewhile
from typing import Any

from torch import Tensor

from analogy.steering.conditioning import Conditioning, Reading

#: Two prompts that differ in one letter only. What their encoded texts share is the template.
LETTERS = ("x", "y")

#: The most tokens that a single letter may be split into: its bytes in UTF-8.
_MOST_TOKENS = 4

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens included."""


@dataclass(frozen=True, slots=True)
class Given:
    """The input of a text encoder for one text.

    ``ids``: the ids of all its tokens; ``real``: the positions of those that are not padding.
    """

    encoder: str
    ids: tuple[int, ...]
    real: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """The lengths of the text before and after every prompt, in letters of the decoded text."""

    head: int
    tail: int


class PromptReader:
    """Finds the parts of prompts in the token states of one pipeline.

    - ``decoders``: what turns token ids into text, by text encoder;
    - ``encoders``: the text encoder of token states, by the states' name, if lengths alone do not
      identify it;
    - ``growing``: the names of states that have fewer tokens for a shorter prompt;
    - ``encode``: gives a text's conditioning and the inputs of the text encoders for it.
    """

    def __init__(
        self,
        decoders: Mapping[str, Decode],
        encoders: Mapping[str, str],
        growing: Collection[str],
        encode: Callable[[str], tuple[Conditioning, Sequence[Given]]],
    ) -> None:
        self._decoders = decoders
        self._encoders = encoders
        self._growing = growing
        self._templates: dict[str, Template] = {}
        one, other = (encode(text) for text in LETTERS)
        for name in decoders:
            pairs = zip(_of(name, one[1]), _of(name, other[1]), strict=False)
            texts = [(self._text(a), self._text(b)) for a, b in pairs]
            texts = [(a, b) for a, b in texts if len(a) == len(b) and a != b]
            if texts:
                a, b = texts[0]
                head = _common(a, b)
                self._templates[name] = Template(head, len(a) - head - 1)
        self._checked = {
            name
            for name in one[0].states
            if self._is_confirmed(name, LETTERS[0], one, other[0].states[name])
        }

    def __call__(
        self, prompt: str, made: Conditioning, given: Sequence[Given]
    ) -> dict[str, Reading]:
        """Readings by the states' names, without states whose reading is unknown."""
        found = {name: self._reading(name, prompt, made, given) for name in self._checked}
        return {name: reading for name, reading in found.items() if reading is not None}

    def _is_confirmed(
        self, name: str, text: str, one: tuple[Conditioning, Sequence[Given]], other: Tensor
    ) -> bool:
        """True if the states of two texts begin to differ at the prompt's first token.

        If an encoder is not causal, its states differ from the first row on. Then this is True if
        no row of a real token was dropped.
        """
        made, given = one
        reading = self._reading(name, text, made, given)
        states = made.states[name]
        if reading is None or states.shape != other.shape:
            return False
        first = int((states != other).movedim(-2, 0).flatten(1).any(dim=1).int().argmax())
        if first == reading.text[0][0]:
            return True
        dropped = states.shape[-2] - len(reading.padding) < max(len(each.real) for each in given)
        return first == 0 and not dropped

    def _reading(
        self, name: str, prompt: str, made: Conditioning, given: Sequence[Given]
    ) -> Reading | None:
        rows = made.states[name].shape[-2]
        encoder = self._encoders.get(name) or self._encoder_of(rows, given)
        template = self._templates.get(encoder or "")
        if template is None:
            return None
        found = [
            self._found(
                prompt, each, template, _kept(each, rows, grows=name in self._growing), rows
            )
            for each in _of(encoder, given)
        ]
        read = [each for each in found if each is not None]
        return max(read, key=lambda each: len(each.text), default=None)  # the longest text read

    def _encoder_of(self, rows: int, given: Sequence[Given]) -> str | None:
        """The only encoder whose input had ``rows`` tokens, else at least ``rows``, else any input.

        Returns None if several encoders fit, or none does.
        """
        read = [each for each in given if each.encoder in self._templates]
        for possible in (
            {each.encoder for each in read if len(each.ids) == rows},
            {each.encoder for each in read if len(each.ids) >= rows},
            {each.encoder for each in read},
        ):
            if len(possible) == 1:
                return possible.pop()
            if possible:
                return None
        return None

    def _found(
        self, prompt: str, given: Given, template: Template, kept: Mapping[int, int], rows: int
    ) -> Reading | None:
        """The reading of a prompt in an encoder's input. Returns None if that has another text.

        ``kept``: the row of the token states by a token's position in the encoder's input.
        """
        text = self._text(given)
        letters = [(letter, i) for i, char in enumerate(prompt) for letter in _letters(char)]
        asked = "".join(letter for letter, _ in letters)
        read = _common(asked, text[template.head :])
        rest = len(text) - template.head - read
        is_cut = read < len(asked)
        if not read or rest > template.tail or (rest < template.tail and not is_cut):
            return None  # the input is another text, and not the beginning of this one
        parts: list[tuple[int, int, int]] = []
        tail: list[int] = []
        for at, span in zip(given.real, self._spans(given, template.head), strict=True):
            if at not in kept:
                continue
            start, end = (each - template.head for each in span)
            if start >= read:
                tail.append(kept[at])
            elif start < end and end > 0:
                first, last = letters[max(start, 0)][1], letters[min(end, read) - 1][1]
                parts.append((kept[at], first, last + 1))
        real = {kept[at] for at in given.real if at in kept}
        padding = tuple(row for row in range(rows) if row not in real)
        return Reading(tuple(parts), tuple(tail), padding) if parts else None

    def _text(self, given: Given) -> str:
        """The letters of an encoder's input, without padding."""
        return _letters(self._decoders[given.encoder]([given.ids[at] for at in given.real]))

    def _spans(self, given: Given, head: int) -> list[tuple[int, int]]:
        """The range of letters of each of the real tokens: the first, and the one after the last.

        A token of white space has an empty range. If several tokens make one letter, each of them
        has that letter. Tokens that end before the letter ``head`` are not decoded, since a
        template may have hundreds of them; their range is empty.
        """
        decode, ids = self._decoders[given.encoder], [given.ids[at] for at in given.real]

        def read(tokens: int) -> str:
            return _letters(decode(ids[:tokens]))

        first = bisect(range(len(ids)), head, key=lambda tokens: len(read(tokens)))
        within = max(first - 1 - _MOST_TOKENS, 0)
        parts = [read(tokens) for tokens in range(within, len(ids) + 1)]
        return [(0, 0)] * within + [
            (len(after) if before == after else min(len(before), len(after) - 1), len(after))
            for before, after in pairwise(parts)
        ]


def _letters(text: str) -> str:
    """A text in lower case, without white space: tokenizers change both."""
    return "".join(text.lower().split())


def _common(a: str, b: str) -> int:
    """The number of letters in the common beginning of two texts."""
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(a, b, strict=False)))


def _of(encoder: str | None, given: Iterable[Given]) -> list[Given]:
    return [each for each in given if each.encoder == encoder]


def _kept(given: Given, rows: int, *, grows: bool) -> dict[int, int]:
    """The row of the token states by a token's position in the encoder's input.

    A pipeline returns the states of all tokens, or of all but the head of its template. If states
    grow with the prompt, it returns those of the tokens that are not padding, with or without the
    head.
    """
    n, real = len(given.ids), given.real
    if rows >= n:
        return {at: at for at in range(n)}
    if not grows:
        return {at: at - (n - rows) for at in range(n - rows, n)}
    if rows == len(real) + 1 and real[:1] == (0,):  # Kandinsky 3 keeps one token of padding
        return {at: at for at in range(rows)}
    return {at: i for i, at in enumerate(real[max(len(real) - rows, 0) :])}


def listening(pipeline: Any, heard: list[Given]) -> dict[str, Callable[..., Any]]:
    """A replacement for each text encoder's ``forward`` that also adds its input to ``heard``."""
    return {
        name: partial(_noted, heard, name, encoder.forward, tokenizer)
        for name, (encoder, tokenizer) in _encoders_of(pipeline).items()
    }


def decoders_of(pipeline: Any) -> dict[str, Decode]:
    """For each text encoder, a function that turns its token ids into text."""
    return {name: _decoder(tokenizer) for name, (_, tokenizer) in _encoders_of(pipeline).items()}


def _encoders_of(pipeline: Any) -> dict[str, tuple[Any, Any]]:
    """Each text encoder of a pipeline with its tokenizer."""
    found = {}
    for name in pipeline.components:
        encoder = getattr(pipeline, name, None)
        tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"), None)
        tokenizer = tokenizer or getattr(pipeline, "processor", None)
        if name.startswith("text_encoder") and encoder is not None and tokenizer is not None:
            found[name] = (encoder, getattr(tokenizer, "tokenizer", tokenizer))  # of a processor
    return found


def _noted(
    heard: list[Given], name: str, forward: Callable[..., Any], tokenizer: Any,
    *args: Any, **options: Any,
) -> Any:  # fmt: skip
    """Note a text encoder's input in ``heard``, and return what its ``forward`` returns."""
    given = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | options
    if isinstance(ids := given.get("input_ids"), Tensor):
        mask = given.get("attention_mask")
        heard += given_to(name, ids, mask, getattr(tokenizer, "pad_token_id", None))
    return forward(*args, **options)


def given_to(encoder: str, ids: Tensor, mask: Tensor | None, padding: int | None) -> list[Given]:
    """The input of an encoder at one call, one entry for each text.

    ``ids``: ``(n, tokens)``; ``mask``: of the same shape, 0 for padding, or None; ``padding``: the
    id of a padding token. Within a text, a token with this id is not padding.
    """
    found = []
    for i, row in enumerate(ids.tolist()):
        if mask is not None and mask.shape == ids.shape:
            real = mask[i].nonzero().flatten().tolist()
        else:
            others = [at for at, token in enumerate(row) if token != padding]
            real = list(range(others[0], others[-1] + 1)) if others else []
        found.append(Given(encoder, tuple(row), tuple(real)))
    return found


def _decoder(tokenizer: Any) -> Decode:
    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    return decode
