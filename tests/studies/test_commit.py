"""The commit in the results: the checkout's own, or none."""

from __future__ import annotations

import subprocess

import pytest

from analogy.studies.provenance import commit_of


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose one commit has the file ``analogy/__init__.py``, and its commit."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "nobody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "nobody@localhost")

    def make(name):
        folder = tmp_path / name
        (folder / "analogy").mkdir(parents=True)
        (folder / "analogy" / "__init__.py").write_text(f"# {name}\n")
        (folder / ".gitignore").write_text("env\n")
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "-c", "commit.gpgsign=false", "commit", "-qm", name)
        return folder, git(folder, "rev-parse", "HEAD")

    return make


def git(folder, *arguments):
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_has_its_commit_and_says_whether_files_differ(repository):
    folder, commit = repository("ours")
    assert commit_of(folder) == commit
    (folder / "analogy" / "__init__.py").write_text("# changed\n")
    assert commit_of(folder) == f"{commit}+changes"


@pytest.mark.parametrize("place", ["env/lib/site-packages", "vendored"])
def test_a_package_within_another_repository_has_none(repository, place):
    """In an environment that is ignored there, or in a folder that is committed there."""
    folder, _ = repository("theirs")
    (folder / place / "analogy").mkdir(parents=True)
    (folder / place / "analogy" / "__init__.py").write_text("# installed\n")
    git(folder, "add", "-A")
    assert commit_of(folder / place) is None


def test_an_environment_that_is_a_repository_of_its_own_has_none(repository, tmp_path):
    """Such as a home under git: the package lies at its top, and is not in it."""
    (tmp_path / "home" / "analogy").mkdir(parents=True)
    (tmp_path / "home" / "analogy" / "__init__.py").write_text("# installed\n")
    git(tmp_path / "home", "init", "-q")
    assert commit_of(tmp_path / "home") is None


def test_a_hook_of_another_repository_changes_nothing(repository, monkeypatch):
    """Git sets ``GIT_DIR`` and more for what it runs itself."""
    ours, commit = repository("ours")
    theirs, other = repository("theirs")
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(theirs))
    assert other != commit
    assert commit_of(ours) == commit


def test_outside_of_any_repository_there_is_none(tmp_path):
    assert commit_of(tmp_path) is None
