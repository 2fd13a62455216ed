"""Decide a cell before all of its images are made, with the error rate of the full cell.

A cell is looked at a few times, along a recorded random order of its pairs: first with one seed of
each pair, finally with all. A look's test is the suite's own, the larger p of Student's and the
bootstrap-t, at a small level. The last look gives the suite's own verdict at the remaining level.
The levels sum to 0.025 on each side. If each look's test holds its level, P(false success) and
P(false failure) are therefore at most 0.025 each by the union bound (Bonferroni), however the looks
depend on one another. Small early levels and a last level close to the full one are the design of
Haybittle (1971) and Peto et al. (1976). docs/calibration.md has the error rates and the power.

Every decision is a function of the margins, the order and the design; no state is kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from analogy.core.records import SIGNIFICANCE, Figures, Outcome, Verdict
from analogy.statistics.bootstrap import bootstrap_ci, bootstrap_test
from analogy.statistics.estimates import verdict
from analogy.statistics.tests import t_test
from analogy.statistics.values import (
    MIN_CLUSTERS,
    MIN_DECISIVE,
    Interval,
    all_same,
    ordered_mean,
)

TOTAL = SIGNIFICANCE / 2
"""The sum of the levels of all looks, one-sided, for each of the two sides."""

EARLY_BUDGET = 0.002
"""The largest sum of the levels of the looks before the last."""

# Pairs of the early looks. A first look at fewer than 16 pairs would have too large a family-wise
# error for margins with a long tail: that of so few pairs (docs/calibration.md).
_EARLY_PAIRS = (16, 30, 60, 120, 240, 480, 960)

# There is no early look at more than this share of the pairs: the look at all of them is near.
_LARGEST_EARLY_SHARE = 0.8

# Levels of the early looks are multiples of 1/20 of their budget.
_UNITS = 20

# The levels of one early look at a comparison, and of all of them, as shares of the whole level.
_COMPARED_SHARE, _LARGEST_COMPARED_SHARE = 0.1, 0.4

# A difference below this is float64 rounding, which must not cross a limit.
_ROUNDING = 1e-12

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a cell: the first `seeds` seeds of the first `pairs` pairs of the order.

    `level`: one-sided, of the test on each side. `is_last`: True for the last look of the full
    study, and for the look of its extension.
    """

    pairs: int
    seeds: int
    level: float
    is_last: bool

    @property
    def images(self) -> int:
        """The images of a cell up to this look, those of earlier looks included."""
        return self.pairs * self.seeds

    @property
    def confidence(self) -> float:
        """The confidence of this look's interval. All looks' intervals hold together with 95%."""
        return 1 - 2 * self.level

    @property
    def n_resamples(self) -> int:
        """The number of resamples: 10,000, or more so that 10 lie beyond either interval end."""
        return max(10_000, math.ceil(round(20 / (2 * self.level), 6)))


@dataclass(frozen=True, slots=True)
class Design:
    """The looks at a cell in order, each including all images of the one before.

    `reserve`: the level that is kept for one extension by further pairs.
    """

    looks: tuple[Look, ...]
    reserve: float = 0.0

    @classmethod
    def of(
        cls,
        n_pairs: int,
        n_seeds: int,
        *,
        cells: int = 24,
        comparisons: int = 1,
        reserve: float = 0.0,
    ) -> Design:
        """The design for cells of `n_pairs` pairs with `n_seeds` seeds each.

        Looks are at 16, 30, 60, 120, ... pairs, up to 0.8 of all, then at all pairs, with one seed
        of each pair; the last is at all pairs with all seeds. Their levels rise in equal steps and
        sum to 0.002 or, if that is less, 0.05 / `cells`: an early success then survives Holm's
        adjustment over that number of cells. The last look has the rest of 0.025. With five pairs
        or fewer there is only the last look.

        `comparisons`: the number of comparisons of which this is one. If it is above 1, all levels
        are divided by it, so that the outcomes hold together (Bonferroni). Early levels then need
        no room for Holm's adjustment: each is a tenth of the whole, and together they are at most
        0.4 of it.

        `reserve`: the level that the last look leaves to one extension, such as 0.005, before that
        division. Raises `ValueError` if a number is out of range.
        """
        for name, number in (
            ("n_pairs", n_pairs),
            ("n_seeds", n_seeds),
            ("cells", cells),
            ("comparisons", comparisons),
        ):
            if number < 1:
                raise ValueError(f"{name}: expected 1 or more, got {number}")
        pairs = [n for n in _EARLY_PAIRS if n <= _LARGEST_EARLY_SHARE * n_pairs]
        if n_seeds > 1 and n_pairs >= MIN_DECISIVE:
            pairs.append(n_pairs)
        if comparisons > 1:
            share = min(_COMPARED_SHARE, _LARGEST_COMPARED_SHARE / max(1, len(pairs)))
            levels = [share * TOTAL] * len(pairs)
        else:
            budget = min(EARLY_BUDGET, SIGNIFICANCE / cells)
            levels = [budget * unit / _UNITS for unit in _rising(len(pairs))]
        left = TOTAL - sum(levels)
        if not 0 <= reserve < left:
            raise ValueError(f"reserve: expected 0 or more and less than {left:g}, got {reserve}")
        looks = [
            *((n, 1, level, False) for n, level in zip(pairs, levels, strict=True)),
            (n_pairs, n_seeds, left - reserve, True),
        ]
        # Rounded, so that the levels are exact decimals.
        return cls(
            tuple(Look(n, k, round(level / comparisons, 15), last) for n, k, level, last in looks),
            reserve / comparisons,
        )

    def extended(self, n_pairs: int) -> Design:
        """The design with one more look, at `n_pairs` pairs with all seeds, at the reserve's level.

        The further pairs follow the others in the order. Raises `ValueError` if nothing was
        reserved, since all error is then spent, and if `n_pairs` is not larger than before.
        """
        last = self.looks[-1]
        if self.reserve <= 0:
            raise ValueError(
                "reserve: expected one that was set before the first look, got none: the error "
                "that was promised is spent, and further pairs would add to it; make a study of "
                "its own from fresh pairs"
            )
        if n_pairs <= last.pairs:
            raise ValueError(f"n_pairs: expected more than {last.pairs}, got {n_pairs}")
        return Design((*self.looks, Look(n_pairs, last.seeds, self.reserve, is_last=True)))


