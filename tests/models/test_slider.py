"""The method slider: held to diffusers' own adapters; a strength for each row; all undone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny
import torch
import zoo
from broken import save
from leftovers import in_threads, left_behind, state_of

from analogy.core.errors import AnalogyError, ModelError
from analogy.core.records import Pair, Window
from analogy.generation.fitting import check_version
from analogy.generation.worker import changed_alike
from analogy.models.generator import Generator, latents_for
from analogy.models.lora import fuse_lora
from analogy.models.memory import MemoryFullError
from analogy.models.slider import open_slider
from analogy.steering.base import (
    METHODS,
    Identity,
    Intervention,
    Row,
    SelectiveMethod,
    with_method,
)
from analogy.store.grid import Grid

pytest.importorskip("peft")

STEPS, GUIDANCE, RANK = 2, 3.0, 2
PAIRS = [
    Pair("color-01", "color", "red", "blue", "a red car", "a blue car"),
    Pair("color-02", "color", "blue", "red", "a blue cup", "a red cup"),
    Pair("count-01", "count", "one red hat", "two red hats", "one red hat", "two red hats"),
    Pair("size-01", "size", "tiny", "large", "a tiny cup", "a large cup"),
]
ALPHAS = (1.0, -0.5, 0.0, 2.0)
BLOCK = "mid_block.attentions.0.transformer_blocks.0"

#: Modules of a denoiser that a LoRA changes: linear ones, a convolution, and those of the time.
MODULES = {
    "sdxl": (
        f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_v", f"{BLOCK}.attn2.to_out.0",
        f"{BLOCK}.ff.net.0.proj", "mid_block.resnets.0.conv1", "add_embedding.linear_1",
        "down_blocks.1.attentions.0.proj_in",
    ),
    "FluxPipeline": (
        "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_k_proj",
        "single_transformer_blocks.0.attn.to_v", "single_transformer_blocks.0.proj_mlp",
    ),
}  # fmt: skip


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two uint8 images, in steps of 1/255."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def built(name):
    return tiny.build(name) if name in tiny.MODELS else zoo.build(name)


def denoiser_of(pipeline):
    return getattr(pipeline, "unet", None) or pipeline.transformer


def adapter(pipeline, names, seed: int = 0, size: float = 0.3):
    """A LoRA in diffusers' format, that changes images plainly."""
    drawn = torch.Generator().manual_seed(seed)
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    state = {}
    for name in names:
        shape = denoiser_of(pipeline).get_submodule(name).weight.shape
        up = (shape[0], RANK, *(1 for _ in shape[2:]))
        for end, size_of in (("A", (RANK, *shape[1:])), ("B", up)):
            state[f"{part}.{name}.lora_{end}.weight"] = torch.randn(size_of, generator=drawn) * size
    return state


def kohya(state, alpha: float):
    """The same LoRA as kohya's scripts and Concept Sliders name it, with a scale of its own."""
    made = {}
    for key, value in state.items():
        name, _, end = key.partition(".lora_")
        name = "lora_unet_" + name.partition(".")[2].replace(".", "_")
        made[f"{name}.lora_{'down' if end[0] == 'A' else 'up'}.weight"] = value
        made[f"{name}.alpha"] = torch.tensor(alpha)
    return made


def generator_of(pipeline, **settings):
    given = {"steps": STEPS, "guidance": GUIDANCE, "size": tiny.SIZE, **settings}
    return Generator(pipeline, **given)


def inputs(generator, pairs):
    encoded = generator.encode([pair.source_prompt for pair in pairs])
    latents = torch.stack([latents_for(pair, 0, generator.latent_shape) for pair in pairs])
    return [encoded[pair.source_prompt] for pair in pairs], latents


