"""The report: a run as one HTML file that needs no network, made from its results and its folder.

Jinja2 or matplotlib escapes everything that comes from a run's files. The page's content security
policy forbids loading anything and running any script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from analogy.core.files import check_output, write_output
from analogy.core.records import is_imported
from analogy.core.text import short_name
from analogy.report import plots
from analogy.report.answer import answer, facts, may_conclude, may_not_conclude
from analogy.report.figures import (
    Responses,
    decided_rows,
    margin_limits,
    preservation,
    responses,
    trade_off_series,
    verdict_map,
)
from analogy.report.forest import cells_forest, comparison_forest
from analogy.report.gallery import baseline_rows, gallery, in_gallery
from analogy.report.glossary import report_terms
from analogy.report.looks import is_sequential, variance_said
from analogy.report.marks import pair_notes, run_notes
from analogy.report.medians import medians
from analogy.report.numbers import (
    PARTIAL,
    SYMBOLS,
    interval_name,
    signed,
    symbol,
    words,
)
from analogy.report.provenance import commands, provenance
from analogy.report.tables import tables
from analogy.report.templating import environment
from analogy.results.answer import answer_of
from analogy.results.comparison import Comparison, Outcome
from analogy.results.model import Analysis, Pool, Results, TargetFigures


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its caption. ``width``: in pixels, at which its text is readable; ``alt``: its
    description for screen readers.
    """

    svg: Markup
    width: float
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """The section of one category. ``pool`` and ``target``: None if the results have none."""

    name: str
    pool: Pool | None
    responses: Responses
    target: TargetFigures | None
    plots: tuple[Plot, Plot]


def write_report(
    results: Results,
    path: Path,
    *,
    folder: Path | None = None,
    comparison: Comparison | None = None,
    baseline: Results | None = None,
    full_images: bool = False,
) -> None:
    """Write the report of ``results`` to ``path``, atomically.

    ``folder``: their run folder, None for a report without images; ``comparison``: the comparison
    with a baseline, shown in its own section; ``baseline``: the baseline's results, whose images
    are also shown if they were read from their run folder; ``full_images``: whether to write the
    images at full size into a folder beside the page, to which thumbnails link.
    """
    check_output(path)
    beside = path.with_name(f"{path.stem}_images") if full_images else None
    page = render(
        results, folder=folder, comparison=comparison, baseline=baseline, full_images=beside
    )
    write_output(path, page.encode("utf-8", "backslashreplace"))


def render(
    results: Results,
    *,
    folder: Path | None = None,
    comparison: Comparison | None = None,
    baseline: Results | None = None,
    full_images: Path | None = None,
) -> str:
    """The report as HTML. The same arguments give the same text.

    ``full_images``: the folder for images at full size, or None; the others as in
    :func:`write_report`.
    """
    header, analysis = results.header, results.analysis
    images = gallery(results, folder, full_images)
    found = answer_of(analysis)
    templates = environment(symbol=symbol, interval_name=interval_name, fingerprint=short_name)
    script = templates.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates.get_template("report.html").render(
        script=Markup(script),
        script_digest=digest,
        header=header,
        verdict=str(found.verdict),
        mark=PARTIAL if found.is_partial else symbol(found.verdict),
        date=(header.provenance.time or "").partition("T")[0],
        answer=answer(results),
        facts=facts(results),
        may=may_conclude(results),
        may_not=may_not_conclude(results),
        alphas=header.alphas,
        has_targets=bool(analysis.targets),
        map=verdict_map(results),
        run_notes=list(run_notes(results)),
        pair_notes=pair_notes(results),
        symbols=SYMBOLS,
        is_sequential=is_sequential(results),
        variance=variance_said(results),
        decided=_decided(results) if is_sequential(results) else None,
        forest=cells_forest(analysis),
        categories=_cards(analysis, header.categories),
        trade_offs=_trade_offs(results),
        comparison=comparison,
        outcomes={} if comparison is None else _outcomes(comparison),
        differences=None
        if comparison is None
        else comparison_forest(comparison, has_confidence=is_sequential(results)),
        tables=tables(results, images, comparison),
        gallery=images,
        medians=list(medians(images.strips, header.categories)),
        before={} if baseline is None else baseline_rows(baseline, images),
        in_gallery=in_gallery,
        verdicts={tuple(cell): str(of.margin.verdict) for cell, of in analysis.cells.items()},
        facts_of_run=provenance(results),
        commands=commands(header),
        glossary=report_terms(is_sequential=is_sequential(results)),
        are_imported=is_imported(header.subject.model),
    )


def _plot(
    width: float, height: float, draw: Callable[[Axes], object], alt: str, caption: str = ""
) -> Plot:
    return Plot(Markup(plots.svg(width, height, draw)), width, alt, caption)


def _decided(results: Results) -> Plot:
    """The look at which each cell of a sequential run was decided."""
    rows = decided_rows(results)
    said = "; ".join(
        f"{row.label} {words(row.verdict)} at look {row.look} of {row.looks}, {row.pairs} pairs "
        f"with {row.seeds} seed{'' if row.seeds == 1 else 's'} each"
        if row.look
        else f"{row.label} {words(row.verdict)}"
        for row in rows
    )
    return _plot(
        460, 56 + 13.5 * len(rows), partial(plots.decisions, rows=rows),
        f"The look at which each cell was decided: {said}.",
        "Decided at: a bar ends at the cell's look; small dots are looks that it did not need",
    )  # fmt: skip


def _cards(analysis: Analysis, names: Sequence[str]) -> list[Card]:
    """The sections of the categories, whose plots share one axis of margins."""
    found = [responses(analysis, name) for name in names]
    limits = margin_limits(found)
    return [_card(analysis, name, of, limits) for name, of in zip(names, found, strict=True)]


def _card(analysis: Analysis, name: str, of: Responses, limits: plots.Limits) -> Card:
    """A category's dose-response, the items' distribution, the pool and the ceiling."""
    said = ", ".join(f"{row.label}: {signed(row.mean)}" for row in of.rows)
    dose = partial(plots.dose_response, alphas=of.alphas, margins=of.margins, rows=of.rows,
                   ceiling=of.ceiling_mean, limits=limits)  # fmt: skip
    spread = partial(plots.distribution, alphas=of.alphas, margins=of.margins, limits=limits)
    return Card(
        name=name,
        pool=analysis.categories.get(name),
        responses=of,
        target=analysis.targets.get(name),
        plots=(
            _plot(270, 190, dose, f"Dose-response of {name}, mean margin by alpha: {said}; thin "
                  "lines are single pairs."),
            _plot(270, 190, spread, f"Distribution of the {len(of.margins)} pairs' margins of "
                  f"{name} at each alpha; means: {said}."),
        ),
    )  # fmt: skip


def _trade_offs(results: Results) -> list[Plot]:
    """Plots of gain against preservation, for each metric of preservation that was measured."""
    made = []
    for metric, label in preservation(results).items():
        series = trade_off_series(results, metric)
        if series:
            said = "; ".join(
                f"{name}: " + ", ".join(f"alpha {p.alpha:g} gain {signed(p.gain)} {metric} "
                                        f"{p.kept:.2f}" for p in points)
                for name, points in series.items()
            )  # fmt: skip
            draw = partial(plots.trade_off, series=series, label=label)
            made.append(_plot(920, 420, draw, f"Gain against preservation. {said}."))
    return made


def _outcomes(comparison: Comparison) -> dict[str, int]:
    counts = Counter(change.outcome for change in comparison.changes)
    return {words(outcome): counts[outcome] for outcome in Outcome if counts[outcome]}
