"""LoRA adapters: find their file, check it, fuse it into a pipeline."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from os.path import expanduser
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import Tensor

from analogy.core.errors import ModelError
from analogy.models.families import family_of
from analogy.models.fingerprints import file_fingerprint
from analogy.models.lora_names import by_module
from analogy.models.memory import MemoryFullError, memory_said
from analogy.models.networks import (
    check_adapter,
    quiet_libraries,
    read_adapter,
    reason,
    shapes_in,
)
from analogy.models.places import ModelSource, absent, is_hub_id, listing
from analogy.models.transformer_file import TRANSFORMER, is_gguf
from analogy.models.trust.adapters import check_lora
from analogy.models.trust.rules import refuse_pickles

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"


def with_lora(source: ModelSource, lora: str, *, offline: bool) -> ModelSource:
    """A source with a LoRA's file, found and checked.

    Raises ModelError if the file is missing or invalid, if peft is not installed, or if the
    transformer is a GGUF file.
    """
    require_peft("--lora")
    if is_gguf(source.transformer):
        raise ModelError(
            f"--lora {lora}: expected a transformer whose weights are not quantized, got "
            f"{source.transformer}: a LoRA cannot be fused into these; choose the transformer as "
            ".safetensors"
        )
    path = Path(expanduser(lora)).absolute()
    if path.is_dir():
        file = _lora_in(path)
    elif path.is_file():
        refuse_pickles([path])
        file = path
    else:
        file = _hub_lora(lora, offline=offline)
    if file.suffix != ".safetensors":
        raise ModelError(f"--lora {lora}: expected a .safetensors file, got {file.name}")
    shapes_in(file)
    check_lora(file)
    name = file_fingerprint(f"{source.fingerprint}+{file.stem}", file)
    return replace(source, fingerprint=name, lora=file)


def require_peft(what: str) -> None:
    """Raise ``ModelError`` if peft, with which diffusers loads LoRAs, is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"{what} needs the package peft, which is not installed: pip install peft")


def _lora_in(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        refuse_pickles(folder.iterdir())
    if (folder / LORA_WEIGHTS) in files:
        return folder / LORA_WEIGHTS
    if len(files) != 1:
        raise ModelError(
            f"--lora {folder}: expected {LORA_WEIGHTS} or exactly one .safetensors file, found "
            f"{', '.join(file.name for file in files) or listing(folder)}; name the file"
        )
    return files[0]


def _hub_lora(lora: str, *, offline: bool) -> Path:
    name, _, revision = lora.partition("@")
    if not is_hub_id(name):
        raise ModelError(
            f"--lora {lora!r}: expected a .safetensors file or a folder that exists, or a hub id"
        )

    try:
        folder = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns="*.safetensors",
            local_files_only=offline,
        )
    except (OSError, ValueError) as error:
        raise absent(f"--lora {lora!r}", name, revision, error, offline=offline) from error
    return _lora_in(Path(folder))


def fuse_lora(pipeline: Any, lora: Path) -> None:
    """Add the LoRA to the weights themselves, so that it adds no cost to an image.

    Files with the keys of kohya's scripts are converted here for transformers. diffusers does so
    for UNets. Its conversion for FLUX.1 drops scales of the last layer.
    """
    part = family_of(pipeline).denoiser
    state = None
    if part == TRANSFORMER:
        state = by_module(read_adapter(lora)[0], getattr(pipeline, part), part)
    load_adapter(pipeline, lora, f"--lora {lora}", state=state)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def load_adapter(
    pipeline: Any, file: Path, what: str, *,
    state: dict[str, Tensor] | None = None, name: str | None = None,
) -> None:  # fmt: skip
    """Add a LoRA's layers to a pipeline's modules, all of them with the file's values.

    ``what``: the option and the file, for messages; ``state``: tensors in diffusers' format that
    replace the file's; ``name``: the adapter's name. Raises ``ModelError`` if the pipeline does
    not take the whole LoRA.
    """
    kind = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(
            f"{what}: expected a pipeline that takes a LoRA, got a {kind}, which in diffusers does "
            "not; choose another model"
        )
    source: dict[str, Any] = {"weight_name": file.name, "use_safetensors": True}
    try:
        with quiet_libraries(), memory_said("loading the LoRA"):
            pipeline.load_lora_weights(
                str(file.parent) if state is None else dict(state), adapter_name=name,
                local_files_only=True, **(source if state is None else {}),
            )  # fmt: skip
    except MemoryFullError:
        raise
    except Exception as error:  # diffusers' readers raise errors of any type
        raise ModelError(
            f"{what}: does not fit a {kind} ({reason(error)}); choose a "
            "LoRA that was trained for this model"
        ) from error
    if not pipeline.get_active_adapters():
        raise ModelError(
            f"{what}: none of its weights belong to a {kind}; "
            "choose a LoRA that was trained for this model's family"
        )
    given, has_scales = read_adapter(file) if state is None else (state, False)
    dtype = getattr(pipeline, family_of(pipeline).denoiser).dtype
    check_adapter(pipeline, given, what, dtype, has_scales_of_its_own=has_scales)
