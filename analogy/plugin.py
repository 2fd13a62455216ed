"""The pytest side: options, the ``bench`` and ``cell`` fixtures, the table and the results file.

Loaded by the root ``conftest.py``; elsewhere by ``pytest -p analogy.plugin``. Nothing heavy is
imported before a benchmark asks for the study.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from analogy.bench import (
    Bench,
    Finding,
    Outcome,
    chosen_pairs,
    interrupted,
    open_bench,
    refusals,
    summary,
    unread_lines,
    write_outputs,
)
from analogy.options import OPTIONS, OptionError, parse_options
from analogy.pairs import categories
from analogy.records import Cell
from analogy.text import printable

if TYPE_CHECKING:
    from analogy.analysis import Analysis
    from analogy.store import Job

_VALUES = pytest.StashKey[dict[str, Any]]()
_BENCH = pytest.StashKey[Bench]()
_ANALYSIS: pytest.StashKey[Analysis] = pytest.StashKey()


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
            chosen_pairs(values)
    except OptionError as error:
        raise pytest.UsageError(printable(str(error))) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for every category, every category and alpha (``cell``), or every alpha with the
    control (``strength``), of the pairs.

    For cases that ask for the ``bench``: others may call their own arguments so.
    """
    names = {"cell", "category", "strength"} & set(metafunc.fixturenames)
    if not names or "bench" not in metafunc.fixturenames:
        return
    values = metafunc.config.stash[_VALUES]
    chosen = categories(chosen_pairs(values))
    if "category" in names:
        metafunc.parametrize("category", chosen)
    if "strength" in names:
        metafunc.parametrize("strength", (0.0, *values["alphas"]), ids="alpha-{:g}".format)
    if "cell" in names:
        cells = [Cell(category, alpha) for category in chosen for alpha in values["alphas"]]
        metafunc.parametrize("cell", cells, ids=[f"{c.category}-{c.alpha:g}" for c in cells])


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The session's study, opened at the first case that asks for it."""
    config = request.config
    if hasattr(config, "workerinput"):
        pytest.exit(
            "pytest-xdist is not supported: cases that time each other's work measure nothing. "
            "Run without -n; --engine ray --num-workers N is how to use several devices.",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    made = _open(config)
    reporter = config.pluginmanager.getplugin("terminalreporter")
    with uncaptured(config):
        for line in unread_lines(made.study):  # before the work, not in the summary alone
            reporter.write_line(f"\n{line}")
    for item in request.session.items:
        callspec = getattr(item, "callspec", None)
        params = {} if callspec is None else callspec.params
        if "cell" in params:
            made.planned[params["cell"]] = None
        elif "bench" in getattr(item, "fixturenames", ()) and not {"category"} & set(params):
            study = made.study
            made.planned |= {
                Cell(c, a): None for c in study.categories for a in study.config.alphas
            }
    config.stash[_BENCH] = made
    yield made
    made.close()


def _open(config: pytest.Config) -> Bench:
    values, mendable = config.stash[_VALUES], refusals()
    try:
        return open_bench(values, is_strict=bool(config.option.strict))
    except mendable as error:
        pytest.exit(printable(str(error)), returncode=pytest.ExitCode.USAGE_ERROR)


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
        study.generate(jobs, bench.report, ahead=(study.cell_jobs(*c) for c in bench.planned))
    unscored = study.unscored(jobs)
    if not unscored:
        return
    study.execution.engine.prepare_judge()  # before the clock starts
    benchmark: Callable[..., int] = request.getfixturevalue("benchmark")
    count = benchmark.pedantic(study.score, args=(unscored,), rounds=1)  # type: ignore[attr-defined]
    seconds = benchmark.stats.stats.total if benchmark.stats else None  # type: ignore[attr-defined]
    rate = count / seconds if seconds else None
    benchmark.extra_info.update(images=count, images_per_s=rate)  # type: ignore[attr-defined]


def settle(finding: Finding, request: pytest.FixtureRequest) -> None:
    """End a test as its case did, after putting the figures where JUnit's reader finds them."""
    record_property = request.getfixturevalue("record_property")
    for name, value in finding.figures.items():
        record_property(name, value)
    if finding.outcome is Outcome.SKIPPED:
        pytest.skip(finding.message)
    if finding.outcome is Outcome.KNOWN:
        pytest.xfail(finding.message)
    if finding.outcome is Outcome.FAILED:
        pytest.fail(finding.message, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """End the session where the machine fails: no cell's fault, and the next one's is the same."""
    if "bench" not in getattr(item, "fixturenames", ()):
        return (yield)
    from analogy.bench import faults

    try:
        return (yield)
    except faults() as error:
        pytest.exit(printable(str(error)), returncode=pytest.ExitCode.INTERNAL_ERROR)


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
    analysis = session.config.stash[_ANALYSIS] = bench.study.analysis()
    if not write_outputs(bench, bench.study.results(analysis)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let others write to the run folder."""
    bench = config.stash.get(_BENCH, None)
    if bench is not None:
        bench.study.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """The table: category x alpha, the control among them, and the whole; or how to go on."""
    config = terminalreporter.config
    bench, analysis = config.stash.get(_BENCH, None), config.stash.get(_ANALYSIS, None)
    if bench is None:
        return
    if bench.lost is not None:
        lost = printable(f"results   NOT written: {bench.lost}")
        terminalreporter.write_line(lost, red=True)
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        terminalreporter.write_line(printable(interrupted(bench)))
    if analysis is None:
        return
    terminalreporter.section("analogy steering", sep="=")
    for line in summary(bench, analysis):
        terminalreporter.write_line(printable(line))
