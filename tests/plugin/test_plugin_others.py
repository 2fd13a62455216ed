"""Other people's plugins, warnings and orders beside the benchmarks: no verdict hangs on them."""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from cases import (
    BENCHMARKS,
    EIGHT,
    ROOT,
    above,
    judge_by,
    results_of,
    run_cases,
    write_eight,
)
from verbs import verb

from analogy.core.errors import ModelError
from analogy.generation.engine import ClusterLostError
from analogy.studies import study

pytest_plugins = ["pytester"]

OK, FAILED = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED
INTERNAL, USAGE = pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR
MINE = ("-p", "analogy.plugin", "-p", "no:hypothesispytest", *EIGHT)


@pytest.fixture(scope="module")
def made(tmp_path_factory, pipeline, judge):
    """A run's folder, all of it scored, and its results: a success."""
    path = tmp_path_factory.mktemp("made")
    write_eight(path)
    with pytest.MonkeyPatch.context() as patch:
        judge_by(patch, above)
        patch.chdir(path)
        assert verb("run", *EIGHT).exit_code == 0
    return path


@pytest.fixture
def cases(pytester, made, monkeypatch, pipeline, judge):
    """Run some of the benchmarks where everything has been made and scored."""
    judge_by(monkeypatch, above)
    shutil.copytree(made / "run", "run")
    shutil.copy(made / "eight.csv", "eight.csv")

    def run(*options, cases=("test_margin",), plugins=()):
        return run_cases(pytester, *options, cases=cases, plugins=plugins)

    return run


def said(run):
    return "\n".join([*run.outlines, *run.errlines])


def texts(shown):
    """Of warnings that come where pytest records none: they go to stderr, but for these tests."""
    return [str(each.message) for each in shown]


# --- warnings


@pytest.mark.parametrize(
    "options",
    [
        ["--benchmark-json=b.json"],
        ["--benchmark-json=b.json", "-W", "error"],
        ["--benchmark-save=mine", "--benchmark-storage=file://kept"],
        ["--benchmark-autosave", "-W", "e"],
        ["--benchmark-compare"],
        ["--benchmark-compare=0009", "--benchmark-compare-fail=mean:5%", "-W", "error"],
        ["--benchmark-disable", "--benchmark-save=mine"],
        ["--benchmark-only", "--benchmark-histogram=h", "--benchmark-verbose"],
    ],
    ids=" ".join,
)
def test_nothing_to_time_is_no_failure(cases, options):
    with warnings.catch_warnings(record=True) as shown:
        run = cases(*options)
    run.assert_outcomes(passed=2)
    assert run.ret == OK
    if "disable" not in options[0] and "only" not in options[0]:
        assert any("Not saving anything" in w or "Can't compare" in w for w in texts(shown))


HOOKS = (
    "pytest_runtest_logstart", "pytest_runtest_setup", "pytest_runtest_call",
    "pytest_runtest_teardown", "pytest_runtest_logreport", "pytest_sessionfinish",
    "pytest_terminal_summary",
)  # fmt: skip


class Warner:
    """Warns in every hook from the first case on, as any plugin may."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self):
        try:
            return (yield)
        finally:
            warnings.warn("after the loop", UserWarning, stacklevel=1)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self):
        warnings.warn("a fixture", FutureWarning, stacklevel=1)
        return (yield)

    def pytest_unconfigure(self):
        warnings.warn("unconfigure", ResourceWarning, stacklevel=1)


for name in HOOKS:
    setattr(
        Warner, name, lambda self, name=name: warnings.warn(f"in {name}", UserWarning, stacklevel=1)
    )


@pytest.mark.parametrize("options", [[], ["-W", "error"]], ids=["file", "command line"])
def test_a_warning_in_any_hook_is_shown_and_changes_nothing(cases, options):
    """The checkout's own configuration makes errors of warnings, too."""
    with warnings.catch_warnings(record=True) as shown:
        run = cases(*options, plugins=[Warner()])
    assert run.ret == OK
    assert run.parseoutcomes()["passed"] == 2
    for each in (*(f"in {name}" for name in HOOKS), "after the loop", "a fixture", "unconfigure"):
        assert each in said(run) or each in texts(shown)


