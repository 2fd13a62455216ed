"""docs/notebook.ipynb runs as it stands, and what is kept of its output is what it says."""

from __future__ import annotations

import pytest
from cases import ROOT
from extras import extra

nbclient, nbformat = extra("nbclient"), extra("nbformat")

FILE = ROOT / "docs" / "notebook.ipynb"


def outputs(notebook):
    """What its cells put out, cell by cell."""
    return [cell.get("outputs", []) for cell in notebook.cells]


def kinds(notebook):
    """The kind of each output: a stream's name, or the best of its media types."""
    order = ("image/png", "text/html", "text/plain")
    return [
        [one.get("name") or next(kind for kind in order if kind in one["data"]) for one in cell]
        for cell in outputs(notebook)
    ]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_is_kept_of_it(monkeypatch, tmp_path):
    monkeypatch.delenv("ANALOGY_RUN", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    kept = nbformat.read(FILE, as_version=4)
    run = nbformat.read(FILE, as_version=4)
    nbclient.NotebookClient(run, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))
    assert kinds(run) == kinds(kept)
    assert [kind for cell in kinds(run) for kind in cell].count("image/png") == 4
    [frame] = [one for one in outputs(run)[-1] if "data" in one]
    assert "inconclusive" in frame["data"]["text/plain"]


def test_the_notebook_is_kept_small_and_whole():
    assert FILE.stat().st_size < 400_000
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "stderr" not in [kind for cell in kinds(notebook) for kind in cell]
    assert not [o for cell in outputs(notebook) for o in cell if o["output_type"] == "error"]
