"""Results files with planted margins, for the tests of what reads and compares them."""

from __future__ import annotations

import math

import numpy as np
import scipy.stats

from analogy.core.files import write_output
from analogy.core.strict_json import encoded
from analogy.results.model import Results
from analogy.results.writing import to_json

CATEGORIES = ("color", "object", "pattern", "count", "size", "scene", "weather", "emotion")
ALPHAS = (0.5, 0.8, 1.0)


def verdict_of(margins) -> str:
    """The verdict by Student's interval, which needs no resampling."""
    margins = np.asarray(margins)
    n = len(margins)
    if n < 6:
        return "too_few"
    half = scipy.stats.t.ppf(0.975, n - 1) * margins.std(ddof=1) / math.sqrt(n)
    if margins.mean() - half > 0:
        return "success"
    return "failure" if margins.mean() + half < 0 else "inconclusive"


def results(margins, **changed):
    """A results.json of ``margins``: (category, alpha) to a margin per pair, in 0..n-1.

    NaN is a pair that lacks images. ``changed`` sets, by name, any setting of the configuration or
    the provenance, ``pairs`` (digests), ``machine``, ``packages``, ``rates`` or a cell's verdict
    (``verdicts``).
    """
    categories = list(dict.fromkeys(category for category, _ in margins))
    verdicts = changed.get("verdicts", {})
    cells = []
    for (category, alpha), values in margins.items():
        values = np.asarray(values, dtype=float)
        is_there = np.isfinite(values)
        is_whole = bool(is_there.all())
        cell = {
            "category": category,
            "alpha": alpha,
            "n": len(values),
            "n_items": int(is_there.sum()),
            "mean": float(values.mean()) if is_whole else None,
            "verdict": verdict_of(values) if is_whole else "incomplete",
            "items": {f"{category}-{i:02}": float(v) for i, v in enumerate(values) if is_there[i]},
        }
        if (category, alpha) in verdicts:
            cell["verdict"] = verdicts[category, alpha]
        cells.append(cell)
    pooled = np.concatenate(
        [
            np.mean([v for (c, _), v in margins.items() if c == category], axis=0)
            for category in categories
        ]
    )
    is_whole = bool(np.isfinite(pooled).all())
    return {
        "schema_version": 2,
        "config": {
            "model": "embedded",
            "size": changed.get("size", 64),
            "seeds": changed.get("seeds", [0, 1, 2]),
            "alphas": changed.get("alphas", list(dict.fromkeys(alpha for _, alpha in margins))),
            "limit": changed.get("limit"),
            "method": changed.get("method", "word"),
            "steps": changed.get("steps", 8),
            "guidance": changed.get("guidance", 4.0),
            "dtype": changed.get("dtype", "float32"),
            "device": changed.get("device", "cpu"),
        },
        "provenance": {
            "suite": changed.get("suite", "0.1.0"),
            "model": changed.get("model", "sdxl-tiny@sha256:4a73e691038acf97"),
            "judge": changed.get("judge", "clip-tiny@sha256:8b4b0ad3c8f0a561"),
            "scheduler": changed.get("scheduler", "EulerDiscreteScheduler/85496828"),
            "packages": changed.get("packages", {"torch": "2.15.0", "numpy": "2.4.6"}),
            "git_commit": changed.get("git_commit"),
            "machine": changed.get("machine", {"processor": "Xeon", "threads": 2, "device": "cpu"}),
        },
        "pairs": changed.get("pairs", {name: f"digest of {name}" for name in categories}),
        "cells": cells,
        "overall": {
            "mean": float(pooled.mean()) if is_whole else None,
            "verdict": verdict_of(pooled) if is_whole else "incomplete",
        },
        "throughput": {
            f"{stage}_images_per_s": rate
            for stage, rate in changed.get("rates", {"generate": 20.0, "score": 400.0}).items()
        },
    }


def write_results(results, path):
    """Write results, as records or as JSON, to a file."""
    write_output(path, encoded(to_json(results) if isinstance(results, Results) else results))


def noise(n, *seed, sd=0.05):
    """``n`` seeded normal values."""
    return np.random.default_rng(seed).normal(0, sd, n)


def small(n=12, shift=0.1, categories=("color", "size"), alphas=(0.5, 1.0)):
    """Planted margins of a few cells that succeed."""
    return {
        (category, alpha): shift + noise(n, i, j)
        for i, category in enumerate(categories)
        for j, alpha in enumerate(alphas)
    }
