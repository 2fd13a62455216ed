"""Samples, tables and options that no statistic takes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analogy.statistics.bootstrap import (
    bootstrap_ci,
    cluster_bootstrap_ci,
)
from analogy.statistics.estimates import estimate, item_level, pooled_estimate, trend
from analogy.statistics.power import effect_size
from analogy.statistics.tests import (
    page_test,
    sign_test,
    slopes,
    success_rate,
    t_test,
    wilcoxon_test,
)

# --- bootstrap_ci

OF_VALUES = [
    bootstrap_ci,
    t_test,
    wilcoxon_test,
    sign_test,
    success_rate,
    effect_size,
    estimate,
    item_level,
]


@pytest.mark.parametrize("function", OF_VALUES)
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


@pytest.mark.parametrize(
    "function", [bootstrap_ci, t_test, wilcoxon_test, sign_test, effect_size, estimate]
)
def test_wrong_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"expected an array of 1 dimension.*\(3, 2\)"):
        function(np.zeros((3, 2)))


def slopes_at(table):
    return slopes(table, [0.5, 0.8, 1.0])


def trend_at(table):
    return trend(table, [0.5, 0.8, 1.0])


OF_TABLES = [cluster_bootstrap_ci, pooled_estimate, page_test, slopes_at, trend_at]


@pytest.mark.parametrize("function", OF_TABLES)
def test_clusters_need_two_dimensions(function):
    with pytest.raises(ValueError, match=r"expected an array of 2 dimension.*\(3,\)"):
        function(np.zeros(3))


@pytest.mark.parametrize("function", OF_TABLES)
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((0, 3)), r"at least one value, got the shape \(0, 3\)"),
        ([[0.1, 0.2, math.nan], [math.inf, 0.1, 0.2]], "got 2 NaN or infinite of 6"),
    ],
)
def test_tables_without_an_answer_are_refused(function, table, message):
    with pytest.raises(ValueError, match=message):
        function(table)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"confidence": 0.0}, "confidence: expected a number between 0 and 1, got 0.0"),
        ({"confidence": 95}, "confidence: expected a number between 0 and 1, got 95"),
        ({"confidence": math.nan}, "confidence: expected a number between 0 and 1, got nan"),
        ({"n_resamples": 99}, "n_resamples: expected at least 100, got 99"),
        ({"method": "bca"}, "method: expected one of studentized, BCa, percentile, got 'bca'"),
    ],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci([0.0, 1.0], **option)
