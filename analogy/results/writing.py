"""Results written as JSON: see docs/results.md and ``analogy/schemas/results.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from analogy.core.files import write_output
from analogy.core.records import Estimate, plain
from analogy.core.strict_json import Json
from analogy.core.strict_json import encoded as encoded_json
from analogy.results.answer import answer_of
from analogy.results.cost import MethodCost
from analogy.results.model import (
    RESULTS_VERSION,
    Analysis,
    Ceiling,
    CellFigures,
    Failure,
    Header,
    Pool,
    Provenance,
    QualityFigures,
    Results,
    Saved,
    TargetFigures,
)

JsonObject = dict[str, object]
"""A JSON object; its keys are written in their order."""


def write_results(results: Results, path: Path) -> None:
    """Write results as strict JSON, atomically: a reader sees the old file or the new one.

    ``path`` may be a device or a link to a file (:func:`analogy.core.files.write_output`).
    """
    write_output(path, encoded(results))


def encoded(results: Results) -> bytes:
    """The content of a results file."""
    return encoded_json(to_json(results))


def to_json(results: Results) -> JsonObject:
    """The whole results file as plain values; a missing figure is null."""
    lacking = {
        "unread": list(results.unread),
        "unsteered": list(results.unsteered),
        "uneven": list(results.uneven),
    }
    return {
        **header_to_json(results.header),
        **{name: ids for name, ids in lacking.items() if ids},
        **({"unknown_words": _lists(results.unknown)} if results.unknown else {}),
        "answer": answer_of(results.analysis, results.unknown_words).to_dict(),
        **analysis_to_json(results.analysis),
        "quality": quality_to_json(results.quality),
        "failures": [_failure(failure) for failure in results.failures],
        "throughput": {
            "generate_images_per_s": results.throughput.generate,
            "score_images_per_s": results.throughput.score,
            "workers": dict(results.throughput.workers),
        },
        "peak_memory_bytes": results.peak_memory_bytes,
        **({} if results.saved is None else {"sequential": _saved(results.saved)}),
        **({} if results.cost is None else {"cost": cost_to_json(results.cost)}),
    }


def header_to_json(header: Header) -> JsonObject:
    """The header: configuration, provenance and pairs."""
    return {
        "schema_version": RESULTS_VERSION,
        "config": dict(header.config.values),
        "provenance": provenance_to_json(header.provenance),
        "pairs": dict(header.measurement.pairs),
    }


def provenance_to_json(provenance: Provenance) -> JsonObject:
    """The provenance of the figures."""
    ceiling = {} if provenance.ceiling is None else {"ceiling": provenance.ceiling}
    guidance = {} if provenance.guidance is None else {"guidance": provenance.guidance}
    return {
        **ceiling,
        **guidance,
        "suite": provenance.suite,
        "model": provenance.model,
        "judge": provenance.judge,
        "scheduler": provenance.scheduler,
        "python": provenance.python,
        "packages": dict(provenance.packages),
        "git_commit": provenance.git_commit,
        "machine": dict(provenance.machine),
        "time": provenance.time,
    }


def analysis_to_json(analysis: Analysis) -> JsonObject:
    """The figures of margins."""
    return {
        "cells": [cell_to_json(figures) for figures in analysis.cells.values()],
        "controls": [_unsteered(figures) for figures in analysis.unsteered.values()],
        "targets": [_target(figures) for figures in analysis.targets.values()],
        "categories": [
            {"category": name, **_pool(pool)} for name, pool in analysis.categories.items()
        ],
        "alphas": [{"alpha": alpha, **_pool(pool)} for alpha, pool in analysis.alphas.items()],
        "overall": {**_pool(analysis.overall), "blind": analysis.blind},
    }


def cell_to_json(figures: CellFigures) -> JsonObject:
    """One cell."""
    return {
        "category": figures.cell.category,
        "alpha": figures.cell.alpha,
        **figures.margin.to_dict(),
        "p_holm": plain(figures.p_holm),
        "p_bh": plain(figures.p_bh),
        "gain": plain(figures.gain),
        "ceiling": _ceiling(figures.ceiling, figures.share),
        "target_share": plain(figures.target_share),
        "random": plain(figures.null),
        "items": dict(figures.items),
        **_later(figures),
    }


def _later(figures: CellFigures) -> JsonObject:
    """The keys that files of earlier suites lack."""
    made: JsonObject = {}
    if figures.seeds:
        made["seeds"] = {pair: list(margins) for pair, margins in figures.seeds.items()}
    if figures.stop is not None:
        made["stop"] = figures.stop.to_dict()
    if figures.gain_stop is not None:
        made["gain_stop"] = figures.gain_stop.to_dict()
    return made


def quality_to_json(quality: QualityFigures) -> JsonObject:
    """The metrics beside the margin."""
    more: JsonObject = {}
    if quality.metrics:
        more["metrics"] = [metric.to_dict() for metric in quality.metrics]
    if quality.features is not None:
        more["features"] = quality.features
    return {
        "cells": [
            {**cell._asdict(), **{name: mean.to_dict() for name, mean in found.items()}}
            for cell, found in quality.cells.items()
        ],
        "alphas": [
            {"alpha": alpha, **{name: one.to_dict() for name, one in found.items()}}
            for alpha, found in quality.alphas.items()
        ],
        "lpips": quality.lpips,
        "references": quality.references,
        **more,
    }


def _unsteered(figures: CellFigures) -> JsonObject:
    return {
        "category": figures.cell.category,
        "alpha": figures.cell.alpha,
        **_unclaimed(figures.margin),
        "ceiling": _ceiling(figures.ceiling, figures.share),
        "target_share": plain(figures.target_share),
        "items": dict(figures.items),
        **_later(figures),
    }


def _target(figures: TargetFigures) -> JsonObject:
    return {
        "category": figures.category,
        **_unclaimed(figures.margin),
        "ceiling": _ceiling(figures.ceiling, figures.share),
        "items": dict(figures.items),
        **({} if figures.stop is None else {"stop": figures.stop.to_dict()}),
    }


def _unclaimed(margin: Estimate) -> Mapping[str, object]:
    """The figures of images without a verdict, less the verdict and ``n_needed``."""
    claims = ("verdict", "n_needed")
    return {name: value for name, value in margin.to_dict().items() if name not in claims}


def _ceiling(ceiling: Ceiling | None, share: float | None) -> JsonObject | None:
    return None if ceiling is None else {**ceiling.to_dict(), "share": plain(share)}


def _pool(pool: Pool) -> JsonObject:
    return {
        **pool.margin.to_dict(),
        "gain": plain(pool.gain),
        "trend": plain(pool.trend),
        "item_level": plain(pool.items),
        **({} if pool.stop is None else {"stop": pool.stop.to_dict()}),
        **({} if pool.gain_stop is None else {"gain_stop": pool.gain_stop.to_dict()}),
    }


def _lists(words: Mapping[str, tuple[str, ...]]) -> JsonObject:
    return {pair: list(of) for pair, of in words.items()}


def cost_to_json(cost: MethodCost) -> dict[str, Json]:
    """A method's cost; figures that were not measured are left out."""
    figures = {
        "seconds_per_image": cost.seconds,
        "unsteered_seconds_per_image": cost.unsteered_seconds,
        "ratio": cost.ratio,
        "memory": cost.memory,
        "peak_memory_bytes": cost.peak_bytes,
    }
    made: dict[str, Json] = {"images": cost.images}
    made |= {name: value for name, value in figures.items() if value is not None}
    if cost.fit is not None:
        inputs = {category: list(digests) for category, digests in cost.fit.inputs.items()}
        made["fit"] = {"seconds": cost.fit.seconds, "images": cost.fit.images, "inputs": inputs}
    return made


def _saved(saved: Saved) -> JsonObject:
    return {**saved.to_dict(), "order": dict(saved.order)}


def _failure(failure: Failure) -> JsonObject:
    made = asdict(failure)
    reason, method = made.pop("reason"), made.pop("method")
    return {**made, **({} if method is None else {"method": method}), "reason": reason}
