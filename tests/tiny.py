"""Tiny pipelines of every family with random weights, built on the spot: nothing is downloaded."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from analogy.models.places import shipped

#: Pixels a side of the images of them all.
SIZE = 32


def tokenizer() -> CLIPTokenizer:
    """The embedded model's."""
    return CLIPTokenizer.from_pretrained(shipped("models/sdxl-tiny") / "tokenizer")


def text_encoder(kind: Any = CLIPTextModel, *, width: int = 32, positions: int = 32) -> Any:
    """A CLIP text tower of two layers for :func:`tokenizer`."""
    config = CLIPTextConfig(
        vocab_size=768, hidden_size=width, intermediate_size=width, num_attention_heads=2,
        num_hidden_layers=2, max_position_embeddings=positions, projection_dim=width,
        bos_token_id=766, eos_token_id=767, pad_token_id=767,
    )  # fmt: skip
    return kind(config).eval()


def vae(**settings: Any) -> diffusers.AutoencoderKL:
    """Images of 32 pixels to latents of 16, 4 channels."""
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, sample_size=SIZE,
        norm_num_groups=8, layers_per_block=1, **settings,
    )  # fmt: skip


def unet(*, context: int, **settings: Any) -> diffusers.UNet2DConditionModel:
    """Two levels, text at the lower one."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=4,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=context,
        norm_num_groups=16, attention_head_dim=8, **settings,
    )  # fmt: skip


def sd1() -> Any:
    """Stable Diffusion 1: epsilon, PNDM."""
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(), tokenizer=tokenizer(), unet=unet(context=32),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            skip_prk_steps=True, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd2() -> Any:
    """Stable Diffusion 2: v-prediction, DDIM, linear projections."""
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(), tokenizer=tokenizer(),
        unet=unet(context=32, use_linear_projection=True),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    """Stable Diffusion XL, whose VAE wants float32."""
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(force_upcast=True), text_encoder=text_encoder(), tokenizer=tokenizer(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection), tokenizer_2=tokenizer(),
        unet=unet(
            context=64, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32, use_linear_projection=True,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )  # fmt: skip


def sd3(layers: int = 1) -> Any:
    """Stable Diffusion 3 without its T5 encoder, as its makers allow."""
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=text_encoder(CLIPTextModelWithProjection), tokenizer=tokenizer(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection), tokenizer_2=tokenizer(),
        text_encoder_3=None, tokenizer_3=None,
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=layers, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32,
            pooled_projection_dim=64, out_channels=4, pos_embed_max_size=32,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


MODELS = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sd3": sd3}


def build(name: str) -> Any:
    """One of :data:`MODELS`, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = MODELS[name]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


#: From diffusers' names to those of the original Stable Diffusion code, for the levels and layers
#: of :func:`sd1`; the first that fits is taken (as in diffusers' scripts/
#: convert_diffusers_to_original_stable_diffusion.py).
_RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_UNET = (
    ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
    ("down_blocks.0.resnets.0", "input_blocks.1.0"),
    ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
    ("down_blocks.1.resnets.0", "input_blocks.3.0"),
    ("down_blocks.1.attentions.0", "input_blocks.3.1"),
    ("up_blocks.0.upsamplers.0.conv", "output_blocks.1.2.conv"),
    ("up_blocks.0.resnets.0", "output_blocks.0.0"),
    ("up_blocks.0.attentions.0", "output_blocks.0.1"),
    ("up_blocks.0.resnets.1", "output_blocks.1.0"),
    ("up_blocks.0.attentions.1", "output_blocks.1.1"),
    ("up_blocks.1.resnets.0", "output_blocks.2.0"), ("up_blocks.1.resnets.1", "output_blocks.3.0"),
)  # fmt: skip
_VAE = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.0\.resnets\.(\d)", r"up.1.block.\1"),
    (r"up_blocks\.1\.resnets\.(\d)", r"up.0.block.\1"),
    (r"up_blocks\.0\.upsamplers\.0", "up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"), ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"),
    ("to_v", "v"), (r"to_out\.0", "proj_out"),
)  # fmt: skip


def original_format(pipeline: Any) -> dict[str, torch.Tensor]:
    """:func:`sd1`'s weights as a single-file checkpoint has them."""
    state = {}
    for name, value in pipeline.unet.state_dict().items():
        old, new = next(pair for pair in _UNET if name.startswith(pair[0]))
        name = new + name.removeprefix(old)
        if "resnets" in old:
            inner, renamed = next(pair for pair in _RESNET if f".{pair[0]}." in name)
            name = name.replace(inner, renamed)
        state[f"model.diffusion_model.{name}"] = value
    for name, value in pipeline.vae.state_dict().items():
        for old, new in _VAE:
            name = re.sub(old, new, name)
        is_projection = ".attn_1." in name and value.ndim == 2
        state[f"first_stage_model.{name}"] = value[..., None, None] if is_projection else value
    for name, value in pipeline.text_encoder.state_dict().items():
        name = name.removeprefix("text_model.")
        state[f"cond_stage_model.transformer.text_model.{name}"] = value
    return {name: value.contiguous().clone() for name, value in state.items()}
