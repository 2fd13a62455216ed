"""From conditioning and latents to images, through a standard diffusers pipeline."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from analogy.core.images import Images, faults, from_unit
from analogy.core.records import WHOLE, Pair, Window
from analogy.models.families import Sampling, family_of
from analogy.models.memory import DECODED_PIXELS, MOST_IMAGES, InParts, MemoryFullError, peak
from analogy.models.placement import computing_place, not_offloaded
from analogy.models.stepping import PipelineChange, Stepped
from analogy.models.texts import Texts
from analogy.models.tokens import WordReader
from analogy.steering.base import Intervention, ObservingMethod, Row
from analogy.steering.conditioning import Conditioning
from analogy.steering.course import Course


@dataclass(frozen=True, slots=True)
class Generated:
    """A batch: ``images``, uint8 ``(n, size, size, 3)``, and which of them failed.

    ``faults``: the reason for each failed image, by its index. A failed image's pixels mean
    nothing.
    """

    images: Images
    faults: Mapping[int, str]


class Generator:
    """A loaded pipeline of any family with the settings of one run.

    An image depends only on its own conditioning and latents: not on the batch that it is in, nor
    on its index there (in float32 up to rounding, at most 1/255). ``batch_size``: images that are
    denoised together. It is reduced when memory runs out.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        steps: int,
        guidance: float,
        size: int,
        batch_size: int = MOST_IMAGES,
        second_guidance: float | None = None,
        empty: Conditioning | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._steps = steps
        self._guidance = guidance
        self._second = second_guidance
        self._size = size
        self._family = family_of(pipeline)
        self._denoiser = getattr(pipeline, self._family.denoiser)
        self._denoise_in_parts = InParts(batch_size)
        self._decode_in_parts = InParts(max(DECODED_PIXELS // size**2, 1))
        self.latent_shape = self._family.latent_shape(pipeline, size)
        # Encoded here and given to clones: a tokenizer's padding is state that threads would share.
        self._empty = self._empty_prompt() if empty is None else empty

    def clone(self) -> Generator:
        """A generator with the same weights for another thread; schedulers keep state."""
        pipeline = copy.copy(self._pipeline)
        scheduler = self._pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        return Generator(
            pipeline,
            steps=self._steps,
            guidance=self._guidance,
            size=self._size,
            batch_size=self.batch_size,
            second_guidance=self._second,
            empty=self._empty,
        )

    @property
    def batch_size(self) -> int:
        """Images that are denoised together."""
        return self._denoise_in_parts.at_once

    @batch_size.setter
    def batch_size(self, images: int) -> None:
        self._denoise_in_parts.at_once = images

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], *, batch_size: int | None = None) -> Texts:
        """Each distinct prompt's conditioning, encoded once.

        ``batch_size``: prompts that are encoded together, None for the family's own number.
        """
        family, distinct = self._family, list(dict.fromkeys(prompts))
        at_once = batch_size or int(getattr(family, "prompts_at_once", 64))
        encoded = Texts(hides_masked=getattr(family, "hides_masked", False))
        for i in range(0, len(distinct), at_once):
            chunk = distinct[i : i + at_once]
            for prompt, made in zip(chunk, family.encode(self._pipeline, chunk), strict=True):
                encoded.add(prompt, made)
        return encoded

    def word_reader(self) -> WordReader:
        """A reader that finds the tokens of words. Call it before :meth:`drop_text_encoders`."""
        return WordReader(self._pipeline, getattr(self._family, "layout", ()))

    def drop_text_encoders(self) -> None:
        """Remove the text encoders once all prompts are encoded, so that images get their memory.

        The caller must be the pipeline's only user, and encode nothing more with it. The text
        encoders are not moved to the CPU: older versions of diffusers take the device of a
        pipeline's first part for that of the pipeline.
        """
        for name in self._pipeline.components:
            if name.startswith("text_encoder"):
                setattr(self._pipeline, name, None)
        self._pipeline.maybe_free_model_hooks()  # offloading's hooks refer to them, too

    @torch.inference_mode()
    def observe(
        self, method: ObservingMethod, conditionings: Sequence[Conditioning], latents: Tensor
    ) -> Sequence[Any]:
        """What ``method`` observes of each image while they are denoised together.

        ``latents``: as for :meth:`generate`. Nothing is decoded. Guidance is left out because
        methods observe the prompt's own rows; the negative prompt's rows would double the cost.
        """
        sampling = Sampling(self._steps, min(self._guidance, 1.0), self._size)

        def denoise() -> Tensor:
            return self._family.denoise(
                self._pipeline, conditionings, self._empty, latents, sampling
            )

        return method.observe(self._pipeline, denoise, len(conditionings))

    @torch.inference_mode()
    def generate(
        self,
        conditionings: Sequence[Conditioning | Course],
        latents: Tensor,
        change: Intervention | None = None,
        rows: Sequence[Row] = (),
        window: Window = WHOLE,
    ) -> Generated:
        """One image for each conditioning, in as many batches as the memory requires.

        ``latents``: standard normal, ``(n, *latent_shape)``, one for each conditioning.
        ``change``: a change of the pipeline while it denoises, with one of ``rows`` for each image.
        It is made in the part ``window`` of the schedule. An image that a VAE in half precision
        decodes to NaN or black is decoded once more in float32. Raises
        :class:`~analogy.models.memory.MemoryFullError` if not even one image fits.
        """
        n = len(conditionings)

        def denoised(part: slice) -> Tensor:
            given = (conditionings[part], latents[part], self._steps)
            if change is None:
                return self._denoise(*given)
            if window != WHOLE:
                enter = partial(change.applied, self._pipeline, rows[part])
                return self._denoise(*given, PipelineChange(enter, window))
            with change.applied(self._pipeline, rows[part]):
                return self._denoise(*given)

        final = torch.cat(self._denoise_in_parts(denoised, n))
        self._pipeline.maybe_free_model_hooks()  # an offloaded denoiser makes room for the decoder
        try:
            decoded = torch.cat(self._decode_in_parts(lambda part: self._decode(final[part]), n))
        except MemoryFullError:
            if getattr(self._vae, "use_tiling", True):
                raise
            warnings.warn(
                "decoding one image takes more memory than there is: images are decoded in tiles "
                "from here on, whose seams may differ from a whole image's in the last digits",
                stacklevel=2,
            )
            self._vae.enable_tiling()
            decoded = torch.cat(self._decode_in_parts(lambda part: self._decode(final[part]), n))
        is_lost = ~torch.isfinite(final).flatten(1).all(dim=1).cpu()
        found = {
            i: "NaN or infinity from the denoiser" if is_lost[i] else fault
            for i, fault in enumerate(faults(decoded))
            if fault is not None
        }
        return Generated(from_unit(decoded.nan_to_num()), found)

    def peak_memory(self, n: int) -> int:
        """Peak bytes of its CUDA device while denoising ``n`` images at once, model included.

        Of an offloaded model, only the part on the device counts. Decoding is not measured: it has
        batches of its own.
        """
        device, _ = computing_place(self._pipeline, self._denoiser)
        latents = torch.randn(n, *self.latent_shape)

        @torch.inference_mode()
        def work() -> None:
            self._denoise([self._empty] * n, latents, min(self._steps, 2))

        return peak(str(device), work)

    def _denoise(
        self,
        conditionings: Sequence[Conditioning | Course],
        latents: Tensor,
        steps: int,
        change: PipelineChange | None = None,
    ) -> Tensor:
        """Run the pipeline itself, up to the latents that it would decode."""
        sampling = Sampling(steps, self._guidance, self._size, self._second)
        plain = [each for each in conditionings if isinstance(each, Conditioning)]
        if len(plain) == len(conditionings) and change is None:
            return self._family.denoise(self._pipeline, plain, self._empty, latents, sampling)
        with Stepped(self._pipeline, self._family.denoiser, conditionings, change) as stepped:
            given, pipeline = stepped.given, stepped.pipeline
            return self._family.denoise(pipeline, given, self._empty, latents, sampling)

    def _decode(self, latents: Tensor) -> Tensor:
        """Float NCHW 0..1, as the pipeline itself decodes. Failed images are redone in float32."""
        images = self._decoded_by(self._vae, latents)
        if self._vae.dtype != torch.float32:
            again = [
                i
                for i, fault in enumerate(faults(images))
                if fault is not None and torch.isfinite(latents[i]).all()
            ]
            if again:
                images = images.float()
                images[again] = self._decoded_by(self._vae_float32, latents[again])
        return images

    def _decoded_by(self, vae: Any, latents: Tensor) -> Tensor:
        images = self._family.decode(vae, latents.to(vae.dtype), self._size)
        seen = images.where(images.isfinite(), torch.nan)  # infinity would be clamped to a colour
        return (seen * 0.5 + 0.5).clamp(0, 1)  # as diffusers' VaeImageProcessor

    @cached_property
    def _vae(self) -> Any:
        """The pipeline's VAE; in float32 if its configuration has ``force_upcast``."""
        vae = getattr(self._pipeline, self._family.decoder)
        overflows = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
        return self._vae_float32 if overflows else vae

    @cached_property
    def _vae_float32(self) -> Any:
        """The VAE in float32: a copy, because other threads may use the pipeline's."""
        decoder = getattr(self._pipeline, self._family.decoder)
        device, _ = computing_place(self._pipeline, self._denoiser)
        return copy.deepcopy(not_offloaded(decoder)).float().to(device)

    @torch.inference_mode()
    def _empty_prompt(self) -> Conditioning:
        return self._family.empty(self._pipeline)


def latents_for(pair: Pair, seed: int, shape: tuple[int, ...]) -> Tensor:
    """The initial noise of one image, float32 on the CPU, determined by pair and seed.

    It is the same for every alpha, method, batch, device and worker, so that the images of all
    alphas are paired and a run is reproducible image by image. A pair is identified by its
    prompts, not by its id.
    """
    return drawn(shape, latents_seed(pair, seed))


def latents_seed(pair: Pair, seed: int) -> int:
    """The seed of torch's CPU generator that draws the latents of a pair and seed."""
    return derived_seed(pair.source_prompt, pair.target_prompt, str(seed))


def noise(shape: tuple[int, ...], *parts: str) -> Tensor:
    """Standard normal values, float32 on the CPU, determined by ``parts``."""
    return drawn(shape, derived_seed(*parts))


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal values, float32 on the CPU."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def derived_seed(*parts: str) -> int:
    """A 63-bit seed from text, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
