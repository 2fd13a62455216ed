"""Check the folder of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from analogy.core.errors import ModelError
from analogy.core.strict_json import Json
from analogy.models.families import Family
from analogy.models.trust.rules import (
    CONFIGURATIONS,
    NO_CODE,
    SHARDS,
    TOKENIZER_FILES,
    check_setting,
    check_shards,
    check_tokenizer,
    files_of,
    read_settings,
    refuse,
    refuse_code,
    refuse_pickled_part,
    sentence,
)
from analogy.models.untested import family_named


def read_index(folder: Path) -> tuple[Family, dict[str, Json]]:
    """A pipeline's family and its ``model_index.json``, with every entry checked.

    Raises ModelError if the index names code, or a class that the family does not allow.
    """
    file = folder / "model_index.json"
    index = read_settings(file, folder)
    name = index.get("_class_name")
    if name is None:
        raise ModelError(
            f"{file}: expected a pipeline's index, a JSON object with _class_name, found no such "
            "key; save the model again with save_pretrained"
        )
    if not isinstance(name, str):
        refuse(file, "_class_name", name, f"the name of a pipeline. {sentence(NO_CODE)}")
    try:  # the index is untrusted: nothing is imported for it but what is installed
        family = family_named(name)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    for part, value in index.items():
        if part in family.parts:
            if value != [None, None]:
                _check_pair(file, part, value, family.parts[part])
        elif isinstance(value, (list, dict)) and not _is_numbers(value):
            refuse(file, part, value, f"only the parts of a {name} ({', '.join(family.parts)})")
        else:
            check_setting(file, (part,), value)
    return family, index


def _is_numbers(value: Any) -> bool:
    """True for a list of numbers. It is a setting, such as the layers of a text encoder."""
    return isinstance(value, list) and all(isinstance(each, (int, float)) for each in value)


def _check_pair(file: Path, part: str, value: Any, expected: Collection[str]) -> None:
    """Raise ModelError unless a part's library and class are ones that the family allows."""
    accepted = [each.partition(".")[::2] for each in expected]
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    if is_pair and tuple(value) in accepted:
        return
    is_scheduler = is_pair and re.fullmatch(r"[A-Za-z0-9]+Scheduler", value[1])
    if is_scheduler and (value[0], "*Scheduler") in accepted:
        return
    pairs = " or ".join(expected)
    refuse(file, part, value, f"{pairs}. {sentence(NO_CODE)}")


def check_pipeline(folder: Path, *, weights: bool = True) -> tuple[Family, dict[str, Json]]:
    """Raise ModelError if a pipeline's folder holds anything but data for its family's classes.

    ``weights``: True if its weights are to be loaded, besides its configuration and tokenizers.
    Returns what :func:`read_index` does.
    """
    family, index = read_index(folder)
    refuse_code(folder)
    for part in family.parts:
        if index.get(part, [None, None]) == [None, None] or part in family.load_options:
            continue
        inside = folder / part
        if inside.is_symlink() or not inside.is_dir():
            raise ModelError(
                f"{inside}: expected the folder of the part that {folder / 'model_index.json'} "
                f"names, got {'a link' if inside.is_symlink() else 'no such folder'}; copy it there"
            )
        check_part(inside, folder)
        pair = index[part]
        assert isinstance(pair, list)  # read_index has checked it
        library, name = map(str, pair)
        if weights and not name.endswith(("Scheduler", "Tokenizer", "TokenizerFast", "Processor")):
            stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
            refuse_pickled_part(inside, stem)
    return family, index


def check_part(inside: Path, root: Path, *, also: Collection[str] = ()) -> None:
    """Raise ModelError unless a part's configuration files are known, with plain settings.

    ``also``: the names of further files that are accepted, which the caller has checked.
    """
    for file in files_of(inside, root):
        name = file.name
        if name == "tokenizer_config.json":
            check_tokenizer(read_settings(file, root), file)
        elif ".bin.index." in name or name in TOKENIZER_FILES or name in also:
            continue  # an index of pickles, which nothing reads; a tokenizer's data
        elif SHARDS.fullmatch(name):
            check_shards(read_settings(file, root), file)
        elif name in CONFIGURATIONS:
            for key, value in read_settings(file, root).items():
                check_setting(file, (key,), value)
        elif file.suffix.lower() == ".json":
            raise ModelError(
                f"{file}: expected no other configuration than {', '.join(CONFIGURATIONS)} and a "
                "tokenizer's, since a library may take it for a direction to other files; move it "
                "out of the folder"
            )
