"""The pytest plugin at collection: which cases are of the suite, and which sessions are refused."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from analogy.core.errors import OptionError
from analogy.core.text import printable
from analogy.sessions.calm import calm
from analogy.sessions.selection import BASELINE, bars
from analogy.settings.request import RunRequest

REQUEST = pytest.StashKey[RunRequest]()
"""A session's request, in ``config.stash``."""

_PLUGIN = "analogy.plugin"
"""The module whose ``bench`` it is."""

_XDIST = (
    "pytest-xdist is not supported: cases that run at the same time cannot be timed. Run without "
    "-n; --engine ray --num-workers N uses several devices."
)
_COLUMNS = ("mean", "rounds")
"""The columns of pytest-benchmark's table that have a meaning if a case has a single round."""

_REFUSED = "analogy_refused"
"""The key in a pytest-xdist worker's output for the reason why it refused the session."""

_CASES = tuple(Path(__file__).resolve().parents[up] / "benchmarks" for up in (0, 1))
"""The suite's own cases: in an installed wheel, and in a checkout."""


def asks_for_bench(item: pytest.Item) -> bool:
    """True if the item uses this plugin's ``bench``, not another fixture of the same name."""
    if "bench" not in getattr(item, "fixturenames", ()):
        return False
    defined = item._fixtureinfo.name2fixturedefs.get("bench", ())  # type: ignore[attr-defined]
    return bool(defined) and defined[-1].func.__module__ == _PLUGIN


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """Leave out throughput cases unless requested, and show pytest-benchmark the suite's cases.

    The suite's cases request the fixture ``benchmark`` only once there is something to time. The
    selection by ``--benchmark-only`` and ``--benchmark-skip`` would therefore not see them.
    """
    left_out = [item for item in items if item.get_closest_marker("perf")]
    if left_out and not config.getoption("--perf"):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    shown: list[list[str]] = []
    for item in items:
        names = getattr(item, "fixturenames", [])
        if asks_for_bench(item) and "benchmark" not in names:  # cases of a function share names
            names.append("benchmark")
            shown.append(names)
    try:
        return (yield)
    finally:
        for names in shown:
            names.remove("benchmark")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Keep a library's warning from being an error while the suite's own cases are imported."""
    if not any(collector.path.is_relative_to(place) for place in _CASES):
        return (yield)
    with calm():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse limits and baselines that no selected case measures, before the run's work."""
    config = session.config
    if config.option.collectonly:
        return
    _choose_columns(session)
    cases = [item for item in session.items if asks_for_bench(item)]
    if hasattr(config, "workerinput"):
        if cases:
            config.workeroutput[_REFUSED] = _XDIST  # type: ignore[attr-defined]
            pytest.exit(_XDIST, returncode=pytest.ExitCode.USAGE_ERROR)
        return
    if session.testsfailed or not session.items or is_distributed(config):
        return
    marks = [item.get_closest_marker("measures") for item in cases]
    measured = {name for mark in marks if mark is not None for name in mark.args}
    if None in marks:  # a user's own case, which may measure anything
        return
    try:
        every = list(bars(config.stash[REQUEST]))
    except OptionError as error:
        raise pytest.UsageError(str(error)) from None
    for bar, needs in every:
        if not needs & measured:
            of = "test_regression.py" if BASELINE in needs else "test_quality.py"
            raise pytest.UsageError(
                f"{printable(bar)}: expected a case that measures it, got none among the "
                f"{len(session.items)} to be run; add benchmarks/{of}, or leave the option out"
            )


def _choose_columns(session: pytest.Session) -> None:
    """Show only the columns of pytest-benchmark's table that mean something for a single round,
    unless other benchmarks have several rounds, or the user chose the columns.
    """
    timed = session.config.pluginmanager.getplugin("pytest-benchmark")
    is_chosen = session.config.getoption("benchmark_columns", None) is not None
    others = any(
        "benchmark" in getattr(item, "fixturenames", ()) and not asks_for_bench(item)
        for item in session.items
    )
    if timed is not None and not is_chosen and not others:
        timed.columns = list(_COLUMNS)


def is_distributed(config: pytest.Config) -> bool:
    """True if pytest-xdist's workers run all cases, and this process runs none."""
    return config.getoption("dist", "no") != "no"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """End the session of pytest-xdist's controller if a worker has refused it."""
    refused = getattr(node, "workeroutput", {}).get(_REFUSED)
    if refused is not None:
        pytest.exit(refused, returncode=pytest.ExitCode.USAGE_ERROR)
