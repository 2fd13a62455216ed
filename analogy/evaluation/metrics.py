"""The suite's metrics by name, those of other packages, and the presets (named lists)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from analogy.core.registry import ExtensionError, UnknownNameError
from analogy.evaluation.measurement import Measurement
from analogy.evaluation.protocol import (
    FunctionMetric,
    Metric,
    TaskError,
    UnmetNeedError,
    near,
    needs_of,
)
from analogy.evaluation.samples import NEEDS, Samples
from analogy.grid_metrics import (
    METRICS,
    PIXELS,
    GridMetric,
    Input,
    Inputs,
    Per,
    name_in_results,
)
from analogy.judges.margin import margin
from analogy.judges.open_clip import Judge
from analogy.metrics import (
    Inception,
    Lpips,
    frechet_distance,
    kernel_distance,
    lpips,
    mmd_distance,
)
from analogy.metrics.clip_score import warn_of_truncation
from analogy.metrics.features import FeatureModel, model_name, score_name
from analogy.metrics.frechet import warn_of_small_sample
from analogy.metrics.kernel import CMMD_JUDGE


@dataclass(frozen=True)
class Tools:
    """The settings of built-in metrics.

    ``features``: returns the feature extractor of FID and KID, such as the judge; a function,
    because Inception is loaded only if a metric uses it. ``country``: the origin of the
    electricity, None if unknown.
    """

    judge: Judge
    features: Callable[[], FeatureModel]
    device: str
    country: str | None


Factory = Callable[[Tools], Metric]


@dataclass(frozen=True)
class TaskMetric:
    """A registered metric that only a task can measure; ``build`` makes it."""

    build: Factory


#: The fields of samples that an input of a grid's metric is computed from.
_FIELDS = {
    Input.IMAGES: ("images",),
    Input.UNSTEERED: ("references",),
    Input.FEATURES: ("images",),
    Input.UNSTEERED_FEATURES: ("sources",),
    Input.TARGET_TEXT: ("prompts",),
    Input.SOURCE_TEXT: ("source_prompts",),
    Input.REFERENCES: ("reference_set",),
    Input.LPIPS: (),
}


def _of_grid(metric: GridMetric, tools: Tools) -> Metric:
    """A metric of the grid as a metric of samples. Each image's reference takes the place of the
    unsteered image; for word pairs both are the image at alpha 0.
    """
    judge = tools.judge

    def compute(samples: Samples) -> Any:
        values: dict[Input, Any] = {}
        prompts, source_prompts = samples.prompts or (), samples.source_prompts or ()
        read = [
            *(prompts if Input.TARGET_TEXT in metric.inputs else ()),
            *(source_prompts if Input.SOURCE_TEXT in metric.inputs else ()),
        ]
        if read:
            warn_of_truncation(read, judge)
        for each in metric.inputs:
            match each:
                case Input.IMAGES:
                    values[each] = samples.images
                case Input.UNSTEERED:
                    values[each] = samples.references
                case Input.FEATURES:
                    values[each] = samples.features(judge)
                case Input.UNSTEERED_FEATURES:
                    values[each] = samples.features(judge, "sources")
                case Input.TARGET_TEXT:
                    values[each] = judge.text_features(prompts)
                case Input.SOURCE_TEXT:
                    values[each] = judge.text_features(source_prompts)
                case Input.REFERENCES:
                    values[each] = samples.features(judge, "reference_set")
                case Input.LPIPS:
                    values[each] = Lpips("alex", device=tools.device)
        return metric.compute(Inputs(values))

    needs = {"images"}.union(*(_FIELDS[each] for each in metric.inputs))
    return FunctionMetric(
        metric.name,
        compute,
        metric.higher_is_better,
        metric.unit,
        frozenset(needs),
        judge=judge.fingerprint if metric.of_judge else None,
        least=2 if metric.per is Per.SET else 1,
        same_size=metric.inputs >= PIXELS,
    )


def _margin(tools: Tools) -> Metric:
    judge = tools.judge

    def compute(samples: Samples) -> NDArray[np.float32]:
        prompts, source_prompts = samples.prompts or (), samples.source_prompts or ()
        warn_of_truncation([*prompts, *source_prompts], judge)
        target, source = judge.text_features(prompts), judge.text_features(source_prompts)
        return margin(samples.features(judge), target=target, source=source)

    return _of_judge("margin", compute, judge, "images", "prompts", "source_prompts")


def _of_judge(
    name: str, compute: Callable[[Samples], Any], judge: Judge, *needs: str
) -> FunctionMetric:
    return FunctionMetric(name, compute, True, needs=frozenset(needs), judge=judge.fingerprint)


def lpips_metric(network: Lpips) -> FunctionMetric:
    """LPIPS with a loaded network, such as ``Lpips("alex", weights=PATH)``."""
    compute = _compared(lambda images, references: lpips(images, references, network))
    name = score_name("lpips", network.network)
    return FunctionMetric(name, compute, False, "", _PAIRED, network.fingerprint, same_size=True)


def _lpips(network: str) -> Factory:
    return lambda tools: lpips_metric(Lpips(cast(Any, network), device=tools.device))


_PAIRED = frozenset({"images", "references"})
_SETS = frozenset({"images", "reference_set"})


def _compared(distance: Callable[[Any, Any], Any]) -> Callable[[Samples], Any]:
    return lambda samples: distance(samples.images, samples.references)


def fid_metric(features: FeatureModel) -> FunctionMetric:
    """FID with these features. The name includes theirs unless they are Inception's."""
    name = _set_name("fid", features)

    def compute(samples: Samples) -> float:
        x, y = samples.features(features), samples.features(features, "reference_set")
        warn_of_small_sample(name, len(x), len(y))
        return frechet_distance(x, y)

    return _of_sets(name, compute, features)


