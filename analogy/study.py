"""A run from end to end: resolve the options, do the missing work, estimate cells and the whole."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from analogy import __version__
from analogy.clip import JudgeSource, find_judge
from analogy.execute import Report, Worker
from analogy.models import (
    DEFAULT_GPU_CLIP,
    DEFAULT_GPU_MODEL,
    EMBEDDED,
    ModelSource,
    find_pipeline,
    machine,
    native_dtype,
    shipped,
)
from analogy.options import (
    EMBEDDED_BATCH,
    EMBEDDED_SAMPLING,
    GPU_BATCH,
    GPU_SAMPLING,
    OptionError,
)
from analogy.pairs import categories, load_pairs, select
from analogy.records import Estimate, Pair, RunConfig, Verdict
from analogy.stats import estimate, items_from_margins, pooled_estimate
from analogy.steering import OTHERS_MATTER
from analogy.store import Job, RunFolder, content, digest, plan

RESULTS_VERSION = 1
PACKAGES = (
    "torch", "diffusers", "transformers", "open_clip_torch", "numpy", "scipy", "pandas", "pytest",
)  # fmt: skip


class Study:
    """One configuration over its pairs, in its run folder.

    ``generate`` and ``score`` do what is missing; ``cell`` and ``overall`` estimate from what is
    there, and say ``incomplete`` when images are missing.
    """

    def __init__(
        self,
        config: RunConfig,
        pairs: Sequence[Pair],
        model: ModelSource,
        judge: JudgeSource,
        folder: RunFolder,
    ) -> None:
        self.config = config
        self.pairs = list(pairs)
        self.model = model
        self.judge = judge
        self.folder = folder
        self.scheduler = _scheduler_of(model.folder)
        self.worker = Worker(config, pairs, model, judge, folder)
        self._jobs = plan(config, model.fingerprint, self.scheduler, pairs, config.grid_alphas)

    @classmethod
    def open(cls, values: Mapping[str, Any]) -> Study:
        """From parsed options. Loads the pairs and verifies the models' files; loads no model.

        Raises ``OptionError``, ``PairsError``, ``ModelError`` or ``StoreError``.
        """
        config, model, judge = _resolve(values)
        pairs = select(load_pairs(config.pairs), config.categories, config.limit)
        _refuse_lone_pairs(config.method, pairs)
        scheduler = _scheduler_of(model.folder)
        path = values["run_dir"] or Path(".analogy") / "runs" / _run_name(
            config, model, judge, scheduler
        )
        study = cls(config, pairs, model, judge, RunFolder(Path(path)))
        study.folder.record_config(config, study.provenance())
        return study

    @property
    def categories(self) -> list[str]:
        """The categories of this run, in the pairs' order."""
        return categories(self.pairs)

    def jobs(self, category: str | None = None, alpha: float | None = None) -> list[Job]:
        """The grid's jobs, of one category or alpha if given."""
        return [
            job
            for job in self._jobs
            if category in (None, job.pair.category) and alpha in (None, job.alpha)
        ]

    def cell_jobs(self, category: str, alpha: float) -> list[Job]:
        """A cell's jobs, with those of its control."""
        return self.jobs(category, 0.0) + self.jobs(category, alpha)

    def generate(self, jobs: Sequence[Job], report: Report = lambda n: None) -> None:
        """Generate the images among ``jobs`` that are missing."""
        self.worker.generate(jobs, report)

    def score(self, jobs: Sequence[Job]) -> int:
        """Score the images among ``jobs`` that are not; returns how many those were."""
        return self.worker.score(jobs)

    def unscored(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that have no score by this run's judge."""
        return self.folder.without_score(jobs, self.judge.fingerprint)

    def items(self) -> pd.DataFrame:
        """All scored items: pair_id, category, alpha, margin, n_seeds."""
        return items_from_margins(self.folder.margins(self._jobs, self.judge.fingerprint))

    def cell(self, category: str, alpha: float) -> Estimate:
        """The estimate of one cell; ``incomplete`` if any of its images has no score."""
        jobs = self.jobs(category, alpha)
        margins = self.folder.margins(jobs, self.judge.fingerprint)
        if len(margins) < len(jobs):
            return _incomplete(jobs, margins)
        return estimate(items_from_margins(margins)["margin"].to_numpy())

    def overall(self) -> Estimate:
        """All cells pooled, the control left out, pairs as clusters."""
        jobs = [job for job in self._jobs if job.alpha != 0.0]
        margins = self.folder.margins(jobs, self.judge.fingerprint)
        if len(margins) < len(jobs):
            return _incomplete(jobs, margins)
        table = items_from_margins(margins).pivot(index="pair_id", columns="alpha", values="margin")
        return pooled_estimate(table.to_numpy())

    def pairs_digest(self, category: str) -> str:
        """What identifies a category's pairs, whatever their ids are."""
        return digest([content(pair) for pair in self.pairs if pair.category == category])

    def provenance(self) -> dict[str, Any]:
        """What produced this run's figures."""
        return {
            "suite": __version__,
            "model": self.model.fingerprint,
            "judge": self.judge.fingerprint,
            "scheduler": self.scheduler,
            "python": sys.version.split()[0],
            "packages": _package_versions(),
            "git_commit": _git_commit(),
            "machine": machine(self.config.device),
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def results(self) -> dict[str, Any]:
        """Everything that ``results.json`` holds; see "Results" in the README.

        ``cells`` has every cell that is a case, ``controls`` the same figures at alpha 0, where
        nothing is claimed and so there is no verdict. A cell that lacks images is ``incomplete``.
        Rates are over all work recorded in the run folder.
        """
        cells: list[dict[str, Any]] = []
        controls: list[dict[str, Any]] = []
        for category in self.categories:
            for alpha in self.config.grid_alphas:
                figures = self.cell(category, alpha).to_dict()
                if alpha == 0.0:
                    del figures["verdict"]
                row = {"category": category, "alpha": alpha, **figures}
                (cells if alpha else controls).append(row)
        return {
            "schema_version": RESULTS_VERSION,
            "config": self.config.to_dict(),
            "provenance": self.provenance(),
            "cells": cells,
            "controls": controls,
            "overall": self.overall().to_dict(),
            "throughput": {
                "generate_images_per_s": self.folder.rate("generate"),
                "score_images_per_s": self.folder.rate("score"),
            },
        }


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write results as strict JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", "utf-8")
    temporary.replace(path)


def _resolve(values: Mapping[str, Any]) -> tuple[RunConfig, ModelSource, JudgeSource]:
    """The configuration with the defaults of its device filled in, and where its models are."""
    gpu = bool(values["gpu"])
    if gpu and not torch.cuda.is_available():
        raise OptionError(
            f"--gpu: expected a CUDA device, but torch {torch.__version__} sees none; check "
            "nvidia-smi and CUDA_VISIBLE_DEVICES, or leave --gpu out to run on the CPU"
        )
    device = "cuda" if gpu else "cpu"
    dtype = native_dtype(device)
    steps, guidance = GPU_SAMPLING if gpu else EMBEDDED_SAMPLING
    name = values["model"] or (DEFAULT_GPU_MODEL if gpu else EMBEDDED)
    clip, tag = values["clip_model"], values["clip_pretrained"]
    if clip is None:
        clip, default_tag = DEFAULT_GPU_CLIP if gpu else (EMBEDDED, None)
        tag = tag or default_tag
    judge = find_judge(clip, tag)
    model = find_pipeline(name, dtype=dtype)
    try:
        config = RunConfig(
            model=name,
            clip_model=clip,
            clip_pretrained=tag,
            pairs=values["pairs"] or str(shipped("pairs.csv")),
            categories=values["categories"],
            alphas=values["alphas"],
            seeds=values["seeds"],
            method=values["method"],
            steps=steps if values["steps"] is None else values["steps"],
            guidance=guidance if values["guidance"] is None else values["guidance"],
            size=_native_size(model.folder),
            dtype=dtype,
            device=device,
            batch_size=values["batch_size"] or (GPU_BATCH if gpu else EMBEDDED_BATCH),
            limit=values["limit"],
        )
    except ValueError as error:
        option, _, rest = str(error).partition(":")
        raise OptionError(f"--{option.replace('_', '-')}:{rest}") from None
    return config, model, judge


def _refuse_lone_pairs(method: str, pairs: Sequence[Pair]) -> None:
    """A method that looks at a pair's neighbours needs some."""
    counts = Counter(pair.category for pair in pairs)
    lone = [category for category, count in counts.items() if count < 2]
    if method in OTHERS_MATTER and lone:
        raise OptionError(
            f"--method: {method} needs 2 pairs or more in each category, got 1 in "
            f"{', '.join(lone)}; raise --limit, add pairs or choose another method"
        )


def _run_name(config: RunConfig, model: ModelSource, judge: JudgeSource, scheduler: str) -> str:
    """A folder name for all runs that can share images: more pairs, seeds or alphas extend it."""
    same = {"model": model.fingerprint, "judge": judge.fingerprint, "scheduler": scheduler}
    for name in ("method", "steps", "guidance", "size", "dtype"):
        same[name] = getattr(config, name)
    return digest(same)[:12]


def _native_size(folder: Path) -> int:
    """Pixels of the images that a pipeline was trained for, from its configuration files."""
    unet = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    vae = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
    return int(unet["sample_size"]) * int(2 ** (len(vae["block_out_channels"]) - 1))


def _scheduler_of(folder: Path) -> str:
    """The scheduler's class and a digest of its settings."""
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    return f"{settings['_class_name']}/{digest(settings)[:8]}"


def _incomplete(jobs: Sequence[Job], margins: pd.DataFrame) -> Estimate:
    """No figures, but how many pairs there are and of how many items all seeds are scored."""
    n_seeds = len({job.seed for job in jobs})
    n_items = int((items_from_margins(margins)["n_seeds"] == n_seeds).sum())
    nan = float("nan")
    n = len({job.pair.id for job in jobs})
    return Estimate(n, n_items, nan, nan, nan, nan, nan, Verdict.INCOMPLETE)


@cache
def _package_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@cache
def _git_commit() -> str | None:
    """The checkout's commit, with ``+changes`` if tracked files differ; None outside of git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
