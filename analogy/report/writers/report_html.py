"""The writer ``html``: the report, one page with every image and figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from analogy.core.deferred import deferred
from analogy.results.model import Results
from analogy.writers import Context

if TYPE_CHECKING:
    from analogy.report import html
else:
    html = deferred("analogy.report.html")  # its packages may not be installed


class HtmlReport:
    """Writes the report. Its packages are an optional extra, so it imports them only to write."""

    suffixes = (".html", ".htm")
    packages = ("jinja2", "matplotlib")
    install = "pip install 'analogy-bench[report]'"

    def write(self, results: Results, path: Path, context: Context) -> None:
        """Write the page, with a section on the comparison if there is one."""
        html.write_report(
            results,
            path,
            folder=context.folder,
            comparison=context.comparison,
            baseline=context.baseline,
            full_images=context.full_images,
        )


writer = HtmlReport()
