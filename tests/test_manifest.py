"""Images of other tools: copied, hashed, never taken for another model's; then scored like any."""

from __future__ import annotations

import csv
import json
import re
import sqlite3

import numpy as np
import pytest
from processes import write_pairs
from test_score import run
from typer.testing import CliRunner

from analogy import cli, recorded
from analogy.images import to_png
from analogy.manifest import ManifestError, read_manifest
from analogy.pairs import load_pairs


@pytest.fixture
def manifest(tmp_path):
    """Write a manifest of twelve pairs at alpha 0 and 1, as CSV, or as JSON lines."""
    write_pairs(tmp_path)

    def write(name="images.csv", draw=0, size=64, **changed):
        rng = np.random.default_rng(draw)
        rows = []
        for pair in load_pairs(tmp_path / "pairs.csv"):
            for alpha in (0.0, 1.0):
                file = f"{pair.id}-{alpha:g}-{draw}.png"
                pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
                (tmp_path / file).write_bytes(to_png(pixels))
                row = {"pair_id": pair.id, "alpha": alpha, "seed": 3, "file": file}
                rows.append({**row, "method": "mine"})
        rows[-1] |= changed
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with open(path, "w", newline="") as stream:
                writer = csv.DictWriter(stream, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        return path

    return write


def bring_in(tmp_path, file, name="other-tool"):
    return run(
        "import", tmp_path / "run", file, "--model-name", name, "--pairs", tmp_path / "pairs.csv"
    )


def images(path):
    db = sqlite3.connect(path / "index.sqlite")
    try:
        return db.execute("SELECT key, what, path FROM images").fetchall()
    finally:
        db.close()


@pytest.mark.parametrize("name", ["images.csv", "images.jsonl"])
def test_imported_images_are_scored_like_any(tmp_path, manifest, name):
    result = bring_in(tmp_path, manifest(name))
    assert result.exit_code == 0, result.output
    assert "24 images imported, 0 were there" in result.stdout
    scored = run("score", tmp_path / "run", "--clip-model", "embedded")
    assert scored.exit_code == 0, scored.output
    assert "model     other-tool@imported:" in scored.stdout
    [file] = (tmp_path / "run").glob("results-*.json")
    found = recorded.read(file)
    assert found.subject.method == "mine"
    assert {cell.alpha for cell in found.cells} == {1.0}
    assert all(row.n == 6 for row in found.cells.values())
    assert all(np.isfinite(row.mean) for row in found.cells.values())
    assert found.throughput["generate"] is None  # nothing was generated
    assert run("verify", tmp_path / "run").exit_code == 0


def test_the_same_images_are_imported_once_and_others_are_another_models(tmp_path, manifest):
    bring_in(tmp_path, manifest())
    first = {key for key, *_ in images(tmp_path / "run")}
    again = bring_in(tmp_path, manifest())
    assert "0 images imported, 24 were there" in again.stdout
    bring_in(tmp_path, manifest("others.csv", draw=1))
    bring_in(tmp_path, manifest(), name="another-tool")
    keys = [key for key, *_ in images(tmp_path / "run")]
    assert len(keys) == len(set(keys)) == 3 * len(first)


def test_lost_images_are_imported_again(tmp_path, manifest):
    file = manifest()
    bring_in(tmp_path, file)
    (tmp_path / "run" / images(tmp_path / "run")[0][2]).unlink()
    refused = run("verify", tmp_path / "run", "--repair")
    assert refused.exit_code == 4
    assert "give 'python -m analogy import' their manifest again" in refused.stderr
    assert "1 images imported, 23 were there" in bring_in(tmp_path, file).stdout
    assert len(images(tmp_path / "run")) == 24


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"alpha": "much"}, "expected alpha to be a number"),
        ({"alpha": "nan"}, "expected alpha to be a number from -5 to 5"),
        ({"seed": "-1"}, "expected seed to be an integer from 0 to"),
        ({"pair_id": "none"}, "expected a pair of .*pairs.csv, got 'none'"),
        ({"file": "none.png"}, r"none\.png: expected an image"),
        ({"file": "pairs.csv"}, r"pairs\.csv: expected an image"),
        ({"pair_id": ""}, "expected pair_id, alpha, seed and file"),
        ({"pair_id": "color0"}, "expected each image once, got that of line 3"),
        ({"method": "other"}, "expected images of one method.*got mine, other"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_said_and_nothing_is_imported(
    tmp_path, manifest, changed, said
):
    result = bring_in(tmp_path, manifest(**changed))
    assert result.exit_code == 2
    assert re.search(said, result.stderr), result.stderr
    assert not list(tmp_path.glob("run/images/*/*"))


def test_images_of_several_sizes_are_refused(tmp_path, manifest):
    manifest("large.csv", draw=1, size=72)
    result = bring_in(tmp_path, manifest(file="color0-1-1.png"))
    assert result.exit_code == 2
    assert "expected a square image of 64 pixels a side, as the first, got 72 x 72" in result.stderr


@pytest.mark.parametrize("text", [b"", b"\xff", b"a,b\n1,2\n", b'"', b"pair_id\n" + b"[" * 9999])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text, name):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ManifestError):
        read_manifest(tmp_path / name)
    with pytest.raises(ManifestError, match="check the path"):
        read_manifest(tmp_path / "none")
    assert CliRunner().invoke(cli.app, ["import", "--help"]).exit_code == 0
