"""The figures of sequential decisions in docs/calibration.md, and their tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from analogy.calibration.report import judged, percent, run, table
from analogy.calibration.sequential import ICC, SEQUENTIAL_DISTRIBUTIONS, decided
from analogy.calibration.simulation import CELLS, Bar, Share
from analogy.core.records import Verdict

SEQUENTIAL_SIZES = (20, 50, 200)

NORMAL_BAR, OTHER_BAR = Bar(0.0, 0.032), Bar(0.0, 0.05)
"""Required shares of wrong verdicts on normal and clustered margins, and on others."""

LARGEST_DIFFERENCE = 0.01
"""The largest difference of wrong verdicts by looks and by all images, on the same data."""

LOOK_BAR = Bar(0.94, 1.0)
"""Required coverage of the interval of the look at which a cell stopped."""

FAMILY_BAR = Bar(0.0, 0.065)
"""Required share of families of normal cells with a success after Holm."""

EFFECTS = ((0.2, ICC), (0.4, ICC), (0.5, ICC), (0.8, ICC), (1.0, ICC), (1.5, ICC), (2.0, ICC))
LOW_ICC = 0.3
LOW_EFFECTS = ((0.4, LOW_ICC), (1.0, LOW_ICC), (2.0, LOW_ICC))


@dataclass(frozen=True, slots=True)
class Errors:
    """Wrong verdicts on cells of true mean 0, by looks and by all images of the same cells.

    `family`, `fixed_family`: families of 24 cells with a success after Holm. `covered`: coverage of
    the look's interval. `images`: the mean number of images of a cell.
    """

    distribution: str
    n: int
    success: Share
    fixed_success: Share
    failure: Share
    fixed_failure: Share
    family: Share
    fixed_family: Share
    covered: Share
    images: float


@dataclass(frozen=True, slots=True)
class EffectFound:
    """Cells of 50 normal pairs with 3 seeds whose true mean is `effect` standard deviations.

    `bias`, `early_bias`: the bias of the mean, over all cells and over those that stopped early, in
    the same unit.
    """

    effect: float
    icc: float
    success: Share
    fixed: Share
    images: float
    covered: Share
    bias: float
    early_bias: float


class SequentialFigures(NamedTuple):
    """All figures of the committed tables."""

    errors: list[Errors]
    effects: list[EffectFound]


def measure_sequential(*, repetitions: int, seed: int, workers: int) -> SequentialFigures:
    """All figures. Those of 50 pairs are from `repetitions` cells, but normal ones without an
    effect from six times as many, since families need them. Those of other sizes are from half as
    many, and those of effects from a quarter.
    """
    errors = [
        partial(_errors, name, n, repetitions=_repetitions(name, n, repetitions), seed=seed)
        for n in reversed(SEQUENTIAL_SIZES)
        for name in SEQUENTIAL_DISTRIBUTIONS
    ]
    effects = [
        partial(_effect, effect, icc, repetitions=repetitions // 4, seed=seed)
        for effect, icc in (*EFFECTS, *LOW_EFFECTS)
    ]
    jobs: list[Callable[[], Any]] = [*errors, *effects]
    made = run(jobs, workers)
    return SequentialFigures(made[: len(errors)], made[len(errors) :])


def _repetitions(name: str, n: int, repetitions: int) -> int:
    if (name, n) == ("normal", 50):
        return 6 * repetitions
    return repetitions if n == 50 else repetitions // 2


def _errors(name: str, n: int, *, repetitions: int, seed: int) -> Errors:
    cells = decided(name, n, repetitions=repetitions, seed=seed)
    return Errors(
        name,
        n,
        cells.share(Verdict.SUCCESS),
        cells.fixed_share(Verdict.SUCCESS),
        cells.share(Verdict.FAILURE),
        cells.fixed_share(Verdict.FAILURE),
        cells.family(),
        cells.family(fixed=True),
        cells.covered,
        cells.images,
    )


def _effect(effect: float, icc: float, *, repetitions: int, seed: int) -> EffectFound:
    cells = decided("normal", 50, effect=effect, icc=icc, repetitions=repetitions, seed=seed)
    sd = cells.true_mean / effect
    return EffectFound(
        effect,
        icc,
        cells.share(Verdict.SUCCESS),
        cells.fixed_share(Verdict.SUCCESS),
        cells.images,
        cells.covered,
        cells.bias(early=False) / sd,
        cells.bias(early=True) / sd,
    )


def sequential_tables(figures: SequentialFigures) -> str:
    """The figures as Markdown; a figure with a required range is marked as inside or outside it."""
    parts = {
        "Wrong verdicts on cells whose true mean is 0: looks / all images": _error_table(figures),
        f"{CELLS} cells whose true mean is 0, at least one a success after Holm": _family_table(
            figures
        ),
        "50 normal pairs with 3 seeds and a true mean: what looks find, and with how many images": (
            _effect_table(figures)
        ),
    }
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())


def _error_table(figures: SequentialFigures) -> str:
    lines = []
    for row in sorted(figures.errors, key=_place):
        bar = NORMAL_BAR if row.distribution in ("normal", "clustered") else OTHER_BAR
        line: list[object] = [row.distribution, row.n]
        for own, fixed in ((row.success, row.fixed_success), (row.failure, row.fixed_failure)):
            difference = own.value - fixed.value
            mark = "✓" if abs(difference) <= LARGEST_DIFFERENCE else "✗"
            line += [judged(own, bar), percent(fixed), f"{100 * difference:+.1f} {mark}"]
        lines.append(line)
    side = ("looks", "all images", "difference")
    head = [f"{kind}: {what}" for kind in ("success", "failure") for what in side]
    return table(["data", "pairs", *head], lines)


def _family_table(figures: SequentialFigures) -> str:
    lines = [
        [
            row.distribution,
            row.n,
            judged(row.family, FAMILY_BAR if row.distribution == "normal" else None),
            judged(row.fixed_family),
            row.family.of,
        ]
        for row in sorted(figures.errors, key=_place)
    ]
    return table(["data", "pairs", "looks", "all images", "families"], lines)


def _effect_table(figures: SequentialFigures) -> str:
    null = next(row for row in figures.errors if (row.distribution, row.n) == ("normal", 50))
    lines: list[list[object]] = [
        [
            0,
            f"{ICC:g}",
            judged(null.success),
            percent(null.fixed_success),
            f"{null.images:.1f}",
            judged(null.covered, LOOK_BAR),
            "",
            "",
        ]
    ]
    for row in figures.effects:
        lines.append(
            [
                f"{row.effect:g}",
                f"{row.icc:g}",
                judged(row.success),
                percent(row.fixed),
                f"{row.images:.1f}",
                judged(row.covered, LOOK_BAR),
                f"{row.bias:+.2f}",
                f"{row.early_bias:+.2f}",
            ]
        )
    head = [
        "true mean (standard deviations)",
        "between pairs",
        "successes by looks",
        "by all images",
        "images of 150",
        "look's interval holds",
        "bias of the mean",
        "of early stops",
    ]
    return table(head, lines)


def _place(row: Errors) -> tuple[int, int]:
    return SEQUENTIAL_DISTRIBUTIONS.index(row.distribution), row.n
