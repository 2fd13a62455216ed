"""Images of other tools: copied, hashed, never taken for another model's; then scored like any."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shlex
import shutil
import sqlite3

import numpy as np
import pytest
from extras import extra
from PIL import Image
from processes import write_pairs
from typer.testing import CliRunner
from verbs import verb as run

from analogy import cli
from analogy.core.images import from_png, to_png
from analogy.models.places import shipped
from analogy.results.reading import read
from analogy.settings.pairs import load_pairs
from analogy.studies import importing as manifests
from analogy.studies.importing import ManifestError, read_manifest


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
    assert "24 images imported, 0 were already there" in result.stdout
    scored = run("score", tmp_path / "run", "--clip-model", "embedded")
    assert scored.exit_code == 0, scored.output
    assert "model     other-tool@imported:" in scored.stdout
    [file] = (tmp_path / "run").glob("results-*.json")
    found = read(file)
    assert found.header.subject.method == "mine"
    assert {cell.alpha for cell in found.analysis.cells} == {1.0}
    assert all(row.margin.n == 6 for row in found.analysis.cells.values())
    assert all(np.isfinite(row.margin.mean) for row in found.analysis.cells.values())
    assert found.throughput.generate is None  # nothing was generated
    assert run("verify", tmp_path / "run").exit_code == 0


def test_the_same_images_are_imported_once_and_others_are_another_models(tmp_path, manifest):
    bring_in(tmp_path, manifest())
    first = {key for key, *_ in images(tmp_path / "run")}
    again = bring_in(tmp_path, manifest())
    assert "0 images imported, 24 were already there" in again.stdout
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
    assert "import their manifest again with: python -m analogy import" in refused.stderr
    assert "1 images imported, 23 were already there" in bring_in(tmp_path, file).stdout
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


# --- numbers and texts: what is written is what readers accept


def in_json(tmp_path, line: str):
    """The one entry of a manifest of this line; its method is of another strength's."""
    path = tmp_path / "m.jsonl"
    other = '{"pair_id": "other", "alpha": 1, "seed": 0, "file": "b.png", "method": "m"}'
    path.write_text(f"{line}\n{other}\n", "utf-8")
    return read_manifest(path)[0]


def in_csv(tmp_path, alpha: str, seed: str):
    path = tmp_path / "m.csv"
    path.write_text(
        f"pair_id,alpha,seed,file,method\na,{alpha},{seed},a.png,m\nother,1,0,b.png,m\n", "utf-8"
    )
    return read_manifest(path)[0]


LINE = '{{"pair_id": "a", "alpha": {alpha}, "seed": {seed}, "file": "a.png", "method": "m"}}'

NO_SEED = ("1.9", "1.0", "true", "false", "NaN", "Infinity", "-1", "1e0", "9223372036854775808",
           "1" + "0" * 400, "[1]", '"1e0"', '"1_0"', '"0x1"', '"\\u0661"', '" "', "{}")  # fmt: skip


@pytest.mark.parametrize("seed", [*NO_SEED, "null", "1" + "0" * 5000])
def test_a_seed_of_json_is_an_integer_or_refused(tmp_path, seed):
    with pytest.raises(ManifestError, match=r"m\.jsonl, line 1: .*(seed|4300)"):
        in_json(tmp_path, LINE.format(alpha=1, seed=seed))


@pytest.mark.parametrize(
    "seed", ["1.9", "1.0", "true", "nan", "-1", "+1", "1e0", "1_0", "\u0661", "9223372036854775808"]
)
def test_a_seed_of_csv_is_digits_or_refused(tmp_path, seed):
    with pytest.raises(ManifestError, match=r"m\.csv, line 2: expected seed to be an integer"):
        in_csv(tmp_path, "1", seed)


@pytest.mark.parametrize(
    "alpha",
    ["true", "NaN", "Infinity", "-Infinity", "5.1", "1e400", "1" + "0" * 400, "[1]", '"nan"',
     '"inf"', '"1_0"', '"0x1p0"', '"\\u0661"'],
)  # fmt: skip
def test_an_alpha_is_a_number_in_its_range_or_refused(tmp_path, alpha):
    with pytest.raises(ManifestError, match="line 1: expected alpha to be a number from -5 to 5"):
        in_json(tmp_path, LINE.format(alpha=alpha, seed=0))


