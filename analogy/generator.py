"""Conditioning and latents to images, through the diffusers pipeline that any user would call."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from analogy.families import family_of, stacked
from analogy.images import Images, from_unit
from analogy.records import Pair
from analogy.steering import Conditioning


class Generator:
    """A loaded pipeline of any family with the settings of one run.

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
        self._family = family_of(pipeline)
        self._denoiser = getattr(pipeline, self._family.denoiser)
        self.latent_shape = self._family.latent_shape(pipeline, size)
        # Encoded here and handed to twins: a tokenizer's padding is state that threads would share.
        self._empty = self._empty_prompt() if empty is None else empty

    def twin(self) -> Generator:
        """Another generator on the same weights, for another thread: a scheduler keeps state."""
        pipeline = copy.copy(self._pipeline)
        scheduler = self._pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config(scheduler.config)
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
            for prompt, made in zip(chunk, self._family.encode(self._pipeline, chunk), strict=True):
                encoded[prompt] = Conditioning(
                    made.states.float().cpu().clone(), made.pooled.float().cpu().clone()
                )
        return encoded

    @torch.inference_mode()
    def generate(self, conditionings: Sequence[Conditioning], latents: Tensor) -> Images:
        """One image for each conditioning: uint8 ``(n, size, size, 3)``.

        ``latents``: standard normal, ``(n, *latent_shape)``, one for each conditioning.
        """
        pipeline = self._pipeline
        place = (pipeline.device, self._denoiser.dtype)
        states, pooled = stacked(conditionings, *place)
        negative = None
        if self._guidance > 1.0:
            empty_states, empty_pooled = stacked([self._empty], *place)
            negative = empty_states.expand_as(states), empty_pooled.expand_as(pooled)
        images = pipeline(
            **self._family.arguments(states, pooled, negative),
            latents=latents.to(*place),
            num_inference_steps=self._steps,
            guidance_scale=self._guidance,
            height=self._size,
            width=self._size,
            output_type="pt",
        ).images
        return from_unit(images)

    @torch.inference_mode()
    def _empty_prompt(self) -> Conditioning:
        return self._family.empty(self._pipeline)


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
