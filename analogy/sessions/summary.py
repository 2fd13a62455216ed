"""The lines that a run prints at its end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from analogy.models import defaults
from analogy.models.places import shipped
from analogy.report import text
from analogy.report.text_quality import quality_table
from analogy.report.text_sequential import looks_table
from analogy.results import comparison
from analogy.results.differences import subject_differences
from analogy.results.model import Analysis
from analogy.sessions.session import Session
from analogy.settings.config_file import CONFIG_NAME, settings_line
from analogy.settings.pairs import named, named_ids
from analogy.studies.study import Study
from analogy.world.known import unknown_note


def interrupted(session: Session) -> str:
    """How to continue after Ctrl-C."""
    return (
        f"interrupted: finished work is kept in {session.study.folder.path}; the same command "
        "continues from there"
    )


def summary(session: Session, analysis: Analysis) -> Iterator[str]:
    """The verdict table (category x alpha, alpha 0 included, and overall) and all blocks below."""
    study, wide = session.study, session.request.wide
    for lines in (
        text.verdict_table(analysis, session.known, wide=wide, marked=_marked(session)),
        _mark_lines(session),
        looks_table(analysis, study.saved()),
        text.failure_lines(study.failures(study.jobs())),
        text.reading_notes(analysis, wide=wide),
        text.trend_table(analysis),
        text.null_table(analysis, wide=wide),
        text.target_table(analysis),
        quality_table(study.quality, wide=wide),
        _against_published(session, analysis),
        _against_baseline(session),
        _rates(session),
    ):
        block = list(lines)
        yield from block
        if block:
            yield ""


def closing(session: Session, analysis: Analysis) -> Iterator[str]:
    """The lines after the summary; the last one is the answer."""
    yield from text.answer_lines(analysis, session.unknown_words())


def heading(session: Session) -> Iterator[str]:
    """The settings of the run and the amount of work left; printed before the work."""
    for label, told in _heading(session):
        yield from text.labelled(label, told)


def _heading(session: Session) -> Iterator[tuple[str, str]]:
    """The heading's labels, each with its text."""
    study, run = session.study, session.study.config
    yield "model", study.grid.model
    yield "judge", study.judge.fingerprint
    seeds = ", ".join(map(str, run.seeds))
    sampling = f"{study.sampling_text}, {run.dtype} on {run.device}, seeds {seeds}"
    yield "steering", f"{run.steering}; {sampling}"
    yield "run", str(study.folder.path)
    given = settings_line(session.request)
    yield "settings", f"{given or 'the defaults'}; all in {study.folder.path / CONFIG_NAME}"
    if study.folder.note:
        yield "note", study.folder.note
    yield "baseline", session.note
    if session.baseline is not None:
        different = subject_differences(session.baseline.header, study.header())
        if different:
            yield "differs", "; ".join(map(str, different))
    yield from unread_notes(study)
    for note in _unknown_notes(session):
        yield "unknown", note
    if session.is_strict:
        yield "strict", "no cell is expected to fail"
    if run.limit is not None:
        yield "limit", f"{run.limit} pairs per category: not the whole measurement"
    yield "pairs", f"{len(study.pairs):,} in {_categories(study)}"
    yield "images", _images(session)


def _unknown_notes(session: Session) -> Iterator[str]:
    """The words that the embedded model, or judge, was not trained on, if there are any."""
    if session.unknown:
        words = session.unknown_words()
        yield (
            f"{unknown_note(words, model=session.study.config.model)}; "
            f"{len(session.unknown):,} of {len(session.study.pairs):,} pairs"
        )


def _marked(session: Session) -> list[str]:
    """The categories with a pair of unknown words."""
    return [name for name in session.study.categories if session.unknown_words(name)]


def _mark_lines(session: Session) -> Iterator[str]:
    for note in _unknown_notes(session):
        yield from text.wrapped(f"*: {note}, whose images and margins say nothing about the words")


def _categories(study: Study) -> str:
    count = len(study.categories)
    return f"{count:,} {'category' if count == 1 else 'categories'}"


def _images(session: Session) -> str:
    """The number of images to make, and of those that exist."""
    study, jobs = session.study, session.jobs()
    missing = len(study.missing(jobs))
    there = f"{len(jobs) - missing:,} are there"
    if study.config.sequential:
        return f"{missing:,} to make for the next looks, {there}; how many in all, the looks decide"
    return f"{missing:,} to make, {there}" if missing else f"all {len(jobs):,} are there"


def unread_notes(study: Study) -> Iterator[tuple[str, str]]:
    """A label and a text for each kind of pair that is not judged, not steered or left out."""
    for label, ids, why in (
        ("unread", study.unread, "the judge reads both prompts as one; in no figure"),
        ("unsteered", study.unsteered, "the model reads as one what the method steers between"),
    ):
        pairs = [pair for pair in study.pairs if pair.id in ids]
        if pairs:
            yield label, f"{len(pairs):,} of {len(study.pairs):,} pairs: {why} ({named(pairs)})"
    if study.uneven:
        count = f"{len(study.uneven):,} of {len(study.pairs) + len(study.uneven):,} pairs"
        why = "left out, since their prompts have different numbers of tokens"
        yield "uneven", f"{count}: {why} ({named_ids(study.uneven)})"


def _against_published(session: Session, analysis: Analysis) -> Iterator[str]:
    if session.study.config.model.partition("@")[0] != defaults.DEFAULT_GPU_MODEL:
        return
    published = json.loads(shipped("baselines/ssd-1b-published.json").read_text("utf-8"))
    yield from text.published_lines(published, analysis.overall)


def _against_baseline(session: Session) -> Iterator[str]:
    if not session.changes:
        return
    counts = Counter(change.outcome for change in session.changes.values())
    yield "against the baseline: " + ", ".join(
        f"{counts[outcome]} {outcome}" for outcome in comparison.Outcome if counts[outcome]
    )
    cells = [change for cell, change in session.changes.items() if cell is not None]
    if cells:
        yield f"  {comparison.concluded(cells, session.changes.get(None))}"
    for change in session.changes.values():
        if change.outcome in (comparison.Outcome.REGRESSED, comparison.Outcome.IMPROVED):
            yield f"  {change.message()}"


def _rates(session: Session) -> Iterator[str]:
    folder = session.study.folder
    for stage, verb in (("generate", "generated"), ("score", "scored")):
        rate = folder.rate(stage)
        yield f"{verb:<9} " + ("nothing yet" if rate is None else f"{rate:.1f} images/s")
    for name, rate in folder.worker_rates().items():
        yield f"  worker  {name}: {rate:.1f} images/s"
    peak = folder.peak_memory()
    if peak is not None:
        yield f"memory    {peak / 2**30:.1f} GiB of the device at most"
    if session.update is not None:
        yield f"baseline  {session.note}"
    if session.kept is not None:
        for label, told in session.kept.summary():
            yield from text.labelled(label, told)
    if session.kept is None or session.stays is None:
        yield f"results   {session.results}"
    else:
        file = session.kept.file
        yield f"results   {file}"
        yield from text.labelled("note", f"{session.stays}; --results FILE writes these results")
    if session.request.report is not None:
        yield f"report    {session.request.report}"
    for output in session.request.write:
        yield f"written   {output.path}"
