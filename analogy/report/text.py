"""A run's figures as lines of text, for terminals and logs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

from analogy.core.records import Cell, Estimate, Verdict
from analogy.core.text import display_width, padded, printable, shortened
from analogy.report.text_sequential import confidence, is_sequential, look
from analogy.results.answer import answer_of
from analogy.results.model import Analysis, CellFigures, Pool, Stop
from analogy.statistics.values import ENOUGH_PAIRS

if TYPE_CHECKING:
    from analogy.store.grid import Job

_NARROW, _WIDE = 10, 32
"""The smallest and largest width of a table's first column; longer names are shortened."""

WIDTH = 80
"""The width that tables fit unless ``wide`` is set, if no name is longer than 8."""

_LEAST = 8
"""The smallest width of the first column in a table that fits `WIDTH`."""

_BETWEEN = 49
"""The width between the category and the verdict in a verdict table that fits `WIDTH`."""


def _head(ci: str, wide: bool) -> str:
    """The head of the verdict table after its first column; ``ci``: the intervals' name."""
    if wide:
        return (
            f"{'alpha':>5} {'n':>4} {'margin':>8} {ci:>18} {'p':>8} {'>0':>5} "
            f"{'gain':>8} {ci:>18} {'ceiling':>7}  verdict"
        )
    return f"{'alpha':>5} {'n':>4} {'margin':>6} {ci:>16} {'>0':>4} {'gain':>6}  verdict"


def interval_name(analysis: Analysis) -> str:
    """The name of a table's intervals. In a sequential run their confidence differs by row."""
    return "look's CI" if is_sequential(analysis) else "95% CI"


def figures_line(figures: Estimate, stop: Stop | None = None) -> str:
    """An estimate in one line. ``stop``: its look, in a sequential run."""
    return (
        f"mean margin {figures.mean:+.4f}, {confidence(stop)} CI "
        f"{interval(figures.ci_low, figures.ci_high)}, "
        f"p {figures.p:.3g}, success rate {figures.success_rate:.0%}, n {figures.n}"
    )


def verdict_table(
    analysis: Analysis,
    known: Collection[Cell] = (),
    *,
    wide: bool = False,
    marked: Collection[str] = (),
) -> Iterator[str]:
    """Category x alpha, alpha 0 first, then each alpha over all categories, then the overall row.

    ``known``: cells that do not succeed in the baseline; ``wide``: print all columns,
    otherwise the table fits `WIDTH`; ``marked``: categories whose verdicts get a ``*``, which the
    caller explains. With any of these all pools are marked, too.
    """
    star = dict.fromkeys(marked, " *")
    verdicts = {
        cell: verdict_words(figures, cell in known, wide=wide) + star.get(cell.category, "")
        for cell, figures in analysis.cells.items()
    }
    pools = [
        *(("all", f"{alpha:g}", pool) for alpha, pool in analysis.alphas.items()),
        ("overall", "all", analysis.overall),
    ]
    said = [_pool_verdict(pool, wide=wide) + (" *" if marked else "") for *_, pool in pools]
    head, longest = _head(interval_name(analysis), wide), max(map(len, [*verdicts.values(), *said]))
    width = first_column(analysis.unsteered, _NARROW if wide else _LEAST)
    if not wide:
        width = min(width, max(WIDTH - _BETWEEN - longest, _LEAST))
    rule = "-" * (width + 1 + len(head) - len("verdict") + longest)
    yield f"{'category':<{width}} {head}"
    yield rule
    for category, unsteered in analysis.unsteered.items():
        name = fitted(category, width)
        yield _row(name, "0", unsteered.margin, None, unsteered.share, "unsteered", wide)
        for cell, figures in analysis.cells.items():
            if cell.category == category:
                yield _row(
                    name, f"{cell.alpha:g}", figures.margin, figures.gain, figures.share,
                    verdicts[cell], wide,
                )  # fmt: skip
    yield rule
    for (name, alpha, pool), verdict in zip(pools, said, strict=True):
        yield _row(fitted(name, width), alpha, pool.margin, pool.gain, None, verdict, wide)


