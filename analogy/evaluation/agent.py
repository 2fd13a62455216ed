"""Runs a task: one pass of inference, all metrics on the same images, results with intervals."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from analogy._version import __version__
from analogy.evaluation.data import Sample
from analogy.evaluation.measurement import Measurement
from analogy.evaluation.protocol import Metric, TaskError, needs_of
from analogy.evaluation.results import MetricResult, Report
from analogy.evaluation.samples import FeatureCache, Samples
from analogy.evaluation.subjects import Model, Subject, open_subject
from analogy.evaluation.task import Task
from analogy.images import Images
from analogy.models import machine
from analogy.stats import MIN_CLUSTERS, bootstrap_ci
from analogy.study import package_versions

OF_A_SET = (
    "one value of all images: resampling a set draws images twice, which by itself moves a "
    "distance of distributions"
)
OF_A_COST = "one value of a model on one machine: nothing of it is a sample of prompts"
ONE_CLUSTER = "one prompt: an interval over prompts takes two or more"

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """A metric's result: a value for each image, or a single one; with the keys it includes."""

    keys: tuple[str, ...]
    values: Scores | None
    single: float
    n: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Gathered:
    """A model's part of an evaluation, once its weights are no longer needed.

    ``keys``: the samples that can be scored; ``images``: by key, those at alpha 0 among them;
    ``failed``: the samples that cannot, each with the reason; ``costs``: by metric.
    """

    keys: tuple[str, ...]
    images: Mapping[str, Images]
    failed: Mapping[str, str]
    costs: Mapping[str, Scored]


