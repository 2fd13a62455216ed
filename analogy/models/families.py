"""One adapter for each pipeline family; all differences between families are here.

:class:`Family` is the protocol. :class:`PipelineFamily` implements it for most diffusers pipelines,
so that a new family is a class of a few lines. A pipeline's family is found by the name of its
class, which ``model_index.json`` gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from analogy.core.errors import ModelError
from analogy.core.registry import Registry
from analogy.models.libraries import diffusers
from analogy.models.networks import read_object
from analogy.models.placement import computing_place
from analogy.models.replay_table import CFG, ROWS, Knob
from analogy.models.tokens import T5_TOKENS, TextEncoder
from analogy.steering.conditioning import Conditioning

#: Upper limits of latents a side and of blocks of a VAE. No image model has more, and no machine
#: has memory for more.
MOST_LATENTS, MOST_BLOCKS = 4096, 8

CLIP_TOKENIZER = ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast")
CLIP_IMAGE_ENCODER = ("transformers.CLIPVisionModelWithProjection",)
CLIP_IMAGE_PROCESSOR = (
    "transformers.CLIPImageProcessor", "transformers.CLIPImageProcessorFast",
    "transformers.CLIPImageProcessorPil", "transformers.CLIPFeatureExtractor",
)  # fmt: skip
#: Any scheduler of diffusers.
SCHEDULER = ("diffusers.*Scheduler",)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How images are sampled: denoising steps, guidance scale, pixels a side.

    ``second``: the scale of the family's second guidance, None for the pipeline's default.
    """

    steps: int
    guidance: float
    size: int
    second: float | None = None


@runtime_checkable
class Family(Protocol):
    """The protocol of a family of pipelines.

    - ``pipeline``: the name of the pipeline's class in diffusers;
    - ``denoiser`` and ``decoder``: the names of the parts that denoise and that decode latents;
    - ``load_options``: further arguments of ``from_pretrained``. A part that is named here is not
      loaded from the folder;
    - ``parts``: each part that ``model_index.json`` may name, with its allowed classes as
      ``library.Class``. A folder with any other part or class is refused.
    """

    pipeline: str
    denoiser: str
    decoder: str
    load_options: Mapping[str, object]
    parts: Mapping[str, tuple[str, ...]]

    def encode(self, pipeline: Any, prompts: Sequence[str]) -> list[Conditioning]:
        """Each prompt's conditioning, on the device and in the dtype of the text encoders.

        All conditionings of a pipeline have the same names and shapes, except that their numbers
        of tokens may differ.
        """
        ...

    def empty(self, pipeline: Any) -> Conditioning:
        """The conditioning of the pipeline's default negative prompt."""
        ...

    def latent_shape(self, pipeline: Any, size: int) -> tuple[int, ...]:
        """The shape of one image's starting noise, as the pipeline's call takes it."""
        ...

    def denoise(
        self,
        pipeline: Any,
        conditionings: Sequence[Conditioning],
        empty: Conditioning,
        latents: Tensor,
        sampling: Sampling,
    ) -> Tensor:
        """Denoise to the latents that the pipeline would decode, one for each conditioning.

        ``latents``: ``(n, *latent_shape)``, standard normal; ``empty``: the result of
        :meth:`empty`.
        """
        ...

    def decode(self, vae: Any, latents: Tensor, size: int) -> Tensor:
        """The VAE's images for latents of :meth:`denoise`: ``(n, 3, size, size)``, -1..1.

        ``vae``: the pipeline's or a copy in another dtype. ``latents`` have its dtype.
        """
        ...

    def widths(self, pipeline: Any, made: Conditioning) -> Mapping[str, tuple[Any, int]]:
        """The channels that the denoiser takes and those that the other parts give, by input.

        The two numbers differ if the pipeline's parts are of different models. ``made``: any
        conditioning of the pipeline.
        """
        ...

    def defaults(self) -> tuple[int, float]:
        """The pipeline's default number of steps and guidance scale."""
        ...

    def native_size(self, folder: Path) -> int:
        """Pixels a side of the images that a saved pipeline was trained for.

        Raises ``ModelError`` if its configuration has no valid size.
        """
        ...

    def size_of(self, pipeline: Any) -> int:
        """Pixels a side of the images that a loaded pipeline was trained for."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A family whose conditionings have a length or a mask that depends on the prompt.

    - ``counted``: the tokenizers whose number of tokens decides the length, as names of the
      pipeline's parts. None for all of them; empty if the length is the same for every prompt.
    """

    counted: tuple[str, ...] | None


