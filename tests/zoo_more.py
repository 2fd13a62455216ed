"""Components of further tiny pipelines of :mod:`zoo`."""

from __future__ import annotations

from typing import Any

import diffusers
import tiny
import transformers
from zoo_parts import (
    CHAT,
    flow,
    flux2_vae,
    plain_tokenizer,
    qwen3_vl,
    qwen25_vl,
    qwen_tokenizer,
    wide_vae,
)


def parts(pipeline: Any) -> dict[str, Any]:
    """What a pipeline was made of, for another of the same parts."""
    return {name: part for name, part in pipeline.components.items() if part is not None}


def sd() -> dict[str, Any]:
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {**parts(tiny.sd2()), **none}


def sd3(layers: int = 1) -> dict[str, Any]:
    return {**parts(tiny.sd3(layers)), "text_encoder_3": None, "tokenizer_3": None}


def _qwen3_vl_processor() -> Any:
    return transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(), qwen_tokenizer(),
        transformers.Qwen3VLVideoProcessor(), chat_template=CHAT,
    )  # fmt: skip


def long_cat() -> dict[str, Any]:
    qwen = qwen_tokenizer()
    return {
        "vae": wide_vae(16, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": qwen25_vl(16), "tokenizer": qwen,
        "text_processor": transformers.Qwen2VLProcessor(
            transformers.Qwen2VLImageProcessor(), qwen, transformers.Qwen2VLVideoProcessor(),
            chat_template=CHAT,
        ),
        "transformer": diffusers.LongCatImageTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
            axes_dims_rope=[4, 4, 8],
        ),
        "scheduler": flow(),
    }  # fmt: skip


def ernie() -> dict[str, Any]:
    return {
        "vae": flux2_vae(),
        "text_encoder": transformers.Mistral3Model(transformers.Mistral3Config(
            text_config={
                "model_type": "ministral3", "vocab_size": 384, "hidden_size": 16,
                "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3,
                "num_key_value_heads": 1, "head_dim": 8,
            },
            vision_config={
                "model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 4, "intermediate_size": 16, "image_size": 30,
                "patch_size": 6, "num_channels": 3,
            },
            image_token_index=1,
        )).eval(),
        "tokenizer": plain_tokenizer(),
        "transformer": diffusers.ErnieImageTransformer2DModel(
            hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=4,
            out_channels=4, text_in_dim=16, rope_axes_dim=(8, 4, 4),
        ),
        "scheduler": flow(),
    }  # fmt: skip


def prx() -> dict[str, Any]:
    config = transformers.T5GemmaConfig(
        encoder={
            "vocab_size": 384, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "layer_types": ["full_attention"] * 2,
        },
        is_encoder_decoder=False,
    )  # fmt: skip
    return {
        "vae": wide_vae(4), "tokenizer": plain_tokenizer(),
        "text_encoder": transformers.models.t5gemma.modeling_t5gemma.T5GemmaEncoder(
            config.encoder
        ).eval(),
        "transformer": diffusers.PRXTransformer2DModel(
            in_channels=4, patch_size=1, context_in_dim=16, hidden_size=16, num_heads=2, depth=2,
            axes_dim=[4, 4], mlp_ratio=2.0,
        ),
        "scheduler": flow(),
    }  # fmt: skip


def bria_fibo2() -> dict[str, Any]:
    return {
        "vae": flux2_vae(),
        "text_encoder": qwen3_vl(transformers.Qwen3VLForConditionalGeneration, layers=36),
        "processor": _qwen3_vl_processor(),
        "transformer": diffusers.BriaFibo2Transformer2DModel(
            in_channels=1, patch_size=2, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
            cap_feat_dim=48, injection_layer_ids=(0, 1), perceiver_num_layers=1,
            min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=2, gist_min_text_len=8,
            gist_max_text_len=64, axes_dims=(8, 4, 4), axes_lens=(64, 64, 64),
        ),
        "scheduler": flow(),
    }  # fmt: skip


def qwen_image_21() -> dict[str, Any]:
    return {
        "vae": diffusers.AutoencoderKLQwenImage21(
            base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1,
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4, in_channels=4, out_channels=4,
        ),
        "text_encoder": qwen3_vl(transformers.Qwen3VLForConditionalGeneration),
        "processor": _qwen3_vl_processor(),
        "transformer": diffusers.QwenImage21Transformer2DModel(
            in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, context_in_dim=16, axes_dims_rope=(4, 4, 8),
        ),
        "scheduler": flow(),
    }  # fmt: skip
