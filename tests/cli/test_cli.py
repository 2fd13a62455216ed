"""The command line: its table, files and exit codes; and nothing but a comparison passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from cases import ROOT
from extras import extra
from planted import results, small, write_results
from typer.testing import CliRunner

from analogy import cli
from analogy.results import comparison


@pytest.fixture
def run(monkeypatch):
    """Run a verb in this process: its exit code and what it wrote to stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments):
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def file(tmp_path):
    """Write planted results; gives the file."""

    def write(name, margins, **changed):
        write_results(results(margins, **changed), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def old(file):
    """A baseline of two categories at two alphas."""
    return file("old.json", small(20))


def lower(margins, category, by):
    """The margins of a category lowered."""
    return {key: values - by * (key[0] == category) for key, values in margins.items()}


# --- compare: what is said


def test_nothing_regressed(run, file, old):
    result = run("compare", old, file("new.json", small(20), steps=9))
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "category", "alpha", "n", "new", "diff", "99%", "CI", "outcome",
    ]  # fmt: skip
    mean = f"{small(20)['color', 0.5].mean():+.4f}"
    assert lines[2].split() == [
        "color", "0.5", "20", mean, "+0.0000", "[+0.0000,", "+0.0000]", "equivalent",
    ]  # fmt: skip
    wide = run("compare", old, file("new.json", small(20), steps=9), "--wide").stdout
    assert wide.splitlines()[2].split()[3:5] == [mean, mean]
    assert len(lines) == 2 + 4 + 1 + 1 + 7
    assert lines[-1] == (
        "conclusion  equal within the tolerance in 4 of 4 cells; all cells together: equal within "
        "the tolerance"
    )
    assert lines[7].split()[:3] == ["overall", "all", "40"]
    assert "compared    all 2 categories; tolerance 0.005" in result.stdout
    assert "subject     steps: baseline 8, this run 9" in result.stdout
    assert "throughput  generate x 1.00, score x 1.00" in result.stdout


def test_the_columns_stand_below_each_other(run, file):
    margins = small(20, categories=("a category of a long name", "b"))
    margins["b", 0.5][0] = np.nan
    path = file("one.json", margins)
    lines = run("compare", path, path).stdout.splitlines()
    start = lines[0].index("outcome")
    for line in [*lines[2:6], lines[7]]:
        assert line[start - 2 : start] == "  "
        assert line[start:].split()[0] in {"equivalent", "incomplete"}


def test_a_regression_is_said_with_its_figures(run, file, old):
    result = run("compare", old, file("new.json", lower(small(20), "size", 0.2)))
    assert result.exit_code == 1
    wide = run("compare", old, file("new.json", lower(small(20), "size", 0.2)), "--wide")
    assert "regressed (success -> failure)" in wide.stdout
    said = [line for line in result.stdout.splitlines() if line.startswith("regressed ")]
    assert [line.split(":")[0].split(None, 1)[1] for line in said] == [
        "size at alpha 0.5", "size at alpha 1", "overall",
    ]  # fmt: skip
    assert "difference -0.2000, 99% CI [-0.2000, -0.2000], limit -0.005, n 20" in said[0]


def test_the_tolerance_is_what_is_put_up_with(run, file, old):
    new = file("new.json", lower(small(20), "size", 0.02))
    assert run("compare", old, new).exit_code == 1
    assert run("compare", old, new, "--tolerance", "0.021").exit_code == 0
    assert run("compare", old, new, "--tolerance", "0").exit_code == 1


def test_run_folders_are_compared_by_their_latest(run, file, tmp_path):
    for name in ("a", "b"):
        file(f"{name}/results.json", small(20))
    assert run("compare", tmp_path / "a", tmp_path / "b").exit_code == 0


def test_some_categories_are_said(run, file, old):
    result = run("compare", old, file("new.json", small(20, categories=("color",))))
    assert result.exit_code == 0
    assert "compared    1 of 2 categories (color)" in result.stdout


