"""Compares methods look by look; the comparison of every two methods stops separately.

All looks use one order of all pairs, which takes the categories in turn and each category's pairs
in the recorded order. The levels are divided by the number of comparisons. Unsteered images are not
needed and not made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, zip_longest

import numpy as np
from numpy.typing import NDArray

from analogy.core.records import SIGNIFICANCE, Pair, Verdict
from analogy.statistics.sequential import Decision, Design, Look, decide
from analogy.store.grid import Job, Role, once
from analogy.studies.method_comparison import (
    Difference,
    MethodComparison,
    Ranked,
    Scope,
    difference,
    full_strengths,
    like,
)
from analogy.studies.sequential import Margins, arranged
from analogy.studies.sequential_analysis import at_look, stop_of
from analogy.studies.study import Study


@dataclass(frozen=True)
class MethodsState:
    """The decisions by the scores that exist now.

    - ``margins``: method to margins, shape (pairs in the order, seeds, alphas);
    - ``decisions``: two methods to the decision on the margins of the first minus the second.
    """

    design: Design
    margins: Mapping[str, Margins]
    decisions: Mapping[tuple[str, str], Decision]

    def look(self, method: str) -> int:
        """The index of the last look whose images a method's comparisons need."""
        return max(found.look for two, found in self.decisions.items() if method in two)

    @property
    def common(self) -> int:
        """The index of the earliest look at which a comparison stopped."""
        return min(found.look for found in self.decisions.values())


class MethodsPlan:
    """The looks of several methods on one grid."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self._studies = {study.config.method: study for study in studies}
        self._first = studies[0]
        ordered = self._first.plan.pairs.values()
        self.pairs: tuple[Pair, ...] = tuple(
            pair for row in zip_longest(*ordered) for pair in row if pair is not None
        )
        self.at = full_strengths(
            {name: study.config.alphas for name, study in self._studies.items()}
        )
        comparisons = len(studies) * (len(studies) - 1) // 2
        self.comparisons = comparisons
        self._design = Design.of(
            len(self.pairs), len(self._first.config.seeds), cells=1, comparisons=comparisons
        )

    def state(self) -> MethodsState:
        """The state by the scores that exist now."""
        margins = {name: self._margins(study) for name, study in self._studies.items()}
        means = {name: of.mean(axis=2) for name, of in margins.items()}
        decisions = {
            two: decide(means[two[0]] - means[two[1]], self._design)
            for two in combinations(margins, 2)
        }
        return MethodsState(self._design, margins, decisions)

    def due(self) -> list[Job]:
        """The images of every look that the methods' comparisons have taken or need next."""
        state = self.state()
        jobs: list[Job] = []
        for name, study in self._studies.items():
            look = state.design.looks[state.look(name)]
            pairs = {pair.id for pair in self.pairs[: look.pairs]}
            seeds = {*study.config.seeds[: look.seeds]}
            jobs += [
                job
                for job in study.grid.jobs(Role.STEERED)
                if job.pair.id in pairs and job.seed in seeds and job.alpha in self.alphas(name)
            ]
        return once(jobs)

    def alphas(self, name: str) -> list[float]:
        """The strengths at which a method is compared, ascending."""
        return [self.at[name]] if self.at else sorted(self._studies[name].config.alphas)

    def _margins(self, study: Study) -> Margins:
        ids = {pair.id for pair in self.pairs}
        alphas = self.alphas(study.config.method)
        jobs = [
            job
            for job in study.grid.jobs(Role.STEERED)
            if job.pair.id in ids and job.alpha in alphas
        ]
        scores = study.folder.margins(jobs, study.judge.fingerprint)
        return arranged(scores, self.pairs, study.config.seeds, alphas)


def compare(plan: MethodsPlan, blind: Sequence[str]) -> MethodComparison:
    """The comparison by the scores that exist now; incomplete where images of a look are missing.

    Each overall difference is computed at the look at which it stopped. The ranking and the
    differences by alpha and by category are computed at the earliest of these looks, whose images
    all methods have.
    """
    state = plan.state()
    look = state.design.looks[state.common]
    items = {name: _items(of, look) for name, of in state.margins.items()}
    names = sorted(items, key=lambda name: -np.nan_to_num(items[name].mean(), nan=-np.inf))
    overall = [_overall(plan, state, two) for two in combinations(names, 2)]
    category = np.array([pair.category for pair in plan.pairs[: look.pairs]])
    alphas = [] if plan.at else plan.alphas(names[0])
    by_alpha: list[Scope] = [(None, alpha) for alpha in alphas]
    by_category: list[Scope] = [(name, None) for name in dict.fromkeys(category.tolist())]

    def part(scope: Scope) -> list[Difference]:
        name, alpha = scope
        rows = slice(None) if name is None else category == name
        columns = slice(None) if alpha is None else [alphas.index(alpha)]
        of = {method: each[rows][:, columns].mean(axis=1) for method, each in items.items()}
        return [
            difference(two, of, scope, confidence=look.confidence, n_resamples=look.n_resamples)
            for two in combinations(names, 2)
        ]

    return MethodComparison(
        n=look.pairs,
        n_left_out=0,
        ranking=tuple(Ranked(name, at_look(items[name], look), like(name, overall))
                      for name in names),
        overall=tuple(overall),
        alphas=tuple(each for scope in by_alpha for each in part(scope)),
        categories=tuple(each for scope in by_category for each in part(scope)),
        blind=tuple(blind),
        stop=stop_of(state.design, state.common),
        at=plan.at,
    )  # fmt: skip


def _items(margins: Margins, look: Look) -> NDArray[np.float64]:
    """Items of a look, (pairs, alphas): means over its seeds."""
    return margins[: look.pairs, : look.seeds].mean(axis=1)


def _overall(plan: MethodsPlan, state: MethodsState, two: tuple[str, str]) -> Difference:
    """An overall difference at the look at which it stopped."""
    found = state.decisions.get(two) or state.decisions[two[1], two[0]]
    look = state.design.looks[found.look]
    if found.verdict is None:
        return Difference(*two, None, None, n=look.pairs)
    values = _items(state.margins[two[0]], look).mean(axis=1)
    values = values - _items(state.margins[two[1]], look).mean(axis=1)
    made = difference(
        two, {two[0]: values, two[1]: np.zeros_like(values)}, (None, None),
        confidence=look.confidence, n_resamples=look.n_resamples,
    )  # fmt: skip
    spent = sum(each.level for each in state.design.looks[: found.look])
    adjusted = min(1.0, plan.comparisons * (2 * spent + max(made.p, made.p_bootstrap)))
    if found.verdict not in (Verdict.SUCCESS, Verdict.FAILURE):
        adjusted = max(adjusted, SIGNIFICANCE)  # undecided by the look: never significant
    return replace(made, p_holm=adjusted, stop=stop_of(state.design, found.look))
