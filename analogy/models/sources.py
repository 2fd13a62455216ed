"""Find and verify models, and fingerprint them.

A model is ``embedded`` (shipped with the suite), a local folder, a single ``.safetensors`` file,
or a hub id with an optional ``@revision``; a LoRA may be fused into it. Its fingerprint goes into
every result, so that figures of different weights are never mixed. Weights come from safetensors
(and GGUF, for a transformer) alone: a pickle may run any code when it is loaded.
"""

from __future__ import annotations

import hashlib
from os.path import expanduser
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from analogy.core.errors import ModelError
from analogy.core.text import command_line
from analogy.models.defaults import DEFAULT_GPU_MODEL
from analogy.models.fingerprints import file_fingerprint, fingerprint, sha256_of
from analogy.models.folders import (
    NETWORK,
    family_of_folder,
    parts_of,
    scheduler_settings,
    weight_files,
)
from analogy.models.libraries import diffusers, single_file_utils
from analogy.models.lora import with_lora
from analogy.models.networks import check_weights, loading, read_object, shapes_in
from analogy.models.places import (
    CONFIG_FILES,
    EMBEDDED,
    ModelSource,
    absent,
    is_hub_id,
    listing,
    shipped,
)
from analogy.models.quantization import with_quantization
from analogy.models.transformer_file import TRANSFORMER, find_transformer, with_transformer
from analogy.models.trust.pipelines import check_pipeline, read_index
from analogy.models.trust.rules import pickled, refuse_pickles


def find_pipeline(
    model: str,
    *,
    dtype: str,
    offline: bool = False,
    transformer: str | None = None,
    lora: str | None = None,
    quantize: str | None = None,
) -> ModelSource:
    """The files of a diffusers pipeline, downloaded if ``model`` is a hub id.

    ``dtype`` decides whether half-precision weights are fetched if both precisions exist.
    ``offline``: raise a :class:`ModelError` for files that are not on this machine; it names the
    command that fetches them. ``transformer``: a ``.safetensors`` or ``.gguf`` file with the
    transformer's weights. ``lora``: a ``.safetensors`` file, a folder that holds one, or a hub id.
    ``quantize``: one of :data:`~analogy.core.fields.QUANTIZATIONS`.
    """
    weights = None if transformer is None else find_transformer(transformer)
    path = shipped("models/sdxl-tiny") if model == EMBEDDED else Path(expanduser(model)).absolute()
    if path.is_dir():
        source = _folder_source(path, weights)
    elif path.is_file():
        source = _file_source(path, offline=offline)
    else:
        source = _hub_source(model, weights, dtype=dtype, offline=offline)
    if weights is not None:
        source = with_transformer(source, weights)
    _check_parts(source, dtype=dtype)
    if lora is not None:
        source = with_lora(source, lora, offline=offline)
    return source if quantize is None else with_quantization(source, quantize, dtype=dtype)


def _check_parts(source: ModelSource, *, dtype: str) -> None:
    """Raise :class:`ModelError` if a file that will be loaded is missing or incomplete.

    Reads only configurations and headers. Whether weights fit is checked when they are loaded.
    """
    skipped = family_of_folder(source.folder).load_options
    files = weight_files(source, dtype=dtype)
    alone = None if source.transformer is None else TRANSFORMER
    for name in parts_of(source.folder):
        if name in skipped:
            continue
        folder = source.folder / name
        if NETWORK.fullmatch(name):
            read_object(folder / "config.json", what="a network's configuration")
            if source.file is None and name != alone:
                check_weights(folder, [file for file in files if file.parent == folder])
        elif name == "scheduler":
            scheduler_settings(source.folder)
    if source.file is not None:
        shapes_in(source.file)


def _folder_source(folder: Path, transformer: Path | None) -> ModelSource:
    if not (folder / "model_index.json").is_file():
        refuse_pickles(folder.iterdir())
        raise ModelError(
            f"{folder}: expected a diffusers pipeline folder with model_index.json; "
            f"found {listing(folder)}"
        )
    check_pipeline(folder)
    without = None if transformer is None else TRANSFORMER
    return ModelSource(folder, fingerprint(folder, without=without))


