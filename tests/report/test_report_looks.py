"""The report of a sequential run: looks and their confidence, and no other interval."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from extras import extra
from looked import MEANS, draw, draw_looks, pairs
from reported import draw_results, margin, read_page

from analogy.core.records import Cell, Verdict
from analogy.report.looks import early_note, saved_facts, seed_variances, variance_said
from analogy.report.numbers import MINUS, confidence, duration, interval, interval_name
from analogy.results.comparison import compare
from analogy.results.model import Stop
from analogy.results.reading import from_json
from analogy.results.writing import to_json
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.store.folder import RunFolder
from analogy.studies.study import Study

plots = extra("analogy.report.plots", of="matplotlib")
provenance = extra("analogy.report.provenance", of="matplotlib")
html = extra("analogy.report.html", of="matplotlib")
figures_module = extra("analogy.report.figures", of="matplotlib")

LAST, FIRST = Cell("color", 0.5), Cell("color", 1.0)
"""A cell that is undecided at all looks, and one that is decided at the first."""


@pytest.fixture(scope="module")
def study(tmp_path_factory, config, model_source, judge_source):
    """Twenty pairs of each of two categories with two seeds: looks at 16, 20, and 20 with both."""
    folder = RunFolder(tmp_path_factory.mktemp("looks") / "run")
    made = Study(replace(config, sequential=True), pairs(), model_source, judge_source, folder)
    yield made
    folder.close()


@pytest.fixture(scope="module")
def results(study):
    """All looks are taken."""
    return draw_looks(study)


@pytest.fixture(scope="module")
def text(study, results):
    """The report, with images and a comparison."""
    comparison = compare(results, results)
    return html.render(results, folder=study.folder.path, comparison=comparison)


@pytest.fixture(scope="module")
def page(text):
    """The report as a tree."""
    return read_page(text)


def table(page, name):
    """A table's rows by the texts of its heads; values as in the page."""
    found = page.id(f"table-{name}")
    heads = [head.text for head in found.all("th")]
    return [dict(zip(heads, row, strict=True)) for row in found.rows()]


def value(entry) -> float:
    """An entry's figure to the last digit."""
    return float(entry.attrs.get("data-value", entry.text))


def figures_of(page):
    """The rows of the table of cells."""
    return {
        Cell(row["category"].text, float(row["alpha"].text)): row for row in table(page, "cells")
    }


# --- confidence


def test_the_planted_cells_stop_where_they_should(results):
    cells = results.analysis.cells
    assert {cell: figures.stop.look for cell, figures in cells.items()} == {
        LAST: 3, FIRST: 1, Cell("object", 0.5): 1, Cell("object", 1.0): 1,
    }  # fmt: skip
    assert [str(figures.margin.verdict) for figures in cells.values()] == [
        "inconclusive", "success", "failure", "success",
    ]  # fmt: skip


def test_every_interval_has_its_looks_confidence(results, page):
    rows = figures_of(page)
    cells = {
        **results.analysis.cells,
        **{one.cell: one for one in results.analysis.unsteered.values()},
    }
    assert rows.keys() == cells.keys() == {Cell(*cell) for cell in MEANS}
    for cell, figures in cells.items():
        level = {1: 0.0007, 2: 0.0013, 3: 0.023}[figures.stop.look]
        assert value(rows[cell]["confidence"]) == pytest.approx(1 - 2 * level, abs=1e-12)
        low, high = bootstrap_ci(
            [*figures.items.values()],
            confidence=1 - 2 * level,
            n_resamples=figures_resamples(level),
        )
        assert value(rows[cell]["low"]) == pytest.approx(low, abs=1e-9)
        assert value(rows[cell]["high"]) == pytest.approx(high, abs=1e-9)
    assert {rows[cell]["confidence"].text for cell in results.analysis.cells} == {"99.86%", "95.4%"}
    assert rows[LAST]["confidence"].text == "95.4%"
    assert rows[LAST]["gain confidence"].text == "99.86%"


