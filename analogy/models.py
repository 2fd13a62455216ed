"""Find, verify and load models; say which ones they are.

A model is ``embedded`` (shipped with the suite), a local folder, a single ``.safetensors`` file,
or a hub id with an optional ``@revision``; a LoRA may be fused into it. Its fingerprint goes into
every result, so that figures of different weights are never mixed. Weights come from safetensors
alone: a pickle may run any code when it is loaded.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import platform
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analogy.families import Family, family_of
from analogy.memory import MemoryFullError, memory_said
from analogy.networks import ModelError as ModelError
from analogy.networks import (
    check_adapter,
    check_converted,
    check_weights,
    load_network,
    loading,
    quiet_libraries,
    read_object,
    reason,
    refuse_odd_keys,
    shapes_in,
)
from analogy.options import CARD_SAMPLING, EMBEDDED_SAMPLING
from analogy.text import command_line, lines_of
from analogy.trust import check_lora, check_pipeline, pickled, read_index
from analogy.trust import refuse_pickles as refuse_pickles

EMBEDDED = "embedded"
CHECKSUMS = "SHA256SUMS"
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
#: A pipeline's configuration and tokenizers, without its weights.
CONFIG_FILES = ["*.json", "*.txt", "*.model"]

#: What a run uses unless told otherwise: embedded on a CPU, SSD-1B with --gpu.
DEFAULT_GPU_MODEL = "segmind/SSD-1B"
DEFAULT_GPU_CLIP = ("ViT-B-32", "laion2b_s34b_b79k")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are, and which files they are.

    ``folder``: the pipeline's configuration, and its weights unless ``file`` has them; ``lora``:
    weights to fuse in. ``fingerprint`` is ``<name>@<commit>`` for a hub model, ``<name>@sha256:<16
    hex>`` over all configuration and weight files for a folder and over the file for a file, with
    ``+configuration@sha256:<16 hex>`` of the folder that configures a file, and
    ``+<lora>@sha256:<16 hex>`` for a LoRA.
    """

    folder: Path
    fingerprint: str
    file: Path | None = None
    lora: Path | None = None

    @property
    def places(self) -> list[Path]:
        """Where its files lie on this machine."""
        return [place for place in (self.folder, self.file, self.lora) if place is not None]


def shipped(name: str) -> Path:
    """A file or folder of ``fixtures/``, in a checkout or in an installed wheel."""
    here = Path(__file__).resolve().parent
    for root in (here.parent / "fixtures", here / "_data"):
        if (root / name).exists():
            return root / name
    raise ModelError(
        f"the suite's own {name} is missing: looked in {here.parent / 'fixtures'} and "
        f"{here / '_data'}; check out the repository whole, or run 'tox -e build-models'"
    )


def find_pipeline(
    model: str, *, dtype: str, offline: bool = False, lora: str | None = None
) -> ModelSource:
    """The files of a diffusers pipeline, downloaded if ``model`` is a hub id.

    ``dtype`` decides whether half-precision weights are fetched where both exist. ``offline``:
    what is not on this machine is a :class:`ModelError` that names the command that fetches it.
    ``lora``: a ``.safetensors`` file, a folder that holds one, or a hub id.
    """
    path = shipped("models/sdxl-tiny") if model == EMBEDDED else Path(expanduser(model)).absolute()
    if path.is_dir():
        source = _folder_source(path)
    elif path.is_file():
        source = _file_source(path, offline=offline)
    else:
        source = _hub_source(model, dtype=dtype, offline=offline)
    _check_parts(source, dtype=dtype)
    return source if lora is None else _with_lora(source, lora, offline=offline)


def _check_parts(source: ModelSource, *, dtype: str) -> None:
    """Raise :class:`ModelError` unless all that will be loaded is there and whole.

    Reads configurations and headers alone; whether weights fit is known when they are loaded.
    """
    skipped = _family_of_folder(source.folder).load_options
    files = weight_files(source, dtype=dtype)
    for name in _parts(source.folder):
        if name in skipped:
            continue
        folder = source.folder / name
        if _NETWORK.fullmatch(name):
            read_object(folder / "config.json", what="a network's configuration")
            if source.file is None:
                check_weights(folder, [file for file in files if file.parent == folder])
        elif name == "scheduler":
            scheduler_settings(source.folder)
    if source.file is not None:
        shapes_in(source.file)


def _folder_source(folder: Path) -> ModelSource:
    if not (folder / "model_index.json").is_file():
        refuse_pickles(folder.iterdir())
        raise ModelError(
            f"{folder}: expected a diffusers pipeline folder with model_index.json; "
            f"found {_listing(folder)}"
        )
    check_pipeline(folder)
    return ModelSource(folder, fingerprint(folder))


