"""Statistics against scipy, formulas and brute force; on degenerate data; and their symmetries."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from analogy.pairs import WEAK_PAIRS
from analogy.records import Verdict
from analogy.stats import (
    MIN_DECISIVE,
    bootstrap_ci,
    cluster_bootstrap_ci,
    estimate,
    items_from_margins,
    pooled_estimate,
    success_rate,
    t_test,
    verdict,
)

N_RESAMPLES = 200
"""Few, for speed: the symmetries hold for any number."""

METHODS = ["BCa", "percentile"]

quick = settings(deadline=None, max_examples=60)

margins = st.integers(-2000, 2000).map(lambda k: k / 1000)
"""The range of a margin, in steps coarse enough for repeated values and ties."""

samples = st.lists(margins, min_size=2, max_size=25)
seeds = st.integers(0, 2**32 - 1)


def shuffled(values, seed):
    return np.random.default_rng(seed).permutation(values)


# bootstrap_ci


def test_percentile_interval_matches_a_loop():
    values = np.random.default_rng(0).normal(0.03, 0.1, size=12)
    rng = np.random.default_rng(7)
    ordered = sorted(values)
    means = []
    for _ in range(500):
        drawn = [ordered[i] for i in rng.integers(0, 12, size=12)]
        means.append(sum(drawn) / 12)
    means.sort()

    def quantile(q: float) -> float:
        """Linear between the neighbouring order statistics."""
        at = q * (len(means) - 1)
        below = math.floor(at)
        return means[below] + (at - below) * (means[below + 1] - means[below])

    interval = bootstrap_ci(values, n_resamples=500, seed=7, method="percentile")
    assert interval == pytest.approx((quantile(0.025), quantile(0.975)), abs=1e-8)


def test_bca_interval_matches_the_book():
    """Efron and Tibshirani (1993), eqs. 14.9 to 14.15, on a skewed sample without ties."""
    n = 15
    values = np.sort(np.random.default_rng(1).exponential(size=n))
    drawn = np.random.default_rng(3).integers(0, n, size=(2000, n))
    means = values[drawn].mean(axis=1)
    z0 = scipy.special.ndtri(np.mean(means < values.mean()))
    left_out = np.array([np.delete(values, i).mean() for i in range(n)])
    deviations = left_out.mean() - left_out
    a = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    z = scipy.special.ndtri(np.array([0.025, 0.975]))
    levels = scipy.special.ndtr(z0 + (z0 + z) / (1 - a * (z0 + z)))
    interval = bootstrap_ci(values, n_resamples=2000, seed=3)
    assert interval == pytest.approx(np.quantile(means, levels), abs=1e-7)
    assert values.mean() - interval.low < interval.high - values.mean()  # follows the skew


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [2, 20, 50, 400])
def test_interval_matches_scipy(method, n):
    values = np.sort(np.random.default_rng(n).normal(0.05, 0.1, size=n))
    expected = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=1500,
        batch=1000,
        method=method,
        rng=np.random.default_rng(5),
    ).confidence_interval
    interval = bootstrap_ci(values, n_resamples=1500, seed=5, method=method)
    assert interval == pytest.approx(tuple(expected), abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_more_confidence_is_wider(method):
    values = np.random.default_rng(0).exponential(size=30)
    wide, narrow = (bootstrap_ci(values, confidence=c, method=method) for c in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_seed_decides():
    values = np.random.default_rng(0).normal(size=20)
    first, again, other = (bootstrap_ci(values, n_resamples=300, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_coverage(draw):
    """300 samples of 30: a loose check that the interval is one; sd of the share is 0.013."""
    rng = np.random.default_rng(0)
    truth = {"normal": 0.0, "exponential": 1.0}[draw]
    held = 0
    for i in range(300):
        low, high = bootstrap_ci(getattr(rng, draw)(size=30), n_resamples=499, seed=i)
        held += low <= truth <= high
    assert 0.88 <= held / 300 <= 0.98


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [-0.3, 0.0, 0.1])
def test_interval_of_equal_values_is_the_value(method, value):
    assert bootstrap_ci([value] * 7, method=method) == (value, value)


def test_interval_of_values_equal_up_to_rounding_is_their_range():
    below, above = 0.1 + 0.2 - 2**-53, 0.1 + 0.2
    assert bootstrap_ci([above, below, above]) == (below, above)


@pytest.mark.parametrize("method", METHODS)
def test_interval_of_two_values_is_their_range(method):
    assert bootstrap_ci([0.5, -0.25], method=method) == pytest.approx((-0.25, 0.5), abs=1e-9)


def test_one_value_has_no_interval():
    assert np.isnan(bootstrap_ci([0.3])).all()


@pytest.mark.parametrize("function", [bootstrap_ci, t_test, success_rate, estimate])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one value"),
        ([0.1, math.nan], "got 1 NaN or infinite of 2"),
        ([math.inf, -math.inf, 0.0], "got 2 NaN or infinite of 3"),
    ],
)
def test_data_without_an_answer_are_refused(function, values, message):
    with pytest.raises(ValueError, match=message):
        function(values)


@pytest.mark.parametrize("function", [bootstrap_ci, t_test, estimate])
def test_wrong_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"expected an array of 1 dimension.*\(3, 2\)"):
        function(np.zeros((3, 2)))


@pytest.mark.parametrize("function", [cluster_bootstrap_ci, pooled_estimate])
def test_clusters_need_two_dimensions(function):
    with pytest.raises(ValueError, match=r"expected an array of 2 dimension.*\(3,\)"):
        function(np.zeros(3))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"confidence": 0.0}, "confidence: expected a number between 0 and 1, got 0.0"),
        ({"confidence": 95}, "confidence: expected a number between 0 and 1, got 95"),
        ({"confidence": math.nan}, "confidence: expected a number between 0 and 1, got nan"),
        ({"n_resamples": 99}, "n_resamples: expected at least 100, got 99"),
        ({"method": "bca"}, "method: expected one of BCa, percentile, got 'bca'"),
    ],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci([0.0, 1.0], **option)


@pytest.mark.parametrize("shape", ["exponential", "lognormal", "pareto"])
@pytest.mark.parametrize("confidence", [0.01, 0.1])
def test_interval_holds_the_mean_even_at_little_confidence(shape, confidence):
    rng = np.random.default_rng(0)
    values = {
        "exponential": np.exp(np.arange(50.0)),
        "lognormal": rng.lognormal(sigma=2, size=50),
        "pareto": rng.pareto(0.3, size=50),
    }[shape]
    low, high = bootstrap_ci(values, confidence=confidence)
    mean = np.sort(values).mean()  # in the order in which the interval's is taken
    assert low <= mean <= high


@quick
@given(samples, st.sampled_from(METHODS), seeds)
@example([0.0] * 49 + [1.0], "BCa", 0)
@example([-1.0] + [1.0] * 49, "BCa", 0)
def test_interval_holds_the_mean(values, method, seed):
    low, high = bootstrap_ci(values, n_resamples=N_RESAMPLES, seed=seed, method=method)
    assert min(values) <= low <= high <= max(values)
    assert low - 1e-12 <= np.mean(values) <= high + 1e-12


@quick
@given(samples, seeds, st.sampled_from(METHODS))
def test_interval_is_invariant_under_permutation(values, seed, method):
    other = shuffled(values, seed)
    assert bootstrap_ci(other, n_resamples=N_RESAMPLES, method=method) == bootstrap_ci(
        values, n_resamples=N_RESAMPLES, method=method
    )


@quick
@given(samples, margins, st.floats(1e-3, 1e3), st.sampled_from(METHODS))
@example([0.0, 1.0] * 12, 0.1, 1 / 3, "BCa")
@example([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0], 0.7, 1.1, "BCa")
def test_interval_is_equivariant_under_shift_and_positive_scale(values, shift, scale, method):
    low, high = bootstrap_ci(values, n_resamples=N_RESAMPLES, method=method)
    moved = bootstrap_ci(scale * (np.array(values) + shift), n_resamples=N_RESAMPLES, method=method)
    assert moved == pytest.approx((scale * (low + shift), scale * (high + shift)), abs=1e-9 * scale)


# cluster_bootstrap_ci


def test_cluster_interval_matches_a_loop_that_resamples_whole_clusters():
    rng = np.random.default_rng(0)
    clusters = rng.normal(size=(10, 1)) + 0.1 * rng.normal(size=(10, 3))
    clusters = clusters[np.argsort(clusters.mean(axis=1))]
    rng = np.random.default_rng(4)
    means = []
    for _ in range(400):
        items = [item for i in rng.integers(0, 10, size=10) for item in clusters[i]]
        means.append(sum(items) / len(items))
    interval = cluster_bootstrap_ci(clusters, n_resamples=400, seed=4, method="percentile")
    assert interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_singleton_clusters_are_values(method):
    values = np.random.default_rng(0).normal(size=20)
    assert cluster_bootstrap_ci(values[:, None], method=method) == bootstrap_ci(
        values, method=method
    )


def test_repeating_a_clusters_items_adds_no_certainty():
    values = np.random.default_rng(0).normal(size=20)
    assert cluster_bootstrap_ci(np.tile(values[:, None], (1, 4))) == pytest.approx(
        bootstrap_ci(values), abs=1e-8
    )
    as_items = bootstrap_ci(np.tile(values, 4))
    as_clusters = cluster_bootstrap_ci(np.tile(values[:, None], (1, 4)))
    ratio = (as_clusters.high - as_clusters.low) / (as_items.high - as_items.low)
    assert ratio == pytest.approx(2, rel=0.15)


# t_test


@pytest.mark.parametrize("n", [2, 5, 50])
def test_p_matches_the_formula(n):
    values = np.random.default_rng(n).normal(0.2, 1, size=n)
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    expected = scipy.stats.t.sf(mean / math.sqrt(variance / n), df=n - 1)
    assert t_test(values) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("value", "p"), [(0.1, 0.0), (-0.1, 1.0), (0.0, 0.5), (-0.0, 0.5)])
def test_p_of_equal_values(value, p):
    assert t_test([value] * 3) == p


def test_p_of_values_equal_up_to_rounding():
    assert t_test([0.1 + 0.2, 0.3, 0.3]) == 0.0


def test_one_value_has_no_p():
    assert math.isnan(t_test([0.3]))


@quick
@given(samples)
def test_p_of_the_negated_sample_is_the_complement(values):
    assert t_test([-v for v in values]) == pytest.approx(1 - t_test(values), abs=1e-12)


@quick
@given(samples, seeds)
def test_p_is_invariant_under_permutation(values, seed):
    assert t_test(shuffled(values, seed)) == t_test(values)


@quick
@given(samples, st.floats(1e-3, 1e3))
def test_p_is_invariant_to_positive_scale(values, scale):
    assert t_test(scale * np.array(values)) == pytest.approx(t_test(values), abs=1e-9)


# success_rate


def test_a_tie_is_no_success():
    assert success_rate([0.0, -0.0, -1.0, 1e-300]) == 0.25


@quick
@given(samples, seeds)
def test_success_rate_counts_the_positive(values, seed):
    rate = success_rate(values)
    assert 0 <= rate <= 1
    assert rate * len(values) == pytest.approx(sum(v > 0 for v in values))
    assert (rate == 1) == all(v > 0 for v in values)
    assert (rate == 0) == all(v <= 0 for v in values)
    assert rate + success_rate([-v for v in values]) <= 1 + 1e-12
    assert rate == success_rate(shuffled(values, seed))


# verdict


@pytest.mark.parametrize(
    ("n", "ci_low", "ci_high", "p", "expected"),
    [
        (50, 0.01, 0.02, 0.049, Verdict.SUCCESS),
        (50, 0.01, 0.02, 0.05, Verdict.INCONCLUSIVE),
        (50, 0.0, 0.02, 0.01, Verdict.INCONCLUSIVE),
        (50, -0.01, 0.02, 0.01, Verdict.INCONCLUSIVE),
        (50, -0.02, 0.0, 0.99, Verdict.INCONCLUSIVE),
        (50, -0.02, -0.01, 0.99, Verdict.FAILURE),
        (MIN_DECISIVE, 0.01, 0.02, 0.01, Verdict.SUCCESS),
        (MIN_DECISIVE, -0.02, -0.01, 0.99, Verdict.FAILURE),
        (MIN_DECISIVE - 1, 0.01, 0.02, 0.01, Verdict.TOO_FEW),
        (MIN_DECISIVE - 1, -0.02, -0.01, 0.99, Verdict.TOO_FEW),
        (MIN_DECISIVE - 1, -0.01, 0.02, 0.5, Verdict.TOO_FEW),
        (2, 0.01, 0.02, 0.01, Verdict.TOO_FEW),
        (1, math.nan, math.nan, math.nan, Verdict.TOO_FEW),
        (0, math.nan, math.nan, math.nan, Verdict.TOO_FEW),
    ],
)
def test_verdict(n, ci_low, ci_high, p, expected):
    assert verdict(n=n, ci_low=ci_low, ci_high=ci_high, p=p) is expected


# estimate, pooled_estimate


def test_the_figures_of_a_cell():
    items = np.random.default_rng(0).normal(0.05, 0.1, size=50)
    figures = estimate(items, n_resamples=999, seed=3)
    assert (figures.n, figures.n_items) == (50, 50)
    assert figures.mean == pytest.approx(items.mean())
    assert (figures.ci_low, figures.ci_high) == bootstrap_ci(items, n_resamples=999, seed=3)
    assert figures.p == t_test(items)
    assert figures.success_rate == success_rate(items)
    assert figures.verdict is Verdict.SUCCESS
    assert estimate(-items, n_resamples=999).verdict is Verdict.FAILURE
    assert estimate(items - items.mean(), n_resamples=999).verdict is Verdict.INCONCLUSIVE


def test_pooled_figures_are_over_pairs_and_their_success_rate_over_items():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 1)) + 0.2 * rng.normal(size=(40, 3))
    pair_means = table.mean(axis=1)
    figures = pooled_estimate(table, n_resamples=999, seed=3)
    assert (figures.n, figures.n_items) == (40, 120)
    assert figures.mean == pytest.approx(table.mean())
    assert (figures.ci_low, figures.ci_high) == bootstrap_ci(pair_means, n_resamples=999, seed=3)
    assert figures.p == pytest.approx(
        scipy.stats.ttest_1samp(pair_means, 0, alternative="greater")[1]
    )
    assert figures.success_rate == np.mean(table > 0)


def test_one_pair_is_too_few_however_many_items():
    figures = pooled_estimate([[0.1, 0.2, 0.3]])
    assert (figures.n, figures.n_items, figures.verdict) == (1, 3, Verdict.TOO_FEW)
    assert figures.mean == pytest.approx(0.2)
    assert figures.success_rate == 1
    assert np.isnan([figures.ci_low, figures.ci_high, figures.p]).all()


def test_equal_items_give_a_verdict():
    assert estimate([0.1] * MIN_DECISIVE).verdict is Verdict.SUCCESS
    assert estimate([-0.1] * MIN_DECISIVE).verdict is Verdict.FAILURE
    assert estimate([0.0] * MIN_DECISIVE).verdict is Verdict.INCONCLUSIVE


def test_few_pairs_have_figures_but_decide_nothing():
    figures = estimate([0.1, 0.11, 0.12, 0.13, 0.14])
    assert figures.verdict is Verdict.TOO_FEW
    assert 0.1 < figures.ci_low < figures.mean < figures.ci_high < 0.14
    assert figures.p < 0.001
    assert estimate([0.1, 0.11, 0.12, 0.13, 0.14, 0.15]).verdict is Verdict.SUCCESS


def test_too_few_is_as_many_as_the_loader_warns_of():
    assert MIN_DECISIVE == WEAK_PAIRS + 1


@quick
@given(st.lists(st.tuples(margins, margins, margins), min_size=2, max_size=12), seeds)
def test_estimates_hang_together_and_ignore_the_order_of_pairs(rows, seed):
    figures = pooled_estimate(rows, n_resamples=N_RESAMPLES)
    assert figures == pooled_estimate(shuffled(rows, seed), n_resamples=N_RESAMPLES)
    assert figures.ci_low <= figures.mean <= figures.ci_high
    assert 0 <= figures.p <= 1
    assert 0 <= figures.success_rate <= 1
    assert (figures.verdict is Verdict.TOO_FEW) == (len(rows) < MIN_DECISIVE)
    if figures.verdict is Verdict.SUCCESS:
        assert figures.ci_low > 0
        assert figures.success_rate > 0
    if figures.verdict is Verdict.FAILURE:
        assert figures.ci_high < 0
        assert figures.success_rate < 1


# items_from_margins


def margin_frame(rows):
    return pd.DataFrame(rows, columns=["pair_id", "category", "alpha", "seed", "margin"])


def test_items_are_means_over_seeds():
    frame = margin_frame(
        [
            ("size-1", "size", 0.5, 1, 0.2),
            ("color-1", "color", 0.5, 0, 0.1),
            ("color-1", "color", 1.0, 0, -0.5),
            ("size-1", "size", 0.5, 0, 0.4),
        ]
    )
    before = frame.copy()
    items = items_from_margins(frame)
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(
        items,
        pd.DataFrame(
            {
                "pair_id": ["color-1", "color-1", "size-1"],
                "category": ["color", "color", "size"],
                "alpha": [0.5, 1.0, 0.5],
                "margin": [0.1, -0.5, (0.2 + 0.4) / 2],
                "n_seeds": [1, 1, 2],
            }
        ),
    )


def test_items_pivot_to_what_pooled_estimate_takes():
    rows = [
        (f"pair-{i}", "color", alpha, seed, i + alpha + seed)
        for i in range(4)
        for alpha in (0.5, 1.0)
        for seed in (0, 1)
    ]
    items = items_from_margins(margin_frame(rows))
    table = items.pivot(index="pair_id", columns="alpha", values="margin")
    assert table.shape == (4, 2)
    assert pooled_estimate(table.to_numpy()).mean == pytest.approx(1.5 + 0.75 + 0.5)


def test_float32_margins_are_averaged_in_float64():
    frame = margin_frame([("p", "c", 0.5, s, m) for s, m in enumerate([1.0, 2.0**-24, 0.0])])
    items = items_from_margins(frame.astype({"margin": np.float32}))
    assert items["margin"].item() == (1.0 + 2.0**-24) / 3


def test_no_margins_are_no_items():
    assert len(items_from_margins(margin_frame([]))) == 0


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="missing: alpha, margin"):
        items_from_margins(pd.DataFrame(columns=["pair_id", "category", "seed"]))


def test_a_repeated_image_is_refused():
    rows = [("p", "c", 0.5, 0, 0.1), ("p", "c", 0.5, 1, 0.1), ("p", "c", 0.5, 1, 0.2)]
    with pytest.raises(ValueError, match=r"another of pair p, alpha 0.5, seed 1, margin 0.2"):
        items_from_margins(margin_frame(rows))


def test_a_margin_that_is_not_finite_is_refused():
    rows = [("p", "c", 0.5, 0, 0.1), ("p", "c", 0.5, 1, math.nan)]
    with pytest.raises(ValueError, match=r"got pair p, alpha 0.5, seed 1, margin nan"):
        items_from_margins(margin_frame(rows))


@quick
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=12), seeds)
def test_items_are_invariant_to_the_order_of_rows_and_seeds(values, seed):
    assume(len(set(values)) > 1)
    rows = [("p", "c", alpha, s, v) for alpha in (0.5, 1.0) for s, v in enumerate(values)]
    items = items_from_margins(margin_frame(rows))
    reordered = margin_frame([rows[i] for i in shuffled(range(len(rows)), seed)])
    pd.testing.assert_frame_equal(items_from_margins(reordered), items, check_exact=True)
    relabelled = margin_frame(rows).assign(
        seed=[*shuffled(range(len(values)), seed), *shuffled(range(len(values)), seed + 1)]
    )
    pd.testing.assert_frame_equal(items_from_margins(relabelled), items, check_exact=True)
