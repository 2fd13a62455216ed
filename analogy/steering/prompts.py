"""The methods that go from the source prompt to the target prompt."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from analogy.core.fields import ALPHA_LIMIT
from analogy.steering.base import BUILTIN_ALPHAS, Need, steering_method
from analogy.steering.conditioning import Conditioning, Edit


@steering_method(Need.TARGET)
def lerp(edit: Edit, alpha: float) -> Conditioning:
    """Straight line: E_A + alpha (E_T - E_A); the target's own conditioning at alpha 1."""
    if alpha == 1.0:
        return edit.target
    return edit.source.plus(edit.target.minus(edit.source), alpha)


@steering_method(Need.TARGET)
def slerp(edit: Edit, alpha: float) -> Conditioning:
    """Spherical interpolation of each vector (Shoemake 1985); lengths are interpolated linearly."""
    if alpha in (0.0, 1.0):
        return edit.target if alpha else edit.source
    return edit.source.map(partial(_slerp, alpha=alpha), edit.target)


@steering_method(
    Need.TARGET_ALONE, default_alphas=BUILTIN_ALPHAS["prompt"], alpha_limits=(0.0, ALPHA_LIMIT)
)
def prompt(edit: Edit, alpha: float) -> Conditioning:
    """The target prompt itself at every alpha above 0: the plain baseline (AxBench, Wu et al. 2025,
    arXiv 2501.17148).

    Its images have the target's concept at the cost of the whole source image. Compare what
    another method keeps of the source's image with what this one keeps.
    """
    return edit.target if alpha > 0.0 else edit.source


def _slerp(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Spherical interpolation along the last axis; linear if there is no arc, that is, between
    parallel vectors and from or to zero.

    Computed in float64: rounding to float32 would make an arbitrary arc between opposite vectors.
    """
    a, b = a.double(), b.double()
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    unit_a, unit_b = a / length_a.clamp_min(1e-12), b / length_b.clamp_min(1e-12)
    cosine = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    on_arc = (torch.sin((1 - alpha) * angle) * unit_a + torch.sin(alpha * angle) * unit_b) / sine
    length = (1 - alpha) * length_a + alpha * length_b
    no_arc = (sine < 1e-4) | (length_a == 0.0) | (length_b == 0.0)
    return torch.where(no_arc, a + alpha * (b - a), on_arc * length).float()
