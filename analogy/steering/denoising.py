"""The methods that steer in the course of denoising: by step, or by the noise prediction."""

from __future__ import annotations

from analogy.core.records import Window
from analogy.steering.base import ANY_ALPHA, DEFAULT_ALPHAS, Need
from analogy.steering.conditioning import Conditioning, Edit


class Switch:
    """The source prompt for the first part of the schedule, the target prompt after it.

    Alpha is the share of steps with the target prompt, rounded to whole steps; 1 is the target
    prompt's own image. This is the prompt editing of AUTOMATIC1111's web UI, ``[from:to:when]``
    with alpha = 1 - when, and ComfyUI's ``ConditioningSetTimestepRange``. Composition is decided in
    the first steps, so the image keeps the composition of the source prompt.
    """

    name, version, needs = "switch", "", frozenset({Need.TARGET})
    default_alphas, alpha_limits = DEFAULT_ALPHAS, (0.0, 1.0)

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        """The target's conditioning, which the last steps use; the source's at alpha 0."""
        return edit.target if alpha else edit.source

    def window(self, alpha: float) -> Window:
        """The last part of the schedule: a share of ``alpha``."""
        return Window(1.0 - alpha, 1.0)


switch = Switch()


class Guidance:
    """Moves the noise prediction along the difference of the two prompts' predictions.

        eps = eps(empty) + w (eps(source) - eps(empty)) + alpha w (eps(target) - eps(source)),

    where w is the guidance scale of the run. Composable Diffusion (Liu et al. 2022, arXiv
    2206.01714) sums weighted noise predictions. SEGA (Brack et al. 2023, arXiv 2301.12247) adds an
    edit as a further term beside classifier-free guidance, with a warm-up. Here the edit's term is
    relative to the source prompt, and has no thresholds and no momentum. ``--steer-from`` is the
    warm-up. At alpha 1 the prediction is the target prompt's own. With a scale of 1 or less there
    is no empty prompt: eps = eps(source) + alpha (eps(target) - eps(source)).
    """

    name, version, needs = "guidance", "", frozenset({Need.TARGET})
    default_alphas, alpha_limits = DEFAULT_ALPHAS, ANY_ALPHA

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        """The target's conditioning, with which the added prediction is made."""
        return edit.target if alpha else edit.source

    def weight(self, alpha: float) -> float:
        """The strength itself."""
        return alpha


guidance = Guidance()
