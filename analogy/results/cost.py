"""Records of a steering method's cost: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FitCost:
    """The cost of fitting a method.

    `seconds`: the sum over workers; `images`: denoised for it, each with as many forward passes as
    an unguided image of the run has steps; `inputs`: category to the digests of everything that
    its fits depended on.
    """

    seconds: float
    images: int
    inputs: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class MethodCost:
    """The cost of a method in a run. None: not measured, such as if all images existed before.

    - `images`: steered images that were timed;
    - `seconds`, `unsteered_seconds`: of one worker for an image, without fitting and writing; the
      median over batches;
    - `peak_bytes`: the peak memory while steered images were generated and the method was fitted;
      `memory`: which memory that is (:class:`analogy.metrics.efficiency.Memory`);
    - `fit`: None if the method was not fitted.
    """

    images: int
    seconds: float | None
    unsteered_seconds: float | None
    memory: str | None
    peak_bytes: int | None
    fit: FitCost | None

    @property
    def ratio(self) -> float | None:
        """Seconds of a steered image over those of an unsteered one."""
        if self.seconds is None or not self.unsteered_seconds:
            return None
        return self.seconds / self.unsteered_seconds
