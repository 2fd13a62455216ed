"""The writer ``md``: the verdicts as a Markdown table, for a pull request or a job's summary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from analogy.core.files import write_output
from analogy.core.records import Estimate, Verdict
from analogy.core.text import printable
from analogy.report.answer import answer
from analogy.report.looks import is_sequential, saved_facts, seeds_said
from analogy.report.numbers import confidence, interval, p_value, signed, verdict_name, words
from analogy.results.model import CellFigures, Results, Stop
from analogy.writers import Context

if TYPE_CHECKING:
    from analogy.results.comparison import Comparison

_HEAD = ("category", "alpha", "pairs", "margin", "95% CI", "p (Holm)", "gain", "verdict")
_RULE = ("---", "--:", "--:", "--:", ":-:", "--:", "--:", "---")

_LOOK_HEAD = (
    "category", "alpha", "look", "pairs", "seeds", "margin", "interval", "p (sequential)",
    "p (Holm)", "gain", "verdict",
)  # fmt: skip
_LOOK_RULE = (
    "---", "--:", "--:", "--:", "--:", "--:", ":-:", "--:", "--:", "--:", "---",
)  # fmt: skip


class VerdictsMarkdown:
    """Writes the answer, what was measured, and a row for each cell and for the whole."""

    suffixes = (".md",)

    def write(self, results: Results, path: Path, context: Context) -> None:
        """Write the table, and the outcomes of the comparison if there is one."""
        lines = list(_lines(results, context.comparison))
        write_output(path, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))


def _lines(results: Results, comparison: Comparison | None) -> Iterator[str]:
    header = results.header
    yield f"**{answer(results)}**"
    yield ""
    subject = header.subject
    yield (
        f"Method {_name(subject.method)}, model {_name(subject.model)}, judge "
        f"{_name(header.measurement.judge)}, {seeds_said(results)}."
    )
    for said in saved_facts(results):
        yield ""
        yield said
    yield ""
    yield from _look_rows(results) if is_sequential(results) else _rows(results)
    if results.unknown:
        yield ""
        yield f"\\*: with words that are not known: {', '.join(map(_name, results.unknown_words))}."
    if comparison is not None:
        yield ""
        yield f"Against the baseline {_name(comparison.old)}: {comparison.conclusion}."


def _rows(results: Results) -> Iterator[str]:
    analysis = results.analysis
    yield _row(*_HEAD)
    yield _row(*_RULE)
    for figures in analysis.cells.values():
        cell = figures.cell
        yield _row(
            _name(cell.category), f"{cell.alpha:g}",
            *_figures(figures.margin, p_value(figures.p_holm), figures.gain),
            _verdict(figures) + _mark(results, figures),
        )  # fmt: skip
    whole = analysis.overall
    yield _row(
        "**overall**", "all", *_figures(whole.margin, "", whole.gain),
        f"**{words(verdict_name(whole.margin.verdict))}**",
    )  # fmt: skip


def _look_rows(results: Results) -> Iterator[str]:
    """The rows of a sequential run, each with its look and its interval's confidence."""
    analysis = results.analysis
    yield _row(*_LOOK_HEAD)
    yield _row(*_LOOK_RULE)
    for figures in analysis.cells.values():
        stop = figures.stop
        verdict = _verdict(figures)
        if stop is not None and stop.is_early:
            verdict = f"{verdict}, stopped early"
        verdict += _mark(results, figures)
        yield _row(
            _name(figures.cell.category), f"{figures.cell.alpha:g}",
            *_looked(figures.margin, stop, p_value(figures.p_holm), figures.gain), verdict,
        )  # fmt: skip
    whole = analysis.overall
    yield _row(
        "**overall**", "all", *_looked(whole.margin, whole.stop, "", whole.gain),
        f"**{words(verdict_name(whole.margin.verdict))}**",
    )  # fmt: skip


def _looked(margin: Estimate, stop: Stop | None, p: str, gain: Estimate | None) -> tuple[str, ...]:
    pairs, mean, ends, _, moved = _figures(margin, p, gain)
    if stop is None:
        return "", pairs, "", mean, ends, "", p, moved
    p_seq = p_value(stop.p_seq) if stop.p_seq == stop.p_seq else ""
    return (
        f"{stop.look} of {stop.looks}", pairs, str(stop.seeds), mean,
        f"{confidence(stop)} {ends}", p_seq, p, moved,
    )  # fmt: skip


def _figures(margin: Estimate, p: str, gain: Estimate | None) -> tuple[str, ...]:
    moved = None if gain is None else gain.mean
    return str(margin.n), signed(margin.mean, 4), interval(margin, 4), p, signed(moved, 4)


def _verdict(of: CellFigures) -> str:
    said = words(verdict_name(of.margin.verdict))
    is_lost = of.margin.verdict is Verdict.SUCCESS and not of.survives and of.p_holm == of.p_holm
    return f"{said} (not after Holm)" if is_lost else said


def _mark(results: Results, figures: CellFigures) -> str:
    return results.mark(figures).replace("*", "\\*")


def _row(*entries: str) -> str:
    return f"| {' | '.join(entries)} |"


def _name(name: str) -> str:
    """A name as code, in which links, mentions and markup have no effect: results may come from
    anyone.
    """
    return f"`{printable(name).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


writer = VerdictsMarkdown()
