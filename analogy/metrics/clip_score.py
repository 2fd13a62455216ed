"""CLIPScore and directional similarity: how well images follow prompts, by any open_clip judge."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analogy.core.images import Images
from analogy.judges.margin import cosine, normalize
from analogy.judges.open_clip import Judge
from analogy.metrics.checks import check_images, check_prompts

UNMOVED = 1e-5
"""Unit features closer than this count as the same: float32 rounding between batches is about 1e-7,
and its direction is random."""


class TruncationWarning(UserWarning):
    """Prompts are longer than the judge's context."""


def clip_score(
    images: Images, prompts: Sequence[str], judge: Judge, *, batch_size: int | None = None
) -> NDArray[np.float64]:
    """CLIPScore max(100 cos(image, prompt), 0) per image, 0..100; higher is better.

    The factor is torchmetrics' (Hessel et al. 2021, "CLIPScore", has 2.5 instead of 100); as in the
    paper each image is cut off at 0, where torchmetrics cuts off the mean of a whole batch. Prompts
    longer than the judge's context are truncated, and a :class:`TruncationWarning` counts them.

    ``images``: uint8 ``(n, height, width, 3)``; ``prompts``: n. Returns ``(n,)``.
    """
    check_images(images)
    check_prompts(prompts, len(images))
    warn_of_truncation(prompts, judge)
    return clip_score_of_features(
        judge.image_features(images, batch_size=batch_size), judge.text_features(prompts)
    )


def clip_score_of_features(images: ArrayLike, prompts: ArrayLike) -> NDArray[np.float64]:
    """CLIPScore of embeddings ``(..., dim)`` that broadcast as in
    :func:`analogy.judges.margin.cosine`.
    """
    return np.maximum(100.0 * cosine(images, prompts).astype(np.float64), 0.0)


def directional_similarity(
    images: Images,
    source_images: Images,
    prompts: Sequence[str],
    source_prompts: Sequence[str],
    judge: Judge,
    *,
    batch_size: int | None = None,
) -> NDArray[np.float64]:
    """cos(image - source image, prompt - source prompt) per image, -1..1; higher is better.

    Gal et al. (2022), "StyleGAN-NADA", eq. 3: did the image move the way the prompt did? It does
    not measure how far. It is 0 for an image that has the same features as its source image. Raises
    ``ValueError`` if two prompts have the same features, since they have no direction.

    ``images`` and ``source_images``: uint8 ``(n, height, width, 3)``, paired in order, of any two
    sizes; ``prompts`` and ``source_prompts``: n each. Returns ``(n,)``.
    """
    check_images(images)
    check_images(source_images, "source_images")
    n = len(images)
    if len(source_images) != n:
        raise ValueError(
            f"source_images: expected one for each of the {n} image(s), got {len(source_images)}"
        )
    check_prompts(prompts, n)
    check_prompts(source_prompts, n, "source_prompts")
    warn_of_truncation([*prompts, *source_prompts], judge)
    return directional_similarity_of_features(
        judge.image_features(images, batch_size=batch_size),
        judge.image_features(source_images, batch_size=batch_size),
        judge.text_features(prompts),
        judge.text_features(source_prompts),
    )


def directional_similarity_of_features(
    images: ArrayLike, source_images: ArrayLike, prompts: ArrayLike, source_prompts: ArrayLike
) -> NDArray[np.float64]:
    """Directional similarity of embeddings ``(n, dim)``, normalised here.

    It is 0 if an image's embedding is within ``UNMOVED`` of its source's. Raises ``ValueError`` if
    two prompts have one embedding.
    """
    x, x0, t, t0 = (
        normalize(features).astype(np.float64)
        for features in (images, source_images, prompts, source_prompts)
    )
    shift, direction = x - x0, t - t0
    lengths = np.linalg.norm(direction, axis=-1)
    if not lengths.all():
        raise ValueError(
            "prompts: expected each to differ from its source prompt, got the same text features "
            f"in row(s) {', '.join(map(str, np.flatnonzero(lengths == 0)[:5]))}"
        )
    dots = (shift * direction).sum(axis=-1)
    moved = np.linalg.norm(shift, axis=-1)
    norms = moved * lengths
    values = np.divide(dots, norms, out=np.zeros_like(dots), where=moved > UNMOVED)
    return np.clip(values, -1.0, 1.0)


def directional_similarity_where_prompts_differ(
    images: NDArray[np.floating],
    source_images: NDArray[np.floating],
    prompts: NDArray[np.floating],
    source_prompts: NDArray[np.floating],
) -> NDArray[np.float64]:
    """As :func:`directional_similarity_of_features`, but 0 if two prompts have one embedding.

    Half precision may give two prompts the same embedding. The similarity is then undefined.
    """
    differ = (prompts != source_prompts).any(axis=1)
    similarity = np.zeros(len(differ))
    if differ.any():
        similarity[differ] = directional_similarity_of_features(
            images[differ], source_images[differ], prompts[differ], source_prompts[differ]
        )
    return similarity


def truncated(prompts: Sequence[str], judge: Judge) -> list[str]:
    """The distinct prompts whose end the judge's tokenizer drops, sorted.

    Prompts are tokenized again with one more position. A prompt's end is dropped if the tokens
    before that position differ, or if there is a token at it. So no knowledge of a tokenizer's
    special tokens is needed.
    """
    distinct = sorted(set(prompts))
    read = judge.tokenize(distinct)
    context = read.shape[1]
    longer = judge.tokenize([*distinct, ""], context_length=context + 1)
    padding = longer[-1, context]
    dropped = (longer[:-1, :context] != read).any(dim=1) | (longer[:-1, context] != padding)
    return [prompt for prompt, lost in zip(distinct, dropped.tolist(), strict=True) if lost]


def warn_of_truncation(prompts: Sequence[str], judge: Judge) -> None:
    """Warn with one :class:`TruncationWarning` of the prompts whose end the judge does not read."""
    lost = set(truncated(prompts, judge))
    if lost:
        count = sum(prompt in lost for prompt in prompts)
        context = judge.tokenize([""]).shape[1]
        warnings.warn(
            f"{count} of {len(prompts)} prompts are longer than the {context} tokens that the "
            f"judge reads and were truncated: scores know nothing of their ends; "
            f"the first is {next(p for p in prompts if p in lost)!r}",
            TruncationWarning,
            stacklevel=3,
        )
