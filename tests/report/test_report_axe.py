"""The report by axe-core in headless Chromium: no violation of WCAG 2.2 at A and AA.

docs/development.md says how axe-core is brought here; without it the tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from extras import extra
from reported import draw_results, margin

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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("is_comparison", [False, True], ids=["a run", "a comparison"])
def test_no_violation(chromium, script, make_study, tmp_path, scheme, is_comparison):
    old = make_study(target=True)
    write_results(
        draw_results(old, margin=lambda job: margin(job) - 0.1), old.folder.path / "results.json"
    )
    study = make_study(target=True, method="slerp")
    results = draw_results(study)
    before = read(old.folder.path) if is_comparison else None
    comparison = None if before is None else compare(before, results)
    page = tmp_path / "r.html"
    write_report(results, page, folder=study.folder.path, comparison=comparison, baseline=before)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    for width in (1400, 800, 390):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for opens in ("", "document.querySelector('#strips .shot').click()"):
            chromium.get("about:blank")
            chromium.get(page.as_uri())
            chromium.execute_script(opens)
            chromium.execute_script(script)
            assert chromium.execute_async_script(RUN, RULES) == [], (width, opens)