def verdict_words(figures: CellFigures, is_known: bool = False, *, wide: bool = True) -> str:
    """A cell's verdict with its notes: Holm's correction, pairs needed, the look, the baseline.

    Without ``wide``, only the first note, shortened.
    """
    notes = []
    verdict = figures.margin.verdict
    if verdict is Verdict.SUCCESS and not figures.survives and figures.p_holm == figures.p_holm:
        notes.append("not after Holm" if wide else "not by Holm")
    if wide and is_needed_known(figures.margin):
        notes.append(f"{figures.margin.n_needed:,} pairs would decide")
    if wide and figures.stop is not None:
        notes.append(look(figures.stop))
    if is_known:
        better = verdict is Verdict.SUCCESS
        notes.append(("better than its baseline" if wide else "better") if better else "known")
    shown = notes if wide else notes[:1]
    return f"{verdict} ({'; '.join(shown)})" if shown else str(verdict)


def is_needed_known(margin: Estimate) -> bool:
    """Whether the number of pairs that would decide is reliable enough to show: for an inconclusive
    figure with `ENOUGH_PAIRS` pairs or more.
    """
    return (
        margin.verdict is Verdict.INCONCLUSIVE
        and margin.n_needed is not None
        and margin.n >= ENOUGH_PAIRS
    )


def needed_lines(analysis: Analysis) -> Iterator[str]:
    """The numbers of pairs that would decide the inconclusive cells, for below a narrow table."""
    needed = [
        f"{cell.category} at {cell.alpha:g}: {figures.margin.n_needed:,}"
        for cell, figures in analysis.cells.items()
        if is_needed_known(figures.margin)
    ]
    if needed:
        yield from wrapped(
            f"Pairs that would decide, if mean and spread are as found: {'; '.join(needed)}."
        )


def wrapped(text: str, width: int = WIDTH, *, indent: str = "") -> list[str]:
    """Lines of at most ``width`` columns, each after ``indent``; a longer word, such as a path, is
    not cut. No lines of an empty text.
    """
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent,
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def labelled(label: str, text: str) -> list[str]:
    """A label of at most 9 letters, and the text beside it in lines that fit `WIDTH`."""
    lines = wrapped(text, WIDTH - 10) or [""]
    return [beside("" if i else label, line).rstrip() for i, line in enumerate(lines)]


def beside(label: str, text: str) -> str:
    """A label of at most 9 letters and the text beside it, on one line of any length."""
    return f"{label:<9} {text}"


def failed_images(count: int) -> str:
    """``1 failed image``, ``2 failed images``."""
    return f"{count} failed {'image' if count == 1 else 'images'}"


def failure_lines(failures: Sequence[tuple[Job, str]]) -> Iterator[str]:
    """The failed images, counted by cell and reason."""
    if not failures:
        return
    yield from wrapped(
        f"{failed_images(len(failures))}; not scored, items incomplete. The same command tries "
        "again; --dtype float32 or bfloat16 may help."
    )
    counts = Counter((Cell(job.pair.category, job.alpha), reason) for job, reason in failures)
    for (cell, reason), count in counts.items():
        yield f"  {cell}: {count} ({reason})"


