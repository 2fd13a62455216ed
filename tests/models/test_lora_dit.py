"""A LoRA of a diffusion transformer, fused by --lora: FLUX.1 and Stable Diffusion 3."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import zoo
from broken import save

from analogy.core.errors import ModelError
from analogy.models.generator import Generator
from analogy.models.loading import load_pipeline
from analogy.models.sources import find_pipeline

pytest.importorskip("peft")

RANK = 2
#: Linear layers of both streams, of one stream, and outside of the blocks.
LAYERS = {
    "FluxPipeline": (
        "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.0.ff.net.0.proj", "single_transformer_blocks.0.proj_mlp",
        "x_embedder",
    ),
    "sd3": (
        "transformer_blocks.0.attn.to_v", "transformer_blocks.0.attn.add_q_proj",
        "transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.ff.net.2",
    ),
}  # fmt: skip

#: The classes that take a scale of a LoRA's own, here 1/2.
HALF = {"FluxPipeline"}


@pytest.fixture(scope="module", params=LAYERS)
def model(request, tmp_path_factory):
    """A class's name, its saved folder, and a LoRA in diffusers' format with its tensors."""
    name, place = request.param, tmp_path_factory.mktemp("dit")
    pipeline = built(name)
    pipeline.save_pretrained(place / name)
    drawn = torch.Generator().manual_seed(0)
    state = {}
    for layer in LAYERS[name]:
        out, into = pipeline.transformer.get_submodule(layer).weight.shape
        for end, shape in (("A", (RANK, into)), ("B", (out, RANK))):
            key = f"transformer.{layer}.lora_{end}.weight"
            state[key] = torch.randn(shape, generator=drawn) * 0.3
        if name in HALF:
            state[f"transformer.{layer}.alpha"] = torch.tensor(RANK / 2)
    save(state, place / "style.safetensors")
    return name, place / name, place / "style.safetensors", state


def built(name):
    return tiny.build(name) if name in tiny.MODELS else zoo.build(name)


def fused(folder, file, **settings):
    source = find_pipeline(str(folder), dtype="float32", lora=str(file), **settings)
    return load_pipeline(source, device="cpu", dtype="float32")


def image(pipeline):
    """Of one prompt, uint8 (1, 32, 32, 3) as integers."""
    generator = Generator(pipeline, steps=2, guidance=3.0, size=32)
    noise = torch.randn(1, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    return generator.generate([generator.encode(["a red car"])["a red car"]], noise).images.astype(
        int
    )


def test_the_image_is_that_of_diffusers_own_adapter(model):
    name, folder, file, state = model
    suites, own = fused(folder, file), built(name)
    plain = image(own)
    weights = {layer: own.transformer.get_submodule(layer).weight.clone() for layer in LAYERS[name]}
    own.load_lora_weights(str(file.parent), weight_name=file.name)
    assert np.abs(image(own) - image(suites)).max() <= 1
    assert np.abs(image(suites) - plain).max() > 5
    for layer, before in weights.items():
        down, up = (state[f"transformer.{layer}.lora_{end}.weight"] for end in "AB")
        change = suites.transformer.get_submodule(layer).weight - before
        torch.testing.assert_close(change, up @ down / (2 if name in HALF else 1))


def test_a_lora_of_another_transformer_is_refused(model, tmp_path):
    _, folder, _, state = model
    strange = {key.replace("blocks.0", "blocks.7"): each.clone() for key, each in state.items()}
    save(strange, tmp_path / "style.safetensors")
    with pytest.raises(ModelError, match=r"--lora .*style\.safetensors: "):
        fused(folder, tmp_path / "style.safetensors")
    save({**state, **strange}, tmp_path / "style.safetensors")
    with pytest.raises(ModelError, match=r"tensors have no place: .*blocks\.7"):
        fused(folder, tmp_path / "style.safetensors")


def test_it_is_fused_into_a_transformer_of_a_file_of_its_own(model):
    name, folder, file, _ = model
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    one, other = fused(folder, file), fused(folder, file, transformer=str(weights))
    for layer in LAYERS[name]:
        a, b = (each.transformer.get_submodule(layer).weight for each in (one, other))
        assert torch.equal(a, b)
