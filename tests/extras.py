"""Tests that need a package which is no dependency of the suite's.

Where the package is not installed, they are skipped with what to install. The environment of tox
has all of them and sets ``REQUIRE_EXTRAS``: a missing one is then an error of the whole session, so
that nothing is left out there unseen.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import pytest

#: Modules, and the extra of pyproject.toml that brings each.
EXTRAS = {
    "cleanfid": "dev",
    "codecarbon": "energy",
    "gguf": "gguf",
    "hatchling": "dev",
    "ipykernel": "dev",
    "jinja2": "report",
    "jsonschema": "dev",
    "lpips": "dev",
    "matplotlib": "report",
    "nbclient": "dev",
    "nbformat": "dev",
    "peft": "lora",
    "ray": "ray",
    "selenium": "dev",
    "skimage": "dev",
    "yaml": "dev",
}


def extra(module: str, of: str | None = None) -> Any:
    """The module; without it, the test (or the test file) that asks for it is skipped.

    ``of``: the extra that the module needs [default: the package that the module is of].
    """
    if reason := _without(of or module.partition(".")[0]):
        pytest.skip(reason, allow_module_level=True)
    return importlib.import_module(module)


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip a test, or with ``pytestmark`` a file, without these modules."""
    reasons = [reason for module in modules if (reason := _without(module))]
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))


def check_required() -> None:
    """Raise UsageError if an extra is missing where all are required."""
    if os.environ.get("REQUIRE_EXTRAS"):
        missing = [reason for module in EXTRAS if (reason := _without(module))]
        if missing:
            raise pytest.UsageError(f"REQUIRE_EXTRAS is set, and a test {'; '.join(missing)}")


def _without(module: str) -> str | None:
    """What a test says that lacks the module; None where it is installed."""
    if importlib.util.find_spec(module) is not None:
        return None
    return f"needs {module}: pip install -e '.[{EXTRAS[module]}]'"
