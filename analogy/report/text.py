"""A run's figures as lines of text, for terminals and logs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

from analogy.core.records import Cell, Estimate, Verdict
from analogy.core.text import display_width, padded, printable, shortened
from analogy.grid_metrics import Absent, Input, Per
from analogy.report.text_sequential import confidence, is_sequential, look
from analogy.results.model import Analysis, CellFigures, Mean, Pool, Stop

if TYPE_CHECKING:
    from analogy.store.grid import Job
    from analogy.studies.quality import Quality

_NARROW, _WIDE = 10, 32
"""The least and greatest width of a table's first column; longer names are shortened."""


def _head(ci: str) -> str:
    """The columns of the verdict table after the first; ``ci``: the intervals' name."""
    return (
        f"{'alpha':>5} {'n':>4} {'margin':>8} {ci:>18} {'p':>8} {'>0':>5} "
        f"{'gain':>8} {ci:>18} {'ceiling':>7}  verdict"
    )


LINE = _NARROW + 1 + len(_head("")) + 12
"""The width of a table's line if all names are narrow."""


def interval_name(analysis: Analysis) -> str:
    """The name of a table's intervals, whose confidence differs from row to row if sequential."""
    return "look's CI" if is_sequential(analysis) else "95% CI"


def figures_line(figures: Estimate, stop: Stop | None = None) -> str:
    """An estimate in one line. ``stop``: the look that it is of, in a sequential run."""
    return (
        f"mean margin {figures.mean:+.4f}, {confidence(stop)} CI "
        f"{interval(figures.ci_low, figures.ci_high)}, "
        f"p {figures.p:.3g}, success rate {figures.success_rate:.0%}, n {figures.n}"
    )


def verdict_table(analysis: Analysis, known: Collection[Cell] = ()) -> Iterator[str]:
    """Category x alpha, alpha 0 first, then each alpha over all categories, then the whole.

    ``known``: cells that the baseline records as not succeeding.
    """
    width = width_of(analysis.unsteered)
    rule = "-" * (LINE - _NARROW + width)
    yield f"{'category':<{width}} {_head(interval_name(analysis))}"
    yield rule
    for category, unsteered in analysis.unsteered.items():
        name = _name(category, width)
        yield _row(name, "0", unsteered.margin, None, unsteered.share, "unsteered")
        for cell, figures in analysis.cells.items():
            if cell.category == category:
                verdict = verdict_words(figures, cell in known)
                yield _row(
                    name, f"{cell.alpha:g}", figures.margin, figures.gain, figures.share, verdict
                )
    yield rule
    for alpha, pool in analysis.alphas.items():
        yield _pool_row(_name("all", width), f"{alpha:g}", pool)
    yield _pool_row(_name("overall", width), "all", analysis.overall)


def verdict_words(figures: CellFigures, is_known: bool = False) -> str:
    """A cell's verdict with its notes: Holm's correction, pairs needed, the baseline."""
    notes = []
    verdict = figures.margin.verdict
    if verdict is Verdict.SUCCESS and not figures.survives and figures.p_holm == figures.p_holm:
        notes.append("not after Holm")
    if figures.margin.n_needed is not None and verdict is Verdict.INCONCLUSIVE:
        notes.append(f"{figures.margin.n_needed:,} pairs would decide")
    if figures.stop is not None:
        notes.append(look(figures.stop))
    if is_known:
        better = verdict is Verdict.SUCCESS
        notes.append("better than its baseline" if better else "known")
    return f"{verdict} ({'; '.join(notes)})" if notes else str(verdict)


def failed_images(count: int) -> str:
    """``1 failed image``, ``2 failed images``."""
    return f"{count} failed {'image' if count == 1 else 'images'}"


def failure_lines(failures: Sequence[tuple[Job, str]]) -> Iterator[str]:
    """The failed images, counted by cell and reason."""
    if not failures:
        return
    yield (
        f"{failed_images(len(failures))}; not scored, items incomplete. The same command tries "
        "again; --dtype float32 or bfloat16 may help."
    )
    counts = Counter((Cell(job.pair.category, job.alpha), reason) for job, reason in failures)
    for (cell, reason), count in counts.items():
        yield f"  {cell}: {count} ({reason})"


