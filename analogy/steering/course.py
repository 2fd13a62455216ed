"""The conditioning of one image in the course of its denoising steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from analogy.core.records import WHOLE, Window
from analogy.steering.base import Method
from analogy.steering.conditioning import Conditioning


@runtime_checkable
class ScheduledMethod(Method, Protocol):
    """A method that steers in a part of the schedule only. The strength may decide in which."""

    def window(self, alpha: float) -> Window:
        """The part in which it steers; a share of what ``--steer-from`` and ``--steer-until``
        leave.
        """
        ...


@runtime_checkable
class GuidanceMethod(Method, Protocol):
    """A method that adds to the noise prediction; ``condition`` gives what it predicts with.

    An image's prediction is that of the source prompt plus ``weight`` times the difference of the
    prediction with ``condition``'s value and that of the source prompt. It takes one more forward
    pass of the denoiser for each image, without a negative branch.
    """

    def weight(self, alpha: float) -> float:
        """The weight of the difference at this strength; 0 at alpha 0."""
        ...


@dataclass(frozen=True, slots=True)
class Course:
    """The conditioning of an image that is not steered alike at all its steps.

    ``source``: outside of ``window``; ``steered``: within it, in the place of ``source`` if
    ``weight`` is None. With a weight the noise prediction within the window is

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
    """What an image of ``method`` at strength ``alpha`` is conditioned on.

    ``made``: the method's conditioning, which is the whole answer where every step has it;
    ``window``: the part of the schedule in which images are steered.
    """
    own = method.window(alpha) if isinstance(method, ScheduledMethod) else WHOLE
    weight = method.weight(alpha) if isinstance(method, GuidanceMethod) else None
    part = own.within(window)
    return made if weight is None and part == WHOLE else Course(source, made, part, weight)
