"""A LoRA of a diffusion transformer, fused by --lora: FLUX.1 and Stable Diffusion 3.

In diffusers' format, and in that of kohya's scripts (sd-scripts, ``networks/lora_flux.py``), whose
keys for FLUX.1 have the names of its makers, with ``_`` for each dot.
"""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import tiny
import torch
import zoo
from broken import save
from flux_names import original

from analogy.core.errors import ModelError
from analogy.models.adapters import adapter_of
from analogy.models.generator import Generator
from analogy.models.loading import load_pipeline
from analogy.models.lora_names import by_module
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


# --- kohya's format


def kohya(weights, *, rank=RANK, alpha=None, only=""):
    """A LoRA for each matrix of FLUX.1's weights with its makers' keys, and what it adds to them.

    An alpha of None is not in the file, and counts as the rank.
    """
    drawn = torch.Generator().manual_seed(0)
    state, added = {}, {}
    for key, tensor in weights.items():
        if tensor.ndim != 2 or only not in key:
            continue
        base = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
        out, into = tensor.shape
        down, up = (
            torch.randn(shape, generator=drawn) / 4 for shape in ((rank, into), (out, rank))
        )
        state |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
        if alpha is not None:
            state[f"{base}.alpha"] = torch.tensor(alpha)
        added[key] = up @ down * ((alpha or rank) / rank)
    return state, added


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kohya") / "flux"
    built("FluxPipeline").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("alpha", [None, 0.5, 1.0])
def test_kohyas_format_adds_to_the_makers_weights(flux, tmp_path, alpha):
    """All layers: q, k and v in one matrix, and the last layer's halves in another order."""
    before = original(built("FluxPipeline").transformer.state_dict())
    state, added = kohya(before, alpha=alpha)
    assert len(added) == 23
    save(state, tmp_path / "style.safetensors")
    after = original(fused(flux, tmp_path / "style.safetensors").transformer.state_dict())
    for key, tensor in after.items():
        expected = before[key] + added.get(key, 0)
        torch.testing.assert_close(tensor, expected, msg=key)


def test_the_method_slider_takes_kohyas_format(flux, tmp_path):
    pipeline = load_pipeline(
        find_pipeline(str(flux), dtype="float32"), device="cpu", dtype="float32"
    )
    weights = pipeline.transformer.state_dict()
    state, added = kohya(original(weights), only="linear1", alpha=1.0)
    save(state, tmp_path / "a.safetensors")
    found = adapter_of(pipeline, tmp_path / "a.safetensors", "1", "--method slider")
    block = "single_transformer_blocks.0."
    names = [f"{block}{each}" for each in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert sorted(found) == sorted(names)
    changes = [found[name].scale * found[name].up.weight @ found[name].down.weight
               for name in names]  # fmt: skip
    torch.testing.assert_close(torch.cat(changes), added["single_blocks.0.linear1.weight"])


def test_kohyas_format_is_read_as_diffusers_reads_it():
    """At FLUX.1's own width, which diffusers' conversion has as a constant."""
    with torch.device("meta"):
        network = diffusers.FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, guidance_embeds=True
        )
    sizes = {
        "double_blocks_0_img_attn_qkv": (9216, 3072), "double_blocks_0_txt_attn_qkv": (9216, 3072),
        "double_blocks_0_txt_mlp_0": (12288, 3072), "double_blocks_0_img_attn_proj": (3072, 3072),
        "double_blocks_0_img_mod_lin": (18432, 3072), "single_blocks_0_linear1": (21504, 3072),
        "single_blocks_0_linear2": (3072, 15360), "single_blocks_0_modulation_lin": (9216, 3072),
    }  # fmt: skip
    state = {}
    for name, (out, into) in sizes.items():
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(RANK, into)
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(out, RANK)
        state[f"lora_unet_{name}.alpha"] = torch.tensor(1.0)
    ours = by_module(state, network, "transformer")
    theirs = diffusers.FluxPipeline.lora_state_dict(dict(state))
    assert ours.keys() == theirs.keys()
    for key in (key for key in ours if "lora_A" in key):
        up = key.replace("lora_A", "lora_B")
        one, other = (each[up] @ each[key][:, :8] for each in (ours, theirs))
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "more",
    [
        {"lora_unet_double_blocks_9_img_mlp_0.lora_down.weight": (RANK, 32),
         "lora_unet_double_blocks_9_img_mlp_0.lora_up.weight": (128, RANK)},
        {"lora_te1_text_model_encoder_layers_9_mlp_fc1.lora_down.weight": (RANK, 32),
         "lora_te1_text_model_encoder_layers_9_mlp_fc1.lora_up.weight": (32, RANK)},
        {"lora_unet_double_blocks_0_img_mlp_0.dora_scale": (128, 1)},
        {"lora_unet_img_in.diff_b": (32,)},
    ],
    ids=["another block", "a text encoder", "DoRA", "a bias"],
)  # fmt: skip
def test_what_kohyas_format_has_besides_is_not_dropped(flux, tmp_path, more):
    state, _ = kohya(original(built("FluxPipeline").transformer.state_dict()), only="img_mlp.0")
    save(
        state | {key: torch.rand(shape) for key, shape in more.items()}, tmp_path / "a.safetensors"
    )
    with pytest.raises(ModelError, match=r"--lora .*a\.safetensors: "):
        fused(flux, tmp_path / "a.safetensors")


def test_kohyas_format_of_another_width_is_refused(flux, tmp_path):
    state, _ = kohya({"double_blocks.0.img_attn.qkv.weight": torch.zeros(9216, 3072)})
    save(state, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"--lora .*a\.safetensors: "):
        fused(flux, tmp_path / "a.safetensors")
