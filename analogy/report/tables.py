"""The report's tables of every figure of a run; the page can sort them and save them as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analogy.core.records import Estimate
from analogy.grid_metrics import shown_metrics
from analogy.report.gallery import Gallery
from analogy.report.looks import early_note, is_sequential, seed_variances
from analogy.report.marks import pair_notes
from analogy.report.numbers import (
    confidence,
    number,
    p_value,
    percent,
    signed,
    significant,
    verdict_name,
    words,
)
from analogy.results.comparison import Comparison
from analogy.results.model import CellFigures, Pool, Results, Stop
from analogy.steering.base import TARGET_METHOD

_FIGURES = ("margin", "low", "high", "p", "above 0")
_GAIN = ("gain", "gain low", "gain high")

# In a sequential run the confidence of an interval is that of its look. The p of a single look is
# left out, since it is not corrected for the other looks.
_AT_LOOK = ("margin", "low", "high", "confidence", "above 0")
_GAIN_AT_LOOK = (*_GAIN, "gain confidence")


@dataclass(frozen=True, slots=True)
class Value:
    """A table's entry: its text, the value for sorting and export, and a link or ""."""

    text: str
    sort: float | str | None
    href: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that the page can sort and save as CSV; ``name`` is its id and file name."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]


def tables(results: Results, images: Gallery, comparison: Comparison | None) -> list[Table]:
    """The tables of every figure of the run, without empty ones."""
    made = [
        _cells(results),
        *([_looks(results)] if is_sequential(results) else []),
        _pools(results),
        *([] if comparison is None else [_comparison(comparison)]),
        _targets(results),
        _quality(results),
        _distances(results),
        _pairs(results, images),
        _failures(results, images),
    ]
    return [table for table in made if table.rows]


def _cells(results: Results) -> Table:
    analysis = results.analysis
    order = {name: i for i, name in enumerate(results.header.categories)}
    figures = [*analysis.unsteered.values(), *analysis.cells.values()]
    figures.sort(key=lambda one: (order[one.cell.category], one.cell.alpha))
    has_null = any(one.null is not None for one in figures)
    at_look = is_sequential(results)
    rows = [
        [
            _text(one.cell.category), _alpha(one.cell.alpha), _count(one.margin.n),
            *_estimate(one.margin, one.stop, at_look=at_look), _value(one.p_holm, p_value),
            *_gain(one.gain, one.gain_stop, at_look=at_look), *(_null(one) if has_null else ()),
            _value(one.share, percent),
            *([_value(one.target_share, percent)] if analysis.targets else ()),
            _text(words(verdict_name(one.margin.verdict)) + results.mark(one)),
        ]
        for one in figures
    ]  # fmt: skip
    columns = [
        "category", "alpha", "pairs", *_columns(at_look), "Holm's p", *_gain_columns(at_look),
        *(("random", "over random") if has_null else ()), "of ceiling",
        *(["of target"] if analysis.targets else ()), "verdict",
    ]  # fmt: skip
    return Table("cells", "Cells", columns, rows)


def _looks(results: Results) -> Table:
    """The look at which each cell of a sequential run was decided, with its pairs and seeds."""
    rows = []
    for figures in results.analysis.cells.values():
        stop, margin, spread = figures.stop, figures.margin, seed_variances(figures)
        variances = (None,) * 3 if spread is None else (spread.between, spread.within, spread.icc)
        rows.append([
            _text(figures.cell.category), _alpha(figures.cell.alpha),
            _text(words(verdict_name(margin.verdict))),
            *_stopped(stop), _value(margin.mean, signed), _value(margin.ci_low, signed),
            _value(margin.ci_high, signed), _confidence(stop),
            _value(None if figures.gain_stop is None else figures.gain_stop.look, significant),
            *(_value(one, significant) for one in variances), _text(early_note(figures)),
        ])  # fmt: skip
    columns = [
        "category", "alpha", "verdict", "look", "pairs", "seeds", "images", "sequential p",
        "margin", "low", "high", "confidence", "gain's look", "variance between pairs",
        "variance within", "ICC", "note",
    ]  # fmt: skip
    return Table("looks", "Looks", columns, rows)


