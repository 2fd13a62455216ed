"""The report's gallery: every image in its place, and those that are not there named."""

from __future__ import annotations

import random
import re
from urllib.parse import unquote

import numpy as np
from cases import change_index
from rendered import html, images, plots, render, table
from reported import color, draw, draw_results, margin, picture, pixels, read_page

from analogy.core.images import from_png
from analogy.core.records import Pair
from analogy.report import gallery as galleries
from analogy.results.reading import from_json
from analogy.settings.pairs import load_pairs
from analogy.world.drawings import drawings

write_report = html.write_report


# --- the gallery


def test_every_image_stands_at_its_pair_alpha_and_seed(study, page):
    shown = images(page)
    assert len(shown) == len(study.jobs()) == 12 * 3 * 2
    for job in study.jobs():
        img = shown[f"{job.pair.id}, alpha {job.alpha:g}, seed {job.seed}"]
        found, kind = pixels(img["src"])
        assert kind == "data:image/webp;base64"
        assert found.shape == (64, 64, 3)
        assert (img["width"], img["height"]) == ("64", "64")
        assert np.abs(found.astype(int) - color(job)).max() <= 4


def test_the_margin_of_an_image_is_below_it(study, page):
    found = 0
    for strip in page.id("strips").all("article"):
        [body] = strip.all("tbody")
        for cell in body.all("td"):
            [img] = cell.all("img")
            [said] = cell.all("span", "margin")
            pair, alpha, seed = re.fullmatch(r"(.+), alpha (.+), seed (.+)", img["alt"]).groups()
            [job] = [j for j in study.jobs() if (j.pair.id, f"{j.alpha:g}", str(j.seed))
                     == (pair, alpha, seed)]  # fmt: skip
            assert said.text.replace("−", "-") == f"{margin(job):+.2f}"  # noqa: RUF001
            assert ("above" in said.classes) == (margin(job) > 0)
            found += 1
        [foot] = strip.all("tfoot")
        means = [cell.text.replace("−", "-") for cell in foot.all("td")]  # noqa: RUF001
        seeds = [[margin(j) for j in study.jobs() if (j.pair.id, j.alpha) == (pair, alpha)]
                 for alpha in (0.0, 0.5, 1.0)]  # fmt: skip
        assert means == [f"{np.mean(of):+.2f}" for of in seeds]
    assert found == 72


def test_the_target_prompts_own_image_is_the_last_of_a_strip(make_study, monkeypatch):
    monkeypatch.setattr(plots, "svg", lambda width, height, draw: "<svg></svg>")
    study = make_study(target=True)
    results = draw(study, margin=lambda job: margin(job) + 0.5 * (job.method == "lerp"))
    page = read_page(render(results, folder=study.folder.path))
    targets = {(j.pair.id, j.seed): j for j in study.jobs() if j.method == "lerp"}
    assert len(targets) == 12 * 2
    for strip in page.id("strips").all("article"):
        assert [head.text for head in strip.all("th") if head["scope"] == "col"] == [
            "seed", "source(alpha 0)", "alpha 0.5", "alpha 1", "targetprompt",
        ]  # fmt: skip
        [body] = strip.all("tbody")
        own = []
        for row in body.all("tr"):
            *_, last = row.all("td")
            [img] = last.all("img")
            pair, seed = re.fullmatch(r"(.+), target prompt, seed (.+)", img["alt"]).groups()
            job = targets.pop((pair, int(seed)))
            assert np.abs(pixels(img["src"])[0].astype(int) - color(job)).max() <= 4
            assert last.text.replace("−", "-") == f"{margin(job) + 0.5:+.2f}"  # noqa: RUF001
            own.append(margin(job) + 0.5)
        [foot] = strip.all("tfoot")
        *_, mean = foot.all("td")
        assert mean.text.replace("−", "-") == f"{np.mean(own):+.2f}"  # noqa: RUF001
    assert targets == {}


