"""The report in headless Chromium, where there is one: it works, and fetches nothing."""

from __future__ import annotations

import csv
import io
import json

import pytest
from extras import extra
from PIL import Image
from reported import draw_results, margin

from analogy.core.records import Pair

write_report = extra("analogy.report.html", of="matplotlib").write_report
extra("selenium")
WORDS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "brown", "black", "white")
NASTY = "<script>document.title = 'run'</script><img src=x onerror=alert(1)>"


@pytest.fixture
def study(make_study):
    """Sixty pairs of two categories, one of them of a nasty name and with nasty prompts, and the
    target prompts' own images.
    """
    pairs = [
        Pair(f"{kind} '{i}\"", kind if kind == "color" else NASTY, WORDS[i % 10],
             WORDS[(i + 1) % 10], f"{prefix} {i} {WORDS[i % 10]}", f"{prefix} {i} target")
        for kind, prefix in (("color", "a car"), ("size", NASTY))
        for i in range(30)
    ]  # fmt: skip
    return make_study(pairs=pairs, seeds=(0,), target=True)


@pytest.fixture
def opened(chromium, study, tmp_path):
    """Open the report at a width; gives the browser."""
    write_report(draw_results(study), tmp_path / "r.html", folder=study.folder.path)
    chromium.get_log("browser")
    chromium.get_log("performance")

    def open_at(fragment="", *, width=1200, scheme="light"):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        chromium.get("about:blank")
        chromium.get((tmp_path / "r.html").as_uri() + fragment)
        return chromium

    return open_at


