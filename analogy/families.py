"""One adapter for each pipeline family: what differs between them is here and nowhere else.

A family says which diffusers pipeline it is, how prompts become :class:`Conditioning`, how that
becomes the pipeline's arguments, where the denoiser is, and how its latents become what the VAE
decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from analogy.steering import Conditioning

CLIP_TOKENIZER = ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast")
CLIP_IMAGE_ENCODER = ("transformers.CLIPVisionModelWithProjection",)
CLIP_IMAGE_PROCESSOR = (
    "transformers.CLIPImageProcessor", "transformers.CLIPImageProcessorFast",
    "transformers.CLIPImageProcessorPil", "transformers.CLIPFeatureExtractor",
)  # fmt: skip
#: Any of diffusers' own.
SCHEDULER = ("diffusers.*Scheduler",)


class SDXL:
    """Stable Diffusion XL: SSD-1B, SDXL base, Turbo, Vega and their fine-tunes.

    Token states of two text encoders side by side, and the second one's pooled vector.
    """

    pipeline = "StableDiffusionXLPipeline"
    denoiser = "unet"
    #: What ``from_pretrained`` is given beyond the usual.
    load_options: dict[str, Any] = {"add_watermarker": False}  # noqa: RUF012
    #: Each part of ``model_index.json`` with the classes that may make it, ``library.Class``.
    parts: dict[str, tuple[str, ...]] = {  # noqa: RUF012
        "vae": ("diffusers.AutoencoderKL",),
        "text_encoder": ("transformers.CLIPTextModel",),
        "text_encoder_2": ("transformers.CLIPTextModelWithProjection",),
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_TOKENIZER,
        "unet": ("diffusers.UNet2DConditionModel",),
        "scheduler": SCHEDULER,
        "image_encoder": CLIP_IMAGE_ENCODER,
        "feature_extractor": CLIP_IMAGE_PROCESSOR,
    }

    def encode(self, pipeline: Any, prompts: Sequence[str]) -> list[Conditioning]:
        """Each prompt's conditioning, where and in what dtype the text encoders compute."""
        states, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), device=pipeline.device, do_classifier_free_guidance=False
        )
        return [Conditioning(*both) for both in zip(states, pooled, strict=True)]

    def empty(self, pipeline: Any) -> Conditioning:
        """What the pipeline itself takes as the negative prompt when none is given."""
        _, states, _, pooled = pipeline.encode_prompt(
            "", device=pipeline.device, do_classifier_free_guidance=True
        )
        return Conditioning(states[0], pooled[0])

    def arguments(
        self, states: Tensor, pooled: Tensor, negative: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """The pipeline's arguments: ``states (n, tokens, dim)`` and ``pooled (n, dim)`` of a batch.

        ``negative``: the same for the branch without the prompt, None without guidance.
        """
        given = {"prompt_embeds": states, "pooled_prompt_embeds": pooled}
        if negative is not None:
            given["negative_prompt_embeds"], given["negative_pooled_prompt_embeds"] = negative
        return given

    def latent_shape(self, pipeline: Any, size: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of one image of ``size`` pixels a side."""
        side = size // pipeline.vae_scale_factor
        return getattr(pipeline, self.denoiser).config.in_channels, side, side

    def for_decoder(self, vae: Any, latents: Tensor) -> Tensor:
        """Latents as the denoiser leaves them, on the scale of the VAE's own."""
        mean = getattr(vae.config, "latents_mean", None)
        deviation = getattr(vae.config, "latents_std", None)
        if mean is None or deviation is None:
            return latents / vae.config.scaling_factor
        by_channel = latents.new_tensor([deviation, mean])[..., None, None]
        return latents * by_channel[0] / vae.config.scaling_factor + by_channel[1]


class SD(SDXL):
    """Stable Diffusion 1.x and 2.x: token states alone; the pooled vector is empty, ``(0,)``."""

    pipeline = "StableDiffusionPipeline"
    #: The checker would put black pictures in the place of some, which the judge would score.
    load_options = {"safety_checker": None, "requires_safety_checker": False}  # noqa: RUF012
    parts: dict[str, tuple[str, ...]] = {  # noqa: RUF012
        "vae": ("diffusers.AutoencoderKL",),
        "text_encoder": ("transformers.CLIPTextModel",),
        "tokenizer": CLIP_TOKENIZER,
        "unet": ("diffusers.UNet2DConditionModel",),
        "scheduler": SCHEDULER,
        "safety_checker": ("stable_diffusion.StableDiffusionSafetyChecker",),
        "image_encoder": CLIP_IMAGE_ENCODER,
        "feature_extractor": CLIP_IMAGE_PROCESSOR,
    }

    def encode(self, pipeline: Any, prompts: Sequence[str]) -> list[Conditioning]:
        """As :meth:`SDXL.encode`."""
        states, _ = pipeline.encode_prompt(
            list(prompts), pipeline.device, 1, do_classifier_free_guidance=False
        )
        return [Conditioning(each, each.new_zeros(0)) for each in states]

    def empty(self, pipeline: Any) -> Conditioning:
        """As :meth:`SDXL.empty`."""
        _, states = pipeline.encode_prompt("", pipeline.device, 1, do_classifier_free_guidance=True)
        return Conditioning(states[0], states.new_zeros(0))

    def arguments(
        self, states: Tensor, pooled: Tensor, negative: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """As :meth:`SDXL.arguments`; ``pooled`` is ``(n, 0)`` and left out."""
        given = {"prompt_embeds": states}
        if negative is not None:
            given["negative_prompt_embeds"] = negative[0]
        return given


class SD3(SDXL):
    """Stable Diffusion 3 and 3.5: a transformer, conditioned as SDXL's UNet is, in one sequence.

    The T5 encoder may be missing, as its makers allow: its token states are then zeros.
    """

    pipeline = "StableDiffusion3Pipeline"
    denoiser = "transformer"
    load_options: dict[str, Any] = {}  # noqa: RUF012
    parts: dict[str, tuple[str, ...]] = {  # noqa: RUF012
        "vae": ("diffusers.AutoencoderKL",),
        "text_encoder": ("transformers.CLIPTextModelWithProjection",),
        "text_encoder_2": ("transformers.CLIPTextModelWithProjection",),
        "text_encoder_3": ("transformers.T5EncoderModel",),
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_TOKENIZER,
        "tokenizer_3": ("transformers.T5Tokenizer", "transformers.T5TokenizerFast"),
        "transformer": ("diffusers.SD3Transformer2DModel",),
        "scheduler": SCHEDULER,
        "image_encoder": ("transformers.SiglipVisionModel",),
        "feature_extractor": (
            "transformers.SiglipImageProcessor", "transformers.SiglipImageProcessorFast",
        ),
    }  # fmt: skip

    def encode(self, pipeline: Any, prompts: Sequence[str]) -> list[Conditioning]:
        """As :meth:`SDXL.encode`; the other encoders' prompts are None: the same one."""
        states, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), None, None, device=pipeline.device, do_classifier_free_guidance=False
        )
        return [Conditioning(*both) for both in zip(states, pooled, strict=True)]

    def empty(self, pipeline: Any) -> Conditioning:
        """As :meth:`SDXL.empty`."""
        _, states, _, pooled = pipeline.encode_prompt(
            "", None, None, device=pipeline.device, do_classifier_free_guidance=True
        )
        return Conditioning(states[0], pooled[0])

    def for_decoder(self, vae: Any, latents: Tensor) -> Tensor:
        """As :meth:`SDXL.for_decoder`; its VAE's latents have an offset."""
        return latents / vae.config.scaling_factor + vae.config.shift_factor


Family = SDXL | SD | SD3

#: By the name of their pipeline, as ``model_index.json`` has it.
FAMILIES: dict[str, Family] = {family.pipeline: family for family in (SDXL(), SD(), SD3())}


def family_of(pipeline: Any) -> Family:
    """The family of a loaded pipeline."""
    return FAMILIES[type(pipeline).__name__]


def stacked(
    conditionings: Sequence[Conditioning], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A batch: states ``(n, tokens, dim)`` and pooled ``(n, pooled_dim)`` in the place they run."""
    return (
        torch.stack([c.states for c in conditionings]).to(device=device, dtype=dtype),
        torch.stack([c.pooled for c in conditionings]).to(device=device, dtype=dtype),
    )