def _file_source(file: Path, *, offline: bool) -> ModelSource:
    """A single-file checkpoint. It has only weights, so its configuration must be found.

    The configuration is in a folder beside the file with the file's name, or in the file's own
    folder. Otherwise it comes from the hub, from the model to which diffusers assigns the weights.
    """
    refuse_pickles([file])
    if file.suffix != ".safetensors":
        raise ModelError(f"{file}: expected a .safetensors file or a diffusers pipeline folder")
    shapes_in(file)
    name = file_fingerprint(file.stem, file)
    for folder in (file.with_suffix(""), file.parent):
        if (folder / "model_index.json").is_file():
            check_pipeline(folder, weights=False)
            return ModelSource(folder, f"{name}+{_configuration(folder)}", file=file)
    with loading(file, "a checkpoint as a safetensors file"):
        checkpoint = single_file_utils.load_single_file_checkpoint(str(file))
        alike = single_file_utils.fetch_diffusers_config(checkpoint)
    origin = alike["pretrained_model_name_or_path"]
    try:
        folder = Path(
            snapshot_download(origin, allow_patterns=CONFIG_FILES, local_files_only=offline)
        )
        check_pipeline(folder, weights=False)
        configuration = _configuration(folder)
    except (OSError, ModelError) as error:
        patterns = [word for pattern in CONFIG_FILES for word in ("--include", pattern)]
        command = command_line("hf", "download", origin, *patterns)
        raise ModelError(
            f"{file}: a single file holds weights alone; expected the configuration in "
            f"{file.with_suffix('')} or {file.parent} (a diffusers folder, whose weights are not "
            f"needed), or that of {origin} on this machine ({error}); where there is a network, "
            f"fetch it with: {command}"
        ) from error
    return ModelSource(folder, f"{name}+{configuration}", file=file)


def _configuration(folder: Path) -> str:
    """``configuration@sha256:<16 hex>`` of a pipeline's folder, without its weights.

    The same weights make other images with another configuration or vocabulary.
    """
    files = [folder / "model_index.json"]
    for name in sorted(parts_of(folder)):
        for pattern in CONFIG_FILES:
            files += sorted((folder / name).glob(pattern))
    whole = hashlib.sha256()
    for file in files:
        if not file.name.endswith(".safetensors.index.json"):
            whole.update(f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n".encode())
    return f"configuration@sha256:{whole.hexdigest()[:16]}"


def _hub_source(model: str, transformer: Path | None, *, dtype: str, offline: bool) -> ModelSource:
    name, _, revision = model.partition("@")
    if not is_hub_id(name):
        refuse_pickles([Path(model)])
        raise ModelError(
            f"--model {model!r}: expected '{EMBEDDED}', a folder or .safetensors file that exists, "
            f"or a hub id such as '{DEFAULT_GPU_MODEL}' or '{DEFAULT_GPU_MODEL}@main'"
        )
    _check_hub_index(name, revision, offline=offline)

    # diffusers does not download a part that is passed to it, but its configuration is needed.
    given = {} if transformer is None else {TRANSFORMER: None}
    variants = ("fp16", None) if dtype != "float32" else (None, "fp16")
    failure: Exception | None = None
    for variant in variants:
        try:
            folder = Path(
                diffusers.DiffusionPipeline.download(
                    name,
                    revision=revision or None,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=offline,
                    **given,
                )
            )
            for part in given:
                hf_hub_download(
                    name, f"{part}/config.json", revision=folder.name, local_files_only=offline
                )
        except (OSError, ValueError) as error:
            failure = error
            continue
        check_pipeline(folder)
        return ModelSource(folder, f"{name}@{folder.name[:12]}")
    if "safetensors" in str(failure):  # diffusers' own refusal, as an OSError
        raise pickled(f"model {model!r}", failure) from failure
    raise absent(f"model {model!r}", name, revision, failure, offline=offline) from failure


def _check_hub_index(name: str, revision: str, *, offline: bool) -> None:
    """Check a repository's index before diffusers downloads what it names.

    Returns if the index cannot be fetched: the download itself then reports the error.
    """
    try:
        index = hf_hub_download(
            name, "model_index.json", revision=revision or None, local_files_only=offline
        )
    except (OSError, ValueError):
        return
    read_index(Path(index).parent)
