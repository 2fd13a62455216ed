"""What the folder of a model or judge may hold. Checked before any library reads it.

diffusers, transformers, timm, peft and open_clip let a folder's configuration name code to import,
other folders to read and repositories to fetch. Here is what the suite accepts instead: for each
part of a pipeline family its library and class, for each configuration file the settings that may
stand in it. What is not listed here is refused by a :class:`ModelError`. ``docs/security.md`` says
the same for users, with the test of each claim.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from analogy.families import FAMILIES, Family
from analogy.networks import ModelError, read_object

#: Weights that are read by running a pickle.
PICKLED = (".bin", ".ckpt", ".pt", ".pth")

OPEN_CLIP_CONFIG = "open_clip_config.json"
#: A judge's weights, in open_clip's own order.
JUDGE_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors",
)  # fmt: skip
#: What a tokenizer of :data:`TOKENIZERS` is read from.
TOKENIZER_FILES = (
    "tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt",
    "special_tokens_map.json", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)  # fmt: skip

#: Classes of transformers that may read a tokenizer's files: those of the families and of
#: open_clip's own architectures. None of them reads anything but JSON, text and sentencepiece.
TOKENIZERS = frozenset(
    name + suffix
    for name in (
        "CLIPTokenizer", "T5Tokenizer", "BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer",
        "NllbTokenizer", "GemmaTokenizer", "SiglipTokenizer", "PreTrainedTokenizer",
    )
    for suffix in ("", "Fast")
) | {"TokenizersBackend"}  # fmt: skip

_NO_PICKLES = (
    "expected weights as .safetensors, found them pickled; loading a pickle runs whatever code is "
    "in it, so the suite loads none: choose a revision with safetensors, or convert the weights "
    "where running that code does no harm (save_pretrained writes safetensors)"
)

_NO_CODE = (
    "the suite runs no code that comes with a model; if you wrote or read that code, load the "
    "model with it yourself, save it with save_pretrained, and name the folder that this wrote"
)

# Keys by which a configuration asks for code, wherever they stand.
_CODE_KEYS = frozenset(
    {"auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_components"}
)
# Where a model came from, which no loader reads.
_ORIGINS = frozenset({"_name_or_path", "name_or_path"})
# Settings that are themselves mappings. Any other mapping is refused: it may be a quantizer's or a
# loader's, such as quantization_config.
_MAPPINGS = frozenset(
    {
        "id2label", "label2id", "pruned_heads", "task_specific_params", "crop_size", "size",
        "text_config", "vision_config",
    }
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

# Settings of a tokenizer that are texts or mappings, and name no file.
_TOKENIZER = frozenset(
    {
        "added_tokens_decoder", "additional_special_tokens", "backend", "chat_template",
        "clean_up_tokenization_spaces", "errors", "extra_special_tokens", "language_codes",
        "max_length", "model_input_names", "model_specific_special_tokens", "name_or_path",
        "never_split", "padding_side", "processor_class", "special_tokens_map_file", "src_lang",
        "tgt_lang", "tokenizer_class", "truncation_side", "truncation_strategy",
    }
)  # fmt: skip

# The settings of a LoRA that peft may be given from a file's header; others only if they are empty.
_LORA = frozenset(
    {
        "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "inference_mode",
        "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout",
        "peft_type", "peft_version", "r", "rank_pattern", "target_modules", "task_type",
        "use_dora", "use_rslora",
    }
)  # fmt: skip
_LORA_DEFAULTS = {"megatron_core": "megatron.core", "init_lora_weights": True}

_CONFIGURATIONS = (
    "config.json", "scheduler_config.json", "preprocessor_config.json", "generation_config.json",
)  # fmt: skip
_SHARDS = re.compile(r".+\.safetensors\.index(\.\w+)?\.json|.+\.index\.\w+\.json")


@dataclass(frozen=True, slots=True)
class JudgeFiles:
    """A judge's checked folder.

    ``weights``: the one file that is loaded; ``tokenizer``: where its tokenizer is, the folder's
    own, a repository of the hub, or None for open_clip's own one.
    """

    folder: Path
    weights: Path
    tokenizer: Path | str | None


def read_index(folder: Path) -> tuple[Family, dict[str, Any]]:
    """A pipeline's family and its ``model_index.json``, of which every entry is accepted.

    Raises ModelError if the index names another class than the family's, or code.
    """
    file = folder / "model_index.json"
    index = _read(file, folder)
    name = index.get("_class_name")
    if name is None:
        raise ModelError(
            f"{file}: expected a pipeline's index, a JSON object with _class_name, found no such "
            "key; save the model again with save_pretrained"
        )
    if not isinstance(name, str):
        _refuse(file, "_class_name", name, f"the name of a pipeline. {_sentence(_NO_CODE)}")
    if not FAMILIES.is_installed(name):  # the index is a stranger's: nothing is imported for it
        raise ModelError(
            f"{folder}: expected a pipeline of the families supported "
            f"({', '.join(FAMILIES.names())}), got {name}"
        )
    family = FAMILIES.get(name)
    for part, value in index.items():
        if part in family.parts:
            if value != [None, None]:
                _check_pair(file, part, value, family.parts[part])
        elif isinstance(value, (list, dict)):
            _refuse(file, part, value, f"only the parts of a {name} ({', '.join(family.parts)})")
        else:
            _check_setting(file, (part,), value)
    return family, index


def _check_pair(file: Path, part: str, value: Any, expected: Collection[str]) -> None:
    """A part is made by a class of the family's; its library and name are those of a list."""
    accepted = [each.partition(".")[::2] for each in expected]
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    if is_pair and tuple(value) in accepted:
        return
    is_scheduler = is_pair and re.fullmatch(r"[A-Za-z0-9]+Scheduler", value[1])
    if is_scheduler and (value[0], "*Scheduler") in accepted:
        return
    pairs = " or ".join(expected)
    _refuse(file, part, value, f"{pairs}. {_sentence(_NO_CODE)}")


