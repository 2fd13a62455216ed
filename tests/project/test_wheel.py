"""The suite from an installed wheel, in an empty folder without a network: the same cases."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile

import processes
import pytest
from cases import ROOT
from extras import extra

package_readme = extra("tools.package_readme", of="hatchling")
pytestmark = pytest.mark.slow

RELATIVE = re.compile(r"\]\((?![a-z]+:|#)")
SMALL = ("--limit=2", "--categories=color", "--seeds=0", "--alphas=1", "--steps=2")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs a command with the wheel on its path, and nothing of the checkout."""
    extra("hatchling")
    path = tmp_path_factory.mktemp("wheel")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target")
    made = subprocess.run(
        [sys.executable, "-c", build, str(path)], cwd=ROOT, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    wheel = path / made.stdout.strip().splitlines()[-1]
    subprocess.run([*pip, str(path / "site"), str(wheel)], check=True, capture_output=True)
    empty = path / "empty"
    empty.mkdir()

    def run(*arguments: str) -> str:
        env = {"PYTHONPATH": str(path / "site")}
        done = processes.run_module(*arguments, cwd=empty, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.folder, run.wheel = empty, wheel
    return run


def test_the_description_has_no_link_that_leads_nowhere_on_an_index(installed):
    """Of the wheel as it is; with the address of a repository all links and pictures are there."""
    with zipfile.ZipFile(installed.wheel) as archive:
        [name] = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    assert "\nDescription-Content-Type: text/markdown\n" in metadata
    assert "# analogy-bench\n" in metadata
    assert "tutorial (`docs/tutorial.md`)" in metadata
    assert not RELATIVE.search(metadata)
    readme = (ROOT / "README.md").read_text("utf-8")
    links = len(RELATIVE.findall(readme))
    linked = package_readme.described(readme, "https://example.org/a/")
    assert not RELATIVE.search(linked)
    assert linked.count("](https://example.org/a/blob/HEAD/docs/") == links - 2
    assert "![The first screen" in linked
    assert linked.count("](https://example.org/a/raw/HEAD/docs/") == 2


def test_a_run_and_the_cases_share_a_folder(installed):
    said = installed("analogy", "run", *SMALL)
    assert "color" in said
    (index,) = (installed.folder / ".analogy" / "runs").glob("*/index.sqlite")
    before = len(list(index.parent.rglob("*.png")))
    assert before == 4
    said = installed(
        "pytest", "-p", "analogy.plugin", "-p", "no:cacheprovider", "--pyargs",
        "analogy.benchmarks", "-k", "not calibration", f"--config={index.parent / 'run.toml'}",
    )  # fmt: skip
    assert len(list(index.parent.rglob("*.png"))) == before
    assert re.search(r"\d+ (passed|skipped|xfailed)", said)
