"""A static site of runs: an index with leaderboards, each run's report, and comparisons of two.

Its pages load nothing from elsewhere, and no server is needed. Jinja2 escapes all text that comes
from a run's files.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from pathlib import Path

from markupsafe import Markup

from analogy._version import __version__
from analogy.core.errors import AnalogyError
from analogy.core.files import write_output
from analogy.core.strict_json import Json, encoded, parse
from analogy.report.boards import Board, boards
from analogy.report.html import write_report
from analogy.report.overview import Entry, settings_that_differ
from analogy.report.templating import environment
from analogy.results import comparison
from analogy.results.changes import Comparison
from analogy.results.differences import measurement_differences
from analogy.results.model import Results

MOST_RUNS = 200
"""The largest number of measurements on a site: the latest ones if there are more."""

MOST_COMPARISONS = 200
"""The largest number of comparisons with a page: those of the latest runs if there are more."""

RECORD = "site.json"
"""The record of a site in its folder: its reports, each with a digest of its results."""

# The page's number for two runs: one of these, or the index of a reason not to compare them (>= 0).
_COMPARED, _NOT_SHOWN = -1, -2


@dataclass(frozen=True, slots=True)
class SitePaths:
    """The pages of a run. ``id``: its name in file names; ``report``: the path of its report,
    relative to the site, None without results.
    """

    id: str
    report: str | None


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """A comparison of two runs; ``old`` (the baseline) and ``new`` are their indices in the site's
    list of runs.
    """

    old: int
    new: int
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    ``reports``: the number of reports made now; ``runs``: all runs on the site; ``comparisons``:
    their pages; ``faults``: for each report that could not be made, its folder and the reason.
    """

    reports: int
    runs: int
    comparisons: int
    faults: tuple[str, ...]


def write_site(
    entries: Sequence[Entry], site: Path, *, most_comparisons: int = MOST_COMPARISONS
) -> Written:
    """Write the site of these runs into the folder ``site``.

    A report whose results have not changed since the site was last written is not made again.
    Raises ``OSError`` if a file cannot be written. A run whose report cannot be made is listed
    without one, with the reason in ``faults``.
    """
    entries = entries[:MOST_RUNS]
    paths = [_paths(entry) for entry in entries]
    before, now = _record(site), {}
    faults: list[str] = []
    made = 0
    for i, (entry, own) in enumerate(zip(entries, paths, strict=True)):
        if own.report is None or entry.results is None or entry.file is None:
            continue
        digest = hashlib.sha256(__version__.encode() + entry.file.read_bytes()).hexdigest()
        if before.get(own.report) != digest or not (site / own.report).is_file():
            try:
                write_report(entry.results, site / own.report, folder=entry.folder)
            except AnalogyError as error:
                faults.append(f"{entry.folder}: {error}")
                paths[i] = SitePaths(own.id, None)
                continue
            made += 1
        now[own.report] = digest
    templates = environment()
    outcomes, reasons, compared = _compared(entries, most_comparisons)
    for (i, j), found in compared.items():
        page = templates.get_template("site_compare.html").render(
            old=entries[found.old], new=entries[found.new], old_paths=paths[found.old],
            new_paths=paths[found.new], comparison=found.comparison,
        )  # fmt: skip
        _write(site / _compare_page(paths[i], paths[j]), page)
    script = templates.get_template("site.js").render()
    data: dict[str, Json] = {
        "ids": [own.id for own in paths],
        "outcomes": outcomes,
        "reasons": reasons,
        "most": most_comparisons,
    }
    page = templates.get_template("site.html").render(
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=data, entries=entries, paths=paths, boards=_grouped(boards(entries)),
        dates=[_date(entry) for entry in entries], settings=settings_that_differ(entries),
        compare_page=lambda i, j: _compare_page(paths[min(i, j)], paths[max(i, j)])
        if (min(i, j), max(i, j)) in compared else None,
    )  # fmt: skip
    _write(site / "index.html", page)
    write_output(site / RECORD, encoded({"suite": __version__, "reports": now}))
    return Written(made, len(entries), len(compared), tuple(faults))


def _write(path: Path, page: str) -> None:
    write_output(path, page.encode("utf-8", "backslashreplace"))


def _record(site: Path) -> dict[str, str]:
    """Path to digest of the reports that were last written; empty if the record is missing or
    invalid.
    """
    try:
        reports = parse((site / RECORD).read_text("utf-8"))["reports"]
        return {str(name): str(digest) for name, digest in reports.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _paths(entry: Entry) -> SitePaths:
    """The pages of a run. Names depend on its folder and results file only, so they are stable."""
    what = f"{entry.folder.resolve()}\0{entry.file and entry.file.name}"
    digest = hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", entry.folder.name)[:40].strip("-") or "run"
    own = f"{name}-{digest}"
    return SitePaths(own, None if entry.results is None else f"runs/{own}.html")


def _compare_page(old: SitePaths, new: SitePaths) -> str:
    return f"compare/{old.id}--{new.id}.html"


def _date(entry: Entry) -> str:
    try:
        return datetime.fromisoformat(entry.date).strftime("%Y-%m-%d")
    except ValueError:
        return ""


def _compared(
    entries: Sequence[Entry], most: int
) -> tuple[list[list[int]], list[str], dict[tuple[int, int], ComparedRuns]]:
    """The outcome for every two runs, the reasons not to compare two, and the comparisons.

    Outcomes are a list for each run, with an entry for each run before it in ``entries``: the index
    of a reason, ``_COMPARED`` or ``_NOT_SHOWN``. Of two runs the earlier one, which comes second,
    is the baseline; if it lacks categories of the later one, the later one is the baseline.
    """
    outcomes: list[list[int]] = [[_NOT_SHOWN] * i for i in range(len(entries))]
    reasons: dict[str, int] = {}
    compared: dict[tuple[int, int], ComparedRuns] = {}
    for i, j in combinations(range(len(entries)), 2):
        reason, sides = _sides(entries[i].results, entries[j].results)
        if sides is None:
            outcomes[j][i] = reasons.setdefault(reason, len(reasons))
        elif len(compared) < most:
            old, new = (i, j) if sides[0] is entries[i].results else (j, i)
            compared[i, j] = ComparedRuns(old, new, comparison.compare(*sides))
            outcomes[j][i] = _COMPARED
    return outcomes, list(reasons), compared


def _sides(new: Results | None, old: Results | None) -> tuple[str, tuple[Results, Results] | None]:
    """An empty text with the baseline and the run to compare; or a reason not to, and None."""
    if new is None or old is None:
        return "one of them has no results yet", None
    differences = measurement_differences(old.header, new.header)
    if not differences:
        return "", (old, new)
    if not measurement_differences(new.header, old.header):
        return "", (new, old)
    return "; ".join(map(str, differences)), None


def _grouped(found: Sequence[Board]) -> list[list[Board]]:
    """Boards in groups whose members differ in nothing but the judge."""
    groups: list[list[Board]] = []
    for board in found:
        for group in groups:
            if _but_judge(group[0]) == _but_judge(board):
                group.append(board)
                break
        else:
            groups.append([board])
    return groups


def _but_judge(board: Board) -> tuple[object, ...]:
    of = board.measurement
    return of.size, of.seeds, of.alphas, of.limit, dict(of.pairs)