def check_pipeline(folder: Path, *, weights: bool = True) -> tuple[Family, dict[str, Any]]:
    """Refuse a pipeline's folder that holds anything but data for its family's classes.

    ``weights``: whether its weights are to be loaded, besides its configuration and tokenizers.
    Returns what :func:`read_index` does.
    """
    family, index = read_index(folder)
    _refuse_code(folder)
    for part in family.parts:
        if index.get(part, [None, None]) == [None, None] or part in family.load_options:
            continue
        inside = folder / part
        if inside.is_symlink() or not inside.is_dir():
            raise ModelError(
                f"{inside}: expected the folder of the part that {folder / 'model_index.json'} "
                f"names, got {'a link' if inside.is_symlink() else 'no such folder'}; copy it there"
            )
        _check_part(inside, folder)
        library, name = index[part]
        if weights and not name.endswith(("Scheduler", "Tokenizer", "TokenizerFast", "Processor")):
            stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
            _refuse_pickled_part(inside, stem)
    return family, index


def _check_part(inside: Path, root: Path, *, also: Collection[str] = ()) -> None:
    """Every configuration file of a part is a known one, or ``also``, and holds plain settings."""
    for file in _files(inside, root):
        name = file.name
        if name == "tokenizer_config.json":
            _check_tokenizer(_read(file, root), file)
        elif ".bin.index." in name or name in TOKENIZER_FILES or name in also:
            continue  # an index of pickles, which nothing reads; a tokenizer's data
        elif _SHARDS.fullmatch(name):
            _check_shards(_read(file, root), file)
        elif name in _CONFIGURATIONS:
            for key, value in _read(file, root).items():
                _check_setting(file, (key,), value)
        elif file.suffix.lower() == ".json":
            raise ModelError(
                f"{file}: expected no other configuration than {', '.join(_CONFIGURATIONS)} and a "
                "tokenizer's, since a library may take it for a direction to other files; move it "
                "out of the folder"
            )


def check_judge(folder: Path, repository: str | None = None) -> JudgeFiles:
    """Refuse a judge's folder that holds anything but data for open_clip's own classes.

    ``repository``: the hub's id of the folder, if it is a snapshot of one.
    """
    weights = _judge_weights(folder)
    file = folder / OPEN_CLIP_CONFIG
    config = _read(file, folder)
    model = config.get("model_cfg")
    if not isinstance(model, dict):
        raise ModelError(
            f"{file}: expected a judge's settings under 'model_cfg', got "
            f"{_shown(model)}; save the judge with open_clip's push_to_hf_hub.save_for_hf"
        )
    _refuse_code(folder)
    for at, key, _ in _entries(config):
        if key in _CODE_KEYS:
            _refuse(file, ".".join((*at, key)), True, _sentence(_NO_CODE))
    _check_known(file, ("model_cfg",), model, _MODEL)
    for part, keys in (("vision_cfg", _VISION), ("text_cfg", _TEXT), ("multimodal_cfg", _TEXT)):
        if part == "multimodal_cfg" and part not in model:
            continue
        settings = model.get(part)
        if not isinstance(settings, dict):
            _refuse(file, f"model_cfg.{part}", settings, "a mapping of settings")
        _check_known(file, ("model_cfg", part), settings, keys)
    preprocessing = config.get("preprocess_cfg", {})
    if not isinstance(preprocessing, dict):
        _refuse(file, "preprocess_cfg", preprocessing, "a mapping of settings")
    _check_known(file, ("preprocess_cfg",), preprocessing, _PREPROCESSING)
    _check_part(folder, folder, also=(OPEN_CLIP_CONFIG,))
    text = model["text_cfg"]
    _check_network_names(file, model)
    return JudgeFiles(folder, weights, _tokenizer_of(text, file, repository))


