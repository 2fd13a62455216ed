"""Compares steering methods on one grid: paired differences, and a ranking.

All methods steer the same pairs from the same latents, so they are compared pair by pair: the
difference of a pair's margins is free of the effects of the pair and its noise. If all methods have
the same strengths (alphas), each pair enters with the mean of its items over them. If methods have
different strengths, their alphas have different units, and each pair enters with its item at the
method's full strength: the largest that the method declares, which is fixed before any image. No
strength is chosen by its result. Alpha 0, unsteered, is the same image for every method and is left
out.

Every two methods are compared, so k methods give k (k - 1) / 2 tests. These overall differences are
one family: their p-values are adjusted for it (Holm 1979), and only they decide whether two methods
differ. The differences at single strengths and in single categories show where the overall one
comes from; their intervals and p-values are not adjusted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analogy.core.records import SIGNIFICANCE, UNSTEERED, Estimate, Figures, Pair
from analogy.core.strict_json import Json
from analogy.results.cost import MethodCost
from analogy.results.model import Stop
from analogy.results.writing import cost_to_json
from analogy.statistics.bootstrap import bootstrap_ci, bootstrap_test, resampled_together
from analogy.statistics.estimates import DEFAULT_CONFIDENCE, pooled_estimate
from analogy.statistics.multiplicity import holm
from analogy.statistics.tests import t_test
from analogy.statistics.values import MIN_DECISIVE
from analogy.studies.study import Study

_NAN = float("nan")

# (category, alpha) of a difference. None as category: all pairs; None as alpha: all strengths that
# are compared.
Scope = tuple[str | None, float | None]
_OVERALL: Scope = (None, None)


@dataclass(frozen=True, slots=True)
class Difference(Figures):
    """The margins of ``first`` minus those of ``second``, pair by pair.

    - ``category``: None for all; ``alpha``: None for all strengths that are compared;
    - ``n``: the number of pairs;
    - ``p``: two-sided, of the paired t-test; ``p_bootstrap``: of the bootstrap-t test;
    - ``p_holm``: the larger of both, adjusted for all overall differences; NaN for the differences
      at one alpha or in one category. In a sequential run it is adjusted by Bonferroni, as the
      looks' levels are;
    - ``stop``: the look at which it was computed, in a sequential run.

    A figure that does not exist is NaN.
    """

    first: str
    second: str
    category: str | None
    alpha: float | None
    n: int
    mean: float = _NAN
    ci_low: float = _NAN
    ci_high: float = _NAN
    p: float = _NAN
    p_bootstrap: float = _NAN
    p_holm: float = _NAN
    stop: Stop | None = None

    @property
    def is_distinct(self) -> bool:
        """Whether the two methods differ significantly, adjusted for all comparisons."""
        return self.n >= MIN_DECISIVE and self.p_holm < SIGNIFICANCE


@dataclass(frozen=True, slots=True)
class Ranked:
    """A method's place: its margin at the compared strengths, and the methods ``like`` it, from
    which it does not differ significantly.

    This is no proof of equality, and it is not transitive: A and C may differ significantly even if
    neither A and B nor B and C do.
    """

    method: str
    margin: Estimate
    like: tuple[str, ...]

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON."""
        return {
            "method": self.method,
            **self.margin.to_dict(),
            "not_distinguishable": list(self.like),
        }


