"""Check the folder of a judge."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analogy.core.errors import ModelError
from analogy.core.strict_json import Json
from analogy.models.libraries import open_clip
from analogy.models.trust.pipelines import check_part
from analogy.models.trust.rules import (
    CODE_KEYS,
    NO_CODE,
    NO_PICKLES,
    PICKLED,
    check_setting,
    entries_of,
    read_settings,
    refuse,
    refuse_code,
    sentence,
    shown,
)

OPEN_CLIP_CONFIG = "open_clip_config.json"
#: A judge's weights, in open_clip's own order.
JUDGE_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors",
)  # fmt: skip

_VISION = frozenset(
    {
        "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value",
        "patch_dropout", "attentional_pool", "attn_pooler_queries", "attn_pooler_heads",
        "no_ln_pre", "pos_embed_type", "final_ln_after_pool", "pool_type", "output_tokens",
        "act_kwargs", "norm_kwargs", "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads",
        "scale_attn_inner", "scale_attn", "scale_fc", "timm_model_name", "timm_model_pretrained",
        "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
    }
)  # fmt: skip
_TEXT = frozenset(
    {
        "context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs",
        "width", "heads", "layers", "mlp_ratio", "ls_init_value", "embed_cls", "pad_id", "eos_id",
        "no_causal_mask", "final_ln_after_pool", "pool_type", "proj_bias", "proj_type",
        "output_tokens", "act_kwargs", "norm_kwargs", "block_type", "qk_norm",
        "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc",
        "hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "dim_head",
        "n_queries", "attn_pooler_heads",
    }
)  # fmt: skip
_MODEL = frozenset(
    {
        "embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "quick_gelu", "custom_text",
        "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "output_dict", "pad_id",
    }
)  # fmt: skip
_APART = frozenset(
    {"vision_cfg", "text_cfg", "multimodal_cfg", "hf_tokenizer_name", "hf_model_name"}
)
_KEYWORDS = {
    "act_kwargs": frozenset({"approximate"}),
    "norm_kwargs": frozenset({"eps"}),
    "tokenizer_kwargs": frozenset({"clean", "strip_sep_token", "language", "reduction_mask"}),
}
_PREPROCESSING = frozenset(
    {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
)


@dataclass(frozen=True, slots=True)
class JudgeFiles:
    """A judge's checked folder.

    ``weights``: the one file that is loaded; ``tokenizer``: the folder with its tokenizer, a
    repository of the hub, or None for open_clip's own tokenizer.
    """

    folder: Path
    weights: Path
    tokenizer: Path | str | None


def check_judge(folder: Path, repository: str | None = None) -> JudgeFiles:
    """Raise ModelError if a judge's folder holds anything but data for open_clip's own classes.

    ``repository``: the hub id, if the folder is a snapshot from the hub.
    """
    weights = _judge_weights(folder)
    file = folder / OPEN_CLIP_CONFIG
    config = read_settings(file, folder)
    model = config.get("model_cfg")
    if not isinstance(model, dict):
        raise ModelError(
            f"{file}: expected a judge's settings under 'model_cfg', got "
            f"{shown(model)}; save the judge with open_clip's push_to_hf_hub.save_for_hf"
        )
    refuse_code(folder)
    for at, key, _ in entries_of(config):
        if key in CODE_KEYS:
            refuse(file, ".".join((*at, key)), True, sentence(NO_CODE))
    _check_known(file, ("model_cfg",), model, _MODEL)
    for part, keys in (("vision_cfg", _VISION), ("text_cfg", _TEXT), ("multimodal_cfg", _TEXT)):
        if part == "multimodal_cfg" and part not in model:
            continue
        settings = model.get(part)
        if not isinstance(settings, dict):
            refuse(file, f"model_cfg.{part}", settings, "a mapping of settings")
        _check_known(file, ("model_cfg", part), settings, keys)
    preprocessing = config.get("preprocess_cfg", {})
    if not isinstance(preprocessing, dict):
        refuse(file, "preprocess_cfg", preprocessing, "a mapping of settings")
    _check_known(file, ("preprocess_cfg",), preprocessing, _PREPROCESSING)
    check_part(folder, folder, also=(OPEN_CLIP_CONFIG,))
    _check_network_names(file, model)
    return JudgeFiles(
        folder, weights, _tokenizer_of(_settings(model, "text_cfg"), file, repository)
    )


def _check_known(
    file: Path, at: tuple[str, ...], settings: Mapping[str, Json], keys: Collection[str]
) -> None:
    """Raise ModelError unless each key is one of ``keys`` and each value is a plain setting.

    A mapping of keyword arguments is checked in the same way against its own keys.
    """
    for key, value in settings.items():
        if key not in keys:
            refuse(file, ".".join((*at, key)), value, "no such setting: open_clip has none")
        if key in _KEYWORDS:
            if value is None and key != "tokenizer_kwargs":
                continue
            if not isinstance(value, dict):
                refuse(file, ".".join((*at, key)), value, "a mapping of settings")
            _check_known(file, (*at, key), value, _KEYWORDS[key])
        elif key in _APART:
            continue  # checked by themselves
        else:
            check_setting(file, (*at, key), value)


def _check_network_names(file: Path, model: Mapping[str, Json]) -> None:
    """Raise ModelError for a timm or transformers network that is not known by its plain name."""
    timm = _settings(model, "vision_cfg").get("timm_model_name")
    if timm is not None and not (isinstance(timm, str) and re.fullmatch(r"[\w.]+", timm)):
        refuse(
            file, "model_cfg.vision_cfg.timm_model_name", timm, "the plain name of a timm network"
        )
    for part in ("text_cfg", "multimodal_cfg"):
        name = _settings(model, part).get("hf_model_name")
        if name is not None:
            _check_repository(file, f"model_cfg.{part}.hf_model_name", name)


def _settings(model: Mapping[str, Json], part: str) -> Mapping[str, Json]:
    """A checked part's settings; empty for a part that the model does not have."""
    found = model.get(part, {})
    assert isinstance(found, dict)
    return found