def reading_notes(analysis: Analysis) -> Iterator[str]:
    """What the table's columns mean, and what may be concluded from several cells together."""
    yield "margin: are the images closer to the target than to the source? The verdict is of it."
    yield "gain: what did steering itself do? margin(alpha) - margin(0), pair by pair."
    if any(figures.ceiling is not None for figures in analysis.unsteered.values()):
        yield "ceiling: the margin as a share of what drawings of the true target score."
    tested = [f for f in analysis.cells.values() if f.p_holm == f.p_holm]
    if tested:
        n_success = sum(f.margin.verdict is Verdict.SUCCESS for f in tested)
        yield (
            f"{n_success} of {len(tested)} cells succeed; "
            f"{sum(f.survives for f in tested)} after Holm's correction for {len(tested)} tests."
        )
    if analysis.blind:
        yield (
            f"The judge does not see the true change in: {', '.join(analysis.blind)}. "
            "Nothing is said about the method there."
        )
    naive = analysis.overall.items
    if naive is not None:
        yield (
            f"Items taken for independent, as the published study did: 95% CI "
            f"{interval(naive.ci_low, naive.ci_high)}, p {naive.p:.2g} over {naive.n} items."
        )


def trend_table(analysis: Analysis) -> Iterator[str]:
    """Dose and response per category: the margin's slope on alpha."""
    rows: list[tuple[str, Pool]] = [*analysis.categories.items(), ("overall", analysis.overall)]
    if all(pool.trend is None for _, pool in rows):
        return
    width = width_of(analysis.categories, 13)
    ci = interval_name(analysis)
    yield f"{'dose-response':<{width}} {'n':>4} {'slope':>8} {ci:>18} {'p':>8} {'Page p':>8}"
    for category, pool in rows:
        trend, name = pool.trend, _name(category, width)
        if trend is None:
            yield f"{name} {pool.margin.n:>4}  {Verdict.INCOMPLETE}"
            continue
        yield (
            f"{name} {trend.n:>4} {trend.slope:>+8.4f} "
            f"{interval(trend.ci_low, trend.ci_high):>18} {trend.p:>8.2g} {trend.p_page:>8.2g}"
        )


def null_table(analysis: Analysis) -> Iterator[str]:
    """The null beside the method: its margin, its gain, the method's advantage over it."""
    cells = [(each, each.null) for each in analysis.cells.values() if each.null is not None]
    if not cells:
        return
    width, ci = width_of(analysis.unsteered), interval_name(analysis)
    yield (
        f"{'random':<{width}} {'alpha':>5} {'n':>4} {'margin':>8} {ci:>18} {'gain':>8} "
        f"{'advantage':>9} {ci:>18} {'p':>8}"
    )
    for figures, null in cells:
        alpha = f"{figures.cell.alpha:g}"
        head = f"{_name(figures.cell.category, width)} {alpha:>5} {null.margin.n:>4}"
        if Verdict.INCOMPLETE in (null.margin.verdict, null.advantage.verdict):
            yield f"{head}  {Verdict.INCOMPLETE}"
            continue
        more = null.advantage
        yield (
            f"{head} {null.margin.mean:>+8.4f} "
            f"{interval(null.margin.ci_low, null.margin.ci_high):>18} "
            f"{null.gain.mean:>+8.4f} {more.mean:>+9.4f} "
            f"{interval(more.ci_low, more.ci_high):>18} {more.p:>8.2g}"
        )
    succeeded = [each for each, null in cells if null.margin.verdict is Verdict.SUCCESS]
    if succeeded:
        yield (
            "A random direction succeeds in "
            f"{', '.join(str(figures.cell) for figures in succeeded)}: there the judge or the "
            "prompts favour the target, whatever is done."
        )


