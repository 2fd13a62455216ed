"""The work of ``pairs check`` that needs tokenizers, and the work of ``models``."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from analogy.cli.base import show_lines, write
from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.judges import open_clip
from analogy.judges.base import find_judge
from analogy.models.defaults import DEFAULT_GPU_CLIP, DEFAULT_GPU_MODEL, native_dtype
from analogy.models.places import EMBEDDED, go_offline, shipped
from analogy.models.samplings import CARD_SAMPLING, EMBEDDED_SAMPLING
from analogy.models.sources import find_pipeline
from analogy.settings.pairs import Doubtful, named
from analogy.settings.request import RunRequest
from analogy.studies.tokenizers import (
    read_by_judge,
    readers_of,
    same_to_judge,
    uneven_pairs,
    unsteered,
)

MODELS_VERSION = 1
"""The schema version of the JSON of ``models --json``."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model or judge (``kind``). If it is missing here, ``note`` tells how to get it, and
    ``fingerprint`` is None.
    """

    kind: str
    name: str
    fingerprint: str | None
    bytes: int | None
    note: str | None


@dataclass(frozen=True, slots=True)
class Device:
    """A device, with the default dtype of a run on it and, by model, the default steps."""

    device: str
    name: str
    dtype: str
    steps: Mapping[str, int]


def unread(pairs: list[Pair], clip_model: str, request: RunRequest) -> Doubtful:
    """The pairs whose two prompts have the same tokens to a judge."""
    judge = find_judge(clip_model, request.clip_pretrained, offline=request.offline)
    tokenizer = judge.tokenizer()
    same = [] if tokenizer is None else same_to_judge(read_by_judge(tokenizer), pairs)
    note = (
        f"{len(same):,} of {len(pairs):,} pairs: the judge reads both prompts as one, and cannot "
        f"score them ({named(same)})"
    )
    return Doubtful("unread", same, note)


def unsteered_by(pairs: list[Pair], model: str, request: RunRequest) -> list[Doubtful]:
    """Three kinds of pairs that a model's tokenizers make unusable: those with equal prompts, with
    equal words, and with prompts of different lengths, which methods that mix prompts leave out.
    """
    source = find_pipeline(model, dtype="float32", offline=request.offline)
    readers = readers_of(source.folder)
    found = []
    for name, method, what in (
        ("prompts", "lerp", "both prompts as one: methods that look at them steer nothing"),
        ("words", "word", "both words as one: methods that look at them steer nothing"),
    ):
        same = unsteered(readers, pairs, method)
        note = f"{len(same):,} of {len(pairs):,} pairs: the model reads {what} ({named(same)})"
        found.append(Doubtful(name, same, note))
    uneven = uneven_pairs(source.folder, pairs)
    note = (
        f"{len(uneven):,} of {len(pairs):,} pairs: prompts of different numbers of tokens; methods "
        f"that mix the two prompts, such as lerp, leave them out ({named(uneven)})"
    )
    return [*found, Doubtful("uneven", uneven, note)]


def models(json: str | None) -> None:
    """Write and print the models and devices of this machine."""
    go_offline()
    model, judge = find_pipeline(EMBEDDED, dtype="float32"), open_clip.find_judge(EMBEDDED, None)
    sizes = [_bytes_of(shipped(name)) for name in ("models/sdxl-tiny", "models/clip-tiny")]
    found = [
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
        fingerprint = open_clip.find_judge(clip, tag, offline=True).fingerprint
        found.append(_entry("judge", f"{clip} {tag}", fingerprint, None))
    except ModelError as error:
        found.append(_entry("judge", f"{clip} {tag}", None, None, _how_to_get(error)))
    devices = _devices()
    write(
        {
            "schema_version": MODELS_VERSION,
            "models": [asdict(each) for each in found],
            "devices": [asdict(each) for each in devices],
        },
        json,
    )
    show_lines(
        [
            f"{'':<6} {'name':<28} {'MB':>6}  fingerprint",
            *(
                f"{each.kind:<6} {each.name:<28} {_megabytes(each.bytes):>6}  "
                + (each.fingerprint or f"not here: {each.note}")
                for each in found
            ),
            "",
            f"{'device':<35} {'dtype':>8}  steps",
            *(
                f"{each.device + ' (' + each.name + ')':<35} {each.dtype:>8}  "
                + ", ".join(f"{steps} for {name}" for name, steps in each.steps.items())
                for each in devices
            ),
        ],
        json,
    )


def _entry(
    kind: str, name: str, fingerprint: str | None, size: int | None, note: str | None = None
) -> Listed:
    return Listed(kind, name, fingerprint, size, note)


def _how_to_get(error: ModelError) -> str:
    """How to get missing files, for the end of a line."""
    return f"fetch it with: {error.command}" if error.command else str(error)


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"


def _devices() -> list[Device]:
    """The devices that torch finds, with the defaults of a run on each."""
    threads = f"{platform.machine()}, {torch.get_num_threads()} threads"
    names = {"cpu": threads}
    if torch.backends.mps.is_available():
        names["mps"] = "Apple's Metal"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(count)}
    card, _ = CARD_SAMPLING[DEFAULT_GPU_MODEL]
    steps = {"embedded": EMBEDDED_SAMPLING[0], DEFAULT_GPU_MODEL: card}
    return [Device(device, name, native_dtype(device), steps) for device, name in names.items()]
