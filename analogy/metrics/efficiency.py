"""The cost of a model: time, memory, size, operations, energy and carbon, per image.

The measured function ``run()`` generates ``n_images`` images and returns them. Do work that should
not be measured, such as loading the model, before that. Results are plain frozen dataclasses with
units in their names; ``to_dict`` is JSON.
"""

from __future__ import annotations

import difflib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from analogy.core.records import Figures
from analogy.models.folders import weight_files
from analogy.models.places import ModelSource

Run = Callable[[], object]

SAMPLING_INTERVAL_S = 0.005
"""Seconds between two samples of a process's memory. A sample takes about 20 microseconds."""

CUDA = "cuda allocator"
"""The kind of memory that is measured on a CUDA device."""

SHORTEST_ENERGY_S = 0.1
"""The shortest work that is measured. codecarbon leaves out up to the last 0.05 s, and a CPU's load
comes in ticks of 0.01 s."""


@dataclass(frozen=True, slots=True)
class Timing(Figures):
    """Seconds of `repeats` calls of `n_images` images each, after `warmup` uncounted calls.

    - `latency_median_s`, `latency_p90_s`, `latency_p99_s`: of one call, so of `n_images` images.
      p90 and p99 are times of actual calls, not interpolated: the shortest time that at least 90%
      or 99% of the calls did not exceed. So p99 of fewer than 100 calls is the longest call;
    - `images_per_s`: all images over all seconds;
    - `seconds`: every call's, in order.
    """

    latency_median_s: float
    latency_p90_s: float
    latency_p99_s: float
    images_per_s: float
    n_images: int
    repeats: int
    warmup: int
    device: str
    seconds: tuple[float, ...]


def timing(
    run: Run, *, device: str, warmup: int = 2, repeats: int = 20, n_images: int = 1
) -> Timing:
    """Latency and throughput of ``run``, which makes ``n_images`` images on ``device``.

    A GPU continues to work after its call has returned, so each call starts and ends with the
    device idle. The first calls pay for allocations, kernels and caches: ``warmup`` of them are not
    timed.
    """
    _check_integer("n_images", n_images, 1)
    _check_integer("repeats", repeats, 1)
    _check_integer("warmup", warmup, 0)
    check_device(device)
    for _ in range(warmup):
        run()
    seconds = tuple(_timed(run, device) for _ in range(repeats))
    return Timing(
        latency_median_s=float(np.median(seconds)),
        latency_p90_s=_nearest_rank(seconds, 90),
        latency_p99_s=_nearest_rank(seconds, 99),
        images_per_s=n_images * repeats / sum(seconds),
        n_images=n_images,
        repeats=repeats,
        warmup=warmup,
        device=device,
        seconds=seconds,
    )


