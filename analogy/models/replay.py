"""One family for every pipeline with an ``encode_prompt``: its output is recorded and replayed.

The pipeline's own call does the work. To encode a prompt, it runs on that prompt until it calls its
denoiser for the first time, and what ``encode_prompt`` returned is recorded. To denoise, it runs on
placeholder prompts: ``encode_prompt`` returns the steered tensors, and the run ends where latents
are to be decoded. So the suite need not describe names of arguments, packing, scaling and defaults
of a pipeline a second time.

The pipeline draws the latents and all further noise of an image from a generator for this image,
whose seed is made of the image's starting noise.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from threading import RLock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from analogy.core.errors import ModelError
from analogy.models.declared import declared_parts, lacking
from analogy.models.families import PipelineFamily, Sampling
from analogy.models.libraries import diffusers
from analogy.models.memory import MemoryFullError, memory_said
from analogy.models.networks import read_object, reason
from analogy.models.reading import Given, PromptReader, decoders_of, listening
from analogy.models.recorded import TOKENS, Layout, layout_of
from analogy.models.replay_table import (
    DISTILLED,
    GUIDER,
    ROWS,
    TRUE_CFG,
    Knob,
    PipelineRow,
)
from analogy.steering.conditioning import Conditioning

#: How many numbers an image's starting noise has. The sign of each is a bit of its generator's
#: seed; the last digits cannot be used, because they differ between processors.
SEED_BITS = 63

#: The prompt with which the pipeline's call denoises; it has no effect.
PLACEHOLDER = "x"

#: Arguments that keep a pipeline from changing the prompt or the size it was given.
_AS_ASKED: Mapping[str, object] = {
    "use_resolution_binning": False,
    "clean_caption": False,
    "enable_prompt_rewrite": False,
    "use_pe": False,
    "render_text_images": False,
}

#: A guidance scale at which a pipeline encodes the negative prompt, too.
_GUIDED = 4.0

#: Pixels a side if neither the call nor the configuration gives them.
_USUAL_SIZE = 1024

_LAYOUT, _READER = "_analogy_layout", "_analogy_reader"

_ATTENTION = RLock()


class _Interrupted(BaseException):
    """Ends a pipeline's call. It is not an Exception, which a pipeline may catch."""


