"""The metrics of a run's images beside the margin, and the one table of metrics by name.

``--metrics`` measures a :class:`GridMetric` over the grid, and a
:class:`~analogy.evaluation.task.Task` measures it by name. The table also has the metrics that only
a task can measure. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from analogy.core.deferred import deferred
from analogy.core.errors import AnalogyError, OptionError
from analogy.core.registry import ExtensionError, Registry
from analogy.core.text import is_printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from analogy import metrics
    from analogy.core.images import Images
    from analogy.metrics.perceptual import Lpips
else:
    metrics = deferred("analogy.metrics")  # imports torch, but options only check names


class MetricError(AnalogyError, ValueError):
    """A metric does not implement the protocol, or returns an invalid value."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A missing input of a metric, with the reason."""

    reason: str


NOT_ASKED = Absent("not asked for")


class Per(StrEnum):
    """The unit for which a metric has one value."""

    IMAGE = "image"
    """Each steered image; reported as the mean over a cell's pairs, with an interval."""
    SET = "set"
    """All images at one alpha, of all categories; without an interval."""


class Input(StrEnum):
    """The inputs of metrics; each is a property of :class:`Inputs`."""

    IMAGES = "images"
    UNSTEERED = "unsteered"
    FEATURES = "features"
    UNSTEERED_FEATURES = "unsteered_features"
    TARGET_TEXT = "target_text"
    SOURCE_TEXT = "source_text"
    REFERENCES = "references"
    LPIPS = "lpips"


#: Inputs that are a judge's features of images or texts.
OF_JUDGE = frozenset(
    {
        Input.FEATURES, Input.UNSTEERED_FEATURES, Input.TARGET_TEXT, Input.SOURCE_TEXT,
        Input.REFERENCES,
    }
)  # fmt: skip
#: Inputs that are pixels.
PIXELS = frozenset({Input.IMAGES, Input.UNSTEERED})


class Inputs:
    """The argument of a metric's ``compute``: the inputs that the metric names, of n images.

    Images are in the same order in every input. Raises :class:`MetricError` for an input that the
    metric does not name.
    """

    def __init__(self, values: Mapping[Input, Any]) -> None:
        self._values = values

    @property
    def images(self) -> Images:
        """The steered images, uint8 ``(n, height, width, 3)``."""
        return self._value(Input.IMAGES)

    @property
    def unsteered(self) -> Images:
        """The unsteered images (alpha 0) of the same pairs and seeds; same shape as `images`."""
        return self._value(Input.UNSTEERED)

    @property
    def features(self) -> NDArray[np.floating[Any]]:
        """The judge's features of the images, unit vectors ``(n, dim)``."""
        return self._value(Input.FEATURES)

    @property
    def unsteered_features(self) -> NDArray[np.floating[Any]]:
        """The judge's features of the unsteered images, ``(n, dim)``."""
        return self._value(Input.UNSTEERED_FEATURES)

    @property
    def target_text(self) -> NDArray[np.floating[Any]]:
        """The judge's features of each image's target prompt, ``(n, dim)``."""
        return self._value(Input.TARGET_TEXT)

    @property
    def source_text(self) -> NDArray[np.floating[Any]]:
        """The judge's features of each image's source prompt, ``(n, dim)``."""
        return self._value(Input.SOURCE_TEXT)

    @property
    def references(self) -> NDArray[np.floating[Any]]:
        """The judge's features of the reference images, ``(m, dim)``; m is 2 or more."""
        return self._value(Input.REFERENCES)

    @property
    def lpips(self) -> Lpips:
        """LPIPS's network."""
        return self._value(Input.LPIPS)

    def _value(self, name: Input) -> Any:
        if name not in self._values:
            raise MetricError(
                place="a metric", expected=f"{name} among its inputs", got="a use of it",
                advice=f"give the metric Input.{name.name}",
            )  # fmt: skip
        return self._values[name]


