"""`analogy run`: the cases of `pytest benchmarks` without pytest, in the same run folders."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from cases import ROOT
from verbs import verb

from analogy.cli import base
from analogy.generation import execution as execute
from analogy.generation import worker as work
from analogy.models.generator import Generator
from analogy.models.memory import MemoryFullError
from analogy.sessions.session import Session
from analogy.settings import options
from analogy.store.folder import RunFolder
from analogy.studies.study import Study

pytest_plugins = ["pytester"]

HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"
NOUNS = ("car", "cup", "hat", "boat", "star", "tree", "fish", "heart")


def index(folder, query):
    db = sqlite3.connect(folder / "index.sqlite")
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def results_of(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def made(tmp_path_factory, pipeline, judge):
    """Eight pairs of one category and their 24 images at 2 steps, not scored."""
    path = tmp_path_factory.mktemp("made")
    rows = (f"c{i},color,red,blue,a red {noun},a blue {noun}\n" for i, noun in enumerate(NOUNS))
    (path / "eight.csv").write_text(HEADER + "".join(rows))
    values = {each.key: each.default for each in options.OPTIONS} | {
        "pairs": str(path / "eight.csv"), "alphas": "0.5,1", "seeds": "0", "steps": "2",
        "run_dir": str(path / "run"), "batch_size": "8",
    }  # fmt: skip
    begun = Study.open(options.parse_options(lambda name: values[name.removeprefix("analogy_")]))
    begun.generate(begun.jobs())
    begun.folder.close()
    return path


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """Give ``run`` the options of a copy of that run, in an empty folder."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "eight.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *more: verb("run", *SMALL, *more)


SMALL = (
    "--pairs=eight.csv", "--alphas=0.5,1", "--seeds=0", "--steps=2", "--batch-size=8",
    "--run-dir=run",
)  # fmt: skip


@pytest.fixture
def judged(monkeypatch):
    """Let the judge find the margins of a function of the job, whatever the images show."""

    def use(margin):
        def cosines(worker, judge, batch, features):
            return [(margin(job), 0.0, margin(job)) for job in batch]

        monkeypatch.setattr(work.Worker, "_cosines", cosines)

    return use


def noise(job):
    return 0.01 * math.sin(sum(job.pair.source_prompt.encode()) + job.alpha)


def above(job):
    return noise(job) + 0.1 * (job.alpha > 0)


def below(job):
    return noise(job) - 0.1


# --- shared with pytest


@pytest.mark.parametrize("first", ["run", "pytest"])
def test_either_goes_on_with_what_the_other_began(first, pytester, run, made, monkeypatch):
    """24 images in batches of 8: the one makes a batch and is interrupted, the other the rest."""
    path = Path.cwd() / "shared"
    shutil.copy(made / "eight.csv", pytester.path)
    shutil.copy(made / "eight.csv", path.parent)
    generate, sizes = Generator.generate, []

    def spy(generator, conditionings, latents):
        if interrupting and sizes:
            raise KeyboardInterrupt
        sizes.append(len(latents))
        return generate(generator, conditionings, latents)

    def by_pytest():
        cases = (f"test_{name}.py" for name in ("margin", "quality", "regression"))
        result = pytester.runpytest_inprocess(
            *(str(ROOT / "benchmarks" / case) for case in cases), f"--rootdir={ROOT}",
            f"--config-file={ROOT / 'pyproject.toml'}", "-p", "no:cacheprovider",
            "-p", "no:hypothesispytest", *SMALL, f"--run-dir={path}",
            f"--results={path.parent / 'results.json'}", no_reraise_ctrlc=True,
        )  # fmt: skip
        return {pytest.ExitCode.INTERRUPTED: 130}.get(result.ret, int(result.ret))

    def by_run():
        return run(f"--run-dir={path}").exit_code

    begin, go_on = (by_run, by_pytest) if first == "run" else (by_pytest, by_run)
    monkeypatch.setattr(Generator, "generate", spy)
    monkeypatch.setattr(work, "side_by_side", lambda first, device: [first])
    interrupting = True
    assert begin() == 130
    assert sizes == [8]
    begun = index(path, "SELECT key, sha256, made FROM images")
    assert len(begun) == 8
    interrupting = False
    code = go_on()
    assert sizes == [8, 8, 8]
    assert set(begun) < set(index(path, "SELECT key, sha256, made FROM images"))
    shared = results_of(path.parent / "results.json")

    assert run("--run-dir=whole").exit_code == code
    keys = "SELECT key, sha256 FROM images ORDER BY key"
    assert index(Path("whole"), keys) == index(path, keys)
    whole = results_of(Path("results.json"))
    for part in ("config", "cells", "controls", "alphas", "overall", "quality", "pairs"):
        assert shared[part] == whole[part]


