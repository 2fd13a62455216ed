"""The data of steering methods: the conditioning of an image, and the edit of a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """Which part of an encoded text each token of the token states belongs to.

    - ``text``: for each token of the prompt itself, its position along axis -2, and the range of
      the prompt's characters that it covers: the first, and the one after the last;
    - ``tail``: positions of what a template puts after the prompt, such as an end token;
    - ``padding``: positions of padding.

    All other tokens come before the prompt: they are a template's head.
    """

    text: tuple[tuple[int, int, int], ...]
    tail: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()

    def tokens(self, places: Sequence[tuple[int, int]] | None = None) -> tuple[int, ...]:
        """Positions of the prompt's tokens that overlap these places, as in :attr:`text`.

        ``places``: ranges of the prompt's characters; None for all of the prompt's tokens.
        """
        return tuple(
            at
            for at, start, end in self.text
            if places is None or any(start < last and end > first for first, last in places)
        )


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The conditioning of the denoiser for one image: tensors by name.

    The names are those of the pipeline's arguments, such as ``prompt_embeds``. With replay they are
    the places of the tensors in what ``encode_prompt`` returns, such as ``0.1``. Methods steer
    ``states`` and ``pooled``, which they receive in float32 on the CPU:

    - ``states``: token states, each ``(..., tokens, dim)``;
    - ``pooled``: pooled vectors, each ``(dim,)``; a family may have none;
    - ``carried``: tensors of the prompt that are not steered, such as masks: any shape and dtype;
    - ``readings``: by the states' names, which part of the prompt their tokens belong to; without
      states for which this is unknown;
    - ``has_length``: True if the shapes, masks or zeros of a model's conditionings differ between
      prompts of different token counts.

    Raises ``ValueError`` for tensors of another shape, and for a name that occurs twice.
    """

    states: Mapping[str, Tensor]
    pooled: Mapping[str, Tensor] = field(default_factory=dict)
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    readings: Mapping[str, Reading] = field(default_factory=dict)
    has_length: bool = False

    def __post_init__(self) -> None:
        shapes = self.shapes()
        if len(shapes) < len(self.states) + len(self.pooled) + len(self.carried):
            raise ValueError("conditioning: expected each name once in states, pooled and carried")
        if any(len(shapes[name]) < 2 for name in self.states) or any(
            len(shapes[name]) != 1 for name in self.pooled
        ):
            raise ValueError(
                "conditioning: expected states (..., tokens, dim) and pooled (dim,), "
                f"got {', '.join(f'{name} {shape}' for name, shape in shapes.items())}"
            )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {**self.states, **self.pooled, **self.carried}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}

    def map(self, change: Callable[..., Tensor], *others: Conditioning) -> Conditioning:
        """Apply ``change`` to each steered tensor and those of the same name in ``others``.

        Carried tensors stay the same. Raises ``ValueError`` if the others' names or shapes differ.
        """
        for other in others:
            _check_alike(self, other)
        return replace(
            self,
            states={
                name: change(tensor, *(other.states[name] for other in others))
                for name, tensor in self.states.items()
            },
            pooled={
                name: change(tensor, *(other.pooled[name] for other in others))
                for name, tensor in self.pooled.items()
            },
        )

    def plus(self, other: Conditioning, alpha: float) -> Conditioning:
        """``self + alpha * other``; ``self`` at alpha 0, where adding 0 would turn -0 into +0."""
        if alpha == 0.0:
            return self
        return self.map(lambda a, b: torch.add(a, b, alpha=alpha), other)

    def minus(self, other: Conditioning) -> Conditioning:
        """``self - other``: the direction from ``other`` to ``self``."""
        return self.map(torch.sub, other)

    def is_close(self, other: Conditioning, atol: float) -> bool:
        """True if no steered value differs by more than ``atol`` plus 1e-5 of the other's."""
        mine, theirs = ({**each.states, **each.pooled} for each in (self, other))
        return all(torch.allclose(mine[name], theirs[name], atol=atol) for name in mine)

    def changed(self, change: Callable[[str, Tensor], Tensor]) -> Conditioning:
        """A conditioning with ``change(name, tensor)`` for each tensor, carried ones included."""
        return replace(
            self,
            states={name: change(name, tensor) for name, tensor in self.states.items()},
            pooled={name: change(name, tensor) for name, tensor in self.pooled.items()},
            carried={name: change(name, tensor) for name, tensor in self.carried.items()},
        )

    def kept(self) -> Conditioning:
        """A copy on the CPU, in the same dtypes."""
        return self.changed(lambda _, tensor: tensor.cpu().clone())

    def float32(self) -> Conditioning:
        """The same with the steered tensors in float32, as methods receive them."""
        steered = (*self.states.values(), *self.pooled.values())
        if all(tensor.dtype == torch.float32 for tensor in steered):
            return self
        return self.map(Tensor.float)

    def has_length_of(self, other: Conditioning) -> bool:
        """True if both have tensors of the same shapes, the same masks and the same padding."""
        return (
            self.shapes() == other.shapes()
            and all(
                torch.equal(tensor, other.carried[name]) for name, tensor in self.carried.items()
            )
            and all(
                reading.padding == other.readings[name].padding
                for name, reading in self.readings.items()
                if name in other.readings
            )
        )


