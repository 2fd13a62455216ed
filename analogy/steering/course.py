"""The conditioning of one image over its denoising steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from analogy.core.records import WHOLE, Window
from analogy.steering.base import Method
from analogy.steering.conditioning import Conditioning


@runtime_checkable
class ScheduledMethod(Method, Protocol):
    """A method that steers only in a part of the schedule. The part may depend on the strength."""

    def window(self, alpha: float) -> Window:
        """The part in which it steers, as a share of the part that ``--steer-from`` and
        ``--steer-until`` leave.
        """
        ...


@runtime_checkable
class GuidanceMethod(Method, Protocol):
    """A method that adds to the noise prediction. ``condition`` gives its conditioning.

    An image's prediction is that of the source prompt plus ``weight`` times a difference: the
    prediction with ``condition``'s value minus that of the source prompt. Each image takes one more
    forward pass of the denoiser, without a negative branch.
    """

    def weight(self, alpha: float) -> float:
        """The weight of the difference at this strength; 0 at alpha 0."""
        ...


@dataclass(frozen=True, slots=True)
class Course:
    """The conditioning of an image that is steered only at some steps, or by an added prediction.

    ``source``: used outside of ``window``; ``steered``: used within it, and it replaces ``source``
    if ``weight`` is None. With a weight the noise prediction within the window is

        eps(source) + weight (eps(steered) - eps(source)),

    before the pipeline's own guidance, which scales it along with eps(source).
    """

    source: Conditioning
    steered: Conditioning
    window: Window = WHOLE
    weight: float | None = None


def course(
    method: Method, source: Conditioning, made: Conditioning, alpha: float, window: Window
) -> Conditioning | Course:
    """The conditioning of an image of ``method`` at strength ``alpha``.

    ``made``: the method's conditioning, which is returned itself if every step uses it;
    ``window``: the part of the schedule in which images are steered.
    """
    own = method.window(alpha) if isinstance(method, ScheduledMethod) else WHOLE
    weight = method.weight(alpha) if isinstance(method, GuidanceMethod) else None
    part = own.within(window)
    return made if weight is None and part == WHOLE else Course(source, made, part, weight)
