"""Resolves a request on this machine: its device, its models, and the configuration."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch

from analogy.core.errors import AnalogyError, FieldError, OptionError
from analogy.core.records import RunConfig
from analogy.judges.base import FoundJudge, find_judge
from analogy.models.defaults import DEFAULT_GPU_CLIP, DEFAULT_GPU_MODEL, native_dtype, sampling
from analogy.models.families import Family, knobs_of
from analogy.models.folders import family_of_folder, native_size
from analogy.models.places import EMBEDDED, ModelSource, go_offline, shipped
from analogy.models.quantization import check_device_for
from analogy.models.sources import find_pipeline
from analogy.settings.request import RunRequest, option_error
from analogy.steering.base import METHODS, Identity, check_alphas, with_method


class Resolved(NamedTuple):
    """A request with all defaults filled in, and its models' files."""

    config: RunConfig
    model: ModelSource
    judge: FoundJudge


def resolve(request: RunRequest) -> Resolved:
    """Fill in the defaults of the device and the models, and find the models' files.

    Loads no model. Raises ``OptionError`` or ``ModelError``.
    """
    _check_method(request)
    device = check_device(request.device, gpu=request.gpu, engine=request.engine)
    _check_engine(request)
    dtype = request.dtype or native_dtype(device)
    name = request.model or (DEFAULT_GPU_MODEL if request.gpu else EMBEDDED)
    clip, tag = request.clip_model, request.clip_pretrained
    if clip is None:
        clip, default_tag = DEFAULT_GPU_CLIP if request.gpu else (EMBEDDED, None)
        tag = tag or default_tag
    if request.offline:
        go_offline()
    judge = find_judge(clip, tag, offline=request.offline).in_dtype(request.clip_dtype)
    if judge.dtype != request.clip_dtype:
        raise OptionError(
            place="--clip-dtype",
            expected=f"{judge.dtype}, which the judge {clip} computes in",
            got=repr(request.clip_dtype),
            advice="leave it out",
        )
    check_device_for(device, quantize=request.quantize, offload=request.offload)
    model = find_pipeline(
        name, dtype=dtype, offline=request.offline, transformer=request.transformer,
        lora=request.lora, quantize=request.quantize,
    )  # fmt: skip
    steps, guidance = sampling(name, model.folder)
    _check_guidance(request, family_of_folder(model.folder))
    try:
        config = RunConfig(
            model=name if request.lora is None else f"{name}+{request.lora}",
            clip_model=clip,
            clip_pretrained=tag,
            pairs=request.pairs or str(shipped("pairs.csv")),
            categories=request.categories,
            alphas=request.alphas,
            seeds=request.seeds,
            method=request.method,
            steps=steps if request.steps is None else request.steps,
            guidance=guidance if request.guidance is None else request.guidance,
            second_guidance=request.second_guidance,
            size=request.size or native_size(model.folder),
            dtype=dtype,
            device=device,
            batch_size=request.batch_size,
            memory=request.memory,
            engine=request.engine,
            num_workers=request.num_workers,
            ray_address=request.ray_address,
            limit=request.limit,
            control=request.control,
            target=request.target or request.report is not None,
            lora=request.lora,
            quantize=request.quantize,
            transformer=request.transformer,
            offload=request.offload,
            sequential=request.sequential,
            order_seed=request.order_seed,
            full_unsteered=request.full_unsteered,
            futility=request.futility,
            reserve=request.reserve,
            steer_from=request.steer_from,
            steer_until=request.steer_until,
        )
    except FieldError as error:
        raise option_error(error) from None
    return Resolved(with_method(config, config.method), model, judge)


def _check_method(request: RunRequest) -> None:
    """Import and check the method, before any model is looked for.

    Raises ``OptionError`` if it is unknown, invalid, or cannot use the request's alphas.
    """
    try:
        method = METHODS.get(request.method)
        Identity.of(method)
        check_alphas(method, request.alphas)
    except FieldError as error:
        raise option_error(error) from None
    except AnalogyError as error:
        raise OptionError(f"--method: {error}") from error


def _check_guidance(request: RunRequest, family: Family) -> None:
    """Raises ``OptionError`` for a guidance scale that the model's pipeline does not have."""
    knob, second = knobs_of(family)
    for flag, value, found in (
        ("--guidance", request.guidance or None, knob),
        ("--second-guidance", request.second_guidance, second),
    ):
        if value is not None and found is None:
            raise OptionError(
                place=flag,
                expected=f"no such option, since {family.pipeline} has no such guidance",
                got=f"{value:g}",
                advice="leave it out",
            )


def _check_engine(request: RunRequest) -> None:
    """Raises ``OptionError`` if Ray is chosen but not installed (it is an optional extra), or if
    one of its options is given with another engine.
    """
    if request.engine == "ray":
        if find_spec("ray") is None:
            raise OptionError(
                place="--engine ray",
                expected="the package ray",
                got="none",
                advice="install it with pip install 'analogy-bench[ray]'",
            )
        return
    for flag, value in (
        ("--num-workers", request.num_workers),
        ("--ray-address", request.ray_address),
    ):
        if value is not None:
            raise OptionError(
                place=flag, expected="--engine ray with it", got=f"--engine {request.engine}"
            )


def check_device(device: str | None, *, gpu: bool, engine: str = "serial") -> str:
    """The device to run on.

    Raises ``OptionError`` if this machine lacks it. The engine ``ray`` runs on its workers'
    devices, which this machine need not have; only cpu and cuda are then valid.
    """
    flag = f"--device {device}" if device else "--gpu"
    device = device or ("cuda" if gpu else "cpu")
    kind, _, index = device.partition(":")
    if gpu and kind != "cuda":
        raise OptionError(place="--device", expected="cuda or cuda:N with --gpu", got=repr(device))
    if engine == "ray":  # the workers have the devices; this machine may have none
        if device not in ("cpu", "cuda"):
            raise OptionError(
                place="--device",
                expected="cpu or cuda with --engine ray, which gives each worker a device of its "
                "own",
                got=repr(device),
            )
        return device
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise OptionError(
                f"{flag}: expected a CUDA device, but torch {torch.__version__} sees none; check "
                "nvidia-smi and CUDA_VISIBLE_DEVICES, or leave it out to run on the CPU"
            )
        count = torch.cuda.device_count()
        if index and int(index) >= count:
            raise OptionError(
                f"{flag}: expected one of the {count} CUDA devices that torch sees, cuda:0 to "
                f"cuda:{count - 1}"
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise OptionError(
            f"{flag}: expected Apple's Metal, but torch {torch.__version__} sees none; it needs "
            "macOS on Apple silicon"
        )
    return device
