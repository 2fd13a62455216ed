"""Image conversion: rounding as diffusers has it, lossless files, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from analogy.core.images import faults, from_png, from_unit, to_png, to_tensor


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_unit_values_become_the_nearest_bytes():
    values = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1 / 255, 254.6 / 255, 1.0, 1.1, 0.5])
    image = from_unit(values.reshape(1, 1, 3, 3).expand(1, 3, 3, 3))
    assert image.dtype == np.uint8
    for channel in range(3):
        assert image[0, :, :, channel].flatten().tolist() == [0, 0, 0, 1, 1, 255, 255, 255, 128]


def test_rounding_is_that_of_diffusers():
    images = torch.rand(2, 3, 9, 5, generator=torch.Generator().manual_seed(0))
    expected = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(images))
    np.testing.assert_array_equal(from_unit(images), np.stack([np.asarray(e) for e in expected]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_axes_are_moved_for_every_dtype(dtype):
    images = torch.zeros(2, 3, 4, 5, dtype=dtype)
    images[1, 2, 3, 4] = 1.0
    converted = from_unit(images)
    assert converted.shape == (2, 4, 5, 3)
    assert np.argwhere(converted).tolist() == [[1, 3, 4, 2]]
    assert converted.max() == 255


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(broken):
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0, 2, 2] = broken
    with pytest.raises(ValueError, match=r"NaN or infinity from the decoder.* float32 or bfloat16"):
        from_unit(images)


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4, 4, 3), (2, 1, 4, 4)])
def test_unit_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(n, 3, height, width\), got") as refusal:
        from_unit(torch.zeros(shape))
    assert str(shape) in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_no_picture_is_told_from_what_is_merely_dark(dtype):
    images = torch.zeros(6, 3, 4, 4, dtype=dtype)
    images[1, 2, 3, 3] = 1 / 255
    images[2] = 1.0
    images[3, 0, 0, 0] = torch.nan
    images[4, 0, 0, 0] = torch.inf
    images[5, 1] = -0.2
    undefined = "NaN or infinity from the decoder"
    assert faults(images) == ["black", None, None, undefined, undefined, "black"]


def test_a_tensor_has_the_channels_first_and_the_values_where_they_were():
    images = noise(2, 4, 5, 3)
    tensor = to_tensor(images)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(tensor[1, 2], images[1, :, :, 2])
    assert np.shares_memory(tensor.numpy(), images)


def test_arrays_that_torch_takes_not_as_they_are_become_tensors_of_the_same_values():
    images = noise(4, 4, 5, 3)
    read_only = images.copy()
    read_only.flags.writeable = False
    for array in (read_only, images[::-2], images[:, ::2, 1:], images[:0]):
        tensor = to_tensor(array)
        np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1), array)
        assert not np.shares_memory(tensor.numpy(), array)


@pytest.mark.parametrize(
    "images",
    [noise(4, 4, 3), noise(2, 3, 4, 4), noise(2, 4, 4, 4), np.zeros((1, 4, 4, 3), np.float32)],
    ids=["one image", "channels first", "four channels", "float"],
)
def test_images_of_another_shape_or_dtype_are_refused(images):
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(n, height, width, 3\), got"):
        to_tensor(images)


@settings(deadline=None, max_examples=30)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9).map(lambda s: (*s, 3)),
              elements=st.integers(0, 255)))  # fmt: skip
def test_a_png_file_gives_the_image_back(image):
    data = to_png(image)
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(from_png(data), image)


def test_the_same_image_is_the_same_file():
    image = noise(64, 64, 3)
    assert to_png(image) == to_png(image.copy())
