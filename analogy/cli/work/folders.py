"""The work of the commands ``verify``, ``score`` and ``import``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import typer
from tqdm import tqdm

from analogy.cli.base import check_output, refuse, say, show_lines, write
from analogy.core.errors import AnalogyError, ExitCode, OptionError
from analogy.core.text import analogy_command, is_printable
from analogy.judges.base import find_judge
from analogy.models.places import go_offline, shipped
from analogy.report import text
from analogy.results import kept
from analogy.results.reading import read
from analogy.results.writing import to_json, write_results
from analogy.runs import command_of, command_to_score, scope_of
from analogy.settings.pairs import load_pairs
from analogy.store.folder import RunFolder
from analogy.store.grid import Command
from analogy.studies import repair as repair_module
from analogy.studies.finding import unread_pairs
from analogy.studies.importing import bring_back, bring_in, read_manifest
from analogy.studies.study import Study
from analogy.studies.verify import Verified
from analogy.studies.verify import verify as verify_folder
from analogy.world.known import with_unknown

VERIFICATION_VERSION = 1
"""The schema version of the JSON of ``verify --json``."""


def verify(
    run: Path, *, repair: bool, device: str | None, offline: bool, trust: bool,
    named: Mapping[str, str | None], json: str | None,
) -> None:  # fmt: skip
    """Check a run folder, repair it if requested, and end with exit code 0 if it is whole, else 1.

    ``named``: the model, transformer, LoRA, judge, its weights and the method that the user named,
    by the names of the fields of :class:`~analogy.studies.repair.Confirmed`.
    """
    folder: RunFolder | None = None
    done = None
    try:
        folder = RunFolder(run, read_only=True)
        if repair:
            folder.close()
            folder = RunFolder(run)
        found = _verified(folder)
        if repair:
            confirmed = repair_module.Confirmed(everything=trust, **named)
            done = repair_module.repair(
                folder, found, device=device, offline=offline, confirmed=confirmed, say=say
            )
            found = _verified(folder)
    except repair_module.NotConfirmedError:
        raise
    except AnalogyError as error:
        refuse(ExitCode.UNREADABLE, error)
    finally:
        if folder is not None:
            folder.close()
    code = ExitCode.OK if found.is_whole else ExitCode.FAILED
    data = {"schema_version": VERIFICATION_VERSION, "exit_code": int(code), **found.to_dict()}
    write(data, json)
    show_lines([*([] if done is None else done.lines()), *found.lines()], json)
    raise typer.Exit(code)


def score(
    run: Path, *, clip_model: str, clip_pretrained: str | None, device: str | None, offline: bool,
    results: Path | None, json: str | None, quiet: bool = False, wide: bool = False,
) -> None:  # fmt: skip
    """Score a run's images with another judge, write the results and print the table.

    ``quiet``: print the answer alone; ``wide``: all columns.
    """
    place = kept.folder_of(run)
    RunFolder(place, read_only=True).close()
    if offline:
        go_offline()
    judge = find_judge(clip_model, clip_pretrained, offline=offline)
    if not is_printable(judge.fingerprint):
        raise OptionError(
            "--clip-model: expected a folder whose name has no control characters, got "
            f"{judge.fingerprint!r}; rename it"
        )
    chosen = None if run == place else read(run).header
    name = re.sub(r"[^\w.-]+", "-", judge.fingerprint)
    if results is None:  # in a run folder from someone else, a link may lead anywhere
        check_output(place / f"results-{name}.json", "--results", may_link=False)
    folder = RunFolder(place)
    try:
        command = command_to_score(folder) if chosen is None else command_of(folder, chosen)
        kept.prepare(place)
        unread = unread_pairs(judge, command.pairs)
        study = Study.reopen(
            folder, command, judge=judge, unread=unread, clip_model=clip_model,
            clip_pretrained=clip_pretrained, device=device or command.config.device,
        )  # fmt: skip
        count = study.score(study.jobs())
        study.record(command.lora)
        analysis = study.analysis()
        results_now = with_unknown(study.results(analysis), study.pairs)
        outcome = kept.keep(results_now, place, name=f"results-{name}.json")
        scopes = {str(scope_of(each, is_finished=True)) for each in folder.commands()}
        file = results or place / f"results-{name}.json"
        if results is not None:
            write_results(outcome.results, results)
        elif outcome.why is not None or outcome.has_more:
            file = outcome.file
    except OSError as error:
        refuse(ExitCode.UNREADABLE, error)
    finally:
        folder.close()
    marked = {pair.category for pair in study.pairs if pair.id in results_now.unknown}
    lines = [
        f"model     {study.grid.model}",
        f"judge     {judge.fingerprint}",
        f"run       {place}: {count:,} images scored now",
        *_which(command, scopes),
        *text.verdict_table(analysis, wide=wide, marked=marked),
        *text.reading_notes(analysis, wide=wide),
        *(text.beside(label, told) for label, told in outcome.summary()),
        f"results   {file}",
        *text.answer_lines(analysis, results_now.unknown_words),
    ]
    write(to_json(outcome.results), json)
    show_lines(lines, json, quiet=quiet)


def _which(command: Command, scopes: Collection[str]) -> Iterator[str]:
    """Lines that name the scored measurement, if the folder has several."""
    if len(scopes) > 1:
        yield f"of        {scope_of(command, is_finished=True)}"
        yield "          another: give its results file, RUN/results/FILE, in place of RUN"


def import_(
    run: Path, manifest: Path, *, model_name: str | None, pairs: Path | None, clip_model: str,
    clip_pretrained: str | None,
) -> None:  # fmt: skip
    """Copy the images of a manifest into a run folder, and print how to score them.

    ``model_name``: None for images of exported jobs, whose pairs and judge the folder records.
    """
    folder: RunFolder | None = None
    if model_name is None:
        _bring_back(run, manifest)
        return
    try:
        source = str(pairs or shipped("pairs.csv"))
        entries, known = read_manifest(manifest), load_pairs(source)
        judge = find_judge(clip_model, clip_pretrained)
        folder = RunFolder(run)
        study, new = bring_in(
            folder, entries, known, judge, name=model_name, pairs_file=source,
            clip_model=clip_model, clip_pretrained=clip_pretrained,
        )  # fmt: skip
    finally:
        if folder is not None:
            folder.close()
    _show_imported(run, study.grid.model, new, len(entries), clip_model, clip_pretrained)


def _bring_back(run: Path, manifest: Path) -> None:
    """Copy the images of exported jobs."""
    entries = read_manifest(manifest, exported=True)
    RunFolder(run, read_only=True).close()  # raises if the export's folder is missing
    folder = RunFolder(run)
    try:
        command, new = bring_back(folder, entries)
    finally:
        folder.close()
    config = command.config
    judge = (config.clip_model, config.clip_pretrained)
    _show_imported(run, command.model, new, len(entries), *judge)


def _show_imported(
    run: Path, model: str, new: int, of: int, clip_model: str, clip_pretrained: str | None
) -> None:
    of_judge = ["--clip-model", clip_model]
    if clip_pretrained is not None:
        of_judge += ["--clip-pretrained", clip_pretrained]
    lines = [
        f"model     {model}",
        f"run       {run}: {new:,} images imported, {of - new:,} were already there",
        f"next      {analogy_command('score', run, *of_judge)}",
    ]
    show_lines(lines)


def _verified(folder: RunFolder) -> Verified:
    """The result of checking the folder. Shows a progress bar on a terminal."""
    with tqdm(desc="verifying", unit="img", disable=None, leave=False) as bar:
        return verify_folder(folder, bar.update)
