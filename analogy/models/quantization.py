"""Quantization of a pipeline's denoiser and text encoders, by diffusers and transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch

from analogy.core.errors import ModelError, OptionError
from analogy.models.libraries import torchao
from analogy.models.places import ModelSource

#: The parts that are quantized. They have nearly all weights. A decoder is small, and its rounding
#: errors would be visible.
QUANTIZED = re.compile(r"unet|transformer|text_encoder(_\d)?")


@dataclass(frozen=True, slots=True)
class Quantization:
    """One way to quantize.

    - ``package``: the package it needs; ``on_cpu``: False if diffusers supports it on GPUs only;
    - ``dtypes``: the dtypes that the quantized network may compute in; empty for any;
    - ``config``: makes its configuration from a library, diffusers or transformers, and a dtype.
    """

    package: str
    on_cpu: bool
    dtypes: tuple[str, ...]
    config: Callable[[Any, torch.dtype], Any]


#: Quantizations by the names of :data:`~analogy.core.fields.QUANTIZATIONS`. NF4 is what diffusers'
#: documentation uses for four bits.
QUANTIZATIONS: Mapping[str, Quantization] = {
    "bitsandbytes_8bit": Quantization(
        "bitsandbytes", False, (), lambda library, _: library.BitsAndBytesConfig(load_in_8bit=True)
    ),
    "bitsandbytes_4bit": Quantization(
        "bitsandbytes", False, (),
        lambda library, dtype: library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        ),
    ),
    "torchao_int8": Quantization(
        "torchao", True, ("bfloat16",),
        lambda library, _: library.TorchAoConfig(torchao.Int8WeightOnlyConfig()),
    ),
    "torchao_float8": Quantization(
        "torchao", True, ("bfloat16",),
        lambda library, _: library.TorchAoConfig(torchao.Float8WeightOnlyConfig()),
    ),
}  # fmt: skip


def check_device_for(device: str, *, quantize: str | None, offload: str | None) -> None:
    """Raise ``OptionError`` for a quantization or offloading that a device does not support."""
    if device != "cpu":
        return
    if offload is not None:
        raise OptionError(
            place=f"--offload {offload}",
            expected="a GPU, to which networks are moved from the CPU",
            got="--device cpu",
            advice="leave it out, or choose another device",
        )
    if quantize is not None and not QUANTIZATIONS[quantize].on_cpu:
        others = [name for name, each in QUANTIZATIONS.items() if each.on_cpu]
        raise OptionError(
            place=f"--quantize {quantize}",
            expected=f"a GPU, on which alone diffusers has {QUANTIZATIONS[quantize].package}",
            got="--device cpu",
            advice=f"choose another device, or {' or '.join(others)}",
        )


def with_quantization(source: ModelSource, name: str, *, dtype: str) -> ModelSource:
    """The source with a quantization, which is applied on loading and named in the fingerprint.

    Raises :class:`ModelError` if the package is missing, if it does not compute in ``dtype``, or if
    the source has a single file, a transformer's file or a LoRA.
    """
    found = QUANTIZATIONS[name]
    if find_spec(found.package) is None:
        raise ModelError(
            f"--quantize {name}: expected the package {found.package}, which is not installed; "
            f"install it with: pip install {found.package}"
        )
    if found.dtypes and dtype not in found.dtypes:
        raise ModelError(
            f"--quantize {name}: expected {' or '.join(found.dtypes)}, in which {found.package}'s "
            f"layers compute, got {dtype}; add --dtype {found.dtypes[0]}"
        )
    if (file := source.file or source.transformer) is not None:
        raise ModelError(
            f"--quantize {name}: expected a folder or a hub id, got the single file {file}, "
            "which diffusers quantizes in no step of its loading; save the model as a folder"
        )
    if source.lora is not None:
        raise ModelError(
            f"--quantize {name}: expected no --lora with it, got {source.lora}: the weights that a "
            "LoRA is fused into have been rounded; fuse it, save the model as a folder, and "
            "quantize that"
        )
    return replace(source, fingerprint=f"{source.fingerprint}+{name}", quantize=name)


def quantization_of(source: ModelSource, part: str, library: Any, *, dtype: str) -> Any:
    """A part's quantization configuration for its library; None if the part is not quantized."""
    if source.quantize is None or not QUANTIZED.fullmatch(part):
        return None
    return QUANTIZATIONS[source.quantize].config(library, getattr(torch, dtype))
