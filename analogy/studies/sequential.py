"""The looks of a sequential run: what is decided, and which images are due.

Everything is recomputed from the scores in the run folder, the recorded order of the pairs and the
design; no state is stored. A run that was killed therefore continues as if it had not been, and
images beyond a look, such as those of an earlier full run, change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analogy.core.records import UNSTEERED, Cell, Pair, RunConfig
from analogy.settings.pairs import categories, load_pairs, select
from analogy.statistics.sequential import (
    Decision,
    Design,
    Look,
    decide,
    items_at,
    order,
    order_digest,
    unsteered_look,
)
from analogy.store.grid import Grid, Job, Role
from analogy.studies.analysis import RESOLUTION
from analogy.studies.quality import Used

RESERVE = 0.005
"""The part of the total level 0.025 that ``--reserve`` keeps for one extension."""

FUTILITY, FUTILITY_ICC = 0.02, 0.85
"""``--futility`` stops a cell if its chance of a decision at the last look is below the first
number. The second is the assumed ICC: the share of the variance of single images between pairs."""

Scores = Callable[[Sequence[Job]], pd.DataFrame]
"""Jobs to a table with a row for each scored job, with pair_id, seed, alpha and margin."""

Margins = NDArray[np.float64]
"""Margins of single images, ``(pairs in the recorded order, seeds)`` or, where stated,
``(pairs, seeds, alphas)``; NaN without a score."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of one cell.

    - ``margin``: the decision on the margin; ``look``: the index of the look at which the cell
      stopped, or that it needs next;
    - ``gain``: the decision on the gain, which stops by itself, at ``look`` at the latest;
      ``gain_look``: the index of the look at which it stopped, or that it needs next.
    """

    cell: Cell
    margin: Decision
    gain: Decision

    @property
    def look(self) -> int:
        """The index of the cell's look."""
        return self.margin.look

    @property
    def gain_look(self) -> int:
        """The index of the gain's look."""
        return self.gain.look

    @property
    def is_stopped(self) -> bool:
        """Whether the margin is decided, as success, failure or inconclusive."""
        return self.margin.verdict is not None


@dataclass(frozen=True)
class CategoryState:
    """A category's margins and the progress of its cells.

    ``pairs``: in the recorded order; ``margins``: alpha to margins; ``null``: as ``margins``, empty
    if the run has no null; ``targets``: margins of the target images, None if the run has none.
    """

    design: Design
    pairs: tuple[Pair, ...]
    margins: Mapping[float, Margins]
    null: Mapping[float, Margins]
    targets: Margins | None
    cells: Mapping[Cell, Progress]
    full_unsteered: bool

    def block(self, of: Margins, look: int) -> Margins:
        """The margins of a look, ``(pairs, seeds)``."""
        at = self.design.looks[look]
        return of[: at.pairs, : at.seeds]

    def items(self, of: Margins, look: int) -> pd.Series:
        """Items of a look by pair id: the mean over its seeds, NaN if a seed has no score."""
        items = items_at(of, self.design.looks[look])
        return pd.Series(items, index=[pair.id for pair in self.pairs[: len(items)]])

    def unsteered_look(self, cells: Iterable[Cell]) -> int:
        """The index of the last look whose unsteered images these cells need."""
        states = [self.cells[cell] for cell in cells]
        if self.full_unsteered:
            return max(state.look for state in states)
        return unsteered_look((state.margin, state.gain) for state in states)


