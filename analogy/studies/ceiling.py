"""The ceiling: the judge's margins for images of the true target, and whether it sees the change.

A margin has no unit of its own: 0.031 is large if the judge gives 0.05 to an image that truly shows
the target, and small if it gives 0.5. The embedded world can draw both prompts of every pair, so
`python -m analogy.world.ceiling` renders them, scores the drawings like any image, and writes the
margins. This module reads them and computes a cell's ceiling.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from analogy.core.errors import AnalogyError, ModelError
from analogy.core.records import Pair
from analogy.core.strict_json import is_integer, is_number, parse
from analogy.core.text import command_line
from analogy.models.places import shipped
from analogy.results.model import Ceiling
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.statistics.values import MIN_DECISIVE
from analogy.store.grid import content, digest

SCHEMA_VERSION = 1

Margins = tuple[float, ...]


class CeilingError(AnalogyError, ValueError):
    """A ground-truth file is missing or invalid; the message says what to do."""


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Margins of drawings that truly show a pair's prompts.

    - ``judge``: the fingerprint of the judge that gave them;
    - ``pairs``: digest of a pair's content -> the margins of drawings of its target, and those of
      its source. The i-th drawings of both have the same layout. Margins are in -2..2, and every
      list has the same length.
    """

    path: Path
    judge: str
    pairs: Mapping[str, tuple[Margins, Margins]]


def ceiling(truth: GroundTruth, pairs: Sequence[Pair]) -> Ceiling | None:
    """The ceiling of one category's pairs. Returns None if any of them is missing from the file.

    The judge is **blind** for a category if it cannot distinguish a perfect edit from no edit; a
    cell's verdict would then say nothing about the method. The judge is not blind if the lower ends
    of two 95% intervals over pairs are both above 0:

    - that of the ceiling: otherwise images that certainly show the target would not succeed;
    - that of the change from source to target: otherwise a ceiling above 0 comes from the prompts
      (one of the two wordings is nearer to all images), and doing nothing would succeed.

    A judge whose margins are noise meets both in fewer than 1 of 40 categories. The AUC is not a
    condition: it also falls where pairs merely need different thresholds, while a margin, being a
    difference within the pair, needs no threshold. With fewer than `MIN_DECISIVE` pairs no interval
    decides anything, and the judge is never called blind. Raises ValueError if `pairs` is empty.
    """
    if not pairs:
        raise ValueError("ceiling: expected at least one pair, got none")
    found = [truth.pairs.get(digest(content(pair))) for pair in pairs]
    drawn = [margins for margins in found if margins is not None]
    if len(drawn) < len(found):
        return None
    targets, sources = ([margins[side] for margins in drawn] for side in (0, 1))
    target_means, source_means = ([_mean(m) for m in side] for side in (targets, sources))
    changes = [t - s for t, s in zip(target_means, source_means, strict=True)]
    low, high = bootstrap_ci(target_means)
    change_low, change_high = bootstrap_ci(changes)
    return Ceiling(
        n=len(drawn),
        mean=_mean(target_means),
        ci_low=low,
        ci_high=high,
        floor=_mean(source_means),
        change=_mean(changes),
        change_low=change_low,
        change_high=change_high,
        auc=auc(np.concatenate(targets), np.concatenate(sources)),
        is_blind=len(drawn) >= MIN_DECISIVE and not (low > 0 and change_low > 0),
    )


def auc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Area under the ROC curve: the share of pairs of one of `positives`, shape (n,), and one of
    `negatives`, shape (m,), in which the positive is larger. Ties count half. In 0..1; it is the
    Mann-Whitney U divided by n m.
    """
    u = scipy.stats.mannwhitneyu(positives, negatives, method="asymptotic").statistic
    return float(u / (np.size(positives) * np.size(negatives)))


def default_path() -> Path | None:
    """The shipped ground truth of the embedded judge and pairs; None if it is not installed."""
    try:
        return shipped("baselines/embedded-ceiling.json")
    except ModelError:
        return None


def load(path: Path) -> GroundTruth:
    """Read a file written by `python -m analogy.world.ceiling`.

    Raises `CeilingError` if the file is missing, damaged, or of another kind or schema version.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for
            raise _refusal(path, "a JSON file", "a device or a pipe")
        return _ground_truth(path, parse(path.read_text("utf-8")))
    except OSError as error:
        raise CeilingError(
            f"ground truth {path}: cannot be read ({error}); write it with: {_command(path)}"
        ) from error
    except CeilingError:
        raise
    except ValueError as error:
        raise _refusal(path, "a JSON file", f"{type(error).__name__}: {error}") from error


def _ground_truth(path: Path, data: Any) -> GroundTruth:
    """The file's content, fully validated."""

    def check(is_so: bool, expected: str, got: Any) -> None:
        if not is_so:
            raise _refusal(path, expected, reprlib.repr(got))

    check(isinstance(data, dict), "an object at the top", data)
    for name in ("schema_version", "judge", "renders", "pairs"):
        check(name in data, f"the key {name!r}", sorted(data))
    version, judge, renders = data["schema_version"], data["judge"], data["renders"]
    check(is_integer(version) and version == SCHEMA_VERSION,
          f"schema version {SCHEMA_VERSION}", version)  # fmt: skip
    check(isinstance(judge, str) and bool(judge), "the judge's fingerprint, a string", judge)
    check(is_integer(renders) and renders >= 1, "renders, an integer >= 1", renders)
    check(isinstance(data["pairs"], dict), "pairs, an object by digest", data["pairs"])
    pairs = {}
    for key, record in data["pairs"].items():
        check(re.fullmatch("[0-9a-f]{32}", key) is not None, "a pair's digest, 32 hex digits", key)
        check(isinstance(record, dict), f"pair {key} to be an object", record)
        for name in ("id", "category"):
            text = record.get(name)
            check(isinstance(text, str) and bool(text), f"pair {key} to have a text {name!r}", text)
        sides = []
        for name in ("target", "source"):
            values = record.get(name)
            check(
                isinstance(values, list)
                and len(values) == renders
                and all(_is_margin(value) for value in values),
                f"pair {key} to have {renders} margins in -2..2 as {name!r}",
                values,
            )
            sides.append(tuple(float(value) for value in record[name]))
        pairs[key] = (sides[0], sides[1])
    return GroundTruth(path, judge, pairs)


def _is_margin(value: object) -> bool:
    return is_number(value) and -2 <= value <= 2


def _refusal(path: Path, expected: str, got: str) -> CeilingError:
    return CeilingError(
        f"ground truth {path}: expected {expected}, got {got}; write the file anew with: "
        f"{_command(path)}"
    )


def _command(path: Path) -> str:
    return command_line("python", "-m", "analogy.world.ceiling", "-o", path)


def _mean(values: Sequence[float]) -> float:
    """The mean, the same to the last bit for every order of the values."""
    return math.fsum(values) / len(values)