def order(texts: Sequence[tuple[str, ...]], seed: int) -> list[int]:
    """A random order of pairs, as indices of `texts`; it does not depend on the order of rows.

    `texts`: the texts that identify a pair, its source prompt and its target prompt. Pairs are
    sorted by the SHA-256 of the seed and the texts, UTF-8, joined by NUL. Pairs of equal texts,
    which are interchangeable, keep their order.
    """
    return sorted(range(len(texts)), key=lambda i: (_digest(str(seed), *texts[i]), texts[i]))


def order_digest(texts: Sequence[tuple[str, ...]], seed: int) -> str:
    """SHA-256, 64 hexadecimal digits, of the pairs in their `order`."""
    ordered = (_digest(str(seed), *texts[i]) for i in order(texts, seed))
    return _digest(*ordered)


@dataclass(frozen=True, slots=True)
class Decision(Figures):
    """The result of the looks at a cell.

    - `look`: index of the look at which the cell stopped; for an open cell, index of the look that
      it needs next;
    - `verdict`: None while the cell is open, because images of that look are missing;
    - `pairs`, `seeds`: those of the look;
    - `mean`, `ci_low`, `ci_high`: in units of the margin. The interval is the look's own, at
      `confidence`, and holds at whatever look and for whatever reason a cell stops (Robbins 1970;
      Jennison and Turnbull 1989: a repeated confidence interval). The mean of a cell that stopped
      early is biased away from 0;
    - `p_up`, `p_down`: one-sided, the larger of Student's p and the bootstrap-t p. At a look before
      the last, Student's alone if that is already above the level, since the other cannot matter;
    - `p_seq`: one-sided p of a success that allows for all looks: the levels of earlier looks plus
      `p_up`. It is 1 if the cell stopped with a failure or for another reason than a look's test.
      Holm's adjustment uses this p;
    - `is_early`: True if the cell stopped before the last look;
    - `is_futile`: True if it stopped because a verdict had become improbable.

    Figures of an open cell are NaN.
    """

    look: int
    verdict: Verdict | None
    pairs: int
    seeds: int
    confidence: float
    mean: float = _NAN
    ci_low: float = _NAN
    ci_high: float = _NAN
    p_up: float = _NAN
    p_down: float = _NAN
    p_seq: float = _NAN
    is_early: bool = False
    is_futile: bool = False

    @property
    def is_open(self) -> bool:
        """True if images of the look `look` are missing: not made yet, or failed."""
        return self.verdict is None


def items_at(margins: NDArray[np.float64], look: Look) -> NDArray[np.float64]:
    """Items at a look, shape (look.pairs,): means over its seeds.

    `margins` has the shape (pairs in the order, seeds). An item is NaN if it lacks an image.
    """
    # A sum in float64 depends on the order of its terms; sorting by value fixes that order.
    return np.sort(margins[: look.pairs, : look.seeds], axis=1).mean(axis=1)


