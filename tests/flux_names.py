"""FLUX.1's weights with the names of its makers."""

from __future__ import annotations

import torch

#: From diffusers' names to those of FLUX's makers, for a block of both streams.
_DOUBLE = {
    "img_mod.lin": ["norm1.linear"], "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.norm.query_norm": ["attn.norm_q"], "img_attn.norm.key_norm": ["attn.norm_k"],
    "txt_attn.norm.query_norm": ["attn.norm_added_q"],
    "txt_attn.norm.key_norm": ["attn.norm_added_k"],
    "img_mlp.0": ["ff.net.0.proj"], "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"], "txt_mlp.2": ["ff_context.net.2"],
    "img_attn.proj": ["attn.to_out.0"], "txt_attn.proj": ["attn.to_add_out"],
}  # fmt: skip
_SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], "linear2": ["proj_out"],
    "norm.query_norm": ["attn.norm_q"], "norm.key_norm": ["attn.norm_k"],
}  # fmt: skip
_OTHERS = {
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
    "txt_in": ["context_embedder"], "img_in": ["x_embedder"], "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}  # fmt: skip


def original(state):
    """The weights with the keys of FLUX's makers."""
    names = dict(_OTHERS)
    for prefix, theirs, block in (
        ("transformer_blocks.0", "double_blocks.0", _DOUBLE),
        ("single_transformer_blocks.0", "single_blocks.0", _SINGLE),
    ):
        names |= {f"{theirs}.{new}": [f"{prefix}.{old}" for old in olds]
                  for new, olds in block.items()}  # fmt: skip
    made = {}
    for new, olds in names.items():
        for end in ("weight", "bias"):
            parts = [state[f"{old}.{end}"] for old in olds if f"{old}.{end}" in state]
            if not parts:
                continue
            if new == "final_layer.adaLN_modulation.1":  # their order is shift, scale
                parts = list(reversed(parts[0].chunk(2)))
            made[f"{new}.{'scale' if 'norm.' in new else end}"] = torch.cat(parts)
    assert sum(map(torch.numel, made.values())) == sum(map(torch.numel, state.values()))
    return made
