"""Recordings taken apart by prompt and put together, by encoders written for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from analogy.core.errors import ModelError
from analogy.models.recorded import TensorRole, layout_of
from analogy.models.replay import generator_of

PAIR = ("a red car", "one very large green house")


def states(text: str, dim: int = 3) -> Tensor:
    """(words, dim), by the letters of each word and its place."""
    rows = [[len(word) + i + ord(word[0]) / 100] for i, word in enumerate(text.split())]
    return torch.tensor(rows) * torch.arange(1.0, dim + 1)


def padded(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """States (n, most words, 3) and their mask."""
    most = max(len(text.split()) for text in prompts)
    made, mask = torch.zeros(len(prompts), most, 3), torch.zeros(len(prompts), most)
    for i, text in enumerate(prompts):
        own = states(text)
        made[i, : len(own)], mask[i, : len(own)] = own, 1.0
    return made, mask


def record(prompts):
    """Two calls, with one of each kind of value that a pipeline returns."""
    made, mask = padded(list(prompts))
    lengths = torch.tensor([0, *(len(text.split()) for text in prompts)]).cumsum(0)
    by_layer = torch.stack([made, made + 1])  # (layers, n, words, 3)
    negative = torch.ones(len(prompts), 4, 3) / 2
    return [
        (made, mask, None, negative, torch.zeros(4, 3), "text"),
        {
            "layers": by_layer,
            "pooled": made.sum(dim=1),
            "list": [states(text) for text in prompts],
            "lengths": lengths,
            "stacked": made[:, :, None, :].expand(-1, -1, 2, -1),
        },
    ]


@pytest.fixture
def layout():
    return layout_of(record, is_single=False)


def test_roles_are_found(layout):
    roles = {leaf.name: leaf.role for leaf in layout.leaves()}
    assert roles == {
        "0.0": TensorRole.STATES, "0.1": TensorRole.CARRIED, "0.3": TensorRole.FIXED,
        "0.4": TensorRole.FIXED,
        "1.layers": TensorRole.STATES, "1.pooled": TensorRole.POOLED, "1.list.0": TensorRole.STATES,
        "1.lengths": TensorRole.CARRIED, "1.stacked": TensorRole.STATES,
    }  # fmt: skip
    assert not layout.is_single


@pytest.mark.parametrize("prompt", PAIR)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_was_recorded_is_returned(layout, prompt, n):
    """One prompt's conditioning n times is what the encoder gives for n of it."""
    made = layout.conditioning(record([prompt]))
    returned, expected = layout.returned([made] * n), record([prompt] * n)
    assert returned[0][2] is None
    assert returned[0][5] == "text"
    assert isinstance(returned[0], tuple)
    for i in (0, 1, 3, 4):
        assert torch.equal(returned[0][i], expected[0][i])
    assert len(returned[1]["list"]) == n
    for mine, theirs in zip(returned[1]["list"], expected[1]["list"], strict=True):
        assert torch.equal(mine, theirs)
    for name in ("layers", "pooled", "lengths", "stacked"):
        assert torch.equal(returned[1][name], expected[1][name])


def test_states_have_their_tokens_before_the_last_axis(layout):
    made = layout.conditioning(record([PAIR[0]]))
    assert {name: made.shapes()[name] for name in made.states} == {
        "0.0": (3, 3), "1.layers": (2, 3, 3), "1.list.0": (3, 3), "1.stacked": (2, 3, 3),
    }  # fmt: skip


def test_a_layout_says_whether_lengths_differ(layout):
    """By an axis of tokens, a mask, or padding of zeros; a pooled vector alone has no length."""
    assert layout.has_lengths
    assert layout.conditioning(record([PAIR[0]])).has_length

    def fixed(prompts):
        rows = torch.stack([states(text).sum(0).expand(4, 3) for text in prompts])
        return [(rows, rows[:, 0])]

    def masked(prompts):
        mask = torch.tensor([[len(text.split()) > i for i in range(20)] for text in prompts])
        return [(*fixed(prompts)[0], mask)]

    def zeroed(prompts):
        (rows, pooled), (_, mask) = fixed(prompts)[0], masked(prompts)[0][1:]
        return [(rows[:, :1] * mask[..., None], pooled)]

    assert layout_of(zeroed, is_single=False).has_lengths
    assert not layout_of(fixed, is_single=False).has_lengths
    assert layout_of(masked, is_single=False).has_lengths


def test_types_are_those_of_the_encoder():
    def halves(prompts):
        return [padded(list(prompts))[0].bfloat16()]

    layout = layout_of(halves, is_single=False)
    kept = layout.conditioning(halves([PAIR[0]])).kept()
    assert kept.states["0"].dtype == torch.bfloat16
    steered = kept.float32()
    assert steered.states["0"].dtype == torch.float32
    assert steered.float32() is steered
    for given in (kept, steered):
        assert layout.returned([given])[0].dtype == torch.bfloat16
        assert torch.equal(layout.returned([given])[0], halves([PAIR[0]])[0])


def test_a_pipeline_of_one_prompt_is_single():
    assert layout_of(lambda prompts: [padded(["a tree", *prompts])[0]], is_single=True).is_single
    no_batch = layout_of(lambda prompts: [states(prompts[0])[:2]], is_single=False)
    assert no_batch.is_single


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda p: len(p[0]), "expected 0 as 9 for every prompt, got"),
        (lambda p: torch.ones(3 * len(p), 2) * len(p[0]), "has an entry for each prompt"),
        (lambda p: (None,) * len(p), "expected 0 of 1 values for every prompt"),
        (lambda p: None if len(p[0]) > 9 else torch.ones(1, 2), "as a tensor .* for every prompt"),
        (lambda p: torch.ones(len(p), len(p[0]), len(p[0])), "along one axis"),
    ],
)
def test_what_fits_no_layout_is_said(value, said):
    with pytest.raises(ModelError, match=said):
        layout_of(lambda prompts: [value(prompts)], is_single=False)


def test_another_prompt_of_another_layout_is_refused(layout):
    with pytest.raises(ModelError, match=r"expected 0.0 of the encoded prompt as a tensor of 3"):
        layout.conditioning([(None,) * 6, {}])


def test_generators_follow_from_the_signs_of_the_noise():
    """The last digits of noise differ between processors; the seed does not."""
    noise = torch.randn(63, generator=torch.Generator().manual_seed(0))
    seeds = {generator_of(each).initial_seed() for each in (noise, noise * 1.0001)}
    assert len(seeds) == 1
    assert generator_of(-noise).initial_seed() not in seeds
    assert 0 <= seeds.pop() < 2**63