def test_numbers_are_taken_as_they_are_spelled(tmp_path):
    for seed in ("0", '"7"', "9223372036854775807"):
        entry = in_json(tmp_path, LINE.format(alpha=1, seed=seed))
        assert entry.seed == int(seed.strip('"'))
    for alpha in ("1", "-0.5", "1e0", '"0.5"', '".5"', '"5."', '"+1e-3"'):
        entry = in_json(tmp_path, LINE.format(alpha=alpha, seed=0))
        assert entry.alpha == float(alpha.strip('"'))
        assert in_csv(tmp_path, alpha.strip('"'), "0").alpha == entry.alpha
    assert str(in_json(tmp_path, LINE.format(alpha="-0.0", seed=0)).alpha) == "0.0"
    assert in_csv(tmp_path, " 0.5 ", " 3 ").seed == 3


BROKEN = ("a\x1b[31mb", "a\nb", "a\0b", "a\x7f", "a\u0085b", "a\u2028b", "a\u202eb", "a\ud800b",
          "a\ufffeb", " ", "a" * 5000)  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("name", ["pair_id", "method", "file"])
def test_names_that_readers_refuse_are_refused(tmp_path, name, text):
    row = {"pair_id": "a", "alpha": 1, "seed": 0, "file": "a.png", "method": "m", name: text}
    with pytest.raises(ManifestError, match=rf"line 1: {name}: expected (text|at most 4,096)"):
        in_json(tmp_path, json.dumps(row))


@pytest.mark.parametrize("text", [text for text in BROKEN if "\0" not in text])
def test_model_names_that_readers_refuse_are_refused(tmp_path, manifest, text):
    result = bring_in(tmp_path, manifest(), name=text)
    assert result.exit_code == 2
    assert "--model-name: expected" in result.stderr
    assert "\x1b" not in result.stderr
    assert images(tmp_path / "run") == []


def test_a_judge_whose_name_readers_refuse_is_refused(tmp_path, manifest):
    folder = shutil.copytree(shipped("models/clip-tiny"), tmp_path / "a\x1b[31mjudge")
    file, pairs = manifest(), ("--pairs", tmp_path / "pairs.csv")
    result = run("import", tmp_path / "run", file, "--model-name", "m", *pairs,
                 "--clip-model", folder)  # fmt: skip
    assert (result.exit_code, images(tmp_path / "run")) == (2, [])
    assert "--clip-model: expected text without control characters" in result.stderr
    assert bring_in(tmp_path, file).exit_code == 0
    result = run("score", tmp_path / "run", "--clip-model", folder)
    assert result.exit_code == 2
    assert "--clip-model: expected a folder whose name has no control" in result.stderr
    assert not list((tmp_path / "run").glob("results*"))


@pytest.mark.parametrize(
    "text", ["a b", "\u00e9\u4e2d\U0001f600", "a\u200db", "-", "'\"`$(x)", "a,b"]
)
def test_unusual_names_are_written_and_read_again(tmp_path, manifest, text):
    """What import accepts, every reader does."""
    rows = [json.loads(line) for line in manifest("a.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "method": text}, ensure_ascii=False) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    assert bring_in(tmp_path, tmp_path / "a.jsonl", name=f"model {text}").exit_code == 0
    assert run("score", tmp_path / "run", "--clip-model", "embedded").exit_code == 0
    [file] = (tmp_path / "run").glob("results-*.json")
    found = read(file)
    assert found.header.subject.method == text
    assert found.header.subject.model.startswith(f"model {text}@imported:")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_lines_end_at_line_feeds_alone(tmp_path, ending, mark):
    """A file's name may have what Python's splitlines takes for the end of a line."""
    row = '{{"pair_id": "a", "alpha": 1, "seed": {seed}, "file": "a b.png"}}'
    path = tmp_path / "m.jsonl"
    path.write_text(mark + ending.join(row.format(seed=seed) for seed in range(3)), newline="")
    assert [entry.line for entry in read_manifest(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pair_id,alpha,seed,file\na,1,0,a,b.png\n", "line 2: expected 4 fields .* got 5; put"),
        ("pair_id,alpha,seed,file\na,1,0\n", "line 2: expected 4 fields .* got 3"),
        ("pair_id,alpha,seed,file,seed\na,1,0,a.png,1\n", "line 1: .*'seed' occurs twice"),
    ],
)
def test_rows_that_do_not_fit_their_header_are_refused(tmp_path, text, said):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError, match=said):
        read_manifest(tmp_path / "m.csv")


def test_a_name_twice_in_a_json_line_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"line 1: .*'seed' occurs twice"):
        in_json(tmp_path, '{"pair_id": "a", "alpha": 1, "seed": 0, "seed": 1, "file": "a.png"}')