def reading_notes(analysis: Analysis, *, wide: bool = False) -> Iterator[str]:
    """Lines on the meaning of the table's columns, and on conclusions from several cells."""
    if not wide:
        yield from needed_lines(analysis)
    yield "margin: are the images closer to the target than to the source? (the verdict)"
    yield "gain: what did steering itself do? margin(alpha) - margin(0), pair by pair."
    if wide and any(figures.ceiling is not None for figures in analysis.unsteered.values()):
        yield "ceiling: the margin as a share of what drawings of the true target score."
    tested = [f for f in analysis.cells.values() if f.p_holm == f.p_holm]
    if tested:
        n_success = sum(f.margin.verdict is Verdict.SUCCESS for f in tested)
        yield (
            f"{n_success} of {len(tested)} cells succeed; "
            f"{sum(f.survives for f in tested)} after Holm's correction for {len(tested)} tests."
        )
    if analysis.blind:
        yield from wrapped(
            f"The judge does not see the true change in: {', '.join(analysis.blind)}. "
            "Nothing is said about the method there."
        )
    naive = analysis.overall.items
    if naive is not None:
        yield from wrapped(
            f"Items taken for independent, as the published study did: 95% CI "
            f"{interval(naive.ci_low, naive.ci_high)}, p {naive.p:.2g} over {naive.n} items."
        )


def answer_lines(analysis: Analysis, unknown: Iterable[str] = ()) -> Iterator[str]:
    """The published protocol's pool, notes on the answer's limits, and last the answer.

    ``unknown``: words of the pairs that the embedded model or judge was not trained on.
    """
    margin, found = analysis.overall.margin, answer_of(analysis, unknown)
    figures = "" if margin.mean != margin.mean else f", mean margin {margin.mean:+.4f}"
    yield f"pool      {found.pool}{figures} (published protocol: all strengths)"
    for note in found.notes():
        yield from labelled("note", note)
    yield f"answer    {found.text}"


def trend_table(analysis: Analysis) -> Iterator[str]:
    """Dose and response per category: the margin's slope on alpha."""
    rows: list[tuple[str, Pool]] = [*analysis.categories.items(), ("overall", analysis.overall)]
    if all(pool.trend is None for _, pool in rows):
        return
    width = first_column(analysis.categories, 13)
    ci = interval_name(analysis)
    yield f"{'dose-response':<{width}} {'n':>4} {'slope':>8} {ci:>18} {'p':>8} {'Page p':>8}"
    for category, pool in rows:
        trend, name = pool.trend, fitted(category, width)
        if trend is None:
            yield f"{name} {pool.margin.n:>4}  {Verdict.INCOMPLETE}"
            continue
        yield (
            f"{name} {trend.n:>4} {trend.slope:>+8.4f} "
            f"{interval(trend.ci_low, trend.ci_high):>18} {trend.p:>8.2g} {trend.p_page:>8.2g}"
        )


def null_table(analysis: Analysis, *, wide: bool = False) -> Iterator[str]:
    """The null's margin and gain, and the method's advantage over it."""
    cells = [(each, each.null) for each in analysis.cells.values() if each.null is not None]
    if not cells:
        return
    ci = interval_name(analysis)
    width = first_column(analysis.unsteered, _NARROW if wide else _LEAST)
    of_margin, of_more = (f" {ci:>18}", f" {ci:>18} {'p':>8}") if wide else ("", f" {ci:>18}")
    yield (
        f"{'random':<{width}} {'alpha':>5} {'n':>4} {'margin':>8}{of_margin} {'gain':>8} "
        f"{'advantage':>9}{of_more}"
    )
    for figures, null in cells:
        alpha = f"{figures.cell.alpha:g}"
        head = f"{fitted(figures.cell.category, width)} {alpha:>5} {null.margin.n:>4}"
        if Verdict.INCOMPLETE in (null.margin.verdict, null.advantage.verdict):
            yield f"{head}  {Verdict.INCOMPLETE}"
            continue
        more, own = null.advantage, null.margin
        row = f"{head} {own.mean:>+8.4f}"
        row += f" {interval(own.ci_low, own.ci_high):>18}" if wide else ""
        row += f" {null.gain.mean:>+8.4f} {more.mean:>+9.4f}"
        row += f" {interval(more.ci_low, more.ci_high):>18}"
        yield row + (f" {more.p:>8.2g}" if wide else "")
    succeeded = [each for each, null in cells if null.margin.verdict is Verdict.SUCCESS]
    if succeeded:
        yield from wrapped(
            "A random direction succeeds in "
            f"{', '.join(str(figures.cell) for figures in succeeded)}: there the judge or the "
            "prompts favour the target, whatever is done."
        )