def _timed(run: Run, device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _nearest_rank(values: Sequence[float], percent: int) -> float:
    """The smallest of ``values`` that at least ``percent`` % of them do not exceed."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]


@dataclass(frozen=True, slots=True)
class Memory(Figures):
    """The most memory that was in use at one time, in bytes.

    - `kind`: what was measured. Figures of different kinds are not comparable.
      ``cuda allocator``, exact: tensors in torch's allocator, of this process on this device;
      ``resident set``: all of this process in main memory, including the interpreter and libraries,
      without its child processes; ``metal driver``: what the driver allocated for this process;
    - `peak_bytes`: the peak during the run; `before_bytes`: before it, mostly the loaded model;
      `added_bytes`: the difference, which the work itself needed;
    - `reserved_bytes`: on CUDA the most of the device that torch held, including caches;
    - `interval_s`: between samples; a peak between two samples is missed. None: exact.
    """

    kind: str
    device: str
    peak_bytes: int
    before_bytes: int
    added_bytes: int
    reserved_bytes: int | None
    interval_s: float | None


def peak_memory(run: Run, *, device: str) -> Memory:
    """Peak memory during one call of ``run``: torch's own on CUDA, sampled elsewhere.

    A first call also allocates what stays, such as caches and compiled kernels. Memory that earlier
    calls freed and the process kept is used again without being counted. For comparable figures,
    measure in a fresh process, after one call.
    """
    check_device(device)
    _synchronize(device)
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        reserved = torch.cuda.max_memory_reserved(device)
        return Memory(CUDA, device, peak, before, peak - before, reserved, None)
    if kind == "mps":
        name, read = "metal driver", torch.mps.driver_allocated_memory
    else:
        process = psutil.Process()
        name, read = "resident set", lambda: process.memory_info().rss
    before, peak = _sampled(run, read)
    return Memory(name, device, peak, before, peak - before, None, SAMPLING_INTERVAL_S)


def _sampled(run: Run, read: Callable[[], int]) -> tuple[int, int]:
    """``read()`` before the run, and its largest value until after the run, sampled by a thread."""
    before = peak = read()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLING_INTERVAL_S):
            peak = max(peak, read())

    watcher = threading.Thread(target=watch, name="peak-memory", daemon=True)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return before, max(peak, read())


def modules_of(pipeline: Any) -> list[nn.Module]:
    """The networks of a diffusers pipeline: denoiser, VAE, text encoders."""
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def parameters(modules: nn.Module | Iterable[nn.Module]) -> int:
    """The number of parameters. A tensor that several modules share counts once.

    Parameters count as stored: weights that are packed into one number, as in 4-bit formats, count
    as one.
    """
    return sum(tensor.numel() for tensor in _distinct(modules, buffers=False))


def model_bytes(modules: nn.Module | Iterable[nn.Module]) -> int:
    """Bytes of parameters and buffers in memory, each tensor once."""
    tensors = _distinct(modules, buffers=True)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _distinct(modules: nn.Module | Iterable[nn.Module], *, buffers: bool) -> list[Tensor]:
    modules = [modules] if isinstance(modules, nn.Module) else list(modules)
    tensors: dict[int, Tensor] = {}
    for module in modules:
        tensors.update((id(tensor), tensor) for tensor in module.parameters())
        if buffers:
            tensors.update((id(tensor), tensor) for tensor in module.buffers())
    return list(tensors.values())


def size_on_disk(source: ModelSource, *, dtype: str) -> int:
    """Bytes of the weight files for ``dtype``; only one precision counts if both exist.

    ``source``: from :func:`analogy.models.sources.find_pipeline`. A LoRA's file counts as well.
    """
    return sum(path.stat().st_size for path in weight_files(source, dtype=dtype))


def flops(run: Run, *, n_images: int = 1) -> int:
    """Floating point operations of one call of ``run``, per image; a product and a sum are two.

    torch's counter derives them from the shapes of matrix products, convolutions and attention
    (masked or causal as if it were full). It does not count the rest (normalisation, activations,
    softmax, resizing, embeddings), which is little. Nor does it count compiled graphs, kernels of
    other libraries (Triton, xformers) or other threads. Raises ``ValueError`` if it counts nothing.
    """
    _check_integer("n_images", n_images, 1)
    with FlopCounterMode(display=False) as counter:
        run()
    total = counter.get_total_flops()
    if not total:
        raise ValueError(
            "run: torch's counter saw no matrix product, convolution or attention; expected work "
            "in this thread that is neither compiled nor in a CUDA graph; count the plain model's"
        )
    return round(total / n_images)


def macs(flops: int) -> int:
    """Multiply-accumulates: half the number of :func:`flops`."""
    return flops // 2


@dataclass(frozen=True, slots=True)
class Energy(Figures):
    """Electricity and carbon of one image, as codecarbon determines them for the whole machine.

    - `energy_kwh_per_image`: the sum of `cpu_kwh_per_image`, `gpu_kwh_per_image` and
      `ram_kwh_per_image`. A GPU that was not counted is None, and is not in the sum;
    - `cpu_method`, `gpu_method`, `ram_method`: how each was determined, beginning with
      ``measured``, ``estimated`` or ``not counted``; `estimated`: the parts that were estimated,
      empty if none was;
    - `emissions_kg_per_image`: CO2 equivalent, the energy times `carbon_intensity_kg_per_kwh`,
      `country`'s yearly mean in codecarbon's table. So it is estimated even if energy is measured;
    - `pue`: the data centre's overhead (power usage effectiveness), included in all of the above: 1
      unless codecarbon's settings have another value;
    - `duration_s`: of the run of `n_images` images.
    """

    energy_kwh_per_image: float
    emissions_kg_per_image: float
    cpu_kwh_per_image: float
    gpu_kwh_per_image: float | None
    ram_kwh_per_image: float
    cpu_method: str
    gpu_method: str
    ram_method: str
    estimated: tuple[str, ...]
    country: str
    carbon_intensity_kg_per_kwh: float
    pue: float
    n_images: int
    duration_s: float
    device: str
    codecarbon: str


def energy(
    run: Run, *, country: str, n_images: int, device: str = "cpu", at_least_s: float = 0.0
) -> Energy:
    """Energy and carbon per image of ``run``, by codecarbon, without any network access.

    ``n_images``: of one call. ``run`` is called once, and again until ``at_least_s`` seconds have
    passed.

    ``country``: where the machine is, as a three-letter code of ISO 3166 (``DEU``). It has no
    default, since carbon differs more than tenfold between countries. ``device``: its work is
    finished before the meter stops. The whole machine is counted while ``run`` works, including
    idle power and other programs: use an idle machine and 10 s of work or more. Raises
    ``ValueError`` for work below 0.1 s, since codecarbon would miss most of it, and
    ``RuntimeError`` if codecarbon measured nothing.

    codecarbon's settings for the machine (``CODECARBON_FORCE_CPU_POWER``, ``CODECARBON_GPU_IDS``,
    ``CODECARBON_PUE``) apply. Those that use a network, write files or set a location do not.
    """
    _check_integer("n_images", n_images, 1)
    check_device(device)
    codecarbon_logger = logging.getLogger("codecarbon")
    heard = _Heard()
    codecarbon_logger.addFilter(heard)
    try:
        codecarbon = _codecarbon()
        code = _country_code(country)
        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=code,
            tracking_mode="machine",
            allow_multiple_runs=True,  # codecarbon's lock would take over SIGINT and SIGTERM
            # Override the user's settings, which could write, send, or set another location.
            output_methods=[],
            output_handlers=[],
            output_dir=".",
            emissions_endpoint=None,
            electricitymaps_api_token="",
            force_carbon_intensity_g_co2e_kwh=None,
            region=None,
            cloud_provider=None,
            cloud_region=None,
        )
        _synchronize(device)
        tracker.start()
        try:
            start, seconds, calls = time.perf_counter(), 0.0, 0
            while calls == 0 or seconds < at_least_s:
                run()
                _synchronize(device)
                calls += 1
                seconds = time.perf_counter() - start
        finally:
            tracker.stop()
    finally:
        codecarbon_logger.removeFilter(heard)
    if seconds < SHORTEST_ENERGY_S:
        raise ValueError(
            f"run: expected {SHORTEST_ENERGY_S:g} s of work or more, got {seconds:.3f} s, of which "
            "codecarbon sees too little; make more images in one run"
        )
    found = getattr(tracker, "final_emissions_data", None)
    if found is None or not found.energy_consumed > 0:  # codecarbon swallows its own errors
        raise RuntimeError(
            f"codecarbon {codecarbon.__version__} measured nothing; it said: "
            f"{'; '.join(heard.said) or 'nothing'}"
        )
    n_images *= calls
    methods = _methods(tracker._hardware)
    is_counted = not methods["gpu"].startswith("not counted")
    return Energy(
        energy_kwh_per_image=found.energy_consumed / n_images,
        emissions_kg_per_image=found.emissions / n_images,
        cpu_kwh_per_image=found.cpu_energy / n_images,
        gpu_kwh_per_image=found.gpu_energy / n_images if is_counted else None,
        ram_kwh_per_image=found.ram_energy / n_images,
        cpu_method=methods["cpu"],
        gpu_method=methods["gpu"],
        ram_method=methods["ram"],
        estimated=tuple(part for part, how in methods.items() if how.startswith("estimated")),
        country=code,
        carbon_intensity_kg_per_kwh=found.emissions / found.energy_consumed,
        pue=found.pue,
        n_images=n_images,
        duration_s=seconds,
        device=device,
        codecarbon=codecarbon.__version__,
    )


class _Heard(logging.Filter):
    """Silences codecarbon's log, and keeps its messages for an error."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            error = record.exc_info[1] if record.exc_info else None
            self.said.append(repr(error) if error else record.getMessage())
        return False


