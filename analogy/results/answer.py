"""The answer to the suite's question, by strength and category."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

from analogy.core.records import Verdict
from analogy.core.strict_json import Json
from analogy.core.text import listed
from analogy.results.model import Analysis

_DECIDED = (Verdict.SUCCESS, Verdict.FAILURE, Verdict.INCONCLUSIVE)

_NOTHING = {
    Verdict.TOO_FEW: "Not decided: 5 pairs or fewer decide nothing",
    Verdict.INCOMPLETE: "Not finished: images are missing",
    Verdict.BLIND: "Nothing can be said: the judge does not see the true change",
}
"""The whole answer if no cell is decided: the first of these verdicts that any cell has."""


@dataclass(frozen=True, slots=True)
class AtStrength:
    """The categories at one strength, by the verdict of their cell there.

    ``undecided``: too few pairs, missing images or a blind judge. ``not_after_holm``: the successes
    that are not significant after Holm's correction.
    """

    alpha: float
    success: tuple[str, ...]
    failure: tuple[str, ...]
    inconclusive: tuple[str, ...]
    undecided: tuple[str, ...]
    not_after_holm: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """Where steering succeeds, strength by strength.

    - ``strengths``: alphas ascending, without 0;
    - ``n_categories``: of the run; ``n_incomplete``: the number of cells that lack images;
    - ``pool``: the verdict over all categories and strengths together, as in the published
      protocol; not part of ``text``;
    - ``unknown``: words of the pairs that the embedded model, or judge, was not trained on;
    - ``nothing``: the whole answer if no cell is decided, else None.
    """

    strengths: tuple[AtStrength, ...]
    n_categories: int
    n_incomplete: int
    pool: Verdict
    unknown: tuple[str, ...]
    nothing: str | None

    @cached_property
    def verdict(self) -> Verdict:
        """Success if every category succeeds at the same strength, failure if every cell fails,
        inconclusive for anything between; the verdict of ``nothing`` if no cell is decided.
        """
        if self.nothing is not None:
            return next(of for of, text in _NOTHING.items() if text == self.nothing)
        if len(self.best[0].success) == self.n_categories:
            return Verdict.SUCCESS
        if all(len(at.failure) == self.n_categories for at in self.strengths):
            return Verdict.FAILURE
        return Verdict.INCONCLUSIVE

    @property
    def is_partial(self) -> bool:
        """True if categories succeed, but not every one at the same strength."""
        return self.verdict is Verdict.INCONCLUSIVE and bool(self.best[0].success)

    @cached_property
    def best(self) -> tuple[AtStrength, ...]:
        """The strengths at which most categories succeed; several if they are equal."""
        most = max(len(at.success) for at in self.strengths)
        return tuple(at for at in self.strengths if len(at.success) == most)

    @cached_property
    def text(self) -> str:
        """One line, such as ``Yes at 0.8 and 1: 8 of 8 categories; at 0.5: 1 of 8``."""
        if self.nothing is not None:
            return self.nothing
        leads = {Verdict.SUCCESS: "Yes", Verdict.FAILURE: "No"}
        lead = leads.get(self.verdict, "In part" if self.is_partial else "Not shown")
        noun = "category" if self.n_categories == 1 else "categories"
        counts = sorted({len(at.success) for at in self.strengths}, reverse=True)
        parts = []
        for count in counts:
            alphas = listed(f"{at.alpha:g}" for at in self.strengths if len(at.success) == count)
            parts.append(f"at {alphas}: {count} of {self.n_categories}")
        parts[0] = f"{lead} {parts[0]} {noun}"
        cells = len(self.strengths) * self.n_categories
        n_failures = sum(len(at.failure) for at in self.strengths)
        if lead == "Not shown" and n_failures:
            parts.append(f"failure in {n_failures} of {cells} cells")
        if self.n_incomplete:
            parts.append(
                f"not finished: images are missing in {self.n_incomplete} of {cells} cells"
            )
        if self.unknown:
            parts.append("with words that are not known")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON."""
        return {
            "text": self.text,
            "verdict": self.verdict,
            "categories": self.n_categories,
            "strengths": [
                {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(at).items()}
                for at in self.strengths
            ],
            "pool": self.pool,
        }

    def notes(self) -> Iterator[str]:
        """What ``text`` leaves out, in sentences: unknown words, the categories that do not succeed
        at the best strengths, and the successes that are not significant after Holm's correction.
        """
        if self.unknown:
            yield f"The embedded model or judge does not know: {listed(self.unknown)}."
        if self.nothing is not None:
            return
        for at in self.best:
            others = (
                ("failure", at.failure), ("inconclusive", at.inconclusive),
                ("undecided", at.undecided),
            )  # fmt: skip
            said = [f"{name} in {listed(names)}" for name, names in others if names]
            if said:
                yield f"At {at.alpha:g}: {'; '.join(said)}."
        lost = [f"{name} at {at.alpha:g}" for at in self.strengths for name in at.not_after_holm]
        if lost:
            yield f"Not after Holm's correction: {listed(lost)}."


def answer_of(analysis: Analysis, unknown: Iterable[str] = ()) -> Answer:
    """The answer to a run's figures; ``unknown``: as of `Answer`."""
    cells = analysis.cells
    alphas = sorted({cell.alpha for cell in cells})
    categories = list(dict.fromkeys(cell.category for cell in cells))
    lost = {c for c in analysis.not_after_holm if not math.isnan(cells[c].p_holm)}

    def at(alpha: float) -> AtStrength:
        here = [cell for cell in cells if cell.alpha == alpha]

        def those(*verdicts: Verdict) -> tuple[str, ...]:
            return tuple(c.category for c in here if cells[c].margin.verdict in verdicts)

        return AtStrength(
            alpha,
            success=those(Verdict.SUCCESS),
            failure=those(Verdict.FAILURE),
            inconclusive=those(Verdict.INCONCLUSIVE),
            undecided=those(*_NOTHING),
            not_after_holm=tuple(cell.category for cell in here if cell in lost),
        )  # fmt: skip

    verdicts = [figures.margin.verdict for figures in cells.values()]
    nothing = next((text for of, text in _NOTHING.items() if of in verdicts), None)
    return Answer(
        strengths=tuple(map(at, alphas)),
        n_categories=len(categories),
        n_incomplete=verdicts.count(Verdict.INCOMPLETE),
        pool=analysis.overall.margin.verdict or Verdict.INCOMPLETE,
        unknown=tuple(unknown),
        nothing=None if any(of in _DECIDED for of in verdicts) else nothing,
    )