# --- exit codes, and what is said


def test_success_ends_with_0_and_the_table(run, judged):
    judged(above)
    result = run("--report=r.html")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("model     sdxl-tiny@sha256:")
    row = next(line for line in lines if line.split()[:2] == ["color", "1"])
    assert row.endswith("success")
    assert any(line.startswith("quality    alpha") for line in lines)
    assert lines[-5:-2] == ["results   results.json", "report    r.html", ""]
    assert lines[-2].startswith("pool      success, mean margin +0.")
    answer = results_of(Path("results.json"))["answer"]["text"]
    assert lines[-1] == f"answer    {answer}" == "answer    Yes at 0.5 and 1: 1 of 1 category"
    assert results_of(Path("results.json")) == results_of(Path("run/results.json"))
    assert Path("r.html").stat().st_size > 10_000


def test_a_cell_that_does_not_succeed_ends_with_1_and_its_figures(run, judged):
    judged(below)
    result = run()
    assert result.exit_code == 1
    assert [line.split(", mean")[0] for line in result.stderr.splitlines()] == [
        "analogy: color at alpha 0.5: failure",
        "analogy: color at alpha 1: failure",
        "analogy: all categories and alphas: failure",
    ]


def test_known_failures_are_expected_unless_strict(run, judged):
    judged(below)
    assert run("--baseline=b.json", "--update-baseline").exit_code == 1
    again = run("--baseline=b.json")
    assert (again.exit_code, again.stderr) == (0, "")
    assert "failure (known)" in again.stdout
    assert "against the baseline: 3 equivalent" in again.stdout
    assert run("--baseline=b.json", "--strict").exit_code == 1


def test_the_header_comes_before_the_work(run, judged, monkeypatch):
    judged(above)
    printed = []
    generate = Session.prepare
    monkeypatch.setattr(base, "show", lambda text, *, to_stderr=False: printed.append(text))
    monkeypatch.setattr(
        Session, "prepare", lambda session: (printed.append("work"), generate(session))
    )
    assert run().exit_code == 0
    header, work, *tables = printed
    assert work == "work"
    assert header.startswith("model     sdxl-tiny@sha256:")
    assert "pairs     8 in 1 category\nimages    " in header
    assert "model " not in "".join(tables)


def test_quiet_prints_the_answer_and_verbose_each_case(run, judged):
    judged(above)
    quiet = run("-q")
    assert quiet.stdout == "answer    Yes at 0.5 and 1: 1 of 1 category\n"
    verbose = run("-v")
    assert "analogy: color at alpha 1: success, mean margin +0." in verbose.stderr
    assert verbose.stdout.endswith(quiet.stdout)


def test_inconclusive_is_as_the_user_wants_it(run, judged):
    judged(noise)
    assert run().exit_code == 0
    assert run("--inconclusive=pass").exit_code == 0
    for option in ("--inconclusive=fail", "--strict"):
        failed = run(option)
        assert failed.exit_code == 1
        assert "analogy: color at alpha 1: inconclusive, mean margin" in failed.stderr


def test_unknown_words_are_named_with_every_verdict(run, judged, tmp_path):
    judged(above)
    rows = Path("eight.csv").read_text().replace("car", "taxi")
    Path("taxi.csv").write_text(rows)
    result = run("--pairs=taxi.csv", "--write=v.md")
    said = "the embedded model does not know: taxi"
    lines = result.stdout.splitlines()
    assert f"unknown   {said}; 1 of 8 pairs" in lines
    assert any(line.startswith(f"*: {said}") for line in lines)
    verdicts = [line for line in lines if line.endswith((" success *", " inconclusive *"))]
    assert len(verdicts) == 2 + 2 + 1  # cells, strengths, overall
    assert lines[-1].endswith("; with words that are not known")
    data = results_of(Path("run/results.json"))
    assert data["unknown_words"] == {"c0": ["taxi"]}
    assert data["answer"]["text"] in lines[-1]
    page = Path("v.md").read_text()
    assert "; with words that are not known**" in page
    assert page.count(" \\* |") == 2
    assert page.endswith("\\*: with words that are not known: `taxi`.\n")


