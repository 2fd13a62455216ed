"""A bar that the user has set and that nothing was held to is no pass, and said beforehand."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from cases import EIGHT, above, judge_by, n_images, results_of, run_cases, write_eight
from verbs import verb

from analogy.generation import execution as execute
from analogy.models.generator import Generator
from analogy.models.places import shipped
from analogy.results import changes

pytest_plugins = ["pytester"]

USAGE = pytest.ExitCode.USAGE_ERROR
ALL = ("test_margin", "test_quality", "test_regression")


@pytest.fixture(scope="module")
def made(tmp_path_factory, pipeline, judge):
    """A run's folder with its images."""
    path = tmp_path_factory.mktemp("made")
    write_eight(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert verb("run", *EIGHT).exit_code in (0, 1)
    return path


@pytest.fixture
def cases(pytester, made, monkeypatch, pipeline, judge):
    """Run some of the benchmarks on a copy of that folder."""
    judge_by(monkeypatch, above)
    shutil.copytree(made / "run", "run")
    shutil.copy(made / "eight.csv", "eight.csv")
    return lambda *options, cases=ALL: run_cases(pytester, *options, cases=cases)


@pytest.fixture
def no_work(monkeypatch):
    """Fail where a session comes so far as to work."""
    monkeypatch.setattr(execute.Execution, "generate", lambda *_, **__: pytest.fail("generated"))


def said(run):
    return "\n".join([*run.outlines, *run.errlines])


# --- refused before the work


@pytest.mark.parametrize(
    ("options", "files", "add"),
    [
        (["--limits=ssim>=0.1"], ("test_margin",), "test_quality.py"),
        (["--limits=cmmd<=9"], ("test_margin", "test_regression"), "test_quality.py"),
        (["--limits=ssim>=0.1", "-k", "test_margin"], ALL, "test_quality.py"),
        (["--limits=cmmd<=9", "-k", "not distribution"], ALL, "test_quality.py"),
        (["--limits=ssim>=0.1", "-m", "perf"], ("test_throughput",), None),
        (["--baseline=b.json"], ("test_margin", "test_quality"), "test_regression.py"),
        (["--baseline=b.json", "-k", "test_margin"], ALL, "test_regression.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_bar_that_no_case_measures_is_refused(cases, no_work, options, files, add):
    run = cases(*options, cases=files)
    if add is None:  # nothing is left, which is pytest's own to say
        assert run.ret == pytest.ExitCode.NO_TESTS_COLLECTED
        return
    assert run.ret == USAGE
    assert f"{options[0].replace('=', ' ', 1)}: expected a case that measures it, got none" in said(
        run
    )
    assert f"add benchmarks/{add}, or leave the option out" in said(run)


def test_what_is_only_listed_is_not_refused(cases):
    run = cases("--limits=ssim>=0.1", "--collect-only", cases=("test_margin",))
    assert run.ret == pytest.ExitCode.OK


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_limit_that_nothing_can_break_is_refused(cases, no_work, value):
    run = cases(f"--limits=ssim>={value}")
    assert run.ret == USAGE
    assert f"--limits: expected a finite number, got '{value}'" in said(run)
    assert verb("run", *EIGHT, f"--limits=ssim>={value}").exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limits=lpips<=0.00001"], "--limits lpips<=1e-05: expected LPIPS's network, name its"),
        (
            ["--limits=cmmd<=1e-7", f"--model={shipped('models/sdxl-tiny')}"],
            "--limits cmmd<=1e-07: expected images to compare with: name some with --reference",
        ),
        (
            ["--limits=kid<=1", "--pairs=others.csv"],
            "--limits kid<=1: expected images to compare with: no drawings of these pairs",
        ),
        (["--limits=kid<=1", "--limit=1"], "--limits kid<=1: expected images to compare with: the"),
        (["--limits=ssim>=0", "--size=8"], "--limits ssim>=0: expected images of 11 pixels a side"),
        (["--baseline=b.json", "--limit=5"], "--baseline b.json: expected 6 pairs or more, fewer"),
    ],
    ids=lambda value: " ".join(o.rpartition("/")[2] for o in value) if type(value) is list else "",
)
def test_what_this_run_cannot_measure_is_refused(cases, no_work, options, message, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", "nowhere")
    Path("others.csv").write_text(Path("eight.csv").read_text().replace("car", "qubit"))
    run = cases(*options)
    assert run.ret == USAGE
    assert message in said(run)
    result = verb("run", *EIGHT, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (Path("run") / "writer.json").exists()  # both let go of the folder


# --- found at the end


def test_a_metric_that_is_missing_breaks_its_limit(cases, monkeypatch):
    """Whatever the reason: here the weights vanish after the check."""
    monkeypatch.setattr("analogy.sessions.requirements.check_gates", lambda *_: None)
    monkeypatch.setenv("TORCH_HOME", "nowhere")
    run = cases("--limits=ssim>=0,lpips<=9", cases=("test_quality",))
    run.assert_outcomes(failed=1, passed=2)
    run.stdout.fnmatch_lines(["*color at alpha 1: lpips was not measured, limit lpips<=9*"])
    result = verb("run", *EIGHT, "--limits=ssim>=0,lpips<=9")
    assert result.exit_code == 1
    assert "analogy: color at alpha 1: lpips was not measured, limit lpips<=9\n" in result.stderr
    assert "analogy: limit     NOT measured, so no pass: lpips<=9\n" in result.stderr


def test_references_that_are_missing_break_their_limit(cases, monkeypatch):
    monkeypatch.setattr("analogy.sessions.requirements.check_gates", lambda *_: None)
    model = f"--model={shipped('models/sdxl-tiny')}"
    run = cases("--limits=cmmd<=1e-7", model, cases=("test_quality",))
    run.assert_outcomes(failed=2, passed=1)
    run.stdout.fnmatch_lines(["*alpha 0: cmmd was not measured, limit cmmd<=1e-07*"])
    without = cases(model, cases=("test_quality",))
    without.assert_outcomes(skipped=2, passed=1)


def test_images_that_failed_break_the_limits_on_their_cell(cases, monkeypatch):
    draw = Generator.generate

    def spoilt(generator, conditionings, latents):
        made = draw(generator, conditionings, latents)
        return dataclasses.replace(made, faults=dict.fromkeys(range(len(conditionings)), "black"))

    monkeypatch.setattr(Generator, "generate", spoilt)
    run = cases("--limits=ssim>=0", "--run-dir=spoilt", cases=("test_quality",))
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(["*color at alpha 1: ssim was not measured, limit ssim>=0*"])


def test_somebodys_own_case_may_measure_and_is_held_to_it_at_the_end(cases, pytester):
    """Whose names nobody knows before: it is not refused, and yet no pass."""
    Path("test_mine.py").write_text(
        "def test_mine(bench):\n    assert bench.study.categories == ['color']\n"
    )
    options = ["-p", "analogy.plugin", "-p", "no:hypothesispytest", *EIGHT, "--limits=ssim>=0.1"]
    run = pytester.runpytest_inprocess("test_mine.py", *options)
    run.assert_outcomes(passed=1)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(["limit     NOT measured, so no pass: ssim>=0.1"])


def test_a_bar_that_was_met_is_a_pass(cases):
    assert cases("--baseline=b.json", "--update-baseline").ret == pytest.ExitCode.OK
    run = cases("--limits=ssim>=0,cmmd<=1000", "--baseline=b.json")
    assert run.ret == pytest.ExitCode.OK
    assert "NOT" not in said(run)


def test_a_baseline_none_of_whose_cells_decide_is_no_pass(cases, monkeypatch):
    """Every comparison says too few, or lacks images, each a skipped case."""
    assert cases("--baseline=b.json", "--update-baseline").ret == pytest.ExitCode.OK
    monkeypatch.setattr(changes, "MIN_DECISIVE", 9)
    run = cases("--baseline=b.json", cases=("test_regression",))
    run.assert_outcomes(skipped=2)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(
        ["baseline  NOT compared with b.json, so no pass: none of 2 comparisons decides"]
    )
    result = verb("run", *EIGHT, "--baseline=b.json")
    assert result.exit_code == 1
    assert "so no pass: none of 2 comparisons decides" in result.stderr


def test_images_too_small_for_a_metric_are_measured_without_it(cases):
    run = cases("--size=8", "--run-dir=small", cases=("test_quality",))
    run.assert_outcomes(passed=3)
    [cell] = results_of(Path("results.json"))["quality"]["cells"]
    assert {"clip_score", "directional_similarity", "psnr"} == cell.keys() - {"category", "alpha"}
    assert verb("run", *EIGHT, "--size=8", "--run-dir=small").exit_code in (0, 1)


# --- pytest-benchmark's own selection


def test_benchmark_only_leaves_our_cases_in(cases):
    """They ask for its fixture only where there is something to time."""
    for _ in range(2):  # the second time everything is there
        run = cases("--benchmark-only", "--limits=ssim>=0", "--run-dir=new")
        run.assert_outcomes(passed=5, skipped=2)
        assert n_images(Path("new")) == 16


def test_benchmark_skip_leaves_them_out_before_the_work_and_is_no_pass(cases, no_work):
    run = cases("--benchmark-skip", cases=("test_margin",))
    run.assert_outcomes(skipped=2)
    assert run.ret == pytest.ExitCode.OK
    run = cases("--benchmark-skip", "--limits=ssim>=0")
    run.assert_outcomes(skipped=7)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(["limit     NOT measured, so no pass: ssim>=0"])