Compute: TypeAlias = "Callable[[Inputs], ArrayLike]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """How tables and reports show a metric.

    - ``name``: its key in results and in ``--limits``, an identifier;
    - ``label``: the head of its column; ``unit``: such as ``dB``, empty for a number without one;
    - ``higher_is_better``: None if neither direction is better;
    - ``title``: its name in the report if ``label`` is too short [default: the label];
    - ``unchanged``: the value of an image that steering did not change; the report then draws the
      gain against the metric. With None it draws nothing.
    """

    name: str
    label: str
    unit: str = ""
    higher_is_better: bool | None = None
    title: str = ""
    unchanged: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise MetricError(
                place="a metric's name", expected="an identifier", got=f"{self.name!r}"
            )
        if self.name in _TAKEN:
            raise MetricError(
                place=f"metric {self.name}", expected="a name that results do not use otherwise",
                got=f"one of {', '.join(_TAKEN)}",
            )  # fmt: skip

    def to_dict(self) -> dict[str, str | float | bool | None]:
        """Plain values for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(Described)}

    @property
    def column(self) -> str:
        """The header of its column in a text table."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def long_title(self) -> str:
        """The header of its column in the report."""
        title = self.title or self.label
        return f"{title} ({self.unit})" if self.unit else title

    @property
    def axis(self) -> str:
        """The label of the axis that the gain is drawn against."""
        return f"{self.label} to the image at alpha 0 ({self.unchanged:g}: unchanged)"


#: Names that results and a run's frames already use for something else than metrics.
_TAKEN = (
    "alpha", "category", "pair_id", "seed", "method", "path", "key", "margin", "cos_target",
    "cos_source", "source_word", "target_word", "source_prompt", "target_prompt", "gain", "n",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GridMetric(Described):
    """A metric of the images of a grid.

    - ``inputs``: the only inputs that ``compute`` is given;
    - ``compute``: :class:`Inputs` -> ``(n,)`` numbers, one for each image, independent of the other
      images; or, per set, one number. Infinity is a value, NaN is an error;
    - ``per``: one value for each image, or for all images at an alpha. A metric per set is a
      distance from reference images by the judge's features: its inputs are those two;
    - ``smallest_side``: the smallest side in pixels for which it has a value;
    - ``version``: changes when ``compute`` gives other values, since values are kept in the run
      folder under name and version.
    """

    inputs: frozenset[Input]
    compute: Compute
    per: Per = Per.IMAGE
    smallest_side: int = 1
    version: str = ""

    def __post_init__(self) -> None:
        Described.__post_init__(self)
        if not self.inputs or not self.inputs <= frozenset(Input):
            raise MetricError(
                place=f"metric {self.name}: inputs", expected=f"some of {', '.join(Input)}",
                got=", ".join(map(str, self.inputs)) or "none",
            )  # fmt: skip
        if self.per is Per.SET and self.inputs != {Input.FEATURES, Input.REFERENCES}:
            raise MetricError(
                place=f"metric {self.name}: inputs",
                expected="features and references, which a metric per set compares",
                got=", ".join(sorted(self.inputs)),
            )
        if self.version and not self.version.replace(".", "").replace("-", "").isalnum():
            raise MetricError(
                place=f"metric {self.name}: version", expected="letters, digits, points or dashes",
                got=f"{self.version!r}",
            )  # fmt: skip

    @property
    def of_judge(self) -> bool:
        """True if a judge's features are among its inputs."""
        return bool(self.inputs & OF_JUDGE)

    def key(self, judge: str, network: str | None) -> str:
        """The key of its values: name and version, and the network that they depend on.

        ``judge``: the judge's fingerprint; ``network``: LPIPS's, None if it is missing.
        """
        name = f"{self.name}@{self.version}" if self.version else self.name
        if Input.LPIPS in self.inputs:
            # The fingerprint of LPIPS's own network begins with the metric's name.
            name = (
                name.replace("lpips", f"{network}", 1)
                if self.name == "lpips"
                else (f"{name}@{network}")
            )
        return f"{name}/{judge}" if self.of_judge else name