class Replay(PipelineFamily):
    """The family of a pipeline's class, made from its name and its :class:`PipelineRow`."""

    prompts_at_once = 1

    def __init__(self, pipeline: str, row: PipelineRow) -> None:
        self.pipeline = pipeline
        self._row = row
        kind: Any = getattr(diffusers, pipeline, None)
        if not hasattr(kind, "encode_prompt"):
            raise ModelError(
                f"{pipeline}: expected a pipeline of diffusers {diffusers.__version__} with an "
                f"encode_prompt: {lacking(pipeline) or 'it has none'}"
            )
        self._call = inspect.signature(kind.__call__).parameters
        self._encoding = inspect.signature(kind.encode_prompt).parameters
        self.parts = {**declared_parts(kind), **row.parts}
        self.denoiser = "transformer" if "transformer" in self.parts else "unet"
        self.decoder = row.decoder
        self.knob, self.second_knob = row.guidance, row.second
        self.load_options = dict.fromkeys(row.unloaded)
        self.hides_masked = row.hides_masked
        self.counted = row.counted
        if "safety_checker" in self.parts:
            self.load_options = {"safety_checker": None, "requires_safety_checker": False}

    # -- conditioning

    def encode(self, pipeline: Any, prompts: Sequence[str]) -> list[Conditioning]:
        """As :meth:`Family.encode`, one prompt at a time; their numbers of tokens may differ.

        Raises ``ModelError`` if encoding fails, or if its output fits no layout.
        """
        reader, found = _reader(self, pipeline), []
        with _named(pipeline):
            for text in prompts:
                made, given = encoded(self, pipeline, text)
                found.append(replace(made, readings=reader(text, made, given)))
        return found

    def empty(self, pipeline: Any) -> Conditioning:
        """The conditioning of an empty prompt.

        It is not the negative prompt's: that is fixed, so the layout has it.
        """
        return self.encode(pipeline, [""])[0]

    def _layout(self, pipeline: Any) -> Layout:
        """The pipeline's layout, found on first use, and kept by the pipeline and its copies."""
        found = vars(pipeline).get(_LAYOUT)
        if found is None:
            with _named(pipeline):
                record = partial(_recorded, self, pipeline)
                found = layout_of(record, is_single=self._row.is_single)
            vars(pipeline)[_LAYOUT] = found
        assert isinstance(found, Layout)
        return found

    # -- denoising

    def latent_shape(self, pipeline: Any, size: int) -> tuple[int, ...]:
        """``(63,)``: numbers whose signs are the seed of the generator of an image's latents."""
        return (SEED_BITS,)

    def denoise(
        self,
        pipeline: Any,
        conditionings: Sequence[Conditioning],
        empty: Conditioning,
        latents: Tensor,
        sampling: Sampling,
    ) -> Tensor:
        """As :meth:`Family.denoise`: the latents that the pipeline gives its decoder.

        Conditionings with the same numbers of tokens are denoised together.
        """
        layout = self._layout(pipeline)
        groups: dict[object, list[int]] = {}
        for i, each in enumerate(conditionings):
            alone = layout.is_single or self._row.is_single
            key = i if alone else tuple(each.carried[TOKENS].tolist())
            groups.setdefault(key, []).append(i)
        final: dict[int, Tensor] = {}
        for places in groups.values():
            made = self._denoised(
                pipeline, layout.returned([conditionings[i] for i in places]),
                [generator_of(latents[i]) for i in places], sampling,
            )  # fmt: skip
            final.update(zip(places, made, strict=True))
        return torch.stack([final[i] for i in range(len(conditionings))])

    def _denoised(
        self, pipeline: Any, returned: Sequence[Any], generators: list[torch.Generator],
        sampling: Sampling,
    ) -> Tensor:  # fmt: skip
        """Denoise one batch. ``returned``: the results for each call of ``encode_prompt``."""
        twin = twin_of(pipeline, scheduler=pipeline.scheduler)
        answers = iter(returned)

        def encode_prompt(*_: Any, **__: Any) -> Any:
            return next(answers)

        decoded: list[Tensor] = []

        def decode(latents: Tensor, *_: Any, **__: Any) -> Any:
            decoded.append(latents)
            raise _Interrupted

        decoder = _replace(twin, self.decoder, decode=decode)
        vars(decoder)["to"] = lambda *_, **__: decoder  # a pipeline may upcast it for what follows
        vars(twin)["encode_prompt"] = encode_prompt
        vars(twin).update(self.attributes(pipeline, sampling))
        if self._row.asks_encoder and twin.text_encoder is None:  # it was dropped
            vars(twin)["text_encoder"] = SimpleNamespace(dtype=getattr(twin, self.denoiser).dtype)
        with _kept_attention(pipeline, self.denoiser), suppress(_Interrupted):
            self._run(twin, [PLACEHOLDER] * len(generators), sampling, generators)
        if not decoded:
            raise ModelError(
                f"{self.pipeline}: expected its call to decode latents by {self.decoder}"
            )
        return decoded[0]

    def decode(self, vae: Any, latents: Tensor, size: int) -> Tensor:
        """As :meth:`Family.decode`: a video's first frame, and an RGBA image's colours alone.

        Raises ``ModelError`` if the images do not have ``size`` pixels a side.
        """
        images: Tensor = vae.decode(latents, **self._row.decoding).sample
        images = images[:, :, 0] if images.ndim == 5 else images
        images = images[:, :3]  # without an alpha channel
        if tuple(images.shape[-2:]) != (size, size):
            raise ModelError(
                f"{self.pipeline}: expected images of {size}x{size} pixels, got "
                f"{images.shape[-1]}x{images.shape[-2]}: the pipeline rounds this size; choose "
                "another --size, such as a multiple of 64"
            )
        return images

    def arguments(self, sampling: Sampling) -> dict[str, Any]:
        """The arguments of the pipeline's call, besides prompts, generators and size.

        With these, a prompt, a generator and a size, the pipeline's own call makes the suite's
        image.
        """
        made: dict[str, Any] = {"num_inference_steps": sampling.steps, **self._row.fixed}
        guidance = max(sampling.guidance, self._row.least_guidance)
        scales = ((self.knob, guidance), (self.second_knob, sampling.second))
        is_guided = False
        for knob, scale in scales:
            if knob is None or scale is None:
                continue
            if knob != GUIDER:
                made[knob.name] = scale
            is_guided |= scale > (1.0 if knob == TRUE_CFG else 0.0) and knob.kind != DISTILLED
        made |= {name: value for name, value in _AS_ASKED.items() if name in self._call}
        if self._needs_negative and is_guided:
            made["negative_prompt"] = ""
        return made

    def attributes(self, pipeline: Any, sampling: Sampling) -> dict[str, Any]:
        """The attributes that the pipeline needs for its call to use this size and guidance."""
        made: dict[str, Any] = {}
        for name, rule in self._row.from_size.items():
            side = sampling.size
            is_latents = rule == "latents"
            made[name] = side // pipeline.vae_scale_factor if is_latents else [(side, side)]
        for name in ("guider", "ocr_guider") if self.knob == GUIDER else ():
            guider, guidance = getattr(pipeline, name), sampling.guidance
            if guider is not None:
                changed = {"guidance_scale": guidance, "enabled": guidance > 1.0}
                # Without diffusers' own entries, which would set these two back.
                own = {k: v for k, v in guider.config.items() if not k.startswith("_")}
                made[name] = type(guider).from_config({**own, **changed})
        return made

    @property
    def _needs_negative(self) -> bool:
        """True for a pipeline that guides only if it is given a negative prompt."""
        by_encoding = {"do_classifier_free_guidance", "guidance_scale"} & self._encoding.keys()
        return "negative_prompt" in self._call and not by_encoding

    def _run(
        self, twin: Any, prompts: list[str], sampling: Sampling,
        generators: list[torch.Generator] | None = None,
    ) -> None:  # fmt: skip
        given = self.arguments(sampling)
        if len(prompts) > 1 and "negative_prompt" in given:
            given["negative_prompt"] = [given["negative_prompt"]] * len(prompts)
        if generators is not None:
            given["generator"] = generators if len(generators) > 1 else generators[0]
        twin(
            prompt=prompts if len(prompts) > 1 else prompts[0],
            height=sampling.size, width=sampling.size, **given,
        )  # fmt: skip

    # -- what the class and the folder say

    def widths(self, pipeline: Any, made: Conditioning) -> Mapping[str, tuple[Any, int]]:
        """Empty: no configuration gives the denoiser's channels for every pipeline."""
        return {}

    def native_size(self, folder: Path) -> int:
        """As :meth:`Family.native_size`: the call's default, else the denoiser's configuration,
        else 1024.
        """
        default = self._default("height")
        if isinstance(default, int):
            return default
        what = "a network's configuration"
        denoiser = read_object(folder / self.denoiser / "config.json", what=what)
        decoder = read_object(folder / self.decoder / "config.json", what=what)
        if "sample_size" in denoiser and "block_out_channels" in decoder:
            return super().native_size(folder)
        return _USUAL_SIZE

    def size_of(self, pipeline: Any) -> int:
        """As :meth:`Family.size_of`."""
        default = self._default("height")
        if isinstance(default, int):
            return default
        side = getattr(getattr(pipeline, self.denoiser).config, "sample_size", None)
        scale = getattr(pipeline, "vae_scale_factor", None)
        return side * scale if isinstance(side, int) and isinstance(scale, int) else _USUAL_SIZE

    def defaults(self) -> tuple[int, float]:
        """Steps and guidance that the pipeline's call uses by itself; 0 if it has no guidance."""
        guidance = self._row.guidance_default
        if guidance is None:
            guidance = 0.0 if self.knob is None else self._default(self.knob.name)
        return self._default("num_inference_steps"), guidance

    def _default(self, name: str) -> Any:
        found = self._call.get(name)
        return None if found is None else found.default