def test_another_machine_has_no_ratio(run, file, old):
    new = file("new.json", small(20), machine={"processor": "M4", "threads": 2, "device": "cpu"})
    shown = run("compare", old, new).stdout
    assert "throughput  not compared: another machine (processor)" in shown


def noisy(seed):
    """Cells of mean 0, with so much noise that nothing is decided."""
    rng = np.random.default_rng(seed)
    drawn = {cell: rng.normal(0, 0.2, 20) for cell in small(20)}
    return {cell: values - values.mean() for cell, values in drawn.items()}


def test_nothing_decided_is_said_and_has_an_exit_code_for_who_asks(run, file, old, tmp_path):
    first, new = file("first.json", noisy(1)), file("new.json", noisy(2))
    result = run("compare", first, new)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == (
        "conclusion  undecided in 4 of 4 cells: nothing shown to be worse or better"
    )
    asked = run("compare", first, new, "--decide", "--json", tmp_path / "c.json")
    assert asked.exit_code == 6
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["exit_code"] == 6
    assert data["conclusion"] in result.stdout
    assert run("compare", old, old, "--decide").exit_code == 0
    worse = file("worse.json", lower(small(20), "size", 0.2))
    assert run("compare", old, worse, "--decide").exit_code == 1
    one = file("one.json", {**small(20), ("size", 1.0): small(20)["size", 1.0] + 0.2})
    assert (
        "better in 1 and equal within the tolerance in 3 of 4 cells"
        in run("compare", old, one).stdout
    )


# --- compare: what does not pass


def holed():
    margins = small(20)
    margins["size", 1.0][0] = np.nan
    return margins


def test_another_measurement_is_refused(run, file, old, tmp_path):
    new = file("new.json", small(20), seeds=[0])
    result = run("compare", old, new, "--json", tmp_path / "c.json", "--junit", tmp_path / "c.xml")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "seeds: baseline [0, 1, 2], this run [0]" in result.stderr
    data = json.loads((tmp_path / "c.json").read_text())
    assert (data["comparable"], data["exit_code"]) == (False, 3)
    assert data["measurement_differences"] == ["seeds: baseline [0, 1, 2], this run [0]"]
    [case] = ElementTree.parse(tmp_path / "c.xml").iter("testcase")
    assert "seeds: baseline" in case.find("error").get("message")


@pytest.mark.parametrize("side", ["old", "new"])
def test_missing_images_do_not_pass(run, file, old, tmp_path, side):
    other = file("other.json", holed())
    sides = (other, old) if side == "old" else (old, other)
    result = run("compare", *sides, "--junit", tmp_path / "c.xml")
    assert result.exit_code == 3
    assert "incomplete  size at alpha 1: incomplete: of 20 pairs, not all" in result.stdout
    suite = ElementTree.parse(tmp_path / "c.xml").find("testsuite")
    assert (suite.get("errors"), suite.get("skipped"), suite.get("tests")) == ("1", "2", "6")


def test_a_regression_is_one_whatever_else_is_missing(run, file, old):
    assert run("compare", old, file("new.json", lower(holed(), "color", 0.2))).exit_code == 1


def test_too_few_pairs_for_anything_do_not_pass(run, file, tmp_path):
    few = file("few.json", small(3, categories=("color",)))
    result = run("compare", few, few, "--junit", tmp_path / "c.xml")
    assert result.exit_code == 3
    assert "undecided   no cell has enough pairs" in result.stdout
    assert ElementTree.parse(tmp_path / "c.xml").find("testsuite").get("errors") == "1"


def test_a_file_that_cannot_be_read_is_wrong_usage(run, old, tmp_path):
    (tmp_path / "notes.json").write_text("notes")
    (tmp_path / "v1.json").write_text('{"schema_version": 1}')
    for name in ("none.json", "notes.json", "v1.json", "."):
        for sides in [(old, tmp_path / name), (tmp_path / name, old)]:
            result = run("compare", *sides)
            assert result.exit_code == 2
            assert result.stdout == ""
            assert result.stderr.startswith(f"analogy: {tmp_path / name}: expected ")
            assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf", "much"])