def _clip_score(of: Inputs) -> NDArray[np.float64]:
    return metrics.clip_score_of_features(of.features, of.target_text)


def _directional_similarity(of: Inputs) -> NDArray[np.float64]:
    return metrics.directional_similarity_where_prompts_differ(
        of.features, of.unsteered_features, of.target_text, of.source_text
    )


def _psnr(of: Inputs) -> NDArray[np.float64]:
    return metrics.psnr(of.images, of.unsteered)


def _ssim(of: Inputs) -> NDArray[np.float64]:
    return metrics.ssim(of.images, of.unsteered)


def _lpips(of: Inputs) -> NDArray[np.float64]:
    return metrics.lpips(of.images, of.unsteered, of.lpips)


def _cmmd(of: Inputs) -> float:
    return metrics.mmd_distance(of.features, of.references)


def _kid(of: Inputs) -> float:
    return metrics.kernel_distance(of.features, of.references)


clip_score = GridMetric(
    name="clip_score",
    label="CLIPScore",
    title="CLIPScore to the target prompt",
    higher_is_better=True,
    inputs=frozenset({Input.FEATURES, Input.TARGET_TEXT}),
    compute=_clip_score,
)
directional_similarity = GridMetric(
    name="directional_similarity",
    label="direction",
    title="directional similarity",
    higher_is_better=True,
    inputs=frozenset(
        {Input.FEATURES, Input.UNSTEERED_FEATURES, Input.TARGET_TEXT, Input.SOURCE_TEXT}
    ),
    compute=_directional_similarity,
)
psnr = GridMetric(
    name="psnr",
    label="PSNR",
    unit="dB",
    title="PSNR to alpha 0",
    higher_is_better=True,
    inputs=PIXELS,
    compute=_psnr,
)
ssim = GridMetric(
    name="ssim",
    label="SSIM",
    title="SSIM to alpha 0",
    higher_is_better=True,
    unchanged=1.0,
    inputs=PIXELS,
    compute=_ssim,
    smallest_side=11,  # its window
)
lpips = GridMetric(
    name="lpips",
    label="LPIPS",
    title="LPIPS to alpha 0",
    higher_is_better=False,
    unchanged=0.0,
    inputs=PIXELS | {Input.LPIPS},
    compute=_lpips,
    smallest_side=31,  # below it AlexNet has a layer with nothing to pool
)
cmmd = GridMetric(
    name="cmmd",
    label="CMMD",
    higher_is_better=False,
    inputs=frozenset({Input.FEATURES, Input.REFERENCES}),
    compute=_cmmd,
    per=Per.SET,
)
kid = GridMetric(
    name="kid",
    label="KID",
    higher_is_better=False,
    inputs=frozenset({Input.FEATURES, Input.REFERENCES}),
    compute=_kid,
    per=Per.SET,
)

_HERE = "analogy.grid_metrics"
_OF_TASK = "analogy.evaluation.metrics"

#: Every metric by name. An object of the table is a :class:`GridMetric`, or one that only a task
#: can measure: see :mod:`analogy.evaluation.metrics`.
METRICS: Registry[object] = Registry(
    "metric",
    "analogy.metrics",
    {
        "clip_score": f"{_HERE}:clip_score",
        "directional_similarity": f"{_HERE}:directional_similarity",
        "margin": f"{_OF_TASK}:MARGIN",
        "psnr": f"{_HERE}:psnr",
        "ssim": f"{_HERE}:ssim",
        "lpips": f"{_HERE}:lpips",
        "lpips_alex": f"{_OF_TASK}:LPIPS_ALEX",
        "lpips_vgg": f"{_OF_TASK}:LPIPS_VGG",
        "lpips_squeeze": f"{_OF_TASK}:LPIPS_SQUEEZE",
        "fid": f"{_OF_TASK}:FID",
        "kid": f"{_HERE}:kid",
        "cmmd": f"{_HERE}:cmmd",
        "cmmd_unbiased": f"{_OF_TASK}:CMMD_UNBIASED",
        "latency": f"{_OF_TASK}:LATENCY",
        "latency_p90": f"{_OF_TASK}:LATENCY_P90",
        "latency_p99": f"{_OF_TASK}:LATENCY_P99",
        "throughput": f"{_OF_TASK}:THROUGHPUT",
        "peak_memory": f"{_OF_TASK}:PEAK_MEMORY",
        "model_memory": f"{_OF_TASK}:MODEL_MEMORY",
        "size_on_disk": f"{_OF_TASK}:SIZE_ON_DISK",
        "parameters": f"{_OF_TASK}:PARAMETERS",
        "macs": f"{_OF_TASK}:MACS",
        "energy": f"{_OF_TASK}:ENERGY",
        "carbon": f"{_OF_TASK}:CARBON",
    },
    object,
)

