"""What a pipeline's folder says of itself: its parts, weights, scheduler and native size."""

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
    """``fp16`` where the half-precision files of a part are the ones to load, else None."""
    weights = {path.name for path in part.glob("*")}
    halves = {name for name in weights if ".fp16" in name and "safetensors" in name}
    whole = {name for name in weights - halves if name.endswith(".safetensors")}
    return "fp16" if halves and not (whole and dtype == "float32") else None


def weight_files(source: ModelSource, *, dtype: str) -> list[Path]:
    """The weights that :func:`load_pipeline` reads in this dtype: one precision, not both.

    Per part ``<name>.fp16.safetensors`` where half precision is loaded and the part has it, else
    ``<name>.safetensors``; shards of either; the files of a transformer and a LoRA as well. What is
    loaded where a part has both precisions, the denoiser's files decide, if it is in the folder.
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
    """What a pipeline's folder says of itself: its class and, for each part, library and class."""
    return read_index(folder)[1]


#: The parts of a pipeline that have weights, by diffusers' names.
NETWORK = re.compile(r"unet|transformer|vae|movq|text_encoder(_\d)?|image_encoder")


def parts_of(folder: Path) -> dict[str, tuple[str, str]]:
    """The parts of a folder's pipeline that it does not leave out: library and class by name."""
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
    """The settings of a pipeline's scheduler, its class among them as ``_class_name``."""
    file = folder / "scheduler" / "scheduler_config.json"
    settings = read_object(file, "_class_name", what="a scheduler's configuration")
    if not isinstance(settings["_class_name"], str):
        raise ModelError(f"{file}: expected _class_name as text, got {settings['_class_name']!r}")
    return settings
