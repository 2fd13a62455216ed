"""Two results compared: cell by cell, pair by pair."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from analogy.core.errors import AnalogyError, ExitCode
from analogy.core.fields import TOLERANCE
from analogy.core.records import SIGNIFICANCE, Cell, Figures, Verdict
from analogy.results.model import CellFigures, Header, Measurement, Results
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.statistics.values import MIN_DECISIVE

SAMPLING = ("method", "method_version", "window", "steps", "guidance", "scheduler")
"""What of a subject says how its images are made from its model."""

# Differences below this are rounding of float64 margins: they are on neither side of a limit.
_ROUNDING = 1e-12


class NotComparableError(AnalogyError, ValueError):
    """Two results of different measurements; ``differences`` says in what, in words."""

    exit_code = ExitCode.NOT_COMPARABLE

    def __init__(self, old: str, new: str, differences: Sequence[str]) -> None:
        self.old, self.new = old, new
        self.differences = list(differences)
        super().__init__(
            f"{new} cannot be compared with {old}: expected the same measurement, got "
            f"{'; '.join(self.differences)}; repeat the run with the baseline's settings, or name "
            "another baseline"
        )


class Outcome(StrEnum):
    """What became of a cell. The first rule that holds decides.

    - ``too_few``: fewer than 6 pairs decide nothing;
    - ``incomplete``: images are missing on either side: no pass and no failure;
    - ``regressed``: the interval of the difference lies below -tolerance, or the verdict fell from
      success to failure or inconclusive. The fall alone is the weaker sign: a margin just large
      enough for a success falls in about half of the runs with other seeds (with the same seeds
      and subject, figures are the same);
    - ``improved``: the interval lies above 0;
    - ``equivalent``: the interval lies within -tolerance..tolerance;
    - ``inconclusive``: anything else: the pairs are too few to say. So is every cell of a category
      that the judge does not see (verdict ``blind``): its margin says nothing about the method.
    """

    REGRESSED = "regressed"
    IMPROVED = "improved"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    TOO_FEW = "too_few"
    INCOMPLETE = "incomplete"
    BLIND = "blind"


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared on one side: a cell, or several cells pooled (``cell`` None).

    ``verdict``: None where none is recorded, which only a pool's may be. ``n``: pairs, with and
    without an item. ``items``: pair id to margin; of an incomplete cell those that are complete.
    """

    cell: Cell | None
    verdict: Verdict | None
    n: int
    items: Mapping[str, float]

    @classmethod
    def of(cls, figures: CellFigures) -> Side:
        """One cell of results."""
        return cls(figures.cell, figures.margin.verdict, figures.margin.n, figures.items)


