"""Two results compared: cell by cell, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analogy.core.errors import AnalogyError, ExitCode
from analogy.core.fields import TOLERANCE
from analogy.core.records import SIGNIFICANCE, Cell, Verdict
from analogy.core.records import Outcome as Outcome
from analogy.results.changes import Change as Change
from analogy.results.changes import Comparison as Comparison
from analogy.results.changes import concluded as concluded
from analogy.results.changes import fell, outcome_of, undecided
from analogy.results.comparison_looks import compare_common
from analogy.results.differences import (
    SettingDifference,
    measurement_differences,
    subject_differences,
)
from analogy.results.model import CellFigures, Header, Results
from analogy.statistics.bootstrap import bootstrap_ci


class NotComparableError(AnalogyError, ValueError):
    """Two results are of different measurements, in these ``differences``."""

    exit_code = ExitCode.NOT_COMPARABLE

    def __init__(self, old: str, new: str, differences: Sequence[SettingDifference]) -> None:
        self.old, self.new = old, new
        self.differences = list(differences)
        super().__init__(
            f"{new} cannot be compared with {old}: expected the same measurement, got "
            f"{'; '.join(map(str, self.differences))}; repeat the run with the baseline's "
            "settings, or name another baseline"
        )


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: a cell, or several cells pooled (``cell`` None).

    ``verdict``: None if it is not recorded, which only happens for a pool. ``n``: the number of
    pairs, with or without an item. ``items``: pair id to margin; only complete ones of an
    incomplete cell.
    """

    cell: Cell | None
    verdict: Verdict | None
    n: int
    items: Mapping[str, float]

    @classmethod
    def of(cls, figures: CellFigures) -> Side:
        """One cell of results."""
        return cls(figures.cell, figures.margin.verdict, figures.margin.n, figures.items)


def n_comparisons(new: Header) -> int:
    """The number of comparisons of a run: one for each cell, and one for all of them together."""
    return len(new.categories) * len(new.measurement.alphas) + 1


def simultaneous_confidence(comparisons: int) -> float:
    """The confidence of each interval at which all of them hold together with 95% (Bonferroni)."""
    if comparisons < 1:
        raise ValueError(f"comparisons: expected 1 or more, got {comparisons}")
    return 1.0 - SIGNIFICANCE / comparisons


