"""A run from end to end: resolve the options, do the missing work, estimate cells and the whole."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from analogy import ceiling as ceilings
from analogy._version import __version__
from analogy.analysis import analyse, cell_figures, item_table, pool
from analogy.ceiling import CeilingError, GroundTruth
from analogy.clip import JudgeSource
from analogy.engine import Progress, Setup, no_progress
from analogy.execute import Execution
from analogy.grid import (
    TARGET_ALPHA,
    Command,
    Grid,
    Job,
    Role,
    Sampling,
    TrueMargins,
    content,
    digest,
    pairs_digest,
)
from analogy.grid_metrics import GridMetric, chosen_metrics
from analogy.judges import FoundJudge, Judge
from analogy.models.defaults import machine
from analogy.models.folders import scheduler_settings
from analogy.models.places import ModelSource
from analogy.options import csv_list, parse_device
from analogy.pairs import UnreadPairsWarning, categories, load_pairs, named, select
from analogy.quality import Quality
from analogy.reading import read_by_judge, readers_of, same_to_judge, unsteered
from analogy.records import Cell, Pair, RunConfig
from analogy.request import OptionError, RunRequest
from analogy.resolve import check_device, resolve
from analogy.results.model import (
    Analysis,
    Ceiling,
    CellFigures,
    Failure,
    Header,
    Pool,
    Provenance,
    Results,
    Throughput,
)
from analogy.results.reading import header_of
from analogy.results.writing import provenance_to_json
from analogy.statistics.items import items_from_margins
from analogy.steering.base import Identity, Need, with_method
from analogy.store import RunFolder, folder_name
from analogy.text import command_line

PACKAGES = (
    "torch", "diffusers", "transformers", "open_clip_torch", "numpy", "scipy", "statsmodels",
    "pandas", "pytest",
)  # fmt: skip


class Study:
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
    generator's text encoders read as one what it steers between.
    """

    def __init__(
        self,
        config: RunConfig,
        pairs: Sequence[Pair],
        model: ModelSource | None,
        judge: FoundJudge,
        folder: RunFolder,
        truth: GroundTruth | None = None,
        *,
        fingerprint: str | None = None,
        scheduler: str | None = None,
        unread: Collection[str] = (),
        unsteered: Collection[str] = (),
        metrics: Sequence[GridMetric] | None = None,
    ) -> None:
        self.config = config
        self.pairs = list(pairs)
        self.unread = frozenset(unread)
        self.unsteered = frozenset(unsteered)
        self.judged = [pair for pair in self.pairs if pair.id not in self.unread]
        self.model = model
        self.judge = judge
        self.folder = folder
        self.truth = truth
        self._ceilings: dict[str, Ceiling | None] = {}
        self._analysed: tuple[Any, Analysis] | None = None
        if model is not None:
            fingerprint = model.fingerprint
            scheduler = scheduler or scheduler_of(model.folder)
        if fingerprint is None or scheduler is None:
            raise TypeError("a study without a model needs its fingerprint and its scheduler")
        self.scheduler = scheduler
        self.execution = Execution(Setup(config, self.pairs, model, judge), folder)
        self.grid = Grid(config, fingerprint, scheduler, pairs)
        self.quality = Quality(
            config,
            self._judged(self.grid.jobs(Role.UNSTEERED, Role.STEERED)),
            folder,
            lambda: self.execution.judge,
            judge.fingerprint,
            metrics,
        )

    @classmethod
    def open(cls, request: RunRequest, pairs: Sequence[Pair] | None = None) -> Study:
        """From a request. Loads the pairs and verifies the models' files; loads no model.

        ``pairs``: these instead of a file's.

        Raises ``OptionError``, ``PairsError``, ``ModelError``, ``CeilingError`` or ``StoreError``.
        """
        metrics = chosen_metrics(request.metrics)
        config, model, judge = resolve(request)
        if pairs is None:
            pairs = select(load_pairs(config.pairs), config.categories, config.limit)
        _refuse_lone_pairs(config, pairs)
        unread = unread_pairs(judge, pairs)
        left = _unsteered(model, pairs, config.method)
        truth = _ground_truth(request.ceiling, judge)
        scheduler = scheduler_of(model.folder)
        subject = Sampling.of(config, scheduler).subject(model.fingerprint)
        # One folder for all runs that can share images: more pairs, alphas or methods extend it.
        name = folder_name(subject, judge=judge.fingerprint)
        path = request.run_dir or Path(".analogy") / "runs" / name
        study = cls(
            config, pairs, model, judge, RunFolder(Path(path)), truth,
            unread=unread, unsteered=left, metrics=metrics,
        )  # fmt: skip
        study.record(request.lora)
        return study

    @classmethod
    def reopen(
        cls,
        folder: RunFolder,
        command: Command,
        *,
        model: ModelSource | None = None,
        judge: FoundJudge | None = None,
        unread: Collection[str] = (),
        **changed: Any,
    ) -> Study:
        """The study of an earlier command, from what its run folder keeps; loads and looks for
        nothing.

        Without ``model`` and ``judge`` it cannot generate or score what is missing: whoever gives
        them has asked the user, since a run folder may be anyone's. ``changed``:
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
        return cls(
            config, command.pairs, model, judge, folder, truth, fingerprint=command.model,
            scheduler=command.scheduler, unread=unread,
        )  # fmt: skip

    def by(self, method: str) -> Study:
        """The same study by another steering method, in the same open run folder."""
        config = with_method(self.config, method)
        _refuse_lone_pairs(config, self.pairs)
        left = () if self.model is None else _unsteered(self.model, self.pairs, method)
        return Study(
            config, self.pairs, self.model, self.judge, self.folder, self.truth,
            fingerprint=self.grid.model, scheduler=self.scheduler, unread=self.unread,
            unsteered=left, metrics=self.quality.metrics,
        )  # fmt: skip

    def record(self, lora: str | None) -> None:
        """Keep this configuration in the run folder as its latest."""
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
            )
        )

    @property
    def own_ceiling(self) -> TrueMargins | None:
        """The margins on ground truth that the user gave for these pairs; None if the suite's own.

        The run folder keeps them: the file that they came from may be gone when it is opened again.
        """
        default = ceilings.default_path()
        if self.truth is None or (default and self.truth.path.resolve() == default.resolve()):
            return None
        known = self.truth.pairs
        keys = (digest(content(pair)) for pair in self.pairs)
        return {key: known[key] for key in keys if key in known}

    @property
    def categories(self) -> list[str]:
        """The categories of this run, in the pairs' order."""
        return categories(self.pairs)

    def jobs(self, category: str | None = None, alpha: float | None = None) -> list[Job]:
        """The grid's jobs, of one category or alpha if given; the target images, which are of no
        alpha of the grid, only if none is given. Each key once.
        """
        if alpha is None:
            return self.grid.jobs(category=category)
        roles = (Role.UNSTEERED, Role.STEERED, Role.NULL)
        return self.grid.jobs(*roles, category=category, alpha=alpha)

    def cell_jobs(self, category: str, alpha: float) -> list[Job]:
        """A cell's jobs, with the unsteered, null and target images that it is compared with."""
        return self.grid.cell(Cell(category, alpha))

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Load the models that these jobs still need: a fault in one is then said before any image.

        Raises ``ModelError``, ``MemoryFullError`` or ``ClusterError``.
        """
        self.execution.prepare(jobs)

    def generate(
        self,
        jobs: Sequence[Job],
        progress: Progress = no_progress,
        *,
        ahead: Iterable[Sequence[Job]] = (),
    ) -> None:
        """Generate the images among ``jobs`` that are missing.

        ``ahead``: what will be asked for next; several workers generate it at once.
        """
        self.execution.generate(jobs, progress, ahead=ahead)

    def prepare_judge(self) -> None:
        """Load the judge where images are scored, so that timing leaves it out."""
        self.execution.prepare_judge()

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that have no image and have not failed in this process."""
        return self.execution.missing(jobs)

    def loaded_judge(self) -> Judge:
        """The judge, loaded in this process."""
        return self.execution.judge

    def score(self, jobs: Sequence[Job]) -> int:
        """Score the images among ``jobs`` that are not; returns how many those were."""
        return self.execution.score(jobs)

    def close(self) -> None:
        """Release the workers and the run folder."""
        self.execution.close()
        self.folder.close()

    def failures(self, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
        """The jobs whose image came out as no picture, each with the reason."""
        return self.folder.failures(jobs)

    def unscored(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs with an image that this run's judge has not scored."""
        return self.folder.without_score(jobs, self.judge.fingerprint)

    def _judged(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs but for those of pairs whose prompts the judge cannot tell apart."""
        if not self.unread:
            return jobs
        return [job for job in jobs if job.pair.id not in self.unread]

    def table(self, category: str | None = None, *, null: bool = False) -> pd.DataFrame:
        """Items: a row per judged pair, a column per alpha, NaN where images lack scores.

        Of one category if given; of the random control if ``null``.
        """
        pairs = [pair for pair in self.judged if category in (None, pair.category)]
        roles = (Role.UNSTEERED, Role.NULL if null else Role.STEERED)
        jobs = self.grid.jobs(*roles, category=category)
        return self._items(jobs, pairs, self.config.grid_alphas)

    def _items(
        self, jobs: Sequence[Job], pairs: Sequence[Pair], alphas: Sequence[float]
    ) -> pd.DataFrame:
        """The complete items of jobs of one method."""
        items = items_from_margins(self.folder.margins(jobs, self.judge.fingerprint))
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
        """The figures of one cell; ``incomplete`` if any of its images has no score."""
        return cell_figures(
            self.table(category),
            Cell(category, alpha),
            null=self._null_table(category),
            ceiling=self.ceiling(category),
        )

    def overall(self) -> Pool:
        """All cells pooled, the control left out, pairs as clusters."""
        return pool(self.table())

    def analysis(self) -> Analysis:
        """All figures of the run; made once from the same items."""
        table, null, targets = self.table(), self._null_table(), self.targets()
        of = [
            None if each is None else each.to_numpy().tobytes() for each in (table, null, targets)
        ]
        if self._analysed is None or self._analysed[0] != of:
            seen = {category: self.ceiling(category) for category in self.categories}
            self._analysed = (
                of,
                analyse(table, self.judged, null=null, targets=targets, ceilings=seen),
            )
        return self._analysed[1]

    def pairs_digest(self, category: str) -> str:
        """What identifies a category's pairs: their ids and contents, whatever their order."""
        return pairs_digest(pair for pair in self.pairs if pair.category == category)

    def provenance(self) -> Provenance:
        """What produced this run's figures."""
        own = self.own_ceiling
        return Provenance(
            suite=__version__,
            model=self.grid.model,
            judge=self.judge.fingerprint,
            scheduler=self.scheduler,
            packages=package_versions(),
            git_commit=_git_commit(),
            machine=machine(self.config.device),
            python=sys.version.split()[0],
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ceiling=None if own is None else digest(dict(own)),
        )

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
            failures=tuple(_failure(*failed) for failed in self.failures(self.jobs())),
            throughput=Throughput(
                self.folder.rate("generate"), self.folder.rate("score"), self.folder.worker_rates()
            ),
            peak_memory_bytes=self.folder.peak_memory(),
            unread=tuple(pair.id for pair in self.pairs if pair.id in self.unread),
            unsteered=tuple(pair.id for pair in self.pairs if pair.id in self.unsteered),
        )


def _failure(job: Job, reason: str) -> Failure:
    method = None if job.alpha == 0.0 else job.method
    return Failure(job.pair.id, job.pair.category, job.alpha, job.seed, method, reason)


def _refuse_lone_pairs(config: RunConfig, pairs: Sequence[Pair]) -> None:
    """A method that looks at a pair's neighbours needs some."""
    counts = Counter(pair.category for pair in pairs)
    lone = [category for category, count in counts.items() if count < 2]
    if lone and Need.OTHERS in Identity.in_config(config).needs:
        raise OptionError(
            f"--method: {config.method} needs 2 pairs or more in each category, got 1 in "
            f"{', '.join(lone)}; raise --limit, add pairs or choose another method"
        )


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


def scheduler_of(folder: Path) -> str:
    """The scheduler's class and a digest of its settings."""
    settings = scheduler_settings(folder)
    return f"{settings['_class_name']}/{digest(settings)[:8]}"


@cache
def package_versions() -> dict[str, str]:
    """The versions of the packages that figures depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


#: What has git look at another repository than that of the folder it is given; set in hooks.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE")


@cache
def _git_commit() -> str | None:
    """The checkout's commit, with ``+changes`` if tracked files differ; None outside of one."""
    return commit_of(Path(__file__).resolve().parents[1])


def commit_of(checkout: Path) -> str | None:
    """The commit of a checkout of the suite at its top; None for any other folder.

    An installed package may lie within a repository that has nothing to do with it.
    """
    environment = {name: text for name, text in os.environ.items() if name not in _ELSEWHERE}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()

    try:
        if not Path(git("rev-parse", "--show-toplevel")).samefile(checkout):
            return None
        git("ls-files", "--error-unmatch", "analogy/study.py")
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