def decide(
    margins: ArrayLike,
    design: Design,
    *,
    until: int | None = None,
    futility: float = 0.0,
    icc: float = 0.0,
    seed: int = 0,
) -> Decision:
    """Take the looks of a design at a cell until one decides, or lacks images.

    `margins`: shape (pairs in the order, seeds) of the design's last look; NaN for a missing image.
    Images beyond the look at which a cell stops change nothing.

    A look before the last decides by the larger p of `t_test` and `bootstrap_test`, at its level on
    each side. The last decides as `estimates.verdict` does, with an interval at its own level.

    `until`: index of the last look to take; a cell that is not decided there is inconclusive.
    `futility`: before the last look, a cell stops as inconclusive if `predictive` gives success and
    failure together a smaller chance than this. That is non-binding: it adds no error, but loses
    power. `icc`: for `predictive`; 0 is cautious. `seed`: of the bootstrap.

    Raises `ValueError` if the margins have another shape or are infinite, or an argument is out of
    range.
    """
    table = _checked(margins, design)
    if until is not None and not 0 <= until < len(design.looks):
        raise ValueError(f"until: expected 0 to {len(design.looks) - 1}, got {until}")
    if not 0 <= futility < 1 or not 0 <= icc <= 1:
        raise ValueError(f"futility, icc: expected 0 to 1, got {futility} and {icc}")
    spent = 0.0
    for index, look in enumerate(design.looks):
        items = items_at(table, look)
        if np.isnan(items).any():
            return Decision(index, None, look.pairs, look.seeds, look.confidence)
        is_end = index == len(design.looks) - 1 or index == until
        found, p_up, p_down = _tested(items, look, seed)
        is_futile = False
        if found is None and futility > 0:
            is_futile = sum(predictive(items, design, icc=icc)) < futility
        if found in (Verdict.SUCCESS, Verdict.FAILURE) or is_futile or is_end:
            break
        spent += look.level
    by_test = found is Verdict.SUCCESS or (look.is_last and found is not Verdict.FAILURE)
    low, high = _interval(items, look, seed)
    return Decision(
        look=index,
        verdict=found or Verdict.INCONCLUSIVE,
        pairs=look.pairs,
        seeds=look.seeds,
        confidence=look.confidence,
        mean=ordered_mean(np.sort(items)),
        ci_low=low,
        ci_high=high,
        p_up=p_up,
        p_down=p_down,
        p_seq=float(np.minimum(1.0, spent + p_up)) if by_test else 1.0,
        is_early=not look.is_last,
        is_futile=is_futile,
    )


@dataclass(frozen=True, slots=True)
class ChangeDecision:
    """The result of the looks at paired differences.

    - `look`: index of the look that decided, or that an open comparison needs next;
    - `outcome`: None while it is open, because images of that look are missing; never `incomplete`.

    Its figures are not part of it: a comparison gives them at its own confidence.
    """

    look: int
    outcome: Outcome | None

    @property
    def is_open(self) -> bool:
        """True if images of the look `look` are missing: not made yet, or failed."""
        return self.outcome is None


def decide_change(differences: ArrayLike, tolerance: float, design: Design) -> ChangeDecision:
    """Take the looks of a design at paired differences until one decides, or lacks images.

    `differences`: new - old, image by image, shape (pairs in the order, seeds), NaN where either
    side lacks the image. `tolerance`: in units of the margin.

    A look before the last decides by tests of the mean against -tolerance, 0 and tolerance, each
    the larger p of `t_test` and `bootstrap_test` at the look's level; "equivalent" needs both its
    sides (two one-sided tests; Schuirmann 1987). The last decides by its interval.

    Raises `ValueError` as `decide` does, and if the tolerance is negative or not finite.
    """
    table = _checked(differences, design)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance: expected a finite number >= 0, got {tolerance}")
    for index, look in enumerate(design.looks):
        items = items_at(table, look)
        if np.isnan(items).any():
            return ChangeDecision(index, None)
        if look.pairs < MIN_DECISIVE:
            outcome = Outcome.TOO_FEW
        else:
            outcome = _outcome(*_limits(items, look), tolerance)
        if outcome is not Outcome.INCONCLUSIVE:
            break
    return ChangeDecision(index, outcome)


def unsteered_look(cells: Iterable[tuple[Decision, Decision]]) -> int:
    """Index of the last look whose unsteered images a category needs.

    `cells`: of each cell of the category, the decision on its margins and the decision on its gains
    (margin - the unsteered image's, by the same design). The unsteered images of a look are needed
    if some cell takes that look and its gain is not decided before. So a gain has the figures of
    `decide(gains, design, until=min(margin.look, gain.look))`. Raises `ValueError` if there is no
    cell.
    """
    return max(min(margin.look, gain.look) for margin, gain in cells)


