"""Describes the machine, for the beginning of the report; run as the check's first process."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from analogy.models.defaults import machine
from analogy.studies.provenance import commit_of, package_versions
from tools.gpu_check.results import Machine, Report
from tools.gpu_check.runner import NotRunError, Recorder


def describe(check: Recorder) -> None:
    """Write an empty report on this machine to ``machine.json``.

    Raises NotRunError if the check needs a CUDA device and there is none.
    """
    is_cuda = torch.cuda.is_available()
    if not (is_cuda or check.setting.rehearse):
        raise NotRunError(
            f"expected a CUDA device, but torch {torch.__version__} finds none; --rehearse runs "
            "every step in small on the CPU"
        )
    said = machine("cuda" if is_cuda else "cpu")
    report = Report(
        rehearsal=check.setting.rehearse,
        commit=commit_of(Path(__file__).resolve().parents[2]) or "unknown",
        machine=Machine(
            device=str(said["device"]) if is_cuda else "no CUDA device",
            processor=str(said["processor"]),
            cores=os.cpu_count() or 1,
            python=platform.python_version(),
            packages=package_versions(),
        ),
    )
    (check.setting.work / "machine.json").write_text(json.dumps(asdict(report)))
