"""Where a run's figures come from: packages, the commit, the scheduler."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from functools import cache
from pathlib import Path

from analogy.models.families import knobs_of
from analogy.models.folders import family_of_folder, scheduler_settings
from analogy.models.replay_table import CFG
from analogy.store.grid import digest

PACKAGES = (
    "torch", "diffusers", "transformers", "open_clip_torch", "numpy", "scipy", "statsmodels",
    "pandas", "pytest",
)  # fmt: skip


def scheduler_of(folder: Path) -> str:
    """The scheduler's class and a digest of its settings."""
    settings = scheduler_settings(folder)
    return f"{settings['_class_name']}/{digest(settings)[:8]}"


def unusual_guidance(folder: Path) -> str | None:
    """What the guidance scale sets in a model's pipeline; None for classifier-free guidance by
    ``guidance_scale``.
    """
    knob, _ = knobs_of(family_of_folder(folder))
    if knob is None:
        return "none: the pipeline has no guidance"
    return None if knob == CFG else str(knob)


@cache
def package_versions() -> dict[str, str]:
    """The versions of the packages that figures depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


#: Variables that make git use another repository than that of the given folder; hooks set them.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE")


@cache
def own_commit() -> str | None:
    """The commit of the checkout that holds this package; None if it is not in one.

    ``+changes`` is appended if tracked files differ from it.
    """
    return commit_of(Path(__file__).resolve().parents[2])


def commit_of(checkout: Path) -> str | None:
    """The commit of the suite's checkout whose top folder this is; None for any other folder.

    An installed package may lie within a repository that has nothing to do with it.
    """
    environment = {name: text for name, text in os.environ.items() if name not in _ELSEWHERE}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()

    try:
        if not Path(git("rev-parse", "--show-toplevel")).samefile(checkout):
            return None
        git("ls-files", "--error-unmatch", "analogy/__init__.py")
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
