"""The conditioning of texts: nothing is lost by types, masks, a budget of memory or a file."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from dataclasses import replace

import psutil
import pytest
import torch
import zoo

from analogy.core.errors import StoreError
from analogy.models import texts as texts_module
from analogy.models.families import FAMILIES, Sampling
from analogy.models.memory import give_back
from analogy.models.replay_table import ROWS
from analogy.models.texts import Texts
from analogy.steering.conditioning import Conditioning, Reading

TEXTS = [f"text {i}" for i in range(6)]
#: Of one text below: 8 x 4 states and 3 pooled numbers of 2 bytes, a mask of 8 numbers of 8 bytes.
ONE = 2 * (8 * 4 + 3) + 8 * 8


def conditioning(seed: int, tokens: int = 8) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    seen = torch.arange(tokens) < 2 + seed
    return Conditioning(
        {"states": torch.randn(tokens, 4, generator=generator).bfloat16()},
        {"pooled": torch.randn(3, generator=generator).bfloat16()},
        {"mask": seen.long()},
    )


def filled(**settings) -> Texts:
    texts = Texts(**settings)
    for i, text in enumerate(TEXTS):
        texts.add(text, conditioning(i))
    return texts


@pytest.mark.parametrize(
    ("budget", "in_memory"), [(None, 6), (2 * ONE, 2), (2 * ONE - 1, 1), (0, 0)]
)
def test_what_is_kept_stays_below_the_budget_and_is_given_bit_for_bit(budget, in_memory):
    texts = filled(budget=budget)
    assert texts.bytes_in_memory == in_memory * ONE
    assert (texts.bytes_in_file > 0) == (in_memory < len(TEXTS))
    assert list(texts) == TEXTS
    for i, text in [*enumerate(TEXTS), (0, TEXTS[0])]:
        made, given = conditioning(i), texts[text]
        assert given.states["states"].dtype == given.pooled["pooled"].dtype == torch.float32
        assert torch.equal(given.states["states"], made.states["states"].float())
        assert torch.equal(given.pooled["pooled"], made.pooled["pooled"].float())
        assert torch.equal(given.carried["mask"], made.carried["mask"])
        assert given.carried["mask"].dtype == torch.int64


def test_what_is_kept_is_a_copy():
    made = conditioning(0)
    texts = Texts()
    texts.add("a", made)
    made.states["states"].zero_()
    assert texts["a"].states["states"].any()


@pytest.mark.parametrize("budget", [None, 0])
def test_masked_tokens_are_not_kept_and_are_given_as_zeros(budget):
    texts, whole = filled(budget=budget, hides_masked=True), filled(budget=budget)
    kept = texts.bytes_in_memory + texts.bytes_in_file
    # Of 8 tokens the texts have 2, 3, .. 7.
    assert whole.bytes_in_memory + whole.bytes_in_file - kept >= 2 * 4 * sum(range(1, 7)) - 8
    for text in TEXTS:
        seen = whole[text].carried["mask"].bool()
        given = texts[text].states["states"]
        assert torch.equal(given[seen], whole[text].states["states"][seen])
        assert given.shape == (8, 4)
        assert not given[~seen].any()


def test_freed_memory_is_given_back_between_texts(monkeypatch):
    """By what the encoder made, of which the masked tokens are not kept."""
    given_back = []
    monkeypatch.setattr(texts_module, "give_back", lambda: given_back.append(len(kept)))
    monkeypatch.setattr(texts_module, "_FREED_EVERY", 2 * ONE)
    kept = Texts(hides_masked=True)
    for i, text in enumerate(TEXTS):
        kept.add(text, conditioning(i))
    assert given_back == [2, 4, 6]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_what_is_freed_between_kept_tensors_is_given_back():
    resident = psutil.Process().memory_info
    freed, kept = [], []
    for _ in range(200):
        freed.append(torch.zeros(60_000, dtype=torch.uint8))
        kept.append(torch.zeros(60_000, dtype=torch.uint8))
    del freed
    before = resident().rss
    give_back()
    assert before - resident().rss > 6_000_000
    assert len(kept) == 200


def test_states_without_a_mask_of_their_own_are_kept_whole():
    """Two masks of as many tokens: which one is theirs is not known."""
    made = conditioning(0)
    mask = made.carried["mask"]
    for carried in ({"a": mask, "b": mask}, {"a": mask + 1}, {"a": mask[1:]}, {}):
        texts = Texts(hides_masked=True)
        texts.add("a", Conditioning(made.states, made.pooled, carried))
        assert torch.equal(texts["a"].states["states"], made.states["states"].float())


def test_texts_keep_their_own_lengths_and_what_is_known_of_their_tokens():
    """In memory, and of the second text in the file."""
    texts, reading = Texts(budget=ONE), Reading(((1, 0, 3),), (2,), (3, 4))
    for i, tokens in enumerate((5, 8)):
        made = replace(
            conditioning(i, tokens=tokens), readings={"states": reading}, has_length=True
        )
        texts.add(TEXTS[i], made)
        given = texts[TEXTS[i]]
        assert torch.equal(given.states["states"], made.states["states"].float())
        assert given.shapes() == made.shapes()
        assert given.readings == {"states": reading}
        assert given.has_length
    assert texts.bytes_in_file > 0


def test_a_disk_without_room_is_said(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StoreError, match=r"No space left on device; set TMPDIR to a folder"):
        filled(budget=0)


HIDING = [name for name, row in ROWS.items() if row.hides_masked]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "PixArtSigmaPipeline" else pytest.mark.slow)
        for name in HIDING
    ],
)
def test_masked_tokens_have_no_effect_where_they_are_not_kept(name):
    """The latents of a class are the same bit for bit without what its masks hide."""
    pipeline, family = zoo.build(name), FAMILIES.get(name)
    size = zoo.SIZES.get(name, zoo.SIZE)
    sampling = Sampling(1, 3.0, size)
    with torch.inference_mode():
        [made] = family.encode(pipeline, ["a red car"])
        texts = Texts(hides_masked=True)
        texts.add("a red car", made)
        given = texts["a red car"]
        shortened = [n for n in made.states if not torch.equal(given.states[n], made.states[n])]
        assert shortened
        noise = torch.randn(1, *family.latent_shape(pipeline, size))
        one, other = (
            family.denoise(pipeline, [each], given, noise, sampling) for each in (made, given)
        )
        moved = family.denoise(
            pipeline, [given.map(lambda tensor: 1.5 * tensor)], given, noise, sampling
        )
    assert torch.equal(one, other)
    assert not torch.equal(one, moved)
