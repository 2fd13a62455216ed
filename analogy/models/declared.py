"""What a pipeline's class declares: its parts, and whether replay supports it."""

from __future__ import annotations

import inspect
import typing
from types import UnionType
from typing import Any

from analogy.models.families import CLIP_IMAGE_ENCODER, CLIP_IMAGE_PROCESSOR, SCHEDULER
from analogy.models.libraries import diffusers
from analogy.models.replay_table import NOT_CARRIED


def declared_parts(kind: Any) -> dict[str, tuple[str, ...]]:
    """The parts of a pipeline's class, each with the classes that its constructor declares."""
    found: dict[str, tuple[str, ...]] = {}
    for name, declared in typing.get_type_hints(kind.__init__).items():
        kinds = [
            each
            for each in _flattened(declared)
            if isinstance(each, type) and each.__module__.partition(".")[0] in _LIBRARIES
        ]
        if name == "scheduler":
            found[name] = SCHEDULER
        elif kinds:
            found[name] = tuple(dict.fromkeys(same for each in kinds for same in _names(each)))
    return found


_LIBRARIES = ("diffusers", "transformers")


def _flattened(declared: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    if typing.get_origin(declared) in (typing.Union, UnionType):
        return [kind for each in typing.get_args(declared) for kind in _flattened(each)]
    return [declared]


def _names(kind: type) -> tuple[str, ...]:
    """``library.Class`` of a class, and of the classes that read the same files."""
    name = kind.__name__
    if name == "StableDiffusionSafetyChecker":
        return ("stable_diffusion.StableDiffusionSafetyChecker",)
    if name == "CLIPVisionModelWithProjection":
        return CLIP_IMAGE_ENCODER
    if name.startswith("CLIPImageProcessor"):
        return CLIP_IMAGE_PROCESSOR
    full = f"{kind.__module__.partition('.')[0]}.{name}"
    if name.endswith(("Tokenizer", "TokenizerFast")):
        return (full.removesuffix("Fast"), f"{full.removesuffix('Fast')}Fast")
    return (full,)


def lacking(name: str) -> str | None:
    """Why the suite does not support a pipeline of this name, for messages.

    Returns None if the class shows no reason. Imports nothing but what diffusers itself exports.
    """
    if name in NOT_CARRIED:
        return NOT_CARRIED[name]
    try:
        kind = getattr(diffusers, name if name.endswith("Pipeline") else "")
        if not issubclass(kind, diffusers.DiffusionPipeline):
            raise TypeError(name)
        call = inspect.signature(kind.__call__).parameters
    except Exception:  # whatever diffusers raises for a name, or for a class without its packages
        return "the diffusers that is installed has no such pipeline"
    needed = [
        each for each in call if "image" in each and call[each].default is inspect.Parameter.empty
    ]
    if needed:
        return f"it needs an input image ({needed[0]})"
    if not hasattr(kind, "encode_prompt"):
        return "it has no encode_prompt, whose tensors the suite steers"
    if "prompt" not in call:
        return "its call takes no prompt"
    if {"num_frames", "audio_length_in_s"} & call.keys():
        return "it makes videos or sounds"
    try:
        parts = declared_parts(kind)
    except Exception:  # a constructor may name types that are not installed
        return "its constructor does not declare the classes of its parts"
    if not {"transformer", "unet"} & parts.keys() or "vae" not in parts:
        return "it has no part transformer or unet with a vae"
    return None
