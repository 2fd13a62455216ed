"""The command line, pytest and notebooks on a run folder with results of several measurements."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cases import ROOT
from verbs import verb

from analogy import load_run
from analogy.models.generator import Generator
from analogy.models.places import shipped
from analogy.results.kept import Measured
from analogy.store import opening
from analogy.store.folder import RunFolder

pytest_plugins = ["pytester"]

SAME = ("--pairs=pairs.csv", "--seeds=0", "--steps=2", "--dtype=float32", "--run-dir=run")
WHOLE = (*SAME, "--alphas=0.5,1")
SMALL = (*WHOLE, "--limit=2", "--categories=color")


@pytest.fixture
def here(whole_run, tmp_path, monkeypatch):
    """A folder with a copy of a finished run, which has results.json as earlier suites had it."""
    shutil.copytree(whole_run / "run", tmp_path / "run")
    shutil.copy(whole_run / "pairs.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results_of(path):
    return json.loads(Path(path).read_text(), parse_constant=pytest.fail)


def n_pairs(path):
    return results_of(path)["overall"]["n"]


def small_file():
    """The results of the one measurement that left pairs out."""
    [file] = [f for f in Path("run/results").iterdir() if results_of(f)["config"]["limit"]]
    return str(file)


# --- a small run on the folder of a finished one


def test_a_small_run_on_a_whole_one_s_folder_replaces_nothing(here):
    n = n_pairs("run/results.json")
    assert verb("run", *WHOLE).exit_code in (0, 1)
    assert n_pairs("results.json") == n_pairs("run/results.json") == n > 2
    before = {file: Path(file).read_bytes() for file in ("results.json", "run/results.json")}
    result = verb("run", *SMALL, "--json=small.json")
    assert result.exit_code == 0
    assert {file: Path(file).read_bytes() for file in before} == before
    file = small_file()
    assert results_of(file) == results_of("small.json")
    assert n_pairs(file) == 2
    why = "this run is of chosen pairs (--limit 2, --categories color)"
    lines, unwrapped = result.stdout.splitlines(), " ".join(result.stdout.split())
    assert {f"kept      {file}", f"results   {file}"} <= {*lines}
    of_whole = unwrapped.partition("run/results.json stays that of ")[2].partition(why)[0]
    assert of_whole.startswith(f"word, {n} pairs in")
    for rest in ("", "; --results FILE writes these results"):
        assert f" results.json stays that of {of_whole}{why}{rest}" in unwrapped

    shown = verb("report", "run")
    assert shown.exit_code == 0
    assert f"shown     run/results.json: word, {n} pairs in" in shown.stderr
    assert f"other     {file}: word, 2 pairs in color, alpha 0.5, 1, seeds 0, limit 2" in (
        shown.stderr
    )
    of_small = verb("report", file)
    assert (of_small.exit_code, of_small.stderr) == (0, "")
    assert {p.name for p in Path("run").glob("*.html")} == {
        "report.html", f"report-{Path(file).stem}.html"
    }  # fmt: skip

    compared = verb("compare", "results.json", "run")
    assert compared.exit_code != 2
    assert f"new         {Path('run/results.json')}" in compared.stdout
    assert f"other     {file}: " in compared.stderr
    made = verb("baseline", "run", "-o", "b.json")
    assert (made.exit_code, n_pairs("b.json")) == (0, n)
    assert f"other     {file}: " in made.stderr
    assert verb("baseline", file, "-o", "few.json").exit_code == 0
    assert n_pairs("few.json") == 2


def test_a_file_that_was_named_is_written_whatever_it_has(here):
    verb("run", *WHOLE)
    result = verb("run", *SMALL, "--results=results.json")
    assert n_pairs("results.json") == 2
    assert "results   results.json" in result.stdout.splitlines()
    assert n_pairs("run/results.json") > 2
    assert "results   results.json" in verb("run", *WHOLE).stdout.splitlines()
    assert n_pairs("results.json") > 2


def test_an_interrupted_extension_leaves_decided_cells_decided(here, monkeypatch):
    verb("run", *WHOLE)
    whole = results_of("run/results.json")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "generate", interrupt)
        more = verb("run", *SAME, "--alphas=0.5,0.8,1")
    assert more.exit_code == 130
    assert "since images of this run are missing" in more.stdout
    for file in ("results.json", "run/results.json"):
        assert results_of(file) == whole
    cells = {cell["verdict"] for cell in whole["cells"]}
    assert "incomplete" not in cells
    assert verb("run", *SAME, "--alphas=0.5,0.8,1").exit_code in (0, 1)
    assert len(results_of("run/results.json")["cells"]) == len(whole["cells"]) * 3 // 2
    assert results_of("results.json") == results_of("run/results.json")


def test_a_session_without_quality_keeps_what_an_earlier_one_measured(pytester, here):
    verb("run", *WHOLE)
    before = results_of("run/results.json")["quality"]
    assert len(before["cells"]) == 4
    result = pytests(pytester, "test_margin", *options(here))
    assert result.ret in (0, 1)
    after = results_of(here / "run" / "results.json")
    assert after["quality"] == before
    assert after == results_of(here / "results.json")


# --- pytest


def options(here):
    return [
        f"--pairs={here / 'pairs.csv'}",
        f"--run-dir={here / 'run'}",
        *SAME[1:4],
        "--alphas=0.5,1",
    ]


def pytests(pytester, case, *given):
    return pytester.runpytest_inprocess(
        str(ROOT / "benchmarks" / f"{case}.py"), f"--rootdir={ROOT}",
        f"--config-file={ROOT / 'pyproject.toml'}", "-p", "no:cacheprovider",
        "-p", "no:hypothesispytest", *given, no_reraise_ctrlc=True,
    )  # fmt: skip


def test_pytest_twice_writes_twice_and_a_small_run_not(here, pytester):
    path = pytester.path / "results.json"
    pytests(pytester, "test_margin", *options(here))
    n = n_pairs(path)
    first = path.stat()
    pytests(pytester, "test_margin", *options(here))
    assert path.stat().st_ino != first.st_ino  # written anew
    small = pytests(pytester, "test_margin", *options(here), "--limit=2")
    assert n_pairs(path) == n_pairs(here / "run" / "results.json") == n
    small.stdout.fnmatch_lines(
        ["kept      *run/results/*.json", "note      results.json stays that of *"]
    )
    pytests(pytester, "test_margin", *options(here), "--limit=2", "--results=results.json")
    assert n_pairs(path) == 4


def test_a_folder_without_a_place_for_results_is_said_before_the_work(here, monkeypatch):
    shutil.rmtree("run/images")
    Path("run/results").write_text("mine")
    monkeypatch.setattr(opening, "_check_own_files", lambda path: None)  # which says so first
    monkeypatch.setattr(Generator, "generate", lambda *_: pytest.fail("generated"))
    result = verb("run", *WHOLE)
    assert result.exit_code == 4
    assert "run folder run: expected a place for its results" in result.stderr
    assert Path("run/results").read_text() == "mine"


# --- notebooks


def test_a_notebook_gets_the_whole_and_is_told_of_the_rest(here):
    assert load_run("run").others == ()
    verb("run", *WHOLE)
    n = len(load_run("run").items)
    verb("run", *SMALL)
    run = load_run("run")
    assert len(run.items) == n
    assert [str(path) for path in run.others] == [small_file()]
    assert "; word, 12 pairs in color, size, alpha 0.5, 1, seeds 0; 1 more in .others>" in repr(run)
    small = load_run(run.others[0])
    assert (small.folder, small.others) == (Path("run"), ())
    assert set(small.items["pair_id"]) == {"color0", "color1"}
    assert len(small.images) == 2 * 3
    assert small.images["path"].map(lambda path: Path(path).is_file()).all()
    small.plot_pair("color0")


def test_results_find_the_pairs_that_they_are_of_though_the_file_was_changed(here):
    verb("run", *WHOLE)
    old = Path("pairs.csv").read_text()
    Path("pairs.csv").write_text(old.replace("color0,", "color9,"))
    verb("run", *WHOLE)
    run = load_run("run")
    assert "color9" in set(run.images["pair_id"])
    [other] = run.others
    assert "color0" in set(load_run(other).images["pair_id"])


# --- another judge


def test_another_judge_scores_what_the_folder_shows_and_not_the_small_run(here, second):
    verb("run", *WHOLE)
    verb("run", *SMALL)
    own = Path("run/results.json").read_bytes()
    result = verb("score", "run", f"--clip-model={second}")
    assert result.exit_code == 0, result.stderr
    assert "36 images scored now" in result.stdout
    assert "of        word, 12 pairs in color, size, alpha 0.5, 1, seeds 0" in result.stdout
    [view] = Path("run").glob("results-*.json")
    assert n_pairs(view) == 12
    assert Path("run/results.json").read_bytes() == own

    whole = view.read_bytes()
    few = verb("score", small_file(), f"--clip-model={second}")
    assert few.exit_code == 0, few.stderr
    assert "0 images scored now" in few.stdout
    assert "of        word, 2 pairs in color, alpha 0.5, 1, seeds 0, limit 2" in few.stdout
    assert view.read_bytes() == whole
    [line] = [line for line in few.stdout.splitlines() if line.startswith("results   ")]
    file = line.removeprefix("results   ")
    assert n_pairs(file) == 2
    assert results_of(file)["provenance"]["judge"].startswith("second@")
    listed = verb("report", "run").stderr
    assert listed.count("judge second@sha256:") == 2
    assert load_run(view).folder == Path("run")


def test_a_newer_run_that_is_no_part_is_what_is_scored(here, second):
    verb("run", *WHOLE)
    verb("run", *SAME, "--alphas=0.5,1", "--method=lerp")
    result = verb("score", "run", f"--clip-model={second}")
    assert "of        lerp, 12 pairs" in result.stdout


def test_imported_images_are_shown_once_they_are_judged(here):
    rows = load_run("run").images.query("alpha in (0, 1)")
    lines = [f"{r.pair_id},{r.alpha},{r.seed},{r.path}" for r in rows.itertuples()]
    Path("m.csv").write_text("\n".join(["pair_id,alpha,seed,file", *lines]) + "\n")
    assert verb("import", "new", "m.csv", "--model-name=other", "--pairs=pairs.csv").exit_code == 0
    refused = verb("report", "new")
    assert refused.exit_code == 2
    assert "where its images were imported, 'python -m analogy score' scores them" in refused.stderr
    assert verb("score", "new", "--clip-model=embedded").exit_code == 0
    assert verb("report", "new").exit_code == 0
    assert Measured.of_file(Path("new/results.json")).scope.method == "imported"


# --- --ceiling, for those who open a folder again


def test_what_a_notebook_computes_has_the_ceiling_that_was_given(here):
    data = results_of(shipped("baselines/embedded-ceiling.json"))
    of_color = next(r for r in data["pairs"].values() if r["category"] == "color")
    from analogy.settings.pairs import load_pairs
    from analogy.store.grid import content, digest

    data["pairs"] = {
        digest(content(pair)): {**of_color, "id": pair.id, "category": pair.category}
        for pair in load_pairs("pairs.csv")
    }
    Path("mine.json").write_text(json.dumps(data))
    verb("run", *WHOLE, "--ceiling=mine.json")
    run = load_run("run")
    assert run.cells["ceiling_mean"].notna().all()
    Path("mine.json").unlink()
    Path("run/results.json").unlink()
    again = load_run("run")
    assert again.cells["ceiling_mean"].tolist() == run.cells["ceiling_mean"].tolist()
    folder = RunFolder(Path("run"), read_only=True)
    assert folder.commands()[0].ceiling is not None
    folder.close()


# --- an evaluation's folder, which holds no results


def test_a_smaller_evaluation_takes_nothing_from_the_folder_of_a_larger_one(tmp_path):
    from analogy.evaluation import EvaluationAgent, Task

    def evaluate(*prompts):
        task = Task(["clip_score"], list(prompts), steps=1, run_dir=str(tmp_path / "run"))
        return EvaluationAgent(task).evaluate("embedded")

    whole = evaluate("a red car", "two blue cups")
    files = {
        path: path.read_bytes()
        for path in (tmp_path / "run").rglob("*")
        if path.suffix in (".png", ".jsonl")
    }
    assert len(files) == 3
    evaluate("a red car")
    assert {path: path.read_bytes() for path in files} == files
    assert evaluate("a red car", "two blue cups").results[0].values == whole.results[0].values
