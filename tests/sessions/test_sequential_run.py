"""Sequential runs from end to end: whatever happens on the way, the same looks and results.

An engine gives planted margins; nothing is drawn.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import looks
import pytest
from cases import run_cases
from looks import Killed, figures_of, pairs_of, plant, run, write_pairs
from verbs import verb

import analogy
from analogy.core.errors import OptionError
from analogy.core.strict_json import encoded
from analogy.results.reading import read
from analogy.sessions.session import Session
from analogy.statistics.bootstrap import bootstrap_ci

pytest_plugins = ["pytester"]

DUE = {
    ("color", 0.0): 16, ("color", 0.5): 60, ("color", 1.0): 16,
    ("object", 0.0): 16, ("object", 0.5): 60, ("object", 1.0): 16,
}  # fmt: skip
"""Images of the looks, by hand: color 0.5 and object 0.5 are undecided at all three looks, at 16
and 20 pairs with one seed and at 20 with three; the others, and all gains, stop at the first.
"""
N_DUE = 184

OPTIONS = (
    "--pairs=pairs.csv", "--alphas=0.5,1", "--seeds=0,1,2", "--steps=2", "--sequential",
    f"--engine={looks.ENGINE}", "--metrics=ssim", "--run-dir=run",
)  # fmt: skip


def by_cell(jobs):
    return dict(Counter((job.pair.category, job.alpha) for job in jobs))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without any trouble: its folder, its figures, and the images that it made."""
    path = tmp_path_factory.mktemp("whole")
    planted = plant(looks.margin)
    results, ending = run(path)
    assert ending.fault is None
    assert ending.lost is None
    return path, figures_of(results), planted.made


def same(figures, whole):
    """Whether everything in results.json is the same, but for times."""
    one, two = json.loads(encoded(figures)), json.loads(encoded(whole[1]))
    for each in (one, two):
        each["sequential"].pop("seconds")
        each.pop("cost", None)
    assert one == two
    return True


def test_the_images_are_those_of_the_looks_and_no_others(whole):
    assert by_cell(whole[2]) == DUE
    assert len({job.key for job in whole[2]}) == len(whole[2]) == N_DUE
    assert whole[1]["sequential"]["images"] == N_DUE
    assert whole[1]["sequential"]["of"] == 360
    verdicts = {(c["category"], c["alpha"]): c["verdict"] for c in whole[1]["cells"]}
    assert verdicts == {
        ("color", 0.5): "inconclusive", ("color", 1.0): "success",
        ("object", 0.5): "inconclusive", ("object", 1.0): "failure",
    }  # fmt: skip


# --- the same looks, verdicts and results, whatever happens on the way


def test_a_run_that_is_killed_five_times_ends_as_one_that_was_not(whole, tmp_path):
    kills, made = 0, []
    while True:
        planted = plant(looks.margin, dies_after=35)
        try:
            results, _ = run(tmp_path)
        except Killed:
            kills += 1
            made += planted.made
            continue
        made += planted.made
        break
    assert kills == 5
    assert {job.key for job in made} == {job.key for job in whole[2]}
    assert same(figures_of(results), whole)


@pytest.mark.parametrize("size", [1, 38])
def test_the_batch_size_changes_nothing(whole, tmp_path, size):
    planted = plant(looks.margin, batch_size=size)
    results, _ = run(tmp_path)
    assert {job.key for job in planted.made} == {job.key for job in whole[2]}
    assert same(figures_of(results), whole)


def test_the_order_of_the_rows_changes_nothing(whole, tmp_path):
    color, object_ = pairs_of("color"), pairs_of("object")
    for pairs in (color, object_):
        random.Random(5).shuffle(pairs)
    rows = [pair for two in zip(color, object_, strict=True) for pair in two]
    write_pairs(tmp_path / "pairs.csv", rows)
    planted = plant(looks.margin)
    results, _ = run(tmp_path)
    assert {job.key for job in planted.made} == {job.key for job in whole[2]}
    assert same(figures_of(results), whole)


@pytest.mark.parametrize("dies_after", [None, 130])
def test_images_of_an_earlier_full_run_are_used_and_change_nothing(whole, tmp_path, dies_after):
    """Of a finished one, no image is made; of a broken one, the missing images of the looks."""
    planted = plant(looks.margin, dies_after=dies_after)
    try:
        run(tmp_path, sequential=None)
    except Killed:
        assert dies_after
    known = {job.key for job in planted.made}
    assert len(known) == 360 or dies_after
    planted = plant(looks.margin)
    results, _ = run(tmp_path)
    assert {job.key for job in planted.made} == {job.key for job in whole[2]} - known
    assert same(figures_of(results), whole)


