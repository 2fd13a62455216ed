"""Ray's worker: a process of its own with the models on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias, TypeVar

import ray
import torch

from analogy.core.errors import ModelError
from analogy.generation.engine import Capacity, ClusterError, GeneratedBatch, ScoredBatch, Setup
from analogy.generation.worker import Worker, threads
from analogy.judges.base import FoundJudge, find_judge
from analogy.models.places import ModelSource
from analogy.models.sources import find_pipeline
from analogy.store.grid import AnyJob, Job

#: Environment variables that are passed on to workers on other machines.
ENVIRONMENT = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")

Batch: TypeAlias = Sequence[AnyJob]
S = TypeVar("S", ModelSource, FoundJudge)


class Actor:
    """A worker in a process of its own, with the device that Ray gives it."""

    def __init__(self, setup: Setup, n_threads: int) -> None:
        self._setup = setup
        self._n_threads = n_threads
        self._lock = Lock()
        self._capacity: Capacity | None = None

    def start(self, *, generates: bool) -> tuple[str, str]:
        """Find the models' files on this machine, and load the generator if asked.

        Returns the device and this machine's address. Raises ``ClusterError`` if torch has no
        CUDA device here for a run on CUDA, and ``ModelError`` if files are missing.
        """
        device, address = self._setup.config.device, ray.util.get_node_ip_address()
        if device == "cuda" and not torch.cuda.is_available():
            raise ClusterError(
                f"--device cuda: expected a CUDA device on {address}, but torch "
                f"{torch.__version__} sees none; check nvidia-smi there"
            )
        self._worker = Worker(found_here(self._setup, address))
        if generates:
            self.load()
        return torch.cuda.get_device_name() if device == "cuda" else device, address

    def load(self) -> Capacity:
        """Load the generator, once."""
        with self._lock:
            if self._capacity is None:
                with threads(self._n_threads):
                    self._capacity = self._worker.prepare()
            return self._capacity

    def load_judge(self) -> None:
        """Load the judge, once."""
        with self._lock:
            self._worker.prepare_judge()

    def generate(self, jobs: Batch) -> GeneratedBatch:
        """Generate one batch; called by several threads."""
        self.load()
        return self._worker.generate(jobs)

    def score(self, jobs: Sequence[Job], pngs: Sequence[bytes]) -> ScoredBatch:
        """Score one batch, with all threads."""
        with self._lock, threads(self._n_threads):
            return self._worker.score(jobs, pngs)


def found_here(setup: Setup, address: str) -> Setup:
    """The setup with its models on this machine: at the same paths, or found by their names.

    Raises ModelError if neither gives files with the same fingerprint.
    """
    config, model, judge = setup.config, setup.model, setup.judge

    def found(source: S, places: Sequence[Path], find: Callable[[], S]) -> S:
        if all(place.exists() for place in places):
            return source
        with suppress(ModelError):
            here = find()
            if here.fingerprint == source.fingerprint:
                return here
        raise ModelError(
            f"{address}: expected {source.fingerprint} in {', '.join(map(str, places))}, as on the "
            "machine that began the run; put it into a folder that all machines share"
        )

    def find_this_judge(dtype: str) -> FoundJudge:
        return find_judge(config.clip_model, config.clip_pretrained).in_dtype(dtype)

    return replace(
        setup,
        model=model
        and found(
            model,
            model.places,
            lambda: find_pipeline(
                config.base_model,
                dtype=config.dtype,
                transformer=config.transformer,
                lora=config.lora,
                quantize=config.quantize,
            ),
        ),
        judge=judge and found(judge, judge.places, lambda: find_this_judge(judge.dtype)),
    )


@dataclass(eq=False, slots=True)
class WorkerHandle:
    """A worker as seen by the run's own process. ``busy``: the number of batches that it has."""

    actor: Any
    number: int
    name: str = ""
    busy: int = 0
