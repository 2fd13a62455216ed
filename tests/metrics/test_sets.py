"""FID, KID and CMMD against others' formulas and brute force, on degenerate sets; their names."""

from __future__ import annotations

import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from extras import extra
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from analogy.metrics import (
    Inception,
    SetScore,
    SmallSampleWarning,
    cmmd,
    fid,
    frechet_distance,
    kernel_distance,
    kid,
    mmd_distance,
    set_features,
)
from analogy.metrics.kernel import CMMD_JUDGE
from tools.distort import DISTORTIONS, drawings, set_response

quick = settings(deadline=None, max_examples=30)


@st.composite
def pairs_of_sets(draw, spread=4.0):
    """Two sets (n, dim) and (m, dim), often smaller than dim, with repeated values."""
    dim = draw(st.integers(1, 6))
    values = st.floats(-spread, spread).map(lambda v: round(v, 2))
    x, y = (
        draw(arrays(np.float64, (draw(st.integers(2, 9)), dim), elements=values)) for _ in range(2)
    )
    return x, y


def unit_rows(sets):
    """The same sets with 1 in a further dimension, so that no row is zero."""
    return [np.column_stack([rows, np.ones(len(rows))]) for rows in sets]


def clouds(rng, n=200, m=150, dim=16):
    """Two Gaussian clouds of other means and covariances."""
    x = rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim))
    y = rng.normal(size=(m, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)
    return x, y


DISTANCES = {
    "fid": frechet_distance,
    "kid": kernel_distance,
    "cmmd": mmd_distance,
    "cmmd unbiased": lambda x, y, **options: mmd_distance(x, y, estimator="unbiased", **options),
}
each_distance = pytest.mark.parametrize("name", DISTANCES)


# --- FID against others


def test_frechet_distance_is_that_of_others(rng):
    x, y = clouds(rng)
    ours = frechet_distance(x, y)
    stats = [fid_features_to_statistics(torch.from_numpy(part)) for part in (x, y)]
    (fidelity,) = fid_statistics_to_metric(*stats, verbose=False).values()
    tensors = [torch.from_numpy(s[key]) for s in stats for key in ("mu", "sigma")]
    root = scipy.linalg.sqrtm(stats[0]["sigma"] @ stats[1]["sigma"]).real
    shift = x.mean(axis=0) - y.mean(axis=0)
    formula = shift @ shift + np.trace(stats[0]["sigma"] + stats[1]["sigma"] - 2 * root)
    assert ours == pytest.approx(fidelity, rel=1e-8)
    assert ours == pytest.approx(_compute_fid(*tensors).item(), rel=1e-8)
    assert ours == pytest.approx(formula, rel=1e-8)


def test_frechet_distance_in_one_dimension(rng):
    x, y = rng.normal(3, 2, size=(50, 1)), rng.normal(1, 5, size=(70, 1))
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dim", [3, 20])
def test_frechet_distance_of_singular_covariances(dim, rng):
    """Points on the axes, in either direction: covariances are diagonal, and known.

    In each set some axes carry nothing, in both some carry nothing; with dim 20 there are fewer
    points than dimensions. The result is exact where square roots of products are not.
    """
    spans = np.zeros((2, dim))
    spans[0, :2], spans[1, 1] = [3.0, 2.0], 5.0
    sets, deviations = [], []
    for span in spans:
        points = np.concatenate([np.diag(span)[:4], -np.diag(span)[:4]])
        sets.append(points)
        deviations.append(span * np.sqrt(2 / (len(points) - 1)))
    expected = ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-12)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    turned = [points @ turn + 1000.0 for points in sets]
    assert frechet_distance(*turned) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_with_fewer_images_than_features(rng):
    """10 and 12 in 500 dimensions against the formula within the span of the centred sets."""
    x, y = rng.normal(size=(10, 500)), rng.normal(1.0, 2.0, size=(12, 500))
    basis = scipy.linalg.orth(np.concatenate([x - x.mean(0), y - y.mean(0)]).T)
    c, d = (np.cov(part @ basis, rowvar=False) for part in (x, y))
    half = scipy.linalg.eigh(c)
    root = (half[1] * np.sqrt(half[0].clip(0))) @ half[1].T
    overlap = np.sqrt(scipy.linalg.eigvalsh(root @ d @ root).clip(0)).sum()
    shift = x.mean(axis=0) - y.mean(axis=0)
    expected = shift @ shift + np.trace(c) + np.trace(d) - 2 * overlap
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_constant_features_are_a_point():
    point, other = np.full((3, 4), 2.0), np.full((5, 4), 5.0)
    assert frechet_distance(point, point) == 0.0
    assert frechet_distance(point, other) == pytest.approx(4 * 3.0**2)