def test_a_finished_run_repeated_makes_nothing_and_says_the_same(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copy")
    planted = plant(looks.margin, dies_after=0)
    results, _ = run(tmp_path / "copy")
    assert planted.made == []
    assert same(figures_of(results), whole)


# --- cases by themselves


@pytest.mark.parametrize("name", ["color-0.5", "object-1"])
def test_a_case_alone_has_the_figures_that_it_has_in_the_whole(whole, pytester, name):
    shutil.copy(whole[0] / "pairs.csv", "pairs.csv")
    planted = plant(looks.margin)
    category, _, alpha = name.partition("-")
    ran = run_cases(pytester, *OPTIONS, "-k", f"test_margin and {name}]")
    text = "\n".join(ran.outlines)
    assert ran.ret in (0, 1), text
    cells = json.loads(Path("results.json").read_text())["cells"]
    for cell, expected in zip(cells, whole[1]["cells"], strict=True):
        assert (cell["category"], cell["alpha"]) == (expected["category"], expected["alpha"])
        if (category, float(alpha)) != (cell["category"], cell["alpha"]):
            assert cell["verdict"] == "incomplete"
            continue
        of_all = ("p_holm", "p_bh")
        assert cell | dict.fromkeys(of_all) == expected | dict.fromkeys(of_all)
    n = DUE[category, float(alpha)]
    assert by_cell(planted.made) == {(category, 0.0): 16, (category, float(alpha)): n}


# --- failures


def test_a_failed_image_leaves_its_cell_incomplete_and_no_pair_takes_its_place(whole, tmp_path):
    bad = next(job for job in whole[2] if (job.pair.category, job.alpha) == ("color", 1.0))
    planted = plant(looks.margin, fails=lambda job: job.key == bad.key)
    results, ending = run(tmp_path)
    assert ending.fault is None
    assert by_cell(planted.made) == DUE  # the failed one among them, once
    cell = results.analysis.cells["color", 1.0]
    assert (cell.margin.verdict, cell.margin.n, cell.margin.n_items) == ("incomplete", 16, 15)
    assert cell.stop is None
    for name, alpha in (("color", 0.5), ("object", 0.5), ("object", 1.0)):
        [expected] = [c for c in whole[1]["cells"] if (c["category"], c["alpha"]) == (name, alpha)]
        found = results.analysis.cells[name, alpha]
        assert found.stop.to_dict() == expected["stop"]
        assert found.margin.verdict == expected["verdict"]
    assert [failure.pair_id for failure in results.failures] == [bad.pair.id]
    assert results.analysis.overall.margin.verdict == "incomplete"
    # Another process tries again, and then nothing is different.
    planted = plant(looks.margin)
    results, _ = run(tmp_path)
    assert [job.key for job in planted.made] == [bad.key]
    assert same(figures_of(results), whole)


def test_a_failed_unsteered_image_costs_the_gains_and_no_verdict(whole, tmp_path):
    bad = next(job for job in whole[2] if (job.pair.category, job.alpha) == ("object", 0.0))
    planted = plant(looks.margin, fails=lambda job: job.key == bad.key)
    results, _ = run(tmp_path)
    assert by_cell(planted.made) == DUE
    found = results.analysis.cells
    assert [of.gain.verdict for of in found.values()] == [
        "success", "success", "incomplete", "incomplete",
    ]  # fmt: skip
    assert [of.margin.verdict for of in found.values()] == [c["verdict"] for c in whole[1]["cells"]]


# --- what users read


@pytest.fixture
def finished(whole, tmp_path, monkeypatch):
    """A copy of the finished run, in the current folder; no image can be made."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    plant(looks.margin, dies_after=0)
    return tmp_path


def test_no_output_of_a_sequential_run_has_the_naive_interval(finished):
    """Neither by its name nor by its figures."""
    ran = verb("run", *OPTIONS, "--wide")
    assert ran.exit_code == 1, ran.output
    words = ran.output.replace("together the looks' intervals hold with 95%", "")
    assert "95%" not in words
    for cell in read(Path("run")).analysis.cells.values():
        low, high = bootstrap_ci([*cell.items.values()])
        assert f"[{low:+.4f}, {high:+.4f}]" not in ran.output, cell.cell
        low, high = cell.margin.ci_low, cell.margin.ci_high
        assert f"[{low:+.4f}, {high:+.4f}]" in ran.output, cell.cell


def test_the_output_says_when_each_cell_was_decided_and_what_that_saved(finished):
    lines = [" ".join(line.split()) for line in verb("run", *OPTIONS).output.splitlines()]
    table = lines[lines.index(
        "decided alpha look pairs seeds images interval p_seq verdict"
    ) :]  # fmt: skip
    assert [line.split()[:7] for line in table[1:5]] == [
        ["color", "0.5", "3", "of", "3", "20", "3"], ["color", "1", "1", "of", "3", "16", "1"],
        ["object", "0.5", "3", "of", "3", "20", "3"], ["object", "1", "1", "of", "3", "16", "1"],
    ]  # fmt: skip
    assert "success *" in table[2]
    assert any(line.startswith("*: stopped early: the mean is biased upward") for line in table)
    assert any(line.startswith("184 of 360 images were needed: 176 saved (48.9%") for line in table)


def test_nothing_is_missing_in_a_finished_run(finished):
    found = verb("verify", "run")
    assert found.exit_code == 0, found.output
    assert f"the grid's {N_DUE} are complete" in found.output
    assert "missing" not in found.output


def test_nothing_is_missing_where_the_judge_reads_some_prompts_as_one(tmp_path, monkeypatch):
    ids = [pair.id for pair in pairs_of("color", n=3)]
    monkeypatch.setattr("analogy.studies.finding.unread_pairs", lambda judge, pairs: ids)
    plant(looks.margin)
    run(tmp_path)
    assert verb("verify", tmp_path / "run").exit_code == 0


def test_what_a_look_lacks_is_missing(tmp_path):
    plant(looks.margin, dies_after=70)
    with pytest.raises(Killed):
        run(tmp_path)
    found = verb("verify", tmp_path / "run")
    assert found.exit_code != 0
    # The first looks need 6 x 16 images; 64 were made.
    lacking = [line for line in found.output.splitlines() if line.startswith("missing")]
    assert sum(int(line.split()[-2]) for line in lacking) == 96 - 64


def test_a_loaded_run_has_the_images_of_the_looks_alone(whole, tmp_path):
    plant(looks.margin)
    run(tmp_path, sequential=None)
    run(tmp_path)
    loaded = analogy.load_run(tmp_path / "run" / "results.json")
    if not loaded.figures.saved:  # the full grid is more, so that the folder goes on showing it
        [other] = analogy.load_run(tmp_path / "run").others
        loaded = analogy.load_run(other)
    counts = loaded.images.groupby(["category", "alpha"]).size()
    assert dict(counts) == DUE
    assert {*loaded.images["key"]} == {job.key for job in whole[2]}
    assert len(loaded.items) == 4 * 16 + 2 * 20
    means = loaded.items.groupby(["category", "alpha"])["margin"].mean()
    for cell in loaded.figures.analysis.cells.values():
        assert means[cell.cell] == pytest.approx(cell.margin.mean)


def test_a_folder_without_results_is_loaded_by_its_looks(finished, whole):
    for file in Path("run").glob("results*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    loaded = analogy.load_run("run")
    assert dict(loaded.images.groupby(["category", "alpha"]).size()) == DUE
    assert same({**figures_of(loaded.figures), "quality": whole[1]["quality"]}, whole)


def test_a_results_file_elsewhere_is_loaded_with_the_seeds_of_its_looks(whole):
    loaded = analogy.load_run(whole[0] / "results.json")
    counts = loaded.items.groupby(["category", "alpha"])["n_seeds"].agg(["size", "max"])
    assert {cell: tuple(row) for cell, row in counts.iterrows()} == {
        cell: {16: (16, 1), 60: (20, 3)}[n] for cell, n in DUE.items()
    }
    assert [*loaded.cells["stop_pairs"]] == [20, 16, 20, 16]


# --- options


@pytest.mark.parametrize(
    ("flag", "value"),
    [("order_seed", "3"), ("full_unsteered", True), ("futility", True), ("reserve", True)],
)
def test_options_of_sequential_runs_need_one(tmp_path, flag, value):
    name = f"--{flag.replace('_', '-')}"
    with pytest.raises(OptionError, match="add --sequential, or leave it out") as error:
        looks.request(tmp_path, sequential=None, **{flag: value})
    assert str(error.value).startswith(f"{name}: expected --sequential")
    looks.request(tmp_path, **{flag: value})


def test_a_limit_of_a_sequential_run_takes_the_first_of_its_order(tmp_path):
    planted = plant(looks.margin)
    run(tmp_path, limit="8", order_seed="3")
    session = Session.open(looks.request(tmp_path, order_seed="3", run_dir=str(tmp_path / "b")))
    session.study.close()
    first = [pair.id for of in session.study.plan.pairs.values() for pair in of[:8]]
    assert {job.pair.id for job in planted.made} == {*first}
