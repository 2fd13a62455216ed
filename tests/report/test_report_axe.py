"""The report and a site by axe-core in headless Chromium: no violation of WCAG 2.2 at A and AA.

docs/development.md says how axe-core is brought here; without it the tests are skipped.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from extras import extra
from reported import draw_results, margin

from analogy.report import site
from analogy.report.overview import overview
from analogy.results.comparison import compare
from analogy.results.reading import read
from analogy.results.writing import write_results

write_report = extra("analogy.report.html", of="matplotlib").write_report
AXE = os.environ.get("AXE_CORE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AXE, reason="needs axe-core: AXE_CORE is the path of its axe.min.js"),
]

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RUN = """
const done = arguments[arguments.length - 1];
for (const each of document.querySelectorAll("details")) each.open = true;
axe.run(document, {runOnly: arguments[0]}).then(
  found => done(found.violations.map(of => [of.id, of.nodes.map(node => node.html.slice(0, 200))])),
  error => done(String(error)));
"""


@pytest.fixture(scope="module")
def script() -> str:
    return Path(AXE).read_text("utf-8")


@pytest.fixture(scope="module", params=["light", "dark"])
def check(request, chromium, script):
    """Asserts that a page has no violation at three widths, as it is and after each script."""
    feature = {"name": "prefers-color-scheme", "value": request.param}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def checked(page: Path, *opens: str) -> None:
        for width in (1400, 800, 390):
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            for each in ("", *opens):
                chromium.get("about:blank")
                chromium.get(page.as_uri())
                chromium.execute_script(each)
                chromium.execute_script(script)
                assert chromium.execute_async_script(RUN, RULES) == [], (page.name, width, each)

    return checked


@pytest.fixture
def two(make_study):
    """Two runs of other methods, each with its results in its folder."""
    found = []
    for method, shift in (("word", 0.1), ("slerp", 0.0)):
        study = make_study(target=True, method=method)
        results = draw_results(study, margin=lambda job, shift=shift: margin(job) - shift)
        write_results(results, study.folder.path / "results.json")
        found.append((study, results))
    return found


@pytest.mark.parametrize("is_comparison", [False, True], ids=["a run", "a comparison"])
def test_no_violation_of_a_report(check, two, tmp_path, is_comparison):
    (old, _), (study, results) = two
    before = read(old.folder.path) if is_comparison else None
    comparison = None if before is None else compare(before, results)
    if not is_comparison:  # with pairs that are marked
        ids = [pair.id for pair in study.pairs]
        results = replace(results, unknown={ids[0]: ("teal",)}, unread=(ids[1],), uneven=("gone",))
    page = tmp_path / "r.html"
    write_report(results, page, folder=study.folder.path, comparison=comparison, baseline=before)
    check(page, "document.querySelector('#strips .shot').click()")


def test_no_violation_of_a_site(check, two, tmp_path, monkeypatch):
    """Its index, before and after two runs are chosen, and the page of two runs."""
    monkeypatch.setattr(site, "write_report", lambda results, path, folder: None)
    entries = overview([study.folder.path for study, _ in two])
    assert site.write_site(entries, tmp_path / "site").comparisons == 1
    check(
        tmp_path / "site" / "index.html",
        "for (const each of document.querySelectorAll('[type=checkbox]')) each.click()",
    )
    [page] = (tmp_path / "site" / "compare").iterdir()
    check(page)