@quick
@given(pairs_of_sets(), st.floats(-5, 5))
def test_frechet_distance_of_a_shift(sets, by):
    x, _ = sets
    assert frechet_distance(x, x + by) == pytest.approx(by**2 * x.shape[1], abs=1e-6)


# --- KID against others


def test_kernel_distance_is_that_of_others(rng):
    x, y = (part[:120] for part in clouds(rng, 120, 120))
    ours = kernel_distance(x, y)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    fidelity = kid_features_to_metric(
        *tensors, kid_subsets=1, kid_subset_size=120, verbose=False, rng_seed=0
    )[KEY_METRIC_KID_MEAN]
    assert ours == pytest.approx(poly_mmd(*tensors).item(), rel=1e-8)
    assert ours == pytest.approx(fidelity, rel=1e-8)
    cleanfid = extra("cleanfid.fid").kernel_distance
    assert ours == pytest.approx(cleanfid(x, y, 1, 120), rel=1e-8)


def test_subsets_of_the_published_code_average_to_it(rng):
    """The mean over random subsets has the same expectation and more noise."""
    x, y = rng.normal(size=(300, 8)), rng.normal(0.3, 1.2, size=(300, 8))
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    subsets = [
        kid_features_to_metric(
            *tensors, kid_subsets=1, kid_subset_size=100, verbose=False, rng_seed=seed
        )[KEY_METRIC_KID_MEAN]
        for seed in range(60)
    ]
    error = np.std(subsets) / np.sqrt(len(subsets))
    assert abs(np.mean(subsets) - kernel_distance(x, y)) < 4 * error


# --- brute force in float64


def brute_force(x, y, kernel, *, biased):
    """Squared MMD by its definition, one pair of rows at a time."""

    def mean(a, b, same):
        pairs = [
            kernel(p, q)
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if biased or not (same and i == j)
        ]
        return sum(pairs) / len(pairs)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@quick
@given(pairs_of_sets())
def test_kid_is_brute_force(sets):
    x, y = sets

    def kernel(p, q):
        return (p @ q / len(p) + 1) ** 3

    expected = brute_force(x, y, kernel, biased=False)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@quick
@given(sets=pairs_of_sets())
def test_cmmd_is_brute_force(estimator, sets):
    x, y = unit_rows(sets)

    def kernel(p, q):
        p, q = p / np.linalg.norm(p), q / np.linalg.norm(q)
        return np.exp(-((p - q) @ (p - q)) / (2 * 10**2))

    expected = 1000 * brute_force(x, y, kernel, biased=estimator == "biased")
    # Features are float32, as the published code's are: |x - y|² is good to 1e-7.
    assert mmd_distance(x, y, estimator=estimator) == pytest.approx(expected, rel=1e-4, abs=1e-5)


# --- properties


@each_distance
@quick
@given(sets=pairs_of_sets(), block=st.integers(1, 10))
def test_distances_are_symmetric_and_know_no_order(name, sets, block):
    x, y = unit_rows(sets)
    distance = DISTANCES[name]
    value = distance(x, y)
    close = {"rel": 1e-7, "abs": 1e-6}
    assert distance(y, x) == pytest.approx(value, **close)
    assert distance(x[::-1], np.roll(y, 1, axis=0)) == pytest.approx(value, **close)
    if name != "fid":
        assert distance(x, y, block=block) == pytest.approx(value, **close)
    if name in ("fid", "cmmd"):
        assert value >= 0


@quick
@given(pairs_of_sets())
def test_equal_sets_have_distance_0(sets):
    (x, _) = unit_rows(sets)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(x, x) >= 0
    assert 0 <= mmd_distance(x, x) < 1e-9
    # A row stands for itself in the other set only: the unbiased estimates fall below 0.
    assert mmd_distance(x, x, estimator="unbiased") <= 1e-9
    assert kernel_distance(x, x) <= 1e-7


@pytest.mark.parametrize("name", ["kid", "cmmd unbiased"])
def test_unbiased_estimates_are_around_0_for_one_distribution(name, rng):
    """The mean of 300 estimates of two halves of one cloud is within 4 standard errors of 0."""
    values = []
    for _ in range(300):
        cloud = rng.normal(0.3, 1.0, size=(24, 6))
        values.append(DISTANCES[name](cloud[:10], cloud[10:]))
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    biased = [mmd_distance(*np.split(rng.normal(0.3, 1.0, size=(20, 6)), 2)) for _ in range(300)]
    assert np.mean(biased) > 10 * np.std(biased) / np.sqrt(len(biased))


