"""Latents from (pair, seed) alone; images that depend on no others and equal plain diffusers'."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import MODELS, SIZE, build

from analogy.core.records import Pair
from analogy.models.generator import Generator, latents_for
from analogy.models.memory import MemoryFullError

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
    return generator.generate(*requests).images


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
        assert {tensor.dtype for tensor in encoded.tensors().values()} == {torch.float32}
        for name, tensor in encoded.tensors().items():
            torch.testing.assert_close(tensor, whole[prompt].tensors()[name], atol=1e-5, rtol=0)


# --- images


def test_images_are_uint8_and_differ(images):
    assert images.shape == (len(PROMPTS), 64, 64, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == len(PROMPTS)


@pytest.mark.parametrize("chosen", [[0], [3], [4, 0], [2, 1, 0], [0, 0, 3]])
def test_an_image_does_not_depend_on_its_batch(generator, requests, images, chosen):
    conditionings, latents = requests
    alone = generator.generate([conditionings[i] for i in chosen], latents[chosen]).images
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
        image = generator.generate(conditionings[:2], latents[:2]).images[0]
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
        assert apart(other.generate(conditionings[:1], latents[:1]).images, images[:1]) > 1


def test_latents_are_left_as_they_are(generator, requests):
    conditionings, latents = requests
    before = latents[:1].clone()
    generator.generate(conditionings[:1], latents[:1])
    assert torch.equal(latents[:1], before)


# --- threads


def test_a_twin_draws_the_same_and_neither_tokenises_while_it_draws(
    generator, requests, images, monkeypatch
):
    clone = generator.clone()
    for each in (generator, clone):
        monkeypatch.setattr(each._pipeline, "encode_prompt", _only_given(each._pipeline))
    assert apart(clone.generate(*requests).images, images) <= 1
    assert apart(generator.generate(*requests).images, images) <= 1


def _only_given(pipeline):
    """The pipeline's own ``encode_prompt``, which may pass embeddings on but encode nothing."""
    own = pipeline.encode_prompt

    def encode_prompt(prompt=None, prompt_embeds=None, **given):
        assert prompt_embeds is not None, "tokenised while drawing"
        return own(prompt=prompt, prompt_embeds=prompt_embeds, **given)

    return encode_prompt


# --- memory


class Crowded:
    """Stands in for a part of a pipeline that has room for so many rows, and counts them."""

    def __init__(self, part, rows: int) -> None:
        self.part, self.rows, self.seen = part, rows, []

    def __call__(self, x, *given, **settings):
        self.seen.append(len(x))
        if len(x) > self.rows:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.part(x, *given, **settings)


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same(
    pipeline, requests, images, monkeypatch
):
    unet = Crowded(pipeline.unet.forward, rows=4)  # two images with guidance
    monkeypatch.setattr(pipeline.unet, "forward", unet)
    generator = Generator(pipeline, steps=2, guidance=3.0, size=64)
    assert apart(generator.generate(*requests).images, images) <= 1
    assert generator.batch_size == 2
    assert unet.seen == [10, 4, 4, 4, 4, 2, 2]
    clone = generator.clone()
    assert clone.batch_size == 2


def test_decoding_that_does_not_fit_is_done_in_parts(pipeline, requests, images, monkeypatch):
    decode = Crowded(pipeline.vae.decode, rows=1)
    monkeypatch.setattr(pipeline.vae, "decode", decode)
    generator = Generator(pipeline, steps=2, guidance=3.0, size=64)
    assert apart(generator.generate(*requests).images, images) <= 1
    assert decode.seen == [5, 2, 1, 1, 1, 1, 1]
    assert generator.batch_size >= 5  # the denoiser had room


@pytest.mark.filterwarnings("ignore:__array__")  # diffusers', which pytest.warns lets out again
def test_an_image_too_large_to_decode_whole_is_decoded_in_tiles(pipeline, requests, monkeypatch):
    generator = Generator(pipeline, steps=2, guidance=3.0, size=64)
    whole = pipeline.vae.decode

    def decode(latents, **settings):
        if not pipeline.vae.use_tiling:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(latents, **settings)

    monkeypatch.setattr(pipeline.vae, "decode", decode)
    monkeypatch.setattr(pipeline.vae, "use_tiling", False)
    with pytest.warns(UserWarning, match="decoded in tiles"):
        made = generator.generate(requests[0][:2], requests[1][:2])
    assert made.images.shape == (2, 64, 64, 3)
    assert not made.faults


def test_one_image_that_does_not_fit_is_an_error_that_says_what_to_do(
    pipeline, requests, monkeypatch
):
    monkeypatch.setattr(pipeline.unet, "forward", Crowded(pipeline.unet.forward, rows=1))
    generator = Generator(pipeline, steps=2, guidance=3.0, size=64)
    with pytest.raises(MemoryFullError, match=r"smaller --size, --dtype .* or another --device"):
        generator.generate(*requests)


