"""LoRA adapters: find their file, check it, fuse it into a pipeline."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from os.path import expanduser
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from analogy.core.errors import ModelError
from analogy.models.families import family_of
from analogy.models.fingerprints import file_fingerprint
from analogy.models.memory import MemoryFullError, memory_said
from analogy.models.networks import check_adapter, quiet_libraries, reason, shapes_in
from analogy.models.places import ModelSource, absent, is_hub_id, listing
from analogy.models.trust.adapters import check_lora
from analogy.models.trust.rules import refuse_pickles

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"


def with_lora(source: ModelSource, lora: str, *, offline: bool) -> ModelSource:
    """A source with a LoRA's file, found and checked. Raises ModelError if there is none."""
    if importlib.util.find_spec("peft") is None:
        raise ModelError("--lora needs the package peft, which is not installed: pip install peft")
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
    """Add the LoRA to the weights themselves, so that it costs nothing from here on."""
    try:
        with quiet_libraries(), memory_said("loading the LoRA"):
            pipeline.load_lora_weights(
                str(lora.parent), weight_name=lora.name, use_safetensors=True, local_files_only=True
            )
    except MemoryFullError:
        raise
    except Exception as error:  # diffusers raises whatever its reader stumbled on
        raise ModelError(
            f"--lora {lora}: does not fit a {type(pipeline).__name__} ({reason(error)}); choose a "
            "LoRA that was trained for this model"
        ) from error
    if not pipeline.get_active_adapters():
        raise ModelError(
            f"--lora {lora}: none of its weights belong to a {type(pipeline).__name__}; "
            "choose a LoRA that was trained for this model's family"
        )
    check_adapter(pipeline, lora, getattr(pipeline, family_of(pipeline).denoiser).dtype)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
