"""Margins against a plain float64 computation, their symmetries, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analogy.judges.margin import cosine, margin, normalize

DIM = 6
FLOAT32_STEPS = 1e-6
"""Several float32 roundings of values up to 1."""

components = st.integers(-1000, 1000).map(lambda k: k / 1000)
vectors = arrays(np.float32, (DIM,), elements=components).filter(lambda v: bool(v.any()))
scales = st.floats(1e-3, 1e3)


def plain_cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine of two vectors by its formula, one float64 product after the other."""
    dot = sum(float(a) * float(b) for a, b in zip(x, y, strict=True))
    lengths = [math.sqrt(sum(float(a) ** 2 for a in v)) for v in (x, y)]
    return dot / (lengths[0] * lengths[1])


def test_known_angles():
    right, up = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    assert cosine(right, right) == 1
    assert cosine(right, -right) == -1
    assert cosine(right, up) == 0
    assert cosine(right, right + up / 2) == pytest.approx(math.sqrt(0.5), abs=FLOAT32_STEPS)
    assert margin(right, target=right, source=up) == 1
    assert margin(right, target=-right, source=right) == -2


def test_rows_match_the_formula():
    rng = np.random.default_rng(0)
    image, target, source = rng.normal(size=(3, 50, 128)).astype(np.float32)
    margins = margin(image, target, source)
    expected = [
        plain_cosine(x, t) - plain_cosine(x, s)
        for x, t, s in zip(image, target, source, strict=True)
    ]
    assert margins.shape == (50,)
    np.testing.assert_allclose(margins, expected, rtol=0, atol=FLOAT32_STEPS)


def test_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(1)
    image, target, source = rng.normal(size=(3, 9, 33)).astype(np.float32)
    whole = margin(image, target, source)
    alone = [margin(image[i : i + 1], target[i : i + 1], source[i : i + 1])[0] for i in range(9)]
    np.testing.assert_array_equal(whole, alone)


def test_one_vector_serves_all_rows():
    rng = np.random.default_rng(2)
    image, (target, source) = rng.normal(size=(4, DIM)), rng.normal(size=(2, DIM))
    repeated = margin(image, np.tile(target, (4, 1)), np.tile(source, (4, 1)))
    np.testing.assert_array_equal(margin(image, target, source), repeated)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_results_are_float32(dtype):
    x = np.array([[3.0, 4.0]], dtype=dtype)
    assert normalize(x).dtype == cosine(x, x).dtype == margin(x, x, x).dtype == np.float32
    np.testing.assert_array_equal(normalize(x), np.array([[0.6, 0.8]], dtype=np.float32))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lengths_whose_square_float32_cannot_hold(size):
    x = np.array([3.0, 4.0], dtype=np.float32) * np.float32(size)
    np.testing.assert_allclose(normalize(x), [0.6, 0.8], rtol=1e-6)


def test_input_is_left_as_it_is():
    x = np.array([[3.0, 4.0]], dtype=np.float32)
    normalize(x)
    np.testing.assert_array_equal(x, [[3.0, 4.0]])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e300])
def test_refuses_values_that_are_not_finite(broken):
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 vector\(s\) of the shape \(2, 2\)"):
        normalize([[1.0, 2.0], [broken, 1.0]])


def test_refuses_zero_vectors():
    with pytest.raises(ValueError, match=r"got 1 zero vector\(s\) of the shape \(2, 2\)"):
        cosine(np.ones((2, 2)), [[0.0, 0.0], [1.0, 0.0]])


@pytest.mark.parametrize("dim", [1, 3])
def test_refuses_unequal_dims(dim):
    with pytest.raises(ValueError, match="expected one dim"):
        cosine(np.ones((5, 2)), np.ones((5, dim)))


def test_refuses_a_single_number():
    with pytest.raises(ValueError, match="got a single number"):
        normalize(1.0)


@settings(deadline=None)
@given(vectors, vectors, vectors)
def test_margin_is_antisymmetric(image, target, source):
    assert margin(image, target, source) == -margin(image, source, target)


@settings(deadline=None)
@given(vectors, vectors)
def test_margin_of_equal_concepts_is_zero(image, concept):
    assert margin(image, concept, concept) == 0


@settings(deadline=None)
@given(vectors, vectors, vectors, scales, scales, scales)
def test_margin_is_invariant_to_positive_scaling(image, target, source, a, b, c):
    scaled = margin(image * a, target * b, source * c)
    assert scaled == pytest.approx(margin(image, target, source), abs=FLOAT32_STEPS)


@settings(deadline=None)
@given(vectors, vectors, vectors)
def test_ranges(image, target, source):
    assert -1 <= cosine(image, target) <= 1
    assert -2 <= margin(image, target, source) <= 2
    assert np.linalg.norm(normalize(image)) == pytest.approx(1, abs=FLOAT32_STEPS)
