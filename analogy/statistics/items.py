"""Items from margins: the mean over the seeds of each pair at each alpha."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analogy.core.records import Cell

_MARGIN_COLUMNS = ("pair_id", "category", "alpha", "seed", "margin")
_ITEM_KEYS = ["pair_id", "category", "alpha"]


def items_from_margins(frame: pd.DataFrame) -> pd.DataFrame:
    """Items, the means over seeds, from one margin per image.

    `frame` has the columns pair_id, category, alpha, seed, margin. The result has one row per
    (pair_id, category, alpha), sorted by them, with `margin` (float64, the mean) and `n_seeds`. It
    is the same to the last bit for any order of the rows and of the seeds. Its groups by category
    and alpha are the cells, and `items.pivot(index="pair_id", columns="alpha", values="margin")` is
    the argument of `pooled_estimate`. Raises `ValueError` for missing columns, margins that are not
    finite, and repeated images.
    """
    missing = [column for column in _MARGIN_COLUMNS if column not in frame.columns]
    if missing:
        raise ValueError(
            f"margins: expected the columns {', '.join(_MARGIN_COLUMNS)}; "
            f"missing: {', '.join(missing)}"
        )
    margins = frame.loc[:, list(_MARGIN_COLUMNS)].astype({"margin": np.float64})
    broken = margins[~np.isfinite(margins["margin"])]
    if len(broken):
        raise ValueError(f"margins: expected finite values, got {_first_of(broken)}")
    repeated = margins[margins.duplicated([*_ITEM_KEYS, "seed"])]
    if len(repeated):
        raise ValueError(
            f"margins: expected one row per pair, alpha and seed, got another of "
            f"{_first_of(repeated)}"
        )
    # A sum in float64 depends on the order of its terms; sorting by value fixes that order.
    ordered = margins.sort_values([*_ITEM_KEYS, "margin"])
    items = ordered.groupby(_ITEM_KEYS, sort=True, observed=True)["margin"]
    return items.agg(margin="mean", n_seeds="size").reset_index()


def seed_margins(
    frame: pd.DataFrame, seeds: Sequence[int]
) -> dict[Cell, dict[str, tuple[float, ...]]]:
    """The margins of single images: cell to pair id to a margin for each of ``seeds``, in order.

    ``frame``: as for `items_from_margins`. A pair that lacks an image in a cell is left out there.
    """
    table = frame.pivot(index=["category", "alpha", "pair_id"], columns="seed", values="margin")
    table = table.reindex(columns=list(seeds)).dropna()
    found: dict[Cell, dict[str, tuple[float, ...]]] = {}
    for (category, alpha, pair), row in zip(table.index, table.to_numpy().tolist(), strict=True):
        found.setdefault(Cell(category, alpha), {})[pair] = tuple(row)
    return found


def _first_of(rows: pd.DataFrame) -> str:
    """The first of some rows of margins in words, and the number of rows."""
    row = rows.iloc[0]
    return (
        f"pair {row['pair_id']}, alpha {row['alpha']}, seed {row['seed']}, "
        f"margin {row['margin']} ({len(rows)} such row(s))"
    )