def test_a_wrong_tolerance_is_wrong_usage(run, old, tolerance):
    result = run("compare", old, old, f"--tolerance={tolerance}")
    assert result.exit_code == 2
    assert "tolerance" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["compare"], ["compare", "a"], ["compar", "a", "b"]])
def test_wrong_usage_is_said_without_a_traceback(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_place_that_cannot_be_written_is_wrong_usage(run, old, tmp_path):
    for option in ("--json", "--junit"):
        result = run("compare", old, old, option, old / "below" / "file")
        assert result.exit_code == 2
        assert "expected a file that can be written, got" in result.stderr


# --- compare: JSON and JUnit


def strict(text):
    return json.loads(text, parse_constant=pytest.fail)


def test_json_has_every_figure(run, file, old, tmp_path):
    new = file("new.json", lower(small(20), "size", 0.2), method="lerp")
    result = run("compare", old, new, "--json", tmp_path / "made" / "c.json")
    data = strict((tmp_path / "made" / "c.json").read_text())
    assert (data["schema_version"], data["comparable"], data["exit_code"]) == (1, True, 1)
    assert (data["old"], data["new"], data["tolerance"]) == (str(old), str(new), 0.005)
    assert [(c["category"], c["alpha"], c["outcome"]) for c in data["cells"]] == [
        ("color", 0.5, "equivalent"),
        ("color", 1.0, "equivalent"),
        ("size", 0.5, "regressed"),
        ("size", 1.0, "regressed"),
    ]
    assert data["cells"][2]["difference"] == pytest.approx(-0.2)
    assert data["overall"]["category"] is None
    assert data["subject_differences"] == ["method: baseline word, this run lerp"]
    assert data["throughput"] == {"ratios": {"generate": 1.0, "score": 1.0}, "note": ""}
    assert "regressed" in result.stdout


def test_json_on_stdout_is_alone_there(run, old):
    result = run("compare", old, old, "--json", "-")
    assert strict(result.stdout)["exit_code"] == 0
    assert result.stderr.startswith("category ")


def test_incomplete_figures_are_null(run, file, old):
    result = run("compare", old, file("new.json", holed()), "--json", "-")
    assert strict(result.stdout)["cells"][3]["difference"] is None


def test_junit_has_a_case_per_cell(run, file, old, tmp_path):
    margins = lower(small(20), "size", 0.2)
    margins["color", 0.5][0] = np.nan
    run("compare", old, file("new.json", margins), "--junit", tmp_path / "c.xml")
    root = ElementTree.parse(tmp_path / "c.xml").getroot()
    assert root.tag == "testsuites"
    [suite] = root
    assert suite.attrib == {
        "name": "analogy compare", "tests": "5", "failures": "2", "errors": "0", "skipped": "2",
        "time": "0",
    }  # fmt: skip
    facts = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
    assert facts["old"] == str(old)
    assert facts["subject"] == "no difference"
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == [
        "color at alpha 0.5", "color at alpha 1", "size at alpha 0.5", "size at alpha 1", "overall",
    ]  # fmt: skip
    assert cases["size at alpha 1"].get("classname") == "size"
    message = cases["size at alpha 1"].find("failure").get("message")
    assert message.startswith("size at alpha 1: regressed: margin ")
    assert "not all images" in cases["color at alpha 0.5"].find("skipped").get("message")
    assert [child.tag for child in cases["color at alpha 1"]] == ["properties"]
    figures = {
        p.get("name"): p.get("value")
        for p in cases["size at alpha 1"].findall("properties/property")
    }
    assert float(figures["difference"]) == pytest.approx(-0.2)
    assert (figures["outcome"], figures["new_verdict"]) == ("regressed", "failure")
    assert "difference" not in {
        p.get("name") for p in cases["color at alpha 0.5"].findall("properties/property")
    }


def test_names_that_xml_and_terminals_do_not_take(run, file, tmp_path):
    margins = small(20, categories=("größe 色 <&>\"'",))
    path = file("odd\x1b name.json", margins)
    result = run("compare", path, path, "--junit", tmp_path / "c.xml")
    assert result.exit_code == 0
    root = ElementTree.parse(tmp_path / "c.xml").getroot()
    case = next(root.iter("testcase"))
    assert case.get("classname") == "größe 色 <&>\"'"
    assert "odd\ufffd name.json" in next(root.iter("property")).get("value")


# --- baseline


def test_a_run_becomes_a_baseline(run, file, tmp_path):
    file("run/results.json", small(20))
    out = tmp_path / "made" / "baseline.json"
    result = run("baseline", tmp_path / "run", "-o", out)
    assert (result.exit_code, result.stdout) == (0, f"baseline {out} written\n")
    assert run("compare", out, tmp_path / "run").exit_code == 0
    assert json.loads(out.read_text()) == results(small(20))


def test_what_may_not_be_replaced_is_said(run, file, old, tmp_path):
    before = old.read_bytes()
    result = run("baseline", file("new.json", small(20), seeds=[0]), "-o", old)
    assert result.exit_code == 2
    assert "another measurement (seeds: " in result.stderr
    assert run("baseline", file("new.json", holed()), "--output", old).exit_code == 2
    assert run("baseline", tmp_path / "none", "-o", old).exit_code == 2
    assert run("baseline", old).exit_code == 2
    assert old.read_bytes() == before


# --- the whole way, as a process


def analogy(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "analogy", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_as_a_process_in_a_terminal_that_knows_ascii_only(file):
    margins = small(20, categories=("größe", "size"))
    old, new = file("old.json", margins), file("new.json", lower(margins, "größe", 0.2))
    done = analogy("compare", old, new, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert done.stderr == ""
    assert "gr\\xf6\\xdfe at alpha 0.5: regressed" in done.stdout


@pytest.mark.slow
def test_a_comparison_loads_no_model():
    code = "import sys, analogy.cli; sys.exit(bool({'torch', 'diffusers'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=600)


def test_an_error_of_the_suite_is_no_verdict(monkeypatch, capsys, old):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(comparison, "compare", broken)
    monkeypatch.setattr(sys, "argv", ["analogy", "compare", str(old), str(old)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.ExitCode.INTERNAL
    assert ended.value.code not in {0, 1, 2, 3}
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_leaves_changes_no_exit_code(old):
    command = f"{sys.executable} -m analogy compare {old} {old} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


# --- what is said about it elsewhere


def test_the_workflow_is_one_that_a_user_can_take():
    text = (ROOT / ".github" / "workflows" / "benchmark.yml").read_text("utf-8")
    workflow = extra("yaml").safe_load(text)
    triggers = workflow[True]  # YAML 1.1 reads the key `on` so
    assert set(triggers) == {"pull_request", "schedule", "workflow_dispatch"}
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    assert set(workflow["jobs"]) == {"smoke", "full"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        steps = job["steps"]
        actions = [step["uses"] for step in steps if "uses" in step]
        assert all(len(action.split("@v")) == 2 for action in actions)
        [python] = [step for step in steps if "setup-python" in step.get("uses", "")]
        assert python["with"]["cache"] == "pip"
        [upload] = [step for step in steps if "upload-artifact" in step.get("uses", "")]
        assert upload["if"] == "always()"
        commands = "\n".join(step.get("run", "") for step in steps)
        assert "--baseline fixtures/baselines/" in commands
        for option in ("--junitxml", "--results"):
            assert commands.split(f"{option} ")[1].split()[0] in upload["with"]["path"].split()


def test_the_documentation_names_the_exit_codes():
    text = (ROOT / "docs" / "ci.md").read_text("utf-8")
    assert len(text.splitlines()) < 100
    for code in cli.ExitCode:
        assert f"| {int(code)} |" in text