@dataclass(frozen=True, slots=True)
class MethodComparison:
    """The comparison of two or more methods on one grid.

    - ``n``: the number of pairs compared, which have all their items by every method;
      ``n_left_out``: the number of other pairs;
    - ``ranking``: the methods by their mean, the highest first; in a difference the first method is
      the one that ranks higher;
    - ``blind``: the categories in which the judge is blind, so nothing is concluded there;
    - ``stop``: the look of the ranking and of the differences by alpha and category; None if the
      run is not sequential;
    - ``costs``: of the methods whose cost was measured;
    - ``at``: each method's full strength if methods have different strengths and are compared
      there; empty if all are compared at all strengths.
    """

    n: int
    n_left_out: int
    ranking: tuple[Ranked, ...]
    overall: tuple[Difference, ...]
    alphas: tuple[Difference, ...]
    categories: tuple[Difference, ...]
    blind: tuple[str, ...] = ()
    stop: Stop | None = None
    costs: Mapping[str, MethodCost] = field(default_factory=dict)
    at: Mapping[str, float] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The tests that Holm's p is adjusted for, in words."""
        count = len(self.overall)
        return f"all overall differences, {count} {'test' if count == 1 else 'tests'}"

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON."""
        costs = [{"method": name, **cost_to_json(cost)} for name, cost in self.costs.items()]
        return {
            "n": self.n,
            "n_left_out": self.n_left_out,
            "family": self.family,
            "ranking": [one.to_dict() for one in self.ranking],
            "overall": [_to_json(one) for one in self.overall],
            "alphas": [_to_json(one) for one in self.alphas],
            "categories": [_to_json(one) for one in self.categories],
            "blind": list(self.blind),
            **({} if self.stop is None else {"stop": self.stop.to_dict()}),
            **({"at": dict(self.at)} if self.at else {}),
            **({"costs": costs} if costs else {}),
        }


def _to_json(one: Difference) -> dict[str, Json]:
    made: dict[str, Json] = one.to_dict()
    return {name: value for name, value in made.items() if name != "stop" or value is not None}


def compare_methods(
    tables: Mapping[str, pd.DataFrame],
    pairs: Sequence[Pair],
    *,
    blind: Collection[str] = (),
    n_resamples: int = 10_000,
) -> MethodComparison:
    """Every two methods compared, and all methods ranked.

    ``tables``: method to its items, as :meth:`Study.table` returns them: a row per pair, a column
    per alpha, NaN where images are missing. A pair that lacks an item by any method is left out.

    Raises ``ValueError`` if there are fewer than two methods, if a table has no alpha other than 0,
    or if its rows are not ``pairs`` in their order.
    """
    _check_tables(tables, pairs)
    alphas = {name: [float(alpha) for alpha in table.columns] for name, table in tables.items()}
    at = full_strengths(alphas)
    steered = {
        name: table[[at[name]] if at else [alpha for alpha in alphas[name] if alpha != UNSTEERED]]
        for name, table in tables.items()
    }
    first = next(iter(steered.values()))
    is_whole = ~np.logical_or.reduce([table.isna().any(axis=1) for table in steered.values()])
    category_of = {pair.id: pair.category for pair in pairs}
    whole = {name: table[is_whole] for name, table in steered.items()}
    category = np.array([category_of[pair] for pair in first.index[is_whole]])

    by_alpha: list[Scope] = [] if at else [(None, float(alpha)) for alpha in first.columns]
    by_category: list[Scope] = [(name, None) for name in dict.fromkeys(category_of.values())]
    means = {
        scope: {name: _pair_means(table, category, scope) for name, table in whole.items()}
        for scope in (_OVERALL, *by_alpha, *by_category)
    }
    order = list(tables)
    if is_whole.any():
        order.sort(key=lambda name: -means[_OVERALL][name].mean())
    ordered = {scope: {name: by[name] for name in order} for scope, by in means.items()}

    with resampled_together(_samples(ordered), n_resamples=n_resamples):
        overall = compared(ordered[_OVERALL], n_resamples=n_resamples)
        parts = [
            [
                difference(two, ordered[scope], scope, n_resamples=n_resamples)
                for scope in scopes
                for two in combinations(order, 2)
            ]
            for scopes in (by_alpha, by_category)
        ]
        ranking = [
            Ranked(name, _estimate(whole[name], n_resamples), like(name, overall)) for name in order
        ]
    return MethodComparison(
        n=int(is_whole.sum()),
        n_left_out=int((~is_whole).sum()),
        ranking=tuple(ranking),
        overall=tuple(overall),
        alphas=tuple(parts[0]),
        categories=tuple(parts[1]),
        blind=tuple(blind),
        at=at,
    )


def full_strengths(alphas: Mapping[str, Collection[float]]) -> dict[str, float]:
    """Each method's strength of largest magnitude; empty if all methods have the same strengths.

    ``alphas``: method to its strengths, at least one of them other than 0.
    """
    if len({frozenset(of) - {UNSTEERED} for of in alphas.values()}) == 1:
        return {}
    return {name: max(of, key=lambda alpha: (abs(alpha), alpha)) for name, of in alphas.items()}


def compared(values: Mapping[str, ArrayLike], *, n_resamples: int = 10_000) -> list[Difference]:
    """The difference of every two methods, with Holm's p over all of them.

    ``values``: method to its values, shape (pairs,), all in the same order of pairs. As elsewhere
    in the suite the larger p of the t-test and the bootstrap-t test is adjusted: far into the tail
    the t-test depends on the shape of the data.
    """
    arrays = {name: np.asarray(each, dtype=np.float64) for name, each in values.items()}
    found = [
        difference(two, arrays, _OVERALL, n_resamples=n_resamples)
        for two in combinations(arrays, 2)
    ]
    adjusted = holm([max(one.p, one.p_bootstrap) for one in found])
    return [replace(one, p_holm=float(p)) for one, p in zip(found, adjusted, strict=True)]


def blind_categories(study: Study) -> list[str]:
    """The categories in which the judge is blind (:func:`~analogy.studies.ceiling.ceiling`)."""
    return [name for name in study.categories if (of := study.ceiling(name)) and of.is_blind]


def _check_tables(tables: Mapping[str, pd.DataFrame], pairs: Sequence[Pair]) -> None:
    if len(tables) < 2:
        raise ValueError(f"methods: expected two or more, got {', '.join(tables) or 'none'}")
    wanted = [pair.id for pair in pairs]
    for name, table in tables.items():
        if all(float(alpha) == UNSTEERED for alpha in table.columns):
            raise ValueError(f"{name}: expected a strength other than 0, got none")
        if list(table.index) != wanted:
            raise ValueError(
                f"{name}: expected a row for each of the {len(wanted)} pairs, in order"
            )


def _pair_means(
    table: pd.DataFrame, category: NDArray[np.str_], scope: Scope
) -> NDArray[np.float64]:
    """The mean of each pair in scope over the strengths in scope, shape (pairs,)."""
    name, alpha = scope
    values = table if alpha is None else table[[alpha]]
    rows = slice(None) if name is None else category == name
    means: NDArray[np.float64] = values.to_numpy()[rows].mean(axis=1)
    return means


def _samples(
    means: Mapping[Scope, Mapping[str, NDArray[np.float64]]],
) -> list[NDArray[np.float64]]:
    """Every sample that a comparison bootstraps."""
    made = [*means[_OVERALL].values()]
    for by_method in means.values():
        for a, b in combinations(by_method.values(), 2):
            made += [a - b, b - a]
    return made


def difference(
    two: tuple[str, str],
    values: Mapping[str, NDArray[np.float64]],
    scope: Scope,
    *,
    confidence: float = DEFAULT_CONFIDENCE,
    n_resamples: int = 10_000,
) -> Difference:
    """The difference of two methods' values, shape (pairs,).

    Its figures are NaN if there are no pairs or a value is missing.
    """
    differences = values[two[0]] - values[two[1]]
    if not len(differences) or np.isnan(differences).any():
        return Difference(*two, *scope, n=len(differences))
    low, high = bootstrap_ci(differences, confidence=confidence, n_resamples=n_resamples)
    return Difference(
        *two,
        *scope,
        n=len(differences),
        mean=float(differences.mean()),
        ci_low=low,
        ci_high=high,
        p=_two_sided(t_test, differences),
        p_bootstrap=_two_sided(partial(bootstrap_test, n_resamples=n_resamples), differences),
    )


def _two_sided(test: Callable[[NDArray[np.float64]], float], values: NDArray[np.float64]) -> float:
    """The two-sided p: twice the smaller one-sided p, at most 1; NaN if there is none."""
    return float(np.minimum(2 * np.minimum(test(values), test(-values)), 1.0))


def _estimate(table: pd.DataFrame, n_resamples: int) -> Estimate:
    if not len(table):
        return Estimate(n=0, n_items=0)
    return pooled_estimate(table.to_numpy(), n_resamples=n_resamples)


def like(name: str, overall: Sequence[Difference]) -> tuple[str, ...]:
    """The methods from which this one does not differ significantly."""
    close = [one for one in overall if not one.is_distinct]
    others = [{one.first: one.second, one.second: one.first}.get(name) for one in close]
    return tuple(other for other in others if other is not None)
