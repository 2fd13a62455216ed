"""The results of an evaluation: plain frozen dataclasses, for JSON, pandas and terminals."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import pandas as pd

from analogy.core.records import Figures
from analogy.core.strict_json import parse
from analogy.evaluation.protocol import near
from analogy.statistics.values import MIN_DECISIVE

EVALUATION_VERSION = 1
"""The schema version of ``Report.to_json``."""

WIDTH = 100

Values = Mapping[str, float | None]


class PairVerdict(StrEnum):
    """The verdict on b from the 95% interval of b - a.

    - ``better``, ``worse``: the interval lies on one side of 0;
    - ``different``: the same, for a metric of which neither higher nor lower is better;
    - ``undecided``: the interval contains 0;
    - ``too_few``: 5 prompts or fewer decide nothing.
    """

    BETTER = "better"
    WORSE = "worse"
    DIFFERENT = "different"
    UNDECIDED = "undecided"
    TOO_FEW = "too_few"

    @classmethod
    def of(
        cls, low: float, high: float, *, n_prompts: int, higher_is_better: bool | None
    ) -> PairVerdict:
        """The verdict of an interval of b - a over prompts."""
        if n_prompts < MIN_DECISIVE:
            return cls.TOO_FEW
        if low <= 0 <= high:
            return cls.UNDECIDED
        if higher_is_better is None:
            return cls.DIFFERENT
        return cls.BETTER if (low > 0) is higher_is_better else cls.WORSE


@dataclass(frozen=True, slots=True)
class Unequal:
    """A setting of sampling in which two compared models differ. A difference in figures may be due
    to it and not to the models.
    """

    setting: str
    a: float
    b: float

    def __str__(self) -> str:
        return f"{self.setting} (a {self.a:g}, b {self.b:g})"


@dataclass(frozen=True, kw_only=True)
class MetricResult(Figures):
    """One metric's figures.

    - `value`: in single mode the mean over prompts of the mean over a prompt's images, or the one
      value of a metric of sets or cost. In pairwise mode `value_b` - `value_a`, or one value of b
      against a (`value_a` and `value_b` are then None). None if it is infinite;
    - `ci_low`, `ci_high`: its 95% bootstrap interval over prompts (for word pairs over pairs), each
      resampled with all its images. None without an interval; `ci_absent` then has the reason;
    - `n`: the number of images behind the value (for a cost, of repetitions); `n_prompts`: the
      number of prompts or pairs; `n_failed`: the number of failed images, which are not scored;
      `n_infinite`: the number of images with an infinite value;
    - `values`: image key to its value, None if infinite; in pairwise mode to b - a, with those of a
      and b in `values_a` and `values_b`. None if the metric has no values of single images;
    - `verdict`: in pairwise mode, for a value with an interval, whether b is better or worse than a
      by this metric alone; otherwise None;
    - `models`: fingerprints, by ``model`` or by ``a`` and ``b``; `judge`: the fingerprint of the
      network that the metric uses; `versions`: those of the packages involved;
    - `notes`: remarks to show with the value.
    """

    name: str
    mode: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_absent: str | None = None
    n: int
    n_prompts: int | None = None
    n_failed: int = 0
    n_infinite: int = 0
    higher_is_better: bool | None
    units: str = ""
    value_a: float | None = None
    value_b: float | None = None
    values: Values | None = None
    values_a: Values | None = None
    values_b: Values | None = None
    verdict: PairVerdict | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    judge: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetricResult:
        """The result that ``to_dict`` wrote."""
        given = {"verdict": None, **values}  # files of earlier versions have no verdict
        said = given["verdict"]
        verdict = None if said is None else PairVerdict(said)
        return cls(**{**given, "notes": tuple(given["notes"]), "verdict": verdict})


@dataclass(frozen=True)
class Report:
    """All results of one evaluation, with its task and models.

    ``config``: the task and its models, in plain values; ``left_out``: metrics of the preset that
    could not be computed, each with the reason; ``unequal``: in pairwise mode, the settings of
    sampling in which the models differ.
    """

    results: tuple[MetricResult, ...]
    config: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)
    unequal: tuple[Unequal, ...] = ()

    def __getitem__(self, name: str) -> MetricResult:
        """The result of the metric of this name. Raises ``KeyError`` for an unknown name."""
        by_name = {result.name: result for result in self.results}
        if name not in by_name:
            raise KeyError(f"{name!r}: expected one of {', '.join(by_name)}{near(name, by_name)}")
        return by_name[name]

    def __iter__(self) -> Iterator[MetricResult]:
        return iter(self.results)

    def to_frame(self) -> pd.DataFrame:
        """A row for each metric, by name; columns of lists and mappings are left out."""
        rows = [result.to_dict() for result in self.results]
        plain = [
            {name: value for name, value in row.items() if not isinstance(value, (dict, list))}
            for row in rows
        ]
        leave = {"values", "values_a", "values_b"}
        return pd.DataFrame(plain).set_index("name").drop(columns=list(leave), errors="ignore")

    def to_json(self) -> str:
        """Strict JSON: no NaN, no infinity."""
        whole = {
            "schema_version": EVALUATION_VERSION,
            "config": self.config,
            "results": [result.to_dict() for result in self.results],
            "left_out": self.left_out,
            **({"unequal": [asdict(one) for one in self.unequal]} if self.unequal else {}),
        }
        return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that ``to_json`` wrote. Raises ``ValueError`` for any other text."""
        whole = parse(text)
        version = whole.get("schema_version") if isinstance(whole, dict) else None
        if version != EVALUATION_VERSION:
            raise ValueError(
                f"report: expected schema version {EVALUATION_VERSION}, got {version!r}; evaluate "
                "again"
            )
        try:
            results = tuple(MetricResult.from_dict(row) for row in whole["results"])
            unequal = tuple(Unequal(**one) for one in whole.get("unequal", ()))
            return cls(results, whole["config"], whole["left_out"], unequal)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"report: expected what Report.to_json wrote, got another JSON ({error}); evaluate "
                "again"
            ) from error

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        config = self.config
        what = config["what"] if isinstance(config["what"], str) else "metrics"
        models = config["models"]
        on = f"{config['n_data']} {config['data']}"
        if config["n_images"]:
            on = f"{config['n_images']} images; data: {on}; judge: {config['judge']}"
        yield from _wrapped(f"{what}, {config['mode']} mode: {on}")
        for name, model in models.items():
            said = ", ".join(
                f"{key} {value}"
                for key, value in model.items()
                if key not in ("fingerprint", "scheduler")
            )
            yield from _wrapped(f"{name}: {model['fingerprint']} ({said})", "   ")
        if self.unequal:
            yield from _wrapped(
                f"unequal: {', '.join(map(str, self.unequal))}: a difference may be due to this, "
                "and not to the models",
                "   ",
            )
        notes: list[str] = []
        singles = [r for r in self.results if r.value_a is None and r.value_b is None]
        paired = [r for r in self.results if r.value_a is not None or r.value_b is not None]
        alone = "b against a" if config["mode"] == "pairwise" else "value"
        for rows, title in ((paired, "b - a"), (singles, alone)):
            if rows:
                yield ""
                yield from _table(rows, title, notes)
        if notes or self.left_out:
            yield ""
        for i, note in enumerate(notes, start=1):
            yield from _wrapped(f"[{i}] {note}", "    ")
        for reason in dict.fromkeys(self.left_out.values()):
            names = [name for name, why in self.left_out.items() if why == reason]
            yield from _wrapped(f"left out: {', '.join(names)}: {reason}", "    ")


