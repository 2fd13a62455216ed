"""The results that a run folder keeps: a file for each measurement, and the one that is shown.

Runs with different pairs, strengths, seeds or methods may share a folder. Each measurement has its
own results file there::

    RUN/results/<12 hex digits>.json   the results of one measurement
    RUN/results.json                   a copy of the shown results, which readers of RUN get
    RUN/results-JUDGE.json             the same for the scores of another judge

The content of ``results.json`` is copied into ``results/`` before it is replaced, and new results
are written to ``results/`` last. If the writer is killed, every reader therefore still finds
complete results. A folder of an earlier suite, with only ``results.json``, needs no other handling.
The writer holds the run folder's lock; readers take none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from analogy.core.files import check_own, write_atomically
from analogy.core.records import Cell
from analogy.results.model import RESULTS_NAME, Mean, QualityFigures, Results
from analogy.results.reading import RecordedError, read_file
from analogy.results.scope import Scope, scope_of_results
from analogy.results.writing import encoded, write_results

FOLDER_NAME = "results"
"""The folder for the results of all measurements, in a run folder."""

MOST_READ = 50
"""The most results files of a folder that are read to list its measurements."""

_Place = TypeVar("_Place")
_Figures = TypeVar("_Figures")

# The files that this suite writes there; others are the user's own.
_NAME = re.compile(r"[0-9a-f]{12}\.json")
_LEFT = re.compile(r"([0-9a-f]{12}|results(-[\w.-]+)?)\.json\.\d+\.partial")


@dataclass(frozen=True, slots=True)
class Measured:
    """Results with their scope. ``data``: the content of their file, None for results in memory.

    A file is copied byte by byte, since another suite's may have fields that this one lacks.
    """

    results: Results
    scope: Scope
    data: bytes | None

    @classmethod
    def of(cls, results: Results) -> Measured:
        """Results in memory."""
        return cls(results, scope_of_results(results), None)

    @classmethod
    def of_file(cls, path: Path) -> Measured:
        """Results in a file, or those that a run folder shows. Raises ``RecordedError``."""
        file = read_file(path)
        return cls(file.results, scope_of_results(file.results), file.data)

    @property
    def path(self) -> Path | None:
        """The file from which they were read, None in memory."""
        return self.results.header.path

    @property
    def name(self) -> str:
        """The name of their file in ``results/``."""
        return f"{self.scope.digest}.json"

    def content(self) -> bytes:
        """The content of their file."""
        return encoded(self.results) if self.data is None else self.data

    def lacks(self, other: Measured) -> bool:
        """True if ``other``, of the same measurement, has items that this one lacks."""
        return not _items(other.results) <= _items(self.results)


@dataclass(frozen=True, slots=True)
class Kept:
    """How results were stored in a run folder.

    - ``results``: the new results, with quality figures of an earlier session
      (:func:`with_quality`);
    - ``file``: the file of this measurement;
    - ``has_more``: True if the file had more items than the new results and was not replaced;
    - ``view``: the file that readers get; ``shown``: its measurement;
    - ``why``: why ``view`` shows another measurement than this one, None if it shows this one.
    """

    results: Results
    file: Path
    has_more: bool
    view: Path
    shown: Scope
    why: str | None

    def summary(self) -> Iterator[tuple[str, str]]:
        """A label and a text for each line of a summary; none if ``view`` has the new results."""
        if self.has_more:
            yield (
                "kept", f"{self.file} has more of this measurement than was measured now, and stays"
            )  # fmt: skip
        elif self.why is not None:
            yield "kept", str(self.file)
            yield "", f"{self.view} stays that of {self.shown}, since {self.why}"


# --- writing


def prepare(folder: Path) -> None:
    """Create the folder for results, before a run starts its work.

    Raises ``OSError`` if it cannot be created, or is a link, which another user may have made.
    """
    place = folder / FOLDER_NAME
    check_own(folder, place)
    place.mkdir(parents=True, exist_ok=True)


def keep(results: Results, folder: Path, *, name: str = RESULTS_NAME) -> Kept:
    """Store results in their run folder. The caller must hold its lock.

    ``name``: the file for readers, which is replaced unless :func:`why_stays` gives a reason.
    """
    prepare(folder)
    _sweep(folder)
    view = folder / name
    shown = found(view)
    if shown is not None:
        _adopt(shown, folder)
    results = with_quality(results, folder)
    new = Measured.of(results)
    file = folder / FOLDER_NAME / new.name
    old = found(file)
    has_more = old is not None and new.lacks(old)
    if old is not None and has_more:
        new = old
    data = new.content()
    why = None if shown is None else why_stays(new.scope, shown.scope)
    if shown is None or why is None:
        shown = new
        write_atomically(view, data)
    if not (folder / RESULTS_NAME).exists():  # of a run that another judge scored first
        write_atomically(folder / RESULTS_NAME, data)
    if not has_more:
        write_atomically(file, data)
    return Kept(results, file, has_more, view, shown.scope, why)


def why_stays(new: Scope, shown: Scope) -> str | None:
    """Why new results do not replace the shown ones; None if they do.

    New results replace the shown ones unless the shown ones are finished and the new ones are
    unfinished or only a part of them: of selected pairs while the shown ones are of all pairs, or
    with fewer of the same pairs, strengths or seeds.
    """
    if new.digest == shown.digest or not shown.is_finished:
        return None
    if not new.is_finished:
        return "images of this run are missing"
    chosen = _chosen(new)
    if chosen and not _chosen(shown):
        return f"this run is of chosen pairs ({', '.join(chosen)})"
    return "this run is a part of it" if new.is_part_of(shown) else None


def put(results: Results, path: Path) -> str | None:
    """Write results to the default file unless its present results must stay; returns the reason.

    In addition to :func:`why_stays`, results of a smaller grid do not replace finished results:
    runs of all folders write this file, and the old results may be kept nowhere else.
    """
    old = found(path)
    if old is not None:
        new = Measured.of(results)
        why = why_stays(new.scope, old.scope)
        if new.scope.digest == old.scope.digest:
            why = "it has more of this measurement" if new.lacks(old) else None
        elif why is None and old.scope.is_finished and new.scope.n_images < old.scope.n_images:
            why = "this run is smaller"
        if why is not None:
            return f"{path} stays that of {old.scope}, since {why}"
    write_results(results, path)
    return None


def with_quality(results: Results, folder: Path) -> Results:
    """Results with the quality figures that an earlier session measured and this one did not.

    Both are of the same measurement, and so of the same images. LPIPS by another network, and
    distances from other references, are left out if this session measured its own.
    """
    new = Measured.of(results)
    old = found(folder / FOLDER_NAME / new.name) or found(folder / RESULTS_NAME)
    if old is None or old.scope.digest != new.scope.digest:
        return results
    now, then = results.quality, old.results.quality
    other_lpips = _has_lpips(now) and now.lpips != then.lpips
    kept: dict[Cell, dict[str, Mean]] = {
        cell: {name: mean for name, mean in of.items() if not (other_lpips and name == "lpips")}
        for cell, of in then.cells.items()
    }
    cells = _joined(now.cells, kept)
    order = [*results.analysis.cells]
    alphas, lpips, references = now.alphas, now.lpips, now.references
    if not now.alphas or now.references == then.references:
        alphas = _joined(now.alphas, then.alphas)
    if not _has_lpips(now) and (_has_lpips(then) or not now.cells):
        lpips = then.lpips or lpips
    if not now.alphas and alphas:
        references = then.references or references
    ranked = sorted(cells, key=lambda cell: order.index(cell) if cell in order else len(order))
    quality = QualityFigures(
        {cell: cells[cell] for cell in ranked},
        alphas,
        lpips,
        references,
        metrics=tuple({each.name: each for each in (*then.metrics, *now.metrics)}.values()),
        features=now.features if now.cells or now.alphas else then.features,
    )
    return replace(results, quality=quality)


def _joined(
    now: Mapping[_Place, Mapping[str, _Figures]], then: Mapping[_Place, Mapping[str, _Figures]]
) -> dict[_Place, dict[str, _Figures]]:
    """The figures of both, each place once. If both have a figure, that of ``now`` is taken."""
    made = {}
    for place in dict.fromkeys([*now, *then]):
        mine = now.get(place, {})
        made[place] = {
            **mine,
            **then.get(place, {}),
            **mine,
        }  # in the order of mine, with its values
    return made


def _has_lpips(quality: QualityFigures) -> bool:
    return any("lpips" in metrics for metrics in quality.cells.values())


def _sweep(folder: Path) -> None:
    """Remove leftovers of a killed writer; the lock guarantees that no other writer is active."""
    for place in (folder, folder / FOLDER_NAME):
        for file in place.glob("*.partial"):
            if _LEFT.fullmatch(file.name):
                file.unlink(missing_ok=True)


def _adopt(shown: Measured, folder: Path) -> None:
    """Copy the shown results into ``results/`` if they are missing there: no other may exist."""
    own = folder / FOLDER_NAME / shown.name
    old = found(own)
    if old is None or (old.data != shown.data and not shown.lacks(old)):
        write_atomically(own, shown.content())  # the suite's own file, where no link is followed


# --- reading


def folder_of(path: Path) -> Path:
    """The run folder that contains a results file; any other path is returned unchanged."""
    if not path.is_file():
        return path
    folder = path.parent
    if folder.name == FOLDER_NAME and (folder.parent / "index.sqlite").is_file():
        return folder.parent
    return folder


def found(path: Path) -> Measured | None:
    """The results in a file; None if there is no file, or it cannot be read."""
    if not path.is_file():
        return None
    try:
        return Measured.of_file(path)
    except RecordedError:
        return None


def others(folder: Path, shown: Measured) -> tuple[list[Measured], int]:
    """The folder's other measurements, the latest file first, and how many files were not read.

    Files that are not valid results are left out.
    """
    place = folder / FOLDER_NAME
    files = [file for file in _files(place) if file.name != shown.name]
    files += [file for file in sorted(folder.glob("results-*.json")) if file.is_file()]
    measurements: dict[str, Measured] = {}
    for file in files[:MOST_READ]:
        measured = found(file)
        if measured is not None and measured.scope.digest != shown.scope.digest:
            measurements.setdefault(measured.scope.digest, measured)
    return list(measurements.values()), max(len(files) - MOST_READ, 0)


def notes(path: Path, now: Measured | None = None) -> Iterator[str]:
    """Lines for the reader of a run folder: which results are shown, and which others exist.

    Yields nothing for a folder with one measurement, and for a results file. ``now``: the shown
    results, if they were already read.
    """
    if not path.is_dir():
        return
    shown = now or found(path / RESULTS_NAME)
    if shown is None:
        return
    rest, n_more = others(path, shown)
    if not rest:
        return
    yield f"note: {path} has results of {len(rest) + 1 + n_more} measurements"
    yield f"shown     {path / RESULTS_NAME}: {shown.scope}"
    for one in rest:
        judge = "" if one.scope.judge == shown.scope.judge else f", judge {one.scope.judge}"
        yield f"other     {one.path}: {one.scope}{judge}"
    if n_more:
        yield f"other     {n_more} more files in {path / FOLDER_NAME}"


def _files(place: Path) -> list[Path]:
    try:
        files = [file for file in place.iterdir() if _NAME.fullmatch(file.name) and file.is_file()]
        return sorted(files, key=lambda file: (-file.stat().st_mtime_ns, file.name))
    except OSError:  # the folder is missing, or a file was just replaced
        return []


# --- the contents of results


def _chosen(scope: Scope) -> list[str]:
    """The options that left pairs out, as text."""
    limit = [] if scope.limit is None else [f"--limit {scope.limit}"]
    names = [] if scope.categories is None else [f"--categories {','.join(scope.categories)}"]
    return [*limit, *names]


def _items(results: Results) -> set[tuple[str, str | Cell, str | int]]:
    """Every item with figures, those of unsteered images and target prompts included."""
    analysis = results.analysis
    cells, unsteered = analysis.cells.values(), analysis.unsteered.values()
    made: set[tuple[str, str | Cell, str | int]] = set()
    for figures in (*cells, *unsteered):
        made |= {("steered", figures.cell, pair) for pair in figures.items}
        if figures.null is not None:
            made |= {("random", figures.cell, i) for i in range(figures.null.margin.n_items)}
    for target in analysis.targets.values():
        made |= {("target", target.category, pair) for pair in target.items}
    return made
