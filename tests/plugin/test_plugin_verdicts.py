"""`pytest benchmarks` with a judge of known margins: verdicts, baselines and misuse."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from cases import GATE, index, noise, results_of

from analogy.generation import execution as execute
from analogy.generation import worker as work
from analogy.models import defaults
from analogy.models.places import shipped

pytest_plugins = ["pytester"]


def below(job) -> float:
    return noise(job) - 0.1


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
    run = bench(*eight, "--inconclusive=fail")
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


def test_inconclusive_is_no_failure_of_a_users_own_run(bench, eight, judged):
    judged(noise)
    run = bench(*eight, "--color=yes", "-v")
    assert run.ret == pytest.ExitCode.OK
    assert run.parseoutcomes() == {"inconclusive": 2}
    run.stdout.fnmatch_lines(["*test_margin*color-1* *\x1b[[]33mINCONCLUSIVE*"])
    assert "\x1b[33minconclusive\x1b[0m" in run.stdout.str()
    plain = bench(*eight, "--inconclusive=pass")
    assert plain.ret == pytest.ExitCode.OK
    plain.stdout.fnmatch_lines(["*test_margin.py ii *", "answer    Not shown at 1: 0 of 1 *"])
    assert "\x1b" not in plain.stdout.str()
    bench(*eight, "--baseline=b.json", "--update-baseline", "--inconclusive=pass")
    gate = bench(*eight, "--baseline=b.json", "--strict", cases=GATE)
    gate.assert_outcomes(failed=2, passed=2)


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
        (["--seeds=0"], "seeds"),
        (["--seeds=0,1,2", "--steps=2"], "steps"),
    ):
        run = bench("--limit=6", "--categories=color", "--alphas=1", "--run-dir=run", *options)
        said = " ".join(run.stdout.str().split()).partition(" embedded.json, differs in ")[2]
        assert why in said.partition(" limit 6 pairs")[0].split(", ")
        assert run.ret == pytest.ExitCode.OK


def test_a_cell_that_succeeds_against_its_baseline_passes(bench, eight, judged):
    judged(below)
    bench(*eight, "--baseline=mine.json", "--update-baseline")
    judged(lambda job: 0.1 + noise(job))
    better = bench(*eight, "--baseline=mine.json", "--run-dir=better", cases=GATE)
    better.assert_outcomes(passed=4)
    better.stdout.fnmatch_lines(["color *1 *8 *success (better)"])


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