def _is_needed(second: Knob | None, denoiser: Any) -> bool:
    """True if a second guidance changes what a call encodes, or if the denoiser needs it."""
    if second is None:
        return False
    return second.kind != DISTILLED or bool(denoiser.config.get("guidance_embeds"))


def _recorded(
    family: Replay, pipeline: Any, prompts: Sequence[str], given: list[Given] | None = None
) -> list[Any]:
    """What ``encode_prompt`` returns at each call, for these prompts and the negative one.

    ``given``: a list to which the inputs of the text encoders are added. Raises ``ModelError``
    if the pipeline does not call ``encode_prompt``.
    """
    twin = twin_of(pipeline)
    own = twin.encode_prompt
    recorded: list[Any] = []

    def encode_prompt(*args: Any, **options: Any) -> Any:
        made = own(*args, **options)
        recorded.append(made)
        return made

    def stop(*_: Any, **__: Any) -> Any:
        raise _Interrupted

    vars(twin)["encode_prompt"] = encode_prompt
    if given is not None:
        for name, forward in listening(pipeline, given).items():
            _replace(twin, name, forward=forward)
    second = _GUIDED if _is_needed(family.second_knob, getattr(pipeline, family.denoiser)) else None
    sampling = Sampling(2, _GUIDED, family.size_of(pipeline), second)
    vars(twin).update(family.attributes(pipeline, sampling))
    with _kept_attention(pipeline, family.denoiser), suppress(_Interrupted):
        _replace(twin, family.denoiser, forward=stop)
        family._run(twin, list(prompts), sampling)
    if not recorded:
        raise ModelError("its call asks its denoiser without a call of encode_prompt")
    return recorded


