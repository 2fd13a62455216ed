"""The pytest side: options, the ``bench`` and ``cell`` fixtures, the table and the results file.

Loaded by the root ``conftest.py``; elsewhere by ``pytest -p analogy.plugin``. Nothing heavy is
imported before a benchmark asks for the study.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tqdm import tqdm

from analogy.options import OPTIONS, OptionError, parse_options
from analogy.pairs import PairsError, WeakCategoryWarning, categories, load_pairs, select
from analogy.records import Cell, Limit, Pair

if TYPE_CHECKING:
    from analogy.analysis import Analysis
    from analogy.baseline import Change
    from analogy.recorded import Recorded
    from analogy.store import Job
    from analogy.study import Study


_VALUES = pytest.StashKey[dict[str, Any]]()
# What must be the shipped baseline's own before it is held against a run unasked.
_OWN_SUBJECT = ("model", "method", "steps", "guidance", "scheduler")

_BENCH = pytest.StashKey["Bench"]()
_ANALYSIS = pytest.StashKey["Analysis"]()


class Bench:
    """What the cases of one pytest session share: the study, its baseline, its progress.

    ``baseline``: comparable results of an earlier run, or None; ``note`` says which or why not.
    ``update``: where this run's results become the baseline. ``is_strict``: no cell is expected to
    fail. ``limits``: what quality metrics must be. ``lost``: why results could not be written.
    """

    def __init__(
        self,
        study: Study,
        *,
        note: str,
        baseline: Recorded | None = None,
        tolerance: float = 0.0,
        update: Path | None = None,
        is_strict: bool = False,
    ) -> None:
        self.study = study
        self.note = note
        self.baseline = baseline
        self.tolerance = tolerance
        self.update = update
        self.is_strict = is_strict
        self.limits: tuple[Limit, ...] = ()
        self.planned: set[Cell] = set()
        self.known: set[Cell] = set()
        self.changes: list[Change] = []
        self.lost: str | None = None
        self._bar: tqdm[Any] | None = None

    def known_verdict(self, cell: Cell | None) -> str | None:
        """What the baseline has for a cell, or for the whole, if that is no success."""
        from analogy.baseline import known_not_to_succeed

        if self.baseline is None or self.is_strict:
            return None
        return known_not_to_succeed(self.baseline, cell, self.study.categories)

    def report(self, count: int) -> None:
        """Advance the progress bar; its total is what all planned cells still lack."""
        if self._bar is None:
            study = self.study
            jobs = {
                job.key: job for cell in self.planned for job in study.cell_jobs(*cell)
            }.values()
            left = len(study.worker.missing(jobs)) + count
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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the suite's options in a group of their own."""
    group = parser.getgroup(
        "analogy",
        "analogy steering benchmark (pytest benchmarks); pytest's own --strict also makes it "
        "ignore the baseline",
    )
    for option in OPTIONS:
        if option.parse is None:
            group.addoption(option.flag, action="store_true", dest=option.name, help=option.help)
            continue
        shown = "" if option.default is None else f" [default: {option.default}]"
        group.addoption(
            option.flag,
            dest=option.name,
            default=option.default,
            metavar=option.metavar,
            help=option.help + shown,
        )

    group.addoption(
        "--perf",
        action="store_true",
        help="measure throughput against what users would write (minutes): the cases marked perf, "
        "which are left out without it",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what measures throughput unless asked for."""
    if config.getoption("--perf"):
        return
    left_out = [item for item in items if item.get_closest_marker("perf")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_configure(config: pytest.Config) -> None:
    """Read the options at once, so that a wrong value is said before anything starts."""
    try:
        values = config.stash[_VALUES] = parse_options(config.getoption)
        if values["pairs"] or values["categories"]:
            _chosen_pairs(values)
    except OptionError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for every category, every category and alpha (``cell``), or every alpha with the
    control (``strength``), of the pairs.

    For cases that ask for the ``bench``: others may call their own arguments so.
    """
    names = {"cell", "category", "strength"} & set(metafunc.fixturenames)
    if not names or "bench" not in metafunc.fixturenames:
        return
    values = metafunc.config.stash[_VALUES]
    chosen = categories(_chosen_pairs(values))
    if "category" in names:
        metafunc.parametrize("category", chosen)
    if "strength" in names:
        metafunc.parametrize("strength", (0.0, *values["alphas"]), ids="alpha-{:g}".format)
    if "cell" in names:
        cells = [Cell(category, alpha) for category in chosen for alpha in values["alphas"]]
        metafunc.parametrize("cell", cells, ids=[f"{c.category}-{c.alpha:g}" for c in cells])


def _chosen_pairs(values: dict[str, Any]) -> list[Pair]:
    """The pairs of the cases. The study reads them again and then warns of weak categories: a
    warning while tests are collected may be an error.
    """
    from analogy.models import shipped

    option = "--pairs"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WeakCategoryWarning)
            pairs = load_pairs(values["pairs"] or shipped("pairs.csv"))
        option = "--categories"
        return select(pairs, values["categories"], values["limit"])
    except PairsError as error:
        raise OptionError(f"{option}: {error}") from None


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The session's study, opened at the first case that asks for it."""
    config = request.config
    if hasattr(config, "workerinput"):
        pytest.exit(
            "pytest-xdist is not supported: cases that time each other's work measure nothing. "
            "Run without -n; larger batches (--batch-size) use the processor better.",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    made = _open(config)
    for item in request.session.items:
        callspec = getattr(item, "callspec", None)
        params = {} if callspec is None else callspec.params
        if "cell" in params:
            made.planned.add(params["cell"])
        elif "bench" in getattr(item, "fixturenames", ()) and not {"category"} & set(params):
            study = made.study
            made.planned |= {Cell(c, a) for c in study.categories for a in study.config.alphas}
    config.stash[_BENCH] = made
    yield made
    made.close()


def _open(config: pytest.Config) -> Bench:
    from analogy.baseline import BaselineError
    from analogy.ceiling import CeilingError
    from analogy.models import ModelError
    from analogy.recorded import RecordedError
    from analogy.store import StoreError
    from analogy.study import Study

    values = config.stash[_VALUES]
    try:
        _check_place("--results", values["results"])
        if values["report"]:
            _check_place("--report", values["report"])
            _check_packages()
        _check_quality(values)
        study = Study.open(values)
        made = _with_baseline(study, values, is_strict=bool(config.option.strict))
    except (
        OptionError, PairsError, ModelError, StoreError, CeilingError, BaselineError, RecordedError,
    ) as error:  # fmt: skip
        pytest.exit(f"{error}", returncode=pytest.ExitCode.USAGE_ERROR)
    made.limits = values["limits"] or ()
    return made


def _with_baseline(study: Study, values: dict[str, Any], *, is_strict: bool) -> Bench:
    """The study with its baseline: the one that was named must fit, the default one may not."""
    from analogy import baseline as baselines
    from analogy import recorded

    is_named = bool(values["baseline"])
    path = Path(values["baseline"]) if is_named else baselines.default_path(study.config.model)
    now = recorded.of_header(study.header())
    if values["update_baseline"]:
        if path is None:
            raise OptionError("--update-baseline: expected --baseline FILE to say where")
        baselines.check_replaceable(path, now)
        return Bench(study, note=f"to be written to {path}", update=path)
    if path is None or (not is_named and not path.is_file()):
        return Bench(study, note="none for this model", is_strict=is_strict)
    old = recorded.read(path)
    different = baselines.measurement_differences(old, now)
    if different and is_named:
        raise OptionError(
            f"--baseline {path}: expected results of the same measurement; "
            f"different are {'; '.join(different)}; run with the baseline's options, or write "
            "another baseline with --update-baseline"
        )
    if not is_named:  # nobody asked to compare two models or methods
        different += baselines.subject_differences(old, now, of=_OWN_SUBJECT)
    if different:
        note = f"{path}: not of this run, so not used ({'; '.join(different)})"
        return Bench(study, note=note, is_strict=is_strict)
    return Bench(
        study,
        note=f"{path}, tolerance {values['tolerance']:g}",
        baseline=old,
        tolerance=values["tolerance"],
        is_strict=is_strict,
    )


def _check_place(flag: str, name: str) -> None:
    """Say now, not after hours of work, that a file has no place."""
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_possible = not path.is_dir()
    except OSError:
        is_possible = False
    if not is_possible:
        raise OptionError(f"{flag}: expected a file that can be written, got {path}")


def _check_packages() -> None:
    """Say now that the report's packages are not installed."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise OptionError(
            f"--report: expected jinja2 and matplotlib, got no {' and no '.join(missing)}; install "
            "them with pip install 'analogy-bench[report]'"
        )


def _check_quality(values: dict[str, Any]) -> None:
    """Say now that what the quality metrics were promised is not there."""
    from analogy.images import image_files

    if values["reference"]:
        try:
            image_files(Path(values["reference"]))
        except ValueError as error:
            raise OptionError(f"--reference: {error}") from None
    weights = values["lpips_weights"]
    if weights and not Path(weights).is_file():
        raise OptionError(f"--lpips-weights: expected a file, got {weights}")


@contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let the progress bar through pytest's capture."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    with capture.global_and_fixture_disabled():
        yield


def measure(bench: Bench, jobs: list[Job], request: pytest.FixtureRequest) -> None:
    """Generate what is missing, then score it under the benchmark's clock; never cached scores."""
    study = bench.study
    with uncaptured(request.config):
        study.generate(jobs, bench.report)
    unscored = study.unscored(jobs)
    if not unscored:
        return
    study.worker.judge  # noqa: B018  loads the judge before the clock starts
    benchmark: Callable[..., int] = request.getfixturevalue("benchmark")
    count = benchmark.pedantic(study.score, args=(unscored,), rounds=1)  # type: ignore[attr-defined]
    seconds = benchmark.stats.stats.total if benchmark.stats else None  # type: ignore[attr-defined]
    rate = count / seconds if seconds else None
    benchmark.extra_info.update(images=count, images_per_s=rate)  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """End the session where the machine fails: no cell's fault, and the next one's is the same."""
    if "bench" not in getattr(item, "fixturenames", ()):
        return (yield)
    from analogy.memory import MemoryFullError
    from analogy.store import StoreError

    try:
        return (yield)
    except (MemoryFullError, StoreError) as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.INTERNAL_ERROR)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Write results.json, and the baseline if asked to, whatever has been measured so far."""
    bench = session.config.stash.get(_BENCH, None)
    if bench is not None:
        from analogy.store import StoreError

        try:
            _write_results(bench, session)
        except (StoreError, OSError) as error:
            bench.lost = str(error)
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
    return (yield)


def _write_results(bench: Bench, session: pytest.Session) -> None:
    from analogy.baseline import BaselineError, write
    from analogy.recorded import RESULTS_NAME, write_results

    study = bench.study
    analysis = session.config.stash[_ANALYSIS] = study.analysis()
    results = study.results(analysis)
    write_results(results, study.folder.path / RESULTS_NAME)
    values = session.config.stash[_VALUES]
    write_results(results, Path(values["results"]))
    if values["report"]:
        _write_report(bench, results, Path(values["report"]))
    if bench.update is not None:
        try:
            write(results, bench.update)
            bench.note = f"written to {bench.update}"
        except BaselineError as error:
            bench.note = f"NOT written: {error}"
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _write_report(bench: Bench, results: dict[str, Any], path: Path) -> None:
    from analogy.baseline import compare
    from analogy.recorded import of
    from analogy.report.html import write_report

    comparison = None
    if bench.baseline is not None:
        comparison = compare(bench.baseline, of(results), tolerance=bench.tolerance)
    write_report(results, path, folder=bench.study.folder.path, comparison=comparison)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let others write to the run folder."""
    bench = config.stash.get(_BENCH, None)
    if bench is not None:
        bench.study.folder.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """The table: category x alpha, the control among them, and the whole; or how to go on."""
    config = terminalreporter.config
    bench, analysis = config.stash.get(_BENCH, None), config.stash.get(_ANALYSIS, None)
    if bench is None:
        return
    if bench.lost is not None:
        terminalreporter.write_line(f"results   NOT written: {bench.lost}", red=True)
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        terminalreporter.write_line(
            f"interrupted: what was done is kept in {bench.study.folder.path}; the same command "
            "goes on from there"
        )
    if analysis is None:
        return
    from analogy.report import text

    terminalreporter.section("analogy steering", sep="=")
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
        _rates(bench, config.stash[_VALUES]),
    ):
        block = list(lines)
        for line in block:
            terminalreporter.write_line(line)
        if block:
            terminalreporter.write_line("")


