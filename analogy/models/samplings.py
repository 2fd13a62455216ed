"""Steps and guidance of the embedded model, and those that model cards ask for."""

from __future__ import annotations

#: Steps and guidance of the embedded default.
EMBEDDED_SAMPLING = (8, 4.0)

#: Steps and guidance that a model's card asks for, if they differ from its pipeline's defaults.
#: SSD-1B's card (huggingface.co/segmind/SSD-1B) asks for a "CFG around 9.0" and names no number of
#: steps, so the pipeline's is used. The turbo models are distilled to few steps without guidance.
#: Those of FLUX.1, Z-Image and LCM are from diffusers' documentation and examples
#: (docs/source/en/api/pipelines/flux.md, z_image.md and latent_consistency_models.md,
#: pipeline_z_image.py). FLUX.2 klein is distilled to four steps without guidance (is_distilled in
#: its model_index.json). HiDream's distilled models have the steps of github.com/HiDream-ai/
#: HiDream-I1's README and no guidance.
CARD_SAMPLING: dict[str, tuple[int, float]] = {
    "segmind/SSD-1B": (50, 9.0),
    "stabilityai/sd-turbo": (1, 0.0),
    "stabilityai/sdxl-turbo": (1, 0.0),
    "stabilityai/stable-diffusion-3.5-large-turbo": (4, 0.0),
    "black-forest-labs/FLUX.1-dev": (50, 3.5),
    "black-forest-labs/FLUX.1-schnell": (4, 0.0),
    "Tongyi-MAI/Z-Image-Turbo": (8, 0.0),
    "black-forest-labs/FLUX.2-klein-4B": (4, 1.0),
    "black-forest-labs/FLUX.2-klein-9B": (4, 1.0),
    "HiDream-ai/HiDream-I1-Dev": (28, 0.0),
    "HiDream-ai/HiDream-I1-Fast": (16, 0.0),
    "SimianLuo/LCM_Dreamshaper_v7": (4, 8.0),
}
