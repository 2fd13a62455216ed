"""A run from end to end: resolve the options, do the missing work, estimate cells and the whole."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from analogy.core.errors import OptionError
from analogy.core.records import Cell, Pair, RunConfig, Window
from analogy.core.text import command_line
from analogy.grid_metrics import chosen_metrics
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
from analogy.settings.options import csv_list, parse_device
from analogy.settings.pairs import UnevenPairsWarning, UnreadPairsWarning, categories, named
from analogy.settings.request import RunRequest
from analogy.statistics.items import items_from_margins, seed_margins
from analogy.steering.base import (
    METHODS,
    Identity,
    Need,
    SelectiveMethod,
    mixes_prompts,
    with_method,
)
from analogy.store.folder import RunFolder, folder_name
from analogy.store.grid import TARGET_ALPHA, Command, Job, Role, Sampling
from analogy.studies import ceiling as ceilings
from analogy.studies import sequential_analysis
from analogy.studies.analysis import analyse, cell_figures, item_table, pool, with_seeds
from analogy.studies.ceiling import CeilingError, GroundTruth
from analogy.studies.cost import method_cost
from analogy.studies.extension import base_of, check_extension
from analogy.studies.gridwork import GridWork, failure_of
from analogy.studies.provenance import scheduler_of
from analogy.studies.resolve import check_device, resolve
from analogy.studies.sequential import chosen_pairs
from analogy.studies.tokenizers import (
    read_by_judge,
    readers_of,
    same_to_judge,
    uneven_pairs,
    unsteered,
)


class Study(GridWork):
    """One configuration over its pairs, in its run folder.

    ``generate`` and ``score`` do what is missing; ``cell``, ``overall`` and ``analysis`` estimate
    from what is there, and say ``incomplete`` where images are missing. ``truth``: margins on
    ground truth for this judge, None where there are none; ``scheduler``: what the model's folder
    says unless given. ``model``: None for a study that generates nothing; ``fingerprint``, the
    model's that made its images, and ``scheduler`` are then required. ``metrics``: of quality, by
    default the built-in ones.

    ``unread``: ids of pairs of which the judge reads both prompts as one. Their images are made,
    for judges that read more, and the folder keeps their margins, which are 0 up to rounding; no
    figure is of them. ``unsteered``: ids of pairs that the method leaves as they are, since the
    generator's text encoders read as one what it steers between. ``uneven``: ids of pairs that were
    chosen and are left out (:func:`left_out`): they are none of ``pairs``.
    """

    @classmethod
    def open(
        cls,
        request: RunRequest,
        pairs: Sequence[Pair] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Study:
        """From a request. Loads the pairs and verifies the models' files; loads no model.

        ``pairs``: these instead of a file's; ``methods``: those that are compared on them, by
        default the request's.

        Raises ``OptionError``, ``PairsError``, ``ModelError``, ``CeilingError`` or ``StoreError``.
        """
        metrics = chosen_metrics(request.metrics)
        config, model, judge = resolve(request)
        if pairs is None:
            pairs = chosen_pairs(config)
        uneven = left_out(model, pairs, methods or [config.method], config.window)
        pairs = [pair for pair in pairs if pair.id not in uneven]
        _refuse_pairs(config, pairs)
        unread = unread_pairs(judge, pairs)
        left = _unsteered(model, pairs, config.method)
        truth = _ground_truth(request.ceiling, judge)
        scheduler = scheduler_of(model.folder)
        subject = Sampling.of(config, scheduler).subject(model.fingerprint)
        # One folder for all runs that can share images: more pairs, alphas or methods extend it.
        name = folder_name(subject, judge=judge.fingerprint)
        folder = RunFolder(Path(request.run_dir or Path(".analogy") / "runs" / name))
        command = Command(
            config, tuple(pairs), model.fingerprint, judge.fingerprint, scheduler, request.lora,
            uneven=uneven,
        )  # fmt: skip
        try:
            if config.sequential:
                check_extension(folder, command)
            study = cls(
                config, pairs, model, judge, folder, truth, unread=unread, unsteered=left,
                uneven=uneven, metrics=metrics, base=base_of(folder, command),
            )  # fmt: skip
            study.record(request.lora)
        except BaseException:
            folder.close()
            raise
        return study

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
        """The study of an earlier command, from what its run folder keeps; loads and looks for
        nothing.

        Without ``model`` and ``judge`` it cannot generate or score what is missing: whoever gives
        them has asked the user, since a run folder may be anyone's. ``unread``: None for those that
        the command's own judge could not read. ``changed``:
        fields of the configuration that have another value now, such as the device; whoever did
        the work then, this process does it now.
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
        if command.ceiling is not None and judge.fingerprint == command.judge:
            truth: GroundTruth | None = GroundTruth(
                folder.path / "index.sqlite", command.judge, command.ceiling
            )
        else:
            truth = _ground_truth(None, judge)
        if unread is None:
            unread = command.unread if judge.fingerprint == command.judge else ()
        return cls(
            config, command.pairs, model, judge, folder, truth, fingerprint=command.model,
            scheduler=command.scheduler, unread=unread, uneven=command.uneven,
            base=base_of(folder, command),
        )  # fmt: skip

    def by(self, method: str, alphas: tuple[float, ...] | None = None) -> Study:
        """The same study by another steering method, in the same open run folder.

        ``alphas``: its strengths; None for the same.
        """
        config = with_method(replace(self.config, alphas=alphas or self.config.alphas), method)
        _refuse_pairs(config, self.pairs)
        left = () if self.model is None else _unsteered(self.model, self.pairs, method)
        return Study(
            config, self.pairs, self.model, self.judge, self.folder, self.truth,
            fingerprint=self.grid.model, scheduler=self.scheduler, unread=self.unread,
            unsteered=left, uneven=self.uneven, metrics=self.quality.metrics,
        )  # fmt: skip

    def record(self, lora: str | None, *, is_comparison: bool = False) -> None:
        """Keep this configuration in the run folder as its latest.

        ``is_comparison``: whether its method is one of several that are compared.
        """
        self.folder.record_config(self.config, provenance_to_json(self.provenance()))
        self.folder.record_command(
            Command(
                self.config,
                tuple(self.pairs),
                self.grid.model,
                self.judge.fingerprint,
                self.scheduler,
                lora,
                self.own_ceiling,
                tuple(pair.id for pair in self.pairs if pair.id in self.unread),
                is_comparison,
                self.uneven,
            )
        )

    def table(self, category: str | None = None, *, null: bool = False) -> pd.DataFrame:
        """Items: a row per judged pair, a column per alpha, NaN where images lack scores.

        Of one category if given; of the null if ``null``.
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
        """Items of the target prompts' own images, by pair id; None where not asked for."""
        if not self.config.target:
            return None
        return self._items(self.grid.jobs(Role.TARGET), self.judged, (TARGET_ALPHA,))[TARGET_ALPHA]

    def _null_table(self, category: str | None = None) -> pd.DataFrame | None:
        return self.table(category, null=True) if self.config.control else None

    def ceiling(self, category: str) -> Ceiling | None:
        """What the judge makes of the category's true targets; None where that is unknown."""
        if self.truth is None:
            return None
        if category not in self._ceilings:
            pairs = [pair for pair in self.judged if pair.category == category]
            self._ceilings[category] = ceilings.ceiling(self.truth, pairs)
        return self._ceilings[category]

    def cell(self, category: str, alpha: float) -> CellFigures:
        """The figures of one cell; ``incomplete`` if any of its images has no score.

        Of a sequential run those of the look at which it stopped.
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
        """All figures of the run; made once from the same items."""
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
        """Each cell's margins of single images by pair id; empty where an item is one image."""
        if len(self.config.seeds) < 2:
            return {}
        frame = self._margins(self.grid.jobs(Role.UNSTEERED, Role.STEERED))
        return seed_margins(frame, self.config.seeds)

    def header(self) -> Header:
        """What the results are of: all that is known before there are any.

        Raises ``RecordedError`` if a name in it has control characters, as a model's folder may.
        """
        digests = {category: self.pairs_digest(category) for category in self.categories}
        return header_of(self.config, self.provenance(), digests)

    def results(self, analysis: Analysis | None = None) -> Results:
        """Everything that ``results.json`` holds; see docs/results.md.

        ``analysis`` is made anew unless given. A cell that lacks images is ``incomplete``.
        ``quality`` has what was asked for of it. Rates and memory are over all work recorded in the
        run folder.
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
            unread=tuple(pair.id for pair in self.pairs if pair.id in self.unread),
            unsteered=tuple(pair.id for pair in self.pairs if pair.id in self.unsteered),
            uneven=self.uneven,
        )


def _refuse_pairs(config: RunConfig, pairs: Sequence[Pair]) -> None:
    """A method that looks at a pair's neighbours needs some; another may not steer every pair."""
    counts = Counter(pair.category for pair in pairs)
    lone = [category for category, count in counts.items() if count < 2]
    if lone and Need.OTHERS in Identity.in_config(config).needs:
        raise OptionError(
            f"--method: {config.method} needs 2 pairs or more in each category, got 1 in "
            f"{', '.join(lone)}; raise --limit, add pairs or choose another method"
        )
    method = METHODS.get(config.method)
    if isinstance(method, SelectiveMethod):
        method.check_pairs(pairs)


