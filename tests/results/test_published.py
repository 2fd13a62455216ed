"""The published figures agree with themselves, with our statistics, and pass for no results."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from analogy.core.records import Estimate, Verdict
from analogy.models.defaults import DEFAULT_GPU_MODEL
from analogy.models.places import shipped
from analogy.report.text import published_lines
from analogy.results.model import Pool
from analogy.results.reading import RecordedError, read
from analogy.settings.pairs import load_pairs
from analogy.statistics.estimates import item_level, verdict
from analogy.statistics.tests import success_rate, wilson_interval
from analogy.statistics.values import MIN_DECISIVE

PATH = shipped("baselines/ssd-1b-published.json")
PUBLISHED = json.loads(PATH.read_text("utf-8"))
STUDY, OVERALL, CELLS = PUBLISHED["study"], PUBLISHED["overall"], PUBLISHED["cells"]


def standard_error() -> float:
    """Half the interval over the normal quantile, as of 1,200 items."""
    z = scipy.stats.norm.ppf((1 + OVERALL["confidence"]) / 2)
    return (OVERALL["ci_high"] - OVERALL["ci_low"]) / (2 * z)


def test_the_mean_and_the_interval_give_the_published_p():
    t = OVERALL["mean"] / standard_error()
    assert standard_error() == pytest.approx(0.000946, abs=1e-6)
    assert t == pytest.approx(-0.148, abs=1e-3)
    p = scipy.stats.t.sf(t, df=OVERALL["n_items"] - 1)
    assert round(p, 2) == OVERALL["p"]


def test_the_rounding_of_the_published_figures_cannot_change_their_p():
    """Each has 5 decimals and may be off by half a unit of the last."""
    shifts = np.array([-5e-6, 0, 5e-6])
    mean = OVERALL["mean"] + shifts[:, None]
    error = standard_error() + shifts / 1.96  # both ends, apart or together
    assert scipy.stats.norm.sf(mean / error) == pytest.approx(OVERALL["p"], abs=0.005)


def test_items_with_the_published_figures_give_the_published_p():
    """Our item-level figures of 1,200 values that have exactly this mean and standard error."""
    n = OVERALL["n_items"]
    values = np.random.default_rng(0).normal(size=n)
    values = (values - values.mean()) / values.std(ddof=1)
    values = OVERALL["mean"] + values * standard_error() * math.sqrt(n)
    ours = item_level(values, n_resamples=2_000)
    assert ours.n == n
    assert round(ours.p, 2) == OVERALL["p"]
    published = (OVERALL["ci_low"], OVERALL["ci_high"])
    assert (ours.ci_low, ours.ci_high) == pytest.approx(published, abs=1e-4)


def test_the_published_result_is_inconclusive():
    low, high, p = OVERALL["ci_low"], OVERALL["ci_high"], OVERALL["p"]
    assert STUDY["n_pairs"] >= MIN_DECISIVE
    assert verdict(n=STUDY["n_pairs"], ci_low=low, ci_high=high, p=p) is Verdict.INCONCLUSIVE


def test_most_items_did_not_succeed():
    """40.6% is a whole number of items, and fewer than half beyond doubt."""
    n = OVERALL["n_items"]
    n_above = round(OVERALL["success_rate"] * n)
    assert round(success_rate([1.0] * n_above + [-1.0] * (n - n_above)), 3) == 0.406
    assert wilson_interval(n_above, n).high < 0.5


def test_the_counts_multiply():
    assert STUDY["n_categories"] * STUDY["pairs_per_category"] == STUDY["n_pairs"]
    assert STUDY["n_pairs"] * len(STUDY["alphas"]) == STUDY["n_items"] == OVERALL["n_items"]
    assert STUDY["n_items"] * STUDY["n_seeds"] == STUDY["n_images"]
    speed = PUBLISHED["throughput"]
    assert STUDY["n_images"] / speed["score_images_per_s"] == pytest.approx(
        speed["seconds"], abs=0.5
    )
    assert [row["alpha"] for row in PUBLISHED["alphas"]] == STUDY["alphas"]
    assert [cell["category"] for cell in CELLS] == list(range(1, STUDY["n_categories"] + 1))


def test_the_grid_is_the_suites_own():
    assert STUDY["model"] == DEFAULT_GPU_MODEL
    pairs = load_pairs(shipped("pairs.csv"))
    assert len(pairs) == STUDY["n_pairs"]
    assert len({pair.category for pair in pairs}) == STUDY["n_categories"]


def test_figures_are_within_their_ranges():
    assert OVERALL["ci_low"] < OVERALL["mean"] < OVERALL["ci_high"]
    for figures in (OVERALL, *CELLS):
        mean, rate = figures["mean"], figures["success_rate"]
        assert mean is None or -2 <= mean <= 2
        assert rate is None or 0 <= rate <= 1
        low, high = figures.get("success_rate_range") or (0, 1)
        assert 0 <= low < high <= 1


def test_the_cells_agree_with_what_is_said_of_them():
    for cell in CELLS:
        assert cell["alpha"] == 1.0
        if cell["success_rate"] == 1:
            assert cell["mean"] > 0
        if cell["finding"] == "negative":
            assert cell["success_rate_range"][1] < 0.5
    negative = [cell["category"] for cell in CELLS if cell["finding"] == "negative"]
    assert negative == [1, 6, 7]


def test_it_says_where_its_figures_are_from():
    source = PUBLISHED["source"]
    assert source["quoted_from"]
    assert source["original"] or source["original_search"]


def test_it_is_no_results_file():
    assert PUBLISHED["kind"] == "published-study"
    with pytest.raises(RecordedError, match=r"ssd-1b-published\.json"):
        read(PATH)


def test_the_report_can_print_it():
    nothing = Estimate(n=0, n_items=0)
    own = Pool(margin=nothing, gain=nothing, trend=None, items=None)
    text = "\n".join(published_lines(PUBLISHED, own))
    for figure in ("-0.00014", "-0.00198", "+0.00173", "0.56", "40.6%", "+0.0690"):
        assert figure in text