def _tokenizer_of(
    text: Mapping[str, Json], file: Path, repository: str | None
) -> Path | str | None:
    name = text.get("hf_tokenizer_name")
    if not name:
        return None
    if repository is None or name == repository:
        if not (file.parent / "tokenizer_config.json").exists():
            raise ModelError(
                f"{file.parent / 'tokenizer_config.json'}: expected the judge's tokenizer, got no "
                "such file; save it there with the tokenizer's save_pretrained"
            )
        return file.parent
    _check_repository(file, "model_cfg.text_cfg.hf_tokenizer_name", name)
    return str(name)


def _check_repository(file: Path, key: str, name: Any) -> None:
    """Raise ModelError unless open_clip's own architectures use this repository, too."""
    known = set()
    for architecture in open_clip.list_models():
        settings = open_clip.get_model_config(architecture)["text_cfg"]
        known |= {settings.get("hf_model_name"), settings.get("hf_tokenizer_name")}
    if not isinstance(name, str) or name not in known:
        refuse(
            file, key, name,
            "a repository that open_clip's own architectures use, such as xlm-roberta-base",
        )  # fmt: skip
    if Path(name).exists():
        raise ModelError(
            f"{file}: '{key}' is {name}, a repository of the hub, and {Path(name).absolute()} "
            "would be loaded in its place; start from another working directory"
        )


def _judge_weights(folder: Path) -> Path:
    """The one file that a judge is loaded from."""
    files = sorted(
        file for file in folder.iterdir() if file.suffix == ".safetensors" and file.is_file()
    )
    for name in JUDGE_WEIGHTS:
        if folder / name in files:
            return folder / name
    refused = sorted(file for file in folder.iterdir() if file.suffix in PICKLED)
    if refused:  # a safetensors file of another name may be unrelated to these weights
        raise ModelError(f"{refused[0]}: {NO_PICKLES}")
    if len(files) == 1:
        return files[0]
    raise ModelError(
        f"{folder}: expected the judge's weights in {' or '.join(JUDGE_WEIGHTS)}, or in one "
        f"other .safetensors file, got {', '.join(file.name for file in files) or 'none'}; "
        f"name the right one {JUDGE_WEIGHTS[0]}"
    )
