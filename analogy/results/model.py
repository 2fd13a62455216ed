"""The results of a run as one tree of frozen dataclasses, which is written, read and shown.

:mod:`analogy.results.writing` writes it as JSON and :mod:`analogy.results.reading` reads it.
Everything here is a plain value: neither torch nor numpy is imported. A missing figure is NaN in a
float field, None elsewhere, and null in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from analogy.core.records import (
    SEQUENTIAL,
    SIGNIFICANCE,
    WHOLE,
    Cell,
    Compared,
    Estimate,
    Figures,
    ItemLevel,
    RunConfig,
    Trend,
    Verdict,
    Window,
)
from analogy.grid_metrics import Described
from analogy.results.cost import MethodCost

RESULTS_VERSION = 2
"""The schema version of results files."""

RESULTS_NAME = "results.json"
"""The results that a run folder shows."""

Machine = Mapping[str, str | int | float | None]
"""Properties of a machine by name."""


# --- figures


@dataclass(frozen=True, slots=True)
class Ceiling(Figures):
    """The judge's margins for images that truly show the targets of some pairs.

    - `n`: pairs, the clusters of every interval here;
    - `mean`, `ci_low`, `ci_high`: mean margin of drawings of the target, and its 95% interval: the
      ceiling. It is not a bound: an image can exaggerate what a drawing only shows;
    - `floor`: mean margin of drawings of the source;
    - `change`, `change_low`, `change_high`: mean difference of the two, paired by pair;
    - `auc`: area under the ROC curve of the margin as a detector of the true attribute, drawings of
      targets against drawings of sources, in 0..1, with one threshold for all pairs; 0.5 is chance;
    - `is_blind`: the judge does not see the true change; see
      :func:`analogy.studies.ceiling.ceiling`.

    A missing figure (such as an interval of one pair) is NaN.
    """

    n: int
    mean: float
    ci_low: float
    ci_high: float
    floor: float
    change: float
    change_low: float
    change_high: float
    auc: float
    is_blind: bool


def share(margin: float, of: Ceiling) -> float | None:
    """A cell's mean margin as a share of the ceiling; 1 for a perfect edit.

    Returns None if the ceiling is not above 0, or if the cell has no mean.
    """
    return margin / of.mean if of.mean > 0 and math.isfinite(margin) else None


@dataclass(frozen=True, slots=True)
class Null(Figures):
    """The null beside a cell: its own figures, and the method's advantage over it.

    ``margin`` and ``gain`` are the null's; ``advantage`` is the method's margin minus the
    null's, pair by pair.
    """

    margin: Estimate
    gain: Estimate
    advantage: Estimate


@dataclass(frozen=True, slots=True)
class Stop(Figures):
    """The look of a sequential run at which a figure was taken.

    - `look`: of `looks`, from 1; `pairs`, `seeds`: of each cell at this look; `images`: their
      product;
    - `level`: of the look's one-sided test on either side; its interval has the `confidence`
      1 - 2 `level`;
    - `is_early`: True if it was not the last look. The mean is then biased upwards;
    - `p_seq`: the sequential p of a cell's margin, NaN for other figures;
    - `icc`: the share of an image's variance that lies between pairs, NaN with one seed.
    """

    look: int
    looks: int
    pairs: int
    seeds: int
    images: int
    level: float
    is_early: bool
    p_seq: float = math.nan
    icc: float = math.nan

    @property
    def confidence(self) -> float:
        """The confidence of the intervals at this look."""
        return 1 - 2 * self.level


@dataclass(frozen=True, slots=True)
class Saved(Figures):
    """The images of a sequential run, and those that it did not need.

    `images`: of the looks that were taken; `of`: of the full grid; `seconds`: the time that the
    other images would have taken at the run's rate, None if unknown; `order_seed`, `order`:
    the seed of the random order, and category to the digest of its order.
    """

    images: int
    of: int
    seconds: float | None
    order_seed: int
    order: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CellFigures(Compared):
    """All figures of one cell, or of a category's unsteered images (alpha 0).

    - ``margin``: its verdict is None at alpha 0, where nothing is claimed;
    - ``gain``: None at alpha 0, and if a file lacks it;
    - ``items``: pair id to margin, in -2..2, of the pairs that have all their images;
    - ``ceiling``: of the category's pairs; ``null``: of the null; None if not measured;
    - ``p_holm``, ``p_bh``: the larger of the margin's ``p`` and ``p_bootstrap``, adjusted for all
      cells of the run; NaN for a cell by itself;
    - ``target_share``: the mean margin as a share of the category's in ``Analysis.targets``; None
      if that is not above 0, if images are missing, and if targets were not measured;
    - ``seeds``: pair id to the margins of its images, a value for each seed of ``items``, in the
      run's order; empty if a file has none;
    - ``stop``: the look of the margin; ``gain_stop``: the look of the gain. Both are None in a run
      that is not sequential, and in a cell that is not yet decided.
    """

    cell: Cell
    margin: Estimate
    gain: Estimate | None
    items: Mapping[str, float]
    ceiling: Ceiling | None = None
    null: Null | None = None
    p_holm: float = math.nan
    p_bh: float = math.nan
    target_share: float | None = None
    seeds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stop: Stop | None = None
    gain_stop: Stop | None = None

    @property
    def survives(self) -> bool:
        """True if the cell is a success also after Holm's correction for all cells."""
        return self.margin.verdict is Verdict.SUCCESS and self.p_holm < SIGNIFICANCE

    @property
    def share(self) -> float | None:
        """The mean margin as a share of the ceiling's mean, None without a ceiling."""
        return None if self.ceiling is None else share(self.margin.mean, self.ceiling)


