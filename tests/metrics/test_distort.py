"""The distortions: what each does to known pixels, and how the metrics of images answer them."""

from __future__ import annotations

import numpy as np
import pytest

from analogy.metrics import Lpips, psnr, ssim
from tools.distort import (
    DISTORTIONS,
    blur,
    image_response,
    noise,
    pixelate,
    random_backbone,
    shift_color,
)


def test_blur_keeps_the_mean_and_flattens():
    images = np.zeros((1, 64, 64, 3), np.uint8)
    images[:, :, 32:] = 200
    blurred = blur(images, 2)
    assert blurred.mean() == pytest.approx(100, abs=1)
    assert np.abs(np.diff(blurred[0, 32, :, 0].astype(int))).max() < 60


def test_pixels_are_means_of_their_squares():
    images = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
    squares = pixelate(images, 2)
    for i in (0, 2):
        for j in (0, 2):
            for channel in range(3):
                mean = images[0, i : i + 2, j : j + 2, channel].mean()
                np.testing.assert_array_equal(
                    squares[0, i : i + 2, j : j + 2, channel], np.round(mean)
                )
    with pytest.raises(ValueError, match="divides 4x4, got 3"):
        pixelate(images, 3)


def test_noise_has_its_size_and_is_the_same_each_time():
    images = np.full((4, 64, 64, 3), 128, np.uint8)
    noisy = noise(images, 10)
    assert noisy.astype(float).std() == pytest.approx(10, rel=0.02)
    np.testing.assert_array_equal(noisy, noise(images, 10))


def test_colour_moves_towards_red():
    images = np.array([[[[100, 100, 100], [250, 0, 5]]]], np.uint8)
    assert shift_color(images, 16).tolist() == [[[[116, 100, 84], [255, 0, 0]]]]


@pytest.mark.parametrize("name", DISTORTIONS)
def test_images_move_away_from_themselves(name, pictures):
    distort, strengths = DISTORTIONS[name]
    distorted = [distort(pictures, strength) for strength in strengths]
    assert all(images.dtype == np.uint8 for images in distorted)
    for metric in (psnr, ssim):
        means = [metric(images, pictures).mean() for images in distorted]
        assert means == sorted(means, reverse=True)


def test_the_response_of_undistorted_images(judge, pictures, captions, tmp_path):
    network = Lpips("alex", weights=random_backbone(tmp_path / "alexnet.pth"))
    response = image_response(
        pictures,
        pictures,
        judge.text_features(captions),
        judge.image_features(pictures),
        network,
    )
    assert response["lpips"] == 0.0
    assert response["ssim"] == 1.0
    assert response["psnr"] == np.inf
    assert 50 < response["clip_score"] <= 100
