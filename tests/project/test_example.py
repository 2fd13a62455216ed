"""tests/example: a package that adds to all six seams, installed by pip and run as a user does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import processes
import pytest
from cases import ROOT, results_of
from extras import needs
from verbs import verb

from analogy.core import registry
from analogy.core.engines import ENGINES
from analogy.core.registry import Registry
from analogy.grid_metrics import METRICS
from analogy.judges.base import JUDGES
from analogy.models.families import FAMILIES
from analogy.models.places import shipped
from analogy.settings.options import OPTIONS
from analogy.steering.base import METHODS
from analogy.writers import WRITERS

PIPELINE = "StableDiffusionXLPAGPipeline"
SEAMS: tuple[tuple[Registry, str], ...] = (
    (METHODS, "eased"), (METRICS, "brightened"), (JUDGES, "warmth"), (FAMILIES, PIPELINE),
    (ENGINES, "named"), (WRITERS, "tsv"),
)  # fmt: skip
RUN = (
    "run", "--model=perturbed", "--method=eased", "--metrics=ssim,brightened",
    "--clip-model=warmth", "--categories=color", "--limit=6", "--alphas=1", "--seeds=0",
    "--steps=2", "--guidance=4", "--dtype=float32", "--device=cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Installed:
    """A folder with the installed ``packages``, and a model of the package's family."""

    path: Path

    @property
    def packages(self) -> Path:
        return self.path / "packages"

    def analogy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        paths = (str(self.packages), str(ROOT))
        env = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "2"}
        return processes.run_module("analogy", *arguments, cwd=self.path, env=env)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    path = tmp_path_factory.mktemp("example")
    shutil.copytree(ROOT / "tests" / "example", path / "source")  # pip builds in it
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--no-index", "--no-deps",
            "--no-build-isolation", "--disable-pip-version-check", "--target", path / "packages",
            path / "source",
        ],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ignored = shutil.ignore_patterns("SHA256SUMS")
    shutil.copytree(shipped("models/sdxl-tiny"), path / "perturbed", ignore=ignored)
    file = path / "perturbed" / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": PIPELINE}))
    return Installed(path)


@pytest.fixture(scope="module")
def measured(installed):
    """A run with all six at once."""
    done = installed.analogy(
        *RUN, "--engine=named", "--run-dir=run", "--results=run.json", "--write=cells.tsv"
    )
    assert done.returncode in (0, 1), done.stderr
    return done


@pytest.fixture
def here(installed, monkeypatch):
    """The installed package in this process, by its names alone."""
    monkeypatch.syspath_prepend(installed.packages)
    registry.rescan()
    yield
    monkeypatch.undo()
    registry.rescan()
    for name in [name for name in sys.modules if name.startswith("analogy_example.")]:
        del sys.modules[name]  # a later test of this process may ask that it is not loaded


@pytest.mark.slow
def test_all_six_work_together(installed, measured):
    found = results_of(installed.path / "run.json")
    assert (found["config"]["method"], found["config"]["method_version"]) == ("eased", "1")
    assert found["provenance"]["judge"] == "warmth@1"
    assert found["provenance"]["model"].startswith("perturbed@sha256:")
    [cell] = found["cells"]
    assert (cell["category"], cell["alpha"], cell["n"]) == ("color", 1.0, 6)
    assert cell["gain"]["mean"] != 0.0  # steering changed the images
    [quality] = found["quality"]["cells"]
    assert quality["brightened"]["n"] == 6
    assert -255 < quality["brightened"]["mean"] < 255
    assert quality["brightened"]["mean"] != 0.0
    assert "brightened (levels)" in measured.stdout
    assert "worker  example: " in measured.stdout
    assert (installed.path / "cells.tsv").read_text() == f"color\t1\t{cell['mean']!r}\n"
    assert "written   cells.tsv" in measured.stdout


@pytest.mark.slow
def test_the_family_gives_other_images_than_sdxl_of_the_same_weights(installed, measured):
    done = installed.analogy(
        *(word for word in RUN if not word.startswith("--model")), "--model=embedded",
        "--run-dir=plain", "--results=plain.json",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    perturbed, plain = (results_of(installed.path / f"{name}.json") for name in ("run", "plain"))
    assert perturbed["controls"][0]["items"] != plain["controls"][0]["items"]


@pytest.mark.slow
@needs("ray")
def test_rays_workers_have_the_method_the_judge_and_the_family(installed, measured):
    done = installed.analogy(
        *RUN, "--engine=ray", "--num-workers=2", "--batch-size=3", "--run-dir=ray",
        "--results=ray.json",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    alone, by_ray = (results_of(installed.path / f"{name}.json") for name in ("run", "ray"))
    assert by_ray["provenance"]["judge"] == "warmth@1"
    [mine], [theirs] = alone["cells"], by_ray["cells"]
    assert theirs["items"] == pytest.approx(mine["items"], abs=1e-3)
    [mine], [theirs] = alone["quality"]["cells"], by_ray["quality"]["cells"]
    assert theirs["brightened"]["mean"] == pytest.approx(mine["brightened"]["mean"], abs=0.1)


def test_its_names_can_be_chosen(here):
    for seam, name in SEAMS:
        assert name in seam.names()
        assert seam.is_installed(name)
        assert not seam.is_builtin(name)
    offered = {option.key: option.completions for option in OPTIONS}
    assert "eased" in offered["method"]
    assert "brightened" in offered["metrics"]
    assert "named" in offered["engine"]
    assert "tsv=" in offered["write"]
    assert not [name for name in sys.modules if name.startswith("analogy_example.")]


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--method=easd", "eased"),
        ("--metrics=brightend", "brightened"),
        ("--clip-model=warmt", "warmth"),
        ("--engine=nmed", "named"),
        ("--write=tvs=cells.txt", "tsv"),
        ("--write=cells.tvs", ".tsv"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(here, option, nearest):
    result = verb("run", option)
    assert result.exit_code == 2
    assert f"did you mean '{nearest}'?" in result.stderr


def test_without_the_package_its_names_are_unknown():
    for seam, name in SEAMS:
        assert name not in seam.names()
