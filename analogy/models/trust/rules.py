"""Rules for a model's files: no code, no pickles, no links to other places, no odd settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from analogy.core.errors import ModelError
from analogy.core.strict_json import Json
from analogy.models.networks import read_object

#: Suffixes of weights that are pickles.
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
#: The files that a tokenizer of :data:`TOKENIZERS` is read from.
TOKENIZER_FILES = (
    "tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt",
    "special_tokens_map.json", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "chat_template.json",
)  # fmt: skip

#: Classes of transformers that may read a tokenizer's files: those of the families and of
#: open_clip's own architectures. None of them reads anything but JSON, text and sentencepiece.
TOKENIZERS = frozenset(
    name + suffix
    for name in (
        "CLIPTokenizer", "T5Tokenizer", "BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer",
        "NllbTokenizer", "GemmaTokenizer", "SiglipTokenizer", "PreTrainedTokenizer",
        "Qwen2Tokenizer", "LlamaTokenizer", "ByT5Tokenizer",
    )
    for suffix in ("", "Fast")
) | {"TokenizersBackend"}  # fmt: skip

NO_PICKLES = (
    "expected weights as .safetensors, found them pickled; loading a pickle runs whatever code is "
    "in it, so the suite loads none: choose a revision with safetensors, or convert the weights "
    "where running that code does no harm (save_pretrained writes safetensors)"
)

NO_CODE = (
    "the suite runs no code that comes with a model; if you wrote or read that code, load the "
    "model with it yourself, save it with save_pretrained, and name the folder that this wrote"
)

# Keys with which a configuration requests code, at any depth.
CODE_KEYS = frozenset(
    {"auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_components"}
)
# Keys that record where a model came from. No loader reads them.
_ORIGINS = frozenset({"_name_or_path", "name_or_path"})
# Settings that are mappings themselves. Any other mapping is refused: it may be a quantizer's or a
# loader's, such as quantization_config.
_MAPPINGS = frozenset(
    {
        "id2label", "label2id", "pruned_heads", "task_specific_params", "crop_size", "size",
        "text_config", "vision_config", "rope_parameters", "rope_scaling", "image_processor",
        "video_processor",
    }
)  # fmt: skip

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

CONFIGURATIONS = (
    "config.json", "scheduler_config.json", "preprocessor_config.json", "generation_config.json",
    "guider_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
SHARDS = re.compile(r".+\.safetensors\.index(\.\w+)?\.json|.+\.index\.\w+\.json")


def refuse_pickles(files: Iterable[Path]) -> None:
    """Raise :class:`ModelError` if these files have pickled weights, but no safetensors."""
    files = list(files)
    pickled = sorted(file for file in files if file.suffix in PICKLED)
    if pickled and not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"{pickled[0]}: {NO_PICKLES}")


def pickled(what: str, failure: object) -> ModelError:
    """The error for a model of which a library found only pickled weights."""
    return ModelError(f"{what}: {NO_PICKLES} ({failure})")


def refuse_pickled_part(inside: Path, stem: str) -> None:
    """Raise ModelError for a part's pickled weights unless it has its own as safetensors, too."""
    files = [file for file in inside.iterdir() if file.suffix in (".safetensors", *PICKLED)]
    own = [file for file in files if file.suffix in PICKLED or file.name.startswith(stem)]
    refuse_pickles(own)


def refuse_code(folder: Path) -> None:
    """Raise ModelError for code anywhere in a folder: a library may be told to import it."""
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            if name.lower().endswith((".py", ".pyc", ".pyd", ".so")):
                raise ModelError(f"{Path(place) / name}: expected no code; {NO_CODE}")


def files_of(inside: Path, root: Path) -> Iterator[Path]:
    """The files of a folder that a library may read. Raises ModelError for one outside ``root``."""
    for file in sorted(inside.iterdir()):
        if file.is_dir() or file.name.startswith("."):
            continue
        if file.suffix.lower() in (".json", ".txt", ".model", ".safetensors"):
            _check_place(file, root)
            yield file


def _check_place(file: Path, root: Path) -> None:
    """Raise ModelError unless a file is a regular one in ``root`` (or the hub's cache of it)."""
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


