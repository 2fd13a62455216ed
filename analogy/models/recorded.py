"""Record what a pipeline's ``encode_prompt`` returns, split it by prompt, and put it together.

``encode_prompt`` returns nested tensors whose meaning no signature gives. It is found by encoding:
one prompt once and twice shows the batch axis of each tensor, and prompts of other words and of
another length show which tensors depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from analogy.core.errors import ModelError
from analogy.steering.conditioning import Conditioning

#: The key, in a conditioning's ``carried``, of the number of tokens in each of its tensors.
TOKENS = "tokens"

#: Prompts that show what depends on words, and what on the number of tokens. The first two have
#: the same words and therefore the same number of tokens.
PROBES = (
    "a red car",
    "a car red",
    "a photograph of two small green houses beside an old stone tower",
)


class Batch(Enum):
    """How a value holds several prompts, if not along an axis of a tensor."""

    ALIKE = "the same value for any number of prompts"
    LIST = "a list with a tensor for each prompt"
    CUMULATIVE = "the cumulative number of tokens, from 0"


class TensorRole(Enum):
    """What a tensor is to a steering method."""

    FIXED = "the same for every prompt, such as the negative prompt's states"
    STATES = "token states"
    POOLED = "a pooled vector"
    CARRIED = "not steered: masks, positions, numbers of tokens"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor of a recording.

    - ``name``: its path in the recording, such as ``0.1``;
    - ``batch``: the axis of the prompts, or another way to hold several of them;
    - ``tokens``: the axis that grows with the prompt, not counting the batch axis, or None;
    - ``value``: the tensor of one prompt, which also gives the dtype and the device;
    - ``has_zeros``: True if shorter prompts have more tokens of zeros, which are padding.
    """

    name: str
    role: TensorRole
    batch: int | Batch
    tokens: int | None
    value: Tensor
    has_zeros: bool = False

    def of_one(self, value: Tensor) -> Tensor:
        """One prompt's tensor, without the batch axis."""
        if self.batch is Batch.CUMULATIVE:
            return value[1:]
        return value if isinstance(self.batch, Batch) else value.select(self.batch, 0)

    def together(self, values: Sequence[Tensor]) -> Any:
        """What ``encode_prompt`` returns for several prompts, from one tensor for each prompt."""
        if self.batch is Batch.LIST:
            return list(values)
        if self.batch is Batch.CUMULATIVE:
            lengths = torch.cat([torch.zeros_like(values[0]), *values])
            return lengths.cumsum(0).to(lengths.dtype)
        if self.batch is Batch.ALIKE:
            return values[0]
        return torch.stack(list(values), dim=self.batch)


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of what a pipeline's encoding returns: nested values, one for each call."""

    calls: tuple[Any, ...]

    def leaves(self) -> list[Leaf]:
        """Its tensors, in order."""
        return [leaf for _, leaf in _flat(self.calls) if isinstance(leaf, Leaf)]

    @property
    def is_single(self) -> bool:
        """True if several prompts cannot be put into one batch."""
        return any(
            leaf.batch is Batch.ALIKE and leaf.role is not TensorRole.FIXED
            for leaf in self.leaves()
        )

    @property
    def has_lengths(self) -> bool:
        """True if the shape, a mask or the zeros of an encoded prompt depend on its token count."""
        return any(
            leaf.tokens is not None or leaf.has_zeros or leaf.role is TensorRole.CARRIED
            for leaf in self.leaves()
        )

    def conditioning(self, calls: Sequence[Any]) -> Conditioning:
        """The conditioning of one prompt from its recording, without fixed tensors.

        Raises ``ModelError`` if the recording does not have this layout.
        """
        recorded = {".".join(path): value for path, value in _flat(tuple(calls))}
        found: dict[TensorRole, dict[str, Tensor]] = {role: {} for role in TensorRole}
        tokens = []
        for leaf in self.leaves():
            value = recorded.get(leaf.name)
            if not isinstance(value, Tensor) or value.ndim != leaf.value.ndim:
                raise ModelError(
                    f"expected {leaf.name} of the encoded prompt as a tensor of "
                    f"{leaf.value.ndim} axes, as for other prompts, got {_described(value)}"
                )
            if leaf.role is not TensorRole.FIXED:
                own = leaf.of_one(value)
                tokens.append(0 if leaf.tokens is None else own.shape[leaf.tokens])
                if leaf.role is TensorRole.STATES and leaf.tokens is not None:
                    own = own.movedim(leaf.tokens, -2)
                found[leaf.role][leaf.name] = own
        return Conditioning(
            found[TensorRole.STATES],
            found[TensorRole.POOLED],
            {**found[TensorRole.CARRIED], TOKENS: torch.tensor(tokens)},
            has_length=self.has_lengths,
        )

    def returned(self, conditionings: Sequence[Conditioning]) -> list[Any]:
        """What each call returns for conditionings that have the same numbers of tokens."""
        tensors = [each.tensors() for each in conditionings]
        made: dict[str, Any] = {}
        for leaf in self.leaves():
            if leaf.role is TensorRole.FIXED:
                made[leaf.name] = leaf.together([leaf.of_one(leaf.value)] * len(conditionings))
                continue
            own = [_as_recorded(leaf, each[leaf.name]) for each in tensors]
            made[leaf.name] = leaf.together([each.to(leaf.value) for each in own])
        return [
            _mapped(call, lambda value: made[value.name] if isinstance(value, Leaf) else value)
            for call in self.calls
        ]


