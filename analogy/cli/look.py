"""The commands that show images: ``steer``, of one pair of prompts, and ``report``, of a run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from analogy.cli.base import (
    GENERATING,
    REPORTING,
    Json,
    app,
    check_output,
    checked_output,
    exit_code,
    option,
    refuse,
    say_which,
    show_lines,
    with_options,
    write,
)
from analogy.core.errors import (
    AnalogyError,
    ExitCode,
    FieldError,
    ModelError,
    OptionError,
    StoreError,
)
from analogy.core.records import Pair
from analogy.core.registry import ExtensionError
from analogy.core.words import folded, has_word
from analogy.report.pictures import picture_format, save
from analogy.results import kept
from analogy.results.model import RESULTS_NAME
from analogy.results.reading import RecordedError, read
from analogy.settings.pairs import MAX_FIELD_CHARACTERS
from analogy.settings.request import RunRequest
from analogy.steering.base import METHODS, Need
from analogy.writers import Context, Output, by_suffix
from analogy.writers import write as write_output

STEERED_VERSION = 1
"""The schema version of what ``steer --json`` writes."""

STEER_OPTIONS = (
    "gpu", "device", "offline", "model", "lora", "clip_model", "clip_pretrained", "clip_dtype",
    "alphas", "seeds", "method", "steps", "guidance", "size", "steer_from", "steer_until", "dtype",
    "memory",
)  # fmt: skip


@app.command(rich_help_panel=GENERATING)
@with_options(STEER_OPTIONS, seeds="0")
def steer(
    request: RunRequest,
    source_prompt: Annotated[str, typer.Argument(help="The prompt to start from: 'a red car'.")],
    target_prompt: Annotated[str, typer.Argument(help="The prompt to come to: 'a blue car'.")],
    output: Annotated[
        Path,
        option(
            "--output",
            "-o",
            metavar="FILE.png",
            help="The image file to write.",
            callback=checked_output,
        ),
    ] = Path("steer.png"),
    words: Annotated[
        tuple[str, str] | None,
        option(
            metavar="SOURCE TARGET",
            help="The word pair, such as red blue [default: what differs between the prompts].",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Steer one pair of prompts and draw a strip: the source, each alpha, the target's own image.

    Each image has its margin below it: above 0 it is closer to the target prompt. Only the strip is
    kept.

    Exit code: 0 drawn, 2 wrong usage, 4 the strip cannot be written, or memory is full.
    """
    pair = pair_of(source_prompt, target_prompt, words)
    try:
        picture_format(output)
    except FieldError as error:
        refuse(ExitCode.USAGE, f"-o: {error}")

    from analogy.report.strips import draw_strip, generate_strip
    from analogy.studies.study import Study

    try:
        needs = METHODS.get(request.method).needs
    except AnalogyError as error:
        refuse(ExitCode.USAGE, f"--method: {error}")
    if Need.OTHERS in needs:
        refuse(
            ExitCode.USAGE,
            f"--method: expected a method of one pair alone, got {request.method}, which needs "
            "the category's other pairs; choose another, or write the pairs into a file and give "
            "it to 'analogy run --pairs FILE'",
        )
    with tempfile.TemporaryDirectory(prefix="analogy-steer-") as folder:
        with exit_code(ExitCode.USAGE):
            study = Study.open(replace(request, run_dir=folder), [pair])
        try:
            study.prepare(study.jobs())
            strip = generate_strip(study, pair, study.config.seeds)
            save(draw_strip(study, pair, strip), output)
        except ModelError as error:
            refuse(ExitCode.USAGE, error)
        except OSError as error:
            refuse(ExitCode.UNREADABLE, error)
        finally:
            study.close()
    config = study.config
    data = {
        "schema_version": STEERED_VERSION,
        "source_prompt": pair.source_prompt,
        "target_prompt": pair.target_prompt,
        "words": [pair.source_word, pair.target_word],
        "model": study.grid.model,
        "judge": study.judge.fingerprint,
        "config": config.to_dict(),
        "strip": str(output),
        "images": [entry.to_dict() for entry in strip],
    }
    write(data, json)
    lines = [
        f"model     {study.grid.model}",
        f"judge     {study.judge.fingerprint}",
        f"steering  {config.steering}, {pair.source_word} -> {pair.target_word}; "
        f"{config.steps} steps, guidance {config.guidance:g}, {config.size} px, {config.dtype} on "
        f"{config.device}",
        f"prompts   {pair.source_prompt} -> {pair.target_prompt}",
        "",
        f"{'seed':<5} {'image':<15} {'margin':>8} {'to target':>10} {'to source':>10}",
        *(
            f"{entry.seed:<5} {entry.title:<15} "
            + (entry.problem or f"{entry.margin:>+8.4f} {entry.cos_target:>10.4f} "
               f"{entry.cos_source:>10.4f}")
            for entry in strip
        ),
        "",
        "margin: above 0 the image is closer to the target prompt than to the source prompt.",
        "One pair shows what happens and decides nothing: 'analogy run' measures.",
        f"strip     {output}",
    ]  # fmt: skip
    show_lines(lines, json)