@dataclass(frozen=True, slots=True)
class TargetFigures(Compared):
    """The figures of a category's target prompts' own images: the best that the model can do.

    Nothing is claimed of them: the margin's verdict is None. ``items`` and ``ceiling`` are as in
    :class:`CellFigures`.
    """

    category: str
    margin: Estimate
    items: Mapping[str, float]
    ceiling: Ceiling | None = None
    stop: Stop | None = None

    @property
    def share(self) -> float | None:
        """The mean margin as a share of the ceiling's mean, None without a ceiling."""
        return None if self.ceiling is None else share(self.margin.mean, self.ceiling)

    def share_of(self, mean: float) -> float | None:
        """A cell's mean margin as a share of this one; None if this is not above 0, or for NaN."""
        return mean / self.margin.mean if self.margin.mean > 0 and math.isfinite(mean) else None


@dataclass(frozen=True, slots=True)
class Pool:
    """Several cells together, pairs as clusters.

    - ``margin``, ``gain``: over all alphas of the pool but 0;
    - ``trend``: over all alphas and 0; None for a single alpha and if images are missing;
    - ``items``: the naive figures of the published study; None if images are missing, and in a
      sequential run, for which they are wrong;
    - ``stop``: the earliest look of the pool's cells, whose pairs and seeds the margin is of;
      ``gain_stop``: the look of the gain and the trend. A run that is not sequential lacks both.

    Results of earlier suites may lack gain, trend and items.
    """

    margin: Estimate
    gain: Estimate | None
    trend: Trend | None
    items: ItemLevel | None
    stop: Stop | None = None
    gain_stop: Stop | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """All figures of margins, in the order of the run's categories and ascending alphas.

    ``cells`` has all alphas but 0, which is in ``unsteered``. ``targets``: empty if not measured.
    ``categories``, ``alphas``: pools, which results of earlier suites may lack.
    """

    cells: Mapping[Cell, CellFigures]
    unsteered: Mapping[str, CellFigures]
    targets: Mapping[str, TargetFigures]
    categories: Mapping[str, Pool]
    alphas: Mapping[float, Pool]
    overall: Pool

    @property
    def blind(self) -> list[str]:
        """The categories that the judge does not see."""
        cells = self.unsteered.values()
        return [c.cell.category for c in cells if c.ceiling is not None and c.ceiling.is_blind]

    @property
    def not_after_holm(self) -> list[Cell]:
        """The successes that do not survive Holm's correction."""
        return [
            cell
            for cell, figures in self.cells.items()
            if figures.margin.verdict is Verdict.SUCCESS and not figures.survives
        ]


@dataclass(frozen=True, slots=True)
class Mean(Figures):
    """A metric's mean over a cell's pairs, each the mean over its seeds, with a 95% interval.

    ``n``: pairs; those that lack an image are left out. ``n_equal``: pairs with an image that
    equals its unsteered image, whose PSNR is infinite; the mean is then infinite, with no interval.
    """

    mean: float
    ci_low: float
    ci_high: float
    n: int
    n_equal: int


@dataclass(frozen=True, slots=True)
class Distance(Figures):
    """A metric of all ``n`` images at one alpha against ``n_references`` reference images, on the
    features that ``name`` gives.
    """

    name: str
    value: float
    n: int
    n_references: int


