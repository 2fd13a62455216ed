"""Reads figures from JSON: strictly if they decide something, else as missing if invalid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from analogy.core.fields import ALPHA_LIMIT, shown
from analogy.core.records import MARGIN_LIMIT, Cell, Estimate, ItemLevel, Trend, Verdict
from analogy.core.strict_json import is_integer
from analogy.grid_metrics import described
from analogy.results import checks
from analogy.results.checks import (
    InvalidValueError,
    Object,
    at,
    figure,
    object_of,
    part,
    rows,
    value_of,
)
from analogy.results.model import (
    Analysis,
    Ceiling,
    CellFigures,
    Distance,
    Failure,
    Mean,
    Measurement,
    Null,
    Pool,
    QualityFigures,
    Stop,
    TargetFigures,
)

# A recorded mean may differ from the items' mean only by rounding, from another order of the sum.
_SAME_MEAN = 1e-6


def analysis_of(data: Object, measurement: Measurement) -> Analysis:
    """The figures of margins.

    Raises ``InvalidValueError`` if one that decides is missing or invalid.
    """
    overall = object_of(value_of(data, "overall", ""), "overall")
    verdict = at(overall, "overall", "verdict", checks.verdict)
    mean = _mean_margin(overall, "overall", verdict)
    cells = _cells(value_of(data, "cells", ""), measurement)
    whole = _pool(overall)
    n = sum(cells[Cell(name, measurement.alphas[0])].margin.n for name in measurement.pairs)
    margin = replace(whole.margin, n=whole.margin.n or n, verdict=verdict, mean=mean)
    return Analysis(
        cells=cells,
        unsteered={
            category: _unsteered(category, row)
            for category, row in _by_category(data, "controls", measurement)
            if figure(row.get("alpha")) == 0.0 and isinstance(row.get("items"), Mapping)
        },
        targets={
            category: _target(category, row)
            for category, row in _by_category(data, "targets", measurement)
            if isinstance(row.get("items"), Mapping)
        },
        categories={
            category: _pool(row) for category, row in _by_category(data, "categories", measurement)
        },
        alphas={
            figure(row.get("alpha")): _pool(row)
            for row in rows(data, "alphas")
            if figure(row.get("alpha")) in measurement.alphas
        },
        overall=replace(whole, margin=margin),
    )


def _by_category(data: Object, key: str, measurement: Measurement) -> Iterator[tuple[str, Object]]:
    for row in rows(data, key):
        category = row.get("category")
        if isinstance(category, str) and category in measurement.pairs:
            yield category, row


def _cells(value: object, measurement: Measurement) -> dict[Cell, CellFigures]:
    """The figures of every category at every alpha, each once, in the measurement's order."""
    found: dict[Cell, CellFigures] = {}
    for index, row in enumerate(checks.list_of(value, "cells")):
        place = f"cells[{index}]"
        figures = _cell(row, place)
        cell = figures.cell
        if cell.category not in measurement.pairs or cell.alpha not in measurement.alphas:
            raise InvalidValueError(
                f"{place}: expected a category of 'pairs' and an alpha of the configuration, "
                f"got {cell}"
            )
        if cell in found:
            raise InvalidValueError(f"{place}: expected each cell once, got another {cell}")
        found[cell] = figures
    grid = [Cell(category, alpha) for category in measurement.pairs for alpha in measurement.alphas]
    missing = [cell for cell in grid if cell not in found]
    if missing:
        raise InvalidValueError(
            f"cells: expected one for every category and alpha, got none of {missing[0]}"
        )
    _check_pairs(found, measurement)
    return {cell: found[cell] for cell in grid}


def _cell(value: object, place: str) -> CellFigures:
    row = object_of(value, place)
    cell = Cell(at(row, place, "category", checks.text), at(row, place, "alpha", checks.alpha))
    verdict = at(row, place, "verdict", checks.verdict)
    n = at(row, place, "n", checks.count)
    mean = _mean_margin(row, place, verdict)
    items = at(row, place, "items", checks.margins)
    if verdict is Verdict.INCOMPLETE:
        if len(items) > n:
            raise InvalidValueError(f"{place}.items: expected at most n = {n}, got {len(items)}")
    elif len(items) != n:
        raise InvalidValueError(f"{place}.items: expected n = {n} of them, got {len(items)}")
    elif abs(mean - math.fsum(items.values()) / n) > _SAME_MEAN:
        raise InvalidValueError(f"{place}.mean: expected the items' mean, got {mean}")
    margin = _estimate(row, n_items=len(items))
    target_share = figure(row.get("target_share"))
    stop = stop_of(row.get("stop"))
    null = row.get("random")
    return CellFigures(
        cell=cell,
        margin=replace(margin, n=n, mean=mean, verdict=verdict),
        gain=_gain(row),
        items=items,
        ceiling=_ceiling(row),
        null=_null(null) if isinstance(null, Mapping) else None,
        p_holm=figure(row.get("p_holm")),
        p_bh=figure(row.get("p_bh")),
        target_share=None if math.isnan(target_share) else target_share,
        seeds=_seeds(row, items),
        stop=stop,
        gain_stop=stop_of(row.get("gain_stop")),
    )


