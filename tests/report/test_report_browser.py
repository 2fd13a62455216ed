"""The report in headless Chromium, where there is one: it works, and fetches nothing."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
from extras import extra
from reported import draw_results, margin

from analogy.core.records import Pair

write_report = extra("analogy.report.html", of="matplotlib").write_report
selenium = extra("selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
)

WORDS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "brown", "black", "white")
NASTY = "<script>document.title = 'run'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests; it keeps a log of its console and of the network."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


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
    assert browser.title.startswith("success")
    assert browser.execute_script("return document.querySelectorAll('script').length") == 1
    assert NASTY in browser.find_element("css selector", "#map").text


def test_filters_leave_what_was_asked_for(opened, study):
    browser = opened()
    pairs = {pair.id: pair for pair in study.pairs}
    assert sorted(shown(browser)) == sorted(pairs)
    choose(browser, "category", NASTY)
    assert sorted(shown(browser)) == sorted(i for i, p in pairs.items() if p.category == NASTY)
    choose(browser, "category", "")
    choose(browser, "alpha", "0.5")
    choose(browser, "sign", "neg")
    assert sorted(shown(browser)) == sorted(i for i in pairs if item(study, i, 0.5) <= 0)
    assert 0 < len(shown(browser)) < 60
    choose(browser, "sign", "")
    choose(browser, "word", " PURPLE ")
    purple = [i for i, p in pairs.items() if "purple" in (p.source_word, p.target_word)]
    assert sorted(shown(browser)) == sorted(purple)
    assert browser.find_element("id", "count").text == f"{len(purple)} of 60 pairs"
    choose(browser, "word", "")
    choose(browser, "verdict", "success")
    succeeded = [c for c in study.categories if str(study.cell(c, 0.5).margin.verdict) == "success"]
    assert sorted(shown(browser)) == sorted(i for i, p in pairs.items() if p.category in succeeded)
    choose(browser, "word", "no such word")
    assert shown(browser) == []
    assert browser.find_element("id", "nothing").is_displayed()


def test_the_order_is_by_the_margin_at_the_alpha(opened, study):
    browser = opened()
    for order, sign in (("best", -1), ("worst", 1)):
        choose(browser, "order", order)
        margins = [item(study, pair, 1.0) for pair in shown(browser)]
        assert len(margins) == 60
        assert margins == sorted(margins, key=lambda m, sign=sign: sign * m)
    choose(browser, "order", "")
    assert shown(browser) == [pair.id for pair in study.pairs]


def test_images_are_there_where_one_looks_and_only_there(opened):
    browser = opened()
    assert browser.execute_script("return document.images.length") < 60
    for end in ("first", "last"):
        browser.execute_script(
            f"document.querySelector('.strip:{end}-child').scrollIntoView({{behavior: 'instant'}})"
        )
        settle(browser)
        count = "return document.querySelectorAll('.strip:%s-child img').length"
        other = "last" if end == "first" else "first"
        assert browser.execute_script(count % end) == 4
        assert browser.execute_script(count % other) == 0
    widths = "return [...document.images].map(i => [i.complete, i.naturalWidth])"
    assert {tuple(one) for one in browser.execute_script(widths)} == {(True, 64)}


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
    order = shown(browser)
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


def test_paper_has_the_first_pairs_with_their_images(opened, study):
    browser = opened()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    built = (
        "return [...document.querySelectorAll('.strip')].filter(s => s.offsetParent)"
        ".map(s => s.querySelectorAll('img').length)"
    )
    assert browser.execute_script(built) == [4] * 12
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
