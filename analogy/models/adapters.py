"""Load a LoRA's layers without changing the denoiser that they are for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from analogy.core.errors import ModelError
from analogy.models.families import family_of
from analogy.models.libraries import peft_tuners
from analogy.models.lora import load_adapter
from analogy.models.lora_names import by_module
from analogy.models.networks import read_adapter
from analogy.steering.hooks import sharing


@dataclass(frozen=True, slots=True)
class LowRank:
    """A LoRA's two layers for one module, linear layers or convolutions, and the file's scale."""

    down: nn.Module
    up: nn.Module
    scale: float

    def __call__(self, given: Tensor, strengths: Tensor) -> Tensor:
        """``strengths[i] * scale * up(down(given[i]))``.

        ``given``: the module's input ``(rows, ...)``; ``strengths``: float32 ``(rows,)``.
        """
        inner = self.down(given)
        by_row = (strengths * self.scale).view(-1, *[1] * (inner.ndim - 1))
        return self.up((inner * by_row).to(inner.dtype))


Adapter: TypeAlias = Mapping[str, LowRank]
"""What a LoRA adds to the outputs of the denoiser's modules, by the module's name."""

_NAME = "analogy_slider"
"""The adapter's name in peft."""

_lock = Lock()
_read: WeakKeyDictionary[nn.Module, dict[object, Adapter]] = WeakKeyDictionary()


def adapter_of(pipeline: Any, file: Path, version: str, what: str) -> Adapter:
    """A LoRA's layers for a pipeline's denoiser. The denoiser is not changed.

    A file is read once for each denoiser. diffusers converts most formats, and peft makes the
    layers on a copy of the denoiser that shares its weights. ``version``: the file's digest;
    ``what``: the option and the file, for messages. Raises ``ModelError`` if the pipeline does not
    take the whole file.
    """
    part = family_of(pipeline).denoiser
    denoiser = getattr(pipeline, part)
    key = (file, version, denoiser.device, denoiser.dtype)
    with _lock:
        known = _read.setdefault(denoiser, {})
        if key not in known:
            known[key] = _loaded(pipeline, part, file, what)
        return known[key]


def _loaded(pipeline: Any, part: str, file: Path, what: str) -> Adapter:
    twin = copy.copy(pipeline)
    # Not by setattr, with which a pipeline records the classes of its parts.
    vars(twin)[part] = sharing(getattr(pipeline, part))
    with torch.inference_mode(False):  # peft cannot set weights in inference mode
        state = by_module(read_adapter(file)[0], getattr(pipeline, part), part)
        load_adapter(twin, file, what, state=state, name=_NAME)
    found = {}
    for name, module in getattr(twin, part).named_modules():
        if not isinstance(module, peft_tuners.BaseTunerLayer):
            continue
        layer: Any = module  # peft's layer classes have no common type with these attributes
        own = [key for key, _ in layer.named_parameters() if f".{_NAME}" in key]
        if not own:
            continue
        if sorted(own) != [f"lora_A.{_NAME}.weight", f"lora_B.{_NAME}.weight"]:
            raise ModelError(
                f"{what}: expected a plain LoRA, whose strength is a factor, got "
                f"{', '.join(own)} of the module {name}; choose one without DoRA and biases"
            )
        down, up = layer.lora_A[_NAME], layer.lora_B[_NAME]
        found[name] = LowRank(down, up, float(layer.scaling[_NAME]))
    return found
