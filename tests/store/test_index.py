"""An index from anywhere: each column of each table, with values that the suite never writes.

``ANALOGY_SLOW=1`` has every verb read every one of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3

import numpy as np
import pytest
from planted import write_results
from verbs import verb

from analogy import load_run
from analogy.core.errors import StoreError
from analogy.results.reading import RecordedError
from analogy.store import database
from analogy.store.folder import RunFolder
from analogy.studies.study import Study

SLOW = bool(os.environ.get("ANALOGY_SLOW"))
DEEP = "[" * 100_000 + "]" * 100_000
VALUES = {
    "blob": b"\xff\xfe\x00",
    "text": "x",
    "empty": "",
    "nul": "a\0b",
    "control": "a\x1b[2J\u2028b",
    "surrogate": '{"a": "\\ud800"}',
    "null": None,
    "infinite": float("inf"),
    "huge": 2**62,
    "larger": 1e300,
    "negative": -1,
    "fraction": 0.5,
    "list": "[]",
    "object": "{}",
    "number": "7",
    "digits": "9" * 5000,
    "nan": "NaN",
    "deep": DEEP,
    "nested": '{"a": ' * 300 + "0" + "}" * 300,
    "pairs": '[[1, 2, 3, 4, 5, 6], ["a"]]',
    "path": "/etc/passwd",
}
NOT_TEXT = "not utf-8"


def columns():
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(database.SCHEMA)
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        tables = [name for (name,) in db.execute(query)]
        return [
            (table, row[1]) for table in tables for row in db.execute(f"PRAGMA table_info({table})")
        ]


COLUMNS = columns()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config, pairs, model_source, judge_source):
    """A run with something in every table, made without any model."""
    path = tmp_path_factory.mktemp("whole") / "run"
    chosen = [*pairs[:6], *pairs[6:]]
    study = Study(config, chosen, model_source, judge_source, RunFolder(path))
    jobs = study.jobs()
    images = np.random.default_rng(0).integers(0, 256, (len(jobs), 64, 64, 3), np.uint8)
    study.folder.add_images(jobs, images, 2.0, faults={3: "black"}, peak_bytes=7)
    folder, judge = study.folder, study.judge.fingerprint
    pngs = [folder.read_png(job) for job in jobs[:2]]
    folder.add_pngs(jobs[:2], pngs, 1.0, faults={}, worker=("worker 1", 1.0))
    # As many numbers as the judge gives: what a later command scores stands beside them.
    seen = np.random.default_rng(0).standard_normal((len(jobs), 128), np.float32)
    there = [job for i, job in enumerate(jobs) if i != 3]
    scores = [(0.2, 0.1, 0.1 + 0.001 * i) for i in range(len(there))]
    folder.add_scores(there, judge, scores, 0.5, features=seen[: len(there)])
    folder.add_metric("psnr", {job.key: 20.0 for job in there})
    study.record(None)
    write_results(study.results(), path / "results.json")
    study.close()
    return path


def damage(path, table, column, value):
    """Put a value into the first row of a column, whatever the column's constraint."""
    db = sqlite3.connect(path / "index.sqlite")
    with db:
        db.execute("PRAGMA writable_schema = ON")
        (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        bare = sql.replace(" NOT NULL", "")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (bare, table))
    db.close()
    db = sqlite3.connect(path / "index.sqlite")
    with db:
        given = "CAST(x'ff00fe' AS TEXT)" if value is NOT_TEXT else "?"
        where = f"rowid = (SELECT MIN(rowid) FROM {table})"
        if table == "meta":
            where = "name = 'provenance'"
        try:
            db.execute(
                f"UPDATE {table} SET {column} = {given} WHERE {where}",
                () if value is NOT_TEXT else (value,),
            )
        except OverflowError:
            pytest.skip("no integer of SQLite's")
    with db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, table))
    db.close()


def copied(folder, to):
    """A copy that shares the images' files."""

    def copy(source, target):
        (os.link if source.endswith(".png") else shutil.copy2)(source, target)

    return shutil.copytree(folder, to, copy_function=copy)


