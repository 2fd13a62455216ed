"""What pytest's cases and ``analogy run`` share: a study with its baseline, findings and outputs.

A case ends in a :class:`Finding`; pytest makes a test's outcome of it, the command line a line and
an exit code. Nothing heavy is imported before a study is opened.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from analogy.files import PlaceError, check_output, is_device
from analogy.options import OptionError
from analogy.pairs import PairsError, PairsWarning, load_pairs, named, select
from analogy.records import PER_SET, Cell, Limit, Pair, Verdict

if TYPE_CHECKING:
    from analogy.baseline import Change
    from analogy.kept import Kept
    from analogy.metrics import Lpips, SetScore
    from analogy.quality import References
    from analogy.records import Estimate
    from analogy.results.model import Analysis, Mean, Results
    from analogy.study import Study

# What must be the shipped baseline's own before it is held against a run unasked.
_OWN_SUBJECT = ("model", "method", "steps", "guidance", "scheduler")


BASELINE = "baseline"
"""What a case measures that compares a cell with the baseline; of others, their metrics' names."""


class Outcome(Enum):
    """How a case ends: a known failure was expected, a skipped one could not be judged."""

    PASSED = "passed"
    FAILED = "failed"
    KNOWN = "known"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one case, why, and the figures that belong to it."""

    outcome: Outcome
    message: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """What the cases of one session share: the study, its options, its baseline, its progress.

    ``values``: the parsed options. ``baseline``: comparable results of an earlier run, or None;
    ``note`` says which or why not. ``update``: where this run's results become the baseline.
    ``is_strict``: no cell is expected to fail. ``limits``: what quality metrics must be; ``held``:
    those that a case has held its cell or alpha to. ``changes``: against the baseline, of a cell or
    of the whole (None), the latest where a case was run again. ``lost``: why results could not be
    written. ``kept``: what became of them in the run folder; ``stays``: why the default results
    file has not got them.
    """

    def __init__(
        self,
        study: Study,
        values: Mapping[str, Any],
        *,
        note: str,
        baseline: Results | None = None,
        update: Path | None = None,
        is_strict: bool = False,
    ) -> None:
        self.study = study
        self.values = values
        self.note = note
        self.baseline = baseline
        self.tolerance: float = values["tolerance"]
        self.update = update
        self.is_strict = is_strict
        self.limits: tuple[Limit, ...] = values["limits"] or ()
        self.planned: dict[Cell, None] = {}  # in the order of the cases
        self.known: set[Cell] = set()
        self.held: set[Limit] = set()
        self.changes: dict[Cell | None, Change] = {}
        self.lost: str | None = None
        self.kept: Kept | None = None
        self.stays: str | None = None
        self._bar: tqdm[Any] | None = None
        self._lpips: Lpips | str | None = None

    @property
    def results(self) -> Path:
        """Where the results go besides the run folder."""
        return _results_of(self.values)

    def known_verdict(self, cell: Cell | None) -> str | None:
        """What the baseline has for a cell, or for the whole, if that is no success."""
        from analogy.baseline import known_not_to_succeed

        if self.baseline is None or self.is_strict:
            return None
        return known_not_to_succeed(self.baseline, cell, self.study.categories)

    def prepare(self) -> None:
        """Load what the planned cells still need; with LPIPS's weights where they were named.

        Raises what :meth:`Study.prepare` does.
        """
        study = self.study
        jobs = {job.key: job for cell in self.planned for job in study.cell_jobs(*cell)}
        study.prepare(list(jobs.values()))
        if self.values["lpips_weights"]:
            self._lpips = load_lpips(self)

    @property
    def lpips(self) -> Lpips | str:
        """LPIPS's network, loaded once, or the reason why there is none."""
        if self._lpips is None:
            self._lpips = load_lpips(self)
        return self._lpips

    def report(self, count: int) -> None:
        """Advance the progress bar; its total is what all planned cells still lack."""
        if self._bar is None:
            study = self.study
            jobs = {
                job.key: job for cell in self.planned for job in study.cell_jobs(*cell)
            }.values()
            left = len(study.execution.missing(jobs)) + count
            is_terminal = sys.stderr.isatty()
            self._bar = tqdm(
                total=left, desc="generating", unit="img", mininterval=0.5 if is_terminal else 30.0
            )
        self._bar.update(count)
        if self._bar.n == self._bar.total:
            self.close()

    def close(self) -> None:
        """Close the progress bar if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def chosen_pairs(values: Mapping[str, Any]) -> list[Pair]:
    """The pairs of the cases. The study reads them again and then warns of what is doubtful: a
    warning while tests are collected may be an error.
    """
    from analogy.models import shipped

    option = "--pairs"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PairsWarning)
            pairs = load_pairs(values["pairs"] or shipped("pairs.csv"))
        option = "--categories"
        return select(pairs, values["categories"], values["limit"])
    except PairsError as error:
        raise OptionError(f"{option}: {error}") from None


def open_bench(values: Mapping[str, Any], *, is_strict: bool) -> Bench:
    """The study of parsed options with its baseline; one of :func:`refusals` says why not."""
    from analogy.study import Study

    _check_place("--results", str(_results_of(values)))
    if values["report"]:
        _check_place("--report", values["report"])
        _check_packages()
    _check_no_file_twice(values)
    _check_quality(values)
    study = Study.open(values)
    try:
        _check_kept(study)
        _check_gates(study, values)
        return _with_baseline(study, values, is_strict=is_strict)
    except BaseException:
        study.close()
        raise


def _results_of(values: Mapping[str, Any]) -> Path:
    """The file that was named with --results, or the default."""
    from analogy.results.model import RESULTS_NAME

    return Path(values["results"] or RESULTS_NAME)


def refusals() -> tuple[type[Exception], ...]:
    """The errors that a user can mend before anything has been done."""
    from analogy.baseline import BaselineError
    from analogy.ceiling import CeilingError
    from analogy.models import ModelError
    from analogy.results.reading import RecordedError
    from analogy.store import StoreError

    return (
        OptionError, PairsError, ModelError, StoreError, CeilingError, BaselineError, RecordedError,
    )  # fmt: skip


def faults() -> tuple[type[Exception], ...]:
    """The errors of the machine, which end a run in its middle and are no case's fault."""
    from analogy.execute import ClusterError
    from analogy.memory import MemoryFullError
    from analogy.models import ModelError
    from analogy.store import StoreError

    return (ClusterError, MemoryFullError, ModelError, StoreError)


