"""The report: a run as one HTML file that needs no network, made from its results and its folder.

Everything that comes from a run's files is escaped by Jinja2 or by matplotlib, and the page's
content security policy lets nothing be fetched and no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analogy import recorded
from analogy.baseline import Comparison, Outcome
from analogy.files import check_output, write_output
from analogy.grid_metrics import shown_metrics
from analogy.options import OPTIONS, csv_list
from analogy.recorded import Recorded
from analogy.records import IMPORTED, UNSTEERED, Verdict, is_imported
from analogy.report import plots
from analogy.report.gallery import Gallery, gallery
from analogy.report.plots import Row, number, row_of, short
from analogy.stats import SIGNIFICANCE
from analogy.steering.base import TARGET_METHOD
from analogy.text import analogy_command, command_line

#: What stands for a verdict where there is no room for its word.
SYMBOLS = {
    "success": "✓", "failure": "✗", "inconclusive": "?", "too_few": "<6", "incomplete": "…",
    "blind": "∅", "control": "",
}  # fmt: skip

ANSWERS = {
    Verdict.SUCCESS: "Yes: over all categories and strengths, the images are closer to the target "
    "than to the source.",
    Verdict.FAILURE: "No: over all categories and strengths, the images are still closer to the "
    "source than to the target.",
    Verdict.INCONCLUSIVE: "Open: over all categories and strengths, these pairs do not tell "
    "whether the images are closer to the target or to the source.",
    Verdict.TOO_FEW: "Not decided: 5 pairs or fewer decide nothing.",
    Verdict.INCOMPLETE: "Not finished: images are missing, so nothing is said of the whole.",
    Verdict.BLIND: "Nothing can be said: the judge does not see the true change.",
}

_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Value:
    """A table's entry: what is shown, and what it is sorted and exported by."""

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


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture, what it shows in words for those who do not see it, and its caption."""

    svg: Markup
    alt: str
    caption: str = ""


def write_report(
    results: Mapping[str, Any],
    path: Path,
    *,
    folder: Path | None = None,
    comparison: Comparison | None = None,
    full_images: bool = False,
) -> None:
    """Write the report of ``results`` to ``path``, atomically.

    ``folder``: their run folder, None for a report without images; ``comparison``: with a
    baseline, as a section of its own. ``full_images``: the images as they are, in a folder beside
    the page that its thumbnails link to. Results that are none are a
    :class:`~analogy.recorded.RecordedError`.
    """
    check_output(path)
    beside = path.with_name(f"{path.stem}_images") if full_images else None
    page = render(results, folder=folder, comparison=comparison, full_images=beside)
    write_output(path, page.encode("utf-8", "backslashreplace"))


def render(
    results: Mapping[str, Any],
    *,
    folder: Path | None = None,
    comparison: Comparison | None = None,
    full_images: Path | None = None,
) -> str:
    """The report as HTML; see :func:`write_report`. The same arguments give the same text."""
    checked = recorded.of(results)
    controls, targets = _controls(results), _targets(results)
    images = gallery(results, checked, controls, targets, folder, full_images)
    environment = Environment(
        loader=PackageLoader("analogy.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        signed=signed, percent=percent, interval=interval, symbol=symbol, words=words
    )
    script = environment.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        script=Markup(script),
        script_digest=digest,
        results=results,
        checked=checked,
        verdict=checked.overall_verdict,
        answer=answer(checked),
        facts=facts(results, checked),
        may=may_conclude(results, checked),
        may_not=may_not_conclude(results, checked),
        alphas=[UNSTEERED, *checked.measurement.alphas],
        has_targets=bool(targets),
        map=verdict_map(results, checked),
        symbols=SYMBOLS,
        forests=_forests(results),
        categories=_by_category(results, checked),
        trade_offs=_trade_offs(results),
        comparison=comparison,
        outcomes={} if comparison is None else _outcomes(comparison),
        comparison_plot=None if comparison is None else _comparison_plot(comparison),
        tables=tables(results, images, comparison),
        gallery=images,
        verdicts={(row["category"], row["alpha"]): row["verdict"] for row in results["cells"]},
        facts_of_run=provenance(results, checked),
        commands=commands(results["config"], checked.subject.model),
        are_imported=is_imported(checked.subject.model),
    )


# --- numbers as text


def signed(value: Any, digits: int = 3) -> str:
    """A margin or another signed figure; a dash where there is none."""
    found = number(value)
    return "–" if found is None else f"{found:+.{digits}f}".replace("-", _MINUS)  # noqa: RUF001


def percent(value: Any) -> str:
    """A share in percent."""
    found = number(value)
    return "–" if found is None else f"{found:.0%}".replace("-", _MINUS)  # noqa: RUF001


def interval(figures: Mapping[str, Any], digits: int = 3) -> str:
    """An estimate's interval."""
    low, high = figures.get("ci_low"), figures.get("ci_high")
    if number(low) is None or number(high) is None:
        return "–"  # noqa: RUF001
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def symbol(verdict: Any) -> str:
    """What stands for a verdict."""
    return SYMBOLS.get(str(verdict), str(verdict))


