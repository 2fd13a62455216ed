"""Conditioning and latents to images, through the diffusers pipeline that any user would call."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from analogy.images import Images, from_unit
from analogy.records import Pair
from analogy.steering import Conditioning


class Generator:
    """A loaded SDXL pipeline with the settings of one run.

    An image depends on its own conditioning and latents alone: not on the batch that it is in,
    nor on its place there (in float32 up to rounding, at most 1/255).
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        steps: int,
        guidance: float,
        size: int,
        empty: Conditioning | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._steps = steps
        self._guidance = guidance
        self._size = size
        channels = pipeline.unet.config.in_channels
        side = size // pipeline.vae_scale_factor
        self.latent_shape = (channels, side, side)
        # Encoded here and handed to twins: a tokenizer's padding is state that threads would share.
        self._empty = self._empty_prompt() if empty is None else empty

    def twin(self) -> Generator:
        """Another generator on the same weights, for another thread: a scheduler keeps state."""
        parts = self._pipeline.components
        scheduler = type(self._pipeline.scheduler).from_config(self._pipeline.scheduler.config)
        pipeline = type(self._pipeline)(
            **{**parts, "scheduler": scheduler},
            force_zeros_for_empty_prompt=self._pipeline.config.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return Generator(
            pipeline,
            steps=self._steps,
            guidance=self._guidance,
            size=self._size,
            empty=self._empty,
        )

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], *, batch_size: int = 64) -> dict[str, Conditioning]:
        """Each distinct prompt's conditioning, encoded once, float32 on the CPU."""
        distinct = list(dict.fromkeys(prompts))
        encoded: dict[str, Conditioning] = {}
        for i in range(0, len(distinct), batch_size):
            chunk = distinct[i : i + batch_size]
            states, _, pooled, _ = self._pipeline.encode_prompt(
                chunk, device=self._pipeline.device, do_classifier_free_guidance=False
            )
            for prompt, state, vector in zip(
                chunk, states.float().cpu(), pooled.float().cpu(), strict=True
            ):
                encoded[prompt] = Conditioning(state.clone(), vector.clone())
        return encoded

    @torch.inference_mode()
    def generate(self, conditionings: Sequence[Conditioning], latents: Tensor) -> Images:
        """One image for each conditioning: uint8 ``(n, size, size, 3)``.

        ``latents``: standard normal, ``(n, *latent_shape)``, one for each conditioning.
        """
        pipeline = self._pipeline
        place = {"device": pipeline.device, "dtype": pipeline.unet.dtype}
        states = torch.stack([c.states for c in conditionings]).to(**place)
        pooled = torch.stack([c.pooled for c in conditionings]).to(**place)
        negative: dict[str, Tensor] = {}
        if self._guidance > 1.0:
            negative = {
                "negative_prompt_embeds": self._empty.states.to(**place).expand_as(states),
                "negative_pooled_prompt_embeds": self._empty.pooled.to(**place).expand_as(pooled),
            }
        images = pipeline(
            prompt_embeds=states,
            pooled_prompt_embeds=pooled,
            **negative,
            latents=latents.to(**place),
            num_inference_steps=self._steps,
            guidance_scale=self._guidance,
            height=self._size,
            width=self._size,
            output_type="pt",
        ).images
        return from_unit(images)

    @torch.inference_mode()
    def _empty_prompt(self) -> Conditioning:
        """What the pipeline itself takes as the negative prompt when none is given."""
        _, states, _, pooled = self._pipeline.encode_prompt(
            "", device=self._pipeline.device, do_classifier_free_guidance=True
        )
        return Conditioning(states[0], pooled[0])


def latents_for(pair: Pair, seed: int, shape: tuple[int, ...]) -> Tensor:
    """The starting noise of one image, float32 on the CPU: a function of (pair, seed) alone.

    The same for every alpha, method, batch, device and worker, which pairs the alphas and makes
    a run reproducible image by image. A pair is known by its prompts, not by its id.
    """
    drawn = derived_seed(pair.source_prompt, pair.target_prompt, str(seed))
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(drawn))


def derived_seed(*parts: str) -> int:
    """A 63-bit seed from text, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
