"""Results files, written and read back: the one format of runs and of baselines.

A baseline is a ``results.json`` (schema version 2), and a run folder shows one as
``RUN/results.json``; :mod:`analogy.kept` decides which. A file may come from anywhere, so
everything that is used of it is checked first, and whatever stands in it, the only error is a
:class:`RecordedError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from analogy.errors import AnalogyError
from analogy.fields import ALPHA_LIMIT, MAX_COUNT, MAX_GUIDANCE, MAX_SEED, MAX_TEXT, shown
from analogy.files import write_output
from analogy.records import MARGIN_LIMIT, UNSTEERED, Cell, Compared, Verdict
from analogy.strict_json import parse
from analogy.text import command_line, is_printable

RESULTS_VERSION = 2
"""The schema version that is written and read."""

RESULTS_NAME = "results.json"
"""The results that a run folder shows."""

MAX_FILE_BYTES = 64_000_000
"""A larger file is refused before it is read; the full grid's is under 1 MB."""

# A recorded mean may differ from its items' by their order in the sum, and by nothing else.
_SAME_MEAN = 1e-6

T = TypeVar("T")


class RecordedError(AnalogyError, ValueError):
    """A results file cannot be used; the message says what was expected, what came, what to do."""


@dataclass(frozen=True, slots=True)
class RecordedCell(Compared):
    """One cell's figures, or those of several cells pooled (category and alpha None).

    ``items``: pair id to margin, in -2..2; of an incomplete cell those that were complete.
    ``mean`` is theirs, NaN for an incomplete cell. ``n``: pairs, with and without an item.
    ``verdict``: None where none is recorded, which only a pool's may be.
    """

    category: str | None
    alpha: float | None
    verdict: Verdict | None
    n: int
    mean: float
    items: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the figures were measured with: figures of another measurement are not comparable.

    ``seeds`` and ``alphas`` ascend; ``pairs`` is a digest of each category's pairs.
    """

    judge: str
    size: int
    seeds: tuple[int, ...]
    alphas: tuple[float, ...]
    limit: int | None
    pairs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured: the things that one compares."""

    model: str
    method: str
    steps: int
    guidance: float
    scheduler: str
    dtype: str
    device: str
    suite: str
    commit: str | None
    packages: Mapping[str, str]
    method_version: str = ""


@dataclass(frozen=True, slots=True)
class Header(Compared):
    """What results are of: all that is known before there are any.

    ``path`` is None for what is in memory.
    """

    path: Path | None
    measurement: Measurement
    subject: Subject
    machine: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories, in the file's order."""
        return tuple(self.measurement.pairs)


@dataclass(frozen=True, slots=True)
class Recorded(Header):
    """A results file, checked.

    ``cells`` has every category of the measurement at each of its alphas. ``throughput``: images/s
    by stage, None where nothing was timed.
    """

    cells: Mapping[Cell, RecordedCell]
    overall_verdict: Verdict
    overall_mean: float
    throughput: Mapping[str, float | None]


def read(path: Path) -> Recorded:
    """The results in a file, or those that a run folder shows."""
    file = _file_of(path)
    return _checked(load(file), file)


def of(results: Mapping[str, Any], path: Path | None = None) -> Recorded:
    """Results in memory, as a run makes them; ``path`` is the file that they were loaded from."""
    return _checked(results, path)


def of_header(results: Mapping[str, Any]) -> Header:
    """What results in memory are of; they need hold no figures yet."""
    with _told(None):
        return _header(results, None)


def of_cell(row: Mapping[str, Any]) -> RecordedCell:
    """One cell in memory, as a row of the results' ``cells``."""
    with _told(None):
        return _cell(row, "cell")[1]