def unread_pairs(judge: FoundJudge, pairs: Sequence[Pair]) -> list[str]:
    """The ids of the pairs of which the judge reads both prompts as one.

    Warns of them; raises ``OptionError`` if they are all pairs of a category. Empty if it is not
    known what the judge reads.
    """
    tokenizer = judge.tokenizer()
    same = [] if tokenizer is None else same_to_judge(read_by_judge(tokenizer), pairs)
    if not same:
        return []
    read = {pair.id for pair in pairs} - {pair.id for pair in same}
    dark = [name for name in categories(same) if not _any_of(name, pairs, read)]
    what = f"the judge {judge.fingerprint.partition('@')[0]} reads both prompts"
    if dark:
        mine = [pair for pair in same if pair.category in dark]
        others = [name for name in categories(pairs) if name not in dark]
        leave = command_line(f"--categories={csv_list(others)}") if others else ""
        which = f" of every pair in {csv_list(dark)}" if len(pairs) > 1 else ""
        raise OptionError(
            f"{what}{which} as one ({named(mine)}): the same tokens, whose margin is 0 whatever an "
            f"image shows; {f'leave them out with {leave}, ' if leave else ''}say what differs "
            "earlier or in other words, or choose another judge with --clip-model"
        )
    warnings.warn(
        f"{what} of {len(same):,} of {len(pairs):,} pairs as one ({named(same)}); they are not "
        "judged, and no figure is of them",
        UnreadPairsWarning,
        stacklevel=3,
    )
    return [pair.id for pair in same]