def test_estimates_of_cmmd_are_published_values_at_hand():
    """Two sets of two points each, by hand: biased as in Gretton et al., eq. 5, with itself."""
    x, y = np.eye(4)[:2], np.eye(4)[2:]
    apart = np.exp(-2 / 200)
    assert mmd_distance(x, y) == pytest.approx(1000 * ((1 + apart) - 2 * apart), rel=1e-9)
    assert mmd_distance(x, y, estimator="unbiased") == pytest.approx(0.0, abs=1e-9)


def test_small_cmmds_keep_their_digits(rng):
    """Kernels lie in 0.98..1; in float32, as published, this one is lost in rounding."""
    x = rng.normal(size=(64, 32))
    y = x + 1e-4 * rng.normal(size=x.shape)
    tiny = mmd_distance(x, y)
    assert 1e-9 < tiny < 1e-5
    unit = [(part / np.linalg.norm(part, axis=1, keepdims=True)) for part in (x, y)]
    squares = [((p[:, None] - q[None]) ** 2).sum(-1) for p in unit for q in unit]
    signs = [1, -1, -1, 1]
    first_order = -sum(s * d.mean() for s, d in zip(signs, squares, strict=True)) / 200
    assert tiny == pytest.approx(1000 * first_order, rel=0.02)


def test_memory_does_not_grow_with_the_square(rng):
    x, y = rng.normal(size=(3000, 8)), rng.normal(size=(3000, 8))
    kernel_distance(x[:10], y[:10], block=256)
    tracemalloc.start()
    try:
        for distance in (kernel_distance, mmd_distance):
            distance(x, y, block=256)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6  # one dense matrix: 72e6


# --- images, models and names


@pytest.fixture(scope="module")
def two_kinds():
    """Two sets of drawings of other numbers."""
    return drawings(10, seed=3)[0], drawings(8, seed=4)[0]


def mean_color(images):
    """Three features, the mean of each channel."""
    return images.mean(axis=(1, 2))


def test_scores_are_named_after_the_judge(judge, two_kinds):
    with pytest.warns(SmallSampleWarning, match=r"fid \(clip-tiny\) on 8 images: below 2,048"):
        scores = [fid(*two_kinds, judge)]
    scores += [
        kid(*two_kinds, judge),
        cmmd(*two_kinds, judge),
        cmmd(*two_kinds, judge, estimator="unbiased"),
    ]
    x, y = (set_features(images, judge) for images in two_kinds)
    names = ("fid (clip-tiny)", "kid (clip-tiny)", "cmmd (clip-tiny)", "cmmd (clip-tiny, unbiased)")
    for score, name, distance in zip(scores, names, DISTANCES.values(), strict=True):
        assert score == SetScore(name, distance(x, y), 10, 8)


def test_a_function_lends_its_name(two_kinds):
    score = kid(*two_kinds, mean_color)
    assert score.name == "kid (mean_color)"
    x, y = (mean_color(images) for images in two_kinds)
    assert score.value == pytest.approx(kernel_distance(x, y), rel=1e-9)
    with pytest.warns(SmallSampleWarning, match="KID|kid"):
        assert fid(*two_kinds, mean_color).name == "fid (mean_color)"


def test_only_inception_is_plain_fid_and_kid(inception_file, two_kinds, monkeypatch):
    inception = Inception(weights=inception_file)
    monkeypatch.setattr(
        Inception, "image_features", lambda self, images, *, batch_size: mean_color(images)
    )
    with pytest.warns(SmallSampleWarning, match="^fid on 8 images"):
        assert fid(*two_kinds, inception).name == "fid"
    assert kid(*two_kinds, inception).name == "kid"


def test_only_the_published_judge_is_plain_cmmd(judge, two_kinds):
    published = SimpleNamespace(fingerprint=CMMD_JUDGE, image_features=judge.image_features)
    assert cmmd(*two_kinds, published).name == "cmmd"
    assert cmmd(*two_kinds, published, estimator="unbiased").name == "cmmd (unbiased)"
    other = SimpleNamespace(fingerprint="ViT-L-14-336/openai", image_features=judge.image_features)
    assert cmmd(*two_kinds, other).name == "cmmd (ViT-L-14-336/openai)"