def _table(rows: list[MetricResult], title: str, notes: list[str]) -> Iterator[str]:
    """A line for each result, in columns as wide as needed; figures are right-aligned."""
    better = {True: "higher", False: "lower", None: "-"}
    lines = [["metric", "a", "b", title, "95% CI", "n", "better", "units", "b is", ""]]
    for row in rows:
        lines.append(
            [
                row.name,
                _number(row.value_a),
                _number(row.value_b),
                "infinite" if row.n_infinite else _number(row.value),
                "-" if row.ci_low is None else f"[{_number(row.ci_low)}, {_number(row.ci_high)}]",
                str(row.n),
                better[row.higher_is_better],
                row.units,
                (row.verdict or "-").replace("_", " "),
                " ".join(f"[{mark}]" for mark in _marks(row, notes)),
            ]
        )
    if title != "b - a":
        lines = [[line[0], *line[3:-2], line[-1]] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    n_texts = 4 if title == "b - a" else 3  # after the figures
    for i, line in enumerate(lines):
        cells = [
            f"{cell:>{width}}" if 0 < place < len(line) - n_texts else f"{cell:<{width}}"
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
        if i == 0:
            yield "-" * len("  ".join(cells))


def _marks(row: MetricResult, notes: list[str]) -> list[int]:
    """The numbers of a row's notes among all notes; new notes are appended."""
    said = list(row.notes)
    if row.n_failed:
        said.append(f"{row.n_failed} failed image(s) left out")
    if row.ci_absent is not None:
        said.append(f"no interval: {row.ci_absent}")
    for note in said:
        if note not in notes:
            notes.append(note)
    return sorted(notes.index(note) + 1 for note in said)


def _number(value: float | None) -> str:
    """Four significant digits; from 100,000 on with a suffix: k, M, G or T."""
    if value is None:
        return "-"
    for letter, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= max(size, 1e5):
            return f"{value / size:.4g} {letter}"
    return f"{value:.4g}"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