def _with_baseline(study: Study, values: Mapping[str, Any], *, is_strict: bool) -> Bench:
    """The study with its baseline: the one that was named must fit, the default one may not."""
    from analogy import baseline as baselines
    from analogy.results.reading import read

    is_named = bool(values["baseline"])
    path = Path(values["baseline"]) if is_named else baselines.default_path(study.config.model)
    now = study.header()
    if values["update_baseline"]:
        if path is None:
            raise OptionError("--update-baseline: expected --baseline FILE to say where")
        baselines.check_replaceable(path, now)
        return Bench(study, values, note=f"to be written to {path}", update=path)
    if path is None or (not is_named and not path.is_file()):
        return Bench(study, values, note="none for this model", is_strict=is_strict)
    old = read(path)
    path = old.header.path or path  # of a run folder, the file that it shows
    different = baselines.measurement_differences(old.header, now)
    if different and is_named:
        raise OptionError(
            f"--baseline {path}: expected results of the same measurement; "
            f"different are {'; '.join(different)}; run with the baseline's options, or write "
            "another baseline with --update-baseline"
        )
    if not is_named:  # nobody asked to compare two models or methods
        different += baselines.subject_differences(old.header, now, of=_OWN_SUBJECT)
    if different:
        note = f"{path}: not of this run, so not used ({'; '.join(different)})"
        return Bench(study, values, note=note, is_strict=is_strict)
    note = f"{path}, tolerance {values['tolerance']:g}"
    return Bench(study, values, note=note, baseline=old, is_strict=is_strict)


def _check_place(flag: str, name: str) -> None:
    """Say now, not after hours of work, that a file has no place."""
    try:
        check_output(name)
    except PlaceError as error:
        raise OptionError(f"{flag}: {error}") from None


def _check_kept(study: Study) -> None:
    """Say now that the run folder has no place for results."""
    from analogy.kept import prepare
    from analogy.store import StoreError

    try:
        prepare(study.folder.path)
    except OSError as error:
        study.close()
        raise StoreError(
            f"run folder {study.folder.path}: expected a place for its results ({error}); choose "
            "another with --run-dir"
        ) from error