def _file_source(file: Path, *, offline: bool) -> ModelSource:
    """A single-file checkpoint: it holds weights alone, so its configuration must be found.

    That is in the file's own folder, or in one beside it named like it; else it is that of the
    model that diffusers takes the weights for, from the hub.
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
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        load_single_file_checkpoint,
    )
    from huggingface_hub import snapshot_download

    with loading(file, "a checkpoint as a safetensors file"):
        alike = fetch_diffusers_config(load_single_file_checkpoint(str(file)))
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
    """``configuration@sha256:<16 hex>`` of a pipeline's folder, whatever weights are in it.

    The same weights compute other images by another configuration or vocabulary.
    """
    files = [folder / "model_index.json"]
    for name in sorted(_parts(folder)):
        for pattern in CONFIG_FILES:
            files += sorted((folder / name).glob(pattern))
    whole = hashlib.sha256()
    for file in files:
        if not file.name.endswith(".safetensors.index.json"):
            whole.update(f"{_sha256(file)}  {file.relative_to(folder).as_posix()}\n".encode())
    return f"configuration@sha256:{whole.hexdigest()[:16]}"


def _hub_source(model: str, *, dtype: str, offline: bool) -> ModelSource:
    name, _, revision = model.partition("@")
    if not _is_hub_id(name):
        refuse_pickles([Path(model)])
        raise ModelError(
            f"--model {model!r}: expected '{EMBEDDED}', a folder or .safetensors file that exists, "
            f"or a hub id such as '{DEFAULT_GPU_MODEL}' or '{DEFAULT_GPU_MODEL}@main'"
        )
    _check_hub_index(name, revision, offline=offline)
    from diffusers import DiffusionPipeline

    variants = ("fp16", None) if dtype != "float32" else (None, "fp16")
    failure: Exception | None = None
    for variant in variants:
        try:
            folder = Path(
                DiffusionPipeline.download(
                    name,
                    revision=revision or None,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=offline,
                )
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
    """Refuse a repository by its index, before diffusers downloads what that names.

    A repository or index that cannot be had is for the download itself to report.
    """
    from huggingface_hub import hf_hub_download

    try:
        index = hf_hub_download(
            name, "model_index.json", revision=revision or None, local_files_only=offline
        )
    except (OSError, ValueError):
        return
    read_index(Path(index).parent)


def _with_lora(source: ModelSource, lora: str, *, offline: bool) -> ModelSource:
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
            f"{', '.join(file.name for file in files) or _listing(folder)}; name the file"
        )
    return files[0]


def _hub_lora(lora: str, *, offline: bool) -> Path:
    name, _, revision = lora.partition("@")
    if not _is_hub_id(name):
        raise ModelError(
            f"--lora {lora!r}: expected a .safetensors file or a folder that exists, or a hub id"
        )
    from huggingface_hub import snapshot_download

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


def absent(
    what: str, name: str, revision: str, failure: Exception | None, *, offline: bool
) -> ModelError:
    """What to say when the hub's files are neither here nor to be had."""
    command = command_line("hf", "download", name, *(["--revision", revision] if revision else []))
    why = "and --offline fetches nothing" if offline else f"and could not be fetched ({failure})"
    return ModelError(
        f"{what} is not on this machine {why}; where there is a network, fetch it with: {command}",
        command,
    )