def test_shares_of_the_target_prompts_own_margin_stand_in_the_tables(make_study, monkeypatch):
    monkeypatch.setattr(plots, "svg", lambda width, height, draw: "<svg></svg>")
    study = make_study(target=True)
    results = draw(
        study, margin=lambda job: 2 * margin(job) if job.method == "lerp" else margin(job)
    )
    page = read_page(render(results, folder=study.folder.path))
    shares = [row["of target"].text for row in table(page, "cells") if row["alpha"].text == "1"]
    assert shares == ["50%", "50%"]
    assert [row["category"].text for row in table(page, "targets")] == ["color", "object"]
    assert "reached to 50%" in page.id("categories").text
    without = read_page(render(draw(make_study())))
    assert "target prompt" not in without.id("gallery").text
    assert "of target" not in [head.text for head in without.id("table-cells").all("th")]


def test_a_failed_target_image_is_not_taken_for_the_methods_own(make_study, monkeypatch):
    monkeypatch.setattr(plots, "svg", lambda width, height, draw: "<svg></svg>")
    study = make_study(target=True)
    [failed, *_] = [job for job in study.jobs() if job.method == "lerp"]
    results = draw(study, faults=[failed])
    page = read_page(render(results, folder=study.folder.path))
    [row] = page.id("table-failures").rows()
    assert [cell.text for cell in row] == [
        failed.pair.id, failed.pair.category, "lerp", "1", str(failed.seed), "black",
    ]  # fmt: skip
    assert "incomplete" not in [row["verdict"].text for row in table(page, "cells")]
    assert {row["of target"].text for row in table(page, "cells")
            if row["category"].text == failed.pair.category} == {"–"}  # fmt: skip  # noqa: RUF001


def test_a_strip_carries_what_it_is_filtered_by(study):
    results = draw(study)
    page = read_page(render(results, folder=study.folder.path))
    verdicts = {(c["category"], c["alpha"]): c["verdict"] for c in results["cells"]}
    items = {(p, c["alpha"]): m for c in results["cells"] for p, m in c["items"].items()}
    for pair, strip in zip(study.pairs, page.id("strips").all("article"), strict=True):
        assert strip["data-category"] == pair.category
        for word in (pair.id, pair.source_prompt, pair.target_prompt):
            assert word.lower() in strip["data-words"]
        steered = {item["data-alpha"]: item for item in strip.all("span", "item")}
        for alpha in (0.5, 1.0):
            assert float(steered[str(alpha)]["data-margin"]) == items[pair.id, alpha]
            assert steered[str(alpha)]["data-verdict"] == verdicts[pair.category, alpha]


def test_every_pair_has_a_link_of_its_own(make_study):
    ids = ['a"b', "a'b", "a b", "a%22b", "a/b", "<i>", "色", "a&amp;b"]
    pairs = [Pair(i, "color", "red", "blue", f"a red {n}", f"a blue {n}")
             for n, i in enumerate(ids)]  # fmt: skip
    study = make_study(pairs=pairs)
    page = read_page(render(draw(study), folder=study.folder.path))
    strips = list(page.id("strips").all("article"))
    anchors = [strip["id"] for strip in strips]
    assert len(set(anchors)) == len(ids)
    for pair, strip in zip(ids, strips, strict=True):
        assert re.fullmatch(r"pair-[\w.~%-]+", strip["id"], re.ASCII)
        assert unquote(strip["id"]) == f"pair-{pair}"
        assert next(strip.all("a"))["href"] == f"#{strip['id']}"
    assert [row["pair"].text for row in table(page, "pairs")] == ids
    ids_of_page = [node["id"] for node in page.all() if "id" in node.attrs]
    assert {i for i in ids_of_page if ids_of_page.count(i) > 1 and not in_svg(i, page)} == set()


def in_svg(name, page):
    """Whether an id is a drawing's own: the same shapes have the same in every plot."""
    return any(node["id"] == name for svg in page.all("svg") for node in svg.all()
               if "id" in node.attrs)  # fmt: skip


