"""Quality metrics as pure functions: images against prompts, against references, set against set.

Images are uint8, 0..255, NHWC. Metrics of single images return an array, one value per image, in
float64. Metrics of sets return a :class:`SetScore`, whose name has the model of the features.
"""

from analogy.metrics.clip_score import (
    TruncationWarning,
    clip_score,
    clip_score_of_features,
    directional_similarity,
    directional_similarity_of_features,
    directional_similarity_where_prompts_differ,
)
from analogy.metrics.features import SetScore, SmallSampleWarning, set_features
from analogy.metrics.frechet import fid, frechet_distance
from analogy.metrics.inception import Inception
from analogy.metrics.kernel import cmmd, kernel_distance, kid, mmd_distance
from analogy.metrics.perceptual import Lpips, lpips, psnr, ssim

__all__ = [
    "Inception",
    "Lpips",
    "SetScore",
    "SmallSampleWarning",
    "TruncationWarning",
    "clip_score",
    "clip_score_of_features",
    "cmmd",
    "directional_similarity",
    "directional_similarity_of_features",
    "directional_similarity_where_prompts_differ",
    "fid",
    "frechet_distance",
    "kernel_distance",
    "kid",
    "lpips",
    "mmd_distance",
    "psnr",
    "set_features",
    "ssim",
]