def pair_of(source: str, target: str, words: tuple[str, str] | None) -> Pair:
    """A pair of two prompts. Its words: those given, or what differs between the prompts.

    That is the rest of each prompt without the words that both begin with and both end with. Raises
    ``OptionError`` if the prompts do not differ, or if it is not clear which words do.
    """
    source, target = " ".join(source.split()), " ".join(target.split())
    if not source or not target:
        raise OptionError("expected two prompts, got an empty one")
    if (longest := max(len(source), len(target))) > MAX_FIELD_CHARACTERS:
        raise OptionError(
            f"expected prompts of at most {MAX_FIELD_CHARACTERS:,} characters, got {longest:,}"
        )
    if folded(source) == folded(target):
        raise OptionError(
            f"expected two prompts that differ, got {source!r} twice; a pair leads from one "
            "concept to another, such as 'a red car' to 'a blue car'"
        )
    if words is None:
        words = _difference(source.split(), target.split())
    for side, prompt, word in zip(("source", "target"), (source, target), words, strict=True):
        if not word:
            raise OptionError(
                f"expected words of the {side} prompt that stand where the other's do, got none in "
                f"{prompt!r}; say which words are the pair with --words SOURCE TARGET"
            )
        if not has_word(prompt, word):
            raise OptionError(
                f"--words: expected whole words of the {side} prompt {prompt!r}, got {word!r}; "
                "write them as they stand there"
            )
    if folded(words[0]) == folded(words[1]):
        raise OptionError(
            f"--words: expected two that differ, got {words[0]!r} twice; say which words are the "
            "pair with --words SOURCE TARGET"
        )
    return Pair("pair", "pair", *words, source, target)


def _difference(source: list[str], target: list[str]) -> tuple[str, str]:
    """The rest of two lists of words without their common start and end."""
    a, b = [folded(word) for word in source], [folded(word) for word in target]
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    left, right = source[start : len(a) - end], target[start : len(b) - end]
    if min(len(left), len(right)) > 1 and {folded(left[0]), folded(right[0])} <= {"a", "an"}:
        left, right = left[1:], right[1:]  # "a red" to "an orange"
    return " ".join(left).strip(",.;:!?"), " ".join(right).strip(",.;:!?")


@app.command(rich_help_panel=REPORTING)
def report(
    run: Annotated[Path, typer.Argument(help="A run folder or its results file.")],
    output: Annotated[
        Path | None,
        option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write: .html, .json, .csv or .md [default: RUN/report.html].",
            callback=checked_output,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        option(metavar="OLD", help="A results file or run folder to compare with."),
    ] = None,
    full_images: Annotated[
        bool,
        option("--full-images", help="Also copy the full-size images into a folder beside it."),
    ] = False,
) -> None:
    """Write a run as one HTML file: the answer, plots, tables and every pair's images.

    The suffix of -o may ask for another format, as that of 'run --write' does: .csv for the cells,
    .md for the verdicts. A file of an unknown suffix is HTML.

    Exit code: 0 written, 2 wrong usage or a file that cannot be read or written, 3 a baseline of
    another measurement.
    """
    from analogy.results.comparison import NotComparableError, compare
    from analogy.sessions.requirements import check_writer

    writer = "html" if output is None else by_suffix(str(output)) or "html"
    check_writer("-o", writer)
    if full_images and writer != "html":
        raise OptionError(place="--full-images", expected="an HTML report", got=str(output))
    folder = kept.folder_of(run)
    if output is None:
        output = folder / _report_name(run)
        check_output(output, "-o", may_link=False)  # a stranger's link may lead anywhere
    try:
        results = read(run)
        this_run = replace(results, header=replace(results.header, path=None))
        comparison = None if baseline is None else compare(read(baseline), this_run)
        context = Context(folder, comparison, full_images)
        write_output(Output(str(output), writer), results, context)
    except NotComparableError as error:
        refuse(ExitCode.NOT_COMPARABLE, error)
    except (RecordedError, StoreError, ExtensionError, OSError) as error:
        refuse(ExitCode.USAGE, error)
    for path in dict.fromkeys((run, *([] if baseline is None else [baseline]))):
        say_which(path)
    show_lines([f"report {output} written"])


def _report_name(run: Path) -> str:
    """A name for each results file of a run folder, so that no report replaces another."""
    if run.is_dir() or run.name == RESULTS_NAME:
        return "report.html"
    if not (kept.folder_of(run) / "index.sqlite").is_file():
        return "report.html"
    return f"report-{run.stem.removeprefix('results-')}.html"
