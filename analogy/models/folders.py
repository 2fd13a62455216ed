"""Read a pipeline's folder: its parts, weights, scheduler and native size."""

from __future__ import annotations

import re
from pathlib import Path

from analogy.core.errors import ModelError
from analogy.core.strict_json import Json
from analogy.models.families import Family
from analogy.models.networks import read_object
from analogy.models.places import ModelSource
from analogy.models.trust.pipelines import read_index


def _variant(part: Path, dtype: str) -> str | None:
    """``fp16`` if a part's half-precision files are the ones to load, else None."""
    weights = {path.name for path in part.glob("*")}
    halves = {name for name in weights if ".fp16" in name and "safetensors" in name}
    whole = {name for name in weights - halves if name.endswith(".safetensors")}
    return "fp16" if halves and not (whole and dtype == "float32") else None


def weight_files(source: ModelSource, *, dtype: str) -> list[Path]:
    """The weights that :func:`load_pipeline` reads in this dtype: one precision, not both.

    For each part ``<name>.fp16.safetensors`` if half precision is loaded and the part has it, else
    ``<name>.safetensors``, whole or in shards; also the files of a transformer and a LoRA. If the
    denoiser is in the folder, its files decide the precision of every part that has both; else
    each part's own files decide.
    """
    lora = [] if source.lora is None else [source.lora]
    if source.file is not None:
        return [source.file, *lora]
    family = family_of_folder(source.folder)
    files: list[Path] = []
    for name in sorted(parts_of(source.folder)):
        folder = source.folder / name
        if name in family.load_options or not folder.is_dir():
            continue
        if source.transformer is not None and name == family.denoiser:
            files.append(source.transformer)
            continue
        deciding = source.folder / family.denoiser if source.transformer is None else folder
        variant = _variant(deciding, dtype)
        weights = sorted(folder.glob("*.safetensors"))
        # <name>[.<variant>][-<shard>].safetensors, or the shard before the variant
        halves = [path for path in weights if path.name.split(".")[1].startswith("fp16")]
        whole = [path for path in weights if path.name.count(".") == 1]
        files += halves if variant and halves else whole
    return files + lora


def index_of(folder: Path) -> dict[str, Json]:
    """``model_index.json``: the pipeline's class and, for each part, its library and class."""
    return read_index(folder)[1]


#: The parts of a pipeline that have weights, by diffusers' names.
NETWORK = re.compile(r"unet|transformer|vae|movq|text_encoder(_\d)?|image_encoder")


def parts_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each part of a folder's pipeline, by name, without omitted parts."""
    index = index_of(folder)
    return {name: tuple(part) for name, part in index.items()
            if isinstance(part, list) and all(isinstance(each, str) for each in part)}  # fmt: skip


def family_of_folder(folder: Path) -> Family:
    """The family of a folder's pipeline."""
    return read_index(folder)[0]


def native_size(folder: Path) -> int:
    """Pixels a side of the images that a pipeline was trained for, from its configuration files."""
    return family_of_folder(folder).native_size(folder)


def scheduler_settings(folder: Path) -> dict[str, Json]:
    """The settings of a pipeline's scheduler, including its class as ``_class_name``.

    Raises ``ModelError`` if the file is missing or invalid.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    settings = read_object(file, "_class_name", what="a scheduler's configuration")
    if not isinstance(settings["_class_name"], str):
        raise ModelError(f"{file}: expected _class_name as text, got {settings['_class_name']!r}")
    return settings
