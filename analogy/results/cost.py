"""What a steering method costs, as records: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FitCost:
    """What fitting a method cost.

    `seconds`: of all workers together; `images`: denoised for it, each in as many forward passes as
    an unguided image of the run has steps; `inputs`: category to the digests of all that its fits
    depended on.
    """

    seconds: float
    images: int
    inputs: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class MethodCost:
    """What a method cost in a run. None: not measured, as where all images were there already.

    - `images`: steered images that were timed;
    - `seconds`, `unsteered_seconds`: of one worker for an image, without fitting and writing; the
      median over batches;
    - `peak_bytes`: the most memory while steered images were generated and the method fitted;
      `memory`: what that is of (:class:`analogy.metrics.efficiency.Memory`);
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
