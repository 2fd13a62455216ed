"""A tiny pipeline of every class that the suite carries by replay, with random weights.

Configurations are those of diffusers' own tests, made smaller; tokenizers are made on the spot.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import tiny
import torch
import transformers
import zoo_more
from tiny import text_encoder, tokenizer, unet, vae
from zoo_parts import (
    CHAT,
    bert_tokenizer,
    dc_vae,
    flow,
    flux2_vae,
    gemma,
    gemma_tokenizer,
    plain_tokenizer,
    qwen3,
    qwen3_vl,
    qwen25_vl,
    qwen_tokenizer,
    qwen_vae,
    t5,
    t5_tokenizer,
    wide_vae,
)

#: Pixels a side of the images of them all, but for those in :data:`SIZES`.
SIZE = 32
SIZES = {"Kandinsky3Pipeline": 64}
#: Factors of a denoiser's weights, so that the prompt matters to it.
GAINS = {
    "Flux2Pipeline": 4.0, "HunyuanImagePipeline": 4.0, "BriaPipeline": 3.0,
    "PixArtAlphaPipeline": 1.0, "HunyuanDiTPipeline": 1.0, "Kandinsky3Pipeline": 1.0,
    "StableDiffusion3PAGPipeline": 1.5, "ErnieImagePipeline": 3.0,
}  # fmt: skip


#: Tokens that texts are padded to, instead of 256 to 1000, and an instruction of 40 letters instead
#: of 1,000. All prompts of the tests are shorter; what is longer takes time and shows nothing else.
_SANA = {
    "max_sequence_length": 96,
    "complex_human_instruction": ["Describe the image in words.", "User Prompt: "],
}
SHORTER: dict[str, dict[str, Any]] = {
    "FluxPipeline": {"max_sequence_length": 96},
    "ChromaPipeline": {"max_sequence_length": 96},
    "PixArtSigmaPipeline": {"max_sequence_length": 96},
    "PixArtSigmaPAGPipeline": {"max_sequence_length": 96},
    "Flux2KleinPipeline": {"max_sequence_length": 160},
    "Flux2KleinKVPipeline": {"max_sequence_length": 160},
    "Flux2Pipeline": {"max_sequence_length": 320},
    "HunyuanImagePipeline": {"tokenizer_max_length": 128},
    "LongCatImagePipeline": {"tokenizer_max_length": 128},
    "SanaPipeline": _SANA,
    "SanaPAGPipeline": _SANA,
    "SanaSprintPipeline": _SANA,
}


def shorten(patch: Any, name: str) -> None:
    """Give a class the defaults of :data:`SHORTER`, until the ``MonkeyPatch`` is undone."""
    kind = getattr(diffusers, name)
    call = inspect.unwrap(kind.__call__)
    defaults = [p for p in inspect.signature(call).parameters.values() if p.default is not p.empty]
    given = SHORTER.get(name, {})
    changed = tuple(given.get(each.name, each.default) for each in defaults)
    patch.setattr(call, "__defaults__", changed)
    for key in given.keys() - {each.name for each in defaults}:  # what its constructor sets
        fixed = property(lambda _, value=given[key]: value, lambda _, value: None)
        patch.setattr(kind, key, fixed, raising=False)


def flux() -> dict[str, Any]:
    return {
        "vae": vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False),
        "text_encoder": text_encoder(), "tokenizer": tokenizer(),
        "text_encoder_2": t5(), "tokenizer_2": t5_tokenizer(),
        "transformer": diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        ),
        "scheduler": flow(shift=3.0),
    }  # fmt: skip


def flux2_klein() -> dict[str, Any]:
    return {
        "vae": flux2_vae(),
        "text_encoder": qwen3(transformers.Qwen3ForCausalLM, layers=28),
        "tokenizer": qwen_tokenizer(),
        "transformer": diffusers.Flux2Transformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=256,
            axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
        "scheduler": flow(),
    }  # fmt: skip


def chroma() -> dict[str, Any]:
    return {
        "vae": vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False),
        "text_encoder": t5(), "tokenizer": t5_tokenizer(),
        "transformer": diffusers.ChromaTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32, approximator_layers=1, approximator_num_channels=16,
        ),
        "scheduler": flow(),
    }  # fmt: skip


def qwen_image() -> dict[str, Any]:
    return {
        "vae": qwen_vae(), "text_encoder": qwen25_vl(), "tokenizer": qwen_tokenizer(),
        "transformer": diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=3, joint_attention_dim=16, guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        "scheduler": flow(),
    }  # fmt: skip


def z_image() -> dict[str, Any]:
    return {
        "vae": wide_vae(), "text_encoder": qwen3(), "tokenizer": qwen_tokenizer(),
        "transformer": diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2,
            n_refiner_layers=1, n_heads=2, n_kv_heads=2, norm_eps=1e-5, qk_norm=True,
            cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0, axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        "scheduler": flow(),
    }  # fmt: skip


def _sana_transformer(**options: Any) -> Any:
    return diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
        cross_attention_dim=8, caption_channels=8, sample_size=16, **options,
    )  # fmt: skip


def sana() -> dict[str, Any]:
    return {
        "vae": dc_vae(), "text_encoder": gemma(), "tokenizer": gemma_tokenizer(),
        "transformer": _sana_transformer(), "scheduler": flow(shift=7.0),
    }  # fmt: skip


def sana_sprint() -> dict[str, Any]:
    return {
        **sana(), "scheduler": diffusers.SCMScheduler(),
        "transformer": _sana_transformer(qk_norm="rms_norm_across_heads", guidance_embeds=True),
    }  # fmt: skip


def pixart() -> dict[str, Any]:
    return {
        "vae": vae(), "text_encoder": t5(), "tokenizer": t5_tokenizer(),
        "transformer": diffusers.PixArtTransformer2DModel(
            sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8,
            attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
            norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        ),
        "scheduler": diffusers.DDIMScheduler(),
    }  # fmt: skip


def pixart_sigma() -> dict[str, Any]:
    return {**pixart(), "scheduler": diffusers.DPMSolverMultistepScheduler()}


def lumina() -> dict[str, Any]:
    return {
        "vae": wide_vae(4, levels=4), "tokenizer": gemma_tokenizer(),
        "text_encoder": gemma(transformers.GemmaModel, transformers.GemmaConfig),
        "transformer": diffusers.LuminaNextDiT2DModel(
            sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
            num_attention_heads=3, num_kv_heads=1, multiple_of=16, ffn_dim_multiplier=None,
            norm_eps=1e-5, learn_sigma=True, qk_norm=True, cross_attention_dim=8,
            scaling_factor=1.0,
        ),
        "scheduler": flow(),
    }  # fmt: skip


def lumina2() -> dict[str, Any]:
    return {
        "vae": wide_vae(4, levels=4), "text_encoder": gemma(), "tokenizer": gemma_tokenizer(),
        "transformer": diffusers.Lumina2Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
            num_attention_heads=3, num_kv_heads=1, multiple_of=16, ffn_dim_multiplier=None,
            norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=(4, 2, 2), cap_feat_dim=8,
        ),
        "scheduler": flow(),
    }  # fmt: skip


def aura_flow() -> dict[str, Any]:
    return {
        "vae": vae(), "tokenizer": t5_tokenizer(),
        "text_encoder": t5(transformers.UMT5EncoderModel, transformers.UMT5Config),
        "transformer": diffusers.AuraFlowTransformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1,
            num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, out_channels=4,
            pos_embed_max_size=256,
        ),
        "scheduler": flow(),
    }  # fmt: skip


def hidream() -> dict[str, Any]:
    kind = transformers.CLIPTextModelWithProjection
    return {
        "vae": wide_vae(4),
        "text_encoder": text_encoder(kind, positions=128), "tokenizer": tokenizer(),
        "text_encoder_2": text_encoder(kind, positions=128), "tokenizer_2": tokenizer(),
        "text_encoder_3": t5(), "tokenizer_3": t5_tokenizer(),
        "text_encoder_4": transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=384, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2,
        )).eval(),
        "tokenizer_4": plain_tokenizer(),
        "transformer": diffusers.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
            attention_head_dim=8, num_attention_heads=4, caption_channels=[32, 16],
            text_emb_dim=64, num_routed_experts=4, num_activated_experts=2,
            axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1),
        ),
        "scheduler": flow(),
    }  # fmt: skip


def cogview3() -> dict[str, Any]:
    return {
        "vae": vae(), "text_encoder": t5(), "tokenizer": t5_tokenizer(),
        "transformer": diffusers.CogView3PlusTransformer2DModel(
            patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            out_channels=4, text_embed_dim=32, time_embed_dim=8, condition_dim=2,
            pos_embed_max_size=8, sample_size=16,
        ),
        "scheduler": diffusers.CogVideoXDDIMScheduler(),
    }  # fmt: skip


def cogview4() -> dict[str, Any]:
    left = plain_tokenizer()
    left.padding_side = "left"
    return {
        "vae": vae(),
        "text_encoder": transformers.GlmModel(transformers.GlmConfig(
            hidden_size=32, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, vocab_size=384, pad_token_id=0, eos_token_id=1,
        )).eval(),
        "tokenizer": left,
        "transformer": diffusers.CogView4Transformer2DModel(
            patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            out_channels=4, text_embed_dim=32, time_embed_dim=8, condition_dim=4, sample_size=16,
        ),
        "scheduler": flow(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    }  # fmt: skip


def hunyuan_dit() -> dict[str, Any]:
    return {
        "vae": wide_vae(4, levels=4),
        "text_encoder": transformers.BertModel(transformers.BertConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=128,
        )).eval(),
        "tokenizer": bert_tokenizer(),
        "text_encoder_2": t5(), "tokenizer_2": t5_tokenizer(),
        "transformer": diffusers.HunyuanDiT2DModel(
            sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            in_channels=4, cross_attention_dim=32, cross_attention_dim_t5=32,
            pooled_projection_dim=16, hidden_size=24, activation_fn="gelu-approximate",
        ),
        "scheduler": diffusers.DDPMScheduler(),
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip


def hunyuan_image() -> dict[str, Any]:
    return {
        "vae": diffusers.AutoencoderKLHunyuanImage(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32, 32, 32),
            layers_per_block=1, scaling_factor=0.476986, spatial_compression_ratio=8,
            sample_size=128,
        ),
        "text_encoder": qwen25_vl(32), "tokenizer": qwen_tokenizer(),
        "text_encoder_2": t5(), "tokenizer_2": transformers.ByT5Tokenizer(),
        "transformer": diffusers.HunyuanImageTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8,
            num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=(1, 1),
            guidance_embeds=False, text_embed_dim=32, text_embed_2_dim=32, rope_axes_dim=(4, 4),
        ),
        "scheduler": flow(shift=7.0),
        "guider": diffusers.AdaptiveProjectedMixGuidance(
            adaptive_projected_guidance_start_step=2
        ),
        "ocr_guider": diffusers.AdaptiveProjectedMixGuidance(
            adaptive_projected_guidance_start_step=3
        ),
    }  # fmt: skip


def kandinsky3() -> dict[str, Any]:
    return {
        "text_encoder": t5(), "tokenizer": t5_tokenizer(),
        "unet": diffusers.Kandinsky3UNet(
            in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4,
            layers_per_block=3, block_out_channels=(32, 64), cross_attention_dim=4,
            encoder_hid_dim=32,
        ),
        "movq": diffusers.VQModel(
            block_out_channels=[32] * 4,
            down_block_types=[*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3],
            latent_channels=4, layers_per_block=1, norm_num_groups=8, norm_type="spatial",
            num_vq_embeddings=12, vq_embed_dim=4,
        ),
        "scheduler": diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, steps_offset=1,
            beta_schedule="squaredcos_cap_v2", clip_sample=True, thresholding=False,
        ),
    }  # fmt: skip


def kandinsky5() -> dict[str, Any]:
    qwen = qwen_tokenizer()
    return {
        "vae": wide_vae(16, levels=4, mid_block_add_attention=False, use_post_quant_conv=False,
                        use_quant_conv=False),
        "text_encoder": qwen25_vl(32),
        "tokenizer": transformers.Qwen2VLProcessor(
            transformers.Qwen2VLImageProcessor(), qwen, transformers.Qwen2VLVideoProcessor(),
            chat_template=CHAT,
        ),
        "text_encoder_2": text_encoder(positions=128), "tokenizer_2": tokenizer(),
        "transformer": diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=16, in_text_dim=32, in_text_dim2=32, time_dim=16, out_visual_dim=16,
            patch_size=(1, 2, 2), model_dim=16, ff_dim=32, num_text_blocks=1,
            num_visual_blocks=2, axes_dims=(1, 1, 2), visual_cond=False,
            attention_type="regular",
        ),
        "scheduler": flow(shift=7.0),
    }  # fmt: skip


def ovis() -> dict[str, Any]:
    return {
        "vae": vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False),
        "text_encoder": qwen3(width=32), "tokenizer": qwen_tokenizer(),
        "transformer": diffusers.OvisImageTransformer2DModel(
            patch_size=1, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        "scheduler": flow(),
    }  # fmt: skip


def lcm() -> dict[str, Any]:
    return {
        "vae": vae(), "text_encoder": text_encoder(), "tokenizer": tokenizer(),
        "unet": unet(context=32, time_cond_proj_dim=32),
        "scheduler": diffusers.LCMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False,
        ),
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip


def krea2() -> dict[str, Any]:
    return {
        "vae": qwen_vae(), "text_encoder": qwen3_vl(transformers.Qwen3VLModel),
        "tokenizer": qwen_tokenizer(),
        "transformer": diffusers.Krea2Transformer2DModel(
            in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16,
            num_text_layers=3, text_num_attention_heads=2, text_num_key_value_heads=1,
            text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2), rope_theta=1000.0,
        ),
        "scheduler": flow(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
            max_image_seq_len=6400,
        ),
        "text_encoder_select_layers": (0, 1, 2),
    }  # fmt: skip


def bria() -> dict[str, Any]:
    return {
        "vae": vae(shift_factor=0.0, force_upcast=False),
        "text_encoder": t5(), "tokenizer": t5_tokenizer(),
        "transformer": diffusers.BriaTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        "scheduler": flow(),
    }  # fmt: skip


def bria_fibo() -> dict[str, Any]:
    return {
        "vae": diffusers.AutoencoderKLWan(
            base_dim=16, decoder_base_dim=16, num_res_blocks=1, out_channels=12, in_channels=12,
            patch_size=2, scale_factor_spatial=16, scale_factor_temporal=4,
            temperal_downsample=[False, True, True], z_dim=16, is_residual=True,
        ),
        "text_encoder": transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=128001, pad_token_id=0, bos_token_id=1,
            eos_token_id=1,
        )).eval(),
        "tokenizer": plain_tokenizer(),
        "transformer": diffusers.BriaFiboTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=64, text_encoder_dim=32,
            pooled_projection_dim=None, axes_dims_rope=[0, 4, 4],
        ),
        "scheduler": flow(),
    }  # fmt: skip


def dreamlite() -> dict[str, Any]:
    qwen = qwen_tokenizer()
    return {
        "text_encoder": qwen3_vl(transformers.Qwen3VLForConditionalGeneration), "tokenizer": qwen,
        "processor": transformers.Qwen3VLProcessor(
            transformers.Qwen2VLImageProcessor(), qwen, transformers.Qwen3VLVideoProcessor(),
            chat_template=CHAT,
        ),
        "vae": diffusers.AutoencoderTiny(
            encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=4,
        ),
        "unet": diffusers.DreamLiteUNetModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64),
            down_block_types=(
                "DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D",
            ),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=8, layers_per_block=1, norm_num_groups=8,
            transformer_layers_per_block=1,
        ),
        "scheduler": flow(),
    }  # fmt: skip


def flux2() -> dict[str, Any]:
    qwen = qwen_tokenizer()
    qwen.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    return {
        "vae": flux2_vae(),
        "text_encoder": transformers.Mistral3ForConditionalGeneration(transformers.Mistral3Config(
            text_config={
                "model_type": "mistral", "vocab_size": 384, "hidden_size": 16,
                "intermediate_size": 16, "max_position_embeddings": 1024,
                "num_attention_heads": 4, "num_hidden_layers": 30, "num_key_value_heads": 2,
                "head_dim": 4, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 4,
            },
            vision_config={
                "model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 4, "intermediate_size": 16, "image_size": 30,
                "patch_size": 6, "num_channels": 3,
            },
            image_token_index=1,
        )).eval(),
        "tokenizer": transformers.PixtralProcessor(
            transformers.PixtralImageProcessor(), qwen, chat_template=CHAT
        ),
        "transformer": diffusers.Flux2Transformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=256,
            axes_dims_rope=(4, 4, 4, 4),
        ),
        "scheduler": flow(),
    }  # fmt: skip


def with_pag(components: dict[str, Any], layer: str) -> dict[str, Any]:
    """The components of the perturbed-attention variant of a pipeline."""
    return {**components, "pag_applied_layers": [layer]}


#: The components of a pipeline, by the name of its class.
ZOO: dict[str, Callable[[], dict[str, Any]]] = {
    "FluxPipeline": flux,
    "Flux2KleinPipeline": flux2_klein,
    "ChromaPipeline": chroma,
    "QwenImagePipeline": qwen_image,
    "ZImagePipeline": z_image,
    "SanaPipeline": sana,
    "SanaSprintPipeline": sana_sprint,
    "PixArtAlphaPipeline": pixart,
    "PixArtSigmaPipeline": pixart_sigma,
    "LuminaPipeline": lumina,
    "Lumina2Pipeline": lumina2,
    "AuraFlowPipeline": aura_flow,
    "HiDreamImagePipeline": hidream,
    "CogView3PlusPipeline": cogview3,
    "CogView4Pipeline": cogview4,
    "HunyuanDiTPipeline": hunyuan_dit,
    "HunyuanImagePipeline": hunyuan_image,
    "Kandinsky3Pipeline": kandinsky3,
    "Kandinsky5T2IPipeline": kandinsky5,
    "OvisImagePipeline": ovis,
    "LatentConsistencyModelPipeline": lcm,
    "Krea2Pipeline": krea2,
    "BriaPipeline": bria,
    "BriaFiboPipeline": bria_fibo,
    "DreamLitePipeline": dreamlite,
    "Flux2Pipeline": flux2,
    "Flux2KleinKVPipeline": flux2_klein,
    "DreamLiteMobilePipeline": dreamlite,
    "LongCatImagePipeline": zoo_more.long_cat,
    "ErnieImagePipeline": zoo_more.ernie,
    "PRXPipeline": zoo_more.prx,
    "BriaFibo2Pipeline": zoo_more.bria_fibo2,
    "QwenImage21Pipeline": zoo_more.qwen_image_21,
    "StableDiffusionPAGPipeline": zoo_more.sd,
    "StableDiffusion3PAGPipeline": lambda: with_pag(zoo_more.sd3(2), "blocks.1"),
    "PixArtSigmaPAGPipeline": lambda: with_pag(pixart_sigma(), "blocks.1"),
    "SanaPAGPipeline": lambda: with_pag(sana(), "transformer_blocks.0"),
    # These three are carried by families of their own.
    "StableDiffusionPipeline": zoo_more.sd,
    "StableDiffusionXLPipeline": lambda: zoo_more.parts(tiny.sdxl()),
    "StableDiffusion3Pipeline": zoo_more.sd3,
}


def build(name: str) -> Any:
    """A tiny pipeline of this class, the same at every call, to which the prompt matters.

    Denoisers start with gates of zeros that close the way of the prompt; these get other values.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = getattr(diffusers, name)
        pipeline = kind(**ZOO[name]())
        denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
        with torch.no_grad():
            for key, weights in denoiser.named_parameters():
                if weights.ndim >= 2 and (not weights.any() or "pad_token" in key):
                    weights.normal_(std=0.1)
                elif weights.ndim >= 2:
                    weights.mul_(GAINS.get(name, 2.0))
                if "caption_norm" in key:
                    weights.fill_(1.0)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # as from_pretrained does
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