def target_table(analysis: Analysis) -> Iterator[str]:
    """The margins of the target prompts' own images, and the cells' margins as shares of them."""
    if not analysis.targets:
        return
    alphas, width, ci = [*analysis.alphas], first_column(analysis.targets), interval_name(analysis)
    yield (
        f"{'target':<{width}} {'n':>4} {'margin':>8} {ci:>18} {'>0':>5}  reached at"
        + "".join(f" {alpha:>5g}" for alpha in alphas)
    )
    for category, figures in analysis.targets.items():
        own, name = figures.margin, fitted(category, width)
        if own.mean != own.mean:
            yield f"{name} {own.n:>4}  {Verdict.INCOMPLETE}"
            continue
        shares = [analysis.cells[Cell(category, alpha)].target_share for alpha in alphas]
        yield (
            f"{name} {own.n:>4} {own.mean:>+8.4f} {interval(own.ci_low, own.ci_high):>18} "
            f"{own.success_rate:>5.0%}  {'':>10}"
            + "".join(f" {'-' if share is None else f'{share:.0%}':>5}" for share in shares)
        )
    yield "target: the target prompts' own images, what the model can do at best, and the"
    yield "cells' margins as shares of it, by alpha."


class PublishedOverall(TypedDict):
    """The published study's figures over all cells; ``success_rate``: 0..1."""

    mean: float
    ci_low: float
    ci_high: float
    p: float
    success_rate: float
    n_items: int


class PublishedCell(TypedDict):
    """The published figures of a category at alpha 1; None if the study does not report one."""

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


def first_column(names: Iterable[str], least: int = _NARROW) -> int:
    """The width of a table's first column for these names."""
    widest = max((display_width(printable(name)) for name in names), default=0)
    return min(max(widest, least), _WIDE)


def fitted(name: str, width: int) -> str:
    """A name shortened or padded to ``width`` columns."""
    return padded(shortened(printable(name), width), width)


def _pool_verdict(pool: Pool, *, wide: bool) -> str:
    if wide and is_needed_known(pool.margin):
        return f"{pool.margin.verdict} ({pool.margin.n_needed:,} pairs would decide)"
    return str(pool.margin.verdict)


def _row(
    name: str,
    alpha: str,
    margin: Estimate,
    gain: Estimate | None,
    share: float | None,
    verdict: str,
    wide: bool,
) -> str:
    """A line of the verdict table; ``share``: the margin as a share of the ceiling."""
    head = f"{name} {alpha:>5} {margin.n:>4}"
    if margin.mean != margin.mean:
        return f"{head} {'':>{80 if wide else _BETWEEN - 14}}  {verdict}"
    is_lacking = gain is None or gain.mean != gain.mean
    if not wide:
        gained = "" if gain is None or is_lacking else f"{gain.mean:+.3f}"
        return (
            f"{head} {margin.mean:>+6.3f} {interval(margin.ci_low, margin.ci_high, 3):>16} "
            f"{margin.success_rate:>4.0%} {gained:>6}  {verdict}"
        )
    if gain is None or is_lacking:
        gained = f"{'':>8} {'':>18}"
    else:
        gained = f"{gain.mean:>+8.4f} {interval(gain.ci_low, gain.ci_high):>18}"
    reached = "" if share is None else f"{share:.0%}"
    return (
        f"{head} {margin.mean:>+8.4f} {interval(margin.ci_low, margin.ci_high):>18} "
        f"{margin.p:>8.2g} {margin.success_rate:>5.0%} {gained} {reached:>7}  {verdict}"
    )


def interval(low: float, high: float, digits: int = 4) -> str:
    """An interval as text."""
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]"
