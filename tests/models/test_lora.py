"""A LoRA is fused whole or not at all: each of its tensors and scales must arrive in the model."""

from __future__ import annotations

import json

import pytest
import torch
from broken import LFS, save

from analogy.core.errors import ModelError
from analogy.models.loading import load_pipeline
from analogy.models.sources import find_pipeline

pytest.importorskip("peft")

BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
LAYERS = (
    BLOCK, BLOCK.replace("to_q", "to_k"), BLOCK.replace("to_q", "to_v"),
    BLOCK.replace("to_q", "to_out.0"), BLOCK.replace("attn1", "attn2"),
)  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return tmp_path / "style.safetensors"


def matrices(first: str, second: str, *, rank: int = 2, width: int = 160, **ends):
    return {first: torch.randn(rank, width) * 0.1, second: torch.randn(width, rank) * 0.1, **ends}


def peft(*layers: str, part: str = "unet", **more):
    """The format that diffusers writes."""
    state = {}
    for layer in layers:
        name = f"{part}.{layer}"
        state |= matrices(f"{name}.lora_A.weight", f"{name}.lora_B.weight", **more)
    return state


def kohya(*layers: str, alpha: float | None = None):
    """The format of kohya's scripts and of most files that are passed around."""
    state = {}
    for layer in layers:
        name = f"lora_unet_{layer.replace('.', '_')}"
        state |= matrices(f"{name}.lora_down.weight", f"{name}.lora_up.weight")
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


def fused(file, dtype="float32"):
    source = find_pipeline("embedded", dtype=dtype, lora=str(file))
    return load_pipeline(source, device="cpu", dtype=dtype)


def weight(pipeline, layer=BLOCK):
    return pipeline.unet.get_submodule(layer).weight.float()


@pytest.mark.parametrize("form", [peft, kohya])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lora_that_fits_is_fused_whole(file, pipeline, form, dtype):
    state = form(*LAYERS)
    save(state, file)
    steered = fused(file, dtype)
    for layer, (down, up) in zip(
        LAYERS, zip(*[iter(state.values())] * 2, strict=True), strict=True
    ):
        change = weight(steered, layer) - weight(pipeline, layer)
        torch.testing.assert_close(
            change, up @ down, atol=1e-5 if dtype == "float32" else 0.02, rtol=0
        )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 8.0])
def test_alpha_scales_by_the_rank(file, pipeline, alpha):
    state = kohya(BLOCK, alpha=alpha)
    save(state, file)
    down, up, _ = state.values()
    torch.testing.assert_close(weight(fused(file)) - weight(pipeline), up @ down * alpha / 2)


def test_text_encoders_take_their_part(file):
    layers = [
        f"text_model.encoder.layers.{i}.self_attn.{name}"
        for i in range(3)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    save(peft(BLOCK) | peft(*layers, part="text_encoder", width=64), file)
    assert fused(file)


@pytest.mark.parametrize("form", [peft, kohya])
def test_one_module_in_seven_that_fits_is_none(file, form):
    strange = [BLOCK.replace("mid_block", f"down_blocks.{i}") for i in range(4, 10)]
    save(form(BLOCK, *strange), file)
    with pytest.raises(ModelError, match=r"12 of its 14 tensors have no place: .*down_blocks.4"):
        fused(file)


@pytest.mark.parametrize("part", ["text_encoder_3", "text_encoder_2", "transformer"])
def test_a_text_encoders_keys_are_not_dropped(file, part):
    save(peft(BLOCK) | peft("encoder.block.9.layer.0.q_proj", part=part), file)
    with pytest.raises(ModelError, match=rf"style\.safetensors: .*({part}|does not fit)"):
        fused(file)


@pytest.mark.parametrize("form", [peft, kohya])
def test_a_dora_in_another_tools_format_is_refused(file, form):
    state = form(BLOCK)
    base = next(iter(state)).partition(".lora_")[0]
    save(state | {f"{base}.dora_scale": torch.rand(160, 1)}, file)
    with pytest.raises(ModelError, match=r"1 of its 3 tensors have no place: .*dora_scale"):
        fused(file)


def test_a_dora_in_pefts_format_is_fused_as_one(file, pipeline):
    """Liu et al. (2024), "DoRA", equation 5: m (W + BA) / |W + BA|, by rows of W."""
    magnitude = torch.rand(160) + 1
    state = peft(BLOCK)
    save(state | {f"unet.{BLOCK}.lora_magnitude_vector": magnitude}, file)
    down, up = state.values()
    moved = weight(pipeline) + up @ down
    expected = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(weight(fused(file)), expected)


@pytest.mark.parametrize("kind", ["hada_w1_a", "lokr_w1", "diff", "lora_mid.weight", "bias"])
def test_what_is_more_than_a_lora_is_refused(file, kind):
    save(kohya(BLOCK) | {f"lora_unet_{BLOCK.replace('.', '_')}.{kind}": torch.rand(4, 4)}, file)
    with pytest.raises(ModelError, match=r"style\.safetensors: "):
        fused(file)


def test_an_alpha_without_its_matrices_is_refused(file):
    save(kohya(BLOCK, alpha=1.0) | {"lora_unet_other.alpha": torch.tensor(1.0)}, file)
    with pytest.raises(ModelError, match=r"style\.safetensors: "):
        fused(file)


def test_ranks_that_differ_are_all_at_strength_one(file, pipeline):
    """Or it is refused: diffusers up to 0.38 gives all of them the most frequent one's scale."""
    state = peft(BLOCK) | peft(*LAYERS[1:3], rank=4)
    save(state, file)
    try:
        steered = fused(file)
    except ModelError as refusal:
        said = str(refusal)
    else:
        down, up = list(state.values())[:2]
        torch.testing.assert_close(weight(steered) - weight(pipeline), up @ down)
        return
    assert "the scale (alpha) is lost" in said


@pytest.mark.parametrize(
    "content", [b"", LFS, b"\xff" * 50, b"\x10\0\0\0\0\0\0\0{not json at all}"]
)
def test_a_file_that_is_broken_is_named(file, content):
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"style\.safetensors: "):
        find_pipeline("embedded", dtype="float32", lora=str(file))


@pytest.mark.parametrize("metadata", ["{", "[]", json.dumps({"unet.r": "two"})])
def test_settings_that_are_broken_are_named(file, metadata):
    save(peft(BLOCK), file, lora_adapter_metadata=metadata)
    with pytest.raises(ModelError, match=r"style\.safetensors: "):
        fused(file)