@pytest.mark.parametrize("name", MODELS)
def test_drawing_goes_on_without_the_text_encoders(name):
    pipeline = build(name)
    generator = Generator(pipeline, steps=2, guidance=3.0, size=SIZE)
    encoded = generator.encode(["a red car"])["a red car"]
    latents = latents_for(PAIR, 0, generator.latent_shape)[None]
    before = generator.generate([encoded], latents).images
    encoder = weakref.ref(pipeline.text_encoder)
    generator.drop_text_encoders()
    gc.collect()
    assert encoder() is None  # its memory is free
    np.testing.assert_array_equal(generator.generate([encoded], latents).images, before)
    np.testing.assert_array_equal(generator.clone().generate([encoded], latents).images, before)


# --- failed images


@pytest.fixture
def tiny():
    """A tiny SDXL in bfloat16, and a request for three of its images."""
    pipeline = build("sdxl").to(torch.bfloat16)
    generator = Generator(pipeline, steps=2, guidance=1.0, size=SIZE)
    encoded = generator.encode(PROMPTS[:3])
    latents = torch.stack([latents_for(PAIR, seed, generator.latent_shape) for seed in range(3)])
    return pipeline, generator, ([encoded[prompt] for prompt in PROMPTS[:3]], latents)


def spoil(monkeypatch, vae, value: float, row: int, dtypes=(torch.bfloat16,)) -> list:
    """Have decoders of a kind give ``value`` in the place of a row's pixel; lists what they get."""
    kind, seen = type(vae), []
    whole = kind.decode

    def decode(self, latents, **settings):
        seen.append((self.dtype, len(latents)))
        [images] = whole(self, latents, **settings)
        if self.dtype in dtypes:
            images = images.clone()
            images[min(row, len(images) - 1), ..., 0] = value
        return [images]

    monkeypatch.setattr(kind, "decode", decode)
    return seen


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_overflows_in_half_precision_is_decoded_again_in_float32(tiny, monkeypatch, value):
    pipeline, generator, request = tiny
    expected = generator.generate(*request).images
    seen = spoil(monkeypatch, pipeline.vae, value, row=1)
    made = generator.generate(*request)
    assert seen == [(torch.bfloat16, 3), (torch.float32, 1)]
    assert not made.faults
    assert apart(made.images[[0, 2]], expected[[0, 2]]) == 0
    assert 0 < apart(made.images[1], expected[1]) < 16  # bfloat16's rounding
    assert pipeline.vae.dtype == torch.bfloat16


def test_what_stays_broken_is_named_and_the_others_are_kept(tiny, monkeypatch):
    pipeline, generator, request = tiny
    expected = generator.generate(*request).images
    both = (torch.bfloat16, torch.float32)
    spoil(monkeypatch, pipeline.vae, float("nan"), row=1, dtypes=both)
    made = generator.generate(*request)
    assert made.faults == {1: "NaN or infinity from the decoder"}
    assert apart(made.images[[0, 2]], expected[[0, 2]]) == 0


def test_a_denoiser_that_overflows_is_named_and_nothing_is_decoded_again(tiny, monkeypatch):
    pipeline, generator, request = tiny
    broken = request[1].clone()
    broken[2, 0, 0, 0] = torch.nan
    seen = spoil(monkeypatch, pipeline.vae, 0.0, row=0, dtypes=())
    made = generator.generate(request[0], broken)
    assert made.faults == {2: "NaN or infinity from the denoiser"}
    assert seen == [(torch.bfloat16, 3)]


def test_a_black_image_is_no_picture(tiny, monkeypatch):
    pipeline, generator, request = tiny
    whole = type(pipeline.vae).decode
    monkeypatch.setattr(
        type(pipeline.vae), "decode",
        lambda self, latents, **settings: [whole(self, latents, **settings)[0] * 0 - 1],
    )  # fmt: skip
    assert generator.generate(*request).faults == dict.fromkeys(range(3), "black")


@pytest.mark.filterwarnings("ignore:.*upcast_vae:FutureWarning")  # diffusers of itself
def test_a_vae_that_overflows_in_float16_is_computed_in_float32_as_the_pipeline_does():
    pipeline = build("sdxl").to(torch.float16)
    assert pipeline.vae.config.force_upcast
    generator = Generator(pipeline, steps=2, guidance=3.0, size=SIZE)
    encoded = generator.encode(["a red car"])["a red car"]
    latents = latents_for(PAIR, 0, generator.latent_shape)[None]
    made = generator.generate([encoded], latents)
    plain = pipeline(
        "a red car", latents=latents.half(), num_inference_steps=2, guidance_scale=3.0,
        height=SIZE, width=SIZE,
    ).images[0]  # fmt: skip
    assert apart(made.images[0], np.asarray(plain)) <= 1
    assert pipeline.vae.dtype == torch.float16
