"""The overview of runs on this machine: a line for each measurement in each run folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from analogy.core.errors import AnalogyError, StoreError
from analogy.core.strict_json import Json
from analogy.core.text import padded, short_name, shortened, worded
from analogy.report.answer import answer
from analogy.report.numbers import size
from analogy.report.text import wrapped
from analogy.results import kept
from analogy.results.model import RESULTS_NAME, Results
from analogy.store.finding import run_folders
from analogy.store.folder import RunFolder
from analogy.studies.extension import jobs_of

OVERVIEW_VERSION = 1
"""The schema version of a list of runs as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A measurement in a run folder.

    - ``results``, ``file``: its results and their file; None if the run has written none yet;
    - ``model``, ``judge``: names without fingerprints; ``pairs``: their number;
    - ``done``: the share of its items that have all their images; without results, the share of its
      images that exist; 0..1;
    - ``n_bytes``: the size of the whole folder;
    - ``date``: that of the results or of the latest command, ISO 8601;
    - ``fault``: why the folder cannot be read; all other fields are then empty.
    """

    folder: Path
    file: Path | None = None
    results: Results | None = None
    model: str = ""
    method: str = ""
    judge: str = ""
    pairs: int = 0
    done: float = 0.0
    n_bytes: int = 0
    date: str = ""
    fault: str | None = None

    @property
    def answer(self) -> str:
        """The run's answer in a sentence, or the reason for having none."""
        if self.fault is not None:
            return self.fault
        return "No results yet." if self.results is None else answer(self.results)

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON."""
        return {
            "folder": str(self.folder),
            "results": None if self.file is None else str(self.file),
            "model": self.model,
            "method": self.method,
            "judge": self.judge,
            "pairs": self.pairs,
            "done": self.done,
            "answer": None if self.results is None else self.answer,
            "bytes": self.n_bytes,
            "date": self.date or None,
            "fault": self.fault,
        }


def overview(places: Iterable[Path]) -> list[Entry]:
    """The measurements in the run folders at or below these places, the latest run first.

    The measurements of one run folder are together; the one in its results.json is the first. A
    folder that cannot be read has an entry with the reason.
    """
    runs = [_entries(folder) for folder in run_folders(places)]
    runs.sort(key=lambda entries: entries[0].date, reverse=True)
    return [entry for entries in runs for entry in entries]


def settings_that_differ(entries: Sequence[Entry]) -> list[str]:
    """For each entry, its values of the settings that differ between entries, as text.

    An example is ``guidance 6.0; limit 10``. Empty for an entry without results, and if no setting
    differs.
    """
    settings = [{} if one.results is None else _settings(one.results) for one in entries]
    found = [each for each in settings if each]
    names = [name for name in found[0] if len({each[name] for each in found}) > 1] if found else []
    return [
        "; ".join(f"{name.replace('_', ' ')} {worded(each[name])}" for name in names if each)
        for each in settings
    ]


_SUBJECT = (
    "method_version", "window", "steps", "guidance", "second_guidance", "scheduler", "dtype",
)  # fmt: skip
_MEASUREMENT = ("size", "alphas", "seeds", "limit")


def _settings(results: Results) -> dict[str, object]:
    """The settings other than model, method, judge and pairs."""
    header = results.header
    values = [(name, getattr(header.subject, name)) for name in _SUBJECT]
    values += [(name, getattr(header.measurement, name)) for name in _MEASUREMENT]
    return dict(values)


def overview_lines(entries: Sequence[Entry]) -> Iterator[str]:
    """A table of at most 80 columns: a line for each entry, followed by its answer and by its
    values of the settings that differ between entries.
    """
    columns = ("model", "method", "judge", "pairs", "done", "size", "date")
    yield _row(*columns)
    folder = None
    for entry, settings in zip(entries, settings_that_differ(entries), strict=True):
        if entry.folder != folder:
            yield ""
            yield str(entry.folder)
            folder = entry.folder
        if entry.fault is None:
            yield _row(
                entry.model, entry.method, entry.judge, f"{entry.pairs:,}", f"{entry.done:.0%}",
                size(entry.n_bytes), entry.date[:10],
            )  # fmt: skip
        yield from wrapped(entry.answer, indent="  ")
        yield from wrapped(settings, indent="  ")


def _row(
    model: str, method: str, judge: str, pairs: str, done: str, n_bytes: str, date: str
) -> str:
    names = [
        padded(shortened(name, width), width)
        for name, width in ((model, 18), (method, 12), (judge, 14))
    ]
    return f"{' '.join(names)} {pairs:>5} {done:>5} {n_bytes:>7} {date:<10}".rstrip()


def _entries(folder: Path) -> list[Entry]:
    try:
        store = RunFolder(folder, read_only=True)
    except StoreError as error:
        return [Entry(folder=folder, fault=str(error))]
    try:
        shown = kept.found(folder / RESULTS_NAME)
        if shown is None:
            return [_without_results(store)]
        others, _ = kept.others(folder, shown)
        n_bytes = store.n_bytes()
        return [_entry(folder, one, n_bytes) for one in (shown, *others)]
    except AnalogyError as error:
        return [Entry(folder=folder, fault=str(error))]
    finally:
        store.close()


def _entry(folder: Path, one: kept.Measured, n_bytes: int) -> Entry:
    results, analysis = one.results, one.results.analysis
    header = results.header
    margins = [each.margin for of in (analysis.cells, analysis.unsteered) for each in of.values()]
    of = sum(margin.n for margin in margins)
    return Entry(
        folder=folder,
        file=one.path,
        results=results,
        model=short_name(header.subject.model),
        method=header.subject.method,
        judge=short_name(header.measurement.judge),
        pairs=one.scope.n_pairs,
        done=sum(margin.n_items for margin in margins) / of if of else 0.0,
        n_bytes=n_bytes,
        date=header.provenance.time or "",
    )


def _without_results(store: RunFolder) -> Entry:
    commands = store.commands()
    if not commands:
        return Entry(folder=store.path, fault="No command ran here.")
    command = commands[0]
    jobs = jobs_of(command, store)
    time = store.provenance().get("time")
    return Entry(
        folder=store.path,
        model=short_name(command.model),
        method=command.config.method,
        judge=short_name(command.judge),
        pairs=len(command.pairs),
        done=1 - len(store.without_image(jobs)) / len(jobs) if jobs else 0.0,
        n_bytes=store.n_bytes(),
        date=time if isinstance(time, str) else "",
    )