class PipelineFamily:
    """A :class:`Family` without ``parts``, :meth:`encode` and :meth:`empty`, which subclasses add.

    It is for pipelines that take a conditioning's tensors as arguments of the same names, take
    those of the negative prompt with the prefix ``negative_``, and guide if the scale is above 1.

    - ``layout``: where each text encoder's tokens are in the token states, for methods that steer
      single tokens;
    - ``knob``: what the guidance scale sets in the pipeline, None if it has no guidance;
    - ``second_knob``: the same for a second guidance scale;
    - ``hides_masked``: True if the values of masked tokens have no effect on images, so that only
      the other tokens are kept;
    - ``prompts_at_once``: prompts that are encoded together.
    """

    layout: tuple[TextEncoder, ...] = ()
    knob: Knob | None = CFG
    second_knob: Knob | None = None
    hides_masked = False
    prompts_at_once = 64
    pipeline: str
    denoiser: str = "unet"
    decoder: str = "vae"
    load_options: Mapping[str, object] = {}
    parts: Mapping[str, tuple[str, ...]]

    def is_guided(self, guidance: float) -> bool:
        """True if the pipeline needs the negative prompt's conditioning at this guidance scale."""
        return guidance > 1.0

    def arguments(self, sampling: Sampling) -> dict[str, Any]:
        """The arguments of the pipeline's call that set the guidance."""
        return {"guidance_scale": sampling.guidance}

    def denoise(
        self,
        pipeline: Any,
        conditionings: Sequence[Conditioning],
        empty: Conditioning,
        latents: Tensor,
        sampling: Sampling,
    ) -> Tensor:
        """As :meth:`Family.denoise`, by the pipeline's own call."""
        place = computing_place(pipeline, getattr(pipeline, self.denoiser))
        given = stacked(conditionings, *place)
        if self.is_guided(sampling.guidance):
            for name, tensor in stacked([empty], *place).items():
                shape = (len(conditionings), *tensor.shape[1:])
                given[f"negative_{name}"] = tensor.expand(shape)
        final: Tensor = pipeline(
            **given,
            **self.arguments(sampling),
            latents=latents.to(*place),
            num_inference_steps=sampling.steps,
            height=sampling.size,
            width=sampling.size,
            output_type="latent",
        ).images
        return final

    def latent_shape(self, pipeline: Any, size: int) -> tuple[int, ...]:
        """Channels, height and width of the latents of one image of ``size`` pixels a side."""
        side = size // pipeline.vae_scale_factor
        return getattr(pipeline, self.denoiser).config.in_channels, side, side

    def decode(self, vae: Any, latents: Tensor, size: int) -> Tensor:
        """As :meth:`Family.decode`."""
        images: Tensor = vae.decode(self.for_decoder(vae, latents, size), return_dict=False)[0]
        return images

    def for_decoder(self, vae: Any, latents: Tensor, size: int) -> Tensor:
        """Latents from the denoiser in the shape and on the scale that the VAE takes."""
        mean = getattr(vae.config, "latents_mean", None)
        deviation = getattr(vae.config, "latents_std", None)
        if mean is None or deviation is None:
            return latents / vae.config.scaling_factor
        by_channel = latents.new_tensor([deviation, mean])[..., None, None]
        return latents * by_channel[0] / vae.config.scaling_factor + by_channel[1]

    def widths(self, pipeline: Any, made: Conditioning) -> Mapping[str, tuple[Any, int]]:
        """As :meth:`Family.widths`, for ``text`` and ``latents``."""
        config = getattr(pipeline, self.denoiser).config
        states = next(iter(made.states.values()))
        text = config.get("cross_attention_dim", config.get("joint_attention_dim"))
        return {
            "text": (text, states.shape[-1]),
            "latents": (config.get("in_channels"), pipeline.vae.config.latent_channels),
        }

    def defaults(self) -> tuple[int, float]:
        """As :meth:`Family.defaults`, from the signature of the pipeline's call."""
        call = inspect.signature(getattr(diffusers, self.pipeline).__call__).parameters
        return call["num_inference_steps"].default, call["guidance_scale"].default

    def native_size(self, folder: Path) -> int:
        """As :meth:`Family.native_size`, from the denoiser's ``sample_size``."""
        what = "a network's configuration"
        files = folder / self.denoiser / "config.json", folder / "vae" / "config.json"
        side = read_object(files[0], "sample_size", what=what)["sample_size"]
        blocks = read_object(files[1], "block_out_channels", what=what)["block_out_channels"]
        if not isinstance(side, int) or not 0 < side <= MOST_LATENTS:
            raise ModelError(
                f"{files[0]}: expected sample_size, latents a side, as a whole number from 1 to "
                f"{MOST_LATENTS:,}, got {side!r:.80}; correct it, or give --size"
            )
        if not isinstance(blocks, list) or not 0 < len(blocks) <= MOST_BLOCKS:
            raise ModelError(
                f"{files[1]}: expected block_out_channels as a list of 1 to {MOST_BLOCKS} numbers, "
                f"got {blocks!r:.80}; correct it, or give --size"
            )
        return side * int(2 ** (len(blocks) - 1))

    def size_of(self, pipeline: Any) -> int:
        """As :meth:`Family.size_of`."""
        denoiser = getattr(pipeline, self.denoiser)
        return int(denoiser.config.sample_size) * int(pipeline.vae_scale_factor)