def test_a_library_that_warns_within_a_case_or_at_the_end_changes_nothing(cases, monkeypatch):
    def warn(of):
        def warned(*given, **named):
            warnings.warn("a library's", DeprecationWarning, stacklevel=2)
            return of(*given, **named)

        return warned

    for where, name in ((study.Study, "open"), (study.Study, "analysis"), (study.Study, "results")):
        monkeypatch.setattr(where, name, warn(getattr(where, name)))
    run = cases("-W", "error")
    assert run.ret == OK
    assert run.parseoutcomes()["passed"] == 2
    assert "DeprecationWarning: a library's" in said(run)


def test_the_filters_of_others_cases_stay(cases, pytester):
    """In a project of the user's that makes errors of warnings, in one session with ours."""
    Path("pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    Path("test_mine.py").write_text(
        "import warnings\n\n"
        "def test_ours(bench):\n    warnings.warn('of a library')\n\n"
        "def test_theirs():\n    warnings.warn('of mine')\n"
    )
    run = pytester.runpytest_inprocess("test_mine.py", *MINE)
    run.assert_outcomes(passed=1, failed=1, warnings=1)
    assert "E       UserWarning: of mine" in said(run)


def test_our_own_warning_is_an_error_where_it_is_named_and_then_a_sentence(cases):
    rows = Path("eight.csv").read_text().splitlines(keepends=True)
    Path("three.csv").write_text("".join(rows[:4]))
    run = cases("--pairs=three.csv", "-W", "error")
    run.assert_outcomes(skipped=2, warnings=1)
    run = cases("--pairs=three.csv", "-W", "error::analogy.settings.pairs.WeakCategoryWarning")
    assert run.ret == USAGE
    assert "Exit: three.csv: category 'color' has 3 pairs" in said(run)


# --- plugins


def test_xdist_is_refused_in_a_sentence_and_with_no_verdict(cases):
    run = cases("-n2", "-p", "xdist")
    assert run.ret == USAGE
    assert "Exit: pytest-xdist is not supported: cases that run at the same time" in said(run)
    assert "--engine ray --num-workers N uses several devices" in said(run)
    assert "INTERNALERROR" not in said(run)
    assert run.parseoutcomes() == {}


def test_xdist_may_have_cases_that_are_not_ours(pytester):
    pytester.makepyfile("def test_theirs():\n    pass\n")
    write_eight(Path())
    pytester.runpytest_inprocess("-n2", *MINE).assert_outcomes(passed=1)


def test_any_order_of_cases_gives_the_same_figures(cases):
    """All of them anew, shuffled by pytest-randomly, and one alone."""
    options = ["--alphas=0.5,1", "--limits=ssim>=0"]
    files = ("test_margin", "test_quality")
    found = []
    for order in (
        [],
        ["-p", "randomly", "-p", "no:cacheprovider", "--randomly-seed=5"],
        ["-p", "randomly"],
    ):
        folder = f"--run-dir=run-{len(found)}"
        run = cases(*options, *order, folder, cases=files)
        assert run.ret == OK
        found.append((run.parseoutcomes(), results_of(Path("results.json"))))
    first, *others = found
    for outcomes, results in others:
        assert outcomes == first[0]
        assert [c["verdict"] for c in results["cells"]] == [c["verdict"] for c in first[1]["cells"]]
        for mine, theirs in zip(results["cells"], first[1]["cells"], strict=True):
            assert mine["mean"] == pytest.approx(theirs["mean"], abs=1e-9)
        for mine, theirs in zip(
            results["quality"]["cells"], first[1]["quality"]["cells"], strict=True
        ):
            assert mine["ssim"]["mean"] == pytest.approx(theirs["ssim"]["mean"], abs=1e-3)
    alone = cases("--alphas=0.5,1", "-k", "test_margin and color-1", "--run-dir=alone")
    alone.assert_outcomes(passed=1, deselected=2)
    [cell] = [c for c in results_of(Path("results.json"))["cells"] if c["alpha"] == 1.0]
    [whole] = [c for c in first[1]["cells"] if c["alpha"] == 1.0]
    assert cell["verdict"] == whole["verdict"]
    assert cell["mean"] == pytest.approx(whole["mean"], abs=1e-9)


def test_a_regression_that_is_tried_again_is_one_regression(cases, monkeypatch):
    options = ["--baseline=b.json", "--junitxml=junit.xml"]
    assert cases(*options, "--update-baseline").ret == OK
    judge_by(monkeypatch, lambda job: 0.5 * above(job))
    run = cases(*options, "--reruns=2", "--run-dir=worse", cases=("test_margin", "test_regression"))
    assert run.ret == FAILED
    assert run.parseoutcomes() == {"passed": 2, "failed": 2, "rerun": 4}
    assert "against the baseline: 2 regressed" in run.outlines
    assert sum(line.startswith("  color at alpha 1: regressed") for line in run.outlines) == 1
    for case in ElementTree.parse("junit.xml").iter("testcase"):
        names = [each.get("name") for each in case.iter("property")]
        assert len(names) == len(set(names))