def _stopped(stop: Stop | None) -> list[Value]:
    """Look, pairs, seeds, images and the sequential p; dashes for an undecided cell."""
    if stop is None:
        return [_value(None, significant)] * 5
    return [
        Value(f"{stop.look} of {stop.looks}", float(stop.look)), _count(stop.pairs),
        _count(stop.seeds), _count(stop.images), _value(stop.p_seq, p_value),
    ]  # fmt: skip


def _confidence(stop: Stop | None) -> Value:
    return _value(None, percent) if stop is None else Value(confidence(stop), stop.confidence)


def _columns(at_look: bool) -> tuple[str, ...]:
    return _AT_LOOK if at_look else _FIGURES


def _gain_columns(at_look: bool) -> tuple[str, ...]:
    return _GAIN_AT_LOOK if at_look else _GAIN


def _null(figures: CellFigures) -> list[Value]:
    null = figures.null
    means = (None, None) if null is None else (null.margin.mean, null.advantage.mean)
    return [_value(mean, signed) for mean in means]


def _pools(results: Results) -> Table:
    analysis, at_look = results.analysis, is_sequential(results)
    pools: list[tuple[str, Pool]] = [
        *analysis.categories.items(),
        *((f"alpha {alpha:g}", pool) for alpha, pool in analysis.alphas.items()),
        ("overall", analysis.overall),
    ]
    marked = {one.cell.category for one in analysis.cells.values() if results.mark(one)}
    if marked:
        marked |= {name for name, _ in pools if name not in analysis.categories}
    rows = [
        [
            _text(name), _count(pool.margin.n),
            *_estimate(pool.margin, pool.stop, at_look=at_look),
            *_gain(pool.gain, pool.gain_stop, at_look=at_look),
            _value(None if pool.trend is None else pool.trend.slope, signed),
            _text(words(verdict_name(pool.margin.verdict)) + (" *" if name in marked else "")),
        ]
        for name, pool in pools
    ]  # fmt: skip
    columns = [
        "pool", "pairs", *_columns(at_look), *_gain_columns(at_look), "slope", "verdict",
    ]  # fmt: skip
    return Table("pools", "Pools", columns, rows)


def _targets(results: Results) -> Table:
    at_look = is_sequential(results)
    rows = [
        [
            _text(category), _count(one.margin.n),
            *_estimate(one.margin, one.stop, at_look=at_look), _value(one.share, percent),
        ]
        for category, one in results.analysis.targets.items()
    ]  # fmt: skip
    columns = ["category", "pairs", *_columns(at_look), "of ceiling"]
    return Table("targets", "Target prompts' own images", columns, rows)


def _quality(results: Results) -> Table:
    cells = results.quality.cells
    shown = [
        metric for metric in shown_metrics(results.quality.metrics)
        if any(metric.name in of for of in cells.values())
    ]  # fmt: skip
    names = [metric.name for metric in shown]
    rows = [
        [
            _text(cell.category), _alpha(cell.alpha),
            *(_value(of[name].mean if name in of else None, significant) for name in names),
        ]
        for cell, of in cells.items()
    ]  # fmt: skip
    columns = ["category", "alpha", *(metric.long_title for metric in shown)]
    return Table("quality", "Quality", columns, rows)


def _distances(results: Results) -> Table:
    rows = [
        [_alpha(alpha), _text(one.name), _value(one.value, significant), _count(one.n)]
        for alpha, of in results.quality.alphas.items()
        for one in of.values()
    ]
    columns = ["alpha", "metric", "value", "images"]
    return Table("distance", "Distance from reference images", columns, rows)


