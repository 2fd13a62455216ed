"""The network of LPIPS, from torchmetrics, whose import takes seconds (it imports transformers)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from analogy.core.errors import ModelError
from analogy.metrics.weights import read_weights


def load(network: Literal["alex", "vgg", "squeeze"], backbone: str, path: Path) -> nn.Module:
    """The network in evaluation mode, on the CPU.

    ``network``: torchmetrics' name, such as ``alex``; ``backbone``: torchvision's, such as
    ``alexnet``, of which ``path`` has the weights. Raises :class:`ModelError` if they do not fit.
    """
    # On the meta device nothing is drawn from torch's global generator and nothing is filled twice.
    with torch.device("meta"):
        model = torchmetrics_lpips._NoTrainLpips(pretrained=False, net=network, pnet_rand=True)
    weights = read_weights(path)
    names = {
        name: re.sub(r"^net\.(slice\d+|slices\.\d+)\.", "features.", name)
        for name in model.state_dict()
        if name.startswith("net.")
    }
    missing = [theirs for theirs in names.values() if theirs not in weights]
    if missing:
        raise ModelError(
            f"{path}: expected the weights of torchvision's {backbone}, found no {missing[0]}"
        )
    heads = read_weights(
        Path(torchmetrics_lpips.__file__).parent / "lpips_models" / f"{network}.pth"
    )
    try:
        model.load_state_dict(
            {**{ours: weights[theirs] for ours, theirs in names.items()}, **heads},
            strict=False,  # each head has two names in the model and one in its file
            assign=True,
        )
    except RuntimeError as error:
        raise ModelError(
            f"{path}: expected the weights of torchvision's {backbone} ({error})"
        ) from error
    return model.requires_grad_(False).eval()