def _seeds(row: Object, items: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
    """The margins of single images; empty if they are invalid or do not match the items."""
    found = {
        pair: tuple(map(figure, margins))
        for pair, margins in part(row, "seeds").items()
        if isinstance(margins, list) and margins
    }
    is_valid = found.keys() == items.keys() and all(
        abs(math.fsum(margins) / len(margins) - items[pair]) <= _SAME_MEAN
        for pair, margins in found.items()
    )
    return found if is_valid else {}


def stop_of(value: object) -> Stop | None:
    """A look of a sequential run; None if it is missing or invalid."""
    if not isinstance(value, Mapping):
        return None
    names = ("look", "looks", "pairs", "seeds", "images")
    counts = {name: checks.size(value.get(name)) for name in names}
    level = figure(value.get("level"))
    if None in counts.values() or not 0 < level < 0.5:
        return None
    return Stop(
        **{name: count or 0 for name, count in counts.items()},
        level=level,
        is_early=value.get("is_early") is True,
        p_seq=figure(value.get("p_seq")),
        icc=figure(value.get("icc")),
    )


def _check_pairs(cells: Mapping[Cell, CellFigures], measurement: Measurement) -> None:
    """Raises ``InvalidValueError`` unless a category's complete cells have the same pairs and each
    pair is in one category.
    """
    owner: dict[str, str] = {}
    for category in measurement.pairs:
        mine = [cells[Cell(category, alpha)] for alpha in measurement.alphas]
        complete = [
            cell
            for cell in mine
            if cell.margin.verdict is not Verdict.INCOMPLETE and cell.stop is None
        ]
        if any(cell.items.keys() != complete[0].items.keys() for cell in complete):
            raise InvalidValueError(
                f"cells: expected the same pairs at every alpha, got others in {category}"
            )
        for pair in {pair for cell in mine for pair in cell.items}:
            if owner.setdefault(pair, category) != category:
                raise InvalidValueError(
                    f"cells: expected a pair in one category, got {shown(pair)} in two"
                )


def _mean_margin(row: Object, place: str, verdict: Verdict) -> float:
    """A mean margin; NaN for an incomplete figure, whose value must be null."""
    value = value_of(row, "mean", f"{place}.")
    if verdict is not Verdict.INCOMPLETE:
        return checks.margin(value, f"{place}.mean")
    if value is not None:
        raise InvalidValueError(
            f"{place}.mean: expected null where the verdict is incomplete, got {shown(value)}"
        )
    return math.nan


def _unsteered(category: str, row: Object) -> CellFigures:
    """The figures of a category's unsteered images, at alpha 0."""
    items = _items(row)
    share = figure(row.get("target_share"))
    return CellFigures(
        cell=Cell(category, 0.0),
        margin=replace(_estimate(row, n_items=len(items)), verdict=None),
        gain=None,
        items=items,
        ceiling=_ceiling(row),
        target_share=None if math.isnan(share) else share,
        seeds=_seeds(row, items),
        stop=stop_of(row.get("stop")),
    )


def _target(category: str, row: Object) -> TargetFigures:
    items = _items(row)
    margin = replace(_estimate(row, n_items=len(items)), verdict=None)
    return TargetFigures(category, margin, items, _ceiling(row), stop_of(row.get("stop")))


def _items(row: Object) -> dict[str, float]:
    """Pair id to margin, without invalid margins."""
    found = {pair: figure(one) for pair, one in part(row, "items").items()}
    return {pair: one for pair, one in found.items() if abs(one) <= MARGIN_LIMIT}


def _estimate(row: Object, *, n_items: int = 0) -> Estimate:
    """An estimate's figures. ``n_items``: used if the row lacks it, and also if it lacks ``n``."""
    recorded = checks.size(row.get("n_items"))
    n_items = n_items if recorded is None else recorded
    n = checks.size(row.get("n"))
    figures = {name: figure(row.get(name)) for name in _ESTIMATED}
    return Estimate(
        n=n_items if n is None else n,
        n_items=n_items,
        verdict=checks.verdict_or_none(row.get("verdict")) or Verdict.INCOMPLETE,
        n_needed=checks.size(row.get("n_needed")),
        **figures,
    )


_ESTIMATED = (
    "mean", "ci_low", "ci_high", "p", "success_rate", "success_low", "success_high", "p_bootstrap",
    "p_wilcoxon", "p_sign", "effect_size", "effect_low", "effect_high", "min_detectable",
)  # fmt: skip


def _gain(row: Object) -> Estimate | None:
    """The estimate of the gain; None if it is missing or has no verdict."""
    gain = part(row, "gain")
    return None if checks.verdict_or_none(gain.get("verdict")) is None else _estimate(gain)


def _null(row: Object) -> Null:
    margin, gain, advantage = (_estimate(part(row, n)) for n in ("margin", "gain", "advantage"))
    return Null(margin, gain, advantage)


def _ceiling(row: Object) -> Ceiling | None:
    found = row.get("ceiling")
    if not isinstance(found, Mapping):
        return None
    names = ("mean", "ci_low", "ci_high", "floor", "change", "change_low", "change_high", "auc")
    return Ceiling(
        n=checks.size(found.get("n")) or 0,
        **{name: figure(found.get(name)) for name in names},
        is_blind=found.get("is_blind") is True,
    )


def _pool(row: Object) -> Pool:
    trend, items = row.get("trend"), row.get("item_level")
    return Pool(
        margin=_estimate(row),
        gain=_gain(row),
        trend=_trend(trend) if isinstance(trend, Mapping) else None,
        items=_item_level(items) if isinstance(items, Mapping) else None,
        stop=stop_of(row.get("stop")),
        gain_stop=stop_of(row.get("gain_stop")),
    )


def _trend(row: Object) -> Trend:
    names = ("slope", "ci_low", "ci_high", "p", "p_page")
    return Trend(checks.size(row.get("n")) or 0, *(figure(row.get(name)) for name in names))


def _item_level(row: Object) -> ItemLevel:
    names = ("ci_low", "ci_high", "p")
    return ItemLevel(checks.size(row.get("n")) or 0, *(figure(row.get(name)) for name in names))


# --- figures beside the margin


def quality_of(data: Object) -> QualityFigures:
    """The metrics beside the margin."""
    cells: dict[Cell, dict[str, Mean]] = {}
    for row in rows(data, "cells"):
        category, alpha = row.get("category"), figure(row.get("alpha"))
        if isinstance(category, str) and abs(alpha) <= ALPHA_LIMIT:
            cells[Cell(category, alpha)] = {
                name: _mean(one) for name, one in row.items() if isinstance(one, Mapping)
            }
    alphas: dict[float, dict[str, Distance]] = {}
    for row in rows(data, "alphas"):
        alpha = figure(row.get("alpha"))
        if abs(alpha) <= ALPHA_LIMIT:
            alphas[alpha] = {
                name: _distance(name, one) for name, one in row.items() if isinstance(one, Mapping)
            }
    return QualityFigures(
        cells=cells,
        alphas=alphas,
        lpips=checks.name(data.get("lpips")),
        references=checks.name(data.get("references")),
        metrics=described(data.get("metrics")),
        features=checks.name(data.get("features")),
    )


def _mean(row: Object) -> Mean:
    """A mean. It is infinite, which JSON cannot express, if an image equals its unsteered one."""
    n_equal = checks.size(row.get("n_equal")) or 0
    mean = math.inf if n_equal and row.get("mean") is None else figure(row.get("mean"))
    ends = figure(row.get("ci_low")), figure(row.get("ci_high"))
    return Mean(mean, *ends, checks.size(row.get("n")) or 0, n_equal)


def _distance(metric: str, row: Object) -> Distance:
    return Distance(
        name=checks.name(row.get("name")) or metric,
        value=figure(row.get("value")),
        n=checks.size(row.get("n")) or 0,
        n_references=checks.size(row.get("n_references")) or 0,
    )


def failures_of(found: list[Object]) -> Iterator[Failure]:
    """The failed images; rows that do not identify an image are left out."""
    for row in found:
        pair, category = checks.name(row.get("pair_id")), checks.name(row.get("category"))
        seed, alpha = row.get("seed"), figure(row.get("alpha"))
        if pair is None or category is None or math.isnan(alpha):
            continue
        if is_integer(seed):
            reason = checks.name(row.get("reason")) or "not known"
            yield Failure(pair, category, alpha, seed, checks.name(row.get("method")), reason)