def _check_no_file_twice(values: Mapping[str, Any]) -> None:
    """Say now that the run would write one of its files over another."""
    flags: dict[str, str] = {}
    for flag in ("--baseline", "--results", "--report"):
        name = values[flag.removeprefix("--")]
        if flag == "--results":
            name = str(_results_of(values))
        if not name or (Path(name).exists() and is_device(name)):
            continue
        if (other := flags.setdefault(os.path.realpath(name), flag)) != flag:
            raise OptionError(
                f"{flag}: expected another file than that of {other}, which it would replace, "
                f"got {name}"
            )


def _check_packages() -> None:
    """Say now that the report's packages are not installed."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise OptionError(
            f"--report: expected jinja2 and matplotlib, got no {' and no '.join(missing)}; install "
            "them with pip install 'analogy-bench[report]'"
        )


def _check_quality(values: Mapping[str, Any]) -> None:
    """Say now that a file of the quality metrics is missing or cannot be used."""
    from analogy.images import check_images, image_files

    if values["reference"]:
        try:
            check_images(image_files(Path(values["reference"])))
        except ValueError as error:
            raise OptionError(f"--reference: {error}") from None
    weights = values["lpips_weights"]
    if weights and not Path(weights).is_file():
        raise OptionError(f"--lpips-weights: expected a file, got {weights}")


def _check_gates(study: Study, values: Mapping[str, Any]) -> None:
    """Say now that what the user set a bar for cannot be measured in this run."""
    from analogy.metrics import SMALLEST_SIDE, Lpips
    from analogy.models import ModelError
    from analogy.stats import MIN_DECISIVE

    limits: dict[str, Limit] = {limit.metric: limit for limit in values["limits"] or ()}
    size = study.config.size
    for name, least in SMALLEST_SIDE.items():
        if name in limits and size < least:
            raise OptionError(
                f"--limits {limits[name]}: expected images of {least} pixels a side or more, which "
                f"{name} needs, got {size}"
            )
    if "lpips" in limits:
        try:
            Lpips("alex", weights=values["lpips_weights"])
        except ModelError as error:
            raise OptionError(
                f"--limits {limits['lpips']}: expected LPIPS's network, name its weights with "
                f"--lpips-weights FILE: {error}"
            ) from None
    of_sets = [limit for name, limit in limits.items() if name in PER_SET]
    if of_sets:
        missing = _no_references(study, values)
        if missing is None and len(study.judged) * len(study.config.seeds) < 2:
            missing = "there is one image at each alpha, and 2 or more have a distance"
        if missing is not None:
            raise OptionError(f"--limits {of_sets[0]}: expected images to compare with: {missing}")
    if values["baseline"] and not values["update_baseline"] and len(study.judged) < MIN_DECISIVE:
        raise OptionError(
            f"--baseline {values['baseline']}: expected {MIN_DECISIVE} pairs or more, fewer decide "
            f"nothing, got {len(study.judged)}; raise --limit or add pairs"
        )


def gates(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each bar that the user has set, in the words of its option, and what has to be measured."""
    for limit in values["limits"] or ():
        yield f"--limits {limit}", limit.metric
    if values["baseline"] and not values["update_baseline"]:
        yield f"--baseline {values['baseline']}", BASELINE


def unmeasured(values: Mapping[str, Any], bench: Bench | None) -> Iterator[str]:
    """Each bar that the user has set and that no case was held to, in a line: that is no pass.

    ``bench``: None where no case got so far as to ask for it.
    """
    from analogy.baseline import Outcome as Compared

    held = set() if bench is None else bench.held
    changes = [] if bench is None else list(bench.changes.values())
    for limit in values["limits"] or ():
        if limit not in held:
            yield f"limit     NOT measured, so no pass: {limit}"
    if not values["baseline"] or values["update_baseline"]:
        return
    lacking = sum(change.outcome is Compared.INCOMPLETE for change in changes)
    if not any(change.is_decided for change in changes):
        of = f"of {len(changes)} comparisons none decides" if changes else "no case compared"
        yield f"baseline  NOT compared with {values['baseline']}, so no pass: {of}"
    elif lacking:
        yield (
            f"baseline  NOT all compared with {values['baseline']}, so no pass: of {len(changes)} "
            f"comparisons {lacking} lack images"
        )