#: Conditionings that are summed before the sum is added to the total. torch sums in this order for
#: the mean of a stacked tensor of fewer than 256, so that :func:`mean` is the same bit for bit.
_SUMMED = 16


def mean(values: Iterable[Conditioning]) -> Conditioning:
    """The mean of one conditioning or more. They are read one by one, so that memory holds few.

    Raises ``ValueError`` if there are none, or if their names or shapes differ.
    """
    total: Conditioning | None = None
    part: Conditioning | None = None
    count = 0
    for each in values:
        part = each if part is None else part.map(torch.add, each)
        count += 1
        if count % _SUMMED == 0:
            total, part = part if total is None else total.map(torch.add, part), None
    if part is not None:
        total = part if total is None else total.map(torch.add, part)
    if total is None:
        raise ValueError("mean: expected one conditioning or more, got none")
    return total.map(lambda tensor: tensor / count)


def _check_alike(one: Conditioning, other: Conditioning) -> None:
    mine, theirs = (
        {name: tuple(tensor.shape) for name, tensor in {**each.states, **each.pooled}.items()}
        for each in (one, other)
    )
    if mine != theirs:
        raise ValueError(
            f"conditioning: expected another of the same names and shapes, {mine}, got {theirs}"
        )


@dataclass(frozen=True, slots=True)
class Words:
    """A pair's two words, and its two prompts as texts.

    ``encoded``: the conditioning by text. It may be read from a file at each access: do not keep
    those of many pairs.
    """

    source_word: str
    target_word: str
    source_prompt: str
    target_prompt: str
    encoded: Mapping[str, Conditioning]

    @property
    def source(self) -> Conditioning:
        """The source prompt's conditioning."""
        return self.encoded[self.source_prompt]

    @property
    def target(self) -> Conditioning:
        """The target prompt's conditioning."""
        return self.encoded[self.target_prompt]


@dataclass(frozen=True, slots=True)
class Span:
    """A word's tokens in the part of the token states that one text encoder gives.

    ``states``: the states' name in the conditioning; ``tokens``: positions along axis -2; ``dims``:
    the encoder's dimensions along axis -1, the first and the one after the last.
    """

    states: str
    tokens: tuple[int, ...]
    dims: tuple[int, int]

    def of(self, encoded: Conditioning) -> Tensor:
        """The mean over the word's tokens, ``(..., dims)``."""
        start, end = self.dims
        return encoded.states[self.states][..., list(self.tokens), start:end].mean(dim=-2)


@dataclass(frozen=True, slots=True)
class WordTokens:
    """A pair's words as tokens: a span for each text encoder, in the same order.

    ``prompt``: the source word's tokens in the source prompt; ``source``, ``target``: the tokens of
    each word, encoded alone. All are empty if no encoder reads the source word in its prompt.
    """

    prompt: tuple[Span, ...]
    source: tuple[Span, ...]
    target: tuple[Span, ...]

    def plus(self, prompt: Span, source: Span, target: Span) -> WordTokens:
        """These spans and those of one more encoder."""
        return WordTokens((*self.prompt, prompt), (*self.source, source), (*self.target, target))


@dataclass(frozen=True, slots=True)
class Edit:
    """The input of a steering method.

    - ``source`` and ``target``: the encoded prompts;
    - ``words``: the source and the target word;
    - ``source_word`` and ``target_word``: the bare words, encoded as prompts of their own;
    - ``others``: the category's other pairs, with their prompts encoded, empty unless the method
      needs them;
    - ``seed``: of the null's direction, different for every pair;
    - ``tokens``: the words' tokens, None unless the method needs them.
    """

    source: Conditioning
    target: Conditioning
    words: tuple[str, str]
    source_word: Conditioning
    target_word: Conditioning
    others: tuple[Words, ...]
    seed: int
    tokens: WordTokens | None = None