def figures_resamples(level):
    """As docs/sequential.md has it: ten resamples beyond either end."""
    return max(10_000, int(np.ceil(round(20 / (2 * level), 6))))


def test_the_usual_interval_is_printed_nowhere(results, text):
    """The interval that would be right of a run that takes one look, and the words for it."""
    readable = re.sub(r"data:image/[^\"]*", "", unescape(text))
    for words in ("95%", "95 of 100", "would decide"):
        assert words not in readable
    said = " ".join(re.findall(r"\[[^\]]{9,30}\]", readable))  # between brackets, as intervals are
    analysis, digits = results.analysis, 0
    for figures in (*analysis.cells.values(), *analysis.unsteered.values()):
        for end in bootstrap_ci([*figures.items.values()]):
            assert repr(float(end)) not in readable
            if figures.stop.is_early:  # elsewhere 95.4% and 95% may agree to three digits
                assert f"{end:+.3f}".replace("-", MINUS) not in said
                digits += 1
    assert digits == 2 * 5


def test_the_answer_says_confidence_and_images(results, page):
    said = page.id("answer").text
    overall = results.analysis.overall
    assert overall.stop.look == overall.gain_stop.look == 1
    assert f"99.86% interval {interval(overall.margin)}" in said
    assert f", 99.86% interval {interval(overall.gain)}." in said
    assert "one-sided p" not in said
    assert "36 pairs (color and object)" in said
    assert "1 or 2 seeds each" in said
    saved = results.saved
    # 20 pairs x 2 seeds of one cell, 16 of the other three and of the two unsteered ones.
    assert saved.images == 40 + 3 * 16 + 2 * 16
    assert saved.of == 2 * 20 * 2 * 3
    assert "120 of the full grid's 240 images were needed; 120 (50%) were not" in said
    assert f"saved {duration(saved.seconds)} at this run's rate" in said
    assert "3 of 4 cells stopped early" in said
    assert "for a number run the full grid" in said


def test_a_full_run_says_nothing_of_looks(make_study):
    page = read_page(html.render(draw_results(make_study(), margin=margin)))
    assert "95% interval" in page.id("answer").text
    assert "95% interval" in page.id("glossary").text
    for word in ("Looks", "stopped early", "sequential p", "not needed"):
        assert word not in page.text
    assert "confidence" not in [head.text for head in page.id("table-cells").all("th")]


def test_a_plot_says_the_confidence_beside_each_interval(results):
    ax = plots.Figure().add_subplot()
    plots.forest(ax, figures_module.forest_rows(results.analysis, "margin"))
    assert [note.get_text() for note in ax.texts] == ["95.4%", "99.86%", "99.86%", "99.86%"]
    of = figures_module.responses(results.analysis, "color")
    ax = plots.Figure().add_subplot()
    plots.dose_response(ax, of.alphas, of.margins, of.rows)
    assert [note.get_text() for note in ax.texts] == ["99.86%", "95.4%", "99.86%"]
    assert of.margins.shape == (20, 3)  # the undecided cell has pairs that the others lack
    assert np.isnan(of.margins).sum(axis=0).tolist() == [4, 0, 4]


def test_a_confidence_has_all_its_digits():
    def at(level):
        return confidence(Stop(1, 4, 16, 1, 16, level, is_early=True))

    levels = (0.0003, 0.0007, 0.001, 0.023, 0.00104, 0.000008)
    assert [*map(at, levels)] == ["99.94%", "99.86%", "99.8%", "95.4%", "99.792%", "99.9984%"]
    assert interval_name(None) == "95% interval"
    assert [*map(duration, (3.4, 89, 90, 600, 5400, 86400))] == [
        "3 s", "89 s", "1.5 min", "10 min", "1.5 h", "24 h",
    ]  # fmt: skip


# --- looks