def test_a_regression_ends_with_1(run, judged, made):
    judged(lambda job: above(job) + 0.1)
    assert run("--baseline=b.json", "--update-baseline").exit_code == 0
    shutil.rmtree("run")
    shutil.copytree(made / "run", "run")
    judged(above)
    result = run("--baseline=b.json")
    assert result.exit_code == 1
    assert "analogy: color at alpha 1: regressed: margin " in result.stderr
    assert "against the baseline: 3 regressed" in result.stdout


def test_a_limit_that_is_broken_ends_with_1(run, judged):
    judged(above)
    result = run("--limits=psnr>=90")
    assert result.exit_code == 1
    assert "color at alpha 1: psnr " in result.stderr
    assert "limit psnr>=90" in result.stderr


def test_too_few_pairs_are_no_failure(run, judged):
    judged(below)
    result = run("--limit=2")
    assert result.exit_code == 0
    assert "too_few" in result.stdout


def test_json_on_stdout_is_the_results_and_alone_there(run, judged):
    judged(above)
    result = run("--json=-")
    assert json.loads(result.stdout) == results_of(Path("results.json"))
    assert "\ncolor        1 " in result.stderr


def test_an_interruption_says_how_to_go_on_and_keeps_what_was_done(run, judged, monkeypatch):
    judged(above)
    score, scored = execute.Execution.score, []

    def once(worker, jobs):
        if scored:
            raise KeyboardInterrupt
        scored.append(score(worker, jobs))
        return scored[0]

    with monkeypatch.context() as patch:
        patch.setattr(execute.Execution, "score", once)
        cut = run()
    assert cut.exit_code == 130
    assert (
        "analogy: interrupted: finished work is kept in run; the same command continues"
        in cut.stderr
    )
    found = results_of(Path("results.json"))["cells"]
    assert [cell["verdict"] for cell in found] == ["success", "incomplete"]
    assert run().exit_code == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--method=wrod"], "--method: expected one of lerp, slerp, word, category, random, "),
        (["--pairs=none.csv"], "none.csv: expected a CSV file of word pairs"),
        (["--categories=colour"], "unknown category 'colour'; choose from color"),
        (["--results=run"], "--results: expected a file that can be written, got run"),
        (["--baseline=none.json"], "none.json: expected "),
        (["--model=none/at/all"], "--model 'none/at/all': expected 'embedded'"),
        (["--limits=ssim"], "--limits: expected metric>=value"),
        (["--size=80000000"], "--size: expected at most 16,384 pixels, got 80,000,000"),
        (
            ["--results=new/one.file", "--report=new/../new/one.file"],
            "--report: expected another file than that of --results, which it would replace",
        ),
        (
            ["--results=kept.json", "--baseline=kept.json"],
            "--results: expected another file than that of --baseline, which it would replace",
        ),
    ],
)
def test_what_cannot_be_run_is_said_before_the_work(run, given, said, monkeypatch):
    monkeypatch.setattr(Study, "generate", lambda *_: pytest.fail("generated"))
    result = run(*given)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_run_folder_that_another_writes_to_ends_with_4(run):
    other = RunFolder(Path("run"))
    try:
        result = run()
    finally:
        other.close()
    assert result.exit_code == 4
    assert result.stderr.startswith("analogy: run folder run: ")


def test_memory_that_is_full_ends_with_4_and_no_verdict(run, judged, monkeypatch):
    def full(*_):
        raise MemoryFullError("memory is full at one image; lower --size")

    judged(above)
    monkeypatch.setattr(execute.Execution, "score", full)
    result = run()
    assert result.exit_code == 4
    assert result.stderr == "analogy: memory is full at one image; lower --size\n"
    assert "incomplete" in result.stdout


def test_results_that_cannot_be_written_end_with_4_and_the_table_all_the_same(
    run, judged, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    judged(above)
    monkeypatch.setattr("analogy.results.writing.write_output", full)
    result = run()
    assert result.exit_code == 4
    assert "analogy: results NOT written: " in result.stderr
    assert "\ncolor        1 " in result.stdout


@pytest.mark.slow
def test_the_whole_way_as_a_process(tmp_path):
    command = ("run", "--limit=1", "--categories=color,size", "--seeds=0", "--steps=2")
    done = subprocess.run(
        [sys.executable, "-m", "analogy", *command],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert results_of(tmp_path / "results.json")["overall"]["n"] == 2
    [folder] = (tmp_path / ".analogy" / "runs").iterdir()
    assert len(list(folder.rglob("*.png"))) == 8