#: The most bytes and levels of a configuration file. Published ones have up to 2 MB and 5 levels.
MOST_BYTES = 2**24
MOST_NESTED = 20


def _is_deeper(value: Any, depth: int) -> bool:
    """True if lists and mappings are nested deeper than ``depth``; works without recursion."""
    level = [value]
    for _ in range(depth):
        inner = [each for each in level if isinstance(each, (list, dict))]
        level = [v for each in inner for v in (each.values() if isinstance(each, dict) else each)]
    return any(isinstance(each, (list, dict)) for each in level)


def read_settings(file: Path, root: Path) -> dict[str, Json]:
    """A JSON file's mapping.

    Raises ModelError if the file is missing, too large, nested too deeply, or not a mapping.
    """
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


def check_setting(file: Path, at: tuple[str, ...], value: Any) -> None:
    """Raise ModelError unless a value is a number, a word, null, or a list of these.

    A mapping is accepted only under a known key. A text with a path separator is refused, since it
    may be a file, a repository or an attention kernel to fetch.
    """
    key = at[-1]
    if key in CODE_KEYS:
        refuse(file, ".".join(at), value, f"no such setting: {NO_CODE}")
    if isinstance(value, str):
        if key not in _ORIGINS and re.search(r"[/\\]", value):
            refuse(
                file, ".".join(at), value,
                "a plain setting, no path and no repository; a library may read or fetch it",
            )  # fmt: skip
    elif isinstance(value, list):
        for each in value:
            check_setting(file, at, each)
    elif isinstance(value, dict):
        if value and not _MAPPINGS.intersection(at):
            refuse(
                file, ".".join(at), value,
                "a plain setting, not a mapping; quantized and adapted models are not supported",
            )  # fmt: skip
        for inner, each in value.items():
            check_setting(file, (*at, inner), each)


def check_tokenizer(settings: Mapping[str, Json], file: Path) -> None:
    """Raise ModelError unless a tokenizer's settings name no other file, and its class is known."""
    for key, value in settings.items():
        if key in CODE_KEYS:
            refuse(file, key, value, f"no such setting: {NO_CODE}")
        is_harmless = value is None or value == {} or isinstance(value, (bool, int, float))
        if not (is_harmless or key in _TOKENIZER or key.endswith(("_token", "_tokens"))):
            refuse(file, key, value, "a setting that names no other file; save the tokenizer anew")
    for at, key, value in entries_of(settings):
        if key in CODE_KEYS:
            refuse(file, ".".join((*at, key)), value, f"no such setting: {NO_CODE}")
    name = settings.get("tokenizer_class")
    if name not in TOKENIZERS:
        refuse(file, "tokenizer_class", name, f"one of {', '.join(sorted(TOKENIZERS))}")


def check_shards(index: Mapping[str, Json], file: Path) -> None:
    """Raise ModelError unless the shards of a part are safetensors beside its index."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        refuse(file, "weight_map", shards, "a mapping of weights to files")
    for weight, shard in shards.items():
        if not (isinstance(shard, str) and re.fullmatch(r"[\w.-]+\.safetensors", shard)):
            refuse(file, f"weight_map.{weight}", shard, "the name of a .safetensors file beside it")


def entries_of(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Every key of nested mappings: where it is, the key and its value."""
    inner: Iterable[Any] = ()
    if isinstance(value, dict):
        for key, each in value.items():
            yield at, str(key), each
            yield from entries_of(each, (*at, str(key)))
    elif isinstance(value, list):
        inner = value
    for each in inner:
        yield from entries_of(each, at)


def refuse(file: Path, key: str, value: Any, expected: str) -> NoReturn:
    """Raise ModelError for a setting's value, with what was expected."""
    raise ModelError(f"{file}: {key!r} is {shown(value)}; expected {expected}")


def shown(value: Any) -> str:
    """A value as JSON, cut after 200 characters."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 200 else text[:200] + "..."


def sentence(text: str) -> str:
    """A text with its first letter in upper case."""
    return text[0].upper() + text[1:]