def test_the_table_of_looks_has_every_cell(results, page):
    rows = table(page, "looks")
    for row, (cell, figures) in zip(rows, results.analysis.cells.items(), strict=True):
        stop = figures.stop
        assert (row["category"].text, float(row["alpha"].text)) == cell
        assert row["look"].text == f"{stop.look} of 3"
        assert [row[name].text for name in ("pairs", "seeds", "images")] == [
            str(stop.pairs), str(stop.seeds), str(stop.pairs * stop.seeds),
        ]  # fmt: skip
        assert value(row["sequential p"]) == stop.p_seq
        assert value(row["confidence"]) == 1 - 2 * stop.level
        assert row["gain's look"].text == "1"
    notes = [row["note"].text for row in rows]
    assert notes == [
        "",
        "stopped early: the mean is biased upward; for a number run the full grid",
        "stopped early: the mean is biased downward; for a number run the full grid",
        "stopped early: the mean is biased upward; for a number run the full grid",
    ]


def test_variances_are_those_of_the_seeds(results, page):
    figures = results.analysis.cells[LAST]
    table_ = np.array([*figures.seeds.values()])
    assert table_.shape == (20, 2)
    within = np.mean((table_[:, 0] - table_[:, 1]) ** 2 / 2)
    between = np.var(table_.mean(axis=1), ddof=1) - within / 2
    [row, *others] = table(page, "looks")
    assert value(row["variance within"]) == pytest.approx(within)
    assert value(row["variance between pairs"]) == pytest.approx(between)
    assert value(row["ICC"]) == pytest.approx(between / (between + within))
    assert {row["ICC"].text for row in others} == {"\N{EN DASH}"}
    assert seed_variances(results.analysis.cells[FIRST]) is None
    assert f"{between / (between + within):.0%} lies between pairs" in variance_said(results)
    early = replace(results.analysis, cells={FIRST: results.analysis.cells[FIRST]})
    assert "is not known" in variance_said(replace(results, analysis=early))


@pytest.mark.parametrize(
    ("verdicts", "bias"),
    [
        ((Verdict.SUCCESS, Verdict.SUCCESS), "biased upward"),
        ((Verdict.FAILURE, Verdict.FAILURE), "biased downward"),
        ((Verdict.SUCCESS, Verdict.FAILURE), "biased away from 0"),
        ((Verdict.SUCCESS, Verdict.INCONCLUSIVE), "biased"),  # the second without a chance
    ],
)
def test_the_bias_of_a_mean_follows_the_verdict(results, verdicts, bias):
    cells = [results.analysis.cells[cell] for cell in (FIRST, Cell("object", 1.0))]
    cells = [
        replace(one, margin=replace(one.margin, verdict=verdict))
        for one, verdict in zip(cells, verdicts, strict=True)
    ]
    assert early_note(cells[0]).startswith(
        f"stopped early: the mean is biased {'down' if verdicts[0] == 'failure' else 'up'}ward; "
    )
    analysis = replace(results.analysis, cells={one.cell: one for one in cells})
    *_, said = saved_facts(replace(results, analysis=analysis))
    assert said == (
        f"2 of 2 cells stopped early: the mean is {bias} there; for a number run the full grid."
    )


def test_the_chart_of_looks_is_described_and_drawn(results, page):
    [figure] = page.id("looks").all("figure")
    [frame] = [one for one in figure.all("div") if "aria-label" in one.attrs]
    assert (
        "color 0.5 inconclusive at look 3 of 3, 20 pairs with 2 seeds each" in frame["aria-label"]
    )
    assert "color 1 success at look 1 of 3, 16 pairs with 1 seed each" in frame["aria-label"]
    ax = plots.Figure().add_subplot()
    plots.decisions(ax, figures_module.decided_rows(results))
    ends = [
        line.get_xydata().tolist() for line in ax.lines if line.get_marker() not in ("None", ".")
    ]
    assert ends == [[[3, 0]], [[1, 1]], [[1, 2]], [[1, 3]]]
    left = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "."]
    assert left == [[], [2, 3], [2, 3], [2, 3]]
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names == ["1\n16 pairs x 1 seed", "2", "3\n20 pairs x 2 seeds"]
    assert [note.get_text() for note in ax.texts] == ["40 images", *["16 images"] * 3]