def go_offline() -> None:
    """From here on this process and its children ask the hub for nothing, whatever loads."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def load_pipeline(source: ModelSource, *, device: str, dtype: str) -> Any:
    """The pipeline on its device, in its dtype, with its LoRA fused, ready and silent.

    Only safetensors are loaded, and only files that :func:`find_pipeline` found. Half-precision
    files are used where the folder has them, unless it has float32 and that is asked for.
    """
    import diffusers
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # A bar for every part's loading would bury the one that matters.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # Checked here as well: the folder may be another machine's, or changed since it was found.
    family, index = check_pipeline(source.folder, weights=source.file is None)
    loader = getattr(diffusers, family.pipeline)
    options: dict[str, Any] = {
        "torch_dtype": getattr(torch, dtype),
        "local_files_only": True,
        **family.load_options,
        # Parts that the folder leaves out on purpose, such as SD3's T5 encoder, must be said.
        **{name: None for name, part in index.items() if part == [None, None]},
    }
    what = f"a {family.pipeline} in the format of save_pretrained"
    with warnings.catch_warnings():
        # Weights saved as fp16 and computed in another dtype are what we mean to do.
        warnings.simplefilter("ignore")
        if source.file is not None:
            for name, (library, kind) in _parts(source.folder).items():
                if library == "diffusers" and _NETWORK.fullmatch(name) and name not in options:
                    found = getattr(diffusers, kind, None)
                    check_converted(found, source.file, source.folder / name)
            with loading(source.file, f"a {family.pipeline} in one file, as {source.folder} says"):
                pipeline = loader.from_single_file(
                    str(source.file), config=str(source.folder), **options
                )
            for name, part in _networks_of(pipeline).items():
                refuse_odd_keys(f"{source.file}: {name}", part)
        else:
            networks = _load_networks(source, dtype=dtype, skipped=options)
            with loading(source.folder, what):
                pipeline = loader.from_pretrained(source.folder, **options, **networks)
        if source.lora is not None:
            _fuse(pipeline, source.lora)
    pipeline.set_progress_bar_config(disable=True)
    if device.startswith("cuda"):
        # The layout that a card's convolutions are fastest in.
        for part in (getattr(pipeline, family.denoiser), pipeline.vae):
            part.to(memory_format=torch.channels_last)
    pipeline.to(device)
    _check_fit(pipeline, source.folder)
    return pipeline


def _check_fit(pipeline: Any, folder: Path) -> None:
    """Raise :class:`ModelError` unless a pipeline's parts fit each other: one prompt is encoded.

    Each may be whole and of another model than the rest.
    """
    family = family_of(pipeline)
    with torch.inference_mode(), loading(folder, "tokenizers that fit the text encoders"):
        made = family.empty(pipeline)
    for of, (takes, has) in family.widths(pipeline, made).items():
        if isinstance(takes, int) and takes != has:
            raise ModelError(
                f"{folder}: expected {of} of {takes:,} channels, as {family.denoiser}/config.json "
                f"says, got {has:,} of its other parts: they are of another model; fetch or save "
                "the model again"
            )


def _load_networks(
    source: ModelSource, *, dtype: str, skipped: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """The parts of a folder's pipeline that have weights, by name, each as its files have it."""
    files = weight_files(source, dtype=dtype)
    networks = {}
    for name, (library, kind) in _parts(source.folder).items():
        folder = source.folder / name
        if name in skipped or not _NETWORK.fullmatch(name):
            continue
        with loading(source.folder / "model_index.json", f"a class of {library} for {name}"):
            found = getattr(importlib.import_module(library), kind)
        is_half = any(".fp16" in file.name for file in files if file.parent == folder)
        networks[name] = load_network(
            found, folder, dtype=getattr(torch, dtype), variant="fp16" if is_half else None
        )
    return networks


def _networks_of(pipeline: Any) -> dict[str, nn.Module]:
    parts = pipeline.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module)}


def _variant(folder: Path, dtype: str) -> str | None:
    """``fp16`` where the denoiser's half-precision files are the ones to load, else None."""
    denoiser = folder / _family_of_folder(folder).denoiser
    weights = {path.name for path in denoiser.glob("*")}
    halves = {name for name in weights if ".fp16" in name and "safetensors" in name}
    whole = {name for name in weights - halves if name.endswith(".safetensors")}
    return "fp16" if halves and not (whole and dtype == "float32") else None


def weight_files(source: ModelSource, *, dtype: str) -> list[Path]:
    """The weights that :func:`load_pipeline` reads in this dtype: one precision, not both.

    Per part ``<name>.fp16.safetensors`` where half precision is loaded and the part has it, else
    ``<name>.safetensors``; shards of either; a LoRA's file as well.
    """
    lora = [] if source.lora is None else [source.lora]
    if source.file is not None:
        return [source.file, *lora]
    variant = _variant(source.folder, dtype)
    skipped = _family_of_folder(source.folder).load_options
    files: list[Path] = []
    for name in sorted(_parts(source.folder)):
        folder = source.folder / name
        if name in skipped or not folder.is_dir():
            continue
        weights = sorted(folder.glob("*.safetensors"))
        # <name>[.<variant>][-<shard>].safetensors, or the shard before the variant
        halves = [path for path in weights if path.name.split(".")[1].startswith("fp16")]
        whole = [path for path in weights if path.name.count(".") == 1]
        files += halves if variant and halves else whole
    return files + lora


def _fuse(pipeline: Any, lora: Path) -> None:
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


def fingerprint(folder: Path) -> str:
    """``<folder name>@sha256:<16 hex>`` over the folder's configuration and weight files.

    Where the folder has a SHA256SUMS, every file in it is checked against it: a mismatch is a
    :class:`ModelError`.
    """
    files = sorted(
        path
        for pattern in ("*.json", "*.safetensors", "*.txt", "*.model")
        for path in folder.rglob(pattern)
        if path.is_file()
    )
    sums = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    listed = folder / CHECKSUMS
    if listed.is_file():
        _check_sums(folder, listed, sums)
    whole = hashlib.sha256()
    for name, digest in sums.items():
        whole.update(f"{digest}  {name}\n".encode())
    return f"{folder.name}@sha256:{whole.hexdigest()[:16]}"


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over the folder's files, in the format of ``sha256sum``."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), "utf-8")