def target_table(analysis: Analysis) -> Iterator[str]:
    """The margins of the target prompts' own images, and the cells' margins as shares of them."""
    if not analysis.targets:
        return
    alphas, width, ci = [*analysis.alphas], width_of(analysis.targets), interval_name(analysis)
    yield (
        f"{'target':<{width}} {'n':>4} {'margin':>8} {ci:>18} {'>0':>5}  reached at alpha"
        + "".join(f" {alpha:>5g}" for alpha in alphas)
    )
    for category, figures in analysis.targets.items():
        own, name = figures.margin, _name(category, width)
        if own.mean != own.mean:
            yield f"{name} {own.n:>4}  {Verdict.INCOMPLETE}"
            continue
        shares = [analysis.cells[Cell(category, alpha)].target_share for alpha in alphas]
        yield (
            f"{name} {own.n:>4} {own.mean:>+8.4f} {interval(own.ci_low, own.ci_high):>18} "
            f"{own.success_rate:>5.0%}  {'':>16}"
            + "".join(f" {'-' if share is None else f'{share:.0%}':>5}" for share in shares)
        )
    yield (
        "target: the target prompts' own images, unsteered: what the model can do at best, and the "
        "cells' margins as shares of it."
    )


def quality_table(quality: Quality) -> Iterator[str]:
    """The metrics beside the margin: of single images by cell, of all images by alpha."""
    measured = {name for of in quality.cells.values() for name in of}
    shown = [metric for metric in quality.metrics if metric.name in measured]
    names = [metric.name for metric in shown]
    if names:
        width = width_of(cell.category for cell in quality.cells)
        yield f"{'quality':<{width}} {'alpha':>5} {'n':>4}" + "".join(
            f"  {printable(metric.column):>21}" for metric in shown
        )
        for cell, found in quality.cells.items():
            n = max(of.n for of in found.values())
            yield f"{_name(cell.category, width)} {cell.alpha:>5g} {n:>4}" + "".join(
                f"  {_mean_and_interval(found[name]):>21}" for name in names
            )
        explained = [_EXPLAINED[name] for name in names if name in _EXPLAINED]
        if explained:
            yield " ".join(explained)
        kept = [metric.column for metric in shown if metric.name in _KEPT]
        if kept:
            yield f"{', '.join(kept)}: what is left of the image at alpha 0."
        yield from _absent_lines(quality, Input.FEATURES)
        yield from _absent_lines(quality, Input.LPIPS)
    if quality.alphas:
        heads = [score.name for score in next(iter(quality.alphas.values())).values()]
        yield ""
        yield f"{'all images':<10} {'alpha':>5} {'n':>4}" + "".join(f"  {n:>21}" for n in heads)
        for alpha, scores in quality.alphas.items():
            n = max(score.n for score in scores.values())
            yield f"{'':<10} {alpha:>5g} {n:>4}" + "".join(
                f"  {score.value:>21.4g}" for score in scores.values()
            )
    elif names:
        yield from _absent_lines(quality, Input.REFERENCES)
    if quality.alphas and not isinstance(quality.references, Absent):
        yield f"Distance from {len(quality.references.features)} {quality.references.name}."


#: What some columns mean, and the columns that compare an image with the unsteered one.
_EXPLAINED = {
    "clip_score": "CLIPScore: to the target prompt.",
    "directional_similarity": "direction: did the image move as the prompt did?",
}
_KEPT = ("psnr", "ssim", "lpips")


def _absent_lines(quality: Quality, needed: Input) -> Iterator[str]:
    """The metrics that are not measured because the run lacks this input, with the reason."""
    absent = {
        Input.LPIPS: quality.lpips, Input.REFERENCES: quality.references,
        Input.FEATURES: quality.features,
    }[needed]  # fmt: skip
    labels = [
        printable(metric.label) for metric in quality.metrics
        if needed in metric.inputs and (metric.per is Per.SET) == (needed is Input.REFERENCES)
    ]  # fmt: skip
    if labels and isinstance(absent, Absent):
        names = " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
        why = f"{names} {'are' if len(labels) > 1 else 'is'} not measured: {absent.reason}"
        yield from textwrap.wrap(why, LINE, break_on_hyphens=False, break_long_words=False)


def _mean_and_interval(figures: Mean) -> str:
    if figures.mean != figures.mean:
        return "-"
    digits = 1 if abs(figures.mean) >= 10 else 2
    low, high = figures.ci_low, figures.ci_high
    if low != low:
        return f"{figures.mean:.{digits}f}"
    return f"{figures.mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


