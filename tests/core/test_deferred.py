"""Deferred modules, and that quick starts stay quick: no slow library is imported."""

import subprocess
import sys

import pytest

from analogy.core.deferred import deferred

SLOW = {"torch", "diffusers", "transformers", "open_clip", "scipy", "pandas", "numpy", "matplotlib"}


def test_the_first_use_imports(tmp_path, monkeypatch):
    (tmp_path / "slow_one.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = deferred("slow_one")
    assert "slow_one" not in sys.modules
    assert not hasattr(module, "_pytestfixturefunction")  # what others look for in any object
    assert "slow_one" not in sys.modules
    assert module.VALUE == 3
    monkeypatch.delitem(sys.modules, "slow_one")
    with pytest.raises(AttributeError, match="other"):
        module.other  # noqa: B018


def test_a_module_that_is_missing_is_an_import_error_at_its_first_use():
    module = deferred("no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        module.name  # noqa: B018


@pytest.mark.parametrize("module", ["analogy", "analogy.cli", "analogy.plugin"])
def test_the_edges_import_no_slow_library(module):
    code = f"import sys, {module}; print(*({SLOW!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
