"""The commands to use before a run: ``pairs check`` and ``models``."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analogy.cli.base import CHECKING, Commands, Json, app, show_lines, with_options, write
from analogy.core.deferred import deferred
from analogy.core.errors import ExitCode
from analogy.core.records import Pair
from analogy.core.text import display_width, padded
from analogy.models.places import EMBEDDED, go_offline
from analogy.settings.pairs import (
    WEAK_PAIRS,
    Doubtful,
    PairsError,
    PairsWarning,
    differing_note,
    differing_pairs,
    load_pairs,
)
from analogy.settings.request import RunRequest

if TYPE_CHECKING:
    from analogy.cli.work import checks as work
    from analogy.statistics import values
    from analogy.world import known
else:
    known = deferred("analogy.world.known")
    work = deferred("analogy.cli.work.checks")
    values = deferred("analogy.statistics.values")

PAIRS_VERSION = 1
"""The schema version of the JSON of ``pairs check --json``."""

CHECK_OPTIONS = ("clip_model", "clip_pretrained", "model", "offline")

pairs_app = Commands(no_args_is_help=True, help="Check files of word pairs.")
app.add_typer(pairs_app, name="pairs", rich_help_panel=CHECKING)


@pairs_app.callback()
def _commands() -> None:
    """Make typer require the name of the only command: ``pairs check``, not ``pairs``."""


@pairs_app.command()
@with_options(CHECK_OPTIONS)
def check(
    request: RunRequest,
    file: Annotated[Path, typer.Argument(help="A CSV file of word pairs.")],
    json: Json = None,
) -> None:
    """Report every error in a file of pairs, or which categories have enough pairs for a verdict.

    Words that the embedded model does not know are reported, unless --model names another one.
    With --clip-model, also report pairs whose prompts are the same to that judge; with --model,
    pairs that are the same to that model's text encoders. Only their tokenizers are loaded.

    Exit code: 0 the file can be used, 2 it cannot.
    """
    pairs: list[Pair] = []
    problems: tuple[str, ...] = ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PairsWarning)  # they are reported below
            pairs = load_pairs(file)
    except PairsError as error:
        problems = error.problems
    counts = Counter(pair.category for pair in pairs)
    found = _doubtful(pairs, request)
    code = ExitCode.USAGE if problems else ExitCode.OK
    write(
        {
            "schema_version": PAIRS_VERSION,
            "exit_code": int(code),
            "file": str(file),
            "problems": list(problems),
            "pairs": counts.total(),
            "categories": [
                {"category": name, "pairs": count, "good_for": _good_for(count)}
                for name, count in counts.items()
            ],
            **{each.name: [pair.id for pair in each.pairs] for each in found},
        },
        json,
    )
    if problems:
        show_lines([*problems, f"problems  {len(problems)}; nothing can be run on the file"], json)
        raise typer.Exit(code)
    width = max(display_width("category"), *map(display_width, counts))
    lines = [f"{'category':<{width}} {'pairs':>6}  good for"]
    lines += [f"{padded(name, width)} {n:>6}  {_good_for(n)}" for name, n in counts.items()]
    lines += ["", f"pairs     {counts.total()} in {len(counts)} categories; no problems"]
    weak = [name for name, count in counts.items() if count <= WEAK_PAIRS]
    if weak:
        lines.append(f"weak      {', '.join(weak)}: add pairs, or draw no conclusion from them")
    lines += [f"{each.name:<9} {each.note}" for each in found if each.pairs]
    show_lines(lines, json)


def _doubtful(pairs: list[Pair], request: RunRequest) -> list[Doubtful]:
    """Notes on doubtful pairs, also by the tokenizers of the request's judge and model."""
    differing = differing_pairs(pairs)
    found = [
        Doubtful(
            "differing",
            differing,
            differing_note(differing, len(pairs)) if differing else "",
        )
    ]
    if request.model in (None, EMBEDDED):
        found.append(_unknown(pairs))
    if request.offline:
        go_offline()
    if request.clip_model is not None:
        found.append(work.unread(pairs, request.clip_model, request))
    if request.model is not None:
        found += work.unsteered_by(pairs, request.model, request)
    return found


def _unknown(pairs: list[Pair]) -> Doubtful:
    """The pairs with words that the embedded model was not trained on."""
    words = known.unknown_pairs(pairs, model=EMBEDDED, judge=None)
    note = known.unknown_note((word for of in words.values() for word in of), model=EMBEDDED)
    found = [pair for pair in pairs if pair.id in words]
    return Doubtful("unknown", found, f"{len(found):,} of {len(pairs):,} pairs: {note}")


def _good_for(count: int) -> str:
    """What a category with ``count`` pairs can decide."""
    if count <= WEAK_PAIRS:
        return f"no verdict ({WEAK_PAIRS + 1} or more give one)"
    if count < values.ENOUGH_PAIRS:
        enough = values.ENOUGH_PAIRS
        return f"a verdict, if margins are not skewed ({enough} or more: skewed ones, too)"
    return "a verdict"


@app.command(rich_help_panel=CHECKING)
def models(json: Json = None) -> None:
    """List the models and devices of this machine, without the network.

    Exit code: 0 listed, 2 the embedded models are missing or damaged.
    """
    work.models(json)