#: The metrics that are measured over a grid without ``--metrics``, in the tables' order.
DEFAULT = ("clip_score", "directional_similarity", "psnr", "ssim", "lpips", "cmmd", "kid")


def grid_names() -> tuple[str, ...]:
    """The names of metrics for a grid: built-in ones, and those of installed packages."""
    return (*DEFAULT, *(name for name in METRICS.names() if not METRICS.is_builtin(name)))


def name_in_results(spec: str) -> str:
    """The name under which a metric is reported; for ``package.module:name`` the last part."""
    return spec.rpartition(":")[2].rpartition(".")[2]


def grid_metrics(names: Iterable[str] | None = None) -> tuple[GridMetric, ...]:
    """The metrics of these names or specs, or the built-in ones of a grid.

    Imports the named objects. Raises :class:`~analogy.core.registry.UnknownNameError`,
    :class:`~analogy.core.registry.ExtensionError` or :class:`MetricError`.
    """
    return tuple(_grid_metric(name) for name in (DEFAULT if names is None else names))


def chosen_metrics(names: Iterable[str] | None) -> tuple[GridMetric, ...]:
    """As :func:`grid_metrics`, for the option ``--metrics``. Raises ``OptionError``."""
    try:
        return grid_metrics(names)
    except AnalogyError as error:
        raise OptionError(f"--metrics: {error}") from error


def _grid_metric(spec: str) -> GridMetric:
    found = METRICS.get(spec)
    if not isinstance(found, GridMetric):
        raise ExtensionError(
            place=f"metric {spec}",
            expected="a GridMetric, which can be measured over a grid",
            got=type(found).__name__,
            advice="a metric of samples is measured by a Task (docs/evaluation.md)",
        )
    if found.name != name_in_results(spec):
        raise MetricError(
            place=f"metric {spec}",
            expected="a metric of that name",
            got=repr(found.name),
            advice="name both the same",
        )
    return found


def shown_metrics(described: Iterable[Described]) -> tuple[Described, ...]:
    """The descriptions of the built-in metrics, and of those that results describe."""
    found: dict[str, Described] = {each.name: each for each in grid_metrics()}
    for one in described:
        found.setdefault(one.name, one)
    return tuple(found.values())


def described(rows: object) -> tuple[Described, ...]:
    """The metrics that a results file describes, without importing them.

    An invalid description is left out; its metric is shown by its name alone.
    """
    found = []
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, Mapping):
            with suppress(MetricError):
                found.append(_described(row))
    return tuple(found)


def _described(row: Mapping[str, object]) -> Described:
    """A description from a row of results. Raises :class:`MetricError` if it is invalid."""
    texts = {name: row.get(name, "") for name in ("name", "label", "unit", "title")}
    better, unchanged = row.get("higher_is_better"), row.get("unchanged")
    is_number = isinstance(unchanged, (int, float)) and not isinstance(unchanged, bool)
    if (
        any(not isinstance(text, str) or not is_printable(text) for text in texts.values())
        or better not in (True, False, None)
        or not (unchanged is None or is_number)
    ):
        raise MetricError(place="a metric in results", expected="a description", got=f"{row!r:.80}")
    return Described(**texts, higher_is_better=better, unchanged=unchanged)  # type: ignore[arg-type]