@dataclass(frozen=True, slots=True)
class Change(Figures):
    """One cell, or all together (category and alpha None), against its baseline.

    ``n`` counts pairs. ``old``, ``new``: mean margins; ``difference``: the mean of new - old over
    pairs, with its interval at ``confidence``; NaN where a side is incomplete. ``tolerance``: in
    units of the margin. A verdict is None where none is recorded (the overall one, of some of the
    categories).
    """

    category: str | None
    alpha: float | None
    n: int
    old: float
    new: float
    difference: float
    ci_low: float
    ci_high: float
    confidence: float
    tolerance: float
    old_verdict: Verdict | None
    new_verdict: Verdict | None
    outcome: Outcome

    @property
    def name(self) -> str:
        """The cell in words."""
        if self.category is None or self.alpha is None:
            return "overall"
        return str(Cell(self.category, self.alpha))

    @property
    def fell(self) -> bool:
        """Whether the verdict fell from success to another that decides."""
        return _fell(self.old_verdict, self.new_verdict)

    @property
    def is_decided(self) -> bool:
        """Whether something was compared: neither too few pairs nor missing images."""
        return self.outcome not in (Outcome.TOO_FEW, Outcome.INCOMPLETE)

    def message(self) -> str:
        """The change in one line: what, from where to where, the interval, the limit."""
        if self.outcome is Outcome.TOO_FEW:
            return f"{self.name}: too_few: n {self.n}, and {MIN_DECISIVE} pairs or more decide"
        if self.outcome is Outcome.INCOMPLETE:
            return f"{self.name}: incomplete: of {self.n} pairs, not all images are there"
        text = (
            f"{self.name}: {self.outcome}: margin {self.old:+.4f} -> {self.new:+.4f}, "
            f"difference {self.difference:+.4f}, {100 * self.confidence:.4g}% CI "
            f"[{self.ci_low:+.4f}, {self.ci_high:+.4f}], limit {-self.tolerance:+g}, n {self.n}"
        )
        if self.fell:
            text += f"; the verdict fell from {self.old_verdict} to {self.new_verdict}"
        return text


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results against a baseline of the same measurement.

    ``categories`` are those compared, of ``n_categories`` in the baseline. ``throughput``: new
    over old images/s by stage, empty where it may not be compared, and then ``throughput_note``
    says why.
    """

    old: str
    new: str
    tolerance: float
    changes: tuple[Change, ...]
    overall: Change
    subject_differences: tuple[str, ...]
    categories: tuple[str, ...]
    n_categories: int
    throughput: Mapping[str, float]
    throughput_note: str

    @property
    def all_changes(self) -> tuple[Change, ...]:
        """The cells', then the overall one."""
        return (*self.changes, self.overall)

    @property
    def regressed(self) -> list[Change]:
        """What regressed, the overall figure included."""
        return [one for one in self.all_changes if one.outcome is Outcome.REGRESSED]

    @property
    def incomplete(self) -> list[Change]:
        """What lacks images: nothing is known of it."""
        return [one for one in self.all_changes if one.outcome is Outcome.INCOMPLETE]

    @property
    def is_decided(self) -> bool:
        """Whether anything at all was compared."""
        return any(one.is_decided for one in self.all_changes)

    @property
    def scope(self) -> str:
        """How much of the baseline was compared, in words."""
        if len(self.categories) == self.n_categories:
            return f"all {self.n_categories} categories"
        return (
            f"{len(self.categories)} of {self.n_categories} categories "
            f"({', '.join(self.categories)})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "old": self.old,
            "new": self.new,
            "tolerance": self.tolerance,
            "categories": list(self.categories),
            "n_categories": self.n_categories,
            "cells": [one.to_dict() for one in self.changes],
            "overall": self.overall.to_dict(),
            "subject_differences": list(self.subject_differences),
            "throughput": {"ratios": dict(self.throughput), "note": self.throughput_note},
        }


def measurement_differences(old: Header, new: Header) -> list[str]:
    """Why ``new`` cannot be compared with the baseline ``old``, in words; empty when it can.

    A run of some of the baseline's categories is comparable on those: a category's figures do not
    depend on the others. A category that the baseline lacks would pass without a comparison, so
    it is a difference.
    """
    found = setting_differences(old.measurement, new.measurement)
    unknown = [name for name in new.categories if name not in old.measurement.pairs]
    if unknown:
        found.append(
            f"pairs: the baseline has {', '.join(old.categories)}, this run also "
            f"{', '.join(unknown)}"
        )
    return found


def subject_differences(
    old: Header, new: Header, *, of: Collection[str] | None = None
) -> list[str]:
    """In what the subjects differ, in words: what a change of the figures may be due to.

    ``of``: only these fields of :class:`~analogy.results.model.Subject`; all unless given.
    """
    found = []
    for field in dataclasses.fields(old.subject):
        if of is not None and field.name not in of:
            continue
        before, now = getattr(old.subject, field.name), getattr(new.subject, field.name)
        if field.name != "packages":
            found += _difference(field.name, before, now)
            continue
        for name in sorted({*before, *now}):
            found += _difference(name, before.get(name), now.get(name))
    return found


def n_comparisons(new: Header) -> int:
    """How many comparisons a run makes: its cells, and all of them together."""
    return len(new.categories) * len(new.measurement.alphas) + 1