class PublishedOverall(TypedDict):
    """The published study's figures of all cells; ``success_rate`` 0..1."""

    mean: float
    ci_low: float
    ci_high: float
    p: float
    success_rate: float
    n_items: int


class PublishedCell(TypedDict):
    """The published figures of a category at alpha 1; None where the study has none."""

    category: int
    finding: str | None
    mean: float | None
    success_rate: float | None
    success_rate_range: tuple[float, float] | None


class Published(TypedDict):
    """The published study, as in ``baselines/ssd-1b-published.json``."""

    overall: PublishedOverall
    cells: list[PublishedCell]


def published_lines(published: Published, own: Pool) -> Iterator[str]:
    """The published study's overall figures beside a run's."""
    theirs = published["overall"]
    yield (
        f"published  mean margin {theirs['mean']:+.5f}, 95% CI "
        f"[{theirs['ci_low']:+.5f}, {theirs['ci_high']:+.5f}], p {theirs['p']:.2g}, success rate "
        f"{theirs['success_rate']:.1%}, {theirs['n_items']} items taken for independent"
    )
    if own.items is not None:
        mine = own.margin
        yield (
            f"this run   mean margin {mine.mean:+.5f}, 95% CI "
            f"[{own.items.ci_low:+.5f}, {own.items.ci_high:+.5f}], p {own.items.p:.2g}, success "
            f"rate {mine.success_rate:.1%}, {own.items.n} items taken for independent"
        )
    yield (
        "published, at alpha 1.0, by category, which the study numbers and does not name: "
        + "; ".join(f"{cell['category']}: {_finding(cell)}" for cell in published["cells"])
    )


def _finding(cell: PublishedCell) -> str:
    """The published figures of a cell, as far as they exist."""
    said = []
    if cell["finding"] is not None:
        said.append(cell["finding"])
    if cell["mean"] is not None:
        said.append(f"mean {cell['mean']:+.4f}")
    if cell["success_rate"] is not None:
        said.append(f"success {cell['success_rate']:.0%}")
    elif cell["success_rate_range"] is not None:
        low, high = cell["success_rate_range"]
        said.append(f"success {low:.0%} to {high:.0%}")
    return ", ".join(said)


def width_of(names: Iterable[str], least: int = _NARROW) -> int:
    """The width of a table's first column for these names."""
    widest = max((display_width(printable(name)) for name in names), default=0)
    return min(max(widest, least), _WIDE)


def _name(name: str, width: int) -> str:
    """A name shortened or padded to ``width`` columns."""
    return padded(shortened(printable(name), width), width)


def _pool_row(name: str, alpha: str, pool: Pool) -> str:
    verdict = str(pool.margin.verdict)
    if pool.margin.n_needed is not None and pool.margin.verdict is Verdict.INCONCLUSIVE:
        verdict += f" ({pool.margin.n_needed:,} pairs would decide)"
    return _row(name, alpha, pool.margin, pool.gain, None, verdict)


def _row(
    name: str,
    alpha: str,
    margin: Estimate,
    gain: Estimate | None,
    share: float | None,
    verdict: str,
) -> str:
    """A line of the verdict table; ``share``: of the ceiling."""
    head = f"{name} {alpha:>5} {margin.n:>4}"
    if margin.mean != margin.mean:
        return f"{head} {'':>80}  {verdict}"
    if gain is None or gain.mean != gain.mean:
        gained = f"{'':>8} {'':>18}"
    else:
        gained = f"{gain.mean:>+8.4f} {interval(gain.ci_low, gain.ci_high):>18}"
    reached = "" if share is None else f"{share:.0%}"
    return (
        f"{head} {margin.mean:>+8.4f} {interval(margin.ci_low, margin.ci_high):>18} "
        f"{margin.p:>8.2g} {margin.success_rate:>5.0%} {gained} {reached:>7}  {verdict}"
    )


def interval(low: float, high: float) -> str:
    """An interval as text."""
    return f"[{low:+.4f}, {high:+.4f}]"
