"""The pytest side: options, the ``study`` and ``cell`` fixtures, the table and the results file.

Loaded by the root ``conftest.py``; elsewhere by ``pytest -p analogy.plugin``. Nothing heavy is
imported before a benchmark asks for the study.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tqdm import tqdm

from analogy.options import OPTIONS, OptionError, parse_options
from analogy.pairs import PairsError, WeakCategoryWarning, categories, load_pairs, select
from analogy.records import Estimate, Pair, Verdict

if TYPE_CHECKING:
    from analogy.baseline import Baseline
    from analogy.study import Study


class Cell(NamedTuple):
    """One case: a category at one strength."""

    category: str
    alpha: float


_VALUES = pytest.StashKey[dict[str, Any]]()
_BENCH = pytest.StashKey["Bench"]()


class Bench:
    """What the cases of one pytest session share: the study, its baseline, its progress."""

    def __init__(
        self, study: Study, baseline: Baseline | None, note: str, update: Path | None = None
    ) -> None:
        self.study = study
        self.baseline = baseline
        self.note = note
        self.update = update  # where this run's cells become the baseline
        self.planned: set[Cell] = set()
        self.known: set[Cell] = set()
        self._bar: tqdm[Any] | None = None

    def report(self, count: int) -> None:
        """Advance the progress bar; its total is what all planned cells still lack."""
        if self._bar is None:
            study = self.study
            jobs = {
                job.key: job for cell in self.planned for job in study.cell_jobs(*cell)
            }.values()
            left = len(study.folder.without_image(jobs)) + count
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


def pytest_configure(config: pytest.Config) -> None:
    """Read the options at once, so that a wrong value is said before anything starts."""
    try:
        values = config.stash[_VALUES] = parse_options(config.getoption)
        if values["pairs"] or values["categories"]:
            _chosen_pairs(values)
    except OptionError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for every category and alpha of the pairs."""
    if "cell" not in metafunc.fixturenames:
        return
    values = metafunc.config.stash[_VALUES]
    names = categories(_chosen_pairs(values))
    cells = [Cell(category, alpha) for category in names for alpha in values["alphas"]]
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
        if callspec is not None and "cell" in callspec.params:
            made.planned.add(callspec.params["cell"])
        elif "bench" in getattr(item, "fixturenames", ()):
            study = made.study
            made.planned |= {Cell(c, a) for c in study.categories for a in study.config.alphas}
    config.stash[_BENCH] = made
    yield made
    made.close()


def _open(config: pytest.Config) -> Bench:
    from analogy import baseline as baselines
    from analogy.models import ModelError
    from analogy.store import StoreError
    from analogy.study import Study

    values = config.stash[_VALUES]
    try:
        _check_results(Path(values["results"]))
        study = Study.open(values)
        path = Path(values["baseline"]) if values["baseline"] else baselines.default_path(study)
        if values["update_baseline"]:
            if path is None:
                raise OptionError("--update-baseline: expected --baseline FILE to say where")
            if values["limit"] is not None:
                raise OptionError(
                    "--update-baseline: expected the whole measurement, got --limit "
                    f"{values['limit']}; leave --limit out"
                )
            if path.exists():
                baselines.load(path)  # refuses to replace what is no baseline
            return Bench(study, None, f"to be written to {path}", update=path)
        if config.option.strict:
            return Bench(study, None, "ignored (--strict)")
        if path is None or (not values["baseline"] and not path.is_file()):
            return Bench(study, None, "none for this model")
        baseline = baselines.load(path)
    except (OptionError, PairsError, ModelError, StoreError, baselines.BaselineError) as error:
        pytest.exit(f"{error}", returncode=pytest.ExitCode.USAGE_ERROR)
    different = baseline.differences(study)
    if different:
        return Bench(study, None, f"not comparable, so not used ({'; '.join(different)})")
    return Bench(study, baseline, str(path))


def _check_results(path: Path) -> None:
    """Say now, not after hours of work, that the results have no place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_possible = not path.is_dir()
    except OSError:
        is_possible = False
    if not is_possible:
        raise OptionError(f"--results: expected a file that can be written, got {path}")


@contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let the progress bar through pytest's capture."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    with capture.global_and_fixture_disabled():
        yield


def figures_of(figures: Estimate) -> str:
    """An estimate in one line."""
    return (
        f"mean margin {figures.mean:+.4f}, 95% CI [{figures.ci_low:+.4f}, {figures.ci_high:+.4f}], "
        f"p {figures.p:.3g}, success rate {figures.success_rate:.0%}, n {figures.n}"
    )


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Write results.json, and the baseline if asked to, whatever has been measured so far."""
    bench = session.config.stash.get(_BENCH, None)
    if bench is not None:
        from analogy.baseline import update
        from analogy.study import write_results

        values = session.config.stash[_VALUES]
        write_results(bench.study.results(), Path(values["results"]))
        if bench.update is not None:
            count = update(bench.study, bench.update)
            bench.note = f"{count} cells written to {bench.update}"
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table: category x alpha, the control among them, and the whole."""
    config = terminalreporter.config
    bench = config.stash.get(_BENCH, None)
    if bench is None:
        return
    study = bench.study
    run = study.config
    write = terminalreporter.write_line
    terminalreporter.section("analogy steering", sep="=")
    write(f"model     {study.model.fingerprint}")
    write(f"judge     {study.judge.fingerprint}")
    write(
        f"steering  {run.method}; {run.steps} steps, guidance {run.guidance:g}, {run.size} px, "
        f"{run.dtype} on {run.device}, seeds {', '.join(map(str, run.seeds))}"
    )
    write(f"run       {study.folder.path}")
    write(f"baseline  {bench.note}")
    if run.limit is not None:
        write(f"limit     {run.limit} pairs per category: not the whole measurement")
    write("")
    head = (
        f"{'category':<10} {'alpha':>5} {'n':>4} {'mean':>8} {'95% CI':>20} {'p':>8} "
        f"{'success':>7}  verdict"
    )
    write(head)
    write("-" * len(head))
    for category in study.categories:
        for alpha in run.grid_alphas:
            figures = study.cell(category, alpha)
            label = "control" if alpha == 0.0 else ""
            if Cell(category, alpha) in bench.known:
                is_better = figures.verdict is Verdict.SUCCESS
                label = " (better than its baseline)" if is_better else " (known)"
            write(_row(category, f"{alpha:g}", figures, label))
    write("-" * len(head))
    write(_row("overall", "all", study.overall(), ""))
    write("")
    for stage, verb in (("generate", "generated"), ("score", "scored")):
        rate = study.folder.rate(stage)
        write(f"{verb:<9} " + ("nothing yet" if rate is None else f"{rate:.1f} images/s"))
    write(f"results   {config.stash[_VALUES]['results']}")


def _row(category: str, alpha: str, figures: Estimate, label: str) -> str:
    verdict = label if label == "control" else f"{figures.verdict}{label}"
    if figures.mean != figures.mean:
        return f"{category:<10} {alpha:>5} {figures.n:>4} {'':>46}  {verdict}"
    interval = f"[{figures.ci_low:+.4f}, {figures.ci_high:+.4f}]"
    return (
        f"{category:<10} {alpha:>5} {figures.n:>4} {figures.mean:>+8.4f} {interval:>20} "
        f"{figures.p:>8.2g} {figures.success_rate:>7.0%}  {verdict}"
    )
