"""Reports as trees."""

from __future__ import annotations

from extras import extra

from analogy.results.reading import from_json

plots = extra("analogy.report.plots", of="matplotlib")

html = extra("analogy.report.html", of="matplotlib")


def render(results, **given):
    """The page of results as JSON."""
    return html.render(from_json(results), **given)


def table(page, name):
    """A table's head and rows as text."""
    found = page.id(f"table-{name}")
    heads = [head.text for head in found.all("th")]
    return [dict(zip(heads, row, strict=True)) for row in found.rows()]


def images(page):
    """Every image of the gallery by its alternative text."""
    return {img["alt"]: img for img in page.id("strips").all("img")}