def _codecarbon() -> Any:
    try:
        import codecarbon  # an extra: may not be installed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "energy needs the package codecarbon, which is not installed: "
            "pip install 'analogy-bench[energy]'",
            name=error.name,
        ) from error
    return codecarbon


def _country_code(country: str) -> str:
    """The code in codecarbon's table. Raises ``ValueError`` with similar ones if it is unknown."""
    from codecarbon.input import DataSource  # as above

    names = {
        code: entry["country_name"]
        for code, entry in DataSource().get_global_energy_mix_data().items()
    }
    given = country.strip() if isinstance(country, str) else ""
    if given.upper() in names:
        return given.upper()
    by_name = {name.lower(): code for code, name in names.items()}
    near = [
        *(by_name[name] for name in difflib.get_close_matches(given.lower(), by_name, n=2)),
        *difflib.get_close_matches(given.upper(), names, n=3),
    ]
    hint = ", ".join(f"{code} ({names[code]})" for code in dict.fromkeys(near))
    raise ValueError(
        f"country: expected one of the {len(names)} three-letter codes (ISO 3166) that codecarbon "
        f"has figures for, got {country!r}; " + (f"near: {hint}" if hint else "such as DEU, USA")
    )


_CPU_METHODS = {
    "intel_rapl": "measured: RAPL",
    "windows_emi": "measured: Windows Energy Meter Interface",
    "intel_power_gadget": "measured: Intel Power Gadget",
    "cpu_load": "estimated: the CPU's load and its TDP, from a table or a guess",
    "constant": "estimated: half of the CPU's TDP, whatever the load",
}


