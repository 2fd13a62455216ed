"""What every pipeline of :mod:`zoo` is held to where prompts differ in length.

An image at alpha 0.001 differs from that at alpha 0 by at most 5 % of what alpha 1 changes, by
every method, for prompts of equal and of unequal token counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from analogy.core.errors import ModelError
from analogy.core.records import WHOLE, Pair
from analogy.core.words import places
from analogy.generation.edits import check_lengths, edit_of
from analogy.generation.worker import texts
from analogy.models.families import Sampling
from analogy.models.generator import Generator, latents_for
from analogy.models.reading import decoders_of
from analogy.models.replay import encoded
from analogy.models.replay_table import ROWS
from analogy.steering.base import METHODS, mixes_prompts
from analogy.steering.conditioning import Conditioning

#: Equal numbers of tokens in every tokenizer of letters, and unequal ones.
EVEN = Pair("even", "color", "tan", "pug", "a tan car", "a pug car")
UNEVEN = Pair("uneven", "color", "tan", "blue", "a tan car", "a blue car")
OTHERS = (
    Pair("other-1", "color", "fig", "pale", "a fig hat on me", "a pale hat on me"),
    Pair("other-2", "color", "gold", "tan", "the gold cup", "the tan cup"),
)

#: All texts of these pairs.
TEXTS = tuple(texts([EVEN, UNEVEN, *OTHERS]))

#: ``switch`` is a step function of alpha; ``prompt`` is the target at every alpha above 0;
#: ``activation`` needs cross-attention, which has tests of its own; ``guidance`` adds alpha times a
#: difference of noise predictions to any family's in the same way.
METHODS_OF_TEXT = ("lerp", "slerp", "word", "span", "category", "random")
NEAR, SHARE = 1e-3, 0.05

#: Layers after tokens; without the template's tail as well; two encoders' tokens in a row.
UNREAD = {"Krea2Pipeline", "LongCatImagePipeline", "StableDiffusion3PAGPipeline"}


def check(
    pipeline: Any, family: Any, size: int, given: Mapping[str, Conditioning] | None = None
) -> None:
    """Raise AssertionError where a method's images jump, or a pair that has to is not refused.

    ``given``: the conditioning of each of :data:`TEXTS`.
    """
    if given is None:
        given = Generator(pipeline, steps=1, guidance=3.0, size=size).encode(TEXTS)
    noise = latents_for(EVEN, 0, family.latent_shape(pipeline, size))
    sampling = Sampling(1, 3.0, size)
    source = given[EVEN.source_prompt]

    def denoised(conditionings: list[Conditioning]) -> torch.Tensor:
        places = noise.expand(len(conditionings), *noise.shape)
        return family.denoise(pipeline, conditionings, source, places, sampling)

    steered = dict(_steered(given, is_fixed=not source.has_length))
    wanted = [source, *(each for ends in steered.values() for each in ends)]
    with torch.inference_mode():
        made = torch.cat([denoised(wanted[i : i + 6]) for i in range(0, len(wanted), 6)])
    moved = iter((made[1:] - made[0]).abs().flatten(1).amax(1).tolist())
    for what in steered:
        near, far = next(moved), next(moved)
        assert far > 0, what
        assert near <= SHARE * far, (what, near, far)


def _steered(
    given: Mapping[str, Conditioning], *, is_fixed: bool
) -> Iterator[tuple[str, tuple[Conditioning, Conditioning]]]:
    for pair in (EVEN, UNEVEN):
        for name in METHODS_OF_TEXT:
            method = METHODS.get(name)
            edit = edit_of(pair, method, OTHERS, given)
            if name == "span" and not edit.source.readings:
                continue
            if mixes_prompts(method, WHOLE) and pair is UNEVEN and not is_fixed:
                try:
                    check_lengths(pair, method, edit)
                except ModelError:
                    continue
                raise AssertionError(f"{name} takes prompts of unequal lengths")
            ends = method.condition(edit, NEAR), method.condition(edit, 1.0)
            yield f"{name}, {pair.id}", ends
            if mixes_prompts(method, WHOLE):  # ... and at the target's end
                assert _is_close(method.condition(edit, 1.0 - NEAR), edit.target, edit.source)


def _is_close(made: Conditioning, target: Conditioning, source: Conditioning) -> bool:
    return all(
        (made.states[name] - end).norm() <= SHARE * (end - source.states[name]).norm()
        for name, end in target.states.items()
    )


def check_words(pipeline: Any, family: Any) -> None:
    """Raise AssertionError unless the tokens of a word spell it, and are the first that differ."""
    with torch.inference_mode():
        [source, target] = family.encode(pipeline, [EVEN.source_prompt, EVEN.target_prompt])
        _, given = encoded(family, pipeline, EVEN.source_prompt)
    decoders = decoders_of(pipeline)
    unread = type(pipeline).__name__ in UNREAD
    assert (source.readings.keys() == source.states.keys()) != unread
    for name, reading in source.readings.items():
        rows = reading.tokens(places(EVEN.source_prompt, EVEN.source_word))
        at = [i for i, (row, _, _) in enumerate(reading.text) if row in rows]
        assert "".join(_spelled(reading.text[i], EVEN.source_prompt) for i in at) == "tan"
        differs = (source.states[name] != target.states[name]).movedim(-2, 0).flatten(1).any(1)
        first = int(differs.int().argmax())
        assert first in (rows[0], 0)  # 0: by an encoder that is not causal
        # ... and the encoder was given these tokens there.
        assert any(_has(decoders[each.encoder], each.ids, len(rows)) for each in given)
    row = ROWS[type(pipeline).__name__]
    assert (row.counted == ()) == (not source.has_length)


def _spelled(token: tuple[int, int, int], prompt: str) -> str:
    _, start, end = token
    return prompt[start:end].strip()


def _has(decode: Any, ids: tuple[int, ...], count: int) -> bool:
    """True if as many tokens in a row spell the word."""
    return any(
        decode(ids[i : i + count]).strip().lower() == EVEN.source_word for i in range(len(ids))
    )