def judge_cell(bench: Bench, cell: Cell) -> Finding:
    """Say whether steering succeeds in this cell, which must have been measured."""
    study = bench.study
    figures, failed = study.cell(*cell), len(study.failures(study.cell_jobs(*cell)))
    known = bench.known_verdict(cell)
    if known is not None:
        bench.known.add(cell)
    more: dict[str, Any] = {}
    if figures.gain is not None:
        gain = figures.gain.to_dict()
        more = {f"gain_{name}": gain[name] for name in ("mean", "ci_low", "ci_high", "p")}
    if figures.share is not None:
        more["share_of_ceiling"] = figures.share
    return _judge_margin(str(cell), figures.margin, known, failed, more)


def judge_overall(bench: Bench) -> Finding:
    """Say whether steering succeeds over all cells together."""
    study = bench.study
    failed = len(study.failures(study.jobs()))
    known = bench.known_verdict(None)
    return _judge_margin("all categories and alphas", study.overall().margin, known, failed, {})


def _judge_margin(
    what: str, figures: Estimate, known: str | None, failed: int, more: Mapping[str, Any]
) -> Finding:
    """``failed``: images that came out as no picture; ``more``: figures beside the margin's."""
    from analogy.report.text import failed_images, figures_line

    facts = {**more, "failed_images": failed, **figures.to_dict()}
    if figures.verdict in (Verdict.TOO_FEW, Verdict.INCOMPLETE, Verdict.BLIND):
        why = failed_images(failed) if failed else figures_line(figures)
        message = f"{figures.verdict}: {what} cannot be judged ({why})"
        return Finding(Outcome.SKIPPED, message, facts)
    message = f"{what}: {figures.verdict}, {figures_line(figures)}"
    if figures.verdict is Verdict.SUCCESS:
        return Finding(Outcome.PASSED, message, facts)
    if known is not None:
        return Finding(Outcome.KNOWN, f"known {known}; now {message}", facts)
    message += "; success needs the interval above 0 and p < 0.05"
    return Finding(Outcome.FAILED, message, facts)


def load_lpips(bench: Bench) -> Lpips | str:
    """LPIPS's network, or the reason why there is none; weights that were named must be good."""
    from analogy.metrics import Lpips
    from analogy.models import ModelError

    weights = bench.values["lpips_weights"]
    try:
        return Lpips("alex", weights=weights, device=bench.study.config.device)
    except ModelError as error:
        if weights:
            raise
        return str(error)


def load_references(bench: Bench) -> References | str:
    """The images that the grid's should be distributed like, or the reason why there are none."""
    import numpy as np

    from analogy.quality import References

    folder, study = bench.values["reference"], bench.study
    missing = _no_references(study, bench.values)
    if missing is not None:
        return missing
    if folder is not None:
        try:
            return References.of_folder(Path(folder), study.execution.judge)
        except ValueError as error:  # of a file that cannot be read as an image
            raise OptionError(f"--reference: {error}") from None
    from fixtures.ceiling import drawings

    drawn = [drawings(pair, len(study.config.seeds)) for pair in study.judged]
    targets = np.stack([target for twins in drawn for _, target in twins])
    features = study.execution.judge.image_features(targets)
    return References("drawings of the pairs' targets", features)


def _no_references(study: Study, values: Mapping[str, Any]) -> str | None:
    """The reason why there is nothing to compare all images with; None where there is."""
    from analogy.models import EMBEDDED

    if values["reference"] is not None:
        return None
    if study.config.model != EMBEDDED:
        return "name some with --reference FOLDER"
    try:
        from fixtures.ceiling import scenes
        from fixtures.world import CaptionError
    except ImportError as error:
        return f"drawings are made in a checkout only ({error}); or name --reference FOLDER"
    try:
        for pair in study.pairs:
            scenes(pair, random.Random(0))
    except CaptionError as error:
        return f"no drawings of these pairs ({error})"
    return None


