"""The time that ``--sequential`` saves: the main job in full and sequential, side by side.

``python -m tools.sequential_saving FOLDER`` runs both from empty run folders in FOLDER, with the
same models. It prints the images, seconds of generation and successes of each, and the ratios of
images and seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import analogy
from analogy.core.records import Verdict
from analogy.store.folder import RunFolder


class Cost(NamedTuple):
    """A run's images, seconds of generation, and number of cells that succeeded."""

    images: int
    seconds: float
    successes: int


def cost(folder: Path, *, sequential: bool, limit: int | None) -> Cost:
    """Run the main job into an empty folder, and measure it.

    Raises ``FileExistsError`` if the folder exists, since existing images would take no time.
    """
    folder.mkdir(parents=True)
    run = analogy.run(
        model="embedded", sequential=sequential, limit=limit, run_dir=folder,
        results=folder / "out.json",
    )  # fmt: skip
    store = RunFolder(folder, read_only=True)
    try:
        rate, images = store.rate("generate"), len(store.image_rows())
    finally:
        store.close()
    if rate is None:
        raise RuntimeError(f"{folder}: expected a timed generation, got none")
    cells = run.figures.analysis.cells.values()
    successes = sum(cell.margin.verdict is Verdict.SUCCESS for cell in cells)
    return Cost(images, images / rate, successes)


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder for both runs")
    parser.add_argument("--limit", type=int, help="the first so many pairs of each category")
    given = parser.parse_args()
    costs = {
        name: cost(given.folder / name, sequential=name == "sequential", limit=given.limit)
        for name in ("sequential", "full")
    }
    for name, of in costs.items():
        print(
            f"{name:<10} {of.images:>6,} images {of.seconds:>8.1f} s of generation "
            f"{of.successes:>3} successes"
        )
    part, whole = costs["sequential"], costs["full"]
    print(f"images {part.images / whole.images:.3f}, time {part.seconds / whole.seconds:.3f}")


if __name__ == "__main__":
    main()
