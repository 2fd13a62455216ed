"""The writer ``json``: all results, see docs/results.md."""

from __future__ import annotations

from pathlib import Path

from analogy.results.model import Results
from analogy.results.writing import write_results
from analogy.writers import Context


class JsonResults:
    """Writes results.json."""

    suffixes = (".json",)

    def write(self, results: Results, path: Path, context: Context) -> None:
        """Write the results as strict JSON."""
        write_results(results, path)


writer = JsonResults()
