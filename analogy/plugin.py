"""The pytest plugin: options, the ``bench`` and ``cell`` fixtures, the table and the results file.

The root ``conftest.py`` loads it. From an installed wheel: ``pytest -p analogy.plugin --pyargs
analogy.benchmarks``. Slow imports are made only when a benchmark needs the study.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from analogy.core.deferred import deferred
from analogy.core.errors import AnalogyError, ExitCode, ModelError, OptionError
from analogy.core.records import UNSTEERED, Cell, Verdict
from analogy.core.text import printable
from analogy.plugin_collection import (
    REQUEST,
    asks_for_bench,
    is_distributed,
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_make_collect_report,
    pytest_testnodedown,
)
from analogy.report.styled import styled
from analogy.results.answer import answer_of
from analogy.sessions.calm import calm, calm_and_shown, calm_from_here
from analogy.sessions.progress import beside_dots, uncaptured
from analogy.sessions.selection import chosen_pairs
from analogy.settings.config_file import CONFIG_HELP, read_settings
from analogy.settings.options import OPTIONS, parse_options, parse_path
from analogy.settings.pairs import PairsWarning, categories

if TYPE_CHECKING:
    from analogy.models import memory
    from analogy.results.model import Analysis
    from analogy.sessions import findings, outputs, plan_text, summary
    from analogy.sessions import plan as plans
    from analogy.sessions import session as sessions
    from analogy.sessions.cases import Case
    from analogy.sessions.findings import Finding
    from analogy.sessions.session import Session
    from analogy.store.grid import Job
    from analogy.studies.study import Study
else:  # these import torch, which a session without a case of the suite should not wait for
    memory = deferred("analogy.models.memory")
    findings = deferred("analogy.sessions.findings")
    outputs = deferred("analogy.sessions.outputs")
    plan_text = deferred("analogy.sessions.plan_text")
    plans = deferred("analogy.sessions.plan")
    sessions = deferred("analogy.sessions.session")
    summary = deferred("analogy.sessions.summary")

_SESSION: pytest.StashKey[Session] = pytest.StashKey()
_ANALYSIS: pytest.StashKey[Analysis] = pytest.StashKey()
_INTERRUPTED = pytest.StashKey[bool]()
"""True if lines were printed after the current case began its own line."""

__all__ = [  # beside the hooks and fixtures below
    "conduct",
    "pytest_collection_finish",
    "pytest_collection_modifyitems",
    "pytest_make_collect_report",
    "pytest_testnodedown",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the suite's options as a group."""
    group = parser.getgroup(
        "analogy",
        "analogy steering benchmark (pytest benchmarks); with pytest's own --strict no cell is "
        "expected to fail",
    )
    for option in OPTIONS:
        if option.parse is None:
            group.addoption(option.flag, action="store_true", dest=option.name, help=option.help)
            continue
        shown = "" if option.default is None else f" [default: {option.default}]"
        group.addoption(
            option.flag,
            dest=option.name,
            default=None,  # so that a file of settings can have another
            metavar=option.metavar,
            help=option.help + shown,
        )

    group.addoption("--config", dest="analogy_config", metavar="FILE.toml", help=CONFIG_HELP)
    group.addoption(
        "--perf",
        action="store_true",
        help="run the cases marked perf, which compare throughput with a usual loop (minutes)",
    )
    group.addoption(
        "--plan",
        action="store_true",
        dest="analogy_plan",
        help="run nothing; say what the collected cases would take, and what a smaller run would "
        "do, as 'analogy plan' does",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the options first, so that an invalid value is reported before anything starts."""
    config.addinivalue_line(
        "markers",
        "measures(*names): the quality metrics that a case which asks for the bench holds to "
        "--limits, 'image' or 'set' for all per image or per set, or 'baseline'; what no case "
        "measures is refused before the work",
    )
    with suppress(ImportError):  # pytest-benchmark, a dependency, warns before any case exists
        from pytest_benchmark.logger import PytestBenchmarkWarning

        warnings.filterwarnings("default", category=PytestBenchmarkWarning)
    try:
        with calm():
            file = config.getoption("analogy_config")
            settings = None if file is None else read_settings(Path(parse_path(file)))
            request = config.stash[REQUEST] = parse_options(config.getoption, settings)
            if request.pairs or request.categories:
                chosen_pairs(request)
    except OptionError as error:
        raise pytest.UsageError(printable(str(error))) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one case for every category, every category and alpha (``cell``), or every alpha with
    the unsteered images (``strength``), of the pairs.

    Only for cases that use ``bench``, since other cases may have arguments of the same names.
    """
    names = {"cell", "category", "strength"} & set(metafunc.fixturenames)
    if not names or "bench" not in metafunc.fixturenames:
        return
    request = metafunc.config.stash[REQUEST]
    try:
        with calm():
            chosen = categories(chosen_pairs(request))
    except OptionError as error:
        raise pytest.UsageError(printable(str(error))) from None
    if "category" in names:
        metafunc.parametrize("category", chosen)
    if "strength" in names:
        metafunc.parametrize("strength", (UNSTEERED, *request.alphas), ids="alpha-{:g}".format)
    if "cell" in names:
        cells = [Cell(category, alpha) for category in chosen for alpha in request.alphas]
        metafunc.parametrize("cell", cells, ids=[f"{c.category}-{c.alpha:g}" for c in cells])


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Session]:
    """The session with its study, opened at the first case that uses it."""
    config = request.config
    session = _open(config)
    session.planned |= dict.fromkeys(_planned(request.session.items, session.study))
    _show_heading(session, config)
    _prepare(session)
    config.stash[_SESSION] = session
    has_junit = config.pluginmanager.hasplugin("junitxml")
    record = request.getfixturevalue("record_testsuite_property") if has_junit else None
    yield session
    if record is not None:
        with suppress(AnalogyError):  # the same error is reported when the results are written
            found = answer_of(session.study.analysis(), session.unknown_words())
            record("answer", found.text)
    session.close()