def load(path: Path) -> dict[str, Any]:
    """The content of a file, or of a run folder's results: strict JSON but otherwise unchecked.

    Refused besides what is no JSON: NaN and infinities, however spelled, and a key given twice.
    """
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
    try:
        content = parse(data.decode("utf-8"))
    except ValueError as error:
        raise RecordedError(
            f"{file}: expected the JSON of a results file, got what is none ({error}); name a "
            "results.json or a run folder"
        ) from error
    if not isinstance(content, dict):
        raise RecordedError(
            f"{file}: expected the JSON of a results file, got {shown(content)}; name a "
            "results.json or a run folder"
        )
    return content


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write results as strict JSON, atomically: a reader sees the old file or the new one.

    ``path`` may be a device or a link to a file (:func:`analogy.files.write_output`).
    """
    write_output(path, encoded(results))


def encoded(results: Mapping[str, Any]) -> bytes:
    """Results as the strict JSON of their file."""
    return (json.dumps(results, indent=2, allow_nan=False) + "\n").encode()


def _file_of(path: Path) -> Path:
    """The results file that ``path`` names; small enough and a regular file."""
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
            "its images were imported, 'python -m analogy score' judges them; where not, continue "
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


# --- checks: each takes a value and the place it stands at


class _PlaceError(ValueError):
    """A value is not what its place needs: expected, got."""


class _VersionError(ValueError):
    """The file is of another schema version; what to do."""


def _checked(results: Mapping[str, Any], path: Path | None) -> Recorded:
    with _told(path):
        return _recorded(results, path)


@contextmanager
def _told(path: Path | None) -> Iterator[None]:
    """Say of what is wrong in which file it is, and what to do."""
    name = "these results" if path is None else str(path)
    try:
        yield
    except _VersionError as error:
        raise RecordedError(f"{name}: {error}") from None
    except _PlaceError as error:
        raise RecordedError(
            f"{name}: {error}; it is no results file of this suite, or was changed: write it anew "
            "from its run with: python -m analogy baseline RUN -o FILE"
        ) from None


def _check_version(version: Any) -> None:
    is_integer = isinstance(version, int) and not isinstance(version, bool)
    if is_integer and version == RESULTS_VERSION:
        return
    advice = "name a results.json or a run folder"
    if is_integer and version == 1:
        advice = (
            "it was written by an earlier suite, which kept no items to compare: delete it, repeat "
            "its run with the same --run-dir, which generates nothing twice, or write it anew "
            "with: pytest benchmarks --baseline FILE --update-baseline"
        )
    elif is_integer and version > RESULTS_VERSION:
        advice = "it was written by a later suite: update this one"
    raise _VersionError(
        f"expected schema version {RESULTS_VERSION}, got {shown(version)}; {advice}"
    )


def _header(results: Mapping[str, Any], path: Path | None) -> Header:
    _check_version(_value(results, "schema_version", ""))
    config = _mapping(_value(results, "config", ""), "config")
    provenance = _mapping(_value(results, "provenance", ""), "provenance")
    pairs = _texts(_value(results, "pairs", ""), "pairs")
    if not pairs:
        raise _PlaceError("pairs: expected a category or more, got none")
    return Header(
        path=path,
        measurement=Measurement(
            judge=_in(provenance, "provenance", "judge", _text),
            size=_in(config, "config", "size", _count),
            seeds=_in(config, "config", "seeds", _each(_seed)),
            alphas=_in(config, "config", "alphas", _each(_alpha)),
            limit=_in(config, "config", "limit", _optional(_count)),
            pairs=pairs,
        ),
        subject=Subject(
            model=_in(provenance, "provenance", "model", _text),
            method=_in(config, "config", "method", _text),
            steps=_in(config, "config", "steps", _count),
            guidance=_in(config, "config", "guidance", _guidance),
            scheduler=_in(provenance, "provenance", "scheduler", _text),
            dtype=_in(config, "config", "dtype", _text),
            device=_in(config, "config", "device", _text),
            suite=_in(provenance, "provenance", "suite", _text),
            commit=_in(provenance, "provenance", "git_commit", _optional(_text)),
            packages=_in(provenance, "provenance", "packages", _texts),
            method_version=(
                _in(config, "config", "method_version", _text) if "method_version" in config else ""
            ),
        ),
        machine=_in(provenance, "provenance", "machine", _machine),
        provenance=provenance,
    )


def _recorded(results: Mapping[str, Any], path: Path | None) -> Recorded:
    header = _header(results, path)
    overall = _mapping(_value(results, "overall", ""), "overall")
    verdict = _in(overall, "overall", "verdict", _verdict)
    throughput = _mapping(_value(results, "throughput", ""), "throughput")
    return Recorded(
        path=path,
        measurement=header.measurement,
        subject=header.subject,
        machine=header.machine,
        provenance=header.provenance,
        cells=_cells(_value(results, "cells", ""), header.measurement),
        overall_verdict=verdict,
        overall_mean=_mean_of(overall, "overall", verdict),
        throughput={
            stage: _in(throughput, "throughput", f"{stage}_images_per_s", _optional(_rate))
            for stage in ("generate", "score")
        },
    )


def _cells(value: Any, measurement: Measurement) -> dict[Cell, RecordedCell]:
    """Every category at every alpha, once, in the measurement's order."""
    found: dict[Cell, RecordedCell] = {}
    for index, row in enumerate(_list(value, "cells")):
        place = f"cells[{index}]"
        cell, figures = _cell(row, place)
        if cell.category not in measurement.pairs or cell.alpha not in measurement.alphas:
            raise _PlaceError(
                f"{place}: expected a category of 'pairs' and an alpha of the configuration, "
                f"got {cell}"
            )
        if cell in found:
            raise _PlaceError(f"{place}: expected each cell once, got another {cell}")
        found[cell] = figures
    grid = [Cell(category, alpha) for category in measurement.pairs for alpha in measurement.alphas]
    missing = [cell for cell in grid if cell not in found]
    if missing:
        raise _PlaceError(
            f"cells: expected one for every category and alpha, got none of {missing[0]}"
        )
    _check_pairs(found, measurement)
    return {cell: found[cell] for cell in grid}


