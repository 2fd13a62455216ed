"""The subjects of evaluations: a model that generates images, or a folder of another tool's."""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from analogy.core.errors import ModelError
from analogy.core.files import write_atomically
from analogy.core.images import Images
from analogy.core.records import UNSTEERED, RunConfig
from analogy.evaluation.altered import UnknownError, alterations
from analogy.evaluation.data import Sample, match
from analogy.evaluation.folders import METADATA, Line, by_name, read_metadata, read_picture
from analogy.evaluation.protocol import TaskError
from analogy.evaluation.samples import check_one_size
from analogy.evaluation.task import Task
from analogy.evaluation.timed import Timed
from analogy.generation.engine import Progress, Setup, no_progress
from analogy.generation.execution import Execution
from analogy.generation.worker import Worker, fit_batch_size, generator_of
from analogy.metrics.efficiency import size_on_disk
from analogy.models.declared import lacking
from analogy.models.defaults import native_dtype, sampling
from analogy.models.families import FAMILIES, Family, family_of
from analogy.models.fingerprints import file_fingerprint
from analogy.models.folders import native_size
from analogy.models.generator import Generator
from analogy.models.loading import load_pipeline
from analogy.models.memory import limit_memory
from analogy.models.placement import computing_place
from analogy.models.places import ModelSource
from analogy.models.samplings import CARD_SAMPLING
from analogy.models.sources import find_pipeline
from analogy.models.untested import with_checked_family
from analogy.store.folder import RunFolder, folder_name
from analogy.store.grid import AnyJob, Grid, ImageSettings, PromptJob, Role, digest
from analogy.store.image_store import image_name
from analogy.studies.provenance import scheduler_of

Found: TypeAlias = tuple[dict[str, Images], dict[str, str]]
"""Images by key, uint8 HWC; and the reason for each failed image, by key."""


class Folder:
    """Images of another tool, matched by their file names or by ``metadata.jsonl``."""

    generates = has_files = False

    def __init__(self, path: Path, task: Task) -> None:
        self._path = path
        files = by_name(path)
        self.names: tuple[str, ...] = tuple(files) if task.data.files else ()
        if task.samples:
            match(path, task.samples)  # raises TaskError if the folder lacks some
        whole = hashlib.sha256()
        for name, file in files.items():
            whole.update(f"{file_fingerprint(name, file)}\n".encode())
        self.fingerprint = f"{path.resolve().name}@sha256:{whole.hexdigest()[:16]}"
        self.settings = {"folder": str(path)}
        self._decoded: dict[str, Images] = {}

    def check(self, wanted: Sequence[Sample]) -> tuple[int, int] | None:
        """Read the images of ``wanted``, before another model generates any. Returns their height
        and width. Raises an error if one is missing, invalid or of another size.
        """
        images, _ = self.images(wanted, no_progress)
        return check_one_size(images, "images")

    def images(self, wanted: Sequence[Sample], progress: Progress) -> Found:
        """The images of ``wanted``, or all images if the task has no prompts."""
        files = match(self._path, wanted) if wanted else by_name(self._path)
        for key, file in files.items():
            if key not in self._decoded:
                self._decoded[key] = read_picture(file)
        progress(len(files))
        return {key: self._decoded[key] for key in files}, {}

    def release(self) -> None:
        """Free the memory of the images."""
        self._decoded = {}