def kid_metric(features: FeatureModel) -> FunctionMetric:
    """KID with these features. The name includes theirs unless they are Inception's."""

    def compute(samples: Samples) -> float:
        return kernel_distance(
            samples.features(features), samples.features(features, "reference_set")
        )

    return _of_sets(_set_name("kid", features), compute, features)


def _cmmd(estimator: Any) -> Factory:
    def build(tools: Tools) -> Metric:
        judge = tools.judge
        whose = "" if judge.fingerprint == CMMD_JUDGE else model_name(judge)
        name = score_name("cmmd", whose, "" if estimator == "biased" else estimator)

        def compute(samples: Samples) -> float:
            return mmd_distance(
                samples.features(judge),
                samples.features(judge, "reference_set"),
                estimator=estimator,
            )

        return _of_sets(name, compute, judge)

    return build


def _set_name(metric: str, features: FeatureModel) -> str:
    return score_name(metric, "" if isinstance(features, Inception) else model_name(features))


def _of_sets(
    name: str, compute: Callable[[Samples], float], features: FeatureModel
) -> FunctionMetric:
    whose = getattr(features, "fingerprint", None) or model_name(features)
    return FunctionMetric(name, compute, False, "", _SETS, whose, least=2)


def _cost(
    name: str,
    units: str,
    measure: Callable[[Any], Measurement],
    *,
    higher_is_better: bool = False,
    needs: str = "model",
) -> TaskMetric:
    """A metric of the model itself; ``measure`` is called with ``samples.model``."""

    def build(tools: Tools) -> Metric:
        return FunctionMetric(
            name,
            lambda samples: measure(samples.model),
            higher_is_better,
            units,
            frozenset({"model", needs}),
        )

    return TaskMetric(build)


def _electric(name: str, units: str, field: str) -> TaskMetric:
    def build(tools: Tools) -> Metric:
        country = tools.country
        if country is None:
            raise UnmetNeedError(
                name,
                "needs the country that the machine stands in, as ISO 3166 has it in three "
                "letters: give the task country='DEU'",
            )
        return FunctionMetric(
            name,
            lambda samples: cast(Any, samples.model).electric(field, country),
            False,
            units,
            frozenset({"model"}),
        )

    return TaskMetric(build)


MARGIN = TaskMetric(_margin)
LPIPS_ALEX = TaskMetric(_lpips("alex"))
LPIPS_VGG = TaskMetric(_lpips("vgg"))
LPIPS_SQUEEZE = TaskMetric(_lpips("squeeze"))
FID = TaskMetric(lambda tools: fid_metric(tools.features()))
CMMD_UNBIASED = TaskMetric(_cmmd("unbiased"))
LATENCY = _cost("latency", "s", lambda model: model.latency("latency_median_s"))
LATENCY_P90 = _cost("latency_p90", "s", lambda model: model.latency("latency_p90_s"))
LATENCY_P99 = _cost("latency_p99", "s", lambda model: model.latency("latency_p99_s"))
THROUGHPUT = _cost(
    "throughput", "images/s", lambda model: model.throughput(), higher_is_better=True
)
PEAK_MEMORY = _cost("peak_memory", "bytes", lambda model: model.peak_memory())
MODEL_MEMORY = _cost("model_memory", "bytes", lambda model: model.model_memory())
SIZE_ON_DISK = _cost("size_on_disk", "bytes", lambda model: model.size_on_disk(), needs="files")
PARAMETERS = _cost("parameters", "", lambda model: model.parameters())
MACS = _cost("macs", "per image", lambda model: model.macs())
ENERGY = _electric("energy", "kWh/image", "energy_kwh_per_image")
CARBON = _electric("carbon", "kg CO2e/image", "emissions_kg_per_image")

