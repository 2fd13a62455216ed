"""Steering methods: their identities, what each may look at, and slerp against its formula."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analogy.steering.base import (
    ANY_ALPHA,
    METHODS,
    Intervention,
    Need,
    check_alphas,
    default_alphas,
)
from analogy.steering.conditioning import Conditioning, Edit, Span, Words, WordTokens, mean
from analogy.steering.words import word_direction

TOKENS, DIM, POOLED = 3, 4, 5

#: The methods that steer by the conditioning.
CONDITIONING = [name for name in METHODS.builtin if not isinstance(METHODS.get(name), Intervention)]

quick = settings(deadline=None, max_examples=30)
alphas = st.floats(-5, 5).map(lambda a: round(a, 3))


def both(states, pooled) -> Conditioning:
    """One of token states and a pooled vector."""
    return Conditioning({"states": states}, {"pooled": pooled})


def steer(method: str, edit: Edit, alpha: float) -> Conditioning:
    return METHODS.get(method).condition(edit, alpha)


def conditionings():
    """Values of which float32 adds and doubles many without rounding, -0.0 among them."""
    values = st.one_of(st.just(-0.0), st.integers(-64, 64).map(lambda k: k / 16))
    return st.builds(
        lambda states, pooled: both(torch.from_numpy(states), torch.from_numpy(pooled)),
        arrays(np.float32, (TOKENS, DIM), elements=values),
        arrays(np.float32, (POOLED,), elements=values),
    )


def encoded_words(
    source_word: str, target_word: str, source: Conditioning, target: Conditioning
) -> Words:
    encoded = {"the source": source, "the target": target}
    return Words(source_word, target_word, "the source", "the target", encoded)


def words():
    name = st.sampled_from(["red", "blue", "green"])
    return st.builds(encoded_words, name, name, conditionings(), conditionings())


edits = st.builds(
    Edit,
    source=conditionings(),
    target=conditionings(),
    words=st.just(("red", "blue")),
    source_word=conditionings(),
    target_word=conditionings(),
    others=st.lists(words(), min_size=1, max_size=3).map(tuple),
    seed=st.integers(0, 2**63 - 1),
)


def drawn(seed: int = 0, **changes) -> Edit:
    """An edit of normally distributed values."""
    generator = torch.Generator().manual_seed(seed)

    def conditioning() -> Conditioning:
        return both(
            torch.randn(TOKENS, DIM, generator=generator), torch.randn(POOLED, generator=generator)
        )

    others = tuple(encoded_words("green", "pink", conditioning(), conditioning()) for _ in range(3))
    edit = Edit(
        source=conditioning(),
        target=conditioning(),
        words=("red", "blue"),
        source_word=conditioning(),
        target_word=conditioning(),
        others=others,
        seed=7,
        tokens=tokens(1),
    )
    return replace(edit, **changes)


def tokens(place: int) -> WordTokens:
    """One token of a prompt, and of the words the first and the second."""
    spans = (Span("states", at, (0, DIM)) for at in ((place,), (0,), (1,)))
    return WordTokens(*((span,) for span in spans))


def taken(method: str, *alphas: float) -> list[float]:
    """Those of the strengths that the method takes."""
    low, high = getattr(METHODS.get(method), "alpha_limits", ANY_ALPHA)
    return [alpha for alpha in alphas if low <= alpha <= high]


def constant(states: float, pooled: float) -> Conditioning:
    return both(torch.full((TOKENS, DIM), states), torch.full((POOLED,), pooled))


def parts(conditioning: Conditioning) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in conditioning.tensors().values()]


def assert_same_bits(a: Conditioning, b: Conditioning) -> None:
    assert a.shapes() == b.shapes()
    for name, tensor in a.tensors().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.view(torch.int32), b.tensors()[name].view(torch.int32))


def assert_close(a: Conditioning, b, atol: float = 1e-5) -> None:
    for got, expected in zip(parts(a), b if isinstance(b, list) else parts(b), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


# --- every method


@pytest.mark.parametrize("method", METHODS.builtin)
@quick
@given(edit=edits)
def test_alpha_0_is_the_source_bit_for_bit(method, edit):
    assert_same_bits(steer(method, edit, 0.0), edit.source)


@pytest.mark.parametrize("method", METHODS.builtin)
def test_the_input_is_left_alone(method):
    edit = drawn()
    before = copy.deepcopy(edit)
    for alpha in taken(method, -1.0, 0.0, 0.5, 1.0):
        steer(method, edit, alpha)
    for name in ("source", "target", "source_word", "target_word"):
        assert_same_bits(getattr(edit, name), getattr(before, name))
    for other, same in zip(edit.others, before.others, strict=True):
        assert_same_bits(other.source, same.source)
        assert_same_bits(other.target, same.target)


@pytest.mark.parametrize("method", METHODS.builtin)
def test_the_same_arguments_give_the_same_result(method):
    for alpha in taken(method, -0.5, 0.5, 1.0):
        assert_same_bits(steer(method, drawn(), alpha), steer(method, drawn(), alpha))


@pytest.mark.parametrize("method", METHODS.builtin)
def test_the_default_strengths_are_the_methods_own_and_it_takes_them(method):
    """They are known without the method, since importing it takes torch."""
    own = METHODS.get(method)
    assert own.default_alphas == default_alphas(method)
    check_alphas(own, own.default_alphas)


UNSEEN = {
    Need.TARGET: ("target",), Need.TARGET_ALONE: ("target",),
    Need.WORDS: ("source_word", "target_word"), Need.OTHERS: ("others",), Need.TOKENS: ("tokens",),
}  # fmt: skip


@pytest.mark.parametrize("method", CONDITIONING)
def test_a_method_looks_at_what_it_says_it_needs_and_at_nothing_else(method):
    needs = METHODS.get(method).needs
    seen = {name for need in needs for name in UNSEEN[need]}
    unseen = {name for names in UNSEEN.values() for name in names} - seen
    nan = constant(math.nan, math.nan)
    poison = {name: () if name == "others" else nan for name in unseen}
    edit = drawn()
    assert_same_bits(steer(method, replace(edit, **poison), 0.7), steer(method, edit, 0.7))
    for name in seen:
        changes = {"others": edit.others[:1], "tokens": tokens(0)}
        other = {name: changes.get(name, nan)}
        moved = steer(method, replace(edit, **other), 0.7)
        assert not moved.is_close(steer(method, edit, 0.7), atol=1e-6)


@pytest.mark.parametrize("method", ["lerp", "word", "category", "random"])
@quick
@given(edit=edits, alpha=alphas)
def test_these_methods_are_linear_in_alpha(method, edit, alpha):
    whole = steer(method, edit, 1.0).minus(edit.source)
    assert_close(steer(method, edit, alpha), edit.source.plus(whole, alpha), atol=1e-4)


@pytest.mark.parametrize(("states", "pooled"), [((3,), (5,)), ((3, 4), (1, 5)), ((3, 4), ())])
def test_a_conditioning_of_another_shape_is_refused(states, pooled):
    message = r"expected states \(..., tokens, dim\) and pooled \(dim,\)"
    with pytest.raises(ValueError, match=message):
        both(torch.zeros(states), torch.zeros(pooled))


def test_a_name_has_one_role():
    with pytest.raises(ValueError, match="each name once"):
        Conditioning({"a": torch.zeros(2, 3)}, carried={"a": torch.ones(2)})


@pytest.mark.parametrize("method", [name for name in CONDITIONING if name != "span"])
def test_every_tensor_is_steered_and_a_mask_is_carried(method):
    """Two encoders and a mask, as FLUX and Qwen-Image have them: the same as each encoder alone."""
    mask = torch.tensor([True, True, False])

    def wider(one: Conditioning) -> Conditioning:
        return Conditioning({**one.states, "layers": one.states["states"][None] * 2}, one.pooled,
                            {"mask": mask})  # fmt: skip

    edit = drawn()
    others = tuple(
        encoded_words(o.source_word, o.target_word, wider(o.source), wider(o.target))
        for o in edit.others
    )
    names = ("source", "target", "source_word", "target_word")
    wide = replace(edit, others=others, **{name: wider(getattr(edit, name)) for name in names})
    made, alone = steer(method, wide, 0.5), steer(method, edit, 0.5)
    assert made.carried["mask"] is mask
    assert made.shapes()["layers"] == (1, TOKENS, DIM)
    assert not torch.equal(made.states["layers"], wide.source.states["layers"])
    assert torch.equal(made.states["states"], alone.states["states"])
    if method != "random":  # which draws anew for each
        assert torch.equal(made.pooled["pooled"], alone.pooled["pooled"])
        torch.testing.assert_close(made.states["layers"], 2 * alone.states["states"][None])


def test_what_is_of_another_shape_is_not_added():
    short = both(torch.zeros(TOKENS - 1, DIM), torch.zeros(POOLED))
    with pytest.raises(ValueError, match=r"same names and shapes, .*'states': \(3, 4\)"):
        drawn().source.plus(short, 1.0)


# --- lerp and slerp


@pytest.mark.parametrize("method", ["lerp", "slerp"])
@quick
@given(edit=edits)
def test_alpha_1_is_the_target_bit_for_bit(method, edit):
    assert_same_bits(steer(method, edit, 1.0), edit.target)


@quick
@given(edit=edits, alpha=alphas)
def test_lerp_is_the_straight_line(edit, alpha):
    expected = [
        a + alpha * (b - a) for a, b in zip(parts(edit.source), parts(edit.target), strict=True)
    ]
    assert_close(steer("lerp", edit, alpha), expected, atol=1e-4)


def slerp_of_vectors(a: np.ndarray, b: np.ndarray, alpha: float) -> list[float]:
    """Shoemake (1985) on two vectors in float64, one product after the other."""
    length_a, length_b = (math.sqrt(sum(x * x for x in v)) for v in (a, b))
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (length_a * length_b)
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    length = (1 - alpha) * length_a + alpha * length_b
    return [
        length
        * (
            math.sin((1 - alpha) * angle) / math.sin(angle) * x / length_a
            + math.sin(alpha * angle) / math.sin(angle) * y / length_b
        )
        for x, y in zip(a, b, strict=True)
    ]


@pytest.mark.parametrize("alpha", [-0.5, 0.1, 0.5, 0.8, 1.5])
@pytest.mark.parametrize("seed", range(5))
def test_slerp_matches_the_formula(alpha, seed):
    edit = drawn(seed)
    source, target = parts(edit.source), parts(edit.target)
    states = [slerp_of_vectors(a, b, alpha) for a, b in zip(source[0], target[0], strict=True)]
    pooled = slerp_of_vectors(source[1], target[1], alpha)
    assert_close(steer("slerp", edit, alpha), [np.array(states), np.array(pooled)], atol=1e-6)


def test_slerp_halfway_between_a_right_angle():
    source, target = torch.zeros(1, 2), torch.zeros(1, 2)
    source[0, 0], target[0, 1] = 1.0, 3.0
    edit = drawn(
        source=both(source, torch.tensor([1.0, 0.0])),
        target=both(target, torch.tensor([0.0, 1.0])),
    )
    half = steer("slerp", edit, 0.5)
    np.testing.assert_allclose(half.states["states"], [[math.sqrt(2), math.sqrt(2)]], rtol=1e-6)
    np.testing.assert_allclose(half.pooled["pooled"], [math.sqrt(0.5)] * 2, rtol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, 0.0], ids=["equal", "longer", "opposite", "0"])
@pytest.mark.parametrize("alpha", [-0.5, 0.25, 0.9, 2.0])
@pytest.mark.parametrize("swapped", [False, True])
def test_slerp_is_straight_where_there_is_no_arc(factor, alpha, swapped):
    edit = drawn()
    scaled = edit.source.map(lambda tensor: factor * tensor)
    ends = (scaled, edit.source) if swapped else (edit.source, scaled)
    edit = replace(edit, source=ends[0], target=ends[1])
    assert_close(steer("slerp", edit, alpha), steer("lerp", edit, alpha))


def test_slerp_does_not_jump_where_the_arc_becomes_a_line():
    edit = drawn()
    for angle in (3e-5, 9e-5, 1.1e-4, 1e-3):
        turned = edit.source.plus(edit.target, angle)
        near = replace(edit, target=turned)
        assert_close(steer("slerp", near, 0.5), steer("lerp", near, 0.5), atol=1e-5)


# --- prompt


@quick
@given(edit=edits, alpha=st.floats(1e-3, 5.0))
def test_prompt_is_the_target_bit_for_bit_at_every_strength(edit, alpha):
    assert_same_bits(steer("prompt", edit, alpha), edit.target)


def test_prompt_has_no_way_back():
    with pytest.raises(ValueError, match=r"alphas: expected strengths of 0 to 5, .* prompt takes"):
        check_alphas(METHODS.get("prompt"), (1.0, -0.5))


# --- word


def test_word_adds_the_offset_of_the_bare_words():
    edit = drawn(source=constant(1.0, 2.0), source_word=constant(3.0, 4.0))
    edit = replace(edit, target_word=constant(3.5, 6.0))
    assert_same_bits(steer("word", edit, 1.0), constant(1.5, 4.0))
    assert_same_bits(steer("word", edit, -2.0), constant(0.0, -2.0))


@quick
@given(edit=edits, alpha=alphas)
def test_exchanging_the_words_is_steering_backwards(edit, alpha):
    back = replace(edit, source_word=edit.target_word, target_word=edit.source_word)
    assert_close(steer("word", back, alpha), steer("word", edit, -alpha), atol=1e-4)


# --- category


def other(source_word: str, target_word: str, source: float, target: float) -> Words:
    return encoded_words(
        source_word, target_word, constant(source, source), constant(target, -target)
    )


def test_category_goes_between_the_means_where_both_words_recur():
    edit = drawn(
        source=constant(0.0, 0.0),
        others=(
            other("red", "green", 1.0, 100.0),  # says red
            other("pink", "red", 200.0, 3.0),  # says red
            other("blue", "pink", 10.0, 300.0),  # says blue
        ),
    )
    # Mean of blue, (10), minus mean of red, (1 + 3) / 2; pooled: 10 minus (1 - 3) / 2.
    assert_same_bits(steer("category", edit, 1.0), constant(8.0, 11.0))


@pytest.mark.parametrize("n", [1, 16, 17, 49, 98])
def test_a_mean_is_that_of_the_stacked_tensors_bit_for_bit(n):
    generator = torch.Generator().manual_seed(n)
    drawn = [torch.randn(2, 32, 64, generator=generator) for _ in range(n)]
    made = mean(both(states, states[0, 0]) for states in drawn)
    stacked = torch.stack(drawn).mean(0)
    assert_same_bits(made, both(stacked, stacked[0, 0]))


def test_category_minds_no_letter_case_where_words_recur():
    others = (
        other("Red", "green", 1.0, 100.0),
        other("pink", "RED", 200.0, 3.0),
        other("bl\u00fce", "pink", 10.0, 300.0),
    )
    edit = drawn(source=constant(0.0, 0.0), words=("red", "BLU\u0308E"), others=others)
    assert_same_bits(steer("category", edit, 1.0), constant(8.0, 11.0))


@pytest.mark.parametrize("words", [("king", "queen"), ("man", "queen"), ("king", "woman")])
def test_category_takes_the_mean_direction_where_a_word_does_not_recur(words):
    edit = drawn(
        source=constant(1.0, 1.0),
        words=words,
        others=(other("man", "woman", 1.0, 2.0), other("boy", "girl", 10.0, 13.0)),
    )
    # Directions 1 and 3; pooled -3 and -23.
    assert_same_bits(steer("category", edit, 0.5), constant(2.0, -5.5))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_category_without_other_pairs_is_refused(alpha):
    with pytest.raises(ValueError, match=r"needs at least one other pair.*or choose .* 'word'"):
        steer("category", drawn(others=()), alpha)


# --- random


@quick
@given(edit=edits, alpha=alphas)
def test_random_is_as_long_as_the_words_direction_token_by_token(edit, alpha):
    moved = steer("random", edit, alpha).minus(edit.source)
    for got, direction in zip(parts(moved), parts(word_direction(edit)), strict=True):
        expected = abs(alpha) * np.linalg.norm(direction, axis=-1)
        np.testing.assert_allclose(np.linalg.norm(got, axis=-1), expected, rtol=1e-4, atol=1e-4)


def test_random_is_drawn_from_the_edits_seed():
    edit = drawn()
    first = steer("random", edit, 1.0)
    assert_same_bits(steer("random", edit, 1.0), first)
    differs = steer("random", replace(edit, seed=edit.seed + 1), 1.0)
    for one, other in zip(parts(first), parts(differs), strict=True):
        assert not np.allclose(one, other)


def test_random_does_not_touch_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    steer("random", drawn(), 1.0)
    assert torch.equal(torch.rand(2), expected)