def _pairs(results: Results, images: Gallery) -> Table:
    has_targets = bool(results.analysis.targets)
    alphas = sorted({alpha for strip in images.strips for alpha in strip.items})
    notes = pair_notes(results)
    rows = [
        [
            Value(strip.pair.id, strip.pair.id, f"#{strip.anchor}"), _text(strip.pair.category),
            _text(strip.pair.source_word), _text(strip.pair.target_word),
            *(_value(strip.items.get(alpha), signed) for alpha in alphas),
            *([_value(strip.target, signed)] if has_targets else ()),
            *([_text(notes.get(strip.pair.id, ""))] if notes else ()),
        ]
        for strip in images.strips
    ]  # fmt: skip
    shown = {strip.pair.id for strip in images.strips}
    for pair, note in notes.items():
        if pair not in shown:  # for a pair that is left out only its id is recorded
            blank = [_value(None, signed)] * (len(alphas) + has_targets)
            rows.append([_text(pair), *[_text("")] * 3, *blank, _text(note)])
    columns = [
        "pair", "category", "source", "target", *(f"alpha {alpha:g}" for alpha in alphas),
        *(["target prompt"] if has_targets else ()), *(["note"] if notes else ()),
    ]  # fmt: skip
    return Table("pairs", "Pairs", columns, rows)


def _failures(results: Results, images: Gallery) -> Table:
    """Images that failed when they were generated, and images that cannot be read now."""
    found = {
        (one.pair_id, one.category, one.method or "", one.alpha, one.seed): one.reason
        for one in results.failures
    }
    for strip, image in images.problems:
        method = results.header.subject.method if image.alpha else ""
        method = TARGET_METHOD if image.is_target else method
        found[strip.pair.id, strip.pair.category, method, image.alpha, image.seed] = image.problem
    hrefs = {strip.pair.id: f"#{strip.anchor}" for strip in images.strips}
    rows = [
        [
            Value(pair, pair, hrefs.get(pair, "")), _text(category), _text(method), _alpha(alpha),
            _count(seed), _text(reason),
        ]
        for (pair, category, method, alpha, seed), reason in found.items()
    ]  # fmt: skip
    columns = ["pair", "category", "method", "alpha", "seed", "reason"]
    return Table("failures", "Failed images", columns, rows)


def _comparison(comparison: Comparison) -> Table:
    rows = [
        [
            _text(change.name), _count(change.n), _value(change.old, signed),
            _value(change.new, signed), _value(change.difference, signed),
            _value(change.ci_low, signed), _value(change.ci_high, signed),
            _text(words(change.outcome)),
        ]
        for change in comparison.all_changes
    ]  # fmt: skip
    columns = ["cell", "pairs", "baseline", "this run", "difference", "low", "high", "outcome"]
    return Table("baseline", "Against the baseline", columns, rows)


def _estimate(figures: Estimate, stop: Stop | None = None, *, at_look: bool) -> list[Value]:
    """The columns of `_columns`."""
    return [
        _value(figures.mean, signed), _value(figures.ci_low, signed),
        _value(figures.ci_high, signed),
        _confidence(stop) if at_look else _value(figures.p, p_value),
        _value(figures.success_rate, percent),
    ]  # fmt: skip


def _gain(figures: Estimate | None, stop: Stop | None, *, at_look: bool) -> list[Value]:
    """The columns of `_gain_columns`."""
    count = len(_gain_columns(at_look))
    if figures is None:
        return [_value(None, signed)] * count
    return _estimate(figures, stop, at_look=at_look)[:count]


def _value(value: float | None, text: Callable[[float | None], str]) -> Value:
    return Value(text(value), number(value))


def _text(value: str) -> Value:
    return Value(value, value)


def _count(value: int) -> Value:
    return Value(str(value), float(value))


def _alpha(alpha: float) -> Value:
    return Value(f"{alpha:g}", alpha)