def words(verdict: Any) -> str:
    """A verdict as words."""
    return str(verdict).replace("_", " ")


def _rows(part: Any, *keys: str) -> list[Mapping[str, Any]]:
    """The rows of a list of the results that nobody has checked: those with all of ``keys``."""
    rows = part if isinstance(part, (list, tuple)) else ()
    return [
        row
        for row in rows
        if isinstance(row, Mapping)
        and all(key in row for key in keys)
        and ("alpha" not in keys or number(row["alpha"]) is not None)
        and ("items" not in keys or isinstance(row["items"], Mapping))
    ]


def _controls(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _rows(results.get("controls"), "category", "alpha", "items")


def _targets(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _rows(results.get("targets"), "category", "items")


def _part(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object of the results; empty where there is none."""
    part = row.get(name)
    return part if isinstance(part, Mapping) else {}


def _value(value: Any, text: Callable[[Any], str]) -> Value:
    return Value(text(value), number(value))


def _p(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.3g}"  # noqa: RUF001


def _plain(value: Any) -> Value:
    return Value(str(value), number(value) if number(value) is not None else str(value))


def _alpha(row: Mapping[str, Any]) -> Value:
    return Value(f"{float(row['alpha']):g}", float(row["alpha"]))


def _count(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def _listed(values: Iterable[Any]) -> str:
    """``a, b and c``."""
    *most, last = [str(value) for value in values]
    return f"{', '.join(most)} and {last}" if most else last


# --- the answer


def answer(checked: Recorded) -> str:
    """The answer to the suite's question in a sentence, and whether it holds in every cell."""
    verdicts = {cell.verdict for cell in checked.cells.values()}
    said = ANSWERS[checked.overall_verdict]
    if {Verdict.SUCCESS, Verdict.FAILURE} <= verdicts:
        said += " It depends on category and strength: some cells succeed, some fail."
    return said


def facts(results: Mapping[str, Any], checked: Recorded) -> list[str]:
    """The sentences below the answer: the figures that it rests on."""
    overall, measurement = results["overall"], checked.measurement
    alphas = _listed(f"{alpha:g}" for alpha in measurement.alphas)
    one_each = {cell.category: cell.n for cell in checked.cells.values()}
    names = checked.categories
    of = _listed(names) if len(names) <= 10 else f"{len(names)} categories"
    said = [
        f"{_count(sum(one_each.values()), 'pair')} ({of}), steered by the "
        f"method {checked.subject.method} at alpha {alphas}, "
        f"{_count(len(measurement.seeds), 'seed')} each. "
        f"Model: {checked.subject.model.partition('@')[0]}. "
        f"Judge: {measurement.judge.partition('@')[0]}."
    ]
    if number(overall.get("mean")) is not None:
        said.append(
            f"Mean margin {signed(overall['mean'])}, 95% interval {interval(overall)}, one-sided p "
            f"{_p(overall.get('p'))}; {percent(overall.get('success_rate'))} of "
            f"{_count(int(number(overall.get('n_items')) or 0), 'item')} lie above 0."
        )
    gain = _part(overall, "gain")
    if number(gain.get("mean")) is not None:
        said.append(
            "Against the unsteered images of the same pairs and seeds (alpha 0), steering moved "
            f"the margin by {signed(gain['mean'])} {interval(gain)}."
        )
    by_alpha = [
        f"{signed(row.get('mean'))} at alpha {float(row['alpha']):g} ({words(row.get('verdict'))})"
        for row in _rows(results.get("alphas"), "alpha")
    ]
    if len(by_alpha) > 1:
        said.append(f"By strength: {_listed(by_alpha)}.")
    counts = Counter(str(cell.verdict) for cell in checked.cells.values())
    adjusted = [
        row["verdict"] == Verdict.SUCCESS and p < SIGNIFICANCE
        for row in results["cells"]
        if (p := number(row.get("p_holm"))) is not None
    ]
    holm = f" After Holm's correction for testing {len(adjusted)}, success in {sum(adjusted)}."
    said.append(
        f"Of {_count(len(checked.cells), 'cell')} (category and strength): "
        + _listed(f"{words(name)} in {count}" for name, count in counts.most_common())
        + "."
        + (holm if adjusted else "")
    )
    decided = [cell for cell in checked.cells.values() if cell.mean == cell.mean]
    if len(decided) > 1:
        best, worst = max(decided, key=lambda c: c.mean), min(decided, key=lambda c: c.mean)
        said.append(
            f"Best: {best.category} at alpha {best.alpha:g} ({signed(best.mean)}). "
            f"Worst: {worst.category} at alpha {worst.alpha:g} ({signed(worst.mean)})."
        )
    return said


def _is_embedded(results: Mapping[str, Any], name: str) -> bool:
    config = results["config"]
    used = _model_and_lora(config)[0] if name == "model" else config.get(name)
    return bool(used == "embedded")


def _model_and_lora(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The model and its LoRA. Results of earlier suites lack the key ``lora`` and have both in
    ``model`` alone, where a ``+`` of the model's own cannot be told from the LoRA's.
    """
    model = str(config.get("model"))
    if "lora" not in config:
        base, _, lora = model.partition("+")
        return base, lora or None
    lora = config["lora"]
    return (model, None) if lora is None else (model.removesuffix(f"+{lora}"), str(lora))


def may_conclude(results: Mapping[str, Any], checked: Recorded) -> list[str]:
    """What the run supports."""
    verdicts = {cell.verdict for cell in checked.cells.values()}
    said = []
    if _is_embedded(results, "model"):
        said.append(
            "That the machinery works, from prompts to verdicts, and whether a change to the suite "
            "or its libraries moved the figures."
        )
    elif verdicts & {Verdict.SUCCESS, Verdict.FAILURE}:
        said.append(
            f"For {checked.subject.model} with these settings and this judge, and for pairs like "
            "these: what each cell that succeeds or fails says."
        )
    else:
        said.append("Nothing about the method yet: no cell succeeds or fails.")
    if verdicts & {Verdict.SUCCESS, Verdict.FAILURE}:
        said.append(
            "One cell named beforehand is judged by its own p; a sentence about several cells, or "
            "about the best of them, by Holm's."
        )
    return said


def may_not_conclude(results: Mapping[str, Any], checked: Recorded) -> list[str]:
    """What the run does not support, the more important first."""
    verdicts = {cell.verdict for cell in checked.cells.values()}
    said = []
    if _is_embedded(results, "model"):
        said.append(
            "Anything about SSD-1B or another model: these images come from the small model that "
            "is part of the suite, trained on drawings."
        )
    elif _is_embedded(results, "clip_model"):
        said.append(
            "Much about photographs: the judge is the small one that is part of the suite, trained "
            "on drawings."
        )
    if checked.measurement.limit is not None:
        said.append(
            f"What the whole set of pairs says: only the first {checked.measurement.limit} of each "
            "category were measured."
        )
    if Verdict.INCOMPLETE in verdicts:
        said.append("Anything about incomplete cells: images are missing there.")
    if Verdict.BLIND in verdicts:
        said.append("Anything about blind cells: the judge does not see the true change there.")
    if Verdict.INCONCLUSIVE in verdicts:
        said.append(
            "That steering does nothing in an inconclusive cell: the pairs are too few to tell."
        )
    said.append(
        "That people would agree: a margin is what one CLIP model sees. Look at the images below."
    )
    said.append(
        "That the rest of the image was kept: the margin does not ask. See gain and preservation."
    )
    return said


# --- category x alpha


def verdict_map(results: Mapping[str, Any], checked: Recorded) -> list[dict[str, Any]]:
    """The heat map's rows: per category the control, each alpha, and all of them.

    ``strength``: |margin| as a share of the largest, in percent of the strongest colour.
    """
    by_cell = {(row["category"], float(row["alpha"])): row for row in results["cells"]}
    controls = {row["category"]: row for row in _controls(results)}
    pools = {row["category"]: row for row in _rows(results.get("categories"), "category")}
    means = [abs(m) for row in [*by_cell.values(), *controls.values()]
             if (m := number(row.get("mean"))) is not None]  # fmt: skip
    most = max(means, default=0.0) or 1.0

    def cell(row: Mapping[str, Any] | None) -> dict[str, Any]:
        row = row or {}
        mean = number(row.get("mean"))
        verdict = str(row.get("verdict", "control"))
        holm = number(row.get("p_holm"))
        return {
            "mean": mean,
            "verdict": verdict,
            "is_raw": verdict == Verdict.SUCCESS and holm is not None and holm >= SIGNIFICANCE,
            "side": "none" if mean is None else "pos" if mean > 0 else "neg",
            "strength": 0 if mean is None else round(min(abs(mean) / most, 1.0) * 60),
            "interval": interval(row),
        }

    made = [
        {
            "name": name,
            "cells": [cell(controls.get(name))]
            + [cell(by_cell[name, alpha]) for alpha in checked.measurement.alphas]
            + [cell(pools.get(name))],
        }
        for name in checked.categories
    ]
    by_alpha = {float(row["alpha"]): row for row in _rows(results.get("alphas"), "alpha")}
    whole = [cell(None), *(cell(by_alpha.get(a)) for a in checked.measurement.alphas)]
    made.append({"name": "all", "cells": [*whole, cell(results["overall"])]})
    return made


# --- plots


def _plot(
    width: float, height: float, draw: Callable[[Axes], object], alt: str, caption: str = ""
) -> Plot:
    return Plot(Markup(plots.svg(width, height, draw)), alt, caption)


def forest_rows(results: Mapping[str, Any], name: str) -> list[Row]:
    """The ``margin`` or the ``gain`` of every cell, as `plots.forest` takes them."""
    return [
        row_of(
            f"{short(cell['category'])} {cell['alpha']:g}",
            cell if name == "margin" else _part(cell, "gain"),
        )
        for cell in results["cells"]
    ]


def _forests(results: Mapping[str, Any]) -> list[Plot]:
    """Margins and gains of all cells with their intervals."""
    made = []
    for name, title in (("margin", "Margin"), ("gain", "Gain over alpha 0")):
        rows = forest_rows(results, name)
        said = "; ".join(f"{row.label} {signed(row.mean)}, {words(row.verdict)}" for row in rows)
        made.append(
            _plot(
                320, 44 + 13.5 * len(rows), partial(plots.forest, rows=rows, label=name),
                f"{title} of each cell with its 95% interval: {said}.",
                f"{title}: mean over pairs and 95% interval",
            )
        )  # fmt: skip
    return made


@dataclass(frozen=True, slots=True)
class Responses:
    """A category at each alpha, the control among them: items, estimates, and the ceiling.

    ``margins``: ``(pairs, alphas)``, NaN where an item is missing. ``target_share``: of the last
    alpha, in the margin of the target prompts' own images.
    """

    alphas: Sequence[float]
    margins: NDArray[np.float64]
    rows: Sequence[Row]
    ceiling: Mapping[str, Any]
    target_share: float | None


def responses(results: Mapping[str, Any], category: str) -> Responses:
    """What `plots.dose_response` and `plots.distribution` draw of a category."""
    rows = [row for row in [*_controls(results), *results["cells"]]
            if row["category"] == category]  # fmt: skip
    rows.sort(key=lambda row: float(row["alpha"]))
    alphas = [float(row["alpha"]) for row in rows]
    means = [row_of(f"{alpha:g}", row) for alpha, row in zip(alphas, rows, strict=True)]
    last = rows[-1]
    return Responses(
        alphas, _margins(rows), means, _part(last, "ceiling"), last.get("target_share")
    )


def _by_category(results: Mapping[str, Any], checked: Recorded) -> list[dict[str, Any]]:
    """Per category the dose-response, the items' distribution, the pool and the ceiling."""
    pools = {row["category"]: row for row in _rows(results.get("categories"), "category")}
    targets = {row["category"]: row for row in _targets(results)}
    made = []
    for name in checked.categories:
        of = responses(results, name)
        pool = pools.get(name, {})
        said = ", ".join(f"{row.label}: {signed(row.mean)}" for row in of.rows)

        dose = partial(plots.dose_response, alphas=of.alphas, margins=of.margins, rows=of.rows,
                       ceiling=number(of.ceiling.get("mean")))  # fmt: skip
        spread = partial(plots.distribution, alphas=of.alphas, margins=of.margins)
        made.append(
            {
                "name": name,
                "pool": pool,
                "trend": _part(pool, "trend"),
                "ceiling": of.ceiling,
                "share": number(of.ceiling.get("share")),
                "target": targets.get(name, {}),
                "target_share": number(of.target_share),
                "plots": [
                    _plot(230, 160, dose, f"Dose-response of {name}, mean margin by alpha: "
                          f"{said}; thin lines are single pairs."),
                    _plot(230, 160, spread, f"Distribution of the {len(of.margins)} pairs' "
                          f"margins of {name} at each alpha; means: {said}."),
                ],
            }
        )  # fmt: skip
    return made


def _margins(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Items as ``(pairs, alphas)``, NaN where one is missing."""
    pairs = list(dict.fromkeys(pair for row in rows for pair in row["items"]))
    values = [[number(row["items"].get(pair)) for row in rows] for pair in pairs]
    return np.array(values, dtype=float).reshape(len(pairs), len(rows))


def trade_off_series(
    results: Mapping[str, Any], metric: str
) -> dict[str, list[tuple[float, float, float]]]:
    """What `plots.trade_off` draws: of each category (preservation, gain, alpha), where measured.

    ``metric``: the name of a metric of quality.
    """
    gains = {(row["category"], float(row["alpha"])): number(_part(row, "gain").get("mean"))
             for row in results["cells"]}  # fmt: skip
    found = _rows(_part(results, "quality").get("cells"), "category", "alpha")
    series: dict[str, list[tuple[float, float, float]]] = {}
    for row in sorted(found, key=lambda row: float(row["alpha"])):
        kept = number(_part(row, metric).get("mean"))
        gain = gains.get((row["category"], float(row["alpha"])))
        if kept is not None and gain is not None:
            series.setdefault(row["category"], []).append((kept, gain, float(row["alpha"])))
    return series


def preservation(results: Mapping[str, Any]) -> dict[str, str]:
    """What the trade-off is drawn against: names of metrics, and the labels of their axes."""
    shown = shown_metrics(results.get("quality"))
    return {metric.name: metric.axis for metric in shown if metric.unchanged is not None}


def _trade_offs(results: Mapping[str, Any]) -> list[Plot]:
    """Gain against what is left of the image at alpha 0, by SSIM and by LPIPS where measured."""
    made = []
    for metric, label in preservation(results).items():
        series = trade_off_series(results, metric)
        if series:
            said = "; ".join(
                f"{name}: " + ", ".join(f"alpha {a:g} gain {signed(y)} {metric} {x:.2f}"
                                        for x, y, a in points)
                for name, points in series.items()
            )  # fmt: skip
            draw = partial(plots.trade_off, series=series, label=label)
            made.append(_plot(400, 300, draw, f"Gain against preservation. {said}."))
    return made


def _outcomes(comparison: Comparison) -> dict[str, int]:
    counts = Counter(change.outcome for change in comparison.changes)
    return {words(outcome): counts[outcome] for outcome in Outcome if counts[outcome]}


def _comparison_plot(comparison: Comparison) -> Plot:
    rows = []
    for change in comparison.all_changes:
        name = "overall"
        if change.category is not None:
            name = f"{short(change.category)} {change.alpha:g}"
        figures = {"mean": change.difference, "ci_low": change.ci_low, "ci_high": change.ci_high}
        rows.append(row_of(name, {**figures, "verdict": change.outcome}))
    said = "; ".join(f"{row.label} {signed(row.mean)}, {row.verdict}" for row in rows)
    draw = partial(plots.forest, rows=rows, label=f"this run {_MINUS} baseline")
    return _plot(
        400, 44 + 13.5 * len(rows), draw,
        f"Difference of margins, this run minus the baseline: {said}.",
        "Mean difference over pairs; the intervals hold together with 95%",
    )  # fmt: skip


# --- tables


def tables(
    results: Mapping[str, Any], images: Gallery, comparison: Comparison | None
) -> list[Table]:
    """Every figure of the run, as tables that have any rows."""
    order = {name: i for i, name in enumerate(results["pairs"])}
    rows = [row for row in [*_controls(results), *results["cells"]] if row["category"] in order]
    rows.sort(key=lambda row: (order[row["category"]], float(row["alpha"])))
    has_random = any(row.get("random") for row in rows)
    own = [row for row in _targets(results) if row["category"] in order]
    cells = [
        [
            _plain(row["category"]), _alpha(row), _plain(row.get("n", "")),
            *_estimate(row), _value(row.get("p_holm"), _p), *_estimate(_part(row, "gain"))[:3],
            *([_value(_part(_part(row, "random"), name).get("mean"), signed)
               for name in ("margin", "advantage")] if has_random else ()),
            _value(_part(row, "ceiling").get("share"), percent),
            *([_value(row.get("target_share"), percent)] if own else ()),
            _plain(words(row.get("verdict", "control"))),
        ]
        for row in rows
    ]  # fmt: skip
    targets = [
        [_plain(row["category"]), _plain(row.get("n", "")), *_estimate(row),
         _value(_part(row, "ceiling").get("share"), percent)]
        for row in own
    ]  # fmt: skip
    figures = ["margin", "low", "high", "p", "above 0"]
    pools = [
        [_plain(name), _plain(row.get("n", "")), *_estimate(row),
         *_estimate(_part(row, "gain"))[:3],
         _value(_part(row, "trend").get("slope"), signed), _plain(words(row.get("verdict", "")))]
        for name, row in [
            *((row["category"], row) for row in _rows(results.get("categories"), "category")),
            *((f"alpha {row['alpha']:g}", row) for row in _rows(results.get("alphas"), "alpha")),
            ("overall", results["overall"]),
        ]
    ]  # fmt: skip
    alphas = sorted({alpha for strip in images.strips for alpha in strip.items})
    pairs = [
        [Value(strip.pair.id, strip.pair.id, f"#{strip.anchor}"), _plain(strip.pair.category),
         _plain(strip.pair.source_word), _plain(strip.pair.target_word),
         *(_value(strip.items.get(alpha), signed) for alpha in alphas),
         *([_value(strip.target, signed)] if own else ())]
        for strip in images.strips
    ]  # fmt: skip
    measured = _part(results, "quality")
    quality = _rows(measured.get("cells"), "category", "alpha")
    shown = [metric for metric in shown_metrics(measured)
             if any(row.get(metric.name) for row in quality)]  # fmt: skip
    gain = ["gain", "gain low", "gain high"]
    made = [
        Table("cells", "Cells", ["category", "alpha", "pairs", *figures, "Holm's p", *gain,
              *(("random", "over random") if has_random else ()), "of ceiling",
              *(["of target"] if own else ()), "verdict"], cells),
        Table("pools", "Pools", ["pool", "pairs", *figures, *gain, "slope", "verdict"], pools),
        Table("targets", "Target prompts' own images", ["category", "pairs", *figures,
              "of ceiling"], targets),
        Table("quality", "Quality",
              ["category", "alpha", *(metric.long_title for metric in shown)],
              [[_plain(row["category"]), _alpha(row),
                *(_value(_part(row, metric.name).get("mean"), _figure) for metric in shown)]
               for row in quality]),
        Table("distance", "Distance from reference images", ["alpha", "metric", "value", "images"],
              [[_alpha(row), _plain(score.get("name", name)),
                _value(score.get("value"), _figure), _plain(score.get("n", ""))]
               for row in _rows(measured.get("alphas"), "alpha")
               for name, score in row.items() if isinstance(score, Mapping)]),
        Table("pairs", "Pairs", ["pair", "category", "source", "target",
              *(f"alpha {alpha:g}" for alpha in alphas),
              *(["target prompt"] if own else ())], pairs),
        Table("failures", "Images that are no picture", ["pair", "category", "method", "alpha",
              "seed", "reason"], _failures(results, images)),
    ]  # fmt: skip
    if comparison is not None:
        made.insert(2, _comparison_table(comparison))
    return [table for table in made if table.rows]


def _estimate(row: Mapping[str, Any]) -> list[Value]:
    return [
        _value(row.get("mean"), signed), _value(row.get("ci_low"), signed),
        _value(row.get("ci_high"), signed), _value(row.get("p"), _p),
        _value(row.get("success_rate"), percent),
    ]  # fmt: skip


def _figure(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.3g}".replace("-", _MINUS)  # noqa: RUF001


def _failures(results: Mapping[str, Any], images: Gallery) -> list[list[Value]]:
    """Images that failed when they were made, and those that cannot be shown now."""
    found = {
        (str(row.get("pair_id")), str(row.get("category")), str(row.get("method", "")),
         number(row.get("alpha")) or 0.0, int(number(row.get("seed")) or 0)): str(row.get("reason"))
        for row in _rows(results.get("failures"), "pair_id")
    }  # fmt: skip
    for strip, shot in images.problems:
        method = "" if shot.alpha == UNSTEERED else str(results["config"].get("method"))
        method = TARGET_METHOD if shot.is_target else method
        found[strip.pair.id, strip.pair.category, method, shot.alpha, shot.seed] = shot.problem
    hrefs = {strip.pair.id: f"#{strip.anchor}" for strip in images.strips}
    return [
        [Value(pair, pair, hrefs.get(pair, "")), _plain(category), _plain(method),
         _alpha({"alpha": alpha}), _plain(seed), _plain(reason)]
        for (pair, category, method, alpha, seed), reason in found.items()
    ]  # fmt: skip


def _comparison_table(comparison: Comparison) -> Table:
    rows = [
        [_plain(change.name), _plain(change.n), _value(change.old, signed),
         _value(change.new, signed), _value(change.difference, signed),
         _value(change.ci_low, signed), _value(change.ci_high, signed),
         _plain(words(change.outcome))]
        for change in comparison.all_changes
    ]  # fmt: skip
    columns = ["cell", "pairs", "baseline", "this run", "difference", "low", "high", "outcome"]
    return Table("baseline", "Against the baseline", columns, rows)


# --- provenance


def provenance(results: Mapping[str, Any], checked: Recorded) -> list[tuple[str, str]]:
    """What produced the figures, as names and values."""
    subject, config = checked.subject, results["config"]
    found = {
        "model": f"{config.get('model')}: {subject.model}",
        "judge": f"{config.get('clip_model', '')}: {checked.measurement.judge}",
        "method": subject.method,
        "sampling": f"{subject.steps} steps, guidance {subject.guidance:g}, {subject.scheduler}, "
        f"{checked.measurement.size} px, {subject.dtype} on {subject.device}",
        "suite": subject.suite,
        "commit": subject.commit or "not known",
        "python": checked.provenance.get("python", "not known"),
        "packages": ", ".join(f"{name} {version}" for name, version in subject.packages.items()),
        "machine": ", ".join(f"{name}: {value}" for name, value in checked.machine.items()),
        "time": checked.provenance.get("time", "not known"),
        "generated": _rate(checked.throughput["generate"]),
        "scored": _rate(checked.throughput["score"]),
    }
    return [(name, str(value)) for name, value in found.items()]


def _rate(rate: float | None) -> str:
    return "not timed" if rate is None else f"{rate:.1f} images/s"


def commands(config: Mapping[str, Any], model: str) -> list[str]:
    """What gives the results again: a run; or of imported images, whose name is ``model``, an
    import and a score, with RUN and MANIFEST where the results do not know the user's paths.
    """
    if not is_imported(model):
        return [command(config)]
    name = model.partition(IMPORTED)[0]
    judge = [f"--clip-model={config.get('clip_model')}"]
    if config.get("clip_pretrained") is not None:
        judge.append(f"--clip-pretrained={config['clip_pretrained']}")
    of_images = [f"--model-name={name}", f"--pairs={config.get('pairs')}"]
    return [
        analogy_command("import", "RUN", "MANIFEST", *of_images, *judge),
        analogy_command("score", "RUN", *judge),
    ]


def command(config: Mapping[str, Any]) -> str:
    """The command that repeats a run, with every setting that was resolved."""
    values = dict(config)
    values["model"], values["lora"] = _model_and_lora(config)
    words = ["pytest", "benchmarks"]
    for option in OPTIONS:
        value = values.get(option.name.removeprefix("analogy_"))
        if value is None or value is False:
            continue
        if isinstance(value, (list, tuple)):
            value = csv_list(map(str, value))
        words.append(option.flag if value is True else f"{option.flag}={value}")
    return command_line(*words)
