"""Latents from (pair, seed) alone; images that depend on no others and equal plain diffusers'."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from analogy.generator import Generator, latents_for
from analogy.records import Pair

PAIR = Pair("color-01", "color", "red", "blue", "a red car", "a blue car")
PROMPTS = ("a red car", "two cups at night", "a happy face", "the green boat", "a tiny star")


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two uint8 images, in steps of 1/255."""
    assert a.dtype == b.dtype == np.uint8
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.fixture(scope="module")
def requests(generator):
    """Five conditionings with their latents."""
    encoded = generator.encode(PROMPTS)
    pairs = [replace(PAIR, source_prompt=prompt) for prompt in PROMPTS]
    latents = torch.stack([latents_for(pair, 0, generator.latent_shape) for pair in pairs])
    return [encoded[prompt] for prompt in PROMPTS], latents


@pytest.fixture(scope="module")
def images(generator, requests):
    """Their images, made in one batch."""
    return generator.generate(*requests)


# --- latents


def test_latents_are_the_same_at_every_call():
    state = torch.get_rng_state()
    first = latents_for(PAIR, 0, (16, 8, 8))
    torch.manual_seed(123)
    assert torch.equal(latents_for(PAIR, 0, (16, 8, 8)), first)
    torch.set_rng_state(state)


def test_drawing_latents_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    latents_for(PAIR, 0, (4, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)


def test_latents_are_those_of_earlier_versions():
    """A change here makes every run folder and baseline stale."""
    drawn = latents_for(PAIR, 0, (3,)).tolist()
    assert drawn == pytest.approx([-1.709328, 0.415908, -0.385001], abs=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        {"id": "mine"},
        {"category": "mine"},
        {"source_word": "a red"},
        {"target_word": "a blue"},
    ],
)
def test_a_pair_is_known_by_its_prompts(other):
    assert torch.equal(latents_for(replace(PAIR, **other), 3, (8,)), latents_for(PAIR, 3, (8,)))


def test_latents_differ_between_seeds_and_pairs():
    pairs = [
        PAIR,
        replace(PAIR, source_prompt="a red hat"),
        replace(PAIR, target_prompt="a blue hat"),
        replace(PAIR, source_prompt=PAIR.target_prompt, target_prompt=PAIR.source_prompt),
    ]
    latents = [latents_for(pair, seed, (64,)) for pair in pairs for seed in (0, 1, 2**63 - 1)]
    correlations = torch.corrcoef(torch.stack(latents)) - torch.eye(len(latents))
    assert correlations.abs().max() < 0.5


def test_latents_are_standard_normal():
    drawn = latents_for(PAIR, 0, (16, 64, 64))
    assert drawn.dtype == torch.float32
    assert drawn.device.type == "cpu"
    assert abs(drawn.mean().item()) < 0.02
    assert abs(drawn.std().item() - 1.0) < 0.02


# --- encoding


def test_each_distinct_prompt_is_encoded_once(generator, pipeline, monkeypatch):
    asked = []
    encode = pipeline.encode_prompt

    def spy(prompts, **options):
        asked.extend(prompts)
        return encode(prompts, **options)

    monkeypatch.setattr(pipeline, "encode_prompt", spy)
    encoded = generator.encode(["a red car", "two cups", "a red car"], batch_size=1)
    assert asked == ["a red car", "two cups"]
    assert set(encoded) == set(asked)


def test_encoding_is_float32_and_independent_of_the_batch(generator):
    whole = generator.encode(PROMPTS)
    for prompt, encoded in generator.encode(PROMPTS[::-1], batch_size=2).items():
        assert encoded.states.dtype == encoded.pooled.dtype == torch.float32
        torch.testing.assert_close(encoded.states, whole[prompt].states, atol=1e-5, rtol=0)
        torch.testing.assert_close(encoded.pooled, whole[prompt].pooled, atol=1e-5, rtol=0)


# --- images


def test_images_are_uint8_and_differ(images):
    assert images.shape == (len(PROMPTS), 64, 64, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == len(PROMPTS)


@pytest.mark.parametrize("chosen", [[0], [3], [4, 0], [2, 1, 0], [0, 0, 3]])
def test_an_image_does_not_depend_on_its_batch(generator, requests, images, chosen):
    conditionings, latents = requests
    alone = generator.generate([conditionings[i] for i in chosen], latents[chosen])
    assert apart(alone, images[chosen]) <= 1


def test_an_image_equals_plain_diffusers(pipeline, requests, images):
    plain = pipeline(
        prompt=PROMPTS[0],
        latents=requests[1][:1],
        num_inference_steps=2,
        guidance_scale=3.0,
        height=64,
        width=64,
    ).images[0]
    assert apart(np.asarray(plain), images[0]) <= 1


@pytest.mark.parametrize(("guidance", "rows"), [(3.0, 4), (1.0, 2), (0.0, 2)])
def test_the_negative_branch_is_computed_only_with_guidance(pipeline, requests, guidance, rows):
    conditionings, latents = requests
    batches = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    try:
        generator = Generator(pipeline, steps=2, guidance=guidance, size=64)
        image = generator.generate(conditionings[:2], latents[:2])[0]
    finally:
        hook.remove()
    assert batches == [rows, rows]
    plain = pipeline(
        prompt=PROMPTS[0],
        latents=latents[:1],
        num_inference_steps=2,
        guidance_scale=guidance,
        height=64,
        width=64,
    ).images[0]
    assert apart(np.asarray(plain), image) <= 1


def test_the_settings_matter(pipeline, requests, images):
    conditionings, latents = requests
    for steps, guidance in ((3, 3.0), (2, 5.0)):
        other = Generator(pipeline, steps=steps, guidance=guidance, size=64)
        assert apart(other.generate(conditionings[:1], latents[:1]), images[:1]) > 1


def test_latents_are_left_as_they_are(generator, requests):
    conditionings, latents = requests
    before = latents[:1].clone()
    generator.generate(conditionings[:1], latents[:1])
    assert torch.equal(latents[:1], before)


# --- threads


def test_a_twin_draws_the_same_and_neither_tokenises_while_it_draws(
    generator, requests, images, monkeypatch
):
    twin = generator.twin()
    for each in (generator, twin):
        monkeypatch.setattr(each._pipeline, "encode_prompt", _only_given(each._pipeline))
    assert apart(twin.generate(*requests), images) <= 1
    assert apart(generator.generate(*requests), images) <= 1


def _only_given(pipeline):
    """The pipeline's own ``encode_prompt``, which may pass embeddings on but encode nothing."""
    own = pipeline.encode_prompt

    def encode_prompt(prompt=None, prompt_embeds=None, **given):
        assert prompt_embeds is not None, "tokenised while drawing"
        return own(prompt=prompt, prompt_embeds=prompt_embeds, **given)

    return encode_prompt
