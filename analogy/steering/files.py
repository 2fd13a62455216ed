"""Steering files: vectors and maps for a denoiser's modules, in safetensors with JSON metadata.

docs/steering_files.md describes the format. A file is read whole and checked before it is used;
nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from analogy.core.errors import AnalogyError
from analogy.core.fields import ALPHA_LIMIT
from analogy.core.files import read_regular
from analogy.core.records import Pair
from analogy.core.strict_json import parse

FORMAT = "analogy-steering"
VERSION = 1

#: The largest file that is read: vectors for every step and module of a large model take less.
MOST_BYTES = 4 * 2**30

#: The keys of the metadata, and those of an entry.
KEYS = ("format", "version", "unit", "default_alphas", "entries", "pairs", "about")
ENTRY_KEYS = ("module", "action", "vector", "matrix", "from", "until", "category", "word")


class SteeringFileError(AnalogyError, ValueError):
    """A steering file cannot be used; the message names the file and the entry."""


class Action(StrEnum):
    """What an entry does to each token x of its module's output, at strength a = alpha * unit.

    - ``add``: x + a v;
    - ``project_out``: x - a (x . u) u, where u = v / |v|: at a = 1 the direction is removed;
    - ``affine``: x + a (M x + v - x): at a = 1 the map M x + v.
    """

    ADD = "add"
    PROJECT_OUT = "project_out"
    AFFINE = "affine"


@dataclass(frozen=True, slots=True)
class ModuleAction:
    """One action on the output of one module.

    - ``module``: its name in the denoiser;
    - ``vector``: float32 ``(dim,)``, or ``(parts, dim)``: one for each of ``parts`` equal parts of
      the schedule;
    - ``matrix``: ``(dim, dim)`` of an affine map;
    - ``start``, ``end``: shares of the schedule, 0..1; the entry acts from ``start`` on and before
      ``end``;
    - ``category``: of the pairs that it steers, None for all;
    - ``word``: only with ``add``: it steers pairs with this target word, and with the opposite sign
      pairs with this source word; None for all.
    """

    module: str
    action: Action
    vector: Tensor
    matrix: Tensor | None = None
    start: float = 0.0
    end: float = 1.0
    category: str | None = None
    word: str | None = None


@dataclass(frozen=True, slots=True)
class Steering:
    """The content of a steering file.

    - ``unit``: what alpha is multiplied by; ``default_alphas``: the strengths that are measured
      without ``--alphas``;
    - ``pairs``: digests of the pairs it was fitted on (:func:`pair_digest`), which it does not
      steer; ``about``: a text by its maker.
    """

    entries: tuple[ModuleAction, ...]
    unit: float = 1.0
    default_alphas: tuple[float, ...] = (1.0,)
    pairs: frozenset[str] = frozenset()
    about: str = ""


def pair_digest(pair: Pair) -> str:
    """Identifies a pair by its words and prompts."""
    parts = (pair.source_word, pair.target_word, pair.source_prompt, pair.target_prompt)
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def read(path: Path) -> tuple[Steering, str]:
    """A file's content, and the SHA-256 of its bytes.

    Raises ``SteeringFileError`` if it cannot be read or does not follow the format.
    """
    try:
        data = read_regular(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise SteeringFileError(
            place=str(path), expected="a steering file", got=str(error),
            advice="name a file that exists: --method file:PATH",
        ) from error  # fmt: skip
    return parsed(data, str(path)), hashlib.sha256(data).hexdigest()


def parsed(data: bytes, place: str) -> Steering:
    """The content of a steering file's bytes; ``place`` names it in messages.

    Raises ``SteeringFileError`` if the bytes do not follow the format.
    """
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError) as error:
        raise SteeringFileError(
            place=place, expected="a file in the safetensors format", got=str(error)[:200],
            advice="write it with analogy steering fit, or as docs/steering_files.md says",
        ) from error  # fmt: skip
    if FORMAT not in metadata:
        raise SteeringFileError(
            place=place, expected=f"JSON under the key {FORMAT!r} of the metadata",
            got=", ".join(metadata) or "no metadata",
            advice="docs/steering_files.md describes the format",
        )  # fmt: skip
    try:
        told = parse(metadata[FORMAT])
    except ValueError as error:
        raise SteeringFileError(
            place=f"{place}: metadata", expected="JSON", got=str(error)[:200]
        ) from error
    return _steering(told, tensors, place)


def write(steering: Steering) -> bytes:
    """The bytes of a file with this content, which :func:`parsed` reads."""
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    for i, entry in enumerate(steering.entries):
        told: dict[str, Any] = {
            "module": entry.module, "action": entry.action.value, "vector": f"{i:05d}.vector",
        }  # fmt: skip
        tensors[f"{i:05d}.vector"] = entry.vector.contiguous()
        if entry.matrix is not None:
            told["matrix"] = f"{i:05d}.matrix"
            tensors[f"{i:05d}.matrix"] = entry.matrix.contiguous()
        if (entry.start, entry.end) != (0.0, 1.0):
            told |= {"from": entry.start, "until": entry.end}
        for name, value in (("category", entry.category), ("word", entry.word)):
            if value is not None:
                told[name] = value
        entries.append(told)
    content = {
        "format": FORMAT, "version": VERSION, "unit": steering.unit,
        "default_alphas": list(steering.default_alphas), "pairs": sorted(steering.pairs),
        "about": steering.about, "entries": entries,
    }  # fmt: skip
    return save(tensors, metadata={FORMAT: json.dumps(content, ensure_ascii=False)})


def _steering(told: Any, tensors: Mapping[str, Tensor], place: str) -> Steering:
    told = _object(told, KEYS, f"{place}: metadata")
    if (told.get("format"), told.get("version")) != (FORMAT, VERSION):
        raise SteeringFileError(
            place=f"{place}: metadata",
            expected=f"format {FORMAT!r}, version {VERSION}",
            got=f"format {told.get('format')!r:.80}, version {told.get('version')!r:.80}",
        )
    given = told.get("entries")
    if not isinstance(given, list) or not given:
        raise SteeringFileError(
            place=f"{place}: entries", expected="a list of one entry or more", got=f"{given!r:.80}"
        )
    used: set[str] = set()
    entries = tuple(
        _entry(each, tensors, used, f"{place}: entry {i}") for i, each in enumerate(given)
    )
    if unused := sorted(tensors.keys() - used):
        raise SteeringFileError(
            place=place, expected="tensors that entries name", got=f"{unused[0]!r}, in no entry"
        )
    alphas = told.get("default_alphas", [1.0])
    if not isinstance(alphas, list) or not alphas:
        raise SteeringFileError(
            place=f"{place}: default_alphas", expected="a list of numbers", got=f"{alphas!r:.80}"
        )
    pairs = told.get("pairs", [])
    if not isinstance(pairs, list) or not all(isinstance(each, str) for each in pairs):
        raise SteeringFileError(
            place=f"{place}: pairs", expected="a list of digests", got=f"{pairs!r:.80}"
        )
    return Steering(
        entries,
        _number(told.get("unit", 1.0), f"{place}: unit", 1e-9, 1e9),
        tuple(
            _number(alpha, f"{place}: default_alphas", -ALPHA_LIMIT, ALPHA_LIMIT)
            for alpha in alphas
        ),
        frozenset(pairs),
        _text(told.get("about", ""), f"{place}: about", may_be_empty=True),
    )


def _entry(told: Any, tensors: Mapping[str, Tensor], used: set[str], place: str) -> ModuleAction:
    told = _object(told, ENTRY_KEYS, place)
    module = _text(told.get("module"), f"{place}: module")
    place = f"{place} ({module})"
    action = Action(
        _one_of(told.get("action"), [each.value for each in Action], f"{place}: action")
    )
    vector = _tensor(told.get("vector"), tensors, used, f"{place}: vector")
    if vector.ndim not in (1, 2) or not vector.numel():
        raise SteeringFileError(
            place=f"{place}: vector", expected="the shape (dim,) or (parts, dim)",
            got=str(tuple(vector.shape)),
        )  # fmt: skip
    matrix = None
    if (action is Action.AFFINE) != ("matrix" in told):
        raise SteeringFileError(
            place=f"{place}: matrix", expected="one with the action affine and with no other",
            got=f"{'one' if 'matrix' in told else 'none'} with {action}",
        )  # fmt: skip
    if action is Action.AFFINE:
        matrix = _tensor(told["matrix"], tensors, used, f"{place}: matrix")
        if matrix.shape != (vector.shape[-1],) * 2:
            raise SteeringFileError(
                place=f"{place}: matrix", expected=f"the shape {(vector.shape[-1],) * 2}",
                got=str(tuple(matrix.shape)),
            )  # fmt: skip
    if action is Action.PROJECT_OUT and not (vector.norm(dim=-1) > 0).all():
        raise SteeringFileError(
            place=f"{place}: vector", expected="a direction to project out", got="zeros"
        )
    start = _number(told.get("from", 0.0), f"{place}: from", 0.0, 1.0)
    end = _number(told.get("until", 1.0), f"{place}: until", 0.0, 1.0)
    if start >= end:
        raise SteeringFileError(
            place=place, expected="from below until", got=f"from {start:g}, until {end:g}"
        )
    category, word = (
        None if told.get(key) is None else _text(told[key], f"{place}: {key}")
        for key in ("category", "word")
    )
    if word is not None and action is not Action.ADD:
        raise SteeringFileError(
            place=f"{place}: word", expected="none but with the action add", got=f"with {action}"
        )
    return ModuleAction(module, action, vector, matrix, start, end, category, word)


def _tensor(name: Any, tensors: Mapping[str, Tensor], used: set[str], place: str) -> Tensor:
    """A tensor of the file in float32.

    Raises ``SteeringFileError`` if it is missing, not floating point or not finite.
    """
    found = tensors[_one_of(name, tensors, place)]
    used.add(name)
    if not found.is_floating_point():
        raise SteeringFileError(place=place, expected="floating point", got=str(found.dtype))
    found = found.float()
    if not torch.isfinite(found).all():
        raise SteeringFileError(place=place, expected="finite numbers", got="NaN or infinity")
    return found


def _object(told: Any, keys: Sequence[str], place: str) -> Mapping[str, Any]:
    if not isinstance(told, dict):
        raise SteeringFileError(place=place, expected="an object", got=f"{told!r:.80}")
    for key in told:
        _one_of(key, keys, place)
    return told


def _one_of(value: Any, names: Iterable[str], place: str) -> str:
    names = list(names)
    if not isinstance(value, str) or value not in names:
        raise unknown(str(value), names, place)
    return value


def unknown(value: str, names: Sequence[str], place: str) -> SteeringFileError:
    """The error for a name that is not in ``names``. It suggests the nearest of them."""
    near = get_close_matches(value, names, n=1, cutoff=0.3)
    many = f"one of {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
    return SteeringFileError(
        place=place, expected=many if names else "nothing", got=f"{value!r:.120}",
        advice=f"did you mean {near[0]!r}?" if near else None,
    )  # fmt: skip


def _number(value: Any, place: str, low: float, high: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise SteeringFileError(
            place=place, expected=f"a number from {low:g} to {high:g}", got=f"{value!r:.80}"
        )
    return float(value)


def _text(value: Any, place: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not value.isprintable() or not (value or may_be_empty):
        raise SteeringFileError(place=place, expected="a printable text", got=f"{value!r:.80}")
    return value
