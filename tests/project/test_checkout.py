"""A checkout is the same everywhere, and the suite runs on the Pythons that it promises."""

from __future__ import annotations

import ast
import filecmp
import re
import shutil
import subprocess
import tomllib

import pytest
from cases import ROOT

from analogy.models.fingerprints import fingerprint

needs_git = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs a git checkout"
)


def git(*words):
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_git
def test_a_checkout_by_git_for_windows_has_the_same_bytes(tmp_path):
    """Its default, core.autocrlf=true, would give every text file other line ends."""
    for name, setting in (("windows", "true"), ("plain", "false")):
        git("clone", "--quiet", "--config", f"core.autocrlf={setting}", ROOT, tmp_path / name)
    files = git("ls-files", "-z", "--with-tree=HEAD").split("\0")[:-1]
    kept = [file for file in files if (tmp_path / "plain" / file).is_file()]
    assert len(kept) > 200
    _, different, failed = filecmp.cmpfiles(
        tmp_path / "windows", tmp_path / "plain", kept, shallow=False
    )
    assert (different, failed) == ([], [])
    # and so the checksums of the embedded models hold
    fingerprint(tmp_path / "windows" / "fixtures" / "models" / "sdxl-tiny")


def test_the_package_imports_nothing_that_a_wheel_lacks():
    """Of the checkout's other folders a wheel has only data, by `shipped`."""
    lacking = {"benchmarks", "fixtures", "tests", "tools"}
    imported = set()
    for path in (ROOT / "analogy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {(name.name.partition(".")[0], path) for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add((node.module.partition(".")[0], path))
    assert "analogy" in {name for name, _ in imported}
    assert [(name, path) for name, path in imported if name in lacking] == []


def test_what_is_promised_of_python_is_one_promise():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    oldest = project["project"]["requires-python"].removeprefix(">=")
    classified = [
        name.rpartition(" ")[2]
        for name in project["project"]["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
    ]
    assert classified[0] == oldest
    assert project["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert project["tool"]["mypy"]["python_version"] == oldest
    for page in ("README.md", ".ci/run", "docs/ci.md"):
        assert re.search(
            rf"Python {re.escape(oldest)}(\+| or later)", (ROOT / page).read_text("utf-8")
        )
    assert "python_version" not in (ROOT / "constraints.txt").read_text("utf-8")


def test_tests_stand_in_folders_under_names_of_their_own():
    """pytest imports a test file by its name alone, so two of one name cannot both be collected."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    assert len(files) > 90
    assert [str(file) for file in files if file.parent == ROOT / "tests"] == []
    names = [file.name for file in files]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    long = [str(file) for file in files if len(file.read_text("utf-8").splitlines()) > 600]
    assert long == []
    modules = (ROOT / "analogy").rglob("*.py")
    long = [str(file) for file in modules if len(file.read_text("utf-8").splitlines()) > 500]
    assert long == []
