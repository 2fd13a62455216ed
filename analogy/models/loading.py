"""Load a pipeline from a verified source onto a device."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analogy.core.errors import ModelError
from analogy.models.families import FAMILIES, family_of, with_family
from analogy.models.folders import NETWORK, parts_of, weight_files
from analogy.models.libraries import diffusers, diffusers_logging, transformers_logging
from analogy.models.lora import fuse_lora
from analogy.models.networks import check_converted, load_network, loading, refuse_odd_keys
from analogy.models.placement import place
from analogy.models.places import ModelSource
from analogy.models.quantization import quantization_of
from analogy.models.replay import Replay
from analogy.models.transformer_file import TRANSFORMER, is_gguf, load_transformer
from analogy.models.trust.pipelines import check_pipeline
from analogy.models.untested import check_untested

#: Modules of classes that transformers 5 has but does not export.
_DEEPER = {"T5GemmaEncoder": "transformers.models.t5gemma.modeling_t5gemma"}


def load_pipeline(
    source: ModelSource, *, device: str, dtype: str, offload: str | None = None
) -> Any:
    """Load a pipeline onto its device, in its dtype, with its LoRA fused and no progress bars.

    ``offload``: how its networks are kept on the CPU until they are used, one of
    :data:`~analogy.core.fields.OFFLOADS`; None to keep all of them on the device.

    Only safetensors are loaded, and only files that :func:`find_pipeline` found. Half-precision
    files are used if the folder has them, unless ``dtype`` is float32 and the folder has that, too.
    Raises :class:`ModelError` for files that are refused, invalid or do not fit each other.
    """
    # The bars of every part's loading would hide the run's own.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # Checked here as well: the folder may be another machine's, or changed since it was found.
    family, index = check_pipeline(source.folder, weights=source.file is None)
    if offload == "sequential" and is_gguf(source.transformer):
        raise ModelError(
            f"--offload sequential: expected weights that are not quantized, got "
            f"{source.transformer}, whose tensors lose their format when they are moved one by "
            "one; choose --offload model or group"
        )
    loader = getattr(diffusers, family.pipeline)
    options: dict[str, Any] = {
        "torch_dtype": getattr(torch, dtype),
        "local_files_only": True,
        **family.load_options,
        # Parts that the folder omits on purpose, such as SD3's T5 encoder, must be passed as None.
        **{name: None for name, part in index.items() if part == [None, None]},
    }
    what = f"a {family.pipeline} in the format of save_pretrained"
    with warnings.catch_warnings():
        # Libraries warn of fp16 weights that are loaded in another dtype; that is intended here.
        warnings.simplefilter("ignore")
        if source.file is not None:
            for name, (library, kind) in parts_of(source.folder).items():
                if library == "diffusers" and NETWORK.fullmatch(name) and name not in options:
                    found = getattr(diffusers, kind, None)
                    check_converted(found, source.file, source.folder / name)
            with loading(source.file, f"a {family.pipeline} in one file, as {source.folder} says"):
                pipeline = loader.from_single_file(
                    str(source.file), config=str(source.folder), **options
                )
            for name, part in _networks_of(pipeline).items():
                refuse_odd_keys(f"{source.file}: {name}", part)
        else:
            networks = _load_networks(source, dtype=dtype, skipped=options)
            with loading(source.folder, what):
                pipeline = loader.from_pretrained(source.folder, **options, **networks)
        if source.lora is not None:
            fuse_lora(pipeline, source.lora)
    pipeline.set_progress_bar_config(disable=True)
    if device.startswith("cuda"):
        # The memory layout in which a GPU's convolutions are fastest.
        is_rounded = source.quantize is not None or is_gguf(source.transformer)
        names = [family.decoder] if is_rounded else [family.denoiser, family.decoder]
        for part in (getattr(pipeline, name) for name in names):
            if all(weights.ndim < 5 for weights in part.parameters()):  # no convolutions in 3D
                part.to(memory_format=torch.channels_last)
    place(pipeline, device, decoder=family.decoder, offload=offload)
    with_family(pipeline, family)
    _check_fit(pipeline, source.folder)
    if isinstance(family, Replay) and not FAMILIES.is_installed(family.pipeline):
        check_untested(pipeline, family)
    return pipeline


def _check_fit(pipeline: Any, folder: Path) -> None:
    """Encode one prompt; raise :class:`ModelError` unless a pipeline's parts fit each other.

    Each part may be complete and yet belong to another model than the rest.
    """
    family = family_of(pipeline)
    with torch.inference_mode(), loading(folder, "tokenizers that fit the text encoders"):
        made = family.empty(pipeline)
    for of, (takes, has) in family.widths(pipeline, made).items():
        if isinstance(takes, int) and takes != has:
            raise ModelError(
                f"{folder}: expected {of} of {takes:,} channels, as {family.denoiser}/config.json "
                f"says, got {has:,} of its other parts: they are of another model; fetch or save "
                "the model again"
            )


def _load_networks(
    source: ModelSource, *, dtype: str, skipped: Mapping[str, object]
) -> dict[str, nn.Module]:
    """The parts of a folder's pipeline that have weights, by name, loaded from their files."""
    files = weight_files(source, dtype=dtype)
    networks = {}
    for name, (library, kind) in parts_of(source.folder).items():
        folder = source.folder / name
        if name in skipped or not NETWORK.fullmatch(name):
            continue
        with loading(source.folder / "model_index.json", f"a class of {library} for {name}"):
            module = importlib.import_module(_DEEPER.get(kind, library))
            found = getattr(module, kind)
        if source.transformer is not None and name == TRANSFORMER:
            networks[name] = load_transformer(
                found, source.transformer, folder, dtype=getattr(torch, dtype)
            )
            continue
        is_half = any(".fp16" in file.name for file in files if file.parent == folder)
        networks[name] = load_network(
            found, folder, dtype=getattr(torch, dtype), variant="fp16" if is_half else None,
            quantization=quantization_of(source, name, module, dtype=dtype),
        )  # fmt: skip
    return networks


def _networks_of(pipeline: Any) -> dict[str, nn.Module]:
    parts = pipeline.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module)}
