"""What the tests of evaluations evaluate: prompts, a metric, folders of images."""

from __future__ import annotations

import numpy as np

from analogy.core.images import to_png
from analogy.evaluation import (
    metric,
)
from tools.distort import noise as grain

PROMPTS = ("a red car", "two blue cups", "a green hat")

SEEDS = (0, 1)

KEYS = [f"{prompt} #{seed}" for prompt in PROMPTS for seed in SEEDS]


def brightness(samples):
    """A value of each image that anyone can check."""
    return samples.images.mean(axis=(1, 2, 3))


BRIGHT = metric("brightness", brightness, higher_is_better=None, units="grey levels")


def noisy(images, strength=20):
    """The images under noise, by key."""
    changed = grain(np.stack(list(images.values())), strength)
    return dict(zip(images, changed, strict=True))


def plain_folder(folder, images):
    """Images by file name, without any metadata."""
    for name, image in images.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(image))
    return folder
