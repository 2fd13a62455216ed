"""Results read from JSON and checked: the one format of runs and of baselines.

A baseline is a ``results.json`` (schema version 2). A run folder shows one results file as
``RUN/results.json``; :mod:`analogy.results.kept` chooses it. A file may come from anywhere. Values
that decide something are checked strictly: :class:`RecordedError` is the only error. Other figures
are only shown, and earlier suites may lack them: an invalid one counts as missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from analogy.core.errors import AnalogyError
from analogy.core.fields import shown
from analogy.core.records import WHOLE, RunConfig, Window
from analogy.core.strict_json import is_integer, parse
from analogy.core.text import command_line
from analogy.results import checks
from analogy.results.checks import (
    InvalidValueError,
    Object,
    at,
    figure,
    object_of,
    part,
    rows,
    value_of,
)
from analogy.results.cost import FitCost, MethodCost
from analogy.results.figures import analysis_of, failures_of, quality_of
from analogy.results.model import (
    RESULTS_NAME,
    RESULTS_VERSION,
    Header,
    Measurement,
    Provenance,
    Results,
    Saved,
    Settings,
    Subject,
    Throughput,
)

MAX_FILE_BYTES = 64_000_000
"""A larger file is refused before it is read; the file of the full grid has under 1 MB."""


class RecordedError(AnalogyError, ValueError):
    """A results file cannot be used; the message says what was expected, what came, what to do."""


class _VersionError(ValueError):
    """The results are of another schema version; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """A results file: its content, and its bytes, with which another suite's file can be copied."""

    results: Results
    data: bytes


# --- files


def read(path: Path) -> Results:
    """The results in a file, or those that a run folder shows. Raises :class:`RecordedError`."""
    return read_file(path).results


