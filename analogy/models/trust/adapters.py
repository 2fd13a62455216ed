"""Check the header of a LoRA's file."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from analogy.core.errors import ModelError
from analogy.models.trust.rules import refuse

# The settings in a LoRA's header that peft may be given. Others are accepted only if empty.
_LORA = frozenset(
    {
        "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "inference_mode",
        "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout",
        "peft_type", "peft_version", "r", "rank_pattern", "target_modules", "task_type",
        "use_dora", "use_rslora",
    }
)  # fmt: skip
_LORA_DEFAULTS = {"megatron_core": "megatron.core", "init_lora_weights": True}


def check_lora(file: Path) -> None:
    """Raise ModelError for a LoRA whose header has settings for peft beyond numbers and modules.

    Also raises ModelError if it is not a safetensors file.
    """
    try:
        with safe_open(str(file), "pt") as opened:
            header = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: not a safetensors file ({error})") from error
    if "lora_adapter_metadata" not in header:
        return
    try:
        settings = json.loads(header["lora_adapter_metadata"])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: its header's settings are not JSON ({error})") from error
    if not isinstance(settings, dict):
        refuse(file, "lora_adapter_metadata", settings, "a mapping of settings")
    for key, value in settings.items():
        name = key.rpartition(".")[2]
        if name in _LORA or value in (None, False, {}, []) or _LORA_DEFAULTS.get(name) == value:
            continue
        refuse(
            file, f"lora_adapter_metadata.{key}", value,
            f"{'nothing' if name not in _LORA_DEFAULTS else repr(_LORA_DEFAULTS[name])} there: "
            "peft may import a module for it or read other files; save the LoRA without",
        )  # fmt: skip