def _check_known(
    file: Path, at: tuple[str, ...], settings: Mapping[str, Any], keys: Collection[str]
) -> None:
    """Each key is one of ``keys``, each value plain; keywords hold plain ones of their own."""
    for key, value in settings.items():
        if key not in keys:
            _refuse(file, ".".join((*at, key)), value, "no such setting: open_clip has none")
        if key in _KEYWORDS:
            if value is None and key != "tokenizer_kwargs":
                continue
            if not isinstance(value, dict):
                _refuse(file, ".".join((*at, key)), value, "a mapping of settings")
            _check_known(file, (*at, key), value, _KEYWORDS[key])
        elif key in _APART:
            continue  # checked by themselves
        else:
            _check_setting(file, (*at, key), value)


def _check_network_names(file: Path, model: Mapping[str, Any]) -> None:
    """The networks of timm and transformers that a judge is made of are ones known by name."""
    timm = model["vision_cfg"].get("timm_model_name")
    if timm is not None and not (isinstance(timm, str) and re.fullmatch(r"[\w.]+", timm)):
        _refuse(
            file, "model_cfg.vision_cfg.timm_model_name", timm, "the plain name of a timm network"
        )
    for part in ("text_cfg", "multimodal_cfg"):
        name = model.get(part, {}).get("hf_model_name")
        if name is not None:
            _check_repository(file, f"model_cfg.{part}.hf_model_name", name)


