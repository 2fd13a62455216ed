"""Items: means over seeds, whatever the order of the rows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samples import quick, seeds, shuffled

from analogy.statistics.estimates import pooled_estimate
from analogy.statistics.items import items_from_margins

# --- items_from_margins


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


@settings(quick, max_examples=25)
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