def _heading(bench: Bench) -> Iterator[str]:
    from analogy.baseline import subject_differences
    from analogy.recorded import of_header

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
        different = subject_differences(bench.baseline, of_header(study.header()))
        if different:
            yield f"differs   {'; '.join(different)}"
    if bench.is_strict:
        yield "strict    no cell is expected to fail"
    if run.limit is not None:
        yield f"limit     {run.limit} pairs per category: not the whole measurement"


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
    from analogy.baseline import Outcome

    counts = Counter(change.outcome for change in bench.changes)
    yield "against the baseline: " + ", ".join(
        f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome]
    )
    for change in bench.changes:
        if change.outcome in (Outcome.REGRESSED, Outcome.IMPROVED):
            yield f"  {change.message()}"


def _rates(bench: Bench, values: dict[str, Any]) -> Iterator[str]:
    for stage, verb in (("generate", "generated"), ("score", "scored")):
        rate = bench.study.folder.rate(stage)
        yield f"{verb:<9} " + ("nothing yet" if rate is None else f"{rate:.1f} images/s")
    peak = bench.study.folder.peak_memory()
    if peak is not None:
        yield f"memory    {peak / 2**30:.1f} GiB of the device at most"
    yield f"results   {values['results']}"
    if values["report"]:
        yield f"report    {values['report']}"
