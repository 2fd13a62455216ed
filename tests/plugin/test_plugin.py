"""The whole way: `pytest benchmarks` on the embedded models, resumed and measured."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
from cases import GATE, HEADER, NOUNS, ROOT, index, noise, results_of

from analogy.core.records import Estimate
from analogy.generation import execution as execute
from analogy.generation import worker as work
from analogy.judges import open_clip as clip
from analogy.models.generator import Generator
from analogy.models.memory import MemoryFullError
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


# --- the whole way


def test_two_pairs_of_every_category_from_nothing_and_once_more(bench, monkeypatch):
    options = ["--limit=2", "--run-dir=run"]
    first = bench(*options, "--junitxml=junit.xml", "--benchmark-json=bench.json")
    results = results_of(bench.path / "results.json")

    # Two pairs decide nothing in a cell; the whole has sixteen.
    whole = results["overall"]
    passed, failed = (whole["verdict"] == verdict for verdict in ("success", "failure"))
    first.assert_outcomes(skipped=24, passed=int(passed), failed=int(failed))
    assert first.ret == (pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK)

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

    junit = ElementTree.parse(bench.path / "junit.xml")
    [said] = junit.iterfind("testsuite/properties/property")
    assert (said.get("name"), said.get("value")) == ("answer", results["answer"]["text"])
    cases = junit.iter("testcase")
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
            "model     sdxl-tiny@sha256:*",
            "judge     clip-tiny@sha256:*",
            "steering  word; 2 steps, guidance 4, 64 px, * on cpu, seeds 0",
            "run       run",
            "limit     2 pairs per category: not the whole measurement",
            "pairs     16 in 8 categories",
            "images    64 to make, 0 are there",
            "*= analogy steering =*",
            "category alpha    n margin           95% CI   >0   gain  verdict",
            "color *0    2 *unsteered",
            "color *0.5    2 *too_few",
            "emotion *1    2 *too_few",
            "all *0.8   16 *",
            "overall *all   16 *" + whole["verdict"] + "*",
            "margin: are the images closer to the target than to the source? *",
            "gain: what did steering itself do? *",
            "Items taken for independent, as the published study did: *",
            "dose-response *",
            "overall * 16 *",
            "generated * images/s",
            "scored    * images/s",
            "results   results.json",
            "*Name (time in *s) *Mean *Rounds*",
            "pool      " + whole["verdict"] + "* (published protocol: all strengths)",
            "answer    " + results["answer"]["text"],
        ]
    )
    assert "StdDev" not in first.stdout.str()

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
    shown = " ".join(run.stdout.str().split())
    said = "unread 1 of 7 pairs: the judge reads both prompts as one; in no figure (late)"
    assert shown.index(said) < shown.index("analogy steering =")
    assert shown.count(said) == 1
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
    # Source, alpha 1 and the target prompt itself of 8 pairs; the median pair's two; the viewer's.
    assert page.count("<img ") == 8 * 3 + 2 + 2
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
    assert said == (
        "Against the baseline `mine.json`: equal within the tolerance in 1 of 1 cell; "
        "all cells together: equal within the tolerance."
    )


def test_a_report_that_cannot_be_is_said_before_the_work(bench, eight, monkeypatch):
    monkeypatch.setattr(Generator, "generate", lambda *_: pytest.fail("generated"))
    (bench.path / "taken").mkdir()
    run = bench(*eight, "--report=taken")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stdout.fnmatch_lines(["*--report: expected a file that can be written, got taken*"])
    monkeypatch.setattr("analogy.writers.find_spec", lambda name: None)
    run = bench(*eight, "--report=r.html")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stdout.fnmatch_lines(["*--report: expected jinja2 and matplotlib, got no jinja2*"])


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
            "Intervals: with --wide, in the report and in results.json.",
            "LPIPS is not measured: --lpips-weights FILE names its weights (docs/metrics.md).",
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