@pytest.fixture(scope="module", params=MODULES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tiny_generator(family):
    return generator_of(built(family))


@pytest.fixture(scope="module")
def state(family, tiny_generator):
    return adapter(tiny_generator._pipeline, MODULES[family])


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    made = tmp_path_factory.mktemp("slider") / "mine.safetensors"
    save(state, made)
    return made


@pytest.fixture(scope="module")
def method(file):
    return METHODS.get(f"slider:{file}")


@pytest.fixture(scope="module")
def rows():
    return [Row(pair, alpha) for pair, alpha in zip(PAIRS, ALPHAS, strict=True)]


@pytest.fixture(scope="module")
def batch(tiny_generator):
    return inputs(tiny_generator, PAIRS)


@pytest.fixture(scope="module")
def plain(tiny_generator, batch):
    return tiny_generator.generate(*batch).images


@pytest.fixture(scope="module")
def images(tiny_generator, batch, method, rows):
    """At mixed strengths in one batch."""
    return tiny_generator.generate(*batch, method, rows).images


# --- the formula, by diffusers


def test_it_is_diffusers_own_adapter_at_a_scale(family, file, batch, images, plain):
    pipeline = built(family)
    pipeline.load_lora_weights(file, adapter_name="theirs")
    generator = generator_of(pipeline)
    for i, alpha in enumerate(ALPHAS):
        pipeline.set_adapters(["theirs"], [alpha])
        own = generator.generate([batch[0][i]], batch[1][i : i + 1]).images[0]
        assert apart(images[i], own) <= 1
        assert (apart(own, plain[i]) > 10) == (alpha != 0)


def test_it_is_the_lora_in_the_weights(family, file, batch, images):
    pipeline = built(family)
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(lora_scale=ALPHAS[3])
    pipeline.unload_lora_weights()
    own = generator_of(pipeline).generate([batch[0][3]], batch[1][3:]).images[0]
    assert apart(images[3], own) <= 1


@pytest.mark.parametrize("scale", [0.5])
def test_other_formats_give_the_same_image(
    family, state, tiny_generator, batch, rows, images, tmp_path, scale
):
    """kohya's and Concept Sliders' own: an alpha beside the matrices, divided by the rank."""
    save(kohya(state, scale * RANK), tmp_path / "s.safetensors")
    method = METHODS.get(f"slider:{tmp_path / 's.safetensors'}")
    weaker = [replace(row, alpha=row.alpha / scale) for row in rows]
    assert apart(tiny_generator.generate(*batch, method, weaker).images, images) <= 1


def test_sgm_names_of_kohyas_sdxl_files_give_the_same_image(tmp_path):
    pipeline = tiny.build("sdxl")
    generator = generator_of(pipeline)
    state = adapter(pipeline, [f"{BLOCK}.attn1.to_q"])
    theirs = {
        key.replace("mid_block_attentions_0", "middle_block_1"): value
        for key, value in kohya(state, RANK).items()
    }
    made = []
    for name, content in (("a", state), ("b", theirs)):
        save(content, tmp_path / f"{name}.safetensors")
        method = METHODS.get(f"slider:{tmp_path / name}.safetensors")
        made.append(generator.generate(*inputs(generator, PAIRS[:1]), method, [Row(PAIRS[0], 3.0)]))
    assert np.array_equal(made[0].images, made[1].images)


# --- rows


def test_alpha_0_is_the_unsteered_image_bit_for_bit(
    tiny_generator, batch, method, rows, plain, images
):
    assert np.array_equal(images[2], plain[2])
    still = [replace(row, alpha=0.0) for row in rows]
    assert np.array_equal(tiny_generator.generate(*batch, method, still).images, plain)


def test_an_image_does_not_depend_on_its_batch(tiny_generator, batch, method, rows, images):
    chosen = [3, 1]
    given = [batch[0][i] for i in chosen], batch[1][chosen]
    made = tiny_generator.generate(*given, method, [rows[i] for i in chosen]).images
    assert apart(made, images[chosen]) <= 1


def test_strengths_and_categories_share_a_batch(method, config):
    assert isinstance(method, Intervention)
    assert isinstance(method, SelectiveMethod)
    mine = replace(with_method(config, method.name), alphas=(0.5, -2.0), seeds=(0,))
    jobs = [job for job in Grid(mine, "model", "Euler/1", PAIRS).jobs() if job.alpha]
    assert changed_alike(jobs) == [jobs]


def test_it_begins_and_ends_at_a_step(tiny_generator, batch, method, rows, plain, images):
    def within(start, end):
        return tiny_generator.generate(*batch, method, rows, Window(start, end)).images

    later, earlier = within(0.5, 1.0), within(0.0, 0.5)
    assert np.array_equal(within(0.0, 1.0), images)
    different = [apart(a, b) > 0 for a, b in ((later, plain), (earlier, plain), (later, earlier))]
    assert different == [True, True, True]
    assert np.array_equal(later[2], plain[2])


def test_without_guidance_too(tiny_generator, batch, method, rows):
    generator = generator_of(tiny_generator._pipeline, guidance=1.0)
    made, still = generator.generate(*batch, method, rows).images, generator.generate(*batch).images
    assert [apart(a, b) > 2 for a, b in zip(made, still, strict=True)] == [True, True, False, True]


# --- what is left behind, and what others see


def test_nothing_is_left_behind_after_images_and_after_an_error(
    tiny_generator, batch, method, rows, images, monkeypatch
):
    pipeline = tiny_generator._pipeline
    before = state_of(pipeline)
    assert not any("lora" in key for key, _ in denoiser_of(pipeline).named_parameters())
    tiny_generator.generate(*batch, method, rows)
    assert left_behind(before, state_of(pipeline)) == []

    def fail(*_, **__):
        raise MemoryFullError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(denoiser_of(pipeline), "forward", fail)
        with pytest.raises(MemoryFullError):
            tiny_generator.generate(*batch, method, rows)
    assert left_behind(before, state_of(pipeline)) == []


def test_other_threads_on_the_same_weights_see_nothing(
    tiny_generator, batch, method, rows, plain, images
):
    twins = [tiny_generator.clone(), tiny_generator.clone()]
    made = {}

    def work(name, twin, *change):
        made[name] = twin.generate(*batch, *change).images

    strong = [replace(row, alpha=5.0) for row in rows]
    with torch.inference_mode(), method.applied(tiny_generator._pipeline, strong):
        in_threads(
            partial(work, "plain", twins[0]), partial(work, "steered", twins[1], method, rows)
        )
    assert apart(made["plain"], plain) <= 1
    assert apart(made["steered"], images) <= 1


# --- which file steers which pair


def folder_of(place, *names):
    """A folder with a LoRA of its own seed in each of these files."""
    pipeline = tiny.build("sdxl")
    for seed, name in enumerate(names):
        (place / name).parent.mkdir(exist_ok=True, parents=True)
        save(adapter(pipeline, [f"{BLOCK}.attn2.to_v"], seed), place / f"{name}.safetensors")
    return METHODS.get(f"slider:{place}")


@pytest.mark.parametrize(
    ("pair", "name", "sign"),
    [
        (PAIRS[0], "color/blue", 1),
        (PAIRS[1], "color/blue", -1),  # none of its target word, one of its source word
        (PAIRS[2], "count/two", 1),  # a part of the words
        (PAIRS[3], "size", 1),
        (replace(PAIRS[0], category="size"), "size", 1),
        (replace(PAIRS[0], target_word="Light Blue"), "color/light_blue", 1),
    ],
)
def test_a_pair_has_its_target_words_file_else_its_source_words_else_its_categorys(
    tmp_path, pair, name, sign
):
    method = folder_of(tmp_path, "color/blue", "color/light_blue", "count/two", "size")
    file, found = method._file(pair)
    assert (file.path, found) == (tmp_path / f"{name}.safetensors", sign)


def test_each_row_of_a_batch_has_its_own_file_and_sign(tmp_path):
    method = folder_of(tmp_path, "color/blue", "size", "count/two")
    generator = generator_of(tiny.build("sdxl"))
    rows = [Row(pair, 4.0) for pair in PAIRS]
    conditionings, latents = inputs(generator, PAIRS)
    together = generator.generate(conditionings, latents, method, rows).images
    for i, (name, alpha) in enumerate(
        (("color/blue", 4.0), ("color/blue", -4.0), ("count/two", 4.0), ("size", 4.0))
    ):
        single = open_slider(str(tmp_path / f"{name}.safetensors"), "slider:one")
        given = [conditionings[i]], latents[i : i + 1], single, [Row(PAIRS[i], alpha)]
        assert apart(generator.generate(*given).images[0], together[i]) <= 1


def test_a_category_without_a_file_is_refused_before_the_run(tmp_path, config, model_source):
    method = folder_of(tmp_path, "color/blue", "size")
    method.check_pairs([PAIRS[0], PAIRS[3]])
    with pytest.raises(
        ModelError,
        match=r"expected count.safetensors or count/two red hats.safetensors for the pair count-01",
    ):
        method.check_pairs(PAIRS)


# --- what is refused


def refused(name, sentence):
    with pytest.raises(AnalogyError, match=sentence):
        METHODS.get(name).version  # noqa: B018


def test_a_file_that_cannot_be_used_is_said(tmp_path):
    place = tmp_path / "s.safetensors"
    refused(
        f"slider:{place}", "expected a .safetensors file, or a folder with CATEGORY.safetensors"
    )
    refused("slider:", "expected slider:PATH, got no path")
    place.write_bytes(b"none")
    refused(f"slider:{place}", "s.safetensors: not a safetensors file")
    state = adapter(tiny.build("sdxl"), [f"{BLOCK}.attn2.to_v"])
    key = next(iter(state))
    save({**state, key: state[key] / 0}, place)
    refused(f"slider:{place}", f"{key}: expected finite numbers, got NaN or infinity")
    save({"text_encoder.x.lora_A.weight": torch.ones(2, 2), **state}, place)
    refused(f"slider:{place}", "a LoRA of the denoiser alone, got weights of a text encoder")
    save(state, place, lora_adapter_metadata='{"unet.auto_mapping": {"parent_library": "os"}}')
    refused(f"slider:{place}", "auto_mapping")
    place.rename(tmp_path / "s.bin")
    refused(f"slider:{tmp_path / 's.bin'}", "expected weights as .safetensors, found them pickled")
    refused(f"slider:{tmp_path}", "s.bin: expected weights as .safetensors, found them pickled")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: {k: v[:, :3] if "_A" in k else v for k, v in state.items()}, "does not fit"),
        (lambda state: dict([*state.items()][:1]), "does not fit|have no place"),
        (lambda state: {f"transformer.x.{k[-13:]}": v for k, v in state.items()}, "none of its w"),
        (
            lambda state: (
                state | {f"unet.{BLOCK}.attn2.to_v.lora_magnitude_vector": torch.ones(64)}
            ),
            "expected a plain LoRA",
        ),
    ],
    ids=["another width", "a key missing", "another family", "DoRA"],
)
def test_a_lora_that_does_not_fit_leaves_nothing_behind(tmp_path, change, sentence):
    pipeline = tiny.build("sdxl")
    save(change(adapter(pipeline, [f"{BLOCK}.attn2.to_v"])), tmp_path / "s.safetensors")
    method = METHODS.get(f"slider:{tmp_path / 's.safetensors'}")
    before = state_of(pipeline)
    with (
        pytest.raises(ModelError, match=rf"--method slider:.*s.safetensors: .*({sentence})"),
        method.applied(pipeline, [Row(PAIRS[0], 1.0)]),
    ):
        pass
    assert left_behind(before, state_of(pipeline)) == []


