"""Defaults that depend on the model and the device, and the description of this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from analogy.models.folders import family_of_folder
from analogy.models.places import EMBEDDED
from analogy.models.samplings import CARD_SAMPLING, EMBEDDED_SAMPLING

#: The default model and judge with --gpu. Without --gpu both defaults are the embedded ones.
DEFAULT_GPU_MODEL = "segmind/SSD-1B"
DEFAULT_GPU_CLIP = ("ViT-B-32", "laion2b_s34b_b79k")


def sampling(model: str, folder: Path) -> tuple[int, float]:
    """The default number of steps and guidance scale of a model.

    The embedded model has its own. A hub model in ``CARD_SAMPLING`` has what its card recommends.
    Every other model has the defaults of its pipeline.
    """
    if model == EMBEDDED:
        return EMBEDDED_SAMPLING
    name = model.partition("@")[0]
    if name in CARD_SAMPLING:
        return CARD_SAMPLING[name]
    return family_of_folder(folder).defaults()


def native_dtype(device: str) -> str:
    """The fastest dtype that the processor computes natively.

    bfloat16 on a CPU with AVX512_BF16 or AMX, float16 on CUDA, else float32. float16 on a CPU is
    emulated and about 60 times slower, so it is never chosen.
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


def machine(device: str) -> dict[str, str | int]:
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
