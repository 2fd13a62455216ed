"""The report: every figure in its place, nothing fetched, nothing of a user's run."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex

import numpy as np
import pytest
from extras import extra
from planted import results as planted_results
from planted import small, write_results
from rendered import images, plots, render, table
from reported import draw, margin, read_page
from typer.testing import CliRunner

from analogy import cli
from analogy.core.records import Pair
from analogy.report.numbers import SYMBOLS
from analogy.results import comparison as comparison_module
from analogy.results.model import Settings
from analogy.results.reading import RecordedError, from_json
from analogy.settings.options import OPTIONS, parse_options

provenance = extra("analogy.report.provenance", of="matplotlib")

MARKUP = "<script>alert(1)</script>"


# --- the answer


@pytest.mark.parametrize(
    ("shift", "verdict", "answer"),
    [(0.3, "success", "Yes at"), (-0.6, "failure", "No at"), (-0.12, "inconclusive", "Not shown")],
)
def test_the_answer_comes_first_with_its_figures(study, shift, verdict, answer):
    wide = lambda job: shift + 4 * margin(job) * (-1) ** (sum(job.pair.id.encode()) // 7)  # noqa: E731
    results = draw(study, margin=wide if verdict == "inconclusive" else lambda j: shift + margin(j))
    assert results["overall"]["verdict"] == verdict
    page = read_page(render(results))
    first = next(page.all("section"))
    said = next(first.all("strong")).text
    assert said == results["answer"]["text"]
    assert said.startswith(answer)
    assert f"pool, all categories and strengths together: {verdict}" in first.text
    overall = results["overall"]
    said = first.text.replace("−", "-")  # noqa: RUF001
    for figure in ("mean", "ci_low", "ci_high"):
        assert f"{overall[figure]:+.3f}" in said
    assert "12 pairs (color and object)" in said
    assert "24 items" in said
    assert f"{results['overall']['gain']['mean']:+.3f}" in said


def test_an_answer_in_part_has_a_mark_of_its_own(study):
    def mixed(job):
        return margin(job) + (0.4 if job.pair.category == "color" else -0.4)

    for of, answer, mark in (
        (margin, "Yes at 0.5 and 1", "✓"),
        (mixed, "In part at 0.5 and 1", "◐"),
    ):
        page = read_page(render(draw(study, margin=of)))
        first = next(page.all("section"))
        assert next(first.all("strong")).text.startswith(answer)
        assert next(first.all("b")).text == mark


def test_cells_that_disagree_are_said_with_the_answer(study):
    mixed = draw(study, margin=lambda job: 0.4 - margin(job) if job.pair.category == "color"
                 else margin(job) + 0.3)  # fmt: skip
    verdicts = [cell["verdict"] for cell in mixed["cells"]]
    assert verdicts == ["success", "success", "success", "success"]
    assert "Yes at 0.5 and 1: 2 of 2 categories" in render(mixed)
    mixed["cells"][0]["verdict"] = mixed["cells"][1]["verdict"] = "failure"
    assert "In part at 0.5 and 1: 1 of 2 categories" in render(mixed)
    assert "At 1: failure in color." in render(mixed)


def test_missing_images_leave_the_whole_open(study):
    jobs = [job for job in study.jobs() if (job.pair.category, job.alpha) != ("object", 1.0)]
    page = read_page(render(draw(study, jobs), folder=study.folder.path))
    answer = page.id("answer").text
    assert "at 1: 1 of 2; not finished: images are missing in 1 of 4 cells" in answer
    assert "images are missing there" in page.id("answer").text
    missing = [node.text for node in page.id("strips").all("span", "missing")]
    assert missing == ["not generated"] * 12
    cells = table(page, "cells")
    assert [row["verdict"].text for row in cells if row["category"].text == "object"] == [
        "unsteered", *[str(study.cell("object", 0.5).margin.verdict), "incomplete"],
    ]  # fmt: skip


def test_the_embedded_models_say_nothing_about_others(study):
    results = draw(study)
    assert "Anything about SSD-1B" in render(results)
    results["config"]["model"] = "segmind/SSD-1B"
    assert "Anything about SSD-1B" not in render(results)
    assert "Much about photographs" in render(results)
    results["config"]["clip_model"] = "ViT-B-32"
    assert "Much about photographs" not in render(results)


def test_a_limited_run_says_so(study):
    results = draw(study)
    assert "only the first" not in render(results)
    results["config"]["limit"] = 3
    assert "only the first 3 of each category" in render(results)


# --- the figures


def test_every_cell_has_its_margin_verdict_and_mark(study):
    results = draw(study)
    page = read_page(render(results))
    rows = next(page.all("table", "heat")).rows()
    assert [row[0].text for row in rows] == ["color", "object", "all"]
    for row in rows[:2]:
        for cell, alpha in zip(row[2:4], (0.5, 1.0), strict=True):
            [found] = [c for c in results["cells"]
                       if (c["category"], c["alpha"]) == (row[0].text, alpha)]  # fmt: skip
            mark = SYMBOLS[found["verdict"]]
            figure = f"{found['mean']:+.2f}".replace("-", "−")  # noqa: RUF001
            ends = f"[{found['ci_low']:+.3f}, {found['ci_high']:+.3f}]"
            said = f"{mark} {figure} {found['verdict']} {ends}".replace("-", "−")  # noqa: RUF001
            assert cell.text == said
            [link] = cell.all("a")
            assert link["href"] == f"#gallery?category={row[0].text}&alpha={alpha}"
            assert ("pos" in cell.classes) == (found["mean"] > 0)


def test_a_success_that_falls_to_holm_is_marked(study):
    results = draw(study, margin=lambda job: 0.3 + margin(job))
    assert "(✓) +" not in next(read_page(render(results)).all("table", "heat")).text
    results["cells"][1]["p_holm"] = 0.2
    page = read_page(render(results))
    marked = [cell.text for row in next(page.all("table", "heat")).rows() for cell in row
              if cell.text.startswith("(✓)")]  # fmt: skip
    assert len(marked) == 1
    assert "After Holm's correction for testing 4, success in 3." in page.id("answer").text


def test_the_tables_hold_the_figures_to_the_last_digit(study):
    results = draw(study)
    rows = table(read_page(render(results)), "cells")
    assert [(row["category"].text, row["alpha"].text) for row in rows] == [
        (category, alpha) for category in ("color", "object") for alpha in ("0", "0.5", "1")
    ]
    by_cell = {(row["category"].text, float(row["alpha"].text)): row for row in rows}
    for cell in results["cells"]:
        row = by_cell[cell["category"], cell["alpha"]]
        for column, value in (
            ("margin", cell["mean"]), ("low", cell["ci_low"]), ("high", cell["ci_high"]),
            ("p", cell["p"]), ("above 0", cell["success_rate"]), ("Holm's p", cell["p_holm"]),
            ("gain", cell["gain"]["mean"]), ("gain high", cell["gain"]["ci_high"]),
        ):  # fmt: skip
            shown = row[column].attrs.get("data-value", row[column].text)
            assert float(shown) == value, column
        assert row["verdict"].text == cell["verdict"]


def test_every_plot_is_described(make_study):
    page = read_page(render(draw(make_study())))
    plots_ = list(page.all("figure", "plot"))
    assert len(plots_) == 2 * 2
    for plot in plots_:
        [frame] = plot.all("div")
        assert frame["role"] == "img"
        assert len(frame["aria-label"]) > 40
        assert len(list(frame.all("path"))) > 5


def test_preservation_is_shown_where_it_was_measured(study):
    results = draw(study)
    assert 'id="kept"' not in render(results)
    results["quality"]["cells"] = [
        {"category": c, "alpha": a, "ssim": {"mean": 1 - a / 2}, "lpips": {"mean": None}}
        for c in ("color", "object") for a in (0.5, 1.0)
    ]  # fmt: skip
    page = read_page(render(results))
    [plot] = page.id("kept").all("figure")
    label = next(plot.all("div"))["aria-label"]
    gain = results["cells"][1]["gain"]["mean"]
    assert f"color: alpha 0.5 gain {results['cells'][0]['gain']['mean']:+.3f} ssim 0.75" in label
    assert f"alpha 1 gain {gain:+.3f} ssim 0.50" in label
    assert [row["SSIM to alpha 0"].text for row in table(page, "quality")] == [
        "0.75", "0.5", "0.75", "0.5",
    ]  # fmt: skip


def test_a_comparison_names_what_regressed(study):
    results = draw(study)
    old = from_json(results)
    worse = draw(study, margin=lambda job: margin(job) - 0.1 * (job.pair.category == "color"))
    comparison = comparison_module.compare(old, from_json(worse))
    assert 'id="comparison"' not in render(worse)
    page = read_page(render(worse, comparison=comparison))
    said = page.id("comparison").text
    assert comparison.conclusion[1:] in said
    assert "color at alpha 1: regressed: margin" in said
    assert "object at alpha 1: regressed" not in said
    outcomes = {row["cell"].text: row["outcome"].text for row in table(page, "baseline")}
    assert outcomes["color at alpha 0.5"] == "regressed"
    assert outcomes["object at alpha 0.5"] == "equivalent"


# --- what a page may hold


def test_text_of_users_is_shown_as_text(make_study):
    category = f"<b>$x$ {MARKUP}</b>"
    pairs = [
        Pair(f"{MARKUP}\"'{i}", category, "</noscript><i>", "b", f"{MARKUP} {i}", f"</script> {i}")
        for i in range(6)
    ]
    study = make_study(pairs=pairs)
    results = draw(study)
    results["config"]["pairs"] = f"/a/{MARKUP} b.csv"
    results["provenance"]["judge"] = study.judge.fingerprint
    text = render(results, folder=study.folder.path)
    page = read_page(text)
    assert len(list(page.all("script"))) == 1
    assert not list(page.all("b", "x")) + list(page.id("strips").all("i"))
    assert text.count("<script>") == 1
    assert text.count("</script>") == 1
    strip = next(page.id("strips").all("article"))
    assert f"{MARKUP} 0 → </script> 0" in strip.text
    assert strip["data-category"] == category
    assert [row[0].text for row in page.id("forest").rows()] == [category] * 2
    assert MARKUP in page.id("provenance").text


def test_the_page_fetches_nothing_and_runs_no_script_but_its_own(make_study):
    study = make_study()
    page = read_page(render(draw(study), folder=study.folder.path))
    for node in page.all():
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            target = node.attrs.get(name, "")
            assert re.match(r"$|#|data:image/", target), (node.tag, target[:60])
        assert not [name for name in node.attrs if name.startswith("on")]
    assert not list(page.all("link")) + list(page.all("iframe"))
    for style in page.all("style"):
        assert not re.search(r"@import|url\((?!#)", "".join(map(str, style.children)))
    [script] = page.all("script")
    digest = base64.b64encode(hashlib.sha256("".join(script.children).encode()).digest()).decode()
    [policy] = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta.attrs]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_same_run_gives_the_same_page(make_study):
    study = make_study()
    results = draw(study)
    first = render(results, folder=study.folder.path)
    with plots.mpl.rc_context({"font.size": 20, "svg.hashsalt": "other"}):
        assert render(results, folder=study.folder.path) == first


def test_parts_that_are_none_are_left_out(study):
    results = draw(study)
    for part in (
        "controls",
        "targets",
        "categories",
        "alphas",
        "quality",
        "failures",
        "peak_memory_bytes",
    ):
        for value in (None, "x", [1], {"cells": 3}, [{"alpha": "x", "category": 1}]):
            page = render({**results, part: value}, folder=study.folder.path)
            assert "Yes at " in page, (part, value)


def test_results_that_are_none_are_refused(study):
    results = draw(study)
    del results["cells"][0]["items"]
    with pytest.raises(RecordedError, match=r"cells\[0\].items: expected a value"):
        render(results)


def test_results_of_another_suite_without_a_whole_configuration_have_no_images(study):
    draw(study)
    page = read_page(render(planted_results(small(8)), folder=study.folder.path))
    assert "No images" in page.id("gallery").text
    assert len(list(page.id("strips").all("article"))) == 16


# --- provenance


def test_the_command_repeats_the_run(study):
    results = draw(study)
    config = {**results["config"], "model": "a+model+my lora.safetensors", "control": True,
              "target": True, "categories": ["color", "object"], "limit": 4,
              "lora": "my lora.safetensors"}  # fmt: skip
    first, second, *given = shlex.split(provenance.command(Settings(config)))
    assert (first, second) == ("pytest", "benchmarks")
    raw = dict(argument.partition("=")[::2] for argument in given)
    request = parse_options(
        lambda name: (
            next(
                (raw[o.flag] if o.parse else True)
                for o in OPTIONS
                if o.name == name and o.flag in raw
            )
            if any(o.name == name and o.flag in raw for o in OPTIONS)
            else None
        )
    )
    assert (request.model, request.lora) == ("a+model", "my lora.safetensors")
    for name, value in config.items():
        if name not in ("model", "scheduler"):
            found = getattr(request, name)
            assert (list(found) if isinstance(found, tuple) else found) == value, name


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model": "/data/a+b", "lora": None}, ["--model=/data/a+b"]),
        ({"model": "/a+b+c+d", "lora": "c+d"}, ["--model=/a+b", "--lora=c+d"]),
        ({"model": "a+b"}, ["--model=a", "--lora=b"]),  # of an earlier suite
        ({"model": "$(touch x)", "lora": None}, ["--model=$(touch x)"]),
    ],
)
def test_the_command_names_model_and_lora_apart(config, words):
    assert sorted(shlex.split(provenance.command(Settings(config)))[2:]) == sorted(words)


def test_provenance_is_said(study, page):
    said = page.id("provenance").text
    for text in (study.grid.model, study.judge.fingerprint, "numpy ", "pytest benchmarks"):
        assert text in said


# --- plots


def test_a_plot_is_text_and_colours_of_the_page():
    rows = [
        plots.IntervalRow("a & b", 0.1, 0.05, 0.15, "success"),
        plots.IntervalRow("c", None, None, None, "too"),
    ]
    text = plots.svg(200, 100, lambda ax: plots.forest(ax, rows))
    assert text.startswith("<svg ")
    assert ">a &amp; b</text>" in text
    assert "var(--blue)" in text
    assert not re.search(r"#[0-9a-f]{6}", text)
    assert "width=" not in text[: text.index(">")]


def test_the_forest_has_each_interval_where_it_is():
    rows = [
        plots.IntervalRow("a", 0.1, 0.05, 0.15, "success"),
        plots.IntervalRow("b", -0.1, -0.2, 0.0, "failure"),
    ]
    ax = plots.Figure().add_subplot()
    plots.forest(ax, rows)
    intervals = [line.get_xydata().tolist() for line in ax.lines if len(line.get_xdata()) == 2]
    assert [[0.05, 0.0], [0.15, 0.0]] in intervals
    assert [[-0.2, 1.0], [0.0, 1.0]] in intervals
    assert ax.get_ylim() == (1.5, -0.5)  # the first row on top


def test_the_distribution_counts_every_item():
    margins = np.array([[0.1, 0.2], [0.1, np.nan], [-0.3, 0.4]])
    ax = plots.Figure().add_subplot()
    plots.distribution(ax, [0.0, 1.0], margins)
    control, steered = (patch.get_data() for patch in ax.patches)
    unit = 0.85 / 2  # the fullest bin holds two
    assert np.sum(control.values - 1) == pytest.approx(3 * unit)
    assert np.sum(steered.values) == pytest.approx(2 * unit)


def test_names_of_lines_stand_apart():
    series = {
        name: [plots.Point(0.5, 0.9, 0.1), plots.Point(1.0, 0.5, 0.5 + i / 1e3)]
        for i, name in enumerate("abcd")
    }
    ax = plots.Figure(figsize=(5, 4)).add_subplot()
    plots.trade_off(ax, series, label="SSIM")
    ends = {note.get_text(): note.xyann for note in ax.texts}
    assert len(set(ends.values())) == 4


def test_a_trade_off_has_a_hue_for_each_category_and_the_intervals_of_both_figures():
    series = {
        name: [plots.Point(1.0, 0.5, 0.3, (0.4, 0.7), (0.1, 0.35)), plots.Point(2.0, 0.4, 0.4)]
        for name in "abcdefgh"
    }
    ax = plots.Figure().add_subplot()
    plots.trade_off(ax, series, label="SSIM")
    assert len({line.get_color() for line in ax.lines[: len(series)]}) == len(series)
    bars = [
        segment.round(6).tolist()
        for lines in ax.collections
        if isinstance(lines, plots.LineCollection)
        for segment in lines.get_segments()
    ]
    assert bars.count([[0.4, 0.3], [0.7, 0.3]]) == len(series)
    assert bars.count([[0.5, 0.1], [0.5, 0.35]]) == len(series)


# --- the command line


@pytest.fixture
def run(monkeypatch):
    """Run the verb: its exit code and what it wrote."""
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments):
        result = CliRunner().invoke(cli.app, ["report", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_a_run_folder_gets_its_report(run, study):
    write_results(draw(study), study.folder.path / "results.json")
    result = run(study.folder.path)
    file = study.folder.path / "report.html"
    assert (result.exit_code, result.stdout) == (0, f"report {file} written\n")
    assert len(images(read_page(file.read_text("utf-8")))) == 72


def test_a_results_file_is_held_against_a_baseline(run, tmp_path):
    write_results(planted_results(small(20)), tmp_path / "new.json")
    write_results(planted_results(small(20, 0.3)), tmp_path / "old.json")
    out = tmp_path / "made" / "r.html"
    result = run(tmp_path / "new.json", "-o", out, "--baseline", tmp_path / "old.json")
    assert result.exit_code == 0
    assert "Worse in 4 of 4 cells" in read_page(out.read_text("utf-8")).id("comparison").text


def test_another_measurement_is_no_baseline(run, tmp_path):
    write_results(planted_results(small(20)), tmp_path / "new.json")
    write_results(planted_results(small(20), size=128), tmp_path / "old.json")
    out = tmp_path / "r.html"
    result = run(tmp_path / "new.json", "-o", out, "--baseline", tmp_path / "old.json")
    assert result.exit_code == cli.ExitCode.NOT_COMPARABLE
    assert "size: baseline 128, this run 64" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("wrong", ["missing", "output"])
def test_files_that_cannot_be_are_wrong_usage(run, tmp_path, wrong):
    file = tmp_path / "new.json"
    if wrong == "output":
        write_results(planted_results(small(20)), file)
    result = run(file, "-o", tmp_path)
    assert result.exit_code == cli.ExitCode.USAGE
    assert result.stderr.startswith("analogy: ")