def test_an_image_that_failed_leaves_its_cell_open(make_study, monkeypatch):
    monkeypatch.setattr(plots, "svg", lambda width, height, draw: "<svg></svg>")
    study = make_study(pairs=pairs()[:20], sequential=True)
    failed = next(job for job in study.jobs() if (job.pair.category, job.alpha) == FIRST)
    results = draw_looks(study, faults=[failed])
    assert results.analysis.cells[FIRST].stop is None
    page = read_page(html.render(results, folder=study.folder.path))
    [row] = [row for row in table(page, "looks") if row["category"].text == "color"
             and row["alpha"].text == "1"]  # fmt: skip
    assert row["verdict"].text == "incomplete"
    dash = "\N{EN DASH}"
    assert {row[name].text for name in ("look", "pairs", "images", "confidence", "margin")} == {
        dash
    }
    [failure] = page.id("table-failures").rows()
    assert failure[0].text == failed.pair.id
    assert failure[-1].text == "black"
    assert "not finished: images are missing" in page.id("answer").text.lower()
    assert "images were needed" not in page.text  # which is known when no cell is open
    [chart] = page.id("looks").all("figure")
    assert "color 1 incomplete." in next(chart.all("div"))["aria-label"]


def test_provenance_has_the_order(results, page):
    said = page.id("provenance").text
    assert "order seed 0" in said
    for category, digest in results.saved.order.items():
        assert f"order of {category}" in said
        assert digest in said
    config = {**results.header.config.values, "order_seed": 7, "futility": True}
    header = replace(results.header, config=replace(results.header.config, values=config))
    saved = replace(results.saved, order_seed=7)
    changed = replace(results, header=header, saved=saved)
    assert ("sequential", "order seed 7, --futility") in provenance.provenance(changed)
    [command] = provenance.commands(header)
    assert "--sequential --order-seed=7 --futility" in command


def test_results_that_were_read_back_have_the_same_report(study, results, text):
    again = from_json(to_json(results))
    comparison = compare(results, results)
    assert html.render(again, folder=study.folder.path, comparison=comparison) == text


# --- the gallery


def shown(page):
    """Pair, alpha and seed of every image of the gallery."""
    return sorted(img["alt"] for img in page.id("strips").all("img"))


def test_the_gallery_has_the_images_of_the_looks(study, results, page):
    jobs = study.jobs()
    assert len(jobs) == results.saved.images
    assert shown(page) == sorted(
        f"{job.pair.id}, alpha {job.alpha:g}, seed {job.seed}" for job in jobs
    )
    for strip in page.id("strips").all("article"):
        heads = [head.text for head in strip.all("th") if head["scope"] == "col"]
        assert heads == ["seed", "source(alpha 0)", "alpha 0.5", "alpha 1"]
        [body], [foot] = strip.all("tbody"), strip.all("tfoot")
        assert {len(list(row.all("td"))) for row in (*body.all("tr"), foot)} == {3}
    blank = [one.text for one in page.id("strips").all("span", "missing")]
    rows = {(job.pair, job.seed) for job in jobs}
    assert blank == ["not needed"] * (3 * len(rows) - len(jobs))
    assert "table-failures" not in [one.attrs.get("id") for one in page.all("table")]


def test_images_beyond_the_looks_change_no_byte(make_study, monkeypatch):
    """A folder that a full run has filled, and one that has the looks' images alone."""
    monkeypatch.setattr(plots, "svg", lambda width, height, draw: "<svg></svg>")
    study = make_study(pairs=pairs()[:20], sequential=True, target=True)
    results = draw_looks(study)
    page = html.render(results, folder=study.folder.path)
    jobs = study.grid.jobs()
    rest = [job for job in jobs if job.key not in {due.key for due in study.jobs()}]
    assert len(rest) > len(jobs) / 3
    draw(study, rest)
    assert not study.missing(jobs)
    assert html.render(results, folder=study.folder.path) == page
    assert "target prompt, seed 0" in page