class SDXL(PipelineFamily):
    """Stable Diffusion XL: SSD-1B, SDXL base, Turbo, Vega and their fine-tunes.

    Conditioned on the token states of two text encoders, side by side, and on the pooled vector
    of the second one.
    """

    pipeline = "StableDiffusionXLPipeline"
    layout = (
        TextEncoder("tokenizer", "text_encoder"),
        TextEncoder("tokenizer_2", "text_encoder_2"),
    )
    load_options: Mapping[str, object] = {"add_watermarker": False}
    parts: Mapping[str, tuple[str, ...]] = {
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
        """As :meth:`Family.encode`."""
        states, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), device=pipeline._execution_device, do_classifier_free_guidance=False
        )
        return [_with_pooled(*both) for both in zip(states, pooled, strict=True)]

    def empty(self, pipeline: Any) -> Conditioning:
        """As :meth:`Family.empty`."""
        _, states, _, pooled = pipeline.encode_prompt(
            "", device=pipeline._execution_device, do_classifier_free_guidance=True
        )
        return _with_pooled(states[0], pooled[0])


class SD(PipelineFamily):
    """Stable Diffusion 1.x and 2.x: conditioned on token states only."""

    pipeline = "StableDiffusionPipeline"
    layout = (TextEncoder("tokenizer", "text_encoder"),)
    #: The safety checker would replace some images by black ones, which the judge would score.
    load_options: Mapping[str, object] = {"safety_checker": None, "requires_safety_checker": False}
    parts: Mapping[str, tuple[str, ...]] = {
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
        """As :meth:`Family.encode`."""
        states, _ = pipeline.encode_prompt(
            list(prompts), pipeline._execution_device, 1, do_classifier_free_guidance=False
        )
        return [Conditioning({"prompt_embeds": each}) for each in states]

    def empty(self, pipeline: Any) -> Conditioning:
        """As :meth:`Family.empty`."""
        _, states = pipeline.encode_prompt(
            "", pipeline._execution_device, 1, do_classifier_free_guidance=True
        )
        return Conditioning({"prompt_embeds": states[0]})


class SD3(PipelineFamily):
    """Stable Diffusion 3 and 3.5: a transformer.

    Conditioned on the token states of three text encoders in one sequence, and on a pooled
    vector. The T5 encoder may be missing, as its makers allow: its token states are then zeros.
    """

    pipeline = "StableDiffusion3Pipeline"
    layout = (
        TextEncoder("tokenizer", "text_encoder"),
        TextEncoder("tokenizer_2", "text_encoder_2"),
        TextEncoder("tokenizer_3", "text_encoder_3", is_after=True, limit=T5_TOKENS),
    )
    denoiser = "transformer"
    parts: Mapping[str, tuple[str, ...]] = {
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
        """As :meth:`Family.encode`. None for the other encoders' prompts means the same prompt."""
        states, _, pooled, _ = pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=pipeline._execution_device,
            do_classifier_free_guidance=False,
        )
        return [_with_pooled(*both) for both in zip(states, pooled, strict=True)]

    def empty(self, pipeline: Any) -> Conditioning:
        """As :meth:`Family.empty`."""
        _, states, _, pooled = pipeline.encode_prompt(
            "", None, None, device=pipeline._execution_device, do_classifier_free_guidance=True
        )
        return _with_pooled(states[0], pooled[0])

    def for_decoder(self, vae: Any, latents: Tensor, size: int) -> Tensor:
        """As :meth:`PipelineFamily.for_decoder`, plus the VAE's ``shift_factor``."""
        return latents / vae.config.scaling_factor + vae.config.shift_factor


def _with_pooled(states: Tensor, pooled: Tensor) -> Conditioning:
    return Conditioning({"prompt_embeds": states}, {"pooled_prompt_embeds": pooled})


sdxl, sd, sd3 = SDXL(), SD(), SD3()

#: Families by the name of their pipeline's class.
FAMILIES: Registry[Family] = Registry(
    kind="model family",
    group="analogy.families",
    builtin={
        "StableDiffusionXLPipeline": "analogy.models.families:sdxl",
        "StableDiffusionPipeline": "analogy.models.families:sd",
        "StableDiffusion3Pipeline": "analogy.models.families:sd3",
        **{name: f"analogy.models.replay:{name}" for name in ROWS},
    },
    protocol=Family,  # type: ignore[type-abstract]
)


_OWN_FAMILY = "_analogy_family"


def with_family(pipeline: Any, family: Family) -> None:
    """Assign this family to a pipeline and its copies, whatever the name of their class."""
    vars(pipeline)[_OWN_FAMILY] = family


def family_of(pipeline: Any) -> Family:
    """The family of a loaded pipeline."""
    own = vars(pipeline).get(_OWN_FAMILY)
    return FAMILIES.get(type(pipeline).__name__) if own is None else own


def knobs_of(family: Family) -> tuple[Knob | None, Knob | None]:
    """What the guidance scale and the second one set in a family's pipelines; None for nothing.

    A family of another package without ``knob`` is taken to guide by ``guidance_scale``.
    """
    return getattr(family, "knob", CFG), getattr(family, "second_knob", None)


def stacked(
    conditionings: Sequence[Conditioning], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A batch on the computing device: each tensor by name, ``(n, *shape)``.

    Tensors are converted to ``dtype``, except carried ones of integers or booleans, such as masks.
    """
    batch = {}
    for name in conditionings[0].tensors():
        tensor = torch.stack([each.tensors()[name] for each in conditionings])
        keeps_type = name in conditionings[0].carried and not tensor.is_floating_point()
        batch[name] = tensor.to(device=device, dtype=tensor.dtype if keeps_type else dtype)
    return batch
