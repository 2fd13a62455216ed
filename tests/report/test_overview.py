"""The list of runs: whatever is there is listed, and what cannot be read says why."""

from __future__ import annotations

import json
from pathlib import Path

import looks
import pytest
from verbs import verb

from analogy.core.text import display_width
from analogy.sessions.session import Session


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A run with results, one without, and a folder whose index is damaged."""
    path = tmp_path_factory.mktemp("several")
    looks.plant(looks.margin)
    looks.run(path, sequential=None, limit="6", seeds="0", run_dir=str(path / "runs" / "whole"))
    begun = Session.open(
        looks.request(
            path, sequential=None, limit="6", seeds="0", run_dir=str(path / "runs" / "begun")
        )
    )
    begun.study.generate(begun.study.jobs()[:9])
    begun.study.close()
    damaged = path / "runs" / "deep" / "damaged"
    damaged.mkdir(parents=True)
    (damaged / "index.sqlite").write_bytes(b"no database" * 100)
    return path / "runs"


def test_a_list_has_what_is_there(several):
    result = verb("runs", several, "--json=-")
    assert result.exit_code == 0
    found = {Path(one["folder"]).name: one for one in json.loads(result.stdout)["runs"]}
    assert found.keys() == {"whole", "begun", "damaged"}
    whole, begun, damaged = (found[name] for name in ("whole", "begun", "damaged"))
    assert (whole["method"], whole["pairs"], whole["done"]) == ("word", 12, 1.0)
    assert whole["answer"]
    assert whole["results"] == str(several / "whole" / "results.json")
    assert whole["bytes"] > begun["bytes"] > 0
    assert (begun["pairs"], begun["done"], begun["answer"]) == (12, 9 / 36, None)
    assert "not a database" in damaged["fault"]


def test_the_table_fits_80_columns(several):
    result = verb("runs", several)
    # A path is not cut, however long the folder of the tests is.
    lines = [line for line in result.stdout.splitlines() if str(several.parent) not in line]
    assert max(map(display_width, lines)) <= 80
    assert "25%" in result.stdout
    assert "No results yet." in result.stdout


def test_no_run_is_wrong_usage(tmp_path):
    result = verb("runs", tmp_path)
    assert result.exit_code == 2
    assert "expected run folders" in result.stderr