def judge_quality(
    bench: Bench,
    what: str,
    found: Mapping[str, Mean | SetScore],
    metrics: Collection[str] | None = None,
) -> Finding:
    """Say whether the quality metrics of a cell, or of an alpha, keep the user's limits.

    ``metrics``: all that is to be found of it; a limit on one that was not breaks that limit.
    """
    values = {name: _interval(figures) for name, figures in found.items() if figures.n}
    values = {name: value for name, value in values.items() if not math.isnan(value[0])}
    broken = []
    for limit in bench.limits:
        if limit.metric in values:
            bench.held.add(limit)
            value, low, high = values[limit.metric]
            if limit.is_broken(low, high):
                broken.append(f"{limit.metric} {value:.4g} [{low:.4g}, {high:.4g}], limit {limit}")
        elif limit.metric in (metrics or ()):
            broken.append(f"{limit.metric} was not measured, limit {limit}")
    facts: dict[str, Any] = {}
    for name, (value, low, high) in values.items():
        facts[name] = value
        if low < high:
            facts |= {f"{name}_ci_low": low, f"{name}_ci_high": high}
    if broken:
        return Finding(Outcome.FAILED, f"{what}: {'; '.join(broken)}", facts)
    if not values or len(values) < len(found):
        return Finding(Outcome.SKIPPED, f"{what}: {_not_there(bench, found)}", facts)
    return Finding(Outcome.PASSED, what, facts)


def _not_there(bench: Bench, found: Mapping[str, Mean | SetScore]) -> str:
    """Why a cell or an alpha was not measured."""
    references = bench.study.quality.references
    if not found and isinstance(references, str):
        return f"nothing to compare with: {references}"
    return "images are missing"


def _interval(figures: Mean | SetScore) -> tuple[float, float, float]:
    """A value with its interval; what has none is its own."""
    from analogy.metrics import SetScore

    if isinstance(figures, SetScore):
        return figures.value, figures.value, figures.value
    if figures.ci_low != figures.ci_low:
        return figures.mean, figures.mean, figures.mean
    return figures.mean, figures.ci_low, figures.ci_high


def judge_regression(bench: Bench, cell: Cell | None) -> Finding:
    """Say whether a cell, or the whole, is no worse than in the baseline, which must be there."""
    from analogy.baseline import Outcome as Compared
    from analogy.baseline import compare_cell, compare_overall, n_comparisons

    study, old = bench.study, bench.baseline
    if old is None:
        raise ValueError("judge_regression: expected a bench with a baseline, got none")
    if cell is None:
        change = compare_overall(old, study.results(), tolerance=bench.tolerance)
    else:
        change = compare_cell(
            old,
            study.cell(*cell),
            tolerance=bench.tolerance,
            comparisons=n_comparisons(study.header()),
        )
    bench.changes[cell] = change
    outcome = Outcome.PASSED
    if not change.is_decided:
        outcome = Outcome.SKIPPED
    elif change.outcome is Compared.REGRESSED:
        outcome = Outcome.FAILED
    return Finding(outcome, change.message(), change.to_dict())


def write_outputs(bench: Bench, results: Results) -> bool:
    """Write results, report and baseline as asked for; whether all of them were written.

    A baseline that may not be replaced is said in the bench's note; a file that cannot be written
    is an ``OSError`` or ``StoreError``.
    """
    from analogy.baseline import BaselineError, write
    from analogy.kept import keep, put
    from analogy.results.writing import write_results

    bench.kept = keep(results, bench.study.folder.path)
    results = bench.kept.results
    if bench.values["results"]:  # the user's own word
        write_results(results, bench.results)
    else:
        bench.stays = put(results, bench.results)
    if bench.values["report"]:
        _write_report(bench, results, Path(bench.values["report"]))
    if bench.update is not None:
        try:
            write(results, bench.update)
            bench.note = f"written to {bench.update}"
        except BaselineError as error:
            bench.note = f"NOT written: {error}"
            return False
    return True


def _write_report(bench: Bench, results: Results, path: Path) -> None:
    from analogy.baseline import compare
    from analogy.report.html import write_report

    comparison = None
    if bench.baseline is not None:
        comparison = compare(bench.baseline, results, tolerance=bench.tolerance)
    write_report(results, path, folder=bench.study.folder.path, comparison=comparison)