class Model:
    """A pipeline, named or live, that generates a task's images into its run folder.

    ``source``: its files; None for a live pipeline, which is used as it is, on its device and in
    its dtype, and whose own scheduler is not changed. ``lora``: weights to fuse into a named one.
    If a live pipeline is altered by code without a stable name, its images are made again each
    time, and ``settings`` has the reason as ``not_kept``.
    """

    generates = True
    names: tuple[str, ...] = ()

    def __init__(self, given: Any, task: Task, *, lora: str | None = None) -> None:
        self._task = task
        self.source: ModelSource | None = None
        self._live: Any = None
        self._unknown: str | None = None
        if isinstance(given, (str, PathLike)):
            dtype = task.dtype or native_dtype(task.device)
            name = str(given)
            quantize, offload = task.config.quantize, task.config.offload
            self.source = find_pipeline(
                name, dtype=dtype, offline=task.offline, transformer=task.config.transformer,
                lora=lora, quantize=quantize,
            )  # fmt: skip
            folder = self.source.folder
            self.fingerprint = self.source.fingerprint
            self.scheduler = scheduler_of(folder)
            steps, guidance = sampling(name, folder)
            size, device = native_size(folder), task.device
            name = name if lora is None else f"{name}+{lora}"
        else:
            if task.config.engine != "serial":
                raise TaskError(
                    "engine: expected serial for a pipeline in memory, which no other process has, "
                    f"got {task.config.engine}; give the pipeline's folder instead"
                )
            if task.config.transformer is not None:
                raise TaskError(
                    "transformer: expected a model by name or files with it, got a pipeline in "
                    "memory, which has its own"
                )
            self._live, name = given, task.config.model
            family = family_of(given)
            denoiser = getattr(given, family.denoiser)
            self.fingerprint, self._unknown = _known_or_new(given)
            self.scheduler = _settings(given.scheduler)
            steps, guidance = _sampling_of(given, family)
            size = family.size_of(given)
            place = computing_place(given, denoiser)
            device, dtype = str(place[0]), str(place[1]).removeprefix("torch.")
            quantize = offload = None
        self.config: RunConfig = replace(
            task.config,
            steps=steps if task.steps is None else task.steps,
            guidance=guidance if task.guidance is None else task.guidance,
            size=size if task.size is None else task.size,
            device=device,
            dtype=dtype,
            model=name,
            lora=lora,
            quantize=quantize,
            offload=offload,
        )
        self.settings = {
            name: getattr(self.config, name)
            for name in ("steps", "guidance", "size", "dtype", "device")
        } | {"scheduler": self.scheduler}
        if self._unknown is not None:
            self.settings["not_kept"] = self._unknown
        self._sampling = ImageSettings.of(self.config, self.scheduler)
        # One folder for each method: a pair's samples have the same keys by every method.
        more = {"method": self.config.method} if task.data.pairs else {}
        self.folder = task.run_dir / folder_name(self._sampling.subject(self.fingerprint), **more)

    @property
    def has_files(self) -> bool:
        """Whether its weights are files."""
        return self.source is not None

    def check(self, wanted: Sequence[Sample]) -> tuple[int, int] | None:
        """Height and width of the images that it will make."""
        return (self.config.size, self.config.size)

    def images(self, wanted: Sequence[Sample], progress: Progress) -> Found:
        """The images of ``wanted``; those missing in the run folder are generated."""
        jobs = self._jobs(wanted)
        folder = RunFolder(self.folder)
        try:
            lines = self._described()  # raises for a damaged file before anything is generated
            missing = folder.without_image(jobs.values())
            progress(len(jobs) - len(missing))
            if missing:
                self._generate(missing, folder, progress)
            failed = {job.key: reason for job, reason in folder.failures(jobs.values())}
            made = {
                key: folder.read_image(job) for key, job in jobs.items() if job.key not in failed
            }
            self._describe(lines, wanted, {key: jobs[key] for key in made})
            lost = {key: failed[job.key] for key, job in jobs.items() if job.key in failed}
            return made, lost
        finally:
            folder.close()

    def lacks(self, wanted: Sequence[Sample]) -> bool:
        """Whether some of these images are not in the run folder."""
        folder = RunFolder(self.folder)
        try:
            return bool(folder.without_image(self._jobs(wanted).values()))
        finally:
            folder.close()

    def _jobs(self, wanted: Sequence[Sample]) -> dict[str, AnyJob]:
        """The job of each sample, by the sample's key."""
        pairs = self._task.data.pairs
        if pairs:
            grid = Grid(self.config, self.fingerprint, self.scheduler, pairs)
            by_place = {
                (job.pair.id, job.alpha, job.seed): job
                for job in grid.jobs(Role.UNSTEERED, Role.STEERED)
            }
            return {
                sample.key: by_place[sample.cluster, sample.alpha or UNSTEERED, sample.seed]
                for sample in wanted
            }
        of = self._sampling.prompt_job
        return {s.key: of(self.fingerprint, s.prompt, s.seed) for s in wanted}

    def _generate(self, missing: Sequence[AnyJob], folder: RunFolder, progress: Progress) -> None:
        prompts = sorted({job.prompt for job in missing if isinstance(job, PromptJob)})
        setup = Setup(self.config, self._task.data.pairs, self.source, None, prompts)
        # In this process, the same generator is timed afterwards.
        worker = Worker(setup, generator=lambda: self.generator)
        with closing(Execution(setup, folder, worker=worker)) as execution:
            execution.generate(missing, progress)

    def _described(self) -> dict[str, Line]:
        """The lines of the run folder's ``metadata.jsonl``, by key."""
        file = self.folder / METADATA
        if not file.exists():
            return {}
        try:
            return {line.key or line.file_name: line for _, line in read_metadata(file)}
        except TaskError as error:
            raise TaskError(f"{error}; delete the file, which this writes anew") from error

    def _describe(
        self, lines: dict[str, Line], wanted: Sequence[Sample], jobs: Mapping[str, AnyJob]
    ) -> None:
        """Add the images to the run folder's ``metadata.jsonl``, so that it can be read as an image
        folder.
        """
        for sample in wanted:
            if sample.key in jobs:
                name = image_name(jobs[sample.key].key)
                lines[sample.key] = Line(name, sample.prompt, sample.seed, sample.key)
        rows = [json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines.values()]
        write_atomically(self.folder / METADATA, "".join(rows).encode())

    def prepare(self) -> None:
        """Load the pipeline if this process generates, so that faults show before any image."""
        if self.config.engine == "serial":
            self.pipeline  # noqa: B018

    @cached_property
    def pipeline(self) -> Any:
        """The loaded pipeline. For a live one, a shallow copy with its own scheduler: the weights
        are shared, and the user's scheduler is not changed.
        """
        config = self.config
        if config.device.startswith("cuda") and config.memory is not None:
            limit_memory(config.device, config.memory)
        if self.source is not None:
            return load_pipeline(
                self.source, device=config.device, dtype=config.dtype, offload=config.offload
            )
        pipeline = copy.copy(self._live)
        scheduler = pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @cached_property
    def generator(self) -> Generator:
        """The generator, with the configured batch size or the one that fits the device."""
        config = self.config
        made = generator_of(self.pipeline, config)
        if config.batch_size is None:
            fit_batch_size(made, config.device, config.memory)
        return made

    def release(self) -> None:
        """Free the weights, to make room for the next model. A live pipeline stays in memory."""
        for name in ("pipeline", "generator"):
            self.__dict__.pop(name, None)
        if self.config.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def timed(self) -> Timed:
        """The model as the input of efficiency metrics."""
        task = self._task
        prompts = task.data.prompts or tuple(pair.source_prompt for pair in task.data.pairs)
        source, dtype = self.source, self.config.dtype
        return Timed(
            self.generator,
            self.pipeline,
            prompts,
            device=self.config.device,
            files=None if source is None else lambda: size_on_disk(source, dtype=dtype),
        )