def test_the_published_judge_is_one_of_open_clips():
    from analogy.judges.open_clip import find_judge

    assert find_judge(*CMMD_JUDGE.split("/")).fingerprint == CMMD_JUDGE


def test_sizes_and_batches_do_not_matter(judge, two_kinds):
    images, references = two_kinds
    large = references.repeat(2, axis=1).repeat(2, axis=2)
    assert kid(images, large, judge).n_references == 8
    whole = [kid(*two_kinds, judge).value, cmmd(*two_kinds, judge).value]
    parts = [f(*two_kinds, judge, batch_size=3).value for f in (kid, cmmd)]
    np.testing.assert_allclose(parts, whole, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::analogy.metrics.SmallSampleWarning")
@pytest.mark.parametrize("metric", [fid, kid, cmmd])
def test_what_does_not_fit_is_refused_before_anything_is_computed(metric, two_kinds):
    images, references = two_kinds

    def never(batch):
        raise AssertionError("computed")

    never.fingerprint = "never"
    with pytest.raises(ValueError, match="references: this metric compares with references, got N"):
        metric(images, None, never)
    with pytest.raises(ValueError, match="at least 2 images and 2 references, got 10 and 1"):
        metric(images, references[:1], never)
    with pytest.raises(ValueError, match="at least 2 images and 2 references, got 1 and 8"):
        metric(images[:1], references, never)
    with pytest.raises(ValueError, match="images: expected uint8"):
        metric(images / 255, references, never)


@pytest.mark.parametrize("metric", [fid, kid])
def test_a_lambda_is_refused(metric, two_kinds):
    """Before it is called."""
    with pytest.raises(ValueError, match="a function with a name, got a lambda; use def"):
        metric(*two_kinds, lambda images: 0 / 0)


def flat(images):
    return images.mean(axis=(1, 2, 3))


def one_row(images):
    return images.mean(axis=(0, 1, 2))[None]


def not_finite(images):
    return np.full((len(images), 2), np.nan)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (flat, r"features of images: expected features of shape \(n, dim\), got \(10,\)"),
        (one_row, r"one row for each of 10 image\(s\), got the shape \(1, 3\)"),
        (not_finite, "expected finite features, got NaN or infinity"),
    ],
)
def test_features_that_are_none_are_refused(features, said, two_kinds):
    with pytest.raises(ValueError, match=said):
        kid(*two_kinds, features)


@each_distance
def test_features_that_do_not_fit_are_refused(name):
    distance = DISTANCES[name]
    with pytest.raises(ValueError, match=r"the same dim .* got the shapes \(3, 2\) and \(3, 4\)"):
        distance(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="at least 2 images and 2 references, got 1 and 3"):
        distance(np.ones((1, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"expected features of shape \(n, dim\), got \(3,\)"):
        distance(np.ones(3), np.ones((3, 2)))


def test_an_unknown_estimator_is_refused(judge, two_kinds):
    with pytest.raises(ValueError, match="one of biased, unbiased, got 'best'"):
        cmmd(*two_kinds, judge, estimator="best")
    with pytest.raises(ValueError, match="one of biased, unbiased, got 'best'"):
        mmd_distance(np.eye(3), np.eye(3), estimator="best")
    with pytest.raises(ValueError, match="block: expected at least 1, got 0"):
        mmd_distance(np.eye(3), np.eye(3), block=0)


def test_enough_images_bring_no_warning():
    def brightness(images):
        return images.reshape(len(images), -1)[:, :2]

    images = np.random.default_rng(0).integers(0, 256, (2048, 1, 2, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fid(images, images, brightness).value == pytest.approx(0.0, abs=1e-6)
    with pytest.warns(SmallSampleWarning, match="fid .* on 2047 images"):
        fid(images, images[1:], brightness)


# --- sanity on the rendered world


@pytest.fixture(scope="module")
def references(judge):
    """Features of drawings that are not distorted."""
    return set_features(drawings(96, seed=2)[0], judge)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_distances_grow_with_a_distortion(name, judge, references):
    """Every distance of sets, from none to the strongest, against other drawings than the
    distorted ones.
    """
    distort, strengths = DISTORTIONS[name]
    images = drawings(96, seed=1)[0]
    responses = [
        set_response(set_features(distorted, judge), references, "clip-tiny")
        for distorted in (images, *(distort(images, strength) for strength in strengths))
    ]
    assert len(responses[0]) == 4
    for metric in responses[0]:
        values = [response[metric] for response in responses]
        assert values == sorted(values), metric
        assert values[-1] > 3 * values[0], metric
