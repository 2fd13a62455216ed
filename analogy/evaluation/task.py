"""A task: its metrics, data and settings, checked when it is created."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np

from analogy.core.engines import ENGINES
from analogy.core.errors import AnalogyError, ModelError
from analogy.core.images import Images
from analogy.core.records import UNSTEERED, RunConfig
from analogy.core.registry import UnknownNameError
from analogy.core.strict_json import Json
from analogy.evaluation.data import Data, Sample, read_data, steered
from analogy.evaluation.folders import by_name, read_picture
from analogy.evaluation.metrics import PRESETS, Tools, find_metrics
from analogy.evaluation.protocol import (
    ImageSource,
    Metric,
    TaskError,
    UnmetNeedError,
    near,
    needs_of,
)
from analogy.evaluation.samples import NEEDS, stacked
from analogy.judges.open_clip import Judge, JudgeSource, find_judge
from analogy.metrics.checks import check_images
from analogy.metrics.efficiency import check_device
from analogy.metrics.features import Encoder, FeatureModel, model_name
from analogy.metrics.inception import Inception
from analogy.models.places import EMBEDDED, go_offline
from analogy.models.quantization import check_device_for
from analogy.steering.base import METHODS, with_method

RUNS = Path(".analogy") / "evaluations"


class Task:
    """What to measure, and on what data.

    - `what`: a preset's name, or a list of metrics by name or as objects. Of a preset, those
      metrics are computed that data and mode allow. A listed metric that they do not allow raises
      :class:`TaskError` before any image is made;
    - `data`: prompts; (prompt, image) pairs, whose images are references; a folder of images; or
      word pairs, as a CSV file or :class:`~analogy.core.records.Pair` records, whose images are
      steered by `method` at `alphas` and at 0;
    - `references`: a folder of images, or uint8 ``(n, height, width, 3)``, for metrics of sets;
    - `seeds`: one image is made for each prompt (for each pair and alpha) and seed;
    - `judge`: ``embedded``, an open_clip folder, ``hf-hub:ID``, (name, weights' tag), or a
      :class:`~analogy.judges.open_clip.Judge`;
    - `features`: the feature extractor of FID and KID: ``inception``, ``judge``, or an encoder or
      function; None for Inception, or for the judge if that is the embedded one;
    - `device`, `dtype` (None: the fastest that the device supports natively), `batch_size`: for
      models given by name or files. A live pipeline stays on its device and in its dtype;
    - `steps`, `guidance`, `size`: None for the model's own;
    - `engine`: what generates: ``serial``, ``ray`` with `num_workers` and `ray_address`, or the
      engine of another package; `memory`: the most of a CUDA device to use, in GiB; `quantize`,
      `offload`, `transformer` (a file of its weights): for models given by name or files. They are
      the same as the options of a run (docs/performance.md, docs/models.md);
    - `seed`: of the bootstrap; `country`: for energy and carbon, such as ``DEU``;
    - `run_dir`: where images are kept, in a folder for each model and its settings;
    - `offline`: whether missing files are an error instead of being downloaded.

    Loads only LPIPS or Inception, if they are needed. Raises :class:`TaskError` for invalid data or
    metrics, ``ValueError`` for an invalid setting, and :class:`~analogy.core.errors.ModelError` for
    a missing judge or missing weights.
    """

    def __init__(
        self,
        what: str | Iterable[Any],
        data: Any,
        *,
        references: Any = None,
        seeds: Sequence[int] = (0,),
        alphas: Sequence[float] = (0.5, 0.8, 1.0),
        method: str = "word",
        judge: str | tuple[str, str] | Judge = EMBEDDED,
        features: str | FeatureModel | None = None,
        device: str = "cpu",
        dtype: str | None = None,
        batch_size: int | None = None,
        memory: float | None = None,
        quantize: str | None = None,
        offload: str | None = None,
        transformer: str | PathLike[str] | None = None,
        engine: str = "serial",
        num_workers: int | None = None,
        ray_address: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
        seed: int = 0,
        country: str | None = None,
        run_dir: str | PathLike[str] | None = None,
        offline: bool = False,
    ) -> None:
        check_device(device)
        try:
            METHODS.get(str(method))
        except AnalogyError as error:
            raise TaskError(f"method: {error}") from error
        _check_engine(engine, device, num_workers, ray_address)
        if offline:
            go_offline()
        self.offline = offline
        # Checks the settings. Placeholders are replaced by each model's own values later.
        self.config = RunConfig(
            model="-",
            clip_model="-",
            clip_pretrained=None,
            pairs="-",
            categories=None,
            alphas=tuple(alphas),
            seeds=tuple(seeds),
            method=method,
            steps=1 if steps is None else steps,
            guidance=0.0 if guidance is None else guidance,
            size=8 if size is None else size,
            dtype="float32" if dtype is None else dtype,
            device=device,
            batch_size=batch_size,
            memory=memory,
            quantize=quantize,
            offload=offload,
            transformer=None if transformer is None else str(transformer),
            engine=engine,
            num_workers=num_workers,
            ray_address=ray_address,
            limit=None,
        )
        check_device_for(device, quantize=quantize, offload=offload)
        self.config = with_method(self.config, method)
        self.dtype, self.steps, self.guidance, self.size = dtype, steps, guidance, size
        self.device = device
        self.seed = seed
        self.country = country
        self.run_dir = RUNS if run_dir is None else Path(expanduser(run_dir))
        self.data: Data = read_data(data)
        self._references = _references(references)
        self.judge = _judge(judge, device, offline=offline)
        self.preset = what if isinstance(what, str) and what in PRESETS else None
        tools = Tools(self.judge, lambda: _features(features, self.judge, device), device, country)
        self.unavailable: dict[str, str] = {}
        if self.preset is None:
            self.metrics = find_metrics(_asked(what), tools)
            for each in self.metrics:
                self._refuse_hopeless(each)
        else:
            self.metrics = self._of_preset(PRESETS[self.preset], tools)

    def _of_preset(self, names: Sequence[str], tools: Tools) -> tuple[Metric, ...]:
        found: list[Metric] = []
        for name in names:
            try:
                found += find_metrics([name], tools)
            except UnmetNeedError as error:
                self.unavailable[name] = error.reason
            except (TaskError, ModelError) as error:
                self.unavailable[name] = str(error)
        return tuple(found)

    def _refuse_hopeless(self, metric: Metric) -> None:
        """Raises :class:`TaskError` if the metric cannot be computed on this data for any model in
        either mode.
        """
        for need in ("prompts", "sources", "source_prompts"):
            if need in needs_of(metric) and not self.offers("pairwise", ())[need]:
                raise UnmetNeedError(metric.name, self.refusal(need, "either"))

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The images that are measured, one for each prompt (pair, alpha) and seed."""
        return self.data.samples(self.config.seeds, self.config.alphas)

    @cached_property
    def sources(self) -> dict[str, Sample]:
        """For word pairs, each sample's image at alpha 0, by the sample's key; otherwise empty."""
        return {
            sample.key: steered(sample.pair, UNSTEERED, sample.seed)
            for sample in self.samples
            if sample.pair is not None
        }

    @cached_property
    def reference_images(self) -> dict[str, Images]:
        """The images that came with the data, by prompt or by name."""
        return {name: read_picture(image) for name, image in self.data.pictures.items()}

    @cached_property
    def reference_set(self) -> Images | None:
        """All reference images, each once."""
        if isinstance(self._references, Path):
            files = by_name(self._references)
            return stacked({name: read_picture(path) for name, path in files.items()}, "references")
        if self._references is not None:
            return self._references
        images = self.reference_images
        return stacked(images, "references") if images else None

    def offers(self, mode: str, subjects: Iterable[ImageSource]) -> dict[str, bool]:
        """Whether each of ``NEEDS`` is available with these subjects in this mode."""
        data, is_pairwise = self.data, mode == "pairwise"
        subjects = list(subjects)
        offered = {need: need in data.provides() for need in NEEDS}
        if data.files and any(not set(s.names) <= set(data.files) for s in subjects):
            offered["references"] = False
        if self._references is not None:
            offered["reference_set"] = True
        if is_pairwise:
            offered |= {"references": True, "reference_set": True}
        has_samples = bool(self.samples)
        return {
            **offered,
            "images": has_samples or all(subject.names for subject in subjects),
            "model": has_samples and all(subject.generates for subject in subjects),
            "files": all(subject.has_files for subject in subjects),
        }

    def choose(
        self, mode: str, subjects: Iterable[ImageSource]
    ) -> tuple[tuple[Metric, ...], dict[str, str]]:
        """The metrics to compute, and those of a preset that are left out, each with the reason.

        Raises :class:`TaskError` if a listed metric, or every metric of a preset, cannot be
        computed.
        """
        subjects = list(subjects)
        offers = self.offers(mode, subjects)
        n_images = min([len(self.samples or subject.names) for subject in subjects])
        left_out = dict(self.unavailable)
        chosen = []
        for each in self.metrics:
            lacking = [need for need in NEEDS if need in needs_of(each) and not offers[need]]
            least = getattr(each, "least", 1)
            if lacking:
                refusal = self.refusal(lacking[0], mode)
            elif "images" in needs_of(each) and n_images < least:
                refusal = f"needs {least} images or more, and this task asks for {n_images}"
            else:
                chosen.append(each)
                continue
            if self.preset is None:
                raise UnmetNeedError(each.name, refusal)
            left_out[each.name] = refusal
        if not chosen:
            raise TaskError(
                f"{self.preset}: none of its metrics can be had here: "
                + "; ".join(dict.fromkeys(left_out.values()))
            )
        return tuple(chosen), left_out

    def refusal(self, need: str, mode: str) -> str:
        """Why a metric with this need cannot be computed, and what to do."""
        if need in ("model", "files"):
            return f"needs {NEEDS[need]}: {_HOW[need]}"
        where = "in either mode" if mode == "either" else f"in {mode} mode"
        return (
            f"needs {NEEDS[need]}, which the data ({self.data.kind}) do not give {where}: "
            f"{_HOW[need]}"
        )

    def to_dict(self) -> dict[str, Json]:
        """The task's settings as plain values."""
        config = self.config
        return {
            "what": self.preset or [each.name for each in self.metrics],
            "data": self.data.kind,
            "n_data": len(self.data),
            "seeds": list(config.seeds),
            **({"alphas": list(config.alphas), "method": config.method} if self.data.pairs else {}),
            "judge": self.judge.fingerprint,
            "device": self.device,
            "batch_size": config.batch_size,
            "seed": self.seed,
            "country": self.country,
        }


_PAIRWISE = "or compare two models, EvaluationAgent(task).compare(a, b): a's images are then"
_HOW = {
    "images": "give prompts as data and the folder as references=, or evaluate a folder of images "
    "instead of a model, which would not know what to make",
    "prompts": "give prompts, (prompt, image) pairs, word pairs, or a folder whose metadata.jsonl "
    "has a text for each image",
    "references": "give data as (prompt, image) pairs or as a folder whose metadata.jsonl has a "
    f"text for each image, {_PAIRWISE} the references",
    "reference_set": f"give references=FOLDER, {_PAIRWISE} the references",
    "sources": "give word pairs, whose images at alpha 0 those are",
    "source_prompts": "give word pairs, which have one each",
    "model": "give a model's name or a pipeline, not a folder of images, and data with prompts",
    "files": "give the model's name or folder, not a pipeline that is in memory",
}


def _check_engine(
    engine: str, device: str, num_workers: int | None, ray_address: str | None
) -> None:
    """Raises :class:`TaskError` for an unknown engine, or for settings that do not fit it."""
    try:
        ENGINES.check(engine)
    except UnknownNameError as error:
        raise TaskError(f"engine: {error}") from None
    if engine == "ray" and device not in ("cpu", "cuda"):
        raise TaskError(
            "device: expected cpu or cuda with the engine ray, which gives each worker a device "
            f"of its own, got {device!r}"
        )
    for name, value in (("num_workers", num_workers), ("ray_address", ray_address)):
        if engine == "serial" and value is not None:
            raise TaskError(f"{name}: expected the engine ray with it, got serial")


def _asked(what: Any) -> Iterable[Any]:
    """The list of metrics itself. Raises ``TaskError`` if it is not a list; text at this point is
    an unknown preset.
    """
    if isinstance(what, str):
        raise TaskError(
            f"unknown preset {what!r}{near(what, PRESETS)}; choose from {', '.join(PRESETS)}, or "
            "give a list of metrics"
        )
    if isinstance(what, Mapping) or not isinstance(what, Iterable):
        raise TaskError(
            f"what: expected a preset's name ({', '.join(PRESETS)}) or a list of metrics, "
            f"got {what!r}"
        )
    return what


def _references(given: Any) -> Path | Images | None:
    if given is None:
        return None
    if isinstance(given, (str, PathLike)):
        folder = Path(expanduser(given))
        if not folder.is_dir():
            raise TaskError(f"references: expected a folder of images, got {str(given)!r}")
        by_name(folder)
        return folder
    check_images(given, "references")
    images = np.array(given)
    images.flags.writeable = False
    return images


def _features(given: Any, judge: Judge, device: str) -> FeatureModel:
    """The feature extractor that is given, by itself or by name. None means the judge's default."""
    if given is None:
        embedded = find_judge(EMBEDDED, None).fingerprint
        given = "judge" if judge.fingerprint == embedded else "inception"
    if given == "judge":
        return judge
    if given == "inception":
        return Inception(device=device)
    if isinstance(given, str) or not (isinstance(given, Encoder) or callable(given)):
        raise TaskError(
            "features: expected 'judge', 'inception', an encoder or a function of uint8 images, "
            f"got {given!r}"
        )
    model_name(given)  # raises if they have no name
    return given


def _judge(given: Any, device: str, *, offline: bool) -> Judge:
    """The judge itself, or the judge of this name, which is loaded when it is needed."""
    if isinstance(given, Judge):
        return given
    if isinstance(given, JudgeSource):
        return Judge(given, device=device)
    name, tag = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(name, str):
        raise TaskError(f"judge: expected a name, (name, weights' tag) or a Judge, got {given!r}")
    return Judge(find_judge(name, tag, offline=offline), device=device)