def test_its_version_is_of_its_files_and_in_each_images_key(tmp_path, config):
    method = folder_of(tmp_path, "color/blue", "size")
    mine = with_method(config, method.name)
    assert mine.method_version == method.version != ""
    assert METHODS.get(method.name) is method
    check_version(mine, {method.name})
    save(adapter(tiny.build("sdxl"), [f"{BLOCK}.attn2.to_v"], 9), tmp_path / "size.safetensors")
    assert METHODS.get(method.name).version != method.version


# --- the shipped ones


def test_the_shipped_sliders_steer_every_shipped_pair_by_its_target_word(shipped_pairs):
    shipped = METHODS.get("slider")
    shipped.check_pairs(shipped_pairs)
    assert {shipped._file(pair)[1] for pair in shipped_pairs} == {1}
    assert len({file.category for file in shipped.files}) == 8
    used = {shipped._file(pair)[0] for pair in shipped_pairs}
    assert used == set(shipped.files)


def test_the_shipped_sliders_version_is_kept_in_the_configuration(config):
    """So that a run by other sliders of that name is known as another."""
    mine = with_method(config, "slider")
    assert mine.method_version == METHODS.get("slider").version != ""
    other = replace(mine, method_version="other")
    assert Identity.in_config(other).version == "other"


def test_a_shipped_slider_moves_the_image_to_that_of_the_target_prompt(generator, pairs):
    conditionings, latents = inputs(generator, pairs[:3])
    encoded = generator.encode([pair.target_prompt for pair in pairs[:3]])
    rows = [Row(pair, 1.0) for pair in pairs[:3]]
    plain = generator.generate(conditionings, latents).images.astype(int)
    target = generator.generate([*encoded.values()], latents).images
    made = generator.generate(conditionings, latents, METHODS.get("slider"), rows).images
    for i in range(3):
        assert (
            np.abs(made[i] - target.astype(int)[i]).mean() < 0.5 * np.abs(plain - target)[i].mean()
        )


def test_it_goes_with_a_lora_in_the_base_models_weights(tmp_path):
    """As --lora fuses it: the two LoRAs' sum."""
    base, mine = tmp_path / "base.safetensors", tmp_path / "mine.safetensors"
    ours, theirs = tiny.build("sdxl"), tiny.build("sdxl")
    for seed, each in enumerate((base, mine)):
        save(adapter(ours, MODULES["sdxl"][seed : seed + 2], seed), each)
        theirs.load_lora_weights(each)
        theirs.fuse_lora(lora_scale=1.0)
        theirs.unload_lora_weights()
    fuse_lora(ours, base)
    generator = generator_of(ours)
    given = inputs(generator, PAIRS[:1])
    change = METHODS.get(f"slider:{mine}"), [Row(PAIRS[0], 1.0)]
    made = generator.generate(*given, *change).images
    assert apart(made, generator_of(theirs).generate(*given).images) <= 1
    assert apart(made, generator.generate(*given).images) > 2
