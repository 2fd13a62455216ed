"""A model family: SDXL with perturbed-attention guidance, a pipeline of its own in diffusers."""

from typing import Any

from analogy.models.families import SDXL, Sampling


class PerturbedSDXL(SDXL):
    """SDXL's parts, another pipeline and one argument more."""

    pipeline = "StableDiffusionXLPAGPipeline"

    def arguments(self, sampling: Sampling) -> dict[str, Any]:
        """What the pipeline's call is given beside conditionings and latents."""
        return {**super().arguments(sampling), "pag_scale": 1.0}


family = PerturbedSDXL()
