"""LoRAs with the keys of kohya's scripts and of Concept Sliders, in diffusers' format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

_Layers: TypeAlias = Mapping[str, tuple[str, ...]]

#: From the names of FLUX.1's makers to diffusers', for a block of both streams. A layer of theirs
#: that is several of diffusers' has their outputs one after the other.
_BOTH_STREAMS: _Layers = {
    "img_mod_lin": ("norm1.linear",), "txt_mod_lin": ("norm1_context.linear",),
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",), "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",), "txt_mlp_0": ("ff_context.net.0.proj",),
    "img_mlp_2": ("ff.net.2",), "txt_mlp_2": ("ff_context.net.2",),
}  # fmt: skip
#: For a block of one stream.
_ONE_STREAM: _Layers = {
    "modulation_lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_OUTSIDE_OF_BLOCKS: _Layers = {
    "img_in": ("x_embedder",), "txt_in": ("context_embedder",),
    "time_in_in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in_out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in_in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in_out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in_in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in_out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer_linear": ("proj_out",),
    "final_layer_adaLN_modulation_1": ("norm_out.linear",),
}  # fmt: skip
#: diffusers has the two halves of its outputs in the other order.
_SWAPPED = "lora_unet_final_layer_adaLN_modulation_1"


def by_module(
    state: Mapping[str, Tensor], denoiser: nn.Module, part: str
) -> dict[str, Tensor] | None:
    """Convert a LoRA whose keys are the denoiser's own modules to diffusers' format.

    Returns None for a LoRA with other keys. Concept Sliders (rohitgandikota/sliders,
    ``LoRANetwork``) and kohya's scripts (kohya-ss/sd-scripts) write
    ``lora_unet_MODULE.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``, with ``_`` for each
    dot of the module's name, for a transformer too. Modules have diffusers' names, or in FLUX.1
    those of its makers. diffusers converts only some of these names. ``part``: the denoiser's name
    in the pipeline.
    """
    modules = dict(denoiser.named_modules())
    is_flux = type(denoiser).__name__ == "FluxTransformer2DModel"
    names = {
        **{f"lora_unet_{name.replace('.', '_')}": (name,) for name in modules},
        **(_of_flux(denoiser) if is_flux else {}),
    }
    made = {}
    taken = set()
    for base in sorted({key.partition(".")[0] for key in state}):
        down, up = (state.get(f"{base}.lora_{end}.weight") for end in ("down", "up"))
        layers = names.get(base, ())
        if down is None or up is None or not layers or not all(each in modules for each in layers):
            return None
        alpha = float(state.get(f"{base}.alpha", len(down)))
        up = up.float() * (alpha / len(down))
        if base == _SWAPPED:
            up = torch.cat(up.chunk(2)[::-1])
        sizes = [len(up)]
        if len(layers) > 1:
            sizes = [cast(nn.Linear, modules[each]).out_features for each in layers]
        if sum(sizes) != len(up):
            return None
        for layer, rows in zip(layers, up.split(sizes), strict=True):
            made[f"{part}.{layer}.lora_A.weight"] = down
            made[f"{part}.{layer}.lora_B.weight"] = rows
        taken |= {f"{base}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    return made if state.keys() <= taken else None


def _of_flux(denoiser: Any) -> _Layers:
    """Diffusers' modules for each layer of FLUX.1's makers, by its name in kohya's format."""
    blocks = [
        (f"double_blocks_{i}_", f"transformer_blocks.{i}.", _BOTH_STREAMS)
        for i in range(len(denoiser.transformer_blocks))
    ] + [
        (f"single_blocks_{i}_", f"single_transformer_blocks.{i}.", _ONE_STREAM)
        for i in range(len(denoiser.single_transformer_blocks))
    ]
    return {
        f"lora_unet_{theirs}{name}": tuple(f"{ours}{layer}" for layer in layers)
        for theirs, ours, table in [*blocks, ("", "", _OUTSIDE_OF_BLOCKS)]
        for name, layers in table.items()
    }