def check_tolerance(tolerance: float) -> float:
    """Returns the tolerance. Raises ``ValueError`` if it is not a finite number >= 0."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance: expected a finite number >= 0, got {tolerance}")
    return tolerance


def compare_items(
    old: Side,
    new: Side,
    *,
    tolerance: float = TOLERANCE,
    comparisons: int,
    n_resamples: int | None = None,
) -> Change:
    """One cell against its baseline, paired by pair id.

    ``comparisons``: the number of comparisons of the run, the overall one included; all their
    intervals hold together with 95%. ``n_resamples``: by default 10,000, or more if fewer than 10
    would lie beyond either end of the interval. A pair that either side lacks makes the cell
    incomplete.
    """
    check_tolerance(tolerance)
    confidence = simultaneous_confidence(comparisons)
    is_paired = (
        Verdict.INCOMPLETE not in (old.verdict, new.verdict)
        and old.items.keys() == new.items.keys()
    )
    before = after = difference = low = high = math.nan
    if is_paired:
        pairs = sorted(old.items)
        olds = np.array([old.items[pair] for pair in pairs])
        news = np.array([new.items[pair] for pair in pairs])
        before, after = float(olds.mean()), float(news.mean())
        difference = float((news - olds).mean())
        low, high = bootstrap_ci(
            news - olds,
            confidence=confidence,
            n_resamples=n_resamples or max(10_000, math.ceil(20 / (1 - confidence))),
        )
    n = min(old.n, new.n)
    is_blind = Verdict.BLIND in (old.verdict, new.verdict)
    outcome = undecided(n, is_missing=not is_paired, is_blind=is_blind) or outcome_of(
        low, high, tolerance=tolerance, has_fallen=fell(old.verdict, new.verdict)
    )
    category, alpha = old.cell or (None, None)
    return Change(
        category=category,
        alpha=alpha,
        n=n,
        old=before,
        new=after,
        difference=difference,
        ci_low=low,
        ci_high=high,
        confidence=confidence,
        tolerance=tolerance,
        old_verdict=old.verdict,
        new_verdict=new.verdict,
        outcome=outcome,
    )


def compare_cell(
    old: Results,
    new: CellFigures,
    *,
    tolerance: float = TOLERANCE,
    comparisons: int,
    n_resamples: int | None = None,
) -> Change:
    """A cell of a comparable run against the baseline's.

    If one of them is of a sequential run, they are compared on the pairs and seeds of both.
    """
    before = old.analysis.cells[new.cell]
    if before.stop is not None or new.stop is not None:
        return compare_common([(before, new)], tolerance=tolerance, comparisons=comparisons)
    return compare_items(
        Side.of(before),
        Side.of(new),
        tolerance=tolerance,
        comparisons=comparisons,
        n_resamples=n_resamples,
    )


def compare_overall(
    old: Results, new: Results, *, tolerance: float = TOLERANCE, n_resamples: int | None = None
) -> Change:
    """All of a comparable run against the same categories of the baseline, over pairs."""
    # The baseline's overall verdict holds for all its categories together, not for a part of them.
    categories = new.header.categories
    is_whole = len(categories) == len(old.header.categories)
    both = [
        (old.analysis.cells[cell], figures)
        for cell, figures in new.analysis.cells.items()
        if cell in old.analysis.cells
    ]
    if any(one.stop is not None for two in both for one in two):
        verdicts = [side.analysis.overall.margin.verdict for side in (old, new)]
        return replace(
            compare_common(both, tolerance=tolerance, comparisons=n_comparisons(new.header)),
            category=None, alpha=None, old_verdict=verdicts[0] if is_whole else None,
            new_verdict=verdicts[1],
        )  # fmt: skip
    before, now = (
        _pooled(side, categories, side.analysis.overall.margin.verdict if is_whole else None)
        for side in (old, new)
    )
    return compare_items(
        before,
        now,
        tolerance=tolerance,
        comparisons=n_comparisons(new.header),
        n_resamples=n_resamples,
    )


def compare(
    old: Results,
    new: Results,
    *,
    tolerance: float = TOLERANCE,
    known: Mapping[Cell | None, Change] | None = None,
) -> Comparison:
    """Results against a baseline. Raises :class:`NotComparableError` for another measurement.

    ``known``: changes already computed during the run, of a cell or of all together (None).
    """
    check_tolerance(tolerance)
    different = measurement_differences(old.header, new.header)
    if different:
        raise NotComparableError(_name(old), _name(new), different)
    comparisons, known = n_comparisons(new.header), known or {}
    changes = [
        known.get(cell.cell)
        or compare_cell(old, cell, tolerance=tolerance, comparisons=comparisons)
        for cell in new.analysis.cells.values()
    ]
    overall = known.get(None) or compare_overall(old, new, tolerance=tolerance)
    throughput, note = _throughput(old, new)
    return Comparison(
        old=_name(old),
        new=_name(new),
        tolerance=tolerance,
        changes=tuple(changes),
        overall=overall,
        subject_differences=tuple(subject_differences(old.header, new.header)),
        categories=new.header.categories,
        n_categories=len(old.header.categories),
        throughput=throughput,
        throughput_note=note,
    )


def _pooled(results: Results, categories: Sequence[str], verdict: Verdict | None) -> Side:
    """Some categories together: each pair's mean over the alphas."""
    cells = [of for cell, of in results.analysis.cells.items() if cell.category in categories]
    first = results.header.measurement.alphas[0]
    n = sum(results.analysis.cells[Cell(name, first)].margin.n for name in categories)
    if any(cell.margin.verdict is Verdict.INCOMPLETE for cell in cells):
        return Side(None, Verdict.INCOMPLETE, n, {})
    margins: dict[str, list[float]] = {}
    for cell in cells:
        for pair, margin in cell.items.items():
            margins.setdefault(pair, []).append(margin)
    items = {pair: math.fsum(values) / len(values) for pair, values in margins.items()}
    return Side(None, verdict, n, items)


def _throughput(old: Results, new: Results) -> tuple[dict[str, float], str]:
    """New over old images/s by stage, and why there is no ratio if there is none."""
    before, now = old.header.provenance.machine, new.header.provenance.machine
    if before != now:
        names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        return {}, f"not compared: another machine ({', '.join(names)})"
    ratios = {}
    for stage, was, rate in (
        ("generate", old.throughput.generate, new.throughput.generate),
        ("score", old.throughput.score, new.throughput.score),
    ):
        if was is not None and rate is not None:
            ratios[stage] = rate / was
    return ratios, "" if ratios else "not compared: not timed on both sides"


def _name(results: Results) -> str:
    return "this run" if results.header.path is None else str(results.header.path)