Subject: TypeAlias = Folder | Model


def open_subject(given: Any, task: Task) -> Subject:
    """The subject that a user names: a model's name or files, a live pipeline, or a folder of
    images.

    A model with a LoRA fused into it is given as (name or files, LoRA). Raises ``ModelError`` or
    :class:`TaskError` if it cannot be used.
    """
    if isinstance(given, tuple) and len(given) == 2:
        model, lora = given
        if not all(isinstance(each, (str, PathLike)) for each in given):
            raise ModelError(f"model: expected (name or files, LoRA) as texts, got {given}")
        return Model(model, task, lora=str(lora))
    if isinstance(given, (str, PathLike)):
        path = Path(expanduser(given))
        if path.is_dir() and not (path / "model_index.json").is_file():
            return Folder(path, task)
        return Model(given, task)
    name = type(given).__name__
    if not FAMILIES.is_installed(name):
        if lacking(name) is not None:
            raise ModelError(
                "model: expected a name, a folder of images, or a diffusers pipeline of the "
                f"families supported ({', '.join(FAMILIES.names())}), got {name}"
            )
        with_checked_family(given)
    return Model(given, task)


def _known_or_new(pipeline: Any) -> tuple[str, str | None]:
    """A live pipeline's fingerprint; or a random one, with the reason, if it has no stable one.

    Images under a random fingerprint are never found again, so stale images are never reused.
    """
    try:
        return pipeline_fingerprint(pipeline), None
    except UnknownError as error:
        return f"{type(pipeline).__name__}@once:{uuid.uuid4().hex[:16]}", str(error)


def pipeline_fingerprint(pipeline: Any) -> str:
    """``<class>@sha256:<16 hex>`` of a live pipeline: weights, settings, vocabularies, alterations.

    The scheduler is left out: results and keys have it in addition. Raises
    :class:`~analogy.evaluation.altered.UnknownError` if the pipeline has no stable fingerprint.
    """
    altered = alterations(pipeline)
    whole = hashlib.sha256(_settings(pipeline).encode())
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, nn.Module):
            whole.update(f"{name} {_settings(part)}\n".encode())
            for key, tensor in part.state_dict().items():
                whole.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                values = tensor.detach().cpu().contiguous().reshape(-1)
                whole.update(values.view(torch.uint8).numpy())
        elif hasattr(part, "get_vocab"):
            whole.update(f"{name} {digest(part.get_vocab())}\n".encode())
    if altered:
        whole.update(f"altered {digest(altered)}\n".encode())
    return f"{type(pipeline).__name__}@sha256:{whole.hexdigest()[:16]}"


def _settings(part: Any) -> str:
    """The class of a pipeline's part and a digest of its settings, without paths and versions."""
    config = getattr(part, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {
        name: value
        for name, value in values.items()
        if not name.startswith("_") and not name.endswith("_version")
    }
    plain = json.loads(json.dumps(kept, default=str))
    return f"{type(part).__name__}/{digest(plain)[:8]}"


def _sampling_of(pipeline: Any, family: Family) -> tuple[int, float]:
    """Steps and guidance: those of the model's card if known, otherwise the pipeline's defaults."""
    name = str(pipeline.config.get("_name_or_path", ""))
    if name in CARD_SAMPLING:
        return CARD_SAMPLING[name]
    return family.defaults()