def predictive(items: ArrayLike, design: Design, *, icc: float) -> tuple[float, float]:
    """Chance of a success and of a failure at the last look, from the items of an early one.

    `items`: shape (pairs,), of one seed each. Uses the predictive distribution of the last mean
    under a flat prior of the mean, by Student's t (Spiegelhalter, Freedman and Blackburn 1986), and
    takes the standard deviation as known. `icc`: the share of an image's variance that is between
    pairs, 0..1: the last look's N pairs of S seeds count as N / (icc + (1 - icc) / S) of one seed.
    With 0, further seeds count as further pairs, which leaves the most open. Assumes normal items.
    """
    ordered = np.sort(np.asarray(items, dtype=np.float64))
    last = next(look for look in design.looks if look.is_last)
    n, full = len(ordered), last.pairs / (icc + (1 - icc) / last.seeds)
    if n < MIN_CLUSTERS or all_same(ordered):  # equal values are assumed to stay equal
        return float(ordered[0] > 0), float(ordered[0] < 0)
    z = math.sqrt(full) * ordered_mean(ordered) / float(np.std(ordered, ddof=1))
    needed = float(scipy.stats.t.isf(last.level, full - 1))
    if full <= n:
        return float(z >= needed), float(-z >= needed)
    spread = math.sqrt((full - n) / n)
    up, down = scipy.stats.t.cdf([-(needed - z) / spread, -(needed + z) / spread], n - 1)
    return float(up), float(down)


def _rising(n: int) -> list[int]:
    """Levels of `n` looks that rise in equal steps: whole units that sum to `_UNITS`."""
    up_to = [round(_UNITS * j * (j + 1) / (n * (n + 1))) for j in range(n + 1)] if n else [0]
    return np.diff(up_to).tolist()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _checked(margins: ArrayLike, design: Design) -> NDArray[np.float64]:
    table = np.asarray(margins, dtype=np.float64)
    last = design.looks[-1]
    if table.shape != (last.pairs, last.seeds):
        raise ValueError(
            f"margins: expected the shape (pairs, seeds) = ({last.pairs}, {last.seeds}) of the "
            f"design, got {table.shape}"
        )
    if np.isinf(table).any():
        raise ValueError("margins: expected finite values, and NaN for missing ones, got infinity")
    return table


def _tested(
    items: NDArray[np.float64], look: Look, seed: int
) -> tuple[Verdict | None, float, float]:
    """A look's verdict, None to go on, and the p upwards and downwards."""
    t_up = t_test(items)
    t_down = t_test(-items) if t_up > 0.5 else 1 - t_up  # 1 - p loses its digits if p is near 1
    level = 1.0 if look.is_last else look.level
    # Downwards first: the interval and the p upwards share resamples, of which one set is cached.
    p_down = _larger_p(t_down, -items, look, seed=seed, level=level)
    p_up = _larger_p(t_up, items, look, seed=seed, level=level)
    if not look.is_last:
        is_up, is_down = p_up <= level, p_down <= level
        return Verdict.SUCCESS if is_up else Verdict.FAILURE if is_down else None, p_up, p_down
    low, high = _interval(items, look, seed)
    # The suite requires p < 0.05 with a 95% interval: twice the interval's one-sided level.
    scaled = t_up * SIGNIFICANCE / (2 * look.level)
    return verdict(n=len(items), ci_low=low, ci_high=high, p=scaled), p_up, p_down


def _larger_p(
    p: float, items: NDArray[np.float64], look: Look, *, seed: int = 0, level: float
) -> float:
    """The larger of Student's p of items and the bootstrap-t p; Student's alone above `level`."""
    if p > level:
        return p
    by_bootstrap = bootstrap_test(items, n_resamples=look.n_resamples, seed=seed)
    return float(np.maximum(p, by_bootstrap))  # NaN if either is NaN


def _interval(items: NDArray[np.float64], look: Look, seed: int = 0) -> Interval:
    return bootstrap_ci(items, confidence=look.confidence, n_resamples=look.n_resamples, seed=seed)


def _limits(
    items: NDArray[np.float64], look: Look
) -> tuple[Callable[[float], bool], Callable[[float], bool]]:
    """Functions that tell if a look shows the mean to lie below a value, and above one."""
    if look.is_last:
        low, high = _interval(items, look)
        return (lambda value: high < value), (lambda value: low > value)

    def is_above_0(values: NDArray[np.float64]) -> bool:
        return _larger_p(t_test(values), values, look, level=look.level) <= look.level

    return (lambda value: is_above_0(value - items)), (lambda value: is_above_0(items - value))


def _outcome(
    is_below: Callable[[float], bool], is_above: Callable[[float], bool], tolerance: float
) -> Outcome:
    """The outcome of a mean difference that is shown to lie below and above certain values."""
    limit = tolerance + _ROUNDING
    if is_below(-limit):
        return Outcome.REGRESSED
    if is_above(_ROUNDING):
        return Outcome.IMPROVED
    if is_above(-limit) and is_below(limit):
        return Outcome.EQUIVALENT
    return Outcome.INCONCLUSIVE
