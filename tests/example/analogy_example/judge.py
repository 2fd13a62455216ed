"""A judge of colours alone: how red an image is, or how blue where the prompt says blue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analogy.core.images import Images


class WarmthJudge:
    """Red minus blue, in -1..1; of a prompt with the word blue, blue minus red."""

    name, version = "warmth", "1"

    def load(self, device: str) -> WarmthJudge:
        """Nothing to load."""
        return self

    def score(self, images: Images, prompts: Sequence[str]) -> NDArray[np.float64]:
        """uint8 ``(n, height, width, 3)`` and n prompts -> ``(n,)``."""
        red, _, blue = images.mean(axis=(1, 2)).T / 255
        return np.where(["blue" in prompt.split() for prompt in prompts], blue - red, red - blue)


judge = WarmthJudge()