def encoded(family: Replay, pipeline: Any, text: str) -> tuple[Conditioning, list[Given]]:
    """A text's conditioning, and the inputs of the text encoders for it."""
    given: list[Given] = []
    calls = _recorded(family, pipeline, [text], given)
    return family._layout(pipeline).conditioning(calls), given


def _reader(family: Replay, pipeline: Any) -> PromptReader:
    """The pipeline's prompt reader, made on first use, and kept as the layout is."""
    found = vars(pipeline).get(_READER)
    if found is None:
        leaves = family._layout(pipeline).leaves()
        growing = {leaf.name for leaf in leaves if leaf.tokens is not None}
        encode = partial(encoded, family, pipeline)
        with _named(pipeline):
            found = PromptReader(decoders_of(pipeline), family._row.encoders, growing, encode)
        vars(pipeline)[_READER] = found
    assert isinstance(found, PromptReader)
    return found


def twin_of(pipeline: Any, scheduler: Any = None) -> Any:
    """A copy with the same networks, which may be changed; ``scheduler``: None for a new one."""
    twin = copy.copy(pipeline)
    own = pipeline.scheduler
    vars(twin)["scheduler"] = scheduler or type(own).from_config(own.config)
    return twin


def _replace(twin: Any, name: str, **methods: Callable[..., Any]) -> Any:
    """Replace a part of a copy by one with other methods and the same weights; return it."""
    part = copy.copy(getattr(twin, name))
    vars(part).update(methods)
    vars(twin)[name] = part
    return part


@contextmanager
def _kept_attention(pipeline: Any, denoiser: str) -> Iterator[None]:
    """Restore the attention of a pipeline with perturbed-attention guidance.

    Its call replaces the attention processors of some layers, and restores them only if it runs to
    its end. Threads share the layers, so only one call runs at a time.
    """
    if not hasattr(pipeline, "pag_attn_processors"):
        yield
        return
    part = getattr(pipeline, denoiser)
    with _ATTENTION:
        before = dict(part.attn_processors)
        try:
            yield
        finally:
            part.set_attn_processor(before)


def generator_of(noise: Tensor) -> torch.Generator:
    """The generator of an image's latents and further noise, on the CPU.

    ``noise``: ``(63,)``; the sign of each number is a bit of the seed.
    """
    bits = "".join("1" if value > 0 else "0" for value in noise.tolist())
    return torch.Generator("cpu").manual_seed(int(bits, 2))


@contextmanager
def _named(pipeline: Any) -> Iterator[None]:
    """Turn an error within the block into a ``ModelError`` with the pipeline's class name."""
    name = type(pipeline).__name__
    try:
        with memory_said(f"encoding prompts by {name}"):
            yield
    except MemoryFullError:
        raise
    except Exception as error:  # libraries raise errors of any type
        raise ModelError(f"{name}: its prompts cannot be encoded: {reason(error)}") from error


@cache
def _family(name: str) -> Replay:
    return Replay(name, ROWS[name])


def __getattr__(name: str) -> Replay:
    """Each class of ``ROWS`` is an attribute of this module, made at its first use."""
    if name in ROWS:
        return _family(name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