def _methods(hardware: Iterable[Any]) -> dict[str, str]:
    """How codecarbon determines the figures of ``cpu``, ``gpu`` and ``ram``."""
    methods = {
        "cpu": "not counted: codecarbon found no CPU",
        "gpu": "not counted: codecarbon found no GPU that it can read",
        "ram": "not counted: codecarbon found no memory",
    }
    for part in hardware:
        kind = type(part).__name__
        if kind == "CPU":
            methods["cpu"] = _CPU_METHODS.get(part._mode, f"estimated: {part._mode}")
        elif kind == "GPU":
            methods["gpu"] = "measured: the GPUs' driver (NVML or AMD SMI)"
        elif kind == "RAM":
            is_given = part._force_ram_power is not None
            watts = "watts from codecarbon's settings" if is_given else "watts by memory installed"
            methods["ram"] = f"estimated: {watts}"
        elif kind == "AppleSiliconChip":  # powermetrics' man page calls its figures estimates
            methods[part.chip_part.lower()] = "estimated: powermetrics"
        elif kind == "Raspberry":
            methods[part.chip_part.lower()] = "measured: the board's power management"
    return methods


def _check_integer(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name}: expected an integer >= {low}, got {value!r}")


def check_device(device: str) -> None:
    """Raise ``ValueError`` unless it is cpu, mps, cuda or cuda:N, and torch sees it here."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(device)):
        raise ValueError(f"device: expected cpu, mps, cuda or cuda:N, got {device!r}")
    kind, _, index = device.partition(":")
    seen = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not seen[kind]:
        raise ValueError(
            f"device: torch {torch.__version__} does not see {device!r} on this machine; "
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or measure on 'cpu'"
        )


def _synchronize(device: str) -> None:
    """Wait until the device has finished all submitted work."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
