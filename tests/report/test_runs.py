"""Runs in a notebook: frames that say what the folder holds, and the report's own plots."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from extras import extra
from planted import results as planted
from planted import small, write_results
from reported import draw, margin, picture

import analogy
from analogy.core.errors import StoreError
from analogy.core.images import from_png
from analogy.results.model import RESULTS_NAME
from analogy.results.reading import RecordedError
from analogy.runs import load_run
from analogy.store.folder import RunFolder

plots = extra("analogy.report.plots", of="matplotlib")


@pytest.fixture
def study(make_study):
    """Two categories of six pairs at alpha 0, 0.5 and 1 with two seeds."""
    return make_study()


@pytest.fixture
def run(study):
    """That study, whole, with its results written."""
    write_results(draw(study), study.folder.path / RESULTS_NAME)
    return load_run(study.folder.path)


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, analogy; heavy = {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)"
        "; assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert analogy.load_run is load_run
    assert {"Run", "load_run", "__version__"} <= set(dir(analogy))
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        analogy.load_runs  # noqa: B018


# --- frames


def test_images_are_those_of_the_grid_and_its_random_control_with_their_scores(make_study):
    study = make_study(control=True)
    draw(study)
    run = load_run(study.folder.path)
    jobs = {job.key: job for job in study.jobs()}
    assert len(run.images) == len(jobs) == 12 * (3 + 2) * 2
    for row in run.images.itertuples():
        job = jobs[row.key]
        assert (row.alpha, row.seed, row.pair_id) == (job.alpha, job.seed, job.pair.id)
        assert (row.source_word, row.target_prompt) == (
            job.pair.source_word, job.pair.target_prompt,
        )  # fmt: skip
        assert pd.isna(row.method) if job.alpha == 0 else row.method == job.method
        assert row.margin == row.cos_target == margin(job)
        assert row.cos_source == 0
    first = run.images.iloc[0]
    with open(first["path"], "rb") as file:
        np.testing.assert_array_equal(from_png(file.read()), picture(jobs[first["key"]], 64))


def test_items_are_means_over_seeds_and_gains_are_over_the_control(study, run):
    assert list(run.items) == ["pair_id", "category", "alpha", "margin", "gain", "n_seeds"]
    assert len(run.items) == 12 * 3
    assert list(run.items["pair_id"].unique()) == [pair.id for pair in study.pairs]
    table = study.table()
    for row in run.items.itertuples():
        assert row.margin == table.loc[row.pair_id, row.alpha]
        assert row.gain == row.margin - table.loc[row.pair_id, 0.0]
        assert row.n_seeds == 2


def test_cells_have_every_figure_of_the_results(make_study):
    study = make_study(control=True)
    write_results(draw(study), study.folder.path / RESULTS_NAME)
    run = load_run(study.folder.path)
    assert len(run.items) == 12 * 3
    assert len(run.cells) == len(run.results["cells"]) == 4
    for row, cell in zip(run.cells.to_dict("records"), run.results["cells"], strict=True):
        assert (row["category"], row["alpha"]) == (cell["category"], cell["alpha"])
        assert row["verdict"] == cell["verdict"]
        for name in ("n", "mean", "ci_low", "ci_high", "p", "success_rate", "p_holm"):
            assert row[name] == cell[name]
        assert row["gain_mean"] == cell["gain"]["mean"]
        assert row["random_advantage_ci_low"] == cell["random"]["advantage"]["ci_low"]
        assert math.isnan(row["n_needed"]) == (cell["n_needed"] is None)
    inner = ("gain", "ceiling", "random", "items", "seeds")
    figures = [name for name in run.results["cells"][0] if name not in inner]
    assert set(figures) <= set(run.cells)
    by_hand = run.items[run.items["alpha"] > 0].groupby(["category", "alpha"])["margin"].mean()
    found = run.cells.set_index(["category", "alpha"])["mean"]
    pd.testing.assert_series_equal(found.sort_index(), by_hand.sort_index(), check_names=False)


def test_metrics_are_columns_beside_the_scores(study):
    draw(study)
    jobs = study.jobs("color", 1.0)
    folder, judge = study.folder, study.judge.fingerprint
    folder.add_metric("psnr", {job.key: 20.0 + job.seed for job in jobs})
    folder.add_metric("lpips-alex@sha256:00", {jobs[0].key: 0.25})
    folder.add_metric(f"clip_score/{judge}", {job.key: 30.0 for job in jobs})
    folder.add_metric("clip_score/another@sha256:11", {job.key: 99.0 for job in jobs})
    images = load_run(folder.path).images.set_index("key")
    for key, row in images.iterrows():
        is_measured = key in {job.key for job in jobs}
        assert row["psnr"] == 20.0 + row["seed"] if is_measured else math.isnan(row["psnr"])
        assert row["clip_score"] == 30.0 if is_measured else math.isnan(row["clip_score"])
    assert images["lpips-alex"].dropna().to_dict() == {jobs[0].key: 0.25}


def test_quality_s_means_are_in_the_cells(study):
    results = draw(study)
    results["quality"]["cells"] = [
        {"category": "color", "alpha": 1.0, "ssim": {"mean": 0.5, "n": 6}},
    ]
    write_results(results, study.folder.path / RESULTS_NAME)
    cells = load_run(study.folder.path).cells.set_index(["category", "alpha"])
    assert cells.loc[("color", 1.0), "ssim_mean"] == 0.5
    assert cells["ssim_mean"].notna().sum() == 1
    assert cells["mean"].notna().all()


# --- what is there, and what is not


def test_a_run_that_is_being_written_is_read_as_far_as_it_is(study):
    assert study.folder is not None  # open for writing all the while
    study.record(None)
    empty = load_run(study.folder.path)
    assert (len(empty.images), len(empty.items)) == (0, 0)
    assert set(empty.cells["verdict"]) == {"incomplete"}
    jobs = [j for j in study.jobs() if j.pair.category == "color" and (j.seed, j.alpha) != (1, 1)]
    results = draw(study, jobs)
    run = load_run(study.folder.path)
    assert len(run.images) == len(jobs)
    assert run.items.set_index(["pair_id", "alpha"])["n_seeds"].to_dict() == {
        (pair.id, alpha): 1 if alpha == 1 else 2
        for pair in study.pairs if pair.category == "color" for alpha in (0.0, 0.5, 1.0)
    }  # fmt: skip
    assert run.verdict == "incomplete"
    for name in ("cells", "controls", "overall", "config", "failures", "pairs"):
        assert run.results[name] == json.loads(json.dumps(results[name]))
    assert run.results["provenance"]["judge"] == study.judge.fingerprint


def test_reading_changes_nothing(study, run):
    before = {p: p.stat().st_mtime_ns for p in study.folder.path.rglob("*.png")}
    index = study.folder.image_rows()
    run = load_run(study.folder.path)
    run.plot_pair("color-0")
    run.images["margin"] = 0.0
    assert {p: p.stat().st_mtime_ns for p in study.folder.path.rglob("*.png")} == before
    assert study.folder.image_rows() == index
    assert (load_run(study.folder.path).images["margin"] != 0).any()


def test_a_results_file_alone_has_the_same_items_and_no_images(study, run, tmp_path):
    file = tmp_path / "moved.json"
    shutil.copy(study.folder.path / RESULTS_NAME, file)
    alone = load_run(file)
    assert alone.folder is None
    assert len(alone.images) == 0
    assert set(alone.images) == set(run.images)
    pd.testing.assert_frame_equal(alone.items, run.items)
    pd.testing.assert_frame_equal(alone.cells, run.cells)
    with pytest.raises(ValueError, match=r"moved\.json, which has none; load its run folder"):
        alone.plot_pair("color-0")
    empty = pd.concat([alone.images, run.images])
    assert (empty.dtypes[["alpha", "seed", "margin"]] == ["float64", "int64", "float64"]).all()


def test_another_judge_s_results_bring_its_scores(study, run):
    other = study.judge.fingerprint + "-other"
    jobs = study.jobs()
    study.folder.add_scores(jobs, other, [(0.0, 0.5, -0.5)] * len(jobs), 1.0)
    command = study.folder.commands()[0]
    study.folder.record_command(replace(command, judge=other))
    results = copy.deepcopy(dict(run.results))
    results["provenance"]["judge"] = other
    write_results(results, study.folder.path / "results-other.json")
    assert set(load_run(study.folder.path / "results-other.json").images["margin"]) == {-0.5}
    assert run.images["margin"].min() > -0.5


def test_a_failed_image_is_not_among_the_images(study):
    bad = study.jobs("object", 1.0)[0]
    write_results(draw(study, faults=[bad]), study.folder.path / RESULTS_NAME)
    run = load_run(study.folder.path)
    assert bad.key not in set(run.images["key"])
    assert run.results["failures"][0]["pair_id"] == bad.pair.id
    ax = run.plot_pair(bad.pair.id)
    assert "no image" in {text.get_text() for text in ax.texts}


def test_a_baseline_s_older_results_are_read(tmp_path):
    write_results(planted(small()), tmp_path / "old.json")
    run = load_run(tmp_path / "old.json")
    assert len(run.items) == 48
    assert run.items["gain"].isna().all()
    assert run.config["method"] == "word"


def test_results_of_before_an_option_was_there_find_their_command(study, run):
    results = copy.deepcopy(dict(run.results))
    del results["config"]["memory"]
    write_results(results, study.folder.path / RESULTS_NAME)
    assert len(load_run(study.folder.path).images) == len(run.images)
    results["config"]["of_a_later_suite"] = 1
    write_results(results, study.folder.path / RESULTS_NAME)
    with pytest.raises(StoreError, match="expected the command that its results are of"):
        load_run(study.folder.path)


def test_what_cannot_be_read_says_why(study, tmp_path):
    with pytest.raises(RecordedError, match="got nothing there; check the path"):
        load_run(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordedError, match=r"got a folder without results\.json"):
        load_run(str(tmp_path / "empty"))
    (tmp_path / "bad.json").write_text('{"schema_version": 9}')
    with pytest.raises(RecordedError, match=r"bad\.json: expected schema version 2, got 9"):
        load_run(tmp_path / "bad.json")
    with pytest.raises(StoreError, match="expected the configuration of a command, got none"):
        load_run(study.folder.path)
    write_results(planted(small()), study.folder.path / RESULTS_NAME)
    with pytest.raises(StoreError, match="expected the command that its results are of"):
        load_run(study.folder.path)


ODD = [None, 3, "x", [], [3], [{"category": []}], 10**400, {"n": [1]}]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("name", ["controls", "quality", "gain", "n_needed", "p"])
def test_figures_that_nobody_checked_are_left_out(tmp_path, name, value):
    data = planted(small())
    (data["cells"][0] if name in ("gain", "n_needed", "p") else data)[name] = value
    try:
        write_results(data, tmp_path / "odd.json")
    except ValueError:  # more digits than Python prints
        pytest.skip("no file can hold it")
    run = load_run(tmp_path / "odd.json")
    assert run.cells["mean"].notna().all()
    kinds = run.cells.drop(columns=["category", "verdict"]).dtypes
    assert {str(kind) for kind in kinds} <= {"int64", "float64"}
    assert len(run.items) == 48


# --- plots


def test_plots_are_the_report_s_with_and_without_axes(run, monkeypatch):
    seen = []
    for name in ("heat_map", "forest", "dose_response", "distribution", "strip"):
        plot = getattr(plots, name)

        def noted(ax, *args, name=name, plot=plot, **kwargs):
            seen.append(name)
            return plot(ax, *args, **kwargs)

        monkeypatch.setattr(plots, name, noted)
    for plot in (
        run.plot_heat_map, run.plot_forest, lambda ax=None: run.plot_forest(ax, figure="gain"),
        lambda ax=None: run.plot_dose_response("color", ax),
        lambda ax=None: run.plot_distribution("color", ax),
        lambda ax=None: run.plot_pair("object-2", ax),
    ):  # fmt: skip
        given = extra("matplotlib.figure").Figure().add_subplot()
        assert plot(given) is given
        own = plot()
        own.figure.canvas.draw()
        assert len(own.figure.axes) == 1
        assert own.figure is not given.figure
    assert sorted(set(seen)) == ["distribution", "dose_response", "forest", "heat_map", "strip"]
    assert len(seen) == 12


def test_the_heat_map_says_every_mean(run):
    said = [text.get_text() for text in run.plot_heat_map().texts]
    assert len(said) == 3 * 4
    for cell in run.results["cells"]:
        figure = f"{cell['mean']:+.2f}".replace("-", "−")  # noqa: RUF001
        assert any(text.endswith(figure) for text in said)


def test_a_forest_draws_the_gain_when_asked(run):
    for figure in ("margin", "gain"):
        ax = run.plot_forest(figure=figure)
        drawn = {
            round(float(line.get_xdata()[0]), 9) for line in ax.lines if line.get_marker() == "o"
        }
        rows = [cell if figure == "margin" else cell["gain"] for cell in run.results["cells"]]
        assert {round(row["mean"], 9) for row in rows if row["verdict"] == "success"} <= drawn
        assert ax.get_xlabel() == figure


def test_a_pair_is_drawn_with_its_own_images_and_margins(study, run):
    ax = run.plot_pair("color-3")
    mine = [
        j for j in study.jobs() if j.pair.id == "color-3" and (j.method == "word" or not j.alpha)
    ]
    assert len(ax.images) == 3 * 2
    corners = {tuple(image.get_array()[0, 0]) for image in ax.images}
    assert corners == {tuple(picture(job, 8)[0, 0]) for job in mine}
    said = {text.get_text().replace("−", "-") for text in ax.texts}  # noqa: RUF001
    assert said == {f"{margin(job):+.3f}" for job in mine}
    assert mine[0].pair.source_prompt in ax.get_title()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["seed 0", "seed 1"]


def test_a_changed_image_is_not_shown(run):
    path = run.images.query("pair_id == 'color-1' and alpha == 0")["path"].iloc[0]
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(StoreError, match="SHA-256 differs"):
        run.plot_pair("color-1")


def test_a_name_that_is_none_gets_the_near_one(run):
    with pytest.raises(ValueError, match=r"got 'colour'; did you mean 'color'\?"):
        run.plot_dose_response("colour")
    with pytest.raises(ValueError, match="expected one of color, object, got 'x'"):
        run.plot_distribution("x")
    with pytest.raises(ValueError, match=r"did you mean 'color-1'\?"):
        run.plot_pair("color1")
    with pytest.raises(ValueError, match="expected one of margin, gain"):
        run.plot_forest(figure="cos")
    with pytest.raises(ValueError, match="'ssim', which was not measured"):
        run.plot_trade_off()


def test_a_trade_off_is_drawn_where_it_was_measured(study):
    results = draw(study)
    results["quality"]["cells"] = [
        {"category": c, "alpha": a, "ssim": {"mean": 1 - a / 2}}
        for c in ("color", "object") for a in (0.5, 1.0)
    ]  # fmt: skip
    write_results(results, study.folder.path / RESULTS_NAME)
    ax = load_run(study.folder.path).plot_trade_off()
    assert len(ax.lines) == 2 + 1
    assert list(ax.lines[0].get_xdata()) == [0.75, 0.5]


def test_a_run_folder_may_be_named_by_text_and_says_what_it_is(run):
    assert str(run.path) in repr(run)
    assert "72 images, 36 items, 4 cells" in repr(run)
    again = load_run(str(run.path))
    assert again.verdict == run.verdict
    RunFolder(run.path, read_only=True).close()