@pytest.fixture
def path(whole, tmp_path):
    """A copy of that run's folder."""
    return copied(whole, tmp_path / "run")


def load(path):
    run = load_run(path)
    if not run.images.empty:  # those of another scheduler than the results'
        run.plot_pair("color-0").figure.clear()


def load_without_results(path):
    (path / "results.json").unlink()
    load_run(path)


READERS = {
    "verify": lambda path: verb("verify", path, "--json", "-"),
    "report": lambda path: verb("report", path, "-o", path.parent / "report.html"),
    "load": load,
    "live": load_without_results,
}
MOST = ("blob", "text", "null", "infinite", "deep", NOT_TEXT)


@pytest.fixture(scope="module")
def shared(whole, tmp_path_factory):
    """One copy of that run's folder for many tests, each of which changes its index alone."""
    path = copied(whole, tmp_path_factory.mktemp("shared") / "run")
    images = sorted(path.glob("images/**/*"))
    yield path
    assert sorted(path.glob("images/**/*")) == images


def renew(path, whole, index):
    """Make the folder the whole run's again, apart from its images and with another index."""
    for file in path.iterdir():
        if file.is_file():
            file.unlink()
    for file in whole.iterdir():
        if file.is_file():
            shutil.copy2(file, path / file.name)
    (path / "index.sqlite").write_bytes(index)


@pytest.mark.parametrize("value", [*VALUES, NOT_TEXT] if SLOW else MOST)
@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_any_value_in_any_column_is_read_or_refused_in_a_sentence(
    whole, shared, table, column, value
):
    renew(shared, whole, (whole / "index.sqlite").read_bytes())
    damage(shared, table, column, VALUES.get(value, value))
    damaged = (shared / "index.sqlite").read_bytes()
    for name, read in READERS.items():
        if not SLOW and name in ("report", "live"):
            continue
        renew(shared, whole, damaged)
        try:
            result = read(shared)
        except (StoreError, RecordedError) as error:
            said = str(error)
        else:
            if result is None:
                continue
            assert result.exit_code in (0, 1, 2, 4), name
            said = result.stderr
            assert "\x1b" not in result.output
        assert len(said) < 2000
        assert not said or str(shared) in said


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("images", "key", b"\xff", "images.key: expected a text, got b'\\xff'"),
        ("images", "key", "a", "images.key: expected 32 hex digits, got 'a'"),
        ("images", "what", DEEP, "images.what: expected an object as JSON, got another text (nest"),
        ("images", "what", "[]", "images.what: expected an object as JSON, got '[]'"),
        ("images", "sha256", None, "NULL value in images.sha256"),
        ("images", "path", NOT_TEXT, "Could not decode to UTF-8"),
        ("commands", "pairs", "[]", "commands.pairs: expected a pair or more, got '[]'"),
        ("commands", "pairs", '[["a"]]', "commands.pairs: expected pairs of 6 texts, got ['a']"),
        ("commands", "model", "a\nb", "commands.model: expected a text without control characters"),
        ("commands", "config", "{}", "the configuration that its index keeps cannot be read"),
    ],
)
def test_the_sentence_says_where_what_and_what_to_do(path, table, column, value, said):
    damage(path, table, column, value)
    result = verb("verify", path)
    assert result.exit_code == 4
    assert f"analogy: run folder {path}: " in result.stderr
    assert said in result.stderr
    assert "Bring index.sqlite back from a copy" in result.stderr or column == "config"


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("scores", "margin", b"\xff", "scores.margin: expected a number from -2.001 to 2.001"),
        (
            "scores",
            "margin",
            None,
            "scores.margin: expected a number from -2.001 to 2.001, got nan",
        ),
        ("scores", "cos_target", 1e300, "scores.cos_target: expected a number from -2.001 to"),
        ("failures", "reason", b"\xff", "failures.reason: expected a text, got b'\\xff'"),
        ("work", "seconds", -100.0, "work.seconds: expected a number from 0 to 1e+09, got -9"),
        ("work", "peak_bytes", b"\xff", "work.peak_bytes: expected an integer >= 0, got b'\\xff'"),
        ("workers", "name", b"\xff", "workers.name: expected a text, got b'\\xff'"),
        ("features", "vector", b"\xff", "features.vector: expected float32 numbers, got b'\\xff'"),
        ("features", "vector", b"\0" * 4, "finite numbers for each image, got other ones"),
        ("metrics", "value", "x", "metrics.value: expected a number from -1e+06 to 1e+06, got 'x'"),
        ("meta", "value", "7", "meta.value: expected an object as JSON, got '7'"),
    ],
)
def test_every_reading_of_the_index_looks_at_what_it_reads(path, table, column, value, said):
    damage(path, table, column, value)
    folder = RunFolder(path, read_only=True)
    command = folder.commands()[0]
    jobs = command.jobs()
    reads = {
        "scores": lambda: folder.margins(jobs, command.judge),
        "failures": lambda: folder.failures(jobs),
        "work": lambda: (folder.rate("generate"), folder.peak_memory()),
        "workers": folder.worker_rates,
        "features": lambda: folder.features(jobs, command.judge),
        "metrics": lambda: folder.metric("psnr", jobs),
        "meta": folder.provenance,
    }
    try:
        with pytest.raises(StoreError) as refused:
            reads[table]()
    finally:
        folder.close()
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER t AFTER INSERT ON images BEGIN DELETE FROM scores; END",
        "ALTER TABLE images RENAME TO i; CREATE VIEW images AS SELECT * FROM i",
        "DROP TABLE scores; CREATE TABLE scores (key, judge, cos_target, cos_source, margin)",
        "ALTER TABLE metrics ADD COLUMN more CHECK (more > 0)",
        "DROP TABLE images; CREATE VIRTUAL TABLE images USING fts4(key, what, path, sha256, made)",
    ],
)
def test_tables_that_only_look_like_the_suites_are_refused(path, change):
    db = sqlite3.connect(path / "index.sqlite")
    db.executescript(change)
    db.close()
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"expected (no trigger|the table) .*(--run-dir|path)"):
            RunFolder(path, read_only=read_only)


