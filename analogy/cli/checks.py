"""The commands to use before a run: ``pairs check`` and ``models``."""

from __future__ import annotations

import platform
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from analogy.cli.base import CHECKING, Commands, Json, app, show_lines, with_options, write
from analogy.core.errors import ExitCode, ModelError
from analogy.core.records import Pair
from analogy.core.text import display_width, padded
from analogy.judges.base import find_judge
from analogy.models.places import EMBEDDED, go_offline, shipped
from analogy.models.samplings import CARD_SAMPLING, EMBEDDED_SAMPLING
from analogy.settings.pairs import (
    WEAK_PAIRS,
    PairsError,
    PairsWarning,
    differing_note,
    differing_pairs,
    load_pairs,
    named,
)
from analogy.settings.request import RunRequest

if TYPE_CHECKING:
    from analogy.core.errors import ModelError

PAIRS_VERSION = 1
"""The schema version of what ``pairs check --json`` writes."""

MODELS_VERSION = 1
"""The schema version of what ``models --json`` writes."""

CHECK_OPTIONS = ("clip_model", "clip_pretrained", "model", "offline")

ENOUGH_PAIRS = 10
"""With this many or more, intervals also hold for skewed margins (docs/calibration.md)."""

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


class _Doubtful(NamedTuple):
    """Pairs that can be used, but may not measure what they seem to."""

    name: str
    pairs: list[Pair]
    note: str


def _doubtful(pairs: list[Pair], request: RunRequest) -> list[_Doubtful]:
    """Notes on the pairs, also those by the judge and the model of the request."""
    differing = differing_pairs(pairs)
    found = [
        _Doubtful(
            "differing",
            differing,
            differing_note(differing, len(pairs)) if differing else "",
        )
    ]
    if request.offline:
        go_offline()
    if request.clip_model is not None:
        found.append(_unread(pairs, request.clip_model, request))
    if request.model is not None:
        found += _unsteered(pairs, request.model, request)
    return found


def _unread(pairs: list[Pair], clip_model: str, request: RunRequest) -> _Doubtful:
    from analogy.studies.tokenizers import read_by_judge, same_to_judge

    judge = find_judge(clip_model, request.clip_pretrained, offline=request.offline)
    tokenizer = judge.tokenizer()
    same = [] if tokenizer is None else same_to_judge(read_by_judge(tokenizer), pairs)
    note = (
        f"{len(same):,} of {len(pairs):,} pairs: the judge reads both prompts as one, and cannot "
        f"score them ({named(same)})"
    )
    return _Doubtful("unread", same, note)


def _unsteered(pairs: list[Pair], model: str, request: RunRequest) -> list[_Doubtful]:
    """For methods that steer by the two prompts, and for those that steer by the two words."""
    from analogy.models.sources import find_pipeline
    from analogy.studies.tokenizers import readers_of, unsteered

    source = find_pipeline(model, dtype="float32", offline=request.offline)
    readers = readers_of(source.folder)
    found = []
    for name, method, what in (
        ("prompts", "lerp", "both prompts as one: methods that look at them steer nothing"),
        ("words", "word", "both words as one: methods that look at them steer nothing"),
    ):
        same = unsteered(readers, pairs, method)
        note = f"{len(same):,} of {len(pairs):,} pairs: the model reads {what} ({named(same)})"
        found.append(_Doubtful(name, same, note))
    return found


def _good_for(count: int) -> str:
    """What a category with ``count`` pairs can decide."""
    if count <= WEAK_PAIRS:
        return f"no verdict ({WEAK_PAIRS + 1} or more give one)"
    if count < ENOUGH_PAIRS:
        return f"a verdict, if margins are not skewed ({ENOUGH_PAIRS} or more: skewed ones, too)"
    return "a verdict"


@app.command(rich_help_panel=CHECKING)
def models(json: Json = None) -> None:
    """List the models and devices of this machine, without the network.

    Exit code: 0 listed, 2 the embedded models are missing or damaged.
    """
    from analogy.judges.open_clip import find_judge
    from analogy.models.defaults import DEFAULT_GPU_CLIP, DEFAULT_GPU_MODEL
    from analogy.models.sources import find_pipeline

    go_offline()
    model, judge = find_pipeline(EMBEDDED, dtype="float32"), find_judge(EMBEDDED, None)
    sizes = [_bytes_of(shipped(name)) for name in ("models/sdxl-tiny", "models/clip-tiny")]
    found: list[dict[str, Any]] = [
        _entry("model", EMBEDDED, model.fingerprint, sizes[0]),
        _entry("judge", EMBEDDED, judge.fingerprint, sizes[1]),
    ]
    name, (clip, tag) = DEFAULT_GPU_MODEL, DEFAULT_GPU_CLIP
    try:
        on_hub = find_pipeline(name, dtype="float16", offline=True)
        found.append(_entry("model", name, on_hub.fingerprint, _bytes_of(on_hub.folder)))
    except ModelError as error:
        found.append(_entry("model", name, None, None, _how_to_get(error)))
    try:
        fingerprint = find_judge(clip, tag, offline=True).fingerprint
        found.append(_entry("judge", f"{clip} {tag}", fingerprint, None))
    except ModelError as error:
        found.append(_entry("judge", f"{clip} {tag}", None, None, _how_to_get(error)))
    devices = _devices()
    write({"schema_version": MODELS_VERSION, "models": found, "devices": devices}, json)
    show_lines(
        [
            f"{'':<6} {'name':<28} {'MB':>6}  fingerprint",
            *(
                f"{each['kind']:<6} {each['name']:<28} {_megabytes(each['bytes']):>6}  "
                + (each["fingerprint"] or f"not here: {each['note']}")
                for each in found
            ),
            "",
            f"{'device':<35} {'dtype':>8}  steps",
            *(
                f"{each['device'] + ' (' + each['name'] + ')':<35} {each['dtype']:>8}  "
                + ", ".join(f"{steps} for {name}" for name, steps in each["steps"].items())
                for each in devices
            ),
        ],
        json,
    )


def _entry(
    kind: str, name: str, fingerprint: str | None, size: int | None, note: str | None = None
) -> dict[str, Any]:
    return {"kind": kind, "name": name, "fingerprint": fingerprint, "bytes": size, "note": note}


def _how_to_get(error: ModelError) -> str:
    """How to get missing files, on the rest of a line."""
    return f"fetch it with: {error.command}" if error.command else str(error)


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"


def _devices() -> list[dict[str, Any]]:
    """The devices that torch sees, with what a run on each defaults to."""
    import torch

    from analogy.models.defaults import DEFAULT_GPU_MODEL, native_dtype

    threads = f"{platform.machine()}, {torch.get_num_threads()} threads"
    names = {"cpu": threads}
    if torch.backends.mps.is_available():
        names["mps"] = "Apple's Metal"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(count)}
    card, _ = CARD_SAMPLING[DEFAULT_GPU_MODEL]
    steps = {"embedded": EMBEDDED_SAMPLING[0], DEFAULT_GPU_MODEL: card}
    return [
        {"device": device, "name": name, "dtype": native_dtype(device), "steps": steps}
        for device, name in names.items()
    ]
