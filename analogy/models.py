"""Find, verify and load models; say which ones they are.

A model is ``embedded`` (shipped with the suite), a local folder, or a hub id with an optional
``@revision``. Its fingerprint goes into every result, so that figures of different weights are
never mixed.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import warnings
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch

EMBEDDED = "embedded"
SDXL_PIPELINES = ("StableDiffusionXLPipeline",)
CHECKSUMS = "SHA256SUMS"

#: What a run uses unless told otherwise: embedded on a CPU, SSD-1B with --gpu.
DEFAULT_GPU_MODEL = "segmind/SSD-1B"
DEFAULT_GPU_CLIP = ("ViT-B-32", "laion2b_s34b_b79k")


class ModelError(ValueError):
    """A model cannot be used; the message says what was expected, what came and what to do."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are, and which files they are.

    ``fingerprint`` is ``<name>@<commit>`` for a hub model and ``<name>@sha256:<16 hex>`` over all
    configuration and weight files for a folder.
    """

    folder: Path
    fingerprint: str


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


def find_pipeline(model: str, *, dtype: str) -> ModelSource:
    """The files of a diffusers pipeline, downloaded if ``model`` is a hub id.

    ``dtype`` decides whether half-precision weights are fetched where both exist.
    """
    folder = shipped("models/sdxl-tiny") if model == EMBEDDED else Path(expanduser(model))
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ModelError(
                f"{folder}: expected a diffusers pipeline folder with model_index.json; "
                f"found {_listing(folder)}"
            )
        _refuse_other_families(folder)
        return ModelSource(folder, fingerprint(folder))
    name, _, revision = model.partition("@")
    if not _is_hub_id(name):
        raise ModelError(
            f"--model {model!r}: expected '{EMBEDDED}', a folder that exists, or a hub id such as "
            f"'{DEFAULT_GPU_MODEL}' or '{DEFAULT_GPU_MODEL}@main'"
        )
    from diffusers import DiffusionPipeline

    variants = ("fp16", None) if dtype != "float32" else (None, "fp16")
    failure: Exception | None = None
    for variant in variants:
        try:
            folder = Path(
                DiffusionPipeline.download(
                    name, revision=revision or None, variant=variant, use_safetensors=True
                )
            )
        except (OSError, ValueError) as error:
            failure = error
            continue
        _refuse_other_families(folder)
        return ModelSource(folder, f"{name}@{folder.name[:12]}")
    raise ModelError(
        f"model {model!r} is not on this machine and could not be fetched ({failure}); "
        f"where there is a network, 'hf download {name}' fetches it"
    ) from failure


def load_pipeline(source: ModelSource, *, device: str, dtype: str) -> Any:
    """The pipeline on its device, in its dtype, ready and silent.

    Only safetensors are loaded. Half-precision files are used where the folder has them.
    """
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # A bar for every part's loading would bury the one that matters.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    halves = any((source.folder / "unet").glob("*.fp16.safetensors"))
    with warnings.catch_warnings():
        # Weights saved as fp16 and computed in another dtype are what we mean to do.
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            source.folder,
            torch_dtype=getattr(torch, dtype),
            variant="fp16" if halves else None,
            use_safetensors=True,
            add_watermarker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def fingerprint(folder: Path) -> str:
    """``<folder name>@sha256:<16 hex>`` over the folder's configuration and weight files.

    Where the folder has a SHA256SUMS, every file in it is checked against it: a mismatch is a
    :class:`ModelError`.
    """
    files = sorted(
        path
        for pattern in ("*.json", "*.safetensors", "*.txt")
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
    expected = {}
    for line in listed.read_text("utf-8").splitlines():
        digest, _, name = line.partition("  ")
        expected[name] = digest
    for name, digest in expected.items():
        actual = found.get(name) or (_sha256(folder / name) if (folder / name).is_file() else None)
        if actual != digest:
            raise ModelError(
                f"{folder / name}: expected SHA-256 {digest} (from {CHECKSUMS}), "
                f"got {actual or 'no such file'}; restore it with 'git checkout -- {folder}'"
            )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _refuse_other_families(folder: Path) -> None:
    try:
        name = json.loads((folder / "model_index.json").read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / 'model_index.json'}: not a pipeline's index ({error})"
        ) from None
    if name not in SDXL_PIPELINES:
        raise ModelError(
            f"{folder}: expected a pipeline of the families supported "
            f"({', '.join(SDXL_PIPELINES)}), got {name}"
        )


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
    return {
        "platform": platform.platform(),
        "processor": processor,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }
