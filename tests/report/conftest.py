"""What the report's tests share: a study with an image and a score for each job, and its page."""

from __future__ import annotations

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