def simultaneous_confidence(comparisons: int) -> float:
    """The confidence of each of so many intervals that hold together with 95% (Bonferroni)."""
    if comparisons < 1:
        raise ValueError(f"comparisons: expected 1 or more, got {comparisons}")
    return 1.0 - SIGNIFICANCE / comparisons


def check_tolerance(tolerance: float) -> float:
    """The tolerance, if it is a finite number >= 0; else a ``ValueError``."""
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

    ``comparisons``: of how many this is one, the overall figure counted, so that all their
    intervals hold together with 95%. ``n_resamples``: by default so many that 10 lie beyond either
    end of the interval, and 10,000 at least. A pair that either side lacks makes the cell
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
    if n < MIN_DECISIVE:
        outcome = Outcome.TOO_FEW
    elif not is_paired:
        outcome = Outcome.INCOMPLETE
    elif Verdict.BLIND in (old.verdict, new.verdict):
        outcome = Outcome.INCONCLUSIVE
    else:
        has_fallen = _fell(old.verdict, new.verdict)
        outcome = _outcome(low, high, tolerance=tolerance, has_fallen=has_fallen)
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
    """A cell of a comparable run against the baseline's."""
    return compare_items(
        Side.of(old.analysis.cells[new.cell]),
        Side.of(new),
        tolerance=tolerance,
        comparisons=comparisons,
        n_resamples=n_resamples,
    )


def compare_overall(
    old: Results, new: Results, *, tolerance: float = TOLERANCE, n_resamples: int | None = None
) -> Change:
    """All of a comparable run against the same categories of the baseline, over pairs."""
    # The baseline's overall verdict is of all its categories, and of no selection.
    categories = new.header.categories
    is_whole = len(categories) == len(old.header.categories)
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


def compare(old: Results, new: Results, *, tolerance: float = TOLERANCE) -> Comparison:
    """Results against a baseline; a :class:`NotComparableError` for another measurement."""
    check_tolerance(tolerance)
    different = measurement_differences(old.header, new.header)
    if different:
        raise NotComparableError(_name(old), _name(new), different)
    comparisons = n_comparisons(new.header)
    changes = [
        compare_cell(old, cell, tolerance=tolerance, comparisons=comparisons)
        for cell in new.analysis.cells.values()
    ]
    overall = compare_overall(old, new, tolerance=tolerance)
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


def _fell(old: Verdict | None, new: Verdict | None) -> bool:
    return old is Verdict.SUCCESS and new in (Verdict.FAILURE, Verdict.INCONCLUSIVE)


def _outcome(low: float, high: float, *, tolerance: float, has_fallen: bool) -> Outcome:
    """What the interval of a difference says."""
    if high < -tolerance - _ROUNDING or has_fallen:
        return Outcome.REGRESSED
    if low > _ROUNDING:
        return Outcome.IMPROVED
    if -tolerance - _ROUNDING <= low and high <= tolerance + _ROUNDING:
        return Outcome.EQUIVALENT
    return Outcome.INCONCLUSIVE


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


def setting_differences(old: Measurement, new: Measurement) -> list[str]:
    """In what measurements differ, their sets of categories aside."""
    found: list[str] = []
    for field in dataclasses.fields(old):
        if field.name != "pairs":
            found += _difference(field.name, getattr(old, field.name), getattr(new, field.name))
    common = [name for name in new.pairs if name in old.pairs]
    others = [name for name in common if old.pairs[name] != new.pairs[name]]
    if others:
        found.append(f"pairs: other ones in {', '.join(others)}")
    return found


def _difference(name: str, old: Any, new: Any) -> list[str]:
    """One difference in words, or none."""
    if old == new:
        return []
    return [f"{name}: baseline {_worded(old)}, this run {_worded(new)}"]


def _worded(value: Any) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value is None else str(value)


def _throughput(old: Results, new: Results) -> tuple[dict[str, float], str]:
    """New over old images/s by stage, or why there is none."""
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
