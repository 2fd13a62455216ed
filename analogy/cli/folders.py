"""The commands on a run folder: ``verify``, ``score`` and ``import``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from analogy.cli.base import (
    CHECKING,
    Json,
    a_path,
    app,
    check_output,
    checked_output,
    option,
    refuse,
    say,
    show_lines,
    write,
)
from analogy.core.errors import AnalogyError, ExitCode, OptionError
from analogy.core.text import analogy_command, is_printable
from analogy.judges.base import find_judge
from analogy.models.places import go_offline, shipped
from analogy.results import kept
from analogy.results.reading import read
from analogy.results.writing import to_json, write_results
from analogy.settings.pairs import load_pairs

if TYPE_CHECKING:
    from analogy.store.folder import RunFolder
    from analogy.store.grid import Command
    from analogy.studies.verify import Verified

VERIFICATION_VERSION = 1
"""The schema version of what ``verify --json`` writes."""


@app.command(rich_help_panel=CHECKING)
def verify(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    repair: Annotated[
        bool, option("--repair", help="Generate damaged images again, and only these.")
    ] = False,
    device: Annotated[
        str | None, option(help="The device for --repair [default: the run's].")
    ] = None,
    offline: Annotated[bool, option("--offline", help="Never use the network.")] = False,
    trust: Annotated[
        bool, option("--trust", help="Let --repair load every model and method that it names.")
    ] = False,
    model: Annotated[str | None, option(help="The run's model, for --repair.")] = None,
    lora: Annotated[str | None, option(help="The run's LoRA, for --repair.")] = None,
    clip_model: Annotated[str | None, option(help="The run's judge, for --repair.")] = None,
    clip_pretrained: Annotated[
        str | None, option(help="The judge's weights, for --repair.")
    ] = None,
    method: Annotated[
        str | None, option(help="The run's method, for --repair, if it is not installed.")
    ] = None,
    json: Json = None,
) -> None:
    """Check a run folder: no image is damaged, and no image of the grid is missing.

    A folder may come from anyone. --repair therefore loads only the embedded models and installed
    methods. It loads others if you name them again here, and all of them with --trust.

    Exit code: 0 no damage and nothing missing, 1 damaged or incomplete (also after --repair),
    2 --repair would load models or methods that only the folder names, 4 the folder cannot be read
    or repaired.
    """
    from analogy.store.folder import RunFolder
    from analogy.studies import repair as repair_module

    folder: RunFolder | None = None
    done = None
    try:
        folder = RunFolder(run, read_only=True)
        if repair:
            folder.close()
            folder = RunFolder(run)
        found = _verified(folder)
        if repair:
            confirmed = repair_module.Confirmed(
                trust, model, lora, clip_model, clip_pretrained, method
            )
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


@app.command(rich_help_panel=CHECKING)
def score(
    run: Annotated[Path, typer.Argument(help="A run folder, or a results file in it.")],
    clip_model: Annotated[str, option(help="The judge, as for 'run'.")],
    clip_pretrained: Annotated[
        str | None, option(help="The judge's weights, as for 'run'.", parser=a_path)
    ] = None,
    device: Annotated[
        str | None, option(help="The device to score on [default: the run's].")
    ] = None,
    offline: Annotated[bool, option("--offline", help="Never use the network.")] = False,
    results: Annotated[
        Path | None,
        option(
            metavar="FILE",
            help="The file to write [default: RUN/results-JUDGE.json].",
            callback=checked_output,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Score a run's images with another judge, print the table and write the results.

    Nothing is generated, and only the judge is loaded. RUN/results.json keeps the run's results.

    Exit code: 0 scored, 2 no such judge, 4 the run cannot be read or written.
    """
    from analogy.report import text
    from analogy.runs import command_of, command_to_score, scope_of
    from analogy.store.folder import RunFolder
    from analogy.studies.study import Study, unread_pairs

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
    if results is None:  # a stranger's link may lead anywhere
        check_output(place / f"results-{name}.json", "--results", may_link=False)
    folder = RunFolder(place)
    try:
        changed: dict[str, Any] = {"clip_model": clip_model, "clip_pretrained": clip_pretrained}
        if device is not None:
            changed["device"] = device
        command = command_to_score(folder) if chosen is None else command_of(folder, chosen)
        kept.prepare(place)
        unread = unread_pairs(judge, command.pairs)
        study = Study.reopen(folder, command, judge=judge, unread=unread, **changed)
        count = study.score(study.jobs())
        study.record(command.lora)
        analysis = study.analysis()
        outcome = kept.keep(study.results(analysis), place, name=f"results-{name}.json")
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
    lines = [
        f"model     {study.grid.model}",
        f"judge     {judge.fingerprint}",
        f"run       {place}: {count:,} images scored now",
        *_which(command, scopes),
        *text.verdict_table(analysis),
        *text.reading_notes(analysis),
        *outcome.lines(),
        f"results   {file}",
    ]
    write(to_json(outcome.results), json)
    show_lines(lines, json)


def _which(command: Command, scopes: Collection[str]) -> Iterator[str]:
    """Which of the folder's measurements was scored, if it has several."""
    from analogy.runs import scope_of

    if len(scopes) > 1:
        yield f"of        {scope_of(command, is_finished=True)}"
        yield "          another: give its results file, RUN/results/FILE, in place of RUN"


@app.command("import", rich_help_panel=CHECKING)
def import_(
    run: Annotated[Path, typer.Argument(help="A new or existing run folder.")],
    manifest: Annotated[
        Path, typer.Argument(help="CSV or JSON lines: pair_id, alpha, seed, file [, method].")
    ],
    model_name: Annotated[str, option(help="A name for the model or tool that made the images.")],
    pairs: Annotated[
        Path | None, option(metavar="FILE", help="The word pairs [default: the suite's own].")
    ] = None,
    clip_model: Annotated[str, option(help="The judge for 'score'.")] = "embedded",
    clip_pretrained: Annotated[
        str | None, option(help="The judge's weights.", parser=a_path)
    ] = None,
) -> None:
    """Copy images of other tools into a run folder, to be scored with 'score'.

    Exit code: 0 imported, 2 the manifest or a file in it cannot be used, 4 the folder cannot be
    read or written.
    """
    from analogy.store.folder import RunFolder
    from analogy.studies.importing import bring_in, read_manifest

    folder: RunFolder | None = None
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
    of_judge = ["--clip-model", clip_model]
    if clip_pretrained is not None:
        of_judge += ["--clip-pretrained", clip_pretrained]
    lines = [
        f"model     {study.grid.model}",
        f"run       {run}: {new:,} images imported, {len(entries) - new:,} were already there",
        f"next      {analogy_command('score', run, *of_judge)}",
    ]
    show_lines(lines)


def _verified(folder: RunFolder) -> Verified:
    """What a check of the folder finds; shows a progress bar on a terminal."""
    from analogy.studies.verify import verify as verify_folder

    with tqdm(desc="verifying", unit="img", disable=None, leave=False) as bar:
        return verify_folder(folder, bar.update)