@dataclass(frozen=True, slots=True)
class QualityFigures:
    """The metrics beside the margin: of each cell, and of all images at an alpha.

    ``lpips``: the network's fingerprint, or why LPIPS was not measured. ``references``: what the
    reference images are, or why there are none. Both are None if a file lacks them. ``metrics``:
    those measured, empty for the default ones. ``features``: why the judge gives no features, else
    None.
    """

    cells: Mapping[Cell, Mapping[str, Mean]] = field(default_factory=dict)
    alphas: Mapping[float, Mapping[str, Distance]] = field(default_factory=dict)
    lpips: str | None = None
    references: str | None = None
    metrics: tuple[Described, ...] = ()
    features: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed image. ``method``: None at alpha 0, which all methods share."""

    pair_id: str
    category: str
    alpha: float
    seed: int
    method: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Throughput:
    """Images per second over all work in the run folder; None for a stage that was not timed."""

    generate: float | None
    score: float | None
    workers: Mapping[str, float] = field(default_factory=dict)


# --- what was measured, and with what


@dataclass(frozen=True, slots=True)
class Settings:
    """A run's options by name, as its results have them.

    Earlier and later suites have other options, and a copy of their results must keep these:
    ``values`` holds all of them. Options that determine figures are checked when a file is read,
    and are in :class:`Measurement` and :class:`Subject`; the others may hold anything.
    """

    values: Mapping[str, object]

    @property
    def model(self) -> str | None:
        """The model without its LoRA."""
        return self._model_and_lora()[0]

    @property
    def lora(self) -> str | None:
        """The LoRA, None if there is none."""
        return self._model_and_lora()[1]

    def text(self, name: str) -> str | None:
        """An option's text; None for any other value and for a missing one."""
        value = self.values.get(name)
        return value if isinstance(value, str) else None

    def is_on(self, name: str) -> bool:
        """True if a switch is set."""
        return self.values.get(name) is True

    @property
    def categories(self) -> tuple[str, ...] | None:
        """The selected categories; None if all were run."""
        value = self.values.get("categories")
        return tuple(map(str, value)) if isinstance(value, (list, tuple)) else None

    @property
    def sequential(self) -> dict[str, bool | int]:
        """The options of a sequential run that are set, by name; empty for any other run."""
        if not self.is_on("sequential"):
            return {}
        found = {name: self.values.get(name) for name in SEQUENTIAL}
        return {name: value for name, value in found.items() if isinstance(value, int) and value}

    def run_config(self) -> RunConfig:
        """The configuration of these options. Raises ``ValueError`` if one is missing, unknown or
        invalid, as in results of a later suite.
        """
        return RunConfig.from_dict(self.values)

    def _model_and_lora(self) -> tuple[str | None, str | None]:
        """Results of earlier suites lack the key ``lora`` and have both in ``model`` alone, in
        which a ``+`` of the model's own cannot be told from the LoRA's.
        """
        model, lora = self.text("model"), self.text("lora")
        if model is not None and "lora" not in self.values:
            base, _, added = model.partition("+")
            return base, added or None
        if model is None or lora is None:
            return model, lora
        return model.removesuffix(f"+{lora}"), lora


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The provenance of the figures.

    ``model``, ``judge``: fingerprints. ``ceiling``: a digest of ground truth that the user gave;
    None for the suite's own. ``python`` and ``time`` (ISO 8601): None in files that lack them.
    ``guidance``: the parameter of the pipeline that the guidance scale sets, such as
    ``true_cfg_scale``, and its kind; None for ``guidance_scale``, classifier-free guidance.
    """

    suite: str
    model: str
    judge: str
    scheduler: str
    packages: Mapping[str, str]
    git_commit: str | None
    machine: Machine
    python: str | None = None
    time: str | None = None
    ceiling: str | None = None
    guidance: str | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """The settings that figures must share to be comparable.

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
    """The subject of a comparison: what was measured. It may differ between the two sides."""

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
    window: Window = WHOLE
    second_guidance: float | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """The header of results: everything except the figures.

    ``path``: the file from which they were read, None in memory; it does not count in comparisons.
    """

    config: Settings
    provenance: Provenance
    measurement: Measurement
    subject: Subject
    path: Path | None = field(default=None, compare=False)

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories, in the run's order."""
        return tuple(self.measurement.pairs)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas that were measured, 0 first and the others ascending."""
        return (0.0, *self.measurement.alphas)


@dataclass(frozen=True, slots=True)
class Results:
    """A run's results. ``unread``, ``unsteered``, ``uneven``: ids of pairs, as in
    :class:`analogy.studies.study.Study`. ``unknown``: pair id to the words that the embedded model,
    or judge, was not trained on. ``saved``: None unless the run was sequential.
    ``peak_memory_bytes``: of a CUDA device, None elsewhere. ``cost``: None if nothing was measured.
    """

    header: Header
    analysis: Analysis
    quality: QualityFigures
    failures: tuple[Failure, ...]
    throughput: Throughput
    peak_memory_bytes: int | None = None
    unread: tuple[str, ...] = ()
    unsteered: tuple[str, ...] = ()
    uneven: tuple[str, ...] = ()
    saved: Saved | None = None
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cost: MethodCost | None = None

    @property
    def unknown_words(self) -> tuple[str, ...]:
        """The words of ``unknown``, each once."""
        return tuple(dict.fromkeys(word for words in self.unknown.values() for word in words))

    def mark(self, figures: CellFigures) -> str:
        """The mark after a cell's verdict: `` *`` if a pair of it has unknown words, else empty."""
        return " *" if any(pair in self.unknown for pair in figures.items) else ""