def _as_recorded(leaf: Leaf, tensor: Tensor) -> Tensor:
    """One prompt's tensor with the axis of tokens in the pipeline's own place."""
    if leaf.role is not TensorRole.STATES or leaf.tokens is None:
        return tensor
    return tensor.movedim(-2, leaf.tokens)


def layout_of(record: Callable[[Sequence[str]], Sequence[Any]], *, is_single: bool) -> Layout:
    """Find a pipeline's layout.

    ``record``: takes prompts, and gives what each call of the pipeline's encoding returns for them.
    ``is_single``: the pipeline encodes one prompt at a time. Raises ``ModelError`` for values that
    fit no layout.
    """
    once, other, longer = (tuple(record([text])) for text in PROBES)
    twice = once if is_single else tuple(record([PROBES[0]] * 2))
    return Layout(_layout((), once, twice, other, longer))


def _layout(path: tuple[str, ...], once: Any, twice: Any, other: Any, longer: Any) -> Any:
    others = (twice, other, longer)
    name = ".".join(path)
    if any(type(each) is not type(once) for each in others):
        raise ModelError(
            f"expected {name} as {_described(once)} for every prompt, got "
            f"{', '.join(map(_described, others))}"
        )
    if isinstance(once, Tensor):
        return _leaf(name, once, twice, other, longer)
    if isinstance(once, list) and len(once) == 1 and len(twice) == 2:
        return [_leaf(f"{name}.0", once[0], None, other[0], longer[0])]
    if isinstance(once, dict):
        return {
            key: _layout((*path, key), once[key], twice[key], other[key], longer[key])
            for key in once
        }
    if isinstance(once, (list, tuple)):
        if any(len(each) != len(once) for each in others):
            raise ModelError(f"expected {name} of {len(once)} values for every prompt")
        return type(once)(
            _layout((*path, str(i)), *each)
            for i, each in enumerate(zip(once, *others, strict=True))
        )
    if any(each != once for each in others):
        raise ModelError(f"expected {name} as {once!r:.80} for every prompt, got {longer!r:.80}")
    return once


def _leaf(name: str, once: Tensor, twice: Tensor | None, other: Tensor, longer: Tensor) -> Leaf:
    """The batch axis, token axis and role of a tensor. ``twice``: None for a tensor of a list."""
    batch = Batch.LIST if twice is None else _batch(name, once, twice)
    of_one = Leaf(name, TensorRole.FIXED, batch, None, once).of_one
    one, like, long = (of_one(each) for each in (once, other, longer))
    if _equal(one, like) and _equal(one, long):
        return Leaf(name, TensorRole.FIXED, batch, None, once)
    grown = [i for i, (a, b) in enumerate(zip(one.shape, long.shape, strict=True)) if a != b]
    if len(grown) > 1:
        raise ModelError(
            f"expected {name} to grow with the prompt along one axis, got {tuple(one.shape)} and "
            f"{tuple(long.shape)}"
        )
    role, tokens = _role(one, like, long, grown), grown[0] if grown else None
    has_zeros = role is TensorRole.STATES and not grown and _zeros(one) != _zeros(long)
    return Leaf(name, role, batch, tokens, once, has_zeros)


def _zeros(states: Tensor) -> int:
    """The number of tokens whose values are all zero."""
    return int((states == 0).all(dim=-1).sum())


def _batch(name: str, once: Tensor, twice: Tensor) -> int | Batch:
    if once.shape == twice.shape:
        return Batch.ALIKE
    doubled = [
        i for i, (a, b) in enumerate(zip(once.shape, twice.shape, strict=True)) if b == 2 * a
    ]
    if len(doubled) == 1 and once.shape[doubled[0]] == 1:
        return doubled[0]
    if once.shape == (2,) and twice.shape == (3,) and once[0] == 0:
        return Batch.CUMULATIVE
    raise ModelError(
        f"expected an axis of {name} that has an entry for each prompt, got {tuple(once.shape)} "
        f"for one prompt and {tuple(twice.shape)} for two"
    )


def _role(one: Tensor, like: Tensor, long: Tensor, grown: list[int]) -> TensorRole:
    is_mask = all(((each == 0) | (each == 1)).all() for each in (one, like, long))
    if not one.is_floating_point() or is_mask or _equal(one, like) or one.ndim == 0:
        return TensorRole.CARRIED
    if one.ndim == 1:
        return TensorRole.CARRIED if grown else TensorRole.POOLED
    return TensorRole.STATES


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(each, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, each in enumerate(value):
            yield from _flat(each, (*path, str(i)))
    else:
        yield path, value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, list) and [getattr(e, "batch", None) for e in value] == [Batch.LIST]:
        return change(value[0])
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(each, change) for each in value)
    return change(value)


def _described(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