def _check_sums(folder: Path, listed: Path, found: dict[str, str]) -> None:
    for name, digest in _read_sums(folder, listed).items():
        actual = found.get(name) or (_sha256(folder / name) if (folder / name).is_file() else None)
        if actual != digest:
            command = command_line("git", "checkout", "--", folder)
            raise ModelError(
                f"{folder / name}: expected SHA-256 {digest} (from {CHECKSUMS}), "
                f"got {actual or 'no such file'}; restore it with: {command}"
            )


def _read_sums(folder: Path, listed: Path) -> dict[str, str]:
    """The digest of each file that SHA256SUMS lists; all of them lie in the folder."""
    try:
        lines = list(lines_of(listed.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{listed}: expected lines of sha256sum, got {reason(error)}") from error
    expected = {}
    for i, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        name = "" if match is None else match["name"]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(
                f"{listed}, line {i}: expected names of files in {folder}, got {name!r:.200}"
            )
        if match:
            expected[name] = match["digest"]
        elif line.strip():
            raise ModelError(
                f"{listed}, line {i}: expected '<64 hex digits>  <file in {folder}>' as sha256sum "
                f"writes it, got {line[:80]!r}; write it anew, or remove {listed.name} to check "
                "nothing"
            )
    return expected


_SUM = re.compile(r"(?P<digest>[0-9a-f]+) [ *](?P<name>[^\0]+)")


def file_fingerprint(name: str, path: Path) -> str:
    """``<name>@sha256:<16 hex>`` of one file."""
    return f"{name}@sha256:{_sha256(path)[:16]}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _index(folder: Path) -> dict[str, Any]:
    """What a pipeline's folder says of itself: its class and, for each part, library and class."""
    return read_index(folder)[1]


#: The parts of a pipeline that have weights, by diffusers' names.
_NETWORK = re.compile(r"unet|transformer|vae|text_encoder(_\d)?|image_encoder")


def _parts(folder: Path) -> dict[str, tuple[str, str]]:
    """The parts of a folder's pipeline that it does not leave out: library and class by name."""
    index = _index(folder)
    return {name: tuple(part) for name, part in index.items()
            if isinstance(part, list) and part != [None, None]}  # fmt: skip


def _family_of_folder(folder: Path) -> Family:
    return read_index(folder)[0]


def native_size(folder: Path) -> int:
    """Pixels a side of the images that a pipeline was trained for, from its configuration files."""
    return _family_of_folder(folder).native_size(folder)


def scheduler_settings(folder: Path) -> dict[str, Any]:
    """The settings of a pipeline's scheduler, its class among them as ``_class_name``."""
    file = folder / "scheduler" / "scheduler_config.json"
    settings = read_object(file, "_class_name", what="a scheduler's configuration")
    if not isinstance(settings["_class_name"], str):
        raise ModelError(f"{file}: expected _class_name as text, got {settings['_class_name']!r}")
    return settings


def sampling(model: str, folder: Path) -> tuple[int, float]:
    """Steps and guidance for a model unless told otherwise.

    The embedded model's own; what the card of a hub model asks for (``CARD_SAMPLING``); else what
    its pipeline does by itself.
    """
    if model == EMBEDDED:
        return EMBEDDED_SAMPLING
    name = model.partition("@")[0]
    if name in CARD_SAMPLING:
        return CARD_SAMPLING[name]
    import diffusers

    call = getattr(diffusers, _family_of_folder(folder).pipeline).__call__
    defaults = inspect.signature(call).parameters
    return defaults["num_inference_steps"].default, defaults["guidance_scale"].default


def _is_hub_id(name: str) -> bool:
    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    return re.fullmatch(f"{part}/{part}", name) is not None


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"


def native_dtype(device: str) -> str:
    """What the processor computes natively at its fastest: see DESIGN.md.

    bfloat16 where a CPU has AVX512_BF16 or AMX, float16 on CUDA, else float32; float16 on a CPU
    is emulated and about 60 times slower, so it is never chosen.
    """
    if device.startswith("cuda"):
        return "float16"
    if device == "cpu" and _cpu_has_bfloat16():
        return "bfloat16"
    return "float32"


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def machine(device: str) -> dict[str, Any]:
    """The machine's part of a result's provenance."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    is_here = device.startswith("cuda") and torch.cuda.is_available()  # not so on Ray's driver
    return {
        "platform": platform.platform(),
        "processor": processor,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if is_here else device,
    }