def _cell(row: Any, place: str) -> tuple[Cell, RecordedCell]:
    row = _mapping(row, place)
    cell = Cell(_in(row, place, "category", _text), _in(row, place, "alpha", _alpha))
    verdict = _in(row, place, "verdict", _verdict)
    n = _in(row, place, "n", _count)
    mean = _mean_of(row, place, verdict)
    items = {
        _text(pair, f"{place}.items"): _margin(margin, f"{place}.items[{shown(pair)}]")
        for pair, margin in _mapping(_value(row, "items", f"{place}."), f"{place}.items").items()
    }
    if verdict is Verdict.INCOMPLETE:
        if len(items) > n:
            raise _PlaceError(f"{place}.items: expected at most n = {n}, got {len(items)}")
    elif len(items) != n:
        raise _PlaceError(f"{place}.items: expected n = {n} of them, got {len(items)}")
    elif abs(mean - math.fsum(items.values()) / n) > _SAME_MEAN:
        raise _PlaceError(f"{place}.mean: expected the items' mean, got {mean}")
    return cell, RecordedCell(*cell, verdict, n, mean, items)


def _check_pairs(cells: Mapping[Cell, RecordedCell], measurement: Measurement) -> None:
    """The complete cells of a category are of the same pairs, and no pair is in two categories."""
    owner: dict[str, str] = {}
    for category in measurement.pairs:
        mine = [cells[Cell(category, alpha)] for alpha in measurement.alphas]
        complete = [cell for cell in mine if cell.verdict is not Verdict.INCOMPLETE]
        if any(cell.items.keys() != complete[0].items.keys() for cell in complete):
            raise _PlaceError(
                f"cells: expected the same pairs at every alpha, got others in {category}"
            )
        for pair in {pair for cell in mine for pair in cell.items}:
            if owner.setdefault(pair, category) != category:
                raise _PlaceError(
                    f"cells: expected a pair in one category, got {shown(pair)} in two"
                )