# --- files


def test_pipes_folders_and_devices_are_refused_and_nobody_waits(tmp_path, manifest):
    file = manifest()
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.png").mkdir()
    for name, what in (
        ("pipe.png", "pipe, socket or device"), ("/dev/zero", "pipe, socket or device"),
        ("folder.png", "folder"), (".", "folder"),
    ):  # fmt: skip
        result = bring_in(tmp_path, manifest(file=name))
        assert result.exit_code == 2
        assert f"expected an image file (expected a regular file, got a {what})" in result.stderr
    for name in ("pipe.csv", "pipe.jsonl", "/dev/zero", "folder.png"):
        result = bring_in(tmp_path, tmp_path / name)
        assert (result.exit_code, "expected a manifest" in result.stderr) == (2, True)
    for name in ("pipe.csv", "/dev/zero", "folder.png"):
        result = run("import", tmp_path / "run", file, "--model-name", "m", "--pairs",
                     tmp_path / name)  # fmt: skip
        assert (result.exit_code, "expected a CSV file" in result.stderr) == (2, True)


def test_images_are_imported_as_a_viewer_shows_them(tmp_path, manifest):
    """Turned by EXIF, of 16 bits, with colours hidden under alpha 0; EPS is refused."""
    file = manifest()
    first = tmp_path / "color0-0-0.png"
    shown = from_png(first.read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(shown).copy()).save(first, exif=exif)
    second, grey = tmp_path / "color0-1-0.png", shown[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(second)
    assert bring_in(tmp_path, file).exit_code == 0
    kept = {json.loads(what)["alpha"]: path for _, what, path in images(tmp_path / "run")
            if json.loads(what)["pair_id"] == "color0"}  # fmt: skip
    pixels = [from_png((tmp_path / "run" / kept[alpha]).read_bytes()) for alpha in (0.0, 1.0)]
    np.testing.assert_array_equal(pixels[0], shown)
    np.testing.assert_array_equal(pixels[1], np.dstack([grey] * 3))
    Image.fromarray(shown).save(second, "EPS")
    result = bring_in(tmp_path, file)
    assert (result.exit_code, "expected an image file of PNG" in result.stderr) == (2, True)


def test_an_image_that_changes_while_it_is_imported_is_refused(tmp_path, manifest, monkeypatch):
    file, read = manifest(), manifests.read_image
    seen = []

    def other(path):
        seen.append(path)
        return 255 - read(path) if len(seen) > 24 else read(path)

    monkeypatch.setattr(manifests, "read_image", other)
    result = bring_in(tmp_path, file)
    assert (result.exit_code, images(tmp_path / "run")) == (2, [])
    assert "expected the image that was read before, got another" in result.stderr


# --- what can be done with an imported run


def test_an_imported_grid_with_holes_is_filled_by_another_import(tmp_path, manifest):
    """Nothing generates its images, so no command that would is said."""
    file = manifest("all.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text("".join(lines[:-2] + lines[-1:]))
    bring_in(tmp_path, tmp_path / "some.jsonl")
    found = run("verify", tmp_path / "run")
    assert found.exit_code == 1
    assert "next      python -m analogy import" in found.stdout
    assert "pytest benchmarks" not in found.stdout


def test_commands_that_are_said_of_an_imported_run_work(tmp_path, manifest):
    """The next step of import, and what the report says instead of the run's own command."""
    extra("jinja2")
    file = manifest()
    result = bring_in(tmp_path, file, name="a tool's")
    [line] = [line for line in result.stdout.splitlines() if line.startswith("next")]
    assert run(*shlex.split(line)[4:]).exit_code == 0
    [results] = (tmp_path / "run").glob("results-*.json")
    assert run("report", results, "-o", tmp_path / "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "pytest benchmarks" not in page
    again, score = re.findall(r"python -m analogy [^\n<]+", html.unescape(page))
    words = [{"RUN": str(tmp_path / "new"), "MANIFEST": str(file)}.get(word, word)
             for word in shlex.split(again)[3:]]  # fmt: skip
    assert run(*words).exit_code == 0
    words = [str(tmp_path / "new") if word == "RUN" else word for word in shlex.split(score)[3:]]
    assert run(*words).exit_code == 0
    [new] = (tmp_path / "new").glob("results-*.json")
    old = read(results)
    assert read(new).header.subject.model == old.header.subject.model
    assert read(new).analysis.overall.margin.mean == old.analysis.overall.margin.mean