class EvaluationAgent:
    """Evaluates models on a task.

    A model is ``embedded``, a diffusers folder, a ``.safetensors`` file, a hub id, a live diffusers
    pipeline, or a folder of images made elsewhere. Images are kept in the task's run folder and
    made once; features are computed once for each distinct image, for all metrics and all calls.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._cache = FeatureCache()

    def evaluate(self, model: Any) -> Report:
        """Single mode: a model's images against prompts and references."""
        subject = open_subject(model, self.task)
        metrics, left_out = self.task.choose("single", [subject])
        needs = _needs(metrics)
        self._check_references(metrics, subject.settings.get("size"))
        self._prepare([subject], metrics, needs)
        gathered = self._gather(subject, metrics, needs)
        own = self._samples(gathered, gathered.keys, needs)
        results = [
            self._of_one(metric, gathered.costs.get(metric.name) or _compute(metric, own))
            for metric in _bar(metrics, "metrics")
        ]
        return self._report(results, {"model": subject}, [gathered], gathered.keys, left_out)

    def _prepare(
        self, subjects: Sequence[Subject], metrics: Sequence[Metric], needs: frozenset[str]
    ) -> None:
        """Load judge and models before the first image, where images are missing.

        What cannot be loaded is then a ``ModelError`` that has cost no image. Of several models the
        later ones are loaded once more when it is their turn.
        """
        task = self.task
        sees = {getattr(metric, "judge", None) for metric in metrics}
        if task.judge.fingerprint in sees:
            task.judge.load()
        if not _wants_images(metrics):
            return
        for subject in reversed(subjects):
            if isinstance(subject, Model) and subject.lacks(self._wanted(needs)):
                subject.prepare()
                if subject is not subjects[0]:
                    subject.release()

    def _check_references(self, metrics: Sequence[Metric], size: Any) -> None:
        """Read the references, so that an error is reported before anything is generated."""
        task, needs = self.task, _needs(metrics)
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

        Metrics of single images: both values and b - a, prompt by prompt. Metrics that compare with
        references: b's images against a's.
        """
        a, b = open_subject(model_a, self.task), open_subject(model_b, self.task)
        metrics, left_out = self.task.choose("pairwise", [a, b])
        needs = _needs(metrics) - _REFERENCES
        if _wants_images(metrics):
            self._check_sizes(metrics, [each.check(self._wanted(needs)) for each in (a, b)])
        self._prepare([a, b], metrics, needs)
        parts = [self._gather(subject, metrics, needs) for subject in (a, b)]
        _check_same_names(*parts)
        keys = tuple(key for key in parts[0].keys if key in set(parts[1].keys))
        if not keys and _wants_images(metrics):
            raise TaskError("compare: no image to score: of each pair of images one or both failed")
        own_a, own_b = (self._samples(part, keys, needs) for part in parts)
        against = replace(own_b, references=own_a.images, reference_set=own_a.images)
        results = []
        for metric in _bar(metrics, "metrics"):
            if needs_of(metric) & _REFERENCES:
                results.append(self._of_one(metric, _compute(metric, against), mode="pairwise"))
                continue
            both = [
                part.costs.get(metric.name) or _compute(metric, own)
                for part, own in zip(parts, (own_a, own_b), strict=True)
            ]
            results.append(self._of_two(metric, *both))
        return self._report(results, {"a": a, "b": b}, parts, keys, left_out)

    @staticmethod
    def _check_sizes(metrics: Sequence[Metric], sizes: Sequence[tuple[int, int] | None]) -> None:
        """Refuse images of two sizes if a metric compares them pixel by pixel."""
        strict = [metric.name for metric in metrics if getattr(metric, "same_size", False)]
        if strict and len(set(sizes)) > 1:
            shown = " and ".join(f"{size[1]}x{size[0]}" for size in sizes if size is not None)
            raise TaskError(
                f"compare: expected images of one size from both, got {shown}; resize a folder's, "
                "give the task a size, or leave out what compares pixel by pixel "
                f"({', '.join(strict)})"
            )

    def _sources(self, needs: frozenset[str]) -> dict[str, Sample]:
        """The images at alpha 0 that metrics with these needs compare with, by sample's key."""
        return self.task.sources if needs & {"sources", "references"} else {}

    def _wanted(self, needs: frozenset[str]) -> list[Sample]:
        """Every image that metrics with these needs require of a model, once."""
        samples = (*self.task.samples, *self._sources(needs).values())
        return list({sample.key: sample for sample in samples}.values())

    def _gather(
        self, subject: Subject, metrics: Sequence[Metric], needs: frozenset[str]
    ) -> Gathered:
        """A model's images; and its costs, while it is loaded."""
        sources = self._sources(needs)
        images: Mapping[str, Images] = {}
        failed: Mapping[str, str] = {}
        costs: dict[str, Scored] = {}
        try:
            if _wants_images(metrics):
                wanted = self._wanted(needs)
                with tqdm(total=len(wanted), desc="images", disable=None) as bar:
                    images, failed = subject.images(wanted, bar.update)
            keys, lost = self._usable(images, failed, sources)
            if not keys and _wants_images(metrics):
                raise TaskError(
                    f"{subject.fingerprint}: no image to score: all {len(lost)} images "
                    f"failed ({', '.join(sorted(set(lost.values())))}); try dtype='float32'"
                )
            gathered = Gathered(keys, images, lost, costs)
            costly = [metric for metric in metrics if "model" in needs_of(metric)]
            if costly and isinstance(subject, Model):
                own = replace(self._samples(gathered, keys, needs), model=subject.timed())
                for metric in _bar(costly, "costs"):
                    costs[metric.name] = _compute(metric, own)
        finally:
            subject.release()
        return gathered

    def _usable(
        self,
        images: Mapping[str, Images],
        failed: Mapping[str, str],
        sources: Mapping[str, Sample],
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """The samples that can be scored; and those that cannot, each with the reason.

        ``sources``: the image at alpha 0 that a sample is not scored without, by its key.
        """
        task = self.task
        if not task.samples:
            return tuple(images), dict(failed)
        lost = {}
        for sample in task.samples:
            needed = [sample.key]
            if sample.key in sources:
                needed.append(sources[sample.key].key)
            for key in needed:
                if key in failed:
                    lost[sample.key] = failed[key]
        present = (sample.key for sample in task.samples if sample.key in images)
        return tuple(key for key in present if key not in lost), lost

    def _samples(self, part: Gathered, keys: tuple[str, ...], needs: frozenset[str]) -> Samples:
        """The samples for metrics with these needs."""
        task = self.task
        if not keys:
            return Samples(keys=keys, cache=self._cache)
        by_key = {sample.key: sample for sample in task.samples}
        own = task.data.given(
            part.images if by_key else {key: part.images[key] for key in keys},
            [by_key[key] for key in keys] if by_key else [],
            needs,
            lambda: task.reference_images,
            self._cache,
        )
        return replace(own, reference_set=task.reference_set) if "reference_set" in needs else own

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
            **self._mean(b.keys, difference),
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

    def _mean(self, keys: Sequence[str], values: Scores) -> dict[str, Any]:
        """The mean over prompts of their images' means, and its interval over prompts."""
        clusters = {sample.key: sample.cluster for sample in self.task.samples}
        names = [clusters.get(key, key) for key in keys]
        n = len(set(names))
        if not np.isfinite(values).all():
            return {"value": None, "n_prompts": n, "ci_absent": _infinite(values)}
        # A sum in float64 depends on the order of its terms: sorted, it has only one.
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
        """The results with what they have in common."""
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


_REFERENCES = frozenset({"references", "reference_set"})


def _needs(metrics: Sequence[Metric]) -> frozenset[str]:
    return frozenset().union(*(needs_of(metric) for metric in metrics))


def _wants_images(metrics: Sequence[Metric]) -> bool:
    return bool(_needs(metrics) - {"model", "files"})


def _check_same_names(a: Gathered, b: Gathered) -> None:
    """Refuse folders whose images have other names: which of them belong together is unknown."""
    odd = sorted({*a.keys, *a.failed} ^ {*b.keys, *b.failed})
    if odd:
        raise TaskError(
            "compare: expected images of the same names in both, got "
            f"{len(odd)} that only one of them has, the first {odd[0]!r}; take them out"
        )


def _compute(metric: Metric, samples: Samples) -> Scored:
    """A metric's checked result for these samples; its warnings become notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        given = metric.compute(samples)
    for warning in caught:
        if not issubclass(warning.category, UserWarning):  # not the metric's, but a library's
            warnings.showwarning(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    n = len(samples)
    if isinstance(given, Measurement):
        said += given.notes
        n = n if given.n is None else given.n
        given = given.value
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise TaskError(
            f"metric {metric.name!r}: expected numbers, got {type(given).__name__}"
        ) from None
    if values.shape not in ((), (len(samples),)):
        raise TaskError(
            f"metric {metric.name!r}: expected one number, or one for each of {len(samples)} "
            f"image(s), got the shape {values.shape}"
        )
    is_nan = np.flatnonzero(np.isnan(values))
    if len(is_nan):
        where = f" for {samples.keys[is_nan[0]]!r}" if values.ndim else ""
        raise TaskError(f"metric {metric.name!r}: expected numbers, got NaN{where}")
    notes = tuple(dict.fromkeys(said))
    if values.ndim:
        return Scored(samples.keys, values, math.nan, n, notes)
    return Scored(samples.keys, None, float(values), n, notes)


def _infinite(values: Scores) -> str:
    """The reason why values have no mean if some are infinite, with their median."""
    count = np.count_nonzero(~np.isfinite(values))
    with np.errstate(invalid="ignore"):
        median = np.median(values)  # NaN where a difference of two infinite values is among them
    other = f"; the median is {median:.4g}" if np.isfinite(median) else ""
    return f"{count} of {len(values)} values are infinite, and so is their mean{other}"


def _by_key(keys: Sequence[str], values: Scores) -> dict[str, float | None]:
    return {key: _finite(value) for key, value in zip(keys, values.tolist(), strict=True)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bar(items: Sequence[Metric], what: str) -> Any:
    """A progress bar on stderr; silent if stderr is not a terminal."""
    return tqdm(items, desc=what, disable=None)