def _tokenizer_of(text: Mapping[str, Any], file: Path, repository: str | None) -> Path | str | None:
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
    """Another repository is read only if open_clip's own architectures read it, too."""
    import open_clip

    known = set()
    for architecture in open_clip.list_models():
        settings = open_clip.get_model_config(architecture)["text_cfg"]
        known |= {settings.get("hf_model_name"), settings.get("hf_tokenizer_name")}
    if not isinstance(name, str) or name not in known:
        _refuse(
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
    if refused:  # an unrelated file beside them does not stand for them
        raise ModelError(f"{refused[0]}: {_NO_PICKLES}")
    if len(files) == 1:
        return files[0]
    raise ModelError(
        f"{folder}: expected the judge's weights in {' or '.join(JUDGE_WEIGHTS)}, or in one "
        f"other .safetensors file, got {', '.join(file.name for file in files) or 'none'}; "
        f"name the right one {JUDGE_WEIGHTS[0]}"
    )


def check_lora(file: Path) -> None:
    """Refuse a LoRA whose header has settings for peft that are more than numbers and modules.

    Raises ModelError as well if it is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as opened:
            header = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"--lora {file}: not a safetensors file ({error})") from error
    if "lora_adapter_metadata" not in header:
        return
    try:
        settings = json.loads(header["lora_adapter_metadata"])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: its header's settings are not JSON ({error})") from error
    if not isinstance(settings, dict):
        _refuse(file, "lora_adapter_metadata", settings, "a mapping of settings")
    for key, value in settings.items():
        name = key.rpartition(".")[2]
        if name in _LORA or value in (None, False, {}, []) or _LORA_DEFAULTS.get(name) == value:
            continue
        _refuse(
            file, f"lora_adapter_metadata.{key}", value,
            f"{'nothing' if name not in _LORA_DEFAULTS else repr(_LORA_DEFAULTS[name])} there: "
            "peft may import a module for it or read other files; save the LoRA without",
        )  # fmt: skip


def refuse_pickles(files: Iterable[Path]) -> None:
    """A :class:`ModelError` if weights are among these files, but no safetensors."""
    files = list(files)
    pickled = sorted(file for file in files if file.suffix in PICKLED)
    if pickled and not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"{pickled[0]}: {_NO_PICKLES}")


def pickled(what: str, failure: object) -> ModelError:
    """What to say where a library found weights pickled and nothing else."""
    return ModelError(f"{what}: {_NO_PICKLES} ({failure})")


def _refuse_pickled_part(inside: Path, stem: str) -> None:
    """Pickled weights are refused unless the part's own are there as safetensors, too."""
    files = [file for file in inside.iterdir() if file.suffix in (".safetensors", *PICKLED)]
    own = [file for file in files if file.suffix in PICKLED or file.name.startswith(stem)]
    refuse_pickles(own)


def _refuse_code(folder: Path) -> None:
    """No Python file, wherever it is in the folder: a library may be told to import it."""
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            if name.lower().endswith((".py", ".pyc", ".pyd", ".so")):
                raise ModelError(f"{Path(place) / name}: expected no code; {_NO_CODE}")


def _files(inside: Path, root: Path) -> Iterator[Path]:
    """The files of a folder that a library may read, each a regular one of the model itself."""
    for file in sorted(inside.iterdir()):
        if file.is_dir() or file.name.startswith("."):
            continue
        if file.suffix.lower() in (".json", ".txt", ".model", ".safetensors"):
            _check_place(file, root)
            yield file


def _check_place(file: Path, root: Path) -> None:
    """A file is a regular one and in its folder, or in the hub's cache if the folder is."""
    target = file.resolve()
    within = [root.resolve()]
    if root.resolve().parent.name == "snapshots":
        within.append(root.resolve().parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in within):
        raise ModelError(
            f"{file}: expected a file of {root}, got a link to {target}, which is none and is not "
            "in the fingerprint of the folder; copy the file there"
        )
    if target.exists() and not target.is_file():
        raise ModelError(f"{file}: expected a regular file, got a device, a pipe or a socket")


#: Bytes of a configuration file, and how deep it is nested. Published ones have 2 MB and 5.
MOST_BYTES = 2**24
MOST_NESTED = 20


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and mappings are nested deeper; without recursion, which has a limit."""
    level = [value]
    for _ in range(depth):
        inner = [each for each in level if isinstance(each, (list, dict))]
        level = [v for each in inner for v in (each.values() if isinstance(each, dict) else each)]
    return any(isinstance(each, (list, dict)) for each in level)


def _read(file: Path, root: Path) -> dict[str, Any]:
    """A JSON file's mapping. Raises ModelError if it is missing or anything else."""
    kind = "a pipeline's index" if file.name == "model_index.json" else "a file of settings"
    _check_place(file, root)
    if file.is_file() and file.stat().st_size > MOST_BYTES:
        raise ModelError(f"{file}: expected at most {MOST_BYTES:,} bytes of settings")
    value = read_object(file, what=kind)
    if _is_deeper(value, MOST_NESTED):
        raise ModelError(
            f"{file}: expected {kind}, got one that is nested more than {MOST_NESTED} deep"
        )
    return value


def _check_setting(file: Path, at: tuple[str, ...], value: Any) -> None:
    """A number, a word, nothing, or lists of such; mappings only where they are known.

    A text with a separator of paths may be a file, a repository or an attention kernel to fetch.
    """
    key = at[-1]
    if key in _CODE_KEYS:
        _refuse(file, ".".join(at), value, f"no such setting: {_NO_CODE}")
    if isinstance(value, str):
        if key not in _ORIGINS and re.search(r"[/\\]", value):
            _refuse(
                file, ".".join(at), value,
                "a plain setting, no path and no repository; a library may read or fetch it",
            )  # fmt: skip
    elif isinstance(value, list):
        for each in value:
            _check_setting(file, at, each)
    elif isinstance(value, dict):
        if value and not _MAPPINGS.intersection(at):
            _refuse(
                file, ".".join(at), value,
                "a plain setting, not a mapping; quantized and adapted models are not supported",
            )  # fmt: skip
        for inner, each in value.items():
            _check_setting(file, (*at, inner), each)


def _check_tokenizer(settings: Mapping[str, Any], file: Path) -> None:
    """Tokens and numbers; no other file, and a class that is known to read nothing else."""
    for key, value in settings.items():
        if key in _CODE_KEYS:
            _refuse(file, key, value, f"no such setting: {_NO_CODE}")
        is_harmless = value is None or value == {} or isinstance(value, (bool, int, float))
        if not (is_harmless or key in _TOKENIZER or key.endswith(("_token", "_tokens"))):
            _refuse(file, key, value, "a setting that names no other file; save the tokenizer anew")
    for at, key, value in _entries(settings):
        if key in _CODE_KEYS:
            _refuse(file, ".".join((*at, key)), value, f"no such setting: {_NO_CODE}")
    name = settings.get("tokenizer_class")
    if name not in TOKENIZERS:
        _refuse(file, "tokenizer_class", name, f"one of {', '.join(sorted(TOKENIZERS))}")


def _check_shards(index: Mapping[str, Any], file: Path) -> None:
    """The shards of a part are safetensors beside its index."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        _refuse(file, "weight_map", shards, "a mapping of weights to files")
    for weight, shard in shards.items():
        if not (isinstance(shard, str) and re.fullmatch(r"[\w.-]+\.safetensors", shard)):
            _refuse(
                file, f"weight_map.{weight}", shard, "the name of a .safetensors file beside it"
            )


def _entries(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Every key of nested mappings, with where it stands."""
    inner: Iterable[Any] = ()
    if isinstance(value, dict):
        for key, each in value.items():
            yield at, str(key), each
            yield from _entries(each, (*at, str(key)))
    elif isinstance(value, list):
        inner = value
    for each in inner:
        yield from _entries(each, at)


def _refuse(file: Path, key: str, value: Any, expected: str) -> NoReturn:
    raise ModelError(f"{file}: {key!r} is {_shown(value)}; expected {expected}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 200 else text[:200] + "..."


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
