"""Prompts of other lengths brought onto the source prompt's tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.generation.edits import check_lengths, edit_of, onto
from analogy.generation.worker import steered
from analogy.steering.base import METHODS
from analogy.steering.conditioning import Conditioning, Reading, Span
from analogy.store.grid import Job

PAIR = Pair("p", "color", "red", "blue", "a red car", "a blue car")
DIM = 2


def encoded(text: str, *, most: int = 12, seed: int = 0) -> Conditioning:
    """A token for each letter, ``<`` before and ``>!`` after them, padding and a mask."""
    real = len(text) + 3
    drawn = torch.randn(most, DIM, generator=torch.Generator().manual_seed(seed + len(text)))
    letters = tuple((i + 1, i, i + 1) for i in range(len(text)))
    reading = Reading(letters, (real - 2, real - 1), tuple(range(real, most)))
    mask = torch.arange(most) < real
    return Conditioning(
        {"states": drawn}, {"pooled": drawn[0] * 2}, {"mask": mask}, {"states": reading}, True
    )


def test_a_prompt_is_brought_onto_the_sources_tokens():
    """By hand: word by its mean, tail from the end, padding by its mean, the rest left."""
    source, other = encoded("a red"), encoded("blue", seed=3)
    made = onto(source, [(2, 5)], other, [(0, 4)])
    own, theirs = source.states["states"].numpy(), other.states["states"].numpy()
    expected = own.copy()
    expected[[3, 4, 5]] = theirs[1:5].mean(0)
    expected[[6, 7]] = theirs[[5, 6]]
    expected[8:] = theirs[7:].mean(0)
    np.testing.assert_allclose(made.states["states"].numpy(), expected, atol=1e-6)
    assert torch.equal(made.carried["mask"], source.carried["mask"])
    assert torch.equal(made.pooled["pooled"], other.pooled["pooled"])


def test_a_prompt_without_its_word_takes_part_with_all_its_tokens():
    source, other = encoded("a red"), encoded("blue", seed=3)
    made = onto(source, [], other, [])
    mean = other.states["states"][1:5].mean(0)
    torch.testing.assert_close(made.states["states"][1:6], mean.expand(5, DIM))


def test_without_readings_states_are_compared_position_by_position_or_refused():
    source, other = (replace(each, readings={}) for each in (encoded("a red"), encoded("blue")))
    assert torch.equal(onto(source, [], other, []).states["states"], other.states["states"])
    longer = replace(encoded("blue", most=14), readings={})
    with pytest.raises(ModelError, match=r"of equal token counts, .* got 12 and 14"):
        onto(source, [], longer, [])


def texts(**options) -> dict[str, Conditioning]:
    words = (PAIR.source_prompt, PAIR.target_prompt, PAIR.source_word, PAIR.target_word)
    return {text: encoded(text, most=20, seed=i, **options) for i, text in enumerate(words)}


def test_word_and_span_keep_the_sources_length():
    given = texts()
    a, b = (given[word].states["states"] for word in ("red", "blue"))
    edit = edit_of(PAIR, METHODS.get("span"), (), given)
    assert edit.tokens is not None
    assert edit.tokens.prompt == (Span("states", (3, 4, 5), (0, DIM)),)
    source = given[PAIR.source_prompt].states["states"]
    direction = b[1:5].mean(0) - a[1:4].mean(0)
    by_span = METHODS.get("span").condition(edit, 0.5).states["states"] - source
    torch.testing.assert_close(by_span[3:6], (0.5 * direction).expand(3, DIM))
    assert by_span.abs().sum(1).nonzero().flatten().tolist() == [3, 4, 5]
    edit = edit_of(PAIR, METHODS.get("word"), (), given)
    by_word = METHODS.get("word").condition(edit, 0.5).states["states"] - source
    torch.testing.assert_close(by_word[3:6], (0.5 * direction).expand(3, DIM))
    torch.testing.assert_close(by_word[10:12], 0.5 * (b[5:7] - a[4:6]))  # the tail
    assert not by_word[[0, 1, 2, 6, 7, 8, 9]].any()


def test_conditionings_of_one_length_are_left_as_they_are():
    given = {text: replace(each, has_length=False) for text, each in texts().items()}
    edit = edit_of(PAIR, METHODS.get("word"), (), given)
    assert edit.source_word is given["red"]
    assert edit.target_word is given["blue"]


@pytest.mark.parametrize("method", ["lerp", "slerp", "switch", "guidance"])
def test_prompts_of_unequal_lengths_are_not_mixed(method):
    given = texts()
    job = Job(PAIR, 0.5, 0, method, "")
    with pytest.raises(ModelError, match=rf"pair p: .* equal token counts, .* method {method} is"):
        steered(job, [PAIR], given)
    same = replace(PAIR, target_prompt="a tan car")
    steered(replace(job, pair=same), [same], {**given, "a tan car": encoded("a tan car", most=20)})
    with pytest.raises(ModelError, match="pair p"):
        check_lengths(PAIR, METHODS.get(method), edit_of(PAIR, METHODS.get(method), (), given))


@pytest.mark.parametrize(("method", "alpha"), [("lerp", 1.0), ("prompt", 1.0), ("prompt", 0.3)])
def test_the_target_prompts_own_conditioning_may_have_another_length(method, alpha):
    given = {**texts(), PAIR.target_prompt: encoded(PAIR.target_prompt, most=25)}
    assert steered(Job(PAIR, alpha, 0, method, ""), [PAIR], given) is given[PAIR.target_prompt]