def test_a_run_of_nothing_but_failures_writes_what_readers_take(make_study, pairs):
    """No image in some seconds is no rate, which results cannot hold."""
    study = make_study(pairs=pairs[:6])
    jobs = study.jobs()[:2]
    images = np.zeros((2, 8, 8, 3), np.uint8)
    study.folder.add_images(jobs, images, 1.0, faults={0: "black", 1: "black"})
    assert study.folder.rate("generate") is None
    study.record(None)
    write_results(study.results(), study.folder.path / "results.json")
    load_run(study.folder.path)


def test_a_folder_that_is_not_utf_8_is_written_and_read(whole, tmp_path):
    path = tmp_path / os.fsdecode(b"run \xff?#%41")
    try:
        shutil.copytree(whole, path)
    except OSError:  # a system whose names are all UTF-8, where there is no such folder
        return
    RunFolder(path).close()
    assert verb("verify", path).exit_code == 1
    assert verb("report", path).exit_code == 0
    load(path)
    results = (path / "results.json").read_bytes()
    assert verb("compare", path, path, "--json", path / "c.json").exit_code in (0, 3)
    assert (path / "results.json").read_bytes() == results


def test_images_beside_a_report_are_put_in_no_strangers_link(path, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (path / "report_images").symlink_to(outside)
    result = verb("report", path, "--full-images")
    assert result.exit_code == 2
    assert (
        "report_images: expected a file or folder of the suite's own, got a link" in result.stderr
    )
    assert not list(outside.iterdir())
    (path / "report_images").unlink()
    assert verb("report", path, "--full-images").exit_code == 0
    image = next((path / "report_images").iterdir())
    (outside / "victim").write_text("precious")
    image.unlink()
    image.symlink_to(outside / "victim")
    assert verb("report", path, "--full-images").exit_code == 0
    assert (outside / "victim").read_text() == "precious"
