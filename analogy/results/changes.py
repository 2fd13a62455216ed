"""The outcomes of comparisons of results, as records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analogy.core.records import Cell, Figures, Outcome, Verdict
from analogy.core.strict_json import Json
from analogy.core.text import listed
from analogy.results.differences import SettingDifference
from analogy.statistics.values import MIN_DECISIVE

# A difference below this is float64 rounding, which must not cross a limit.
_ROUNDING = 1e-12


SETTLED = {
    Outcome.REGRESSED: "worse",
    Outcome.IMPROVED: "better",
    Outcome.EQUIVALENT: "equal within the tolerance",
}
"""The outcomes of a comparison that shows something, each in words."""


@dataclass(frozen=True, slots=True)
class Change(Figures):
    """The comparison of one cell, or of all together (category and alpha None), with its baseline.

    ``n`` counts pairs. ``old``, ``new``: mean margins; ``difference``: the mean of new - old over
    pairs, with its interval at ``confidence``; NaN if a side is incomplete. ``tolerance``: in
    units of the margin. A verdict is None if it is not recorded: the overall verdict for only some
    of the categories.
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
        """True if the verdict fell from success to failure or inconclusive."""
        return fell(self.old_verdict, self.new_verdict)

    @property
    def is_decided(self) -> bool:
        """True if something was compared: neither too few pairs nor missing images."""
        return self.outcome not in (Outcome.TOO_FEW, Outcome.INCOMPLETE)

    @property
    def is_settled(self) -> bool:
        """True if the comparison shows a change as worse, better or equal within the tolerance."""
        return self.outcome in SETTLED

    def message(self) -> str:
        """The change on one line: cell, outcome, both margins, interval, limit."""
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
    over old images/s by stage; empty if it may not be compared, for the reason in
    ``throughput_note``.
    """

    old: str
    new: str
    tolerance: float
    changes: tuple[Change, ...]
    overall: Change
    subject_differences: tuple[SettingDifference, ...]
    categories: tuple[str, ...]
    n_categories: int
    throughput: Mapping[str, float]
    throughput_note: str

    @property
    def all_changes(self) -> tuple[Change, ...]:
        """The changes of the cells, then the overall one."""
        return (*self.changes, self.overall)

    @property
    def regressed(self) -> list[Change]:
        """The changes that are regressions, the overall one included."""
        return [one for one in self.all_changes if one.outcome is Outcome.REGRESSED]

    @property
    def incomplete(self) -> list[Change]:
        """The changes that could not be computed, since images are missing."""
        return [one for one in self.all_changes if one.outcome is Outcome.INCOMPLETE]

    @property
    def is_decided(self) -> bool:
        """True if anything was compared."""
        return any(one.is_decided for one in self.all_changes)

    @property
    def is_undecided(self) -> bool:
        """True if neither a cell nor all together are shown to be worse, better or equal."""
        return not any(one.is_settled for one in self.all_changes)

    @property
    def conclusion(self) -> str:
        """What the comparison shows of its cells, in one line."""
        return concluded(self.changes, self.overall)

    @property
    def scope(self) -> str:
        """How much of the baseline was compared, in words."""
        if len(self.categories) == self.n_categories:
            return f"all {self.n_categories} categories"
        return (
            f"{len(self.categories)} of {self.n_categories} categories "
            f"({', '.join(self.categories)})"
        )

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON."""
        return {
            "old": self.old,
            "new": self.new,
            "tolerance": self.tolerance,
            "categories": list(self.categories),
            "n_categories": self.n_categories,
            "cells": [one.to_dict() for one in self.changes],
            "overall": self.overall.to_dict(),
            "subject_differences": [str(each) for each in self.subject_differences],
            "throughput": {"ratios": dict(self.throughput), "note": self.throughput_note},
            "conclusion": self.conclusion,
        }


def concluded(cells: Sequence[Change], overall: Change | None) -> str:
    """What the changes of cells and of all cells together show, in one line."""
    counts = Counter(one.outcome for one in cells)
    found = [f"{said} in {counts[outcome]}" for outcome, said in SETTLED.items() if counts[outcome]]
    n_open = len(cells) - sum(counts[outcome] for outcome in SETTLED)
    if n_open:
        found.append(f"undecided in {n_open}")
    text = f"{listed(found)} of {len(cells)} {'cell' if len(cells) == 1 else 'cells'}"
    if overall is not None and overall.is_settled:
        return f"{text}; all cells together: {SETTLED[overall.outcome]}"
    return f"{text}: nothing shown to be worse or better" if n_open == len(cells) else text


def fell(old: Verdict | None, new: Verdict | None) -> bool:
    """True if a verdict fell from success to failure or inconclusive."""
    return old is Verdict.SUCCESS and new in (Verdict.FAILURE, Verdict.INCONCLUSIVE)


def undecided(n: int, *, is_missing: bool, is_blind: bool) -> Outcome | None:
    """The outcome of a comparison that decides nothing, by the first rule that holds; else None.

    ``n``: the number of pairs, with or without their images; ``is_missing``: whether images are
    missing on either side; ``is_blind``: whether a verdict is ``blind``.
    """
    if n < MIN_DECISIVE:
        return Outcome.TOO_FEW
    if is_missing:
        return Outcome.INCOMPLETE
    return Outcome.INCONCLUSIVE if is_blind else None


def outcome_of(low: float, high: float, *, tolerance: float, has_fallen: bool) -> Outcome:
    """The outcome that follows from a difference's interval ``low``..``high``."""
    if high < -tolerance - _ROUNDING or has_fallen:
        return Outcome.REGRESSED
    if low > _ROUNDING:
        return Outcome.IMPROVED
    if -tolerance - _ROUNDING <= low and high <= tolerance + _ROUNDING:
        return Outcome.EQUIVALENT
    return Outcome.INCONCLUSIVE