def _planned(items: Iterable[pytest.Item], study: Study) -> list[Cell]:
    """The cells of these cases, each once."""
    cells: dict[Cell, None] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        params = {} if callspec is None else callspec.params
        if "cell" in params:
            cells[params["cell"]] = None
        elif "bench" in getattr(item, "fixturenames", ()) and not {"category"} & set(params):
            cells |= {Cell(c, a): None for c in study.categories for a in study.config.alphas}
    return list(cells)


def _say_plan(session: pytest.Session) -> None:
    """Print what the collected cases would take, and let pytest run none of them."""
    config = session.config
    config.option.collectonly = True
    cases = [item for item in session.items if asks_for_bench(item)]
    try:
        with calm_and_shown(config), uncaptured(config):
            made = plans.make_plan(config.stash[REQUEST], cells=partial(_planned, cases))
    except AnalogyError as error:
        pytest.exit(printable(str(error)), returncode=pytest.ExitCode.USAGE_ERROR)
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:  # -p no:terminal
        reporter.section("plan", sep="=")
        for line in plan_text.plan_lines(made):
            reporter.write_line(printable(line))


def _open(config: pytest.Config) -> Session:
    try:
        return sessions.Session.open(config.stash[REQUEST], is_strict=bool(config.option.strict))
    except (AnalogyError, PairsWarning) as error:  # a user's filter may raise the warning
        pytest.exit(printable(str(error)), returncode=pytest.ExitCode.USAGE_ERROR)


def _show_heading(session: Session, config: pytest.Config) -> None:
    """Print what is run, on lines of its own; the next case then begins its line again."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None:  # -p no:terminal
        return
    with uncaptured(config):
        for line in summary.heading(session):
            reporter.write_line(printable(line))
    config.stash[_INTERRUPTED] = True


def _prepare(session: Session) -> None:
    """Load the models that the cases need. If one cannot be loaded, the session ends."""
    try:
        session.prepare()
    except BaseException as error:
        session.study.close()
        if not isinstance(error, ModelError):
            raise
        pytest.exit(printable(str(error)), returncode=pytest.ExitCode.USAGE_ERROR)


def conduct(bench: Session, case: Case, request: pytest.FixtureRequest) -> None:
    """Measure a case of the run; the test ends with the case's outcome."""
    for jobs in case.rounds():
        measure(bench, jobs, request)
    settle(case.decide(), request)


def measure(bench: Session, jobs: Sequence[Job], request: pytest.FixtureRequest) -> None:
    """Generate missing images, then time the scoring of unscored ones.

    Scores that exist already are never timed. Further calls in one test add to its time.
    """
    study = bench.study
    with uncaptured(request.config), beside_dots(bench, request.config):
        study.generate(jobs, bench.report, ahead=bench.ahead())
    unscored = study.unscored(jobs)
    if not unscored:
        return
    study.prepare_judge()  # before the clock starts
    if not request.config.pluginmanager.hasplugin("benchmark"):  # -p no:benchmark
        study.score(unscored)
        return
    benchmark: Any = request.getfixturevalue("benchmark")
    if not benchmark.extra_info.get("images"):
        count = benchmark.pedantic(study.score, args=(unscored,), rounds=1)
    else:  # pytest-benchmark times only one call in a test
        start = time.perf_counter()
        count = study.score(unscored)
        if benchmark.stats:
            benchmark.stats.update(time.perf_counter() - start)
    count += benchmark.extra_info.get("images", 0)
    seconds = benchmark.stats.stats.total if benchmark.stats else None
    rate = count / seconds if seconds else None
    benchmark.extra_info.update(images=count, images_per_s=rate)


