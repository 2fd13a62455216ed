"""A run from end to end: resolves the options, does the missing work, computes all figures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from analogy.core.errors import OptionError
from analogy.core.records import Cell, Pair
from analogy.judges.base import FoundJudge
from analogy.judges.open_clip import JudgeSource
from analogy.models.places import ModelSource
from analogy.results.model import (
    Analysis,
    Ceiling,
    CellFigures,
    Header,
    Pool,
    Results,
    Throughput,
)
from analogy.results.reading import header_of
from analogy.results.writing import provenance_to_json
from analogy.settings.options import parse_device
from analogy.settings.request import RunRequest
from analogy.statistics.items import items_from_margins, seed_margins
from analogy.steering.base import with_method
from analogy.store.folder import RunFolder
from analogy.store.grid import TARGET_ALPHA, Command, Job, Role
from analogy.studies import ceiling as ceilings
from analogy.studies import sequential_analysis
from analogy.studies.analysis import analyse, cell_figures, item_table, pool, with_seeds
from analogy.studies.ceiling import GroundTruth
from analogy.studies.cost import method_cost
from analogy.studies.extension import base_of, check_extension
from analogy.studies.finding import Found, find, ground_truth, refuse_pairs, unsteered_pairs
from analogy.studies.gridwork import GridWork, failure_of
from analogy.studies.resolve import check_device


class Study(GridWork):
    """One configuration over its pairs, in its run folder.

    ``generate`` and ``score`` do the missing work. ``cell``, ``overall`` and ``analysis`` estimate
    from the existing scores; where images are missing the verdict is ``incomplete``.

    - ``model``: None for a study that generates nothing. It then needs ``fingerprint``, that of the
      model that made its images, and ``scheduler``;
    - ``truth``: margins on ground truth for this judge, or None;
    - ``scheduler``: by default that of the model's folder;
    - ``metrics``: the quality metrics, by default the built-in ones;
    - ``unread``: ids of pairs whose two prompts are the same tokens to the judge. Their images are
      made, for judges that read more, and the folder keeps their margins, which are 0 up to
      rounding, but they are left out of all figures;
    - ``unsteered``: ids of pairs that the method cannot change, because the two texts that it
      steers between are the same tokens to the generator's text encoders;
    - ``uneven``: ids of chosen pairs that are left out (:func:`left_out`) and not in ``pairs``.
    """

    @classmethod
    def open(
        cls,
        request: RunRequest,
        pairs: Sequence[Pair] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Study:
        """The study of a request. Loads the pairs and verifies the models' files; loads no model.

        ``pairs``: used in place of the request's file; ``methods``: the methods to compare, by
        default the request's one.

        Raises ``OptionError``, ``PairsError``, ``ModelError``, ``CeilingError`` or ``StoreError``.
        """
        found = find(request, pairs, methods)
        folder = RunFolder(found.path)
        try:
            if found.command.config.sequential:
                check_extension(folder, found.command)
            study = cls.of(found, folder)
            study.record(request.lora)
        except BaseException:
            folder.close()
            raise
        return study

    @classmethod
    def of(cls, found: Found, folder: RunFolder) -> Study:
        """The study of a resolved request in a run folder."""
        command = found.command
        return cls(
            command.config, command.pairs, found.model, found.judge, folder, found.truth,
            unread=command.unread, unsteered=found.unsteered, uneven=command.uneven,
            metrics=found.metrics, base=base_of(folder, command),
        )  # fmt: skip

    def within(self, folder: RunFolder) -> Study:
        """The same study in another run folder."""
        return Study(
            self.config, self.pairs, self.model, self.judge, folder, self.truth,
            unread=self.unread, unsteered=self.unsteered, uneven=self.uneven,
            metrics=self.quality.metrics,
        )  # fmt: skip

    @classmethod
    def reopen(
        cls,
        folder: RunFolder,
        command: Command,
        *,
        model: ModelSource | None = None,
        judge: FoundJudge | None = None,
        unread: Collection[str] | None = None,
        **changed: Any,
    ) -> Study:
        """The study of an earlier command, from its run folder alone. Loads no model and looks for
        no files of models.

        ``model``, ``judge``: needed to generate or score what is missing. The caller must have
        asked the user about them, since a run folder may come from anyone. ``unread``: None for the
        recorded pairs, if the judge is the command's own. ``changed``: fields of the configuration
        with new values, such as the device. The engine is this process unless changed.

        Raises ``OptionError`` if the device is invalid or missing on this machine.
        """
        alone = {"engine": "serial", "num_workers": None, "ray_address": None}
        config = replace(command.config, **{**alone, **changed})
        try:
            device = parse_device(config.device)
        except OptionError as error:
            raise OptionError(f"--device: {error}") from None
        check_device(device, gpu=False, engine=config.engine)
        judge = judge or JudgeSource(
            config.clip_model, config.clip_pretrained, command.judge, recorded=True
        )
        if unread is None:
            unread = command.unread if judge.fingerprint == command.judge else ()
        return cls(
            config, command.pairs, model, judge, folder, _recorded_truth(folder, command, judge),
            fingerprint=command.model, scheduler=command.scheduler, unread=unread,
            uneven=command.uneven, base=base_of(folder, command),
        )  # fmt: skip

    def by(self, method: str, alphas: tuple[float, ...] | None = None) -> Study:
        """The same study with another steering method, in the same open run folder.

        ``alphas``: the method's strengths; None for those of this study.
        """
        config = with_method(replace(self.config, alphas=alphas or self.config.alphas), method)
        refuse_pairs(config, self.pairs)
        left = () if self.model is None else unsteered_pairs(self.model, self.pairs, method)
        return Study(
            config, self.pairs, self.model, self.judge, self.folder, self.truth,
            fingerprint=self.grid.model, scheduler=self.scheduler, unread=self.unread,
            unsteered=left, uneven=self.uneven, metrics=self.quality.metrics,
        )  # fmt: skip

    def record(self, lora: str | None, *, is_comparison: bool = False) -> None:
        """Record this configuration in the run folder as its latest command.

        ``lora``: the option ``--lora`` of the command; ``is_comparison``: whether its method is one
        of several that are compared.
        """
        self.folder.record_config(self.config, provenance_to_json(self.provenance()))
        self.folder.record_command(
            Command(
                self.config, tuple(self.pairs), self.grid.model, self.judge.fingerprint,
                self.scheduler, lora, self.own_ceiling, _ids(self.pairs, self.unread),
                is_comparison, self.uneven,
            )
        )  # fmt: skip

    def table(self, category: str | None = None, *, null: bool = False) -> pd.DataFrame:
        """Items: a row per judged pair, a column per alpha, NaN where images lack scores.

        ``category``: only its pairs; ``null``: whether the items are those of the null.
        """
        pairs = [pair for pair in self.judged if category in (None, pair.category)]
        roles = (Role.UNSTEERED, Role.NULL if null else Role.STEERED)
        jobs = self.grid.jobs(*roles, category=category)
        return self._items(jobs, pairs, self.config.grid_alphas)

    def _items(
        self, jobs: Sequence[Job], pairs: Sequence[Pair], alphas: Sequence[float]
    ) -> pd.DataFrame:
        """The complete items of jobs of one method."""
        items = items_from_margins(self._margins(jobs))
        complete = items[items["n_seeds"] == len(self.config.seeds)]
        return item_table(complete, pairs, alphas)

    def targets(self) -> pd.Series | None:
        """Items of the target prompts' own images, by pair id; None if the run has none."""
        if not self.config.target:
            return None
        return self._items(self.grid.jobs(Role.TARGET), self.judged, (TARGET_ALPHA,))[TARGET_ALPHA]

    def _null_table(self, category: str | None = None) -> pd.DataFrame | None:
        return self.table(category, null=True) if self.config.control else None

    def ceiling(self, category: str) -> Ceiling | None:
        """The ceiling of a category; None without ground truth for the judge and all its pairs."""
        if self.truth is None:
            return None
        if category not in self._ceilings:
            pairs = [pair for pair in self.judged if pair.category == category]
            self._ceilings[category] = ceilings.ceiling(self.truth, pairs)
        return self._ceilings[category]

    def cell(self, category: str, alpha: float) -> CellFigures:
        """The figures of one cell; ``incomplete`` if any of its images has no score.

        In a sequential run they are those of the look at which it stopped.
        """
        if self.config.sequential:
            state = self.plan.state(category)
            return sequential_analysis.cell_figures(
                state, Cell(category, alpha), self.ceiling(category)
            )
        return cell_figures(
            self.table(category),
            Cell(category, alpha),
            null=self._null_table(category),
            ceiling=self.ceiling(category),
        )

    def overall(self) -> Pool:
        """All cells pooled, alpha 0 left out, pairs as clusters."""
        if self.config.sequential:
            states = [self.plan.state(category) for category in self.categories]
            return sequential_analysis.pool(states, sorted(self.config.alphas))
        return pool(self.table())

    def analysis(self) -> Analysis:
        """All figures of the run. Without new items, those of the last call are returned, except
        in a sequential run.
        """
        if self.config.sequential:
            return sequential_analysis.analyse(
                {category: self.plan.state(category) for category in self.categories},
                {category: self.ceiling(category) for category in self.categories},
            )
        table, null, targets = self.table(), self._null_table(), self.targets()
        of = [
            None if each is None else each.to_numpy().tobytes() for each in (table, null, targets)
        ]
        if self._analysed is None or self._analysed[0] != of:
            seen = {category: self.ceiling(category) for category in self.categories}
            made = analyse(table, self.judged, null=null, targets=targets, ceilings=seen)
            self._analysed = (of, with_seeds(made, self._seeds()))
        return self._analysed[1]

    def _seeds(self) -> dict[Cell, dict[str, tuple[float, ...]]]:
        """Cell to pair id to the margins of single images; empty if there is only one seed."""
        if len(self.config.seeds) < 2:
            return {}
        frame = self._margins(self.grid.jobs(Role.UNSTEERED, Role.STEERED))
        return seed_margins(frame, self.config.seeds)

    def header(self) -> Header:
        """The header of the results: everything that is known before there are any figures.

        Raises ``RecordedError`` if a name, such as a model folder's, has control characters.
        """
        digests = {category: self.pairs_digest(category) for category in self.categories}
        return header_of(self.config, self.provenance(), digests)

    def results(self, analysis: Analysis | None = None) -> Results:
        """Everything that ``results.json`` holds; see docs/results.md.

        ``analysis``: by default :meth:`analysis`. A cell that lacks images is ``incomplete``. The
        quality figures are those computed so far. Rates and memory are over all work recorded in
        the run folder.
        """
        return Results(
            header=self.header(),
            analysis=analysis or self.analysis(),
            quality=self.quality.figures(),
            failures=tuple(failure_of(*failed) for failed in self.failures(self.jobs())),
            throughput=Throughput(
                self.folder.rate("generate"), self.folder.rate("score"), self.folder.worker_rates()
            ),
            peak_memory_bytes=self.folder.peak_memory(),
            saved=self.saved(),
            cost=method_cost(self.folder, self.config),
            unread=_ids(self.pairs, self.unread),
            unsteered=_ids(self.pairs, self.unsteered),
            uneven=self.uneven,
        )


def _ids(pairs: Sequence[Pair], some: Collection[str]) -> tuple[str, ...]:
    """The ids of those of the pairs that are among some, in the order of the pairs."""
    return tuple(pair.id for pair in pairs if pair.id in some)


def _recorded_truth(folder: RunFolder, command: Command, judge: FoundJudge) -> GroundTruth | None:
    """The ceiling that a command recorded, if it is this judge's; else the judge's shipped one."""
    if command.ceiling is None or judge.fingerprint != command.judge:
        return ground_truth(None, judge)
    return GroundTruth(folder.path / "index.sqlite", command.judge, command.ceiling)


@contextmanager
def preview(request: RunRequest, scratch: Path) -> Iterator[tuple[Study, Path]]:
    """The study of a request and the path of its run folder, to which nothing is written.

    An existing run folder is opened read-only. If there is none, the study has an empty folder in
    ``scratch``. Raises what :meth:`Study.open` does.
    """
    found = find(request)
    exists = (found.path / "index.sqlite").is_file()
    folder = RunFolder(found.path if exists else scratch / "empty", read_only=exists)
    try:
        yield Study.of(found, folder), found.path
    finally:
        folder.close()
