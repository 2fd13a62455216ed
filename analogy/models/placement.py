"""Where a pipeline's networks are: on the device, or on the CPU until they are used."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def place(pipeline: Any, device: str, *, decoder: str, offload: str | None) -> None:
    """Put a pipeline onto its device, or have diffusers offload it to the CPU.

    ``offload``: None, or one of :data:`~analogy.core.fields.OFFLOADS`. ``decoder``: the name of the
    part that decodes latents. It is small and is called on its own, so it stays on the device if
    single layers are offloaded.
    """
    if offload is None:
        pipeline.to(device)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline._exclude_from_cpu_offload = [*pipeline._exclude_from_cpu_offload, decoder]
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(
            onload_device=torch.device(device),
            offload_type="leaf_level",
            use_stream=device.startswith("cuda"),
            exclude_modules=decoder,
        )


def computing_place(pipeline: Any, denoiser: Any) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that a pipeline computes in.

    An offloaded denoiser's own device may be the CPU, so it is not used.
    """
    return pipeline._execution_device, denoiser.dtype


#: Attributes that offloading sets on a whole network: accelerate's hook and what calls it.
_OFFLOADED = ("_hf_hook", "_old_forward", "forward")


def not_offloaded(network: nn.Module) -> nn.Module:
    """The same network without its offloading, sharing its weights, so that it can be copied.

    A copy of the hook would include a copy of the network that is offloaded before this one.
    """
    alone = copy.copy(network)
    for name in _OFFLOADED:
        vars(alone).pop(name, None)
    return alone