#: Metrics of the grid that a task makes itself: their network may be another one here, and their
#: names in results then include it.
_NAMED_AFTER_NETWORK: dict[str, Factory] = {
    "lpips": _lpips("alex"),
    "kid": lambda tools: kid_metric(tools.features()),
    "cmmd": _cmmd("biased"),
}

PRESETS: dict[str, tuple[str, ...]] = {
    "image_generation_quality": ("clip_score", "psnr", "ssim", "cmmd", "kid", "fid"),
    "analogy": ("margin", "clip_score", "directional_similarity", "psnr", "ssim"),
    "efficiency": (
        "latency", "latency_p90", "latency_p99", "throughput", "peak_memory", "parameters",
        "macs", "size_on_disk", "energy", "carbon",
    ),
}  # fmt: skip
"""Named lists of metrics. A task computes those that its data and mode allow and reports those that
it leaves out. LPIPS is in no preset, since its weights have to be downloaded."""


def find_metrics(names_or_metrics: Iterable[Any], tools: Tools) -> tuple[Metric, ...]:
    """The metrics of these names; objects are used as they are.

    Raises :class:`TaskError` for an unknown name, an invalid object, two metrics of one name, or an
    empty list.
    """
    found: dict[str, Metric] = {}
    for each in names_or_metrics:
        if isinstance(each, GridMetric):
            one = _of_grid(each, tools)
        else:
            one = _by_name(each, tools) if isinstance(each, str) else _checked(each)
        if one.name in found:
            raise TaskError(
                f"metric {one.name!r} occurs twice: expected each name once; take one of them "
                "out or rename it"
            )
        found[one.name] = one
    if not found:
        raise TaskError(f"expected at least one metric, got none; choose from {_all_names()}")
    return tuple(found.values())


def _by_name(name: str, tools: Tools) -> Metric:
    offered = [point for point in _offered() if point.name == name]
    is_builtin = METRICS.is_builtin(name)
    if len(offered) + is_builtin > 1:
        packages = ", ".join(point.dist.name if point.dist else point.value for point in offered)
        also = "the suite and " if is_builtin else ""
        raise TaskError(
            f"metric {name!r} is taken twice, by {also}{packages}: expected one of that name in "
            f"the entry points {METRICS.group}; uninstall one, or give the task the object itself"
        )
    if name in _NAMED_AFTER_NETWORK:
        return _NAMED_AFTER_NETWORK[name](tools)
    try:
        found = METRICS.get(name)
    except UnknownNameError:
        raise TaskError(
            f"unknown metric {name!r}{near(name, METRICS.names())}; choose from {_all_names()}"
        ) from None
    except ExtensionError as error:
        raise TaskError(str(error)) from error
    if isinstance(found, TaskMetric):
        return found.build(tools)
    if isinstance(found, GridMetric):
        return _of_grid(found, tools)
    return _checked(found() if isinstance(found, type) else found, name_in_results(name))


def _offered() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=METRICS.group))


def _all_names() -> str:
    return ", ".join(METRICS.names())


def _checked(given: Any, entry_point: str | None = None) -> Metric:
    """A user's metric. Raises :class:`TaskError` if an attribute is missing or invalid.

    ``entry_point``: the name that it must have, if it comes from an entry point.
    """
    what = f"metric {given!r}" if entry_point is None else f"metric {entry_point!r}"
    if isinstance(given, type) or not callable(getattr(given, "compute", None)):
        hint = ""
        if isinstance(given, type):
            hint = f"; give an instance: {given.__name__}()"
        elif callable(given):
            hint = "; wrap a function: metric(name, function, higher_is_better=True)"
        raise TaskError(
            f"{what}: expected a name, or an object with name, higher_is_better and "
            f"compute(samples), got {type(given).__name__}{hint}"
        )
    name = getattr(given, "name", None)
    if not isinstance(name, str) or not name.strip():
        raise TaskError(f"{what}: expected a name, non-empty text, got {name!r}")
    if entry_point is not None and name != entry_point:
        raise TaskError(f"{what}: expected a metric of that name, got {name!r}; name both the same")
    better = getattr(given, "higher_is_better", "nothing")
    if better not in (True, False, None):
        raise TaskError(f"metric {name!r}: higher_is_better: expected True, False or None, "
                        f"got {better!r}")  # fmt: skip
    if isinstance(getattr(given, "needs", ()), str):
        raise TaskError(f"metric {name!r}: needs: expected a set of names, got {given.needs!r}")
    for need in sorted(needs_of(given)):
        if need not in NEEDS:
            raise TaskError(
                f"metric {name!r}: needs: expected some of {', '.join(NEEDS)}, got {need!r}"
                f"{near(need, NEEDS)}"
            )
    return cast(Metric, given)