def _mean_of(row: Mapping[str, Any], place: str, verdict: Verdict) -> float:
    """A mean margin; NaN for what is incomplete, where the file has null."""
    value = _value(row, "mean", f"{place}.")
    if verdict is not Verdict.INCOMPLETE:
        return _margin(value, f"{place}.mean")
    if value is not None:
        raise _PlaceError(
            f"{place}.mean: expected null where the verdict is incomplete, got {shown(value)}"
        )
    return math.nan


def _value(data: Any, key: str, place: str) -> Any:
    if not isinstance(data, Mapping) or key not in data:
        raise _PlaceError(f"{place}{key}: expected a value, got none")
    return data[key]


def _in(data: Mapping[str, Any], place: str, key: str, check: Callable[[Any, str], T]) -> T:
    """The checked value of a key."""
    return check(_value(data, key, f"{place}."), f"{place}.{key}")


def _optional(check: Callable[[Any, str], T]) -> Callable[[Any, str], T | None]:
    return lambda value, place: None if value is None else check(value, place)


def _each(check: Callable[[Any, str], T]) -> Callable[[Any, str], tuple[T, ...]]:
    """A list of different values, in ascending order: a mean does not depend on theirs."""

    def check_each(value: Any, place: str) -> tuple[T, ...]:
        made: Iterable[Any] = [check(one, place) for one in _list(value, place)]
        ordered = tuple(sorted(set(made)))
        if not ordered or len(ordered) < len(value):
            raise _PlaceError(f"{place}: expected a value or more, each once, got {shown(value)}")
        return ordered

    return check_each


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _PlaceError(f"{place}: expected an object, got {shown(value)}")
    return value


def _list(value: Any, place: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _PlaceError(f"{place}: expected a list, got {shown(value)}")
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
        raise _PlaceError(f"{place}: expected a text, got {shown(value)}")
    if not is_printable(value):
        raise _PlaceError(
            f"{place}: expected a text without control characters, got {shown(value)}"
        )
    return value


def _texts(value: Any, place: str) -> dict[str, str]:
    return {
        _text(key, place): _text(text, f"{place}[{shown(key)}]")
        for key, text in _mapping(value, place).items()
    }


def _machine(value: Any, place: str) -> dict[str, Any]:
    """The machine's properties: plain values, to be compared and shown."""
    made: dict[str, Any] = {}
    for key, one in _mapping(value, place).items():
        if not isinstance(one, (str, int, float, type(None))):
            raise _PlaceError(f"{place}[{shown(key)}]: expected a plain value, got {shown(one)}")
        made[_text(key, place)] = one
    if not made:
        raise _PlaceError(f"{place}: expected the machine's properties, got none")
    return made


def _verdict(value: Any, place: str) -> Verdict:
    try:
        return Verdict(value)
    except (ValueError, TypeError):
        names = ", ".join(Verdict)
        raise _PlaceError(f"{place}: expected one of {names}, got {shown(value)}") from None


def _number(value: Any, place: str, low: float, high: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # false for NaN
        raise _PlaceError(
            f"{place}: expected a number from {low:g} to {high:g}, got {shown(value)}"
        )
    return float(value)


def _integer(value: Any, place: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _PlaceError(f"{place}: expected an integer from {low} to {high}, got {shown(value)}")
    return value


def _count(value: Any, place: str) -> int:
    return _integer(value, place, 1, MAX_COUNT)


def _seed(value: Any, place: str) -> int:
    return _integer(value, place, 0, MAX_SEED)


def _margin(value: Any, place: str) -> float:
    return _number(value, place, -MARGIN_LIMIT, MARGIN_LIMIT)


def _guidance(value: Any, place: str) -> float:
    return _number(value, place, 0.0, MAX_GUIDANCE)


def _rate(value: Any, place: str) -> float:
    return _number(value, place, 1e-9, 1e9)


def _alpha(value: Any, place: str) -> float:
    alpha = _number(value, place, -ALPHA_LIMIT, ALPHA_LIMIT)
    if alpha == UNSTEERED:
        raise _PlaceError(
            f"{place}: expected a strength other than the control's, got {shown(value)}"
        )
    return alpha
