"""Baselines: which cells are known not to succeed on a model, and when that may be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analogy.models import EMBEDDED, shipped
from analogy.records import Verdict
from analogy.study import Study, write_results

SCHEMA_VERSION = 1


class BaselineError(ValueError):
    """A baseline cannot be read or written; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Verdicts recorded earlier.

    ``setting``: what must be the same for a recorded verdict to be expected again (model, judge,
    method, steps, guidance, scheduler, size, seeds). ``cells``: (category, alpha) -> the record,
    with a digest of the pairs it was measured on; ``overall``: its record or None.
    """

    path: Path
    setting: Mapping[str, Any]
    cells: Mapping[tuple[str, float], Mapping[str, Any]]
    overall: Mapping[str, Any] | None

    def differences(self, study: Study) -> list[str]:
        """What of the setting differs from the study's, in words; empty when comparable."""
        now = setting_of(study)
        return [
            f"{name}: baseline {self.setting.get(name)}, this run {now[name]}"
            for name in now
            if self.setting.get(name) != now[name]
        ]

    def known_not_to_succeed(self, study: Study, category: str, alpha: float) -> str | None:
        """The recorded verdict, if it is of the same pairs and setting and no success."""
        record = self.cells.get((category, alpha))
        return self._known(study, record, study.pairs_digest(category))

    def overall_known_not_to_succeed(self, study: Study) -> str | None:
        """The recorded overall verdict, if of the same grid and setting and no success."""
        return self._known(study, self.overall, grid_digest(study))

    def _known(self, study: Study, record: Mapping[str, Any] | None, pairs: str) -> str | None:
        if record is None or record["pairs"] != pairs or self.differences(study):
            return None
        return None if record["verdict"] == Verdict.SUCCESS else str(record["verdict"])


def setting_of(study: Study) -> dict[str, Any]:
    """What a recorded verdict depends on, besides the pairs and alpha.

    The dtype is left out: bfloat16 and float32 give the same verdicts but for ties.
    """
    config = study.config
    return {
        "model": study.model.fingerprint,
        "judge": study.judge.fingerprint,
        "method": config.method,
        "steps": config.steps,
        "guidance": config.guidance,
        "scheduler": study.scheduler,
        "size": config.size,
        "seeds": list(config.seeds),
    }


def grid_digest(study: Study) -> str:
    """What identifies the pairs and alphas of an overall figure."""
    from analogy.store import digest

    pairs = {category: study.pairs_digest(category) for category in study.categories}
    return digest([pairs, study.config.alphas])


def default_path(study: Study) -> Path | None:
    """The shipped baseline of the embedded model; other models have none."""
    if study.config.model != EMBEDDED:
        return None
    return shipped("pairs.csv").parent / "baselines" / "embedded.json"


def load(path: Path) -> Baseline:
    """Read a baseline. A file of another kind or version is a :class:`BaselineError`."""
    try:
        data = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
        if data["schema_version"] != SCHEMA_VERSION:
            raise BaselineError(
                f"baseline {path}: expected schema version {SCHEMA_VERSION}, got "
                f"{data['schema_version']!r}; write it anew with --update-baseline"
            )
        cells = {(cell["category"], float(cell["alpha"])): cell for cell in data["cells"]}
        overall = data["overall"]
        for record in [*cells.values(), *([] if overall is None else [overall])]:
            _check_record(record)
        return Baseline(path, dict(data["setting"]), cells, overall)
    except OSError as error:
        raise BaselineError(
            f"baseline {path}: cannot be read ({error}); name another with --baseline or write "
            "it with --update-baseline"
        ) from error
    except BaselineError:
        raise
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise BaselineError(
            f"baseline {path}: not a baseline of this suite ({type(error).__name__}: {error}); "
            "write one with --update-baseline"
        ) from error


def _check_record(record: Mapping[str, Any]) -> None:
    """A record has a verdict and the digest of the pairs that it is of."""
    Verdict(record["verdict"])
    if not isinstance(record["pairs"], str):
        raise TypeError(f"expected the digest of a record's pairs, got {record['pairs']!r}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def update(study: Study, path: Path) -> int:
    """Write the study's complete cells into the baseline at ``path``; returns how many.

    Cells of the same setting that this run did not touch are kept; a baseline of another setting
    is replaced.
    """
    kept: dict[tuple[str, float], Any] = {}
    overall: Any = None
    if path.is_file():
        old = load(path)
        if not old.differences(study):
            kept, overall = dict(old.cells), old.overall
    count = 0
    for category in study.categories:
        for alpha in study.config.alphas:
            figures = study.cell(category, alpha)
            if figures.verdict is Verdict.INCOMPLETE:
                continue
            count += 1
            kept[category, alpha] = {
                "category": category,
                "alpha": alpha,
                "pairs": study.pairs_digest(category),
                **figures.to_dict(),
            }
    whole = study.overall()
    if whole.verdict is not Verdict.INCOMPLETE:
        overall = {"pairs": grid_digest(study), **whole.to_dict()}
    data = {
        "schema_version": SCHEMA_VERSION,
        "setting": setting_of(study),
        "provenance": study.provenance(),
        "cells": list(kept.values()),
        "overall": overall,
    }
    write_results(data, path)
    return count
