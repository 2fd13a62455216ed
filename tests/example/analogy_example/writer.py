"""An output writer: each cell's mean margin, separated by tabs."""

from pathlib import Path

from analogy.core.files import write_output
from analogy.results.model import Results
from analogy.writers import Context


class TabSeparated:
    """Writes a line for each cell: category, alpha, mean margin."""

    suffixes = (".tsv",)

    def write(self, results: Results, path: Path, context: Context) -> None:
        """Write the file, whole or not at all."""
        lines = [
            f"{cell.category}\t{cell.alpha:g}\t{figures.margin.mean!r}\n"
            for cell, figures in results.analysis.cells.items()
        ]
        write_output(path, "".join(lines).encode())


writer = TabSeparated()