def interrupted(bench: Bench) -> str:
    """How to go on after Ctrl-C."""
    return (
        f"interrupted: what was done is kept in {bench.study.folder.path}; the same command "
        "goes on from there"
    )


def summary(bench: Bench, analysis: Analysis) -> Iterator[str]:
    """The table (category x alpha, the control among them, and the whole) and all around it."""
    from analogy.report import text

    for lines in (
        _heading(bench),
        text.verdict_table(analysis, bench.known),
        text.failure_lines(bench.study.failures(bench.study.jobs())),
        text.reading_notes(analysis),
        text.trend_table(analysis),
        text.null_table(analysis),
        text.target_table(analysis),
        text.quality_table(bench.study.quality),
        _against_published(bench, analysis),
        _against_baseline(bench),
        _rates(bench),
    ):
        block = list(lines)
        yield from block
        if block:
            yield ""


def _heading(bench: Bench) -> Iterator[str]:
    from analogy.baseline import subject_differences

    study, run = bench.study, bench.study.config
    yield f"model     {study.model.fingerprint}"
    yield f"judge     {study.judge.fingerprint}"
    yield (
        f"steering  {run.method}; {run.steps} steps, guidance {run.guidance:g}, {run.size} px, "
        f"{run.dtype} on {run.device}, seeds {', '.join(map(str, run.seeds))}"
    )
    yield f"run       {study.folder.path}"
    if study.folder.note:
        yield f"note      {study.folder.note}"
    yield f"baseline  {bench.note}"
    if bench.baseline is not None:
        different = subject_differences(bench.baseline.header, study.header())
        if different:
            yield f"differs   {'; '.join(different)}"
    yield from unread_lines(study)
    if bench.is_strict:
        yield "strict    no cell is expected to fail"
    if run.limit is not None:
        yield f"limit     {run.limit} pairs per category: not the whole measurement"


def unread_lines(study: Study) -> Iterator[str]:
    """The pairs that the judge or the model reads as one, for before the work and after."""
    for name, ids, why in (
        ("unread", study.unread, "the judge reads both prompts as one; no figure is of them"),
        ("unsteered", study.unsteered, "the model reads as one what the method steers between"),
    ):
        pairs = [pair for pair in study.pairs if pair.id in ids]
        if pairs:
            yield f"{name:<9} {len(pairs):,} of {len(study.pairs):,} pairs: {why} ({named(pairs)})"


def _against_published(bench: Bench, analysis: Analysis) -> Iterator[str]:
    from analogy.models import DEFAULT_GPU_MODEL, shipped
    from analogy.report import text

    if bench.study.config.model.partition("@")[0] != DEFAULT_GPU_MODEL:
        return
    published = json.loads(shipped("baselines/ssd-1b-published.json").read_text("utf-8"))
    yield from text.published_lines(published, analysis.overall)


def _against_baseline(bench: Bench) -> Iterator[str]:
    if not bench.changes:
        return
    from analogy.baseline import Outcome as Compared

    counts = Counter(change.outcome for change in bench.changes.values())
    yield "against the baseline: " + ", ".join(
        f"{counts[outcome]} {outcome}" for outcome in Compared if counts[outcome]
    )
    for change in bench.changes.values():
        if change.outcome in (Compared.REGRESSED, Compared.IMPROVED):
            yield f"  {change.message()}"


def _rates(bench: Bench) -> Iterator[str]:
    for stage, verb in (("generate", "generated"), ("score", "scored")):
        rate = bench.study.folder.rate(stage)
        yield f"{verb:<9} " + ("nothing yet" if rate is None else f"{rate:.1f} images/s")
    for name, rate in bench.study.folder.worker_rates().items():
        yield f"  worker  {name}: {rate:.1f} images/s"
    peak = bench.study.folder.peak_memory()
    if peak is not None:
        yield f"memory    {peak / 2**30:.1f} GiB of the device at most"
    if bench.kept is not None:
        yield from bench.kept.lines()
    if bench.kept is None or bench.stays is None:
        yield f"results   {bench.results}"
    else:
        yield f"results   {bench.kept.file}, but not {bench.results}: --results FILE writes one;"
        yield f"          {bench.stays}"
    if bench.values["report"]:
        yield f"report    {bench.values['report']}"
