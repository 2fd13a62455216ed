"""What several tests of models need."""

from __future__ import annotations

import accelerate
import pytest
import torch


@pytest.fixture
def on_cpu(monkeypatch):
    """Lets accelerate offload from the CPU to the CPU.

    diffusers names the device cpu:0. To move a tensor from cpu there makes a copy, which within
    torch.inference_mode is no parameter any more.
    """
    offload = accelerate.cpu_offload
    monkeypatch.setattr(
        accelerate, "cpu_offload",
        lambda model, device, **given: offload(model, torch.device(device.type), **given),
    )  # fmt: skip
