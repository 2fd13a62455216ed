"""CLIPScore against torchmetrics, directional similarity against its formula; truncation."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.functional.multimodal import clip_score as torchmetrics_clip_score

from analogy.core.images import to_tensor
from analogy.metrics import (
    TruncationWarning,
    clip_score,
    clip_score_of_features,
    directional_similarity,
    directional_similarity_of_features,
)
from analogy.metrics.clip_score import truncated

quick = settings(deadline=None, max_examples=30)

vectors = arrays(np.float64, (4, 3), elements=st.floats(-1, 1).map(lambda v: round(v, 3))).filter(
    lambda rows: (np.linalg.norm(rows, axis=1) > 0.1).all()
)


class AsTransformers:
    """The judge in the clothes of a transformers CLIP model and its processor in one.

    torchmetrics 1.9 with its own models fails on transformers 5, whose models return an object
    where they returned a tensor; with this one its formula runs.
    """

    def __init__(self, judge):
        self.judge = judge
        self.config = SimpleNamespace()

    def to(self, device):
        return self

    def __call__(self, *, text=None, images=None, **options):
        if text is None:
            return {"pixel_values": self.judge._preprocess(torch.stack(images))}
        tokens = self.judge.tokenize(text)
        return {"input_ids": tokens, "attention_mask": tokens}

    def get_image_features(self, pixels):
        return self.judge._model.encode_image(pixels)

    def get_text_features(self, tokens, mask):
        return self.judge._model.encode_text(tokens)


def test_clip_score_is_that_of_torchmetrics(judge, pictures, captions):
    adapter = AsTransformers(judge)
    expected = [
        torchmetrics_clip_score(image, text, lambda: (adapter, adapter)).item()
        for image, text in zip(to_tensor(pictures), captions, strict=True)
    ]
    scores = clip_score(pictures, captions, judge)
    assert scores.shape == (12,)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_each_image_is_cut_off_at_0_and_not_the_batch(judge, pictures, captions):
    wrong = captions[1:] + captions[:1]
    cosines = (judge.image_features(pictures) * judge.text_features(wrong)).sum(axis=1)
    assert (cosines < 0).any()
    scores = clip_score(pictures, wrong, judge)
    np.testing.assert_allclose(scores, np.maximum(100 * cosines, 0), rtol=1e-4)
    assert (scores == 0).any()


@quick
@given(vectors, vectors)
def test_clip_score_of_features_has_its_range(images, prompts):
    scores = clip_score_of_features(images, prompts)
    assert ((scores >= 0) & (scores <= 100)).all()
    np.testing.assert_allclose(clip_score_of_features(images, images), 100, rtol=1e-6)
    np.testing.assert_array_equal(clip_score_of_features(images, -images), 0)
    np.testing.assert_array_equal(clip_score_of_features(prompts, images), scores)


@quick
@given(vectors, vectors, vectors, vectors)
def test_directional_similarity_is_its_formula(images, sources, prompts, source_prompts):
    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    direction = unit(prompts) - unit(source_prompts)
    shift = unit(images) - unit(sources)
    shifts, directions = (np.linalg.norm(part, axis=1) for part in (shift, direction))
    if directions.min() < 1e-3:
        return
    values = directional_similarity_of_features(images, sources, prompts, source_prompts)
    assert (np.abs(values) <= 1).all()
    for i in np.flatnonzero(shifts > 1e-3):
        expected = shift[i] @ direction[i] / shifts[i] / directions[i]
        assert values[i] == pytest.approx(expected, abs=1e-3)
    swapped = directional_similarity_of_features(sources, images, source_prompts, prompts)
    np.testing.assert_allclose(swapped, values, atol=1e-12)
    backwards = directional_similarity_of_features(sources, images, prompts, source_prompts)
    np.testing.assert_allclose(backwards, -values, atol=1e-12)


def test_directional_similarity_of_images(judge, pictures, noisy, captions):
    sources = ["a grey cup"] * 12
    values = directional_similarity(noisy, pictures, captions, sources, judge)
    x, x0 = judge.image_features(noisy), judge.image_features(pictures)
    t, t0 = judge.text_features(captions), judge.text_features(sources)
    for i in range(12):
        a, b = (x[i] - x0[i]).astype(float), (t[i] - t0[i]).astype(float)
        expected = a @ b / np.sqrt((a @ a) * (b @ b))
        assert values[i] == pytest.approx(expected, abs=1e-3)


def test_towards_the_targets_picture_it_is_positive(judge):
    """What it is for: a red car's picture that becomes a blue car's."""
    import random

    from analogy.world import Scene, render

    red, blue = (
        np.stack([render(Scene(color=c), random.Random(seed)) for seed in range(4)])
        for c in ("red", "blue")
    )
    source, target = ["a red car"] * 4, ["a blue car"] * 4
    assert directional_similarity(blue, red, target, source, judge).min() > 0.3
    assert directional_similarity(red, blue, target, source, judge).max() < -0.3


def test_an_unchanged_image_moves_in_no_direction(judge, pictures, noisy):
    """Also where its two embeddings come from different batches and differ by rounding."""
    images = pictures.copy()
    images[1:] = noisy[1:]
    values = directional_similarity(
        images, pictures, ["a red car"] * 12, ["a blue car"] * 12, judge, batch_size=5
    )
    assert values[0] == 0.0
    assert (values[1:] != 0.0).all()
    prompts = judge.text_features(["a red car", "a blue car"])
    x = np.concatenate([judge.image_features(image[None]) for image in pictures])
    y = judge.image_features(pictures)
    assert (x != y).any()
    np.testing.assert_array_equal(
        directional_similarity_of_features(x, y, prompts[:1], prompts[1:]), 0.0
    )


def test_equal_prompts_name_no_direction(judge, pictures, noisy):
    with pytest.raises(ValueError, match=r"differ from its source prompt, .* row\(s\) 1$"):
        directional_similarity(
            noisy[:2], pictures[:2], ["a car", "a cup"], ["a hat", "a cup"], judge
        )


def test_neither_batch_nor_order_matters(judge, pictures, captions, noisy):
    sources = ["a grey cup"] * 12
    order = np.random.default_rng(0).permutation(12)
    there = [captions[i] for i in order]
    scores = clip_score(pictures, captions, judge)
    towards = directional_similarity(noisy, pictures, captions, sources, judge)
    np.testing.assert_allclose(
        clip_score(pictures[order], there, judge, batch_size=5), scores[order], rtol=1e-4
    )
    np.testing.assert_allclose(
        directional_similarity(noisy[order], pictures[order], there, sources, judge, batch_size=5),
        towards[order],
        atol=1e-3,
    )


# --- prompts longer than the judge reads


def test_truncated_prompts_are_counted_in_one_warning(judge, pictures):
    long = "a red car " * 30
    prompts = ["a red car", long, "two cups", long]
    with pytest.warns(
        TruncationWarning, match=r"^2 of 4 prompts .* 32 tokens .*truncated.* 'a red"
    ):
        scores = clip_score(pictures[:4], prompts, judge)
    assert len(scores) == 4
    with pytest.warns(TruncationWarning, match="^1 of 8 prompts"):
        directional_similarity(
            pictures[:4], pictures[4:8], ["a cup"] * 3 + [long], ["a hat"] * 4, judge
        )


def test_prompts_that_fit_bring_no_warning(judge, pictures, captions):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip_score(pictures, captions, judge)


def test_the_judges_context_is_met_exactly(judge):
    """32 tokens with start and end are 30 words."""
    fits, long = ("car " * 30).strip(), ("car " * 31).strip()
    assert truncated([fits, long, "", "car"], judge) == [long]


def test_open_clips_own_tokenizer_is_met_exactly():
    """It pads with 0 and its context is 77: 75 words."""
    judge = SimpleNamespace(tokenize=open_clip.get_tokenizer("ViT-B-32"))
    fits, long = ("car " * 75).strip(), ("car " * 76).strip()
    assert truncated([fits, long, "", "car"], judge) == [long]


def test_a_tokenizer_without_an_end_token_is_met_exactly():
    """One letter a token, cut off without a mark: the tokens before the cut stay what they were."""

    def tokenize(texts, context_length=4):
        tokens = torch.zeros(len(texts), context_length, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            read = torch.tensor([ord(letter) for letter in text[:context_length]])
            row[: len(read)] = read
        return tokens

    assert truncated(["cars", "three", "", "car"], SimpleNamespace(tokenize=tokenize)) == ["three"]


# --- what is refused


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["a car"], r"one for each of the 12 image\(s\), got 1$"),
        ("a car", "expected a sequence, one per image, got the string 'a car'"),
        (None, r"one for each of the 12 image\(s\), got None"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(judge, pictures, prompts, said):
    with pytest.raises(ValueError, match=f"^prompts: .*{said}"):
        clip_score(pictures, prompts, judge)
    with pytest.raises(ValueError, match=f"^source_prompts: .*{said}"):
        directional_similarity(pictures, pictures, ["a car"] * 12, prompts, judge)


def test_images_that_do_not_fit_are_refused(judge, pictures, captions):
    with pytest.raises(ValueError, match=r"images: expected uint8 .* got float64"):
        clip_score(pictures / 255, captions, judge)
    with pytest.raises(ValueError, match=r"source_images: expected one for each of the 12 image"):
        directional_similarity(pictures, pictures[:3], captions, captions, judge)
