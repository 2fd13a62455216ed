"""The whole way: `pytest benchmarks` on the embedded models, resumed, gated and misused."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import re
import shutil
import sqlite3
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from cases import ROOT

from analogy.core.records import Estimate
from analogy.generation import execution as execute
from analogy.generation import worker as work
from analogy.judges import open_clip as clip
from analogy.models import defaults
from analogy.models.generator import Generator
from analogy.models.memory import MemoryFullError
from analogy.models.places import shipped
from analogy.results.model import RESULTS_VERSION
from analogy.results.reading import read
from analogy.store.folder import RunFolder

pytest_plugins = ["pytester"]

CATEGORIES = ["color", "object", "pattern", "count", "size", "scene", "weather", "emotion"]
FIGURES = [field.name for field in dataclasses.fields(Estimate)]
CELL = [
    "category", "alpha", *FIGURES, "p_holm", "p_bh", "gain", "ceiling", "target_share", "random",
    "items",
]  # fmt: skip
HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"
NOUNS = ("car", "cup", "hat", "boat", "star", "tree", "fish", "heart")


@pytest.fixture
def bench(pytester, pipeline, judge):
    """Run the benchmarks in this process, under the checkout's own configuration.

    The models' libraries are loaded by now: pytester forgets what a run imports, and they do not
    bear being imported twice.
    """

    def run(*options: str, cases: tuple[str, ...] = ("test_margin",)) -> pytest.RunResult:
        return pytester.runpytest_inprocess(
            *(str(ROOT / "benchmarks" / f"{name}.py") for name in cases),
            f"--rootdir={ROOT}",
            f"--config-file={ROOT / 'pyproject.toml'}",
            "-p", "no:cacheprovider",
            "-p", "no:hypothesispytest",
            "--steps=2",
            "--seeds=0",
            *options,
            no_reraise_ctrlc=True,
        )  # fmt: skip

    run.path = pytester.path
    return run


@pytest.fixture
def eight(pytester):
    """Options for eight pairs of one category at alpha 1: the fewest cases with a verdict."""
    rows = (f"c{i},color,red,blue,a red {noun},a blue {noun}\n" for i, noun in enumerate(NOUNS))
    (pytester.path / "eight.csv").write_text(HEADER + "".join(rows))
    return ["--pairs=eight.csv", "--alphas=1", "--run-dir=run"]


@pytest.fixture
def judged(monkeypatch):
    """Let the judge find the margins of a function of the job, whatever the images show."""

    def use(margin) -> None:
        def cosines(worker, judge, batch, features):
            return [(margin(job), 0.0, margin(job)) for job in batch]

        monkeypatch.setattr(work.Worker, "_cosines", cosines)

    return use


def noise(job) -> float:
    return 0.01 * math.sin(sum(job.pair.source_prompt.encode()) + job.alpha)


def below(job) -> float:
    return noise(job) - 0.1


def index(folder: Path, query: str) -> list[tuple]:
    db = sqlite3.connect(folder / "index.sqlite")
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def results_of(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


# --- the whole way


def test_two_pairs_of_every_category_from_nothing_and_once_more(bench, monkeypatch):
    options = ["--limit=2", "--run-dir=run"]
    first = bench(*options, "--junitxml=junit.xml", "--benchmark-json=bench.json")
    results = results_of(bench.path / "results.json")

    # Two pairs decide nothing in a cell; the whole has sixteen.
    whole = results["overall"]
    passed = whole["verdict"] == "success"
    first.assert_outcomes(skipped=24, passed=int(passed), failed=int(not passed))
    assert first.ret == (pytest.ExitCode.OK if passed else pytest.ExitCode.TESTS_FAILED)

    assert results["schema_version"] == RESULTS_VERSION
    assert results["config"]["limit"] == 2
    assert results["config"]["steps"] == 2
    assert results["provenance"]["packages"].keys() >= {"torch", "diffusers", "open_clip_torch"}
    assert [(cell["category"], cell["alpha"]) for cell in results["cells"]] == [
        (category, alpha) for category in CATEGORIES for alpha in (0.5, 0.8, 1.0)
    ]
    assert [(row["category"], row["alpha"], row["n"]) for row in results["controls"]] == [
        (category, 0.0, 2) for category in CATEGORIES
    ]
    for cell in results["cells"]:
        assert list(cell) == CELL
        assert len(cell["items"]) == 2
        assert cell["p_holm"] is None  # two pairs are in no family
        assert cell["gain"]["mean"] > -1
        assert cell["random"] is None
        assert cell["ceiling"]["n"] == 2
        assert (cell["n"], cell["n_items"], cell["verdict"]) == (2, 2, "too_few")
        assert cell["ci_low"] <= cell["mean"] <= cell["ci_high"]
        assert 0 <= cell["p"] <= 1
    assert list(whole) == [*FIGURES, "gain", "trend", "item_level", "blind"]
    assert [pool["alpha"] for pool in results["alphas"]] == [0.5, 0.8, 1.0]
    assert [pool["category"] for pool in results["categories"]] == CATEGORIES
    assert read(bench.path / "run") == read(bench.path / "results.json")
    assert (whole["n"], whole["n_items"]) == (16, 48)
    throughput = dict(results["throughput"])
    assert throughput.pop("workers") == {}
    assert set(throughput) == {"generate_images_per_s", "score_images_per_s"}
    assert all(rate > 0 for rate in throughput.values())

    cases = ElementTree.parse(bench.path / "junit.xml").iter("testcase")
    properties = {
        case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")}
        for case in cases
    }
    assert len(properties) == 25
    for cell in results["cells"]:
        figures = properties[f"test_margin[{cell['category']}-{cell['alpha']:g}]"]
        assert figures.keys() >= {*FIGURES, "share_of_ceiling"}
        assert float(figures["mean"]) == cell["mean"]
        assert float(figures["gain_mean"]) == cell["gain"]["mean"]
    assert float(properties["test_overall"]["mean"]) == whole["mean"]

    timed = json.loads((bench.path / "bench.json").read_text())["benchmarks"]
    assert sum(one["extra_info"]["images"] for one in timed) == 64
    for one in timed:
        seconds = one["stats"]["total"]
        assert one["extra_info"]["images_per_s"] == pytest.approx(
            one["extra_info"]["images"] / seconds
        )

    first.stdout.fnmatch_lines(
        [
            "*= analogy steering =*",
            "model     sdxl-tiny@sha256:*",
            "judge     clip-tiny@sha256:*",
            "steering  word; 2 steps, guidance 4, 64 px, * on cpu, seeds 0",
            "run       run",
            "limit     2 pairs per category: not the whole measurement",
            "category   alpha    n   margin             95% CI        p    >0     gain *verdict",
            "color          0    2 *unsteered",
            "color        0.5    2 *too_few",
            "emotion        1    2 *too_few",
            "all          0.8   16 *",
            "overall      all   16 *" + whole["verdict"] + "*",
            "margin: are the images closer to the target than to the source? *",
            "gain: what did steering itself do? *",
            "Items taken for independent, as the published study did: *over 48 items.",
            "dose-response *",
            "overall * 16 *",
            "generated * images/s",
            "scored    * images/s",
            "results   results.json",
        ]
    )

    # The same command again loads no model and makes nothing.
    files = {path: path.stat().st_mtime_ns for path in (bench.path / "run").rglob("*.png")}
    assert len(files) == 64
    done = index(bench.path / "run", "SELECT * FROM work")
    assert sum(row[1] for row in done if row[0] == "generate") == 64
    assert sum(row[1] for row in done if row[0] == "score") == 64
    for place, name in ((work, "load_pipeline"), (clip.JudgeSource, "load")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("loaded again"))
    again = bench(*options)
    assert again.ret == first.ret
    assert {p: p.stat().st_mtime_ns for p in (bench.path / "run").rglob("*.png")} == files
    assert index(bench.path / "run", "SELECT * FROM work") == done
    repeated = results_of(bench.path / "results.json")
    for part in ("cells", "controls", "overall", "throughput", "config"):
        assert repeated[part] == results[part]


def test_a_part_of_the_cases_says_what_it_did_not_measure(bench, eight, judged):
    judged(lambda job: 0.1 + noise(job))
    part = bench(*eight, "--alphas=0.5,1", "-k", "color-0.5")
    part.assert_outcomes(passed=1, deselected=2)
    assert part.ret == pytest.ExitCode.OK
    results = results_of(bench.path / "results.json")
    verdicts = [cell["verdict"] for cell in results["cells"]]
    assert verdicts == ["success", "incomplete"]
    assert (results["overall"]["verdict"], results["overall"]["n_items"]) == ("incomplete", 8)
    assert results["overall"]["mean"] is None
    part.stdout.fnmatch_lines(["color *1 *8 *incomplete", "overall *all *8 *incomplete"])


def test_it_runs_from_another_project(pytester, pipeline, judge, eight):
    shutil.copy(ROOT / "benchmarks" / "test_margin.py", pytester.path / "test_mine.py")
    plugins = ["-p", "analogy.plugin", "-p", "no:hypothesispytest", "-p", "no:randomly"]
    options = [*plugins, *eight, "--seeds=0", "--steps=2"]
    listed = pytester.runpytest_inprocess("--collect-only", "-q", *options)
    listed.stdout.fnmatch_lines(["test_mine.py::test_margin?color-1?", "*::test_overall"])
    run = pytester.runpytest_inprocess(*options)
    assert run.ret in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    assert results_of(pytester.path / "results.json")["overall"]["n"] == 8


def test_a_small_file_of_pairs_warns_and_decides_nothing(bench):
    rows = "".join(f"{i},color,red,blue,a red {n},a blue {n}\n" for i, n in enumerate(NOUNS[:3]))
    (bench.path / "three.csv").write_text(HEADER + rows)
    run = bench("--pairs=three.csv", "--alphas=1")
    run.assert_outcomes(skipped=2, warnings=1)
    run.stdout.fnmatch_lines(["*WeakCategoryWarning: three.csv: category 'color' has 3 pairs*"])
    assert results_of(bench.path / "results.json")["overall"]["verdict"] == "too_few"


def test_pairs_that_the_judge_reads_as_one_are_said_before_the_work_and_judged_by_nobody(bench):
    long = ", ".join(["a tree", "a house", "a star", "a cup"] * 6)
    rows = "".join(f"{i},color,red,blue,a red {n},a blue {n}\n" for i, n in enumerate(NOUNS[:6]))
    rows += f'late,color,red,blue,"{long}, a red car","{long}, a blue car"\n'
    (bench.path / "late.csv").write_text(HEADER + rows)
    run = bench("--pairs=late.csv", "--alphas=1")
    assert run.ret in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    shown = run.stdout.str()
    said = (
        "unread    1 of 7 pairs: the judge reads both prompts as one; no figure is of them (late)"
    )
    assert shown.index(said) < shown.index("analogy steering =")
    assert shown.count(said) == 2
    assert [cell["n"] for cell in results_of(bench.path / "results.json")["cells"]] == [6]


def test_the_help_has_the_options_in_a_group_of_their_own(bench):
    shown = bench("--help").stdout.str()
    group = " ".join(shown[shown.index("analogy steering benchmark") :].split())
    for text in (
        "--alphas=LIST",
        "[default: 0.5,0.8,1.0, or the",
        "[default: embedded; with --gpu",
    ):
        assert text in group


# --- interruptions


def test_an_interrupted_run_continues_with_the_same_command(bench, eight, monkeypatch):
    """Eight pairs, alpha 0 and 1: 16 images in two batches of 8, interrupted in the second."""
    generate, sizes = Generator.generate, []

    def spy(generator, conditionings, latents):
        if len(sizes) == 1 and interrupting:
            raise KeyboardInterrupt
        sizes.append(len(latents))
        return generate(generator, conditionings, latents)

    monkeypatch.setattr(Generator, "generate", spy)
    # One batch after another: of two in threads, the second may be the first to come here.
    monkeypatch.setattr(work, "side_by_side", lambda first, device: [first])
    command = [*eight, "--batch-size=10"]
    interrupting = True
    cut = bench(*command)
    assert cut.ret == pytest.ExitCode.INTERRUPTED
    cut.stdout.fnmatch_lines(
        ["interrupted: finished work is kept in run; the same command continues from there"]
    )
    assert sizes == [8]
    results = results_of(bench.path / "results.json")
    assert {cell["verdict"] for cell in results["cells"]} == {"incomplete"}
    made = index(bench.path / "run", "SELECT key, sha256, made FROM images")
    assert len(made) == 8

    interrupting = False
    continued = bench(*command)
    assert sizes == [8, 8]
    assert continued.ret in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    assert set(made) < set(index(bench.path / "run", "SELECT key, sha256, made FROM images"))
    finished = results_of(bench.path / "results.json")
    assert "incomplete" not in {cell["verdict"] for cell in finished["cells"]}

    whole = bench(*command, "--run-dir=whole")
    assert sizes == [8, 8, 8, 8]
    assert whole.ret == continued.ret
    images = "SELECT key, sha256 FROM images ORDER BY key"
    assert index(bench.path / "whole", images) == index(bench.path / "run", images)
    for path, digest in index(bench.path / "run", "SELECT path, sha256 FROM images"):
        assert hashlib.sha256((bench.path / "run" / path).read_bytes()).hexdigest() == digest
    assert results_of(bench.path / "results.json")["cells"] == finished["cells"]


def test_a_disk_that_fills_ends_the_run_with_one_message(bench, eight, monkeypatch):
    """No case's fault: no traceback, no failed case, and the exit code is no verdict's."""

    written = []

    def full(handle):
        written.append(handle)
        if len(written) > 4:  # the lock's record, and three images
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("analogy.core.files.os.fsync", full)
        cut = bench(*eight, cases=("test_margin", "test_regression"))
    assert cut.ret == pytest.ExitCode.INTERNAL_ERROR
    output = cut.stdout.str()
    message = "the disk is full ([Errno 28] No space left on device). What was done before is kept"
    assert f"Exit: run folder run: {message}: free space and give the same command again" in output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output
    assert bench(*eight, "-q").ret != pytest.ExitCode.INTERNAL_ERROR
    assert len(index(bench.path / "run", "SELECT * FROM images")) == 16


def test_results_that_cannot_be_written_are_no_pass(bench, eight, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("analogy.results.writing.write_output", full)
    result = bench(*eight)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["results   NOT written: *No space left on device*"])
    result.stdout.fnmatch_lines(["color *"])  # the table all the same
    assert "Traceback" not in result.stdout.str()


def test_a_folder_that_another_run_writes_to_is_refused(bench, eight):
    held = RunFolder(bench.path / "run")
    refused = bench(*eight)
    held.close()
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stdout.fnmatch_lines(["*expected no other writer, but process * writes to it; wait*"])


def test_an_image_that_is_damaged_before_it_is_scored_ends_the_run(bench, eight, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(execute.Execution, "score", lambda *_: 0)
        bench(*eight)
    [path] = {path for (path,) in index(bench.path / "run", "SELECT path FROM images LIMIT 1")}
    (bench.path / "run" / path).write_bytes(b"damaged")
    cut = bench(*eight)
    assert cut.ret == pytest.ExitCode.INTERNAL_ERROR
    assert "repair it with: python -m analogy verify run --repair" in cut.stdout.str()
    assert "Traceback" not in cut.stdout.str()


def test_an_interruption_of_the_scoring_keeps_the_images(bench, eight, monkeypatch):
    with monkeypatch.context() as patch:

        def interrupt(*_):
            raise KeyboardInterrupt

        patch.setattr(work.Worker, "_cosines", interrupt)
        assert bench(*eight).ret == pytest.ExitCode.INTERRUPTED
    monkeypatch.setattr(Generator, "generate", lambda *_: pytest.fail("generated again"))
    bench(*eight)
    assert results_of(bench.path / "results.json")["overall"]["verdict"] != "incomplete"


# --- the report


def test_the_report_has_the_run_and_its_baseline(bench, eight, judged):
    judged(lambda job: 0.1 + noise(job))
    bench(*eight, "--baseline=mine.json", "--update-baseline")
    run = bench(*eight, "--baseline=mine.json", "--report=new/r.html", cases=GATE)
    assert run.ret == pytest.ExitCode.OK
    run.stdout.fnmatch_lines(["report    new/r.html"])
    page = (bench.path / "new" / "r.html").read_text("utf-8")
    assert page.count("<img ") == 8 * 3  # source, alpha 1, and the target prompt itself
    assert f"a red {NOUNS[0]} → a blue {NOUNS[0]}" in page
    assert "Cells: 1 equivalent." in page


def test_files_that_were_asked_for_are_written_with_the_comparison(bench, eight, judged):
    judged(lambda job: 0.1 + noise(job))
    bench(*eight, "--baseline=mine.json", "--update-baseline")
    run = bench(*eight, "--baseline=mine.json", "--write=new/cells.csv,md=verdicts", cases=GATE)
    assert run.ret == pytest.ExitCode.OK
    run.stdout.fnmatch_lines(["written   new/cells.csv", "written   verdicts"])
    assert len((bench.path / "new" / "cells.csv").read_text().splitlines()) == 2
    said = (bench.path / "verdicts").read_text().splitlines()[-1]
    assert said == "Against the baseline `mine.json`: 1 equivalent."


def test_a_report_that_cannot_be_is_said_before_the_work(bench, eight, monkeypatch):
    monkeypatch.setattr(Generator, "generate", lambda *_: pytest.fail("generated"))
    (bench.path / "taken").mkdir()
    run = bench(*eight, "--report=taken")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stdout.fnmatch_lines(["*--report: expected a file that can be written, got taken*"])
    monkeypatch.setattr("analogy.sessions.requirements.find_spec", lambda name: None)
    run = bench(*eight, "--report=r.html")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stdout.fnmatch_lines(["*--report: expected jinja2 and matplotlib, got no jinja2*"])


# --- verdicts and baselines


def test_success_passes(bench, eight, judged):
    judged(lambda job: noise(job) + 0.1 * (job.alpha > 0))
    run = bench(*eight)
    run.assert_outcomes(passed=2)
    assert run.ret == pytest.ExitCode.OK
    run.stdout.fnmatch_lines(["color *0 *8 *unsteered", "color *1 *8 *100% *success"])


@pytest.mark.parametrize(("shift", "verdict"), [(-0.1, "failure"), (0.0, "inconclusive")])
def test_anything_else_fails_with_its_figures_and_the_limit(bench, eight, judged, shift, verdict):
    judged(lambda job: shift + noise(job))
    run = bench(*eight)
    run.assert_outcomes(failed=2)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(
        [
            f"color at alpha 1: {verdict}, mean margin *, 95% CI [[]*], p *, success rate *, n 8; "
            "success needs the interval above 0 and p < 0.05",
            f"all categories and alphas: {verdict}, *",
        ]
    )
    run.stdout.no_fnmatch_line("*Traceback*")


def test_a_baseline_makes_known_failures_expected_and_strict_ignores_it(bench, eight, judged):
    judged(below)
    command = [*eight, "--baseline=mine.json"]
    update = bench(*command, "--update-baseline")
    update.stdout.fnmatch_lines(["baseline  written to mine.json"])
    recorded = results_of(bench.path / "mine.json")
    assert [cell["verdict"] for cell in recorded["cells"]] == ["failure"]

    expected = bench(*command, "-rx", cases=GATE)
    expected.assert_outcomes(xfailed=2, passed=2)
    assert expected.ret == pytest.ExitCode.OK
    expected.stdout.fnmatch_lines(
        [
            "baseline  mine.json, tolerance 0.005",
            "color *1 *8 *failure (known)",
            "XFAIL*color-1* - known failure; now color at alpha 1: failure, mean margin -0.*, n 8",
        ]
    )

    strict = bench(*command, "--strict", cases=GATE)
    strict.assert_outcomes(failed=2, passed=2)
    strict.stdout.fnmatch_lines(["strict    no cell is expected to fail"])

    other = bench(*command, "--guidance=2", cases=GATE)
    other.assert_outcomes(xfailed=2, passed=2)
    other.stdout.fnmatch_lines(["differs   guidance: baseline 4.0, this run 2.0"])


def test_the_shipped_baseline_is_used_for_its_own_settings_alone(bench, judged):
    judged(lambda job: 0.1 + noise(job))
    for options, why in (
        (["--seeds=0"], "seeds: baseline [[]0, 1, 2], this run [[]0]"),
        (["--seeds=0,1,2", "--steps=2"], "steps: baseline 8, this run 2"),
    ):
        run = bench("--limit=6", "--categories=color", "--alphas=1", "--run-dir=run", *options)
        run.stdout.fnmatch_lines([f"baseline  *embedded.json: not of this run*{why}*"])
        assert run.ret == pytest.ExitCode.OK


def test_a_cell_that_succeeds_against_its_baseline_passes(bench, eight, judged):
    judged(below)
    bench(*eight, "--baseline=mine.json", "--update-baseline")
    judged(lambda job: 0.1 + noise(job))
    better = bench(*eight, "--baseline=mine.json", "--run-dir=better", cases=GATE)
    better.assert_outcomes(passed=4)
    better.stdout.fnmatch_lines(["color *1 *8 *success (better than its baseline)"])


def test_another_model_has_no_baseline(bench, eight, judged):
    judged(below)
    run = bench(*eight, f"--model={shipped('models/sdxl-tiny')}")
    run.assert_outcomes(failed=2)
    run.stdout.fnmatch_lines(["baseline  none for this model"])


def test_a_run_of_the_published_model_shows_the_published_figures(
    bench, eight, judged, monkeypatch
):
    judged(below)
    run = bench(*eight)
    run.stdout.no_fnmatch_line("published *")
    monkeypatch.setattr(defaults, "DEFAULT_GPU_MODEL", "embedded")  # as if it were SSD-1B
    run = bench(*eight)
    run.stdout.fnmatch_lines(
        [
            "published  mean margin -0.00014, 95% CI [[]-0.00198, +0.00173], p 0.56, *40.6%, *",
            "this run   mean margin -0.*, 8 items taken for independent",
            "published, at alpha 1.0, by category, *; 5: mean +0.0466, success 100%; *",
        ]
    )


GATE = ("test_margin", "test_regression")


def test_an_unchanged_run_is_equivalent_to_its_baseline(bench, eight, judged):
    judged(below)
    bench(*eight, "--baseline=mine.json", "--update-baseline")
    same = bench(*eight, "--baseline=mine.json", "--run-dir=same", cases=GATE)
    same.assert_outcomes(xfailed=2, passed=2)
    assert same.ret == pytest.ExitCode.OK
    same.stdout.fnmatch_lines(["against the baseline: 2 equivalent"])


def test_a_loss_beyond_the_tolerance_fails_with_old_new_interval_and_limit(bench, eight, judged):
    judged(lambda job: 0.3 + noise(job))
    command = [*eight, "--baseline=mine.json", "--junitxml=junit.xml"]
    bench(*command, "--update-baseline")
    judged(lambda job: 0.28 + noise(job))
    worse = bench(*command, "--run-dir=worse", cases=GATE)
    worse.assert_outcomes(passed=2, failed=2)  # still a success, and yet a regression
    worse.stdout.fnmatch_lines(
        [
            "color at alpha 1: regressed: margin +0.30* -> +0.28*, difference -0.0200, 97.5% CI "
            "[[]-0.0200, -0.0200], limit -0.005, n 8",
            "against the baseline: 2 regressed",
        ]
    )
    cases = ElementTree.parse(bench.path / "junit.xml").iter("testcase")
    figures = {
        case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")}
        for case in cases
    }
    assert float(figures["test_regression[color-1]"]["difference"]) == pytest.approx(-0.02)
    within = bench(*command, "--run-dir=worse", "--tolerance=0.03", cases=GATE)
    within.assert_outcomes(passed=4)


def test_a_known_failure_that_gets_worse_still_fails(bench, eight, judged):
    judged(below)
    bench(*eight, "--baseline=mine.json", "--update-baseline")
    judged(lambda job: below(job) - 0.05)
    worse = bench(*eight, "--baseline=mine.json", "--run-dir=worse", cases=GATE)
    worse.assert_outcomes(xfailed=2, failed=2)


def test_a_fall_from_success_is_a_regression_within_any_tolerance(bench, eight, judged):
    judged(lambda job: 0.1 + noise(job))
    bench(*eight, "--baseline=mine.json", "--update-baseline")
    judged(lambda job: noise(job))
    options = [*eight, "--baseline=mine.json", "--run-dir=worse", "--tolerance=1"]
    worse = bench(*options, cases=("test_regression",))
    worse.assert_outcomes(failed=2)
    worse.stdout.fnmatch_lines(["*the verdict fell from success to inconclusive"])


def test_a_cut_of_strength_in_one_category_is_caught_there_and_nowhere_else(bench, monkeypatch):
    """The whole way on the embedded models: size steered with 80% of the strength asked for."""
    options = ["--limit=12", "--categories=color,size", "--alphas=0.8", "--steps=8"]
    options.append("--baseline=before.json")
    bench(*options, "--run-dir=before", "--update-baseline")
    steered = work.steered

    def weakened(job, *given):
        is_size = job.pair.category == "size"
        return steered(dataclasses.replace(job, alpha=0.8 * job.alpha) if is_size else job, *given)

    monkeypatch.setattr(work, "steered", weakened)
    after = bench(*options, "--run-dir=after", "-rf", cases=("test_regression",))
    after.stdout.fnmatch_lines(["*size at alpha 0.8: regressed: *, limit -0.005, n 12*"])
    failed = [line for line in after.outlines if line.startswith("FAILED")]
    assert any("test_regression[size-0.8]" in line for line in failed)
    assert not any("test_regression[color-0.8]" in line for line in failed)


def test_without_a_baseline_there_is_nothing_to_regress_from(bench, eight, judged):
    judged(below)
    run = bench(*eight, "--steps=2", "--seeds=5", cases=("test_regression",))
    run.assert_outcomes(skipped=2)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--seeds=1"], "seeds: baseline [0], this run [1]"),
        (["--alphas=0.5"], "alphas: baseline [1.0], this run [0.5]"),
        (["--limit=7"], "limit: baseline none, this run 7"),
        (["--pairs=seven.csv"], "pairs: other ones in color"),
    ],
    ids=lambda value: value[0] if type(value) is list else "",
)
def test_another_measurement_is_refused_before_any_work(
    bench, eight, judged, monkeypatch, options, difference
):
    judged(lambda job: 0.1 + noise(job))
    lines = (bench.path / "eight.csv").read_text().splitlines(keepends=True)
    (bench.path / "seven.csv").write_text("".join(lines[:-1]))
    bench(*eight, "--baseline=mine.json", "--update-baseline")
    monkeypatch.setattr(execute.Execution, "generate", lambda *_: pytest.fail("work was done"))
    refused = bench(*eight, "--baseline=mine.json", *options, cases=GATE)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    said = [*refused.outlines, *refused.errlines]
    wanted = f"--baseline mine.json: expected results of the same measurement; * {difference}"
    assert any(says(line, wanted) for line in said), said


def test_a_baseline_is_not_made_of_half_a_run(bench, eight, judged):
    judged(below)
    options = [*eight, "--alphas=0.5,1", "--baseline=new.json", "--update-baseline"]
    half = bench(*options, "-k", "color-0.5")
    half.stdout.fnmatch_lines(
        ["baseline  NOT written: *expected complete cells, got 1 incomplete*"]
    )
    assert half.ret == pytest.ExitCode.TESTS_FAILED
    assert not (bench.path / "new.json").exists()


def test_the_random_control_is_shown_beside_the_method(bench, eight, judged):
    judged(lambda job: noise(job) + (0.2 * job.alpha if job.method == "word" else -0.1))
    run = bench(*eight, "--control")
    assert run.ret == pytest.ExitCode.OK
    run.stdout.fnmatch_lines(["random *advantage *", "color *1 *8 *"])
    [cell] = results_of(bench.path / "results.json")["cells"]
    assert cell["random"]["margin"]["verdict"] == "failure"
    assert cell["random"]["advantage"]["mean"] == pytest.approx(0.3, abs=0.001)
    keys = index(bench.path / "run", "SELECT COUNT(*) FROM images")
    assert keys == [(3 * 8,)]  # alpha 0, alpha 1, alpha 1 at random


def test_a_blind_judge_is_no_verdict_on_the_method(bench, judged):
    """The shipped margins on ground truth, shuffled: a judge that sees nothing in color."""
    truth = results_of(shipped("baselines/embedded-ceiling.json"))
    for number, record in enumerate(truth["pairs"].values()):
        if record["category"] == "color":
            sign = 1 if number % 2 else -1
            record["target"] = [sign * 0.1] * 3
            record["source"] = [-sign * 0.1] * 3
    (bench.path / "blind.json").write_text(json.dumps(truth))
    judged(below)
    options = ["--limit=10", "--alphas=1", "--run-dir=run", "--categories=color,size"]
    run = bench(*options, "--ceiling=blind.json")
    run.assert_outcomes(skipped=1, failed=2)
    run.stdout.fnmatch_lines(
        ["color *1 *10 *blind", "size *1 *10 *failure", "The judge does not see *: color. *"]
    )


def test_the_judge_is_held_to_ground_truth(bench, tmp_path):
    options = ["--limit=7", "--categories=color,emotion", "--run-dir=run", "-k", "test_judge"]
    seen = bench(*options, cases=("test_calibration",))
    seen.assert_outcomes(passed=2, deselected=8)
    truth = results_of(shipped("baselines/embedded-ceiling.json"))
    for record in truth["pairs"].values():
        record["target"], record["source"] = record["source"], record["target"]
    (bench.path / "other.json").write_text(json.dumps(truth))
    other = bench(*options, "--ceiling=other.json", cases=("test_calibration",))
    other.assert_outcomes(failed=2, deselected=8)
    other.stdout.fnmatch_lines(["*its drawings score other margins than other.json has*"])


# --- usage errors


def says(line: str, pattern: str) -> bool:
    """Whether a line holds the pattern, whose only special character is ``*``."""
    return re.search(".*".join(map(re.escape, pattern.split("*"))), line) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method=wrod"], "--method: expected one of lerp, *, got 'wrod'; did you mean 'word'?"),
        (["--seeds=-1"], "--seeds: expected an integer >= 0, got -1"),
        (["--seeds=1,1"], "--seeds: expected each value once, got (1, 1)"),
        (["--alphas=0"], "--alphas: expected strengths other than 0, *so leave it out"),
        (["--alphas=half"], "--alphas: expected a number, got 'half'"),
        (["--alphas=9"], "--alphas: expected a finite number from -5 to 5, got 9.0"),
        (["--steps=0"], "--steps: expected an integer >= 1, got 0"),
        (["--guidance=-1"], "--guidance: expected a finite number from 0 to 1e+06, got -1.0"),
        (["--batch-size=0"], "--batch-size: expected an integer >= 1, got 0"),
        (["--limit=0"], "--limit: expected an integer >= 1, got 0"),
        (["--limit=1", "--method=category"], "--method: category needs 2 pairs or more *"),
        (["--categories=colour"], "--categories: *'colour'; choose from *; did you mean 'color'?"),
        (["--pairs=none.csv"], "--pairs: none.csv: expected a CSV file of word pairs, got: No *"),
        (["--model=none"], "--model 'none': expected 'embedded', a folder or .safetensors file *"),
        (["--clip-model=none"], "--clip-model 'none': expected 'embedded', a folder, *"),
        (["--run-dir=taken"], "run folder taken: expected a folder that can be written*--run-dir"),
        (["--results=taken/x.json"], "--results: expected a file that can be written, got taken*"),
        (["--results=."], "--results: expected a file that can be written, got ."),
        (["--baseline=none.json"], "none.json: expected a results file or a run folder, got *"),
        (["--tolerance=-1"], "--tolerance: expected a finite number >= 0, got '-1'"),
        (["--tolerance=inf"], "--tolerance: expected a finite number >= 0, got 'inf'"),
        (["--ceiling=none.json"], "none.json*"),
        (["--baseline=taken"], "taken: expected the JSON of a results file, got invalid JSON *"),
        (["--baseline=taken", "--update-baseline"], "baseline taken: expected a results file or *"),
        (
            [f"--model={shipped('models/sdxl-tiny')}", "--update-baseline"],
            "--update-baseline: expected --baseline FILE to say where",
        ),
    ],
    ids=lambda value: " ".join(o.rpartition("/")[2] for o in value) if type(value) is list else "",
)
def test_a_wrong_value_is_a_usage_error_that_says_what_is_allowed(
    bench, eight, monkeypatch, options, message
):
    (bench.path / "taken").write_text("no baseline, no folder")
    monkeypatch.setattr(execute.Execution, "generate", lambda *_: pytest.fail("work was done"))
    run = bench(*eight, *options, cases=GATE)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    said = [*run.outlines, *run.errlines]
    assert any(says(line, message) for line in said), said
    assert not (bench.path / "results.json").exists()


def test_gpu_without_cuda_is_a_usage_error(bench, eight, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = bench(*eight, "--gpu")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stdout.fnmatch_lines(["*Exit: --gpu: expected a CUDA device, but torch * sees none*"])


# --- failed images, and memory


def test_a_cell_whose_image_failed_says_so_and_another_run_mends_it(
    bench, eight, judged, monkeypatch
):
    draw = Generator.generate

    def spoilt(generator, conditionings, latents):
        made = draw(generator, conditionings, latents)
        return dataclasses.replace(made, faults={len(conditionings) - 1: "black"})

    judged(lambda job: noise(job) + 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "generate", spoilt)
        result = bench(*eight, "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        [
            "*1 failed image; not scored, items incomplete.*",
            "*color at alpha 1: 1 (black)",
            "*SKIPPED*incomplete: color at alpha 1 cannot be decided (1 failed image)*",
        ]
    )
    results = results_of(bench.path / "results.json")
    assert [cell["verdict"] for cell in results["cells"]] == ["incomplete"]
    assert results["failures"] == [
        {"pair_id": "c7", "category": "color", "alpha": 1.0, "seed": 0, "method": "word",
         "reason": "black"}
    ]  # fmt: skip
    bench(*eight).assert_outcomes(passed=2)
    assert results_of(bench.path / "results.json")["failures"] == []


def test_memory_for_not_one_image_ends_the_run_with_the_reason(bench, eight, monkeypatch):
    def full(generator, conditionings, latents):
        raise MemoryFullError("out of memory with one image at a time: free the device")

    monkeypatch.setattr(Generator, "generate", full)
    result = bench(*eight)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["*out of memory with one image at a time: free the device*"])
    assert (bench.path / "results.json").is_file()


# --- quality


def test_quality_is_recorded_and_fails_only_where_the_user_sets_limits(bench, eight):
    result = bench(*eight, "--junitxml=junit.xml", cases=("test_quality",))
    result.assert_outcomes(passed=3)  # a cell, and two alphas with 0's
    result.stdout.fnmatch_lines(
        [
            "quality *CLIPScore *direction *PSNR (dB) *SSIM",
            "color * 1 * 8 *",
            "LPIPS is not measured:*",
            "all images *cmmd (clip-tiny) *kid (clip-tiny)",
            "Distance from 8 drawings of the pairs' targets.",
        ]
    )
    quality = results_of(bench.path / "results.json")["quality"]
    [cell] = quality["cells"]
    assert (cell["category"], cell["alpha"], cell["ssim"]["n"]) == ("color", 1.0, 8)
    assert 0 < cell["ssim"]["ci_low"] < cell["ssim"]["mean"] < cell["ssim"]["ci_high"] < 1
    assert [row["alpha"] for row in quality["alphas"]] == [0.0, 1.0]
    cases = ElementTree.parse(bench.path / "junit.xml").iter("property")
    said = {case.get("name"): case.get("value") for case in cases}
    assert said["ssim"] == str(cell["ssim"]["mean"])

    kept = bench(*eight, "--limits=ssim>=0,cmmd<=1000", cases=("test_quality",))
    kept.assert_outcomes(passed=3)
    broken = bench(*eight, "--limits=ssim>=0.999,cmmd<=0", cases=("test_quality",))
    broken.assert_outcomes(failed=3)
    broken.stdout.fnmatch_lines(["*color at alpha 1: ssim 0.* limit ssim>=0.999*"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--reference=none"],
            r"--reference: none: expected a folder that can be read \(No such file",
        ),
        (["--lpips-weights=no.pth"], r"--lpips-weights: expected a file, got no\.pth"),
    ],
)
def test_what_quality_is_promised_must_be_there(bench, eight, options, message):
    result = bench(*eight, *options, cases=("test_quality",))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert re.search(message, str(result.stdout) + str(result.stderr))