def test_an_image_that_failed_or_is_gone_is_named(study):
    jobs = study.jobs()
    results = draw(study, faults=[jobs[0]])
    for path in study.folder.path.glob(f"images/*/{jobs[-1].key}.png"):
        path.write_bytes(b"no picture")
    page = read_page(render(results, folder=study.folder.path))
    assert len(images(page)) == len(jobs) - 2
    rows = [[cell.text for cell in row] for row in page.id("table-failures").rows()]
    first, last = jobs[0], jobs[-1]
    assert rows == [
        [first.pair.id, first.pair.category, "", "0", "0", "black"],
        [last.pair.id, last.pair.category, "word", "1", "1", "its file is missing or was changed"],
    ]
    shown = [node.text for node in page.id("strips").all("span", "missing")]
    assert shown == ["black", "its file is missing or was changed"]


def test_results_alone_have_strips_without_images(study):
    page = read_page(render(draw(study)))
    strips = page.id("strips")
    assert not list(strips.all("img"))
    assert len(list(strips.all("article"))) == 12
    assert "without their images" in page.id("gallery").text


def test_more_images_than_a_page_holds_are_left_out(study, monkeypatch):
    results = draw(study)
    monkeypatch.setattr(galleries, "MOST_IMAGES", len(study.jobs()))
    assert len(images(read_page(render(results, folder=study.folder.path)))) == len(study.jobs())
    monkeypatch.setattr(galleries, "MOST_IMAGES", len(study.jobs()) - 1)
    page = read_page(render(results, folder=study.folder.path))
    assert not images(page)
    strips = [strip.text for strip in page.id("strips").all("article")]
    assert len(strips) == 12
    assert all(any(pair.source_prompt in strip for strip in strips) for pair in study.pairs)
    assert f"this run has {len(study.jobs())}. " in page.id("gallery").text


def test_images_of_other_pairs_are_not_shown(study):
    results = draw(study)
    others = [Pair(p.id, p.category, "x", "y", "an x", "a y") for p in study.pairs[:6]]
    change_index(study.folder.path, "DELETE FROM commands")
    study.pairs = [*others, *study.pairs[6:]]
    study.record(None)
    page = read_page(render(results, folder=study.folder.path))
    assert "6 of 12 pairs without images" in page.id("gallery").text
    assert {alt.partition("-")[0] for alt in images(page)} == {"object"}


def test_images_of_another_configuration_are_not_shown(study, make_study):
    results = draw(study)
    results["config"]["steps"] += 1
    assert not images(read_page(render(results, folder=study.folder.path)))


def test_the_full_grid_of_the_embedded_model_fits():
    """6,000 images with 300 bytes of markup each, in 15 MB; estimated from drawings of 40 pairs,
    which have sharper edges than the model's own.
    """
    pairs = random.Random(0).sample(load_pairs("fixtures/pairs.csv"), 40)
    sizes = [len(galleries.data_uri(image)[0]) for p in pairs for image in drawings(p, 1)[0]]
    assert 6000 * (np.mean(sizes) + 300) < 15e6


def test_large_images_become_thumbnails_and_the_full_ones_stand_beside(make_study, tmp_path, pairs):
    study = make_study(pairs=pairs[:2], size=512, seeds=(0,), alphas=(1.0,))
    results = draw(study)
    write_report(
        from_json(results), tmp_path / "a b.html", folder=study.folder.path, full_images=True
    )
    page = read_page((tmp_path / "a b.html").read_text("utf-8"))
    assert len(images(page)) == 4
    links = {next(a.all("img"))["alt"]: a["href"] for a in page.id("strips").all("a")
             if list(a.all("img"))}  # fmt: skip
    for job in study.jobs():
        name = f"{job.pair.id}, alpha {job.alpha:g}, seed {job.seed}"
        thumbnail, kind = pixels(images(page)[name]["src"])
        assert (thumbnail.shape, kind) == ((128, 128, 3), "data:image/webp;base64")
        full = from_png((tmp_path / unquote(links[name])).read_bytes())
        assert (full == picture(job, 512)).all()


def test_without_full_images_nothing_stands_beside(study, tmp_path):
    write_report(draw_results(study), tmp_path / "new" / "r.html", folder=study.folder.path)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.html"]
