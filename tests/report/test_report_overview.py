"""The report's first screen, its forest plots, and the images of a baseline beside a run's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reported
from extras import extra
from rendered import html, images, render
from reported import color, draw, draw_results, margin, picture, pixels, read_page

from analogy.core.records import Pair
from analogy.report.gallery import GalleryImage, Strip
from analogy.report.medians import medians
from analogy.results.comparison import compare
from analogy.results.reading import read
from analogy.results.writing import write_results

forest = extra("analogy.report.forest", of="matplotlib")
plots = extra("analogy.report.plots", of="matplotlib")


def strip(name, category, **items):
    """A strip with one image and margins at alpha 0, 0.5 and 1."""
    margins = {float(alpha.lstrip("a").replace("_", ".")): value for alpha, value in items.items()}
    pair = Pair(name, category, "a", "b", "an a", "a b")
    return Strip(pair, f"pair-{name}", margins, ((3, (GalleryImage(0.0, 3, 0.0),)),))


def test_the_median_pair_is_by_the_mean_over_the_strengths():
    strips = [
        strip("best", "x", a0=-0.9, a0_5=0.5, a1=0.9),
        strip("middle", "x", a0=-0.1, a0_5=0.4, a1=0.1),
        strip("worst", "x", a0=0.9, a0_5=-0.5, a1=0.4),
        strip("part", "x", a0=0.0, a1=0.2),
        strip("lower", "y", a0_5=0.1, a1=0.1),
        strip("higher", "y", a0_5=0.2, a1=0.2),
        strip("no margin", "z"),
    ]
    found = {one.category: one for one in medians(strips, ["y", "x", "z", "w"])}
    assert [(name, one.strip.pair.id) for name, one in found.items()] == [
        ("y", "lower"), ("x", "middle"), ("z", "no margin"),
    ]  # fmt: skip
    assert {one.seed for one in found.values()} == {3}


def test_the_first_section_has_a_pair_of_each_category_with_its_images(study, page):
    rows = page.id("medians")
    shown = list(rows.all("img"))
    assert len(shown) == 2 * 3
    for category in ("color", "object"):
        means = {
            pair.id: np.mean([margin(j) for j in study.jobs() if j.pair == pair and j.alpha])
            for pair in study.pairs
            if pair.category == category
        }
        middle = sorted(means, key=lambda name: (means[name], [*means].index(name)))[2]
        own = [img for img in shown if img["alt"].startswith(f"{middle}, ")]
        assert [img["alt"] for img in own] == [
            f"{middle}, alpha {alpha}, seed 0" for alpha in ("0", "0.5", "1")
        ]
        for img, alpha in zip(own, (0.0, 0.5, 1.0), strict=True):
            [job] = [j for j in study.jobs() if (j.pair.id, j.alpha, j.seed) == (middle, alpha, 0)]
            assert np.abs(pixels(img["src"])[0].astype(int) - color(job)).max() <= 4


def test_the_heading_says_what_was_measured_and_when(study, page):
    [heading] = page.all("h1")
    for text in ("sdxl-tiny", "word", "clip-tiny"):
        assert text in heading.text
    [time] = heading.all("time")
    assert study.results().header.provenance.time.startswith(f"{time.text}T")


def test_pairs_left_out_and_unknown_words_are_named_where_they_are_seen(study):
    """In the map, the cells' and the pairs' tables, the median pair and the gallery."""
    results = draw_results(study)
    ids = {name: [p.id for p in study.pairs if p.category == name] for name in ("color", "object")}
    unknown, unread = ids["color"], ids["object"][0]
    marked = replace(
        results, unknown=dict.fromkeys(unknown, ("teal",)), unread=(unread,), uneven=("gone",)
    )
    page = read_page(html.render(marked, folder=study.folder.path))
    rows = {row.text.split()[0]: row for row in page.id("map").all("tr")}
    assert {name: "*" in rows[name].text for name in ("color", "object", "all")} == {
        "color": True, "object": False, "all": True,
    }  # fmt: skip
    for place in ("map", "gallery"):
        said = [note.text for note in page.id(place).all("p", "note")]
        assert any("does not know: teal." in text for text in said)
        assert f"1 pair ({unread}) in no figure: the judge reads both prompts as one." in said
        assert any(text.startswith("1 pair (gone) left out") for text in said)
    cells = [[*row.all("td")] for row in page.id("table-pairs").all("tr")][1:]
    notes = {own[0].text: own[-1].text for own in cells}
    assert notes[unknown[0]] == "* words that are not known: teal"
    assert notes["gone"].startswith("left out")
    assert notes[ids["object"][1]] == ""
    for name in (*unknown, unread):
        [strip] = [one for one in page.id("strips").all("article") if name in one["id"]]
        assert notes[name] in strip.text
    assert "teal" in [*page.id("medians").all("tr")][1].text
    plain = read_page(html.render(results, folder=study.folder.path))
    assert not [*plain.id("map").all("p", "note")]
    assert "note" not in plain.id("table-pairs").text


def test_tables_come_before_the_gallery(page):
    ids = [node["id"] for node in page.all("section")]
    assert ids.index("answer") < ids.index("map") < ids.index("tables") < ids.index("gallery")


def test_a_bar_is_where_its_interval_is():
    rows = [
        plots.IntervalRow("a", 0.2, 0.1, 0.4, "success"),
        plots.IntervalRow("b", None, None, None, "too_few"),
        plots.IntervalRow("c", -0.3, -0.5, 0.0, "failure", "99%"),
    ]
    low, high = forest._scale(rows)
    assert low < -0.5
    assert high > 0.4
    axis = forest._axis("margin", rows)
    for at, label in [*axis.ticks, (axis.zero, "0")]:
        value = float(label.replace("−", "-"))  # noqa: RUF001
        assert at == pytest.approx(100 * (value - low) / (high - low), abs=0.01)
    bars = [forest._bar(row, rows) for row in rows]
    for bar, row in zip(bars, rows, strict=True):
        if row.mean is None:
            assert (bar.at, bar.low, bar.width, bar.text) == (None, None, None, "")
            continue
        ends = (bar.low, bar.at, bar.low + bar.width)
        assert [low + (high - low) * end / 100 for end in ends] == pytest.approx(
            [row.low, row.mean, row.high], abs=1e-3
        )
    assert bars[2].text == "99% [−0.500, +0.000]"  # noqa: RUF001


def test_a_comparison_shows_the_images_of_both_runs(make_study, monkeypatch):
    monkeypatch.setattr(plots, "svg", lambda width, height, draw: "<svg></svg>")
    old, study = make_study(), make_study(method="lerp")
    with monkeypatch.context() as patch:  # at alpha 1 the baseline's images are others
        patch.setattr(
            reported, "picture",
            lambda job, size: picture(job, size) // (50 if job.alpha == 1 else 1),
        )  # fmt: skip
        write_results(draw_results(old), old.folder.path / "results.json")
    results = draw_results(study, margin=lambda job: margin(job) - 0.1)
    before = read(old.folder.path)
    compared = compare(before, results)
    page = read_page(
        html.render(results, folder=study.folder.path, comparison=compared, baseline=before)
    )
    assert f"Against the baseline: {compared.conclusion}." in page.id("answer").text
    shown = images(page)
    for one in page.id("strips").all("article"):
        rows = [row for row in one.all("tr") if "before" in row.classes]
        assert len(rows) == 2
        for row in rows:
            assert [cell.text for cell in row.all("td")][:2] == ["the same"] * 2
    for job in old.jobs(alpha=1.0):
        name = f"{job.pair.id}, alpha 1, seed {job.seed}"
        assert (
            np.abs(
                pixels(shown[f"{name}, baseline"]["src"])[0].astype(int)
                - np.array(color(job)) // 50
            ).max()
            <= 4
        )
        own = pixels(shown[f"{name}, this run"]["src"])[0].astype(int)
        assert np.abs(own - color(job)).max() <= 4
    assert "baseline" not in read_page(render(draw(study))).id("gallery").text
