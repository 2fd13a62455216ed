"""Inception's features against torch-fidelity's own network, the resizing against clean-fid's."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from extras import extra
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from analogy.core.errors import ModelError
from analogy.core.images import to_tensor
from analogy.metrics import Inception
from analogy.metrics.inception import clean_resize


@pytest.fixture(scope="module")
def inception(inception_file):
    return Inception(weights=inception_file)


def full_size(rng, n=2):
    """Noise with the network's own side, which neither implementation resizes."""
    return rng.integers(0, 256, (n, 299, 299, 3), np.uint8)


def test_features_are_those_of_torch_fidelity(inception, inception_file, rng):
    images = full_size(rng)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception_file)
    )
    with torch.inference_mode():
        (expected,) = theirs(to_tensor(images))
    features = inception.image_features(images)
    assert features.shape == (2, 2048)
    assert features.dtype == np.float32
    assert features.std() > 0.01
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_an_images_features_do_not_depend_on_its_batch(inception, pictures):
    whole = inception.image_features(pictures[:3])
    np.testing.assert_allclose(
        inception.image_features(pictures[:3], batch_size=2), whole, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(64, 64), (299, 299), (512, 512), (400, 320), (40, 700)])
def test_resizing_is_clean_fids(shape, rng):
    """Up and down, on noise, which aliases most: to 1e-4 of the range, and not rounded to bytes."""
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    make_resizer = extra("cleanfid.resize").make_resizer
    expected = make_resizer("PIL", quantize_after=False, filter="bicubic", output_size=(299, 299))
    resized = clean_resize(to_tensor(image[None]))
    np.testing.assert_allclose(resized[0].permute(1, 2, 0).numpy(), expected(image), atol=0.0255)
    assert (resized != resized.round()).any() or shape == (299, 299)


def test_missing_weights_are_named_with_the_command_that_fetches_them(empty_hub):
    kept = empty_hub / "weights-inception-2015-12-05-6726825d.pth"
    with pytest.raises(ModelError) as refusal:
        Inception()
    message = str(refusal.value)
    assert message.startswith(f"{kept}: no such file")
    assert f"curl --create-dirs -fLo {kept} https://" in message


def test_other_weights_are_refused(backbone_files, inception_file, tmp_path):
    with pytest.raises(ModelError, match="expected FID's Inception v3, found no Conv2d_1a_3x3"):
        Inception(weights=backbone_files["alex"])
    state = torch.load(inception_file, weights_only=True)
    state["Conv2d_1a_3x3.conv.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth: expected FID's Inception v3"):
        Inception(weights=tmp_path / "w.pth")


def test_older_files_without_batch_counters_load(inception, inception_file, tmp_path):
    state = torch.load(inception_file, weights_only=True)
    older = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(older) < len(state)
    torch.save(older, tmp_path / "w.pth")
    image = torch.ones(1, 3, 75, 75)  # the smallest that the network takes
    with torch.inference_mode():
        features = Inception(weights=tmp_path / "w.pth").model(image)
        assert torch.equal(features, inception.model(image))


def test_the_fingerprint_is_of_the_file(inception):
    assert re.fullmatch(r"inception@sha256:[0-9a-f]{16}", inception.fingerprint)
