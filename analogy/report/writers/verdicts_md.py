"""The writer ``md``: the verdicts as a Markdown table, for a pull request or a job's summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from analogy.core.files import write_output
from analogy.core.records import Estimate, Verdict
from analogy.core.text import printable
from analogy.report.answer import answer
from analogy.report.numbers import counted, interval, p_value, signed, verdict_name, words
from analogy.results.model import CellFigures, Results
from analogy.writers import Context

if TYPE_CHECKING:
    from analogy.results.comparison import Comparison

_HEAD = ("category", "alpha", "pairs", "margin", "95% CI", "p (Holm)", "gain", "verdict")
_RULE = ("---", "--:", "--:", "--:", ":-:", "--:", "--:", "---")


class VerdictsMarkdown:
    """Writes the answer, what was measured, and a row for each cell and for the whole."""

    suffixes = (".md",)

    def write(self, results: Results, path: Path, context: Context) -> None:
        """Write the table, and the outcomes of the comparison if there is one."""
        lines = list(_lines(results, context.comparison))
        write_output(path, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))


def _lines(results: Results, comparison: Comparison | None) -> Iterator[str]:
    header, analysis = results.header, results.analysis
    yield f"**{answer(results)}**"
    yield ""
    subject = header.subject
    yield (
        f"Method {_name(subject.method)}, model {_name(subject.model)}, judge "
        f"{_name(header.measurement.judge)}, {counted(len(header.measurement.seeds), 'seed')}."
    )
    yield ""
    yield _row(*_HEAD)
    yield _row(*_RULE)
    for figures in analysis.cells.values():
        cell = figures.cell
        yield _row(
            _name(cell.category), f"{cell.alpha:g}",
            *_figures(figures.margin, p_value(figures.p_holm), figures.gain), _verdict(figures),
        )  # fmt: skip
    whole = analysis.overall
    yield _row(
        "**overall**", "all", *_figures(whole.margin, "", whole.gain),
        f"**{words(verdict_name(whole.margin.verdict))}**",
    )  # fmt: skip
    if comparison is not None:
        counts = Counter(change.outcome for change in comparison.changes)
        outcomes = (f"{count} {words(outcome)}" for outcome, count in counts.most_common())
        yield ""
        yield f"Against the baseline {_name(comparison.old)}: {', '.join(outcomes)}."


def _figures(margin: Estimate, p: str, gain: Estimate | None) -> tuple[str, ...]:
    moved = None if gain is None else gain.mean
    return str(margin.n), signed(margin.mean, 4), interval(margin, 4), p, signed(moved, 4)


def _verdict(of: CellFigures) -> str:
    said = words(verdict_name(of.margin.verdict))
    is_lost = of.margin.verdict is Verdict.SUCCESS and not of.survives and of.p_holm == of.p_holm
    return f"{said} (not after Holm)" if is_lost else said


def _row(*entries: str) -> str:
    return f"| {' | '.join(entries)} |"


def _name(name: str) -> str:
    """A name as code: results may be a stranger's, and code holds no link, mention or markup."""
    return f"`{printable(name).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


writer = VerdictsMarkdown()