def shown(browser):
    """The ids of the pairs that are shown, in their order."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.strip')].filter(s => s.offsetParent)"
        ".map(s => decodeURIComponent(s.id.slice(5)))"
    )


def found(browser):
    """The ids of the pairs on all pages of the gallery, which is left at the last one."""
    return browser.execute_script(
        "const ids = [], pager = document.getElementById('pager');"
        "const next = pager.querySelector('[data-step=\\'1\\']');"
        "for (;;) {"
        "  for (const s of document.querySelectorAll('.strip')) ids.push(s.id);"
        "  if (pager.hidden || next.disabled) return ids.map(i => decodeURIComponent(i.slice(5)));"
        "  next.click();"
        "}"
    )


def turn_page(browser):
    browser.execute_script("document.querySelector('#pager [data-step=\\'1\\']').click()")


def choose(browser, name, value):
    """Set a filter as a user does."""
    browser.execute_script(
        "const field = document.querySelector(`#filters [name=${arguments[0]}]`);"
        "field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        name, value,
    )  # fmt: skip


def item(study, pair, alpha):
    [job] = [j for j in study.jobs(alpha=alpha) if j.pair.id == pair]
    return margin(job)


def settle(browser):
    """Wait until what has come into view is built."""
    browser.execute_async_script(
        "const done = arguments[0]; setTimeout(() => requestAnimationFrame(() => done()), 300)"
    )


def press(browser, key):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(key).perform()


def test_it_opens_without_errors_and_fetches_nothing(opened, tmp_path):
    browser = opened()
    for part in ("#gallery", "#tables", "#glossary"):
        browser.execute_script("document.querySelector(arguments[0]).scrollIntoView()", part)
        settle(browser)
    assert browser.get_log("browser") == []
    events = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    fetched = {
        event["params"]["request"]["url"].partition("#")[0]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    fetched = {url for url in fetched if not url.startswith("data:")}
    assert fetched == {(tmp_path / "r.html").as_uri()}


def test_text_of_users_runs_nothing(opened):
    browser = opened()
    assert browser.title.startswith("Yes")
    assert browser.execute_script("return document.querySelectorAll('script').length") == 1
    assert NASTY in browser.find_element("css selector", "#map").text


def test_filters_leave_what_was_asked_for(opened, study):
    browser = opened()
    pairs = {pair.id: pair for pair in study.pairs}
    assert sorted(found(browser)) == sorted(pairs)
    choose(browser, "category", NASTY)
    assert sorted(found(browser)) == sorted(i for i, p in pairs.items() if p.category == NASTY)
    choose(browser, "category", "")
    choose(browser, "alpha", "0.5")
    choose(browser, "sign", "neg")
    assert sorted(found(browser)) == sorted(i for i in pairs if item(study, i, 0.5) <= 0)
    assert 0 < len(found(browser)) < 60
    choose(browser, "sign", "")
    choose(browser, "word", " PURPLE ")
    purple = [i for i, p in pairs.items() if "purple" in (p.source_word, p.target_word)]
    assert sorted(found(browser)) == sorted(purple)
    assert browser.find_element("id", "count").text == f"{len(purple)} of 60 pairs"
    choose(browser, "word", "")
    choose(browser, "verdict", "success")
    succeeded = [c for c in study.categories if str(study.cell(c, 0.5).margin.verdict) == "success"]
    assert sorted(found(browser)) == sorted(i for i, p in pairs.items() if p.category in succeeded)
    choose(browser, "word", "no such word")
    assert found(browser) == []
    assert browser.find_element("id", "nothing").is_displayed()


def test_the_order_is_by_the_margin_at_the_alpha(opened, study):
    browser = opened()
    for order, sign in (("best", -1), ("worst", 1)):
        choose(browser, "order", order)
        margins = [item(study, pair, 1.0) for pair in found(browser)]
        assert len(margins) == 60
        assert margins == sorted(margins, key=lambda m, sign=sign: sign * m)
    choose(browser, "order", "")
    assert found(browser) == [pair.id for pair in study.pairs]


def test_a_page_of_the_gallery_has_the_images_of_its_pairs_and_no_others(opened, study):
    browser = opened()
    for page in (range(12), range(12, 24)):
        assert shown(browser) == [study.pairs[i].id for i in page]
        settle(browser)
        images = (
            "return [...document.querySelectorAll('#strips img')]"
            ".map(i => [i.complete, i.naturalWidth])"
        )
        assert browser.execute_script(images) == [[True, 64]] * 4 * 12
        turn_page(browser)
    assert browser.current_url.endswith("#gallery?page=3")


def test_the_address_has_filters_order_and_page(opened, study):
    browser = opened()
    choose(browser, "category", NASTY)
    choose(browser, "order", "worst")
    turn_page(browser)
    before, address = shown(browser), browser.current_url
    assert len(before) == 12
    browser.get("about:blank")
    browser.get(address)
    assert shown(browser) == before
    assert browser.execute_script("return document.activeElement.textContent") == "Gallery"
    browser.execute_script("location.hash = '#gallery?category=no+such&alpha=7'")
    settle(browser)
    assert browser.find_element("id", "count").text == "60 of 60 pairs"


@pytest.mark.parametrize(
    "place", [".heat tbody tr:nth-child(2) td:nth-child(3)", "#forest tbody tr:nth-child(3)"]
)
def test_a_click_on_the_map_or_a_row_of_the_forest_shows_its_pairs(opened, study, place):
    browser = opened()
    browser.execute_script(
        "const place = document.querySelector(arguments[0]);"
        "place.scrollIntoView({behavior: 'instant', block: 'center'});"
        "const inside = place.querySelector('td') || place.lastElementChild;"  # on the screen
        "const box = inside.getBoundingClientRect();"
        "document.elementFromPoint(box.x + 5, box.y + 5).click()",
        place,
    )
    settle(browser)
    chosen = browser.execute_script("return Object.fromEntries(new FormData(document.forms[0]))")
    assert (chosen["category"], chosen["alpha"]) == (NASTY, "0.5")
    top = "return document.getElementById('gallery').getBoundingClientRect().top"
    assert 0 <= browser.execute_script(top) < 200
    assert set(found(browser)) == {p.id for p in study.pairs if p.category == NASTY}


def test_the_median_comes_first_where_it_is_asked_for(opened, study):
    browser = opened()
    choose(browser, "category", "color")
    choose(browser, "order", "median")
    margins = [item(study, pair, 1.0) for pair in found(browser)]
    middle = sorted(margins)[(len(margins) - 1) // 2]
    distances = [abs(margin - middle) for margin in margins]
    assert len(margins) == 30
    assert distances == sorted(distances)


def test_two_images_are_compared(opened):
    browser = opened()
    browser.execute_script("document.querySelectorAll('#strips .shot')[2].click()")
    viewer = browser.find_element("id", "viewer")
    first, second, view = viewer.find_elements("tag name", "select")
    choice = "return arguments[0].selectedOptions[0].text"
    assert browser.execute_script(choice, first).endswith("alpha 0, seed 0")
    assert browser.execute_script(choice, second).endswith("alpha 1, seed 0")

    def brightest(of, by):
        for control, value in ((second, of), (view, by)):
            browser.execute_script(
                "arguments[0].value = arguments[1];"
                "arguments[0].dispatchEvent(new Event('input'))", control, value,
            )  # fmt: skip
        settle(browser)
        with Image.open(
            io.BytesIO(viewer.find_element("class name", "stage").screenshot_as_png)
        ) as image:
            return max(high for _, high in image.convert("RGB").getextrema())

    assert brightest("0", "difference") == 0
    assert brightest("2", "difference") > 50
    assert brightest("2", "side") > 50
    browser.execute_script("arguments[0].querySelector('button').click()", viewer)
    assert not viewer.is_displayed()


def test_a_link_leads_to_its_pair_and_arrow_keys_go_on(opened, study):
    from selenium.webdriver.common.keys import Keys

    name = study.pairs[40].id
    href = "#pair-size%20%2710%22"
    browser = opened(href)
    settle(browser)
    focused = "return decodeURIComponent(document.activeElement.id.slice(5))"
    assert browser.execute_script(focused) == name
    top = "return document.activeElement.getBoundingClientRect().top"
    assert 0 <= browser.execute_script(top) < 200
    order = [pair.id for pair in study.pairs]
    here = order.index(name)
    for key, step in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1)):
        press(browser, key)
        assert browser.execute_script(focused) == order[here + step]
        assert browser.current_url.endswith(
            browser.execute_script("return document.activeElement.id")
        )
    choose(browser, "category", "color")
    browser.execute_script("location.hash = arguments[0]", href)
    settle(browser)
    assert name in shown(browser)


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_window(opened, width):
    browser = opened(width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.execute_script("document.querySelector('#gallery').scrollIntoView()")
    settle(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


def test_dark_and_light_differ_and_both_have_contrast(opened):
    luminance = {}
    for scheme in ("light", "dark"):
        style = opened(scheme=scheme).execute_script(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )
        page, ink = (_luminance(color) for color in style)
        assert (max(page, ink) + 0.05) / (min(page, ink) + 0.05) > 7
        luminance[scheme] = page
    assert luminance["dark"] < 0.1 < luminance["light"]


def _luminance(color: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2)."""
    parts = [int(v) / 255 for v in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_table_sorts_by_a_click_and_is_saved_as_csv(opened, study):
    browser = opened()
    heads = browser.find_elements("css selector", "#table-cells th button")
    names = [head.text for head in heads]
    margin_head = heads[names.index("margin")]
    column = (
        "return [...document.querySelectorAll('#table-cells tbody tr')]"
        ".map(r => Number(r.cells[arguments[0]].dataset.value))"
    )
    for reverse in (False, True):
        browser.execute_script("arguments[0].click()", margin_head)
        found = browser.execute_script(column, names.index("margin"))
        assert found == sorted(found, reverse=reverse)
    text = browser.execute_async_script(
        "const done = arguments[0];"
        "URL.createObjectURL = blob => { blob.text().then(done); return 'blob:none'; };"
        "HTMLAnchorElement.prototype.click = () => {};"
        "document.querySelector('[data-table=table-pairs]').click()"
    )
    head, *rows = csv.reader(io.StringIO(text))
    assert head == [
        "pair", "category", "source", "target", "alpha 0", "alpha 0.5", "alpha 1", "target prompt",
    ]  # fmt: skip
    assert {row[0]: (row[1], float(row[6])) for row in rows} == {
        pair.id: (pair.category, pytest.approx(item(study, pair.id, 1.0))) for pair in study.pairs
    }


def test_paper_has_a_page_of_pairs_in_their_order(opened, study):
    browser = opened()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert shown(browser) == [pair.id for pair in study.pairs[:12]]
    built = (
        "return [...document.querySelectorAll('.strip')].map(s => s.querySelectorAll('img').length)"
    )
    assert browser.execute_script(built) == [4] * 12
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
