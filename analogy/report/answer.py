"""The report's prose: the answer to the suite's question, and what a run supports."""

from __future__ import annotations

from collections import Counter

from analogy.core.records import SIGNIFICANCE, Verdict
from analogy.core.text import listed, short_name
from analogy.report.looks import early_conclusion, is_sequential, saved_facts, seeds_said
from analogy.report.numbers import (
    counted,
    interval,
    interval_name,
    number,
    p_value,
    percent,
    signed,
    verdict_name,
    words,
)
from analogy.results.answer import answer_of
from analogy.results.model import Header, Results

POOL = "published protocol's pool, all categories and strengths together"
"""The pool by which the published study decides. A run's answer does not depend on it."""


def answer(results: Results) -> str:
    """The run's answer (does steering work?), by strength and category, in one line."""
    return answer_of(results.analysis, results.unknown_words).text


def facts(results: Results) -> list[str]:
    """The sentences below the answer, with the figures behind it."""
    said = [*answer_of(results.analysis, results.unknown_words).notes(), _scope(results)]
    analysis = results.analysis
    overall, gain = analysis.overall.margin, analysis.overall.gain
    if number(overall.mean) is not None:
        # The p of a single look is not corrected for the other looks.
        p = "" if is_sequential(results) else f", one-sided p {p_value(overall.p)}"
        said.append(
            f"The {POOL}: {words(verdict_name(overall.verdict))}, mean margin "
            f"{signed(overall.mean)}, {interval_name(analysis.overall.stop)} "
            f"{interval(overall)}{p}; {percent(overall.success_rate)} of "
            f"{counted(overall.n_items, 'item')} lie above 0{_common_look(results)}."
        )
    if gain is not None and number(gain.mean) is not None:
        stop, at = analysis.overall.gain_stop, ""
        if stop is not None:
            at = f", {interval_name(stop)} {interval(gain)}"
        elif not is_sequential(results):
            at = f" {interval(gain)}"
        said.append(
            "Against the unsteered images of the same pairs and seeds (alpha 0), steering moved "
            f"the margin by {signed(gain.mean)}{at}."
        )
    by_alpha = [
        f"{signed(pool.margin.mean)} at alpha {alpha:g} "
        f"({words(verdict_name(pool.margin.verdict))})"
        for alpha, pool in analysis.alphas.items()
    ]
    if len(by_alpha) > 1:
        said.append(f"By strength: {listed(by_alpha)}.")
    said.append(_verdict_counts(results))
    decided = [cell for cell in analysis.cells.values() if number(cell.margin.mean) is not None]
    if len(decided) > 1:
        best = max(decided, key=lambda cell: cell.margin.mean)
        worst = min(decided, key=lambda cell: cell.margin.mean)
        said.append(
            f"Best: {best.cell} ({signed(best.margin.mean)}). "
            f"Worst: {worst.cell} ({signed(worst.margin.mean)})."
        )
    return [*said, *saved_facts(results)]


def _common_look(results: Results) -> str:
    """The look of pooled figures, as part of a sentence; empty if the run is not sequential."""
    stop = results.analysis.overall.stop
    if stop is None:
        return ""
    return (
        f", on the pairs and seeds that all cells have (look {stop.look}, "
        f"{counted(stop.seeds, 'seed')})"
    )


def _scope(results: Results) -> str:
    """A sentence on what was measured, and for how many pairs."""
    header = results.header
    measurement, subject = header.measurement, header.subject
    alphas = listed(f"{alpha:g}" for alpha in measurement.alphas)
    most: dict[str, int] = {}  # cells of a sequential run stop at different numbers of pairs
    for cell, figures in results.analysis.cells.items():
        most[cell.category] = max(most.get(cell.category, 0), figures.margin.n)
    names = header.categories
    of = listed(names) if len(names) <= 10 else f"{len(names)} categories"
    return (
        f"{counted(sum(most.values()), 'pair')} ({of}), steered by the method "
        f"{subject.method} at alpha {alphas}, {seeds_said(results)} each. "
        f"Model: {short_name(subject.model)}. Judge: {short_name(measurement.judge)}."
    )


def _verdict_counts(results: Results) -> str:
    cells = results.analysis.cells.values()
    counts = Counter(verdict_name(cell.margin.verdict) for cell in cells)
    adjusted = [
        cell.margin.verdict is Verdict.SUCCESS and cell.p_holm < SIGNIFICANCE
        for cell in cells
        if number(cell.p_holm) is not None
    ]
    holm = f" After Holm's correction for testing {len(adjusted)}, success in {sum(adjusted)}."
    return (
        f"Of {counted(len(cells), 'cell')} (category and strength): "
        + listed(f"{words(name)} in {count}" for name, count in counts.most_common())
        + "."
        + (holm if adjusted else "")
    )


def may_conclude(results: Results) -> list[str]:
    """The conclusions that the run supports."""
    own = "sequential p" if is_sequential(results) else "own p"
    has_findings = bool(_verdicts(results) & {Verdict.SUCCESS, Verdict.FAILURE})
    said = []
    if _is_embedded(results.header):
        said.append(
            "That the suite works, from prompts to verdicts, and whether a change to the suite "
            "or its libraries changed the figures."
        )
    elif has_findings:
        said.append(
            f"For {results.header.subject.model} with these settings and this judge, and for pairs "
            "like these: what each cell that succeeds or fails says."
        )
    else:
        said.append("Nothing about the method yet: no cell succeeds or fails.")
    if has_findings:
        said.append(
            f"For one cell chosen beforehand its {own} holds; for a claim about several cells, or "
            "about the best of them, Holm's p."
        )
    return said


def may_not_conclude(results: Results) -> list[str]:
    """The conclusions that the run does not support, the more important first."""
    verdicts, limit = _verdicts(results), results.header.measurement.limit
    said = []
    if _is_embedded(results.header):
        said.append(
            "Anything about SSD-1B or another model: these images come from the small model that "
            "is part of the suite, trained on drawings."
        )
    elif results.header.config.text("clip_model") == "embedded":
        said.append(
            "Much about photographs: the judge is the small one that is part of the suite, trained "
            "on drawings."
        )
    if limit is not None:
        first = "first {} of the random order" if is_sequential(results) else "first {}"
        said.append(
            f"What the whole set of pairs says: only the {first.format(limit)} of each category "
            "were measured."
        )
    early = early_conclusion(results)
    if early is not None:
        said.append(early)
    if results.unknown:
        said.append(
            f"Anything about {counted(len(results.unknown), 'pair')} with words that the embedded "
            f"model or judge was not trained on: {', '.join(results.unknown_words)}."
        )
    if Verdict.INCOMPLETE in verdicts:
        said.append("Anything about incomplete cells: images are missing there.")
    if Verdict.BLIND in verdicts:
        said.append("Anything about blind cells: the judge does not see the true change there.")
    if Verdict.INCONCLUSIVE in verdicts:
        said.append(
            "That steering does nothing in an inconclusive cell: the pairs are too few to tell."
        )
    said.append("That people would agree: a margin comes from one judge. Look at the images below.")
    said.append(
        "That the rest of the image was kept: the margin does not measure it. See preservation."
    )
    return said


def _verdicts(results: Results) -> set[Verdict | None]:
    return {cell.margin.verdict for cell in results.analysis.cells.values()}


def _is_embedded(header: Header) -> bool:
    return header.config.model == "embedded"
