"""The whole way: `pytest benchmarks` on the embedded models, resumed, gated and misused."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sqlite3
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from analogy import execute
from analogy.generator import Generator
from analogy.models import shipped
from analogy.study import RESULTS_VERSION

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = ["color", "object", "pattern", "count", "size", "scene", "weather", "emotion"]
FIGURES = ["n", "n_items", "mean", "ci_low", "ci_high", "p", "success_rate", "verdict"]
HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"
NOUNS = ("car", "cup", "hat", "boat", "star", "tree", "fish", "heart")


@pytest.fixture
def bench(pytester, pipeline, judge):
    """Run the benchmarks in this process, under the checkout's own configuration.

    The models' libraries are loaded by now: pytester forgets what a run imports, and they do not
    bear being imported twice.
    """

    def run(*options: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess(
            str(ROOT / "benchmarks" / "test_margin.py"),
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
        def cosines(worker, judge, batch):
            return [(margin(job), 0.0, margin(job)) for job in batch]

        monkeypatch.setattr(execute.Worker, "_cosines", cosines)

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
        assert list(cell) == ["category", "alpha", *FIGURES]
        assert (cell["n"], cell["n_items"], cell["verdict"]) == (2, 2, "too_few")
        assert cell["ci_low"] <= cell["mean"] <= cell["ci_high"]
        assert 0 <= cell["p"] <= 1
    assert list(whole) == FIGURES
    assert (whole["n"], whole["n_items"]) == (16, 48)
    assert all(rate > 0 for rate in results["throughput"].values())
    assert set(results["throughput"]) == {"generate_images_per_s", "score_images_per_s"}

    cases = ElementTree.parse(bench.path / "junit.xml").iter("testcase")
    properties = {
        case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")}
        for case in cases
    }
    assert len(properties) == 25
    for cell in results["cells"]:
        figures = properties[f"test_margin[{cell['category']}-{cell['alpha']:g}]"]
        assert list(figures) == FIGURES
        assert float(figures["mean"]) == cell["mean"]
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
            "category   alpha    n     mean               95% CI        p success  verdict",
            "color          0    2 *control",
            "color        0.5    2 *too_few",
            "emotion        1    2 *too_few",
            "overall      all   16 *" + whole["verdict"],
            "generated * images/s",
            "scored    * images/s",
            "results   results.json",
        ]
    )

    # The same command again loads no model and makes nothing.
    files = {path: path.stat().st_mtime_ns for path in (bench.path / "run").rglob("*.png")}
    assert len(files) == 64
    work = index(bench.path / "run", "SELECT * FROM work")
    assert sum(row[1] for row in work if row[0] == "generate") == 64
    assert sum(row[1] for row in work if row[0] == "score") == 64
    for name in ("load_pipeline", "Judge"):
        monkeypatch.setattr(execute, name, lambda *_, **__: pytest.fail("loaded again"))
    again = bench(*options)
    assert again.ret == first.ret
    assert {p: p.stat().st_mtime_ns for p in (bench.path / "run").rglob("*.png")} == files
    assert index(bench.path / "run", "SELECT * FROM work") == work
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
    plugins = ["-p", "analogy.plugin", "-p", "no:hypothesispytest"]
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


def test_the_help_has_the_options_in_a_group_of_their_own(bench):
    shown = bench("--help").stdout.str()
    group = shown[shown.index("analogy steering benchmark") :]
    for text in ("--alphas=LIST", "[default: 0.5,0.8,1.0]", "[default: embedded; with --gpu"):
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
    command = [*eight, "--batch-size=10"]
    interrupting = True
    cut = bench(*command)
    assert cut.ret == pytest.ExitCode.INTERRUPTED
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


def test_an_interruption_of_the_scoring_keeps_the_images(bench, eight, monkeypatch):
    with monkeypatch.context() as patch:

        def interrupt(*_):
            raise KeyboardInterrupt

        patch.setattr(execute.Worker, "_cosines", interrupt)
        assert bench(*eight).ret == pytest.ExitCode.INTERRUPTED
    monkeypatch.setattr(Generator, "generate", lambda *_: pytest.fail("generated again"))
    bench(*eight)
    assert results_of(bench.path / "results.json")["overall"]["verdict"] != "incomplete"


# --- verdicts and baselines


def test_success_passes(bench, eight, judged):
    judged(lambda job: noise(job) + 0.1 * (job.alpha > 0))
    run = bench(*eight)
    run.assert_outcomes(passed=2)
    assert run.ret == pytest.ExitCode.OK
    run.stdout.fnmatch_lines(["color *0 *8 *control", "color *1 *8 *100%  success"])


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
    update.stdout.fnmatch_lines(["baseline  1 cells written to mine.json"])
    recorded = json.loads((bench.path / "mine.json").read_text())
    assert [cell["verdict"] for cell in recorded["cells"]] == ["failure"]

    expected = bench(*command, "-rx")
    expected.assert_outcomes(xfailed=2)
    assert expected.ret == pytest.ExitCode.OK
    expected.stdout.fnmatch_lines(
        [
            "baseline  mine.json",
            "color *1 *8 *failure (known)",
            "XFAIL*color-1* - known failure; now color at alpha 1: failure, mean margin -0.*, n 8",
        ]
    )

    strict = bench(*command, "--strict")
    strict.assert_outcomes(failed=2)
    strict.stdout.fnmatch_lines(["baseline  ignored (--strict)"])

    other = bench(*command, "--guidance=2")
    other.assert_outcomes(failed=2)
    other.stdout.fnmatch_lines(
        ["baseline  not comparable, so not used (guidance: baseline 4.0, this run 2.0)"]
    )


def test_a_cell_that_succeeds_against_its_baseline_passes(bench, eight, judged):
    judged(below)
    bench(*eight, "--baseline=mine.json", "--update-baseline")
    judged(lambda job: 0.1 + noise(job))
    better = bench(*eight, "--baseline=mine.json", "--run-dir=better")
    better.assert_outcomes(passed=2)
    better.stdout.fnmatch_lines(["color *1 *8 *success (better than its baseline)"])


def test_another_model_has_no_baseline(bench, eight, judged):
    judged(below)
    run = bench(*eight, f"--model={shipped('models/sdxl-tiny')}")
    run.assert_outcomes(failed=2)
    run.stdout.fnmatch_lines(["baseline  none for this model"])


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
        (["--guidance=-1"], "--guidance: expected a finite number >= 0, got -1.0"),
        (["--batch-size=0"], "--batch-size: expected an integer >= 1, got 0"),
        (["--limit=0"], "--limit: expected an integer >= 1, got 0"),
        (["--limit=1", "--method=category"], "--method: category needs 2 pairs or more *"),
        (["--categories=colour"], "--categories: *'colour'; choose from *; did you mean 'color'?"),
        (["--pairs=none.csv"], "--pairs: none.csv: expected a CSV file of word pairs, got: No *"),
        (["--model=none"], "--model 'none': expected 'embedded', a folder that exists, or a *"),
        (["--clip-model=none"], "--clip-model 'none': expected 'embedded', a folder, *"),
        (["--run-dir=taken"], "run folder taken: expected a folder that can be written*--run-dir"),
        (["--results=taken/x.json"], "--results: expected a file that can be written, got taken*"),
        (["--results=."], "--results: expected a file that can be written, got ."),
        (["--baseline=none.json"], "baseline none.json: cannot be read *--update-baseline"),
        (
            ["--update-baseline", "--baseline=new.json", "--limit=7"],
            "--update-baseline: expected the whole measurement, got --limit 7; leave --limit out",
        ),
        (["--baseline=taken"], "baseline taken: not a baseline of this suite *--update-baseline"),
        (["--baseline=taken", "--update-baseline"], "baseline taken: not a baseline of this *"),
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
    monkeypatch.setattr(execute.Worker, "generate", lambda *_: pytest.fail("work was done"))
    run = bench(*eight, *options)
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