class SequentialPlan:
    """The design, order and state of a sequential run.

    ``judged``: the pairs whose prompts the judge can distinguish; ``scores``: returns the margins
    that exist by now; ``base``: category to the ids of the pairs that a run with a reserve had
    before its extension.
    """

    def __init__(
        self,
        grid: Grid,
        judged: Sequence[Pair],
        scores: Scores,
        base: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self._grid = grid
        self._scores = scores
        self._judged = tuple(judged)
        self._base = base or {}
        self._decided: dict[tuple[bytes, Design, int | None], Decision] = {}
        self._n_cells = len(categories(judged)) * len(grid.config.alphas)

    @cached_property
    def pairs(self) -> Mapping[str, tuple[Pair, ...]]:
        """Category to its pairs in the recorded order; those of an extension are last."""
        found = {}
        for category in categories(self._judged):
            mine = [pair for pair in self._judged if pair.category == category]
            base = self._base.get(category)
            first = [pair for pair in mine if base is None or pair.id in base]
            added = [pair for pair in mine if base is not None and pair.id not in base]
            found[category] = (*self._ordered(first), *self._ordered(added))
        return found

    def _ordered(self, pairs: Sequence[Pair]) -> list[Pair]:
        places = order([_prompts(pair) for pair in pairs], self._grid.config.order_seed)
        return [pairs[i] for i in places]

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Category to the digest of its pairs' order."""
        seed = self._grid.config.order_seed
        return {
            category: order_digest([_prompts(pair) for pair in pairs], seed)
            for category, pairs in self.pairs.items()
        }

    @cached_property
    def designs(self) -> Mapping[str, Design]:
        """Category to its looks. They depend on the run's grid, not on the cases that are run."""
        config, found = self._grid.config, {}
        for category, pairs in self.pairs.items():
            base = self._base.get(category)
            design = Design.of(
                len(pairs) if base is None else len([p for p in pairs if p.id in base]),
                len(config.seeds), cells=self._n_cells, reserve=RESERVE if config.reserve else 0.0,
            )  # fmt: skip
            found[category] = design if base is None else design.extended(len(pairs))
        return found

    @property
    def cells(self) -> list[Cell]:
        """Every cell of the grid."""
        return [Cell(name, alpha) for name in self.pairs for alpha in self._grid.config.alphas]

    def state(self, category: str) -> CategoryState:
        """The state of a category by the scores that exist now."""
        config, pairs, design = self._grid.config, self.pairs[category], self.designs[category]
        margins = self._margins(category, Role.UNSTEERED, Role.STEERED)
        unsteered = margins.get(UNSTEERED, np.full((len(pairs), len(config.seeds)), np.nan))
        cells = {}
        for alpha in config.alphas:
            of = margins[alpha]
            decision = self._decide(of, design)
            cell = Cell(category, alpha)
            # The gain takes no look beyond the one at which the cell stopped.
            gain = self._decide(of - unsteered, design, until=decision.look)
            cells[cell] = Progress(cell, decision, gain)
        targets = self._margins(category, Role.TARGET) if config.target else {}
        return CategoryState(
            design, pairs, margins,
            self._margins(category, Role.NULL) if config.control else {},
            next(iter(targets.values()), None), cells, config.full_unsteered,
        )  # fmt: skip

    def _decide(self, margins: Margins, design: Design, until: int | None = None) -> Decision:
        key = (margins.tobytes(), design, until)
        if key not in self._decided:
            futility = FUTILITY if self._grid.config.futility else 0.0
            self._decided[key] = decide(
                margins, design, until=until, futility=futility, icc=FUTILITY_ICC
            )
        return self._decided[key]

    def _margins(self, category: str, *roles: Role) -> dict[float, Margins]:
        """Alpha to the margins of a category's jobs with these roles."""
        pairs = self.pairs[category]
        ids = {pair.id for pair in pairs}
        jobs = [job for job in self._grid.jobs(*roles, category=category) if job.pair.id in ids]
        alphas = list(dict.fromkeys(job.alpha for job in jobs))
        found = arranged(self._scores(jobs), pairs, self._grid.config.seeds, alphas)
        return {alpha: found[..., i] for i, alpha in enumerate(alphas)}

    def due(self, cells: Iterable[Cell]) -> list[Job]:
        """The images of every look that these cells have taken or need next, in the grid's order.

        For a cell that has stopped these are exactly the images behind its figures. Unsteered and
        target images are due only up to :meth:`CategoryState.unsteered_look`.
        """
        found: list[Job] = []
        by_category: dict[str, list[Cell]] = {}
        for cell in cells:
            by_category.setdefault(cell.category, []).append(cell)
        for category, mine in by_category.items():
            state = self.state(category)
            looks = state.design.looks
            for cell in mine:
                look = looks[state.cells[cell].look]
                found += self._of_look(category, look, Role.STEERED, Role.NULL, alpha=cell.alpha)
            look = looks[state.unsteered_look(mine)]
            found += self._of_look(category, look, Role.UNSTEERED, Role.TARGET)
        keys = {job.key for job in found}
        return [job for job in self._grid.jobs() if job.key in keys]

    def steered(self, cell: Cell, pairs: int, seeds: int) -> list[Job]:
        """A cell's steered images of the first pairs in the recorded order and the first seeds."""
        look = Look(pairs, seeds, level=0.5, is_last=False)
        return [*self._of_look(cell.category, look, Role.STEERED, alpha=cell.alpha)]

    def used(self, cell: Cell | None) -> Used:
        """The images from which metrics of a cell, or of all cells together (None), are computed.

        For a cell: the steered images of its look that have an unsteered image. For all cells: the
        images of the pairs and seeds that every cell has.
        """
        if cell is not None:
            state = self.state(cell.category)
            index = min(state.cells[cell].look, state.unsteered_look([cell]))
            at = {cell.category: state.design.looks[index]}
        else:
            states = {category: self.state(category) for category in self.pairs}
            index = min(
                min(each.look, each.gain_look)
                for state in states.values()
                for each in state.cells.values()
            )
            at = {category: state.design.looks[index] for category, state in states.items()}
        strictest = min(at.values(), key=lambda look: look.level)
        keys = frozenset(
            job.key
            for category, look in at.items()
            for job in self._of_look(category, look, Role.UNSTEERED, Role.STEERED)
        )
        return Used(keys, strictest.confidence, strictest.n_resamples)

    def _of_look(
        self, category: str, look: Look, *roles: Role, alpha: float | None = None
    ) -> Iterator[Job]:
        """The jobs of the pairs and seeds of a look."""
        pairs = {pair.id for pair in self.pairs[category][: look.pairs]}
        seeds = set(self._grid.config.seeds[: look.seeds])
        for job in self._grid.jobs(*roles, category=category, alpha=alpha):
            if job.pair.id in pairs and job.seed in seeds:
                yield job


def chosen_pairs(config: RunConfig) -> list[Pair]:
    """The pairs that a configuration chooses from its file, in the file's order.

    ``limit`` takes the first pairs of each category: in the file's order, or in a sequential run in
    the random order.

    Raises ``PairsError`` if the file or the selection cannot be used.
    """
    pairs = load_pairs(config.pairs)
    if not config.sequential:
        return select(pairs, config.categories, config.limit)
    pairs = select(pairs, config.categories, None)
    if config.limit is None:
        return pairs
    chosen: set[str] = set()
    for category in categories(pairs):
        mine = [pair for pair in pairs if pair.category == category]
        places = order([_prompts(pair) for pair in mine], config.order_seed)
        chosen |= {mine[i].id for i in places[: config.limit]}
    return [pair for pair in pairs if pair.id in chosen]


def arranged(
    scores: pd.DataFrame, pairs: Sequence[Pair], seeds: Sequence[int], alphas: Sequence[float]
) -> Margins:
    """Margins of single images, shape ``(pairs, seeds, alphas)``, NaN without a score.

    ``scores``: rows with pair_id, seed, alpha and margin, all of these pairs, seeds and alphas.
    Margins below `RESOLUTION` in magnitude become 0.
    """
    found = np.full((len(pairs), len(seeds), len(alphas)), np.nan)
    axes = {"pair_id": [pair.id for pair in pairs], "seed": seeds, "alpha": alphas}
    at = tuple(
        scores[name].map({value: i for i, value in enumerate(values)}).to_numpy(dtype=np.intp)
        for name, values in axes.items()
    )
    values = scores["margin"].to_numpy(dtype=np.float64)
    found[at] = np.where(np.abs(values) < RESOLUTION, 0.0, values)
    return found


def _prompts(pair: Pair) -> tuple[str, str]:
    return pair.source_prompt, pair.target_prompt
