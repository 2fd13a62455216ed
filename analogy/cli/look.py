"""The commands that show images: ``steer``, of one pair of prompts, and ``report``, of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analogy.cli.base import (
    GENERATING,
    REPORTING,
    Json,
    app,
    checked_output,
    examples,
    option,
    refuse,
    with_options,
)
from analogy.cli.completion import runs
from analogy.core.deferred import deferred
from analogy.core.errors import AnalogyError, ExitCode, FieldError, OptionError
from analogy.core.records import Pair
from analogy.core.words import folded, has_word
from analogy.report.pictures import picture_format
from analogy.settings.pairs import MAX_FIELD_CHARACTERS
from analogy.settings.request import RunRequest
from analogy.steering.base import METHODS, Need

if TYPE_CHECKING:
    from analogy.cli.work import report as work_report
    from analogy.cli.work import steer as work_steer
else:
    work_report = deferred("analogy.cli.work.report")
    work_steer = deferred("analogy.cli.work.steer")

STEER_OPTIONS = (
    "gpu", "device", "offline", "model", "transformer", "lora", "clip_model", "clip_pretrained",
    "clip_dtype",
    "alphas", "seeds", "method", "steps", "guidance", "second_guidance", "size",
    "steer_from", "steer_until", "dtype", "quantize", "offload", "memory",
)  # fmt: skip


@app.command(
    rich_help_panel=GENERATING,
    epilog=examples(
        "steer 'a red car' 'a blue car'",
        "steer 'a red car' 'a blue car' --alphas 0.2,0.6,1 --seeds 0,1 -o car.png",
    ),
)
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
    work_steer.steer(request, pair, output, json)


def pair_of(source: str, target: str, words: tuple[str, str] | None) -> Pair:
    """The pair of two prompts, with the given words or with the words in which the prompts differ.

    These are what remains of each prompt without its common start and common end with the other.
    Raises ``OptionError`` if a prompt is empty or too long, if the prompts do not differ, or if it
    is not clear which words differ.
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


@app.command(rich_help_panel=REPORTING, epilog=examples("report RUN", "report RUN -o verdicts.md"))
def report(
    run: Annotated[
        Path, typer.Argument(help="A run folder or its results file.", autocompletion=runs)
    ],
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
    work_report.report(run, output, baseline=baseline, full_images=full_images)