def test_timeouts_coverage_and_all_of_them_together(cases):
    options = [
        "--timeout=600", "--cov=analogy.core.text", "--cov-report=", "--reruns=1", "-p", "randomly",
        "--benchmark-json=b.json", "-W", "error",
    ]  # fmt: skip
    run = cases(*options)
    assert run.ret == OK
    assert run.parseoutcomes()["passed"] == 2


def test_without_pytest_benchmark_the_verdicts_are_the_same(cases):
    run = cases("-p", "no:benchmark", "--run-dir=new")
    run.assert_outcomes(passed=2)


def test_another_plugins_error_at_the_end_loses_no_results(cases, monkeypatch):
    """Such as pytest-benchmark's where its storage cannot be written."""

    class Broken:
        @pytest.hookimpl(wrapper=True)
        def pytest_sessionfinish(self):
            raise OSError("no space for theirs")
            yield

    run = cases(plugins=[Broken()])
    assert run.ret != OK
    assert results_of(Path("results.json"))["overall"]["verdict"] == "success"


# --- a machine's fault


SESSION = "analogy.sessions.session.Session"
CPU = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.parametrize(
    ("place", "name", "files", "error", "said_of"),
    [
        (
            "analogy.sessions.session.Session",
            "_load_references",
            ("test_quality",),
            ModelError("a judge: gone"),
            None,
        ),
        (
            "analogy.studies.study.Study",
            "cell",
            ("test_margin",),
            ModelError("a judge: gone"),
            None,
        ),
        (
            "analogy.studies.quality.Quality",
            "cell",
            ("test_quality",),
            MemoryError(),
            "out of memory whi",
        ),
        (
            "analogy.studies.study.Study",
            "unscored",
            ("test_margin",),
            ClusterLostError("the head"),
            None,
        ),
        (
            "analogy.studies.study.Study",
            "generate",
            ("test_margin",),
            RuntimeError(CPU),
            "out of memory w",
        ),
    ],
    ids=["fixture", "judging", "memory", "cluster", "allocator"],
)
def test_a_fault_of_the_machine_ends_the_session_wherever_it_comes(
    cases, monkeypatch, place, name, files, error, said_of
):
    whole, calls = getattr(pkgutil.resolve_name(place), name), []

    def fail(*given, **more):
        calls.append(given)
        if name == "unscored" and len(calls) == 1:  # before the work, to expect its time
            return whole(*given, **more)
        raise error

    monkeypatch.setattr(f"{place}.{name}", fail)
    run = cases(cases=files)
    assert run.ret == INTERNAL
    assert "failed" not in run.parseoutcomes()
    assert "errors" not in run.parseoutcomes()
    assert "Traceback" not in said(run)
    assert f"Exit: {said_of or error}" in said(run)
    assert results_of(Path("results.json"))["overall"]["verdict"] == "success"  # what is there


def test_an_input_that_fails_late_is_a_usage_error_and_no_cells(cases):
    """An image that is none among the references: said once, and no case is at fault."""
    Path("refs").mkdir()
    for name in "ab":
        Path(f"refs/{name}.png").write_bytes(b"no image")
    run = cases("--reference=refs", cases=("test_quality",))
    assert run.ret == USAGE
    assert "a.png: expected an image file" in said(run)
    assert "errors" not in run.parseoutcomes()


# --- python -O


def test_verdicts_under_python_o(tmp_path, pipeline):
    """Without assert statements; a broken limit is found all the same, and nothing else fails."""
    write_eight(tmp_path)
    files = [str(BENCHMARKS / f"test_{name}.py") for name in ("quality", "calibration")]
    command = [
        sys.executable, "-O", "-m", "pytest", *files, f"--rootdir={ROOT}",
        f"--config-file={ROOT / 'pyproject.toml'}", "-p", "no:cacheprovider", *EIGHT, "-q",
        "-k", "quality or judge", "--limits=ssim>=0.999,cmmd<=1000",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == FAILED
    assert "limit ssim>=0.999" in done.stdout
    assert "limit cmmd" not in done.stdout
    assert re.search(r"1 failed, \d passed", done.stdout)
