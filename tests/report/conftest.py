"""What the report's tests share: a study with an image and a score for each job, and its page."""

from __future__ import annotations

import shutil

import pytest
from extras import extra
from reported import draw, read_page


@pytest.fixture
def study(make_study, monkeypatch):
    """Two categories of six pairs at alpha 0, 0.5 and 1 with two seeds; plots are left empty."""
    plots = extra("analogy.report.plots", of="matplotlib")
    monkeypatch.setattr(plots, "svg", lambda width, height, draw: "<svg></svg>")
    return make_study()


@pytest.fixture
def page(study):
    """The report of the whole study, as a tree."""
    render = extra("rendered", of="matplotlib").render
    return read_page(render(draw(study), folder=study.folder.path))


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests; it keeps a log of its console and of the network."""
    extra("selenium")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()
