"""Runs a task: generates images once, computes all metrics on them, and adds intervals."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from analogy._version import __version__
from analogy.evaluation.inference import (
    OF_A_COST,
    OF_A_SET,
    REFERENCES,
    Gathered,
    Inference,
    Scored,
    Scores,
    computed,
    n_infinite_of,
    needs_of_all,
    progress_bar,
    wants_images,
)
from analogy.evaluation.protocol import Metric, TaskError, needs_of
from analogy.evaluation.results import MetricResult, PairVerdict, Report, Unequal
from analogy.evaluation.subjects import Model, Subject, open_subject
from analogy.models.defaults import machine
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.statistics.values import MIN_CLUSTERS
from analogy.studies.provenance import package_versions

ONE_CLUSTER = "one prompt: an interval over prompts takes two or more"


SAMPLED = ("steps", "guidance", "size")
"""Settings that make a comparison of two models unequal if they differ."""


class _Mean(TypedDict, total=False):
    """A part of a :class:`MetricResult`."""

    value: float | None
    n_prompts: int
    ci_absent: str
    ci_low: float
    ci_high: float


class EvaluationAgent(Inference):
    """Evaluates models on a task.

    A model is ``embedded``, a diffusers folder, a ``.safetensors`` file, a hub id, a live diffusers
    pipeline, or a folder of images made elsewhere. Images are made once and kept in the task's run
    folder. Features are computed once for each distinct image, for all metrics and all calls.
    """

    def evaluate(self, model: Any) -> Report:
        """Single mode: a model's images against prompts and references."""
        subject = open_subject(model, self.task)
        metrics, left_out = self.task.choose("single", [subject])
        needs = needs_of_all(metrics)
        self._check_references(metrics, subject.settings.get("size"))
        self._prepare([subject], metrics, needs)
        gathered = self._gather(subject, metrics, needs)
        own = self._samples(gathered, gathered.keys, needs)
        results = [
            self._of_one(metric, gathered.costs.get(metric.name) or computed(metric, own))
            for metric in progress_bar(metrics, "metrics")
        ]
        return self._report(results, {"model": subject}, [gathered], gathered.keys, left_out)

    def _prepare(
        self, subjects: Sequence[Subject], metrics: Sequence[Metric], needs: frozenset[str]
    ) -> None:
        """Load the judge, and the models that lack images, before the first image is made.

        Raises ``ModelError`` for one that cannot be loaded, before any time is spent on images. Of
        two models the second one is released and loaded again later.
        """
        task = self.task
        sees = {getattr(metric, "judge", None) for metric in metrics}
        if task.judge.fingerprint in sees:
            task.judge.load()
        if not wants_images(metrics):
            return
        for subject in reversed(subjects):
            if isinstance(subject, Model) and subject.lacks(self._wanted(needs)):
                subject.prepare()
                if subject is not subjects[0]:
                    subject.release()

    def _check_references(self, metrics: Sequence[Metric], size: Any) -> None:
        """Read the references before anything is generated.

        Raises :class:`TaskError` if there are fewer than a metric needs, or if a metric compares
        pixel by pixel and a reference has not the size of the model's images.
        """
        task, needs = self.task, needs_of_all(metrics)
        if "reference_set" in needs:
            count = 0 if task.reference_set is None else len(task.reference_set)
            for metric in metrics:
                least = getattr(metric, "least", 1)
                if "reference_set" in needs_of(metric) and 0 < count < least:
                    raise TaskError(
                        f"{metric.name} needs {least} references or more, got {count}; give more, "
                        "or leave it out"
                    )
        images = {}
        if "references" in needs:
            images = task.reference_images
        strict = [metric.name for metric in metrics if getattr(metric, "same_size", False)]
        for name, image in images.items():
            if strict and size is not None and image.shape[:2] != (size, size):
                raise TaskError(
                    f"reference of {name!r}: expected {size}x{size} pixels as the model's images "
                    f"have, got {image.shape[1]}x{image.shape[0]}; resize it, or leave out what "
                    f"compares pixel by pixel ({', '.join(strict)})"
                )

    def compare(self, model_a: Any, model_b: Any) -> Report:
        """Pairwise mode: two models' images of the same prompts and latents, matched by key.

        Metrics of single images give both values and b - a, prompt by prompt, with a verdict.
        Metrics that need references compare b's images with a's. Models may differ in steps,
        guidance and size; the report lists such settings in ``unequal``.
        """
        a, b = open_subject(model_a, self.task), open_subject(model_b, self.task)
        metrics, left_out = self.task.choose("pairwise", [a, b])
        needs = needs_of_all(metrics) - REFERENCES
        if wants_images(metrics):
            self._check_sizes(metrics, [each.check(self._wanted(needs)) for each in (a, b)])
        self._prepare([a, b], metrics, needs)
        parts = [self._gather(subject, metrics, needs) for subject in (a, b)]
        _check_same_names(*parts)
        keys = tuple(key for key in parts[0].keys if key in set(parts[1].keys))
        if not keys and wants_images(metrics):
            raise TaskError("compare: no image to score: of each pair of images one or both failed")
        own_a, own_b = (self._samples(part, keys, needs) for part in parts)
        against = replace(own_b, references=own_a.images, reference_set=own_a.images)
        results = []
        for metric in progress_bar(metrics, "metrics"):
            if needs_of(metric) & REFERENCES:
                results.append(self._of_one(metric, computed(metric, against), mode="pairwise"))
                continue
            both = [
                part.costs.get(metric.name) or computed(metric, own)
                for part, own in zip(parts, (own_a, own_b), strict=True)
            ]
            results.append(self._of_two(metric, *both))
        report = self._report(results, {"a": a, "b": b}, parts, keys, left_out)
        return replace(report, unequal=_unequal(a, b))

    @staticmethod
    def _check_sizes(metrics: Sequence[Metric], sizes: Sequence[tuple[int, int] | None]) -> None:
        """Raises :class:`TaskError` if the sizes differ and a metric compares pixel by pixel."""
        strict = [metric.name for metric in metrics if getattr(metric, "same_size", False)]
        if strict and len(set(sizes)) > 1:
            shown = " and ".join(f"{size[1]}x{size[0]}" for size in sizes if size is not None)
            raise TaskError(
                f"compare: expected images of one size from both, got {shown}; resize a folder's, "
                "give the task a size, or leave out what compares pixel by pixel "
                f"({', '.join(strict)})"
            )

    def _of_one(self, metric: Metric, scored: Scored, mode: str = "single") -> MetricResult:
        """The result of one set of values, or of one value."""
        if scored.values is None:
            absent = OF_A_COST if "model" in needs_of(metric) else OF_A_SET
            return self._result(
                metric, scored, mode, value=_finite(scored.single), ci_absent=absent
            )
        return self._result(
            metric, scored, mode, values=_by_key(scored.keys, scored.values),
            n_infinite=int(np.isinf(scored.values).sum()), **self._mean(scored.keys, scored.values),
        )  # fmt: skip

    def _of_two(self, metric: Metric, a: Scored, b: Scored) -> MetricResult:
        """The difference b - a, prompt by prompt, or of two single values."""
        notes = tuple(dict.fromkeys((*a.notes, *b.notes)))
        if a.values is None or b.values is None:
            absent = OF_A_COST if "model" in needs_of(metric) else OF_A_SET
            return self._result(
                metric, replace(b, notes=notes), "pairwise", value=_finite(b.single - a.single),
                value_a=_finite(a.single), value_b=_finite(b.single), ci_absent=absent,
            )  # fmt: skip
        with np.errstate(invalid="ignore"):  # of two infinite values
            difference = b.values - a.values
        infinite = np.isinf(a.values) | np.isinf(b.values)
        mean = self._mean(b.keys, difference)
        return self._result(
            metric,
            replace(b, notes=notes),
            "pairwise",
            values=_by_key(b.keys, difference),
            values_a=_by_key(a.keys, a.values),
            values_b=_by_key(b.keys, b.values),
            value_a=self._mean(a.keys, a.values)["value"],
            value_b=self._mean(b.keys, b.values)["value"],
            n_infinite=int(infinite.sum()),
            verdict=_verdict(mean, metric.higher_is_better),
            **mean,
        )

    def _result(self, metric: Metric, scored: Scored, mode: str, **figures: Any) -> MetricResult:
        return MetricResult(
            name=metric.name,
            mode=mode,
            n=scored.n,
            higher_is_better=metric.higher_is_better,
            units=getattr(metric, "units", ""),
            judge=getattr(metric, "judge", None),
            **{"notes": scored.notes, **figures},
        )

    def _mean(self, keys: Sequence[str], values: Scores) -> _Mean:
        """The mean over prompts (each the mean of its images), and its interval over prompts."""
        clusters = {sample.key: sample.cluster for sample in self.task.samples}
        names = [clusters.get(key, key) for key in keys]
        n = len(set(names))
        if not np.isfinite(values).all():
            return {"value": None, "n_prompts": n, "ci_absent": n_infinite_of(values)}
        # A float64 sum depends on the order of its terms; sorting makes it reproducible.
        ordered = pd.Series(values, index=names).sort_values()
        means = ordered.groupby(level=0, sort=True).mean().to_numpy()
        value = float(np.sort(means).mean())
        if n < MIN_CLUSTERS:
            return {"value": value, "n_prompts": n, "ci_absent": ONE_CLUSTER}
        low, high = bootstrap_ci(means, seed=self.task.seed)
        return {"value": value, "n_prompts": n, "ci_low": low, "ci_high": high}

    def _report(
        self,
        results: Sequence[MetricResult],
        subjects: Mapping[str, Subject],
        parts: Sequence[Gathered],
        keys: Sequence[str],
        left_out: Mapping[str, str],
    ) -> Report:
        """The report: the results, with the models and versions added to each."""
        lost = {key for part in parts for key in part.failed}
        models = {name: subject.fingerprint for name, subject in subjects.items()}
        versions = {"analogy-bench": __version__, **package_versions()}
        for package in ("torchmetrics", "torch-fidelity"):
            versions[package] = importlib.metadata.version(package)
        config = {
            **self.task.to_dict(),
            "mode": "pairwise" if len(subjects) > 1 else "single",
            "models": {
                name: {"fingerprint": subject.fingerprint, **subject.settings}
                for name, subject in subjects.items()
            },
            "n_images": len(keys),
            "failed": {key: reason for part in parts for key, reason in part.failed.items()},
            "versions": versions,
            "machine": machine(self.task.device),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        with_all = tuple(
            replace(
                result,
                models=models,
                versions=versions,
                n_failed=0 if result.ci_absent == OF_A_COST else len(lost),
            )
            for result in results
        )
        return Report(with_all, config, left_out)


def _check_same_names(a: Gathered, b: Gathered) -> None:
    """Raises :class:`TaskError` if the two sides have images of different names, since it is
    unknown which of them belong together.
    """
    odd = sorted({*a.keys, *a.failed} ^ {*b.keys, *b.failed})
    if odd:
        raise TaskError(
            "compare: expected images of the same names in both, got "
            f"{len(odd)} that only one of them has, the first {odd[0]!r}; take them out"
        )


def _verdict(mean: _Mean, higher_is_better: bool | None) -> PairVerdict | None:
    """The verdict on the mean difference b - a; None if it has no interval."""
    if "ci_low" not in mean or "ci_high" not in mean:
        return None
    return PairVerdict.of(
        mean["ci_low"], mean["ci_high"],
        n_prompts=mean["n_prompts"], higher_is_better=higher_is_better,
    )  # fmt: skip


def _unequal(a: Subject, b: Subject) -> tuple[Unequal, ...]:
    """The settings of sampling that differ; empty for a folder, whose settings are unknown."""
    found = (Unequal(n, float(a.settings[n]), float(b.settings[n])) for n in SAMPLED
             if n in a.settings and n in b.settings)  # fmt: skip
    return tuple(one for one in found if one.a != one.b)


def _by_key(keys: Sequence[str], values: Scores) -> dict[str, float | None]:
    return {key: _finite(value) for key, value in zip(keys, values.tolist(), strict=True)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