def settle(finding: Finding, request: pytest.FixtureRequest) -> None:
    """End a test with its case's outcome, after recording the figures as JUnit properties."""
    said = request.node.user_properties
    said[:] = [each for each in said if each[0] not in finding.figures]  # from an earlier attempt
    said.extend(finding.figures.items())
    outcomes = findings.CaseOutcome
    if finding.outcome in (outcomes.SKIPPED, outcomes.INCONCLUSIVE):
        pytest.skip(finding.message)
    if finding.outcome is outcomes.KNOWN:
        pytest.xfail(finding.message)
    if finding.outcome is outcomes.FAILED:
        pytest.fail(finding.message, pytrace=False)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Keep warnings from changing the outcome of a case."""
    if not asks_for_bench(item):
        return (yield)
    with calm():
        return (yield)


@contextmanager
def _faults_end_the_session(item: pytest.Item) -> Iterator[None]:
    """End the session at an error of the machine or of an input: it would recur in every case."""
    if not asks_for_bench(item):
        yield
        return
    try:
        with memory.memory_said("scoring and analysing"):
            yield
    except AnalogyError as error:
        is_usage = error.exit_code is ExitCode.USAGE and not isinstance(error, ModelError)
        code = pytest.ExitCode.USAGE_ERROR if is_usage else pytest.ExitCode.INTERNAL_ERROR
        pytest.exit(printable(str(error)), returncode=code)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """End the session at such an error in a fixture, too."""
    with _faults_end_the_session(item):
        yield
    reporter = item.config.pluginmanager.getplugin("terminalreporter")
    if item.config.stash.get(_INTERRUPTED, False) and reporter is not None:
        item.config.stash[_INTERRUPTED] = False
        reporter.pytest_runtest_logstart(item.nodeid, item.location)


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Give an inconclusive case that does not fail its own letter and colour."""
    if report.when != "call" or report.failed or hasattr(report, "wasxfail"):
        return None
    if ("verdict", str(Verdict.INCONCLUSIVE)) not in report.user_properties:
        return None
    return "inconclusive", "i", ("INCONCLUSIVE", {"yellow": True})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """End the session at such an error in a case."""
    with _faults_end_the_session(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """End the session at such an error in the teardown."""
    with _faults_end_the_session(item):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Run the cases, or none with ``--plan``. After that the verdicts are complete, and warnings of
    later hooks may not change the outcome.
    """
    if session.config.option.analogy_plan and not session.testsfailed:
        _say_plan(session)
    try:
        return (yield)
    finally:
        if _SESSION in session.config.stash:
            calm_from_here(session.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Write results.json, and the baseline if requested, with all figures measured so far.

    This runs before the hooks of other plugins, which may fail.
    """
    config = session.config
    bench = config.stash.get(_SESSION, None)
    if bench is not None:
        try:
            with calm_and_shown(config), memory.memory_said("scoring and analysing"):
                _write_results(bench, session)
        except (AnalogyError, OSError) as error:
            bench.lost = str(error)
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
    if session.exitstatus == pytest.ExitCode.OK and list(_unmeasured(config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return (yield)


def _unmeasured(config: pytest.Config) -> Iterable[str]:
    if config.option.collectonly or hasattr(config, "workerinput") or is_distributed(config):
        return ()
    request = config.stash[REQUEST]
    if not request.limits and not request.gates:
        return ()
    return findings.unmeasured(request, config.stash.get(_SESSION, None))


def _write_results(bench: Session, session: pytest.Session) -> None:
    analysis = session.config.stash[_ANALYSIS] = bench.study.analysis()
    if not outputs.write_outputs(bench, bench.study.results(analysis)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Release the run folder's lock."""
    bench = config.stash.get(_SESSION, None)
    if bench is not None:
        bench.study.close()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int
) -> Generator[None, None, None]:
    """Print the table (category x alpha, 0 included, and all together), or how to continue.

    The table comes before the output of other plugins, which may fail; the answer comes after it.
    """
    config = terminalreporter.config
    bench, analysis = config.stash.get(_SESSION, None), config.stash.get(_ANALYSIS, None)
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        for line in _unmeasured(config):
            terminalreporter.write_line(printable(line), red=True)
    if bench is not None and bench.lost is not None:
        lost = printable(f"results   NOT written: {bench.lost}")
        terminalreporter.write_line(lost, red=True)
    if bench is not None and exitstatus == pytest.ExitCode.INTERRUPTED:
        terminalreporter.write_line(printable(summary.interrupted(bench)))
    if bench is None or analysis is None:
        return (yield)
    terminalreporter.section("analogy steering", sep="=")
    with calm():
        _write_styled(terminalreporter, summary.summary(bench, analysis))
    try:
        return (yield)
    finally:
        _write_styled(terminalreporter, summary.closing(bench, analysis))


def _write_styled(reporter: pytest.TerminalReporter, lines: Iterable[str]) -> None:
    has_markup = reporter.config.get_terminal_writer().hasmarkup
    for line in map(printable, lines):
        reporter.write_line(styled(line) if has_markup else line)