def left_out(
    model: ModelSource, pairs: Sequence[Pair], methods: Sequence[str], window: Window
) -> tuple[str, ...]:
    """The ids of the pairs that a run leaves out, since their prompts have different numbers of
    tokens and one of its methods mixes the two prompts' conditionings.

    Between tensors or masks of different lengths there is no curve. Warns of them; raises
    ``OptionError`` if they are all pairs of a category.
    """
    mixing = [name for name in methods if mixes_prompts(METHODS.get(name), window)]
    uneven = uneven_pairs(model.folder, pairs) if mixing else []
    if not uneven:
        return ()
    why = (
        f"the prompts of {len(uneven):,} of {len(pairs):,} pairs have different numbers of tokens "
        f"({named(uneven)}), and in this model {csv_list(mixing)} needs equal ones"
    )
    kept = {pair.id for pair in pairs} - {pair.id for pair in uneven}
    empty = [name for name in categories(uneven) if not _any_of(name, pairs, kept)]
    if empty:
        raise OptionError(
            f"{why}: no pair is left of {csv_list(empty)}; leave it out with --categories, choose "
            "prompts of equal numbers, or a method that does not mix the two prompts: word, span, "
            "category or prompt"
        )
    warnings.warn(f"{why}; they are left out", UnevenPairsWarning, stacklevel=3)
    return tuple(pair.id for pair in uneven)


def _any_of(category: str, pairs: Sequence[Pair], ids: Collection[str]) -> bool:
    return any(pair.id in ids for pair in pairs if pair.category == category)


def _unsteered(model: ModelSource, pairs: Sequence[Pair], method: str) -> list[str]:
    """The ids of the pairs that the method cannot steer with this model's text encoders.

    Warns of them; raises ``OptionError`` if they are all pairs.
    """
    same = unsteered(readers_of(model.folder), pairs, method)
    if not same:
        return []
    what = f"the model's text encoders read as one what the method {method} steers between"
    if Need.TOKENS in METHODS.get(method).needs:
        what = "the model's text encoders read both words as one, or no token of the source word"
    if len(same) == len(pairs):
        raise OptionError(
            f"{what}, in every pair ({named(same)}): nothing would be steered; say what differs "
            "earlier or in other words, or choose another --method or --model"
        )
    warnings.warn(
        f"{what} in {len(same):,} of {len(pairs):,} pairs ({named(same)}); their images stay "
        "those of alpha 0",
        UnreadPairsWarning,
        stacklevel=3,
    )
    return [pair.id for pair in same]


def _ground_truth(path: str | None, judge: FoundJudge) -> GroundTruth | None:
    """The margins on ground truth for this judge; a file that was named must be of it."""
    file = Path(path) if path else ceilings.default_path()
    if file is None:
        return None
    truth = ceilings.load(file)
    if truth.judge == judge.fingerprint:
        return truth
    if path is None:
        return None
    raise CeilingError(
        f"--ceiling {path}: expected the margins of the judge {judge.fingerprint}, got those of "
        f"{truth.judge}; write them anew with python -m analogy.world.ceiling"
    )