def read_file(path: Path) -> ResultsFile:
    """The results as by :func:`read`, and the bytes of their file."""
    file = _file_of(path)
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RecordedError(
            f"{file}: expected a results file, got: {error.strerror}; check the path"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        _refuse_size(file)
    return ResultsFile(from_json(_parsed(data, file), file), data)


def _parsed(data: bytes, file: Path) -> Object:
    """The object of a strict JSON text: no NaN, no infinities, no key given twice."""
    try:
        content = parse(data.decode("utf-8"))
    except ValueError as error:
        raise RecordedError(
            f"{file}: expected the JSON of a results file, got invalid JSON ({error}); name a "
            "results.json or a run folder"
        ) from error
    if not isinstance(content, dict):
        raise RecordedError(
            f"{file}: expected the JSON of a results file, got {shown(content)}; name a "
            "results.json or a run folder"
        )
    return content


def _file_of(path: Path) -> Path:
    """The results file that ``path`` names: a regular file of at most `MAX_FILE_BYTES`."""
    try:
        if path.is_dir():
            return _shown_of(path)
        if not path.exists():
            raise RecordedError(
                f"{path}: expected a results file or a run folder, got nothing there; check the "
                "path"
            )
        if not path.is_file():
            raise RecordedError(
                f"{path}: expected a results file, got a device or a pipe; check the path"
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            _refuse_size(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, RecordedError):
            raise
        raise RecordedError(f"{path}: cannot be read ({error}); check the path") from error
    return path


def _shown_of(folder: Path) -> Path:
    file = folder / RESULTS_NAME
    if file.is_file():
        return _file_of(file)
    if (folder / "index.sqlite").is_file():
        raise RecordedError(
            f"{folder}: expected {RESULTS_NAME} in the run folder, got none; name one of the files "
            "in its folder 'results' if there are any. Else the run has written none yet: where "
            "its images were imported, 'python -m analogy score' scores them; where not, continue "
            "it with its options and: "
            + command_line("pytest", "benchmarks", f"--run-dir={folder}")
        )
    raise RecordedError(
        f"{folder}: expected a results file or a run folder, got a folder without {RESULTS_NAME}; "
        "check the path"
    )


def _refuse_size(path: Path) -> NoReturn:
    raise RecordedError(
        f"{path}: expected a results file of at most {MAX_FILE_BYTES:,} bytes, got a larger one; "
        "check the path"
    )


# --- the tree


def from_json(data: Object, path: Path | None = None) -> Results:
    """The results of a JSON object; ``path`` is the file that it was read from."""
    with _told(path):
        return _results(data, path)


def header_from_json(data: Object) -> Header:
    """The header of results; the figures may be missing."""
    with _told(None):
        return _header(data, None)


def provenance_from_json(data: Object) -> Provenance:
    """The provenance of figures, from a run folder's index."""
    with _told(None):
        return _provenance(data)


def header_of(config: RunConfig, provenance: Provenance, pairs: Mapping[str, str]) -> Header:
    """The header of a run's results. ``pairs``: a digest of each category's pairs.

    Raises :class:`RecordedError` if a name in them is one that readers would refuse.
    """
    with _told(None):
        for name in ("suite", "model", "judge", "scheduler"):
            checks.text(getattr(provenance, name), f"provenance.{name}")
        checks.text(config.method, "config.method")
        pairs = checks.texts(pairs, "pairs")
    return Header(
        config=Settings(config.to_dict()),
        provenance=provenance,
        measurement=Measurement(
            judge=provenance.judge,
            size=config.size,
            seeds=tuple(sorted(config.seeds)),
            alphas=tuple(sorted(config.alphas)),
            limit=config.limit,
            pairs=pairs,
        ),
        subject=Subject(
            model=provenance.model,
            method=config.method,
            steps=config.steps,
            guidance=config.guidance,
            scheduler=provenance.scheduler,
            dtype=config.dtype,
            device=config.device,
            suite=provenance.suite,
            commit=provenance.git_commit,
            packages=provenance.packages,
            method_version=config.method_version,
            window=config.window,
            second_guidance=config.second_guidance,
        ),
    )


@contextmanager
def _told(path: Path | None) -> Iterator[None]:
    """Add the file's name and advice to errors."""
    name = "these results" if path is None else str(path)
    try:
        yield
    except _VersionError as error:
        raise RecordedError(f"{name}: {error}") from None
    except InvalidValueError as error:
        raise RecordedError(
            f"{name}: {error}; it is no results file of this suite, or was changed: write it anew "
            "from its run with: python -m analogy baseline RUN -o FILE"
        ) from None


def _check_version(version: object) -> None:
    if is_integer(version) and version == RESULTS_VERSION:
        return
    advice = "name a results.json or a run folder"
    if is_integer(version) and version == 1:
        advice = (
            "it was written by an earlier suite, which kept no items to compare: delete it, repeat "
            "its run with the same --run-dir, which generates nothing twice, or write it anew "
            "with: pytest benchmarks --baseline FILE --update-baseline"
        )
    elif is_integer(version) and version > RESULTS_VERSION:
        advice = "it was written by a later suite: update this one"
    raise _VersionError(
        f"expected schema version {RESULTS_VERSION}, got {shown(version)}; {advice}"
    )


def _header(data: Object, path: Path | None) -> Header:
    _check_version(value_of(data, "schema_version", ""))
    config, place = object_of(value_of(data, "config", ""), "config"), "config"
    provenance = _provenance(object_of(value_of(data, "provenance", ""), "provenance"))
    pairs = checks.texts(value_of(data, "pairs", ""), "pairs")
    if not pairs:
        raise InvalidValueError("pairs: expected a category or more, got none")
    return Header(
        config=Settings(config),
        provenance=provenance,
        measurement=Measurement(
            judge=provenance.judge,
            size=at(config, place, "size", checks.count),
            seeds=at(config, place, "seeds", checks.each(checks.seed)),
            alphas=at(config, place, "alphas", checks.each(checks.alpha)),
            limit=at(config, place, "limit", checks.optional(checks.count)),
            pairs=pairs,
        ),
        subject=Subject(
            model=provenance.model,
            method=at(config, place, "method", checks.text),
            steps=at(config, place, "steps", checks.count),
            guidance=at(config, place, "guidance", checks.guidance),
            scheduler=provenance.scheduler,
            dtype=at(config, place, "dtype", checks.text),
            device=at(config, place, "device", checks.text),
            suite=provenance.suite,
            commit=provenance.git_commit,
            packages=provenance.packages,
            method_version=_method_version(config, place),
            window=_window(config, place),
            second_guidance=at(config, place, "second_guidance", checks.guidance)
            if "second_guidance" in config
            else None,
        ),
        path=path,
    )


def _provenance(data: Object) -> Provenance:
    place = "provenance"
    return Provenance(
        suite=at(data, place, "suite", checks.text),
        model=at(data, place, "model", checks.text),
        judge=at(data, place, "judge", checks.text),
        scheduler=at(data, place, "scheduler", checks.text),
        packages=at(data, place, "packages", checks.texts),
        git_commit=at(data, place, "git_commit", checks.optional(checks.text)),
        machine=at(data, place, "machine", checks.machine),
        python=checks.name(data.get("python")),
        time=checks.name(data.get("time")),
        ceiling=checks.name(data.get("ceiling")),
        guidance=checks.name(data.get("guidance")),
    )


def _method_version(config: Object, place: str) -> str:
    """The version of a method that is not built in; empty if the file has none."""
    if "method_version" not in config:
        return ""
    return at(config, place, "method_version", checks.text)


def _window(config: Object, place: str) -> Window:
    """The part of the schedule in which images are steered; the file may leave out its ends."""
    ends = {"steer_from": WHOLE.start, "steer_until": WHOLE.end}
    found = {n: at(config, place, n, checks.share) if n in config else ends[n] for n in ends}
    return Window(found["steer_from"], found["steer_until"])


def _results(data: Object, path: Path | None) -> Results:
    header = _header(data, path)
    analysis = analysis_of(data, header.measurement)
    throughput = object_of(value_of(data, "throughput", ""), "throughput")
    rate = checks.optional(checks.rate)
    workers = {name: figure(one) for name, one in part(throughput, "workers").items()}
    return Results(
        header=header,
        analysis=analysis,
        quality=quality_of(part(data, "quality")),
        failures=tuple(failures_of(rows(data, "failures"))),
        throughput=Throughput(
            generate=at(throughput, "throughput", "generate_images_per_s", rate),
            score=at(throughput, "throughput", "score_images_per_s", rate),
            workers={name: one for name, one in workers.items() if not math.isnan(one)},
        ),
        peak_memory_bytes=_memory(data.get("peak_memory_bytes")),
        unread=_ids(data.get("unread")),
        unsteered=_ids(data.get("unsteered")),
        uneven=_ids(data.get("uneven")),
        saved=_saved(data.get("sequential")),
        unknown=_unknown(data),
        cost=_cost(data.get("cost")),
    )


def _saved(value: object) -> Saved | None:
    """The images that a sequential run saved; None if they are missing or invalid."""
    if not isinstance(value, Mapping):
        return None
    images, of, seed = (checks.size(value.get(name)) for name in ("images", "of", "order_seed"))
    if images is None or of is None or seed is None:
        return None
    seconds = figure(value.get("seconds"))
    digests = {name: checks.name(digest) for name, digest in part(value, "order").items()}
    order = {name: digest for name, digest in digests.items() if digest is not None}
    return Saved(images, of, None if math.isnan(seconds) else seconds, seed, order)


def _unknown(data: Object) -> dict[str, tuple[str, ...]]:
    """Pair id to unknown words, without invalid entries."""
    found = {pair: _ids(words) for pair, words in part(data, "unknown_words").items()}
    return {pair: words for pair, words in found.items() if words}


def _cost(value: object) -> MethodCost | None:
    """The method's cost; None if it is missing or invalid."""
    if not isinstance(value, Mapping) or (images := checks.size(value.get("images"))) is None:
        return None
    memory, peak = checks.name(value.get("memory")), _memory(value.get("peak_memory_bytes"))
    is_known = memory is not None and peak is not None
    return MethodCost(
        images,
        _seconds(value.get("seconds_per_image")),
        _seconds(value.get("unsteered_seconds_per_image")),
        memory if is_known else None,
        peak if is_known else None,
        _fit_cost(value.get("fit")),
    )


def _fit_cost(value: object) -> FitCost | None:
    if not isinstance(value, Mapping):
        return None
    seconds, images = _seconds(value.get("seconds")), checks.size(value.get("images"))
    if seconds is None or images is None:
        return None
    return FitCost(
        seconds, images, {name: _ids(digests) for name, digests in part(value, "inputs").items()}
    )


def _seconds(value: object) -> float | None:
    """A time in seconds, >= 0; None for any other value."""
    found = figure(value)
    return found if found >= 0 else None


def _memory(value: object) -> int | None:
    return value if is_integer(value) else None


def _ids(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, (list, tuple)) else ()
    return tuple(one for one in values if isinstance(one, str))
