"""Files from anywhere: whatever stands in them, only the documented errors; and never much memory.

Fuzzed with a few hundred inputs, and with 100,000 by ``ANALOGY_SLOW=1 pytest
tests/project/test_untrusted.py``.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import os
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import results, small, write_results
from verbs import verb

from analogy.core import lock
from analogy.core.strict_json import parse
from analogy.evaluation import Report
from analogy.results import baseline as baseline_module
from analogy.results import comparison
from analogy.results.differences import measurement_differences, subject_differences
from analogy.results.reading import RecordedError, from_json, read
from analogy.settings.pairs import (
    COLUMNS,
    MAX_FILE_BYTES,
    MAX_PAIRS,
    PairsError,
    WeakCategoryWarning,
    load_pairs,
)
from analogy.studies import ceiling

SLOW = bool(os.environ.get("ANALOGY_SLOW"))
HEADER = ",".join(COLUMNS) + "\n"
MEMORY = 200_000_000

HOSTILE = {
    "separators": "/etc/passwd",
    "parents": "../../../../tmp/out",
    "backslashes": "..\\..\\out",
    "drive": "C:\\out",
    "html": "<script>alert('out')</script>&amp;\"'",
    "formula": "=cmd|'/C calc'!A0",
    "format": "%s%n{0}{{}}",
    "sql": "'; DROP TABLE images; --",
    "long": "x" * 10_000,
    "astral": "\U0001f697\u0301",
}


def fuzz(quick, slow):
    """How many inputs; the slow ones of this file are 100,000 in all."""
    return settings(
        max_examples=slow if SLOW else quick,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


# --- what pairs may hold


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_run_with_such_ids_and_prompts_stays_in_its_folder(text, make_study, fill, tmp_path):
    file = tmp_path / "pairs.csv"
    rows = [
        [text if i == 0 else f"p{i}", text[:50], "red", "blue", f"red {word}", f"blue {word}"]
        for i, word in enumerate([text[:9_990], "hat", "cup", "car", "boat", "tree", "star"])
    ]
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    pairs = load_pairs(file)
    assert pairs[0].id == text
    (tmp_path / "around").mkdir()
    run = tmp_path / "around" / "run"
    before = set(tmp_path.rglob("*"))

    study = make_study(pairs=pairs, folder=run, alphas=(1.0,), seeds=(0,))
    jobs = study.jobs()
    study.folder.add_images(jobs, np.zeros((len(jobs), 8, 8, 3), np.uint8), 1.0)
    fill(study, lambda job: 0.1 + 0.01 * len(job.pair.source_prompt) / 10_000)
    write_results(study.results(), run / "results.json")
    assert read(run).analysis.cells
    assert text in json.loads((run / "results.json").read_text())["cells"][0]["items"]
    new = set(tmp_path.rglob("*")) - before
    assert all(run in path.parents or path == run for path in new)
    names = {path.name for path in new if path.suffix == ".png"}
    assert names == {f"{job.key}.png" for job in jobs}


@pytest.mark.parametrize(
    "text", ["a\x00b", "a\nb", "a\x1b[2Jb", "a\u2028b", "a\x9bb", "a\uffffb", "a\u202eb"]
)
@pytest.mark.parametrize("column", ["id", "category"])
def test_control_characters_are_refused_where_names_are_shown(tmp_path, text, column):
    file = tmp_path / "pairs.csv"
    row = dict(zip(COLUMNS, ["p", "c", "red", "blue", "a red car", "a blue car"], strict=True))
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([COLUMNS, ({**row, column: text}).values()])
    with pytest.raises(PairsError, match=r"control char|NUL|can be seen, got U\+"):
        load_pairs(file)


# --- bombs


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY


def test_a_million_rows_are_refused(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text(HEADER + "".join(f"{i},c,a,b,a,b\n" for i in range(1_000_000)))
    assert file.stat().st_size < MAX_FILE_BYTES
    with little_memory(), pytest.raises(PairsError, match=f"expected at most {MAX_PAIRS:,} pairs"):
        load_pairs(file)


def test_a_field_of_50_megabytes_is_refused_unread(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text(HEADER + 'p,c,a,b,"' + "x" * 50_000_000 + '",b\n')
    with little_memory(), pytest.raises(PairsError, match=r"expected at most .* got 50,000,0"):
        load_pairs(file)


def test_a_large_field_within_the_limit_of_the_file_is_refused(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text(HEADER + 'p,c,a,b,"' + "x" * 20_000_000 + '",b\n')
    with little_memory(), pytest.raises(PairsError, match="field larger than field limit"):
        load_pairs(file)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_a_device_is_no_file_of_pairs():
    with pytest.raises(PairsError, match="got a device or a pipe"):
        load_pairs("/dev/zero")


def test_a_path_that_is_none_is_refused():
    with pytest.raises(PairsError, match="check the path"):
        load_pairs("a\0b")


# --- fuzzing

FIELDS = st.one_of(
    st.sampled_from(
        ["", " ", "a", "red", "a red car", '"', "é", "\x00", "\r\n", *HOSTILE.values()]
    ),
    st.text(max_size=8),
)
ROWS = st.lists(st.lists(FIELDS, min_size=5, max_size=7), max_size=6)


def as_csv(rows):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


FILES = st.one_of(
    st.binary(max_size=200),
    ROWS.map(as_csv),
    ROWS.map(lambda rows: HEADER.encode() + as_csv(rows)),
    st.tuples(ROWS.map(as_csv), st.binary(max_size=5)).map(
        lambda parts: HEADER.encode() + parts[0][: len(parts[0]) // 2] + parts[1] + parts[0]
    ),
)


@fuzz(200, 40_000)
@given(FILES)
def test_any_file_is_pairs_or_a_pairs_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    file.write_bytes(data)
    pairs, error = [], None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakCategoryWarning)
        try:
            pairs = load_pairs(file)
        except PairsError as refused:
            error = str(refused)
    assert (error is None) == bool(pairs)
    assert error is None or 0 < len(error) < 100_000


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10),
        st.sampled_from([0, 1, 2, -1, 10**400, 1e308, "success", "incomplete", *HOSTILE.values()]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)  # fmt: skip
GOOD = results(small(6))


def places(value, at=()):
    """Every place in a JSON value, as keys from its root."""
    yield at
    if isinstance(value, (dict, list)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*at, key))


PLACES = list(places(GOOD))[1:]
CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "remove"]), VALUES), max_size=3
)


def changed(changes):
    """Good results with values set or removed."""
    made = copy.deepcopy(GOOD)
    for (*path, last), how, value in changes:
        place = made
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for key in path:
                place = place[key]
            if how == "set":
                place[last] = value
            else:
                del place[last]
    return made


def as_json(value):
    try:
        return json.dumps(value).encode()
    except ValueError:  # an integer of more digits than Python prints
        return b"[]"


@fuzz(200, 30_000)
@given(st.one_of(st.binary(max_size=200), VALUES.map(as_json), CHANGES.map(changed).map(as_json)))
def test_any_file_is_results_or_a_recorded_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "fuzzed.json"
    file.write_bytes(data)
    found, error = None, str(file)
    try:
        found = read(file)
    except RecordedError as refused:
        error = str(refused)
    assert found is None or found.analysis.cells
    assert error.startswith(str(file))
    assert len(error) < 100_000


@fuzz(200, 30_000)
@given(CHANGES)
def test_any_baseline_is_compared_or_refused(tmp_path_factory, changes):
    """As the plugin does: read, held against a run; and as what an update would replace."""
    file = tmp_path_factory.getbasetemp() / "baseline.json"
    file.write_bytes(as_json(changed(changes)))
    new = from_json(GOOD)
    with contextlib.suppress(RecordedError, comparison.NotComparableError):
        old = read(file)
        measurement_differences(old.header, new.header)
        subject_differences(old.header, new.header)
        for cell in [*new.analysis.cells, None]:
            baseline_module.known_not_to_succeed(old, cell, new.header.categories)
        comparison.compare(old, new)
    with contextlib.suppress(RecordedError, baseline_module.BaselineError):
        baseline_module.check_replaceable(file, new.header)


# --- nesting, sizes and kinds that no reader expects

NESTED = {
    "deep": "[" * 200_000 + "]" * 200_000,
    "nested": '{"a": ' * 500 + "0" + "}" * 500,  # which Python reads, and cannot write again
    "digits": "9" * 5000,
    "twice": '{"a": 1, "a": 2}',
    "nan": '{"a": NaN}',
    "beyond": '{"a": 1e999}',
}


@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_json_is_a_value_or_a_value_error(text):
    with pytest.raises(ValueError, match=r"nested too deeply|digits|twice|no JSON|beyond float64"):
        parse(text)
    assert parse(json.dumps(GOOD)) == GOOD
    assert parse("[" * 100 + "]" * 100)


def test_a_key_given_twice_among_many_is_found_at_once():
    text = "{" + "".join(f'"k{i}": 0, ' for i in range(200_000)) + '"k199999": 0}'
    with pytest.raises(ValueError, match="the key 'k199999' twice"):
        parse(text)


@pytest.mark.parametrize("text", [NESTED["deep"], NESTED["nested"]], ids=["deep", "nested"])
def test_nesting_is_refused_wherever_json_is_read(tmp_path, text):
    """In every file that a verb reads, with its name, and never by an error of Python's own."""
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_results(GOOD, good)
    bad.write_text(text)
    extra = tmp_path / "extra.json"
    extra.write_text(json.dumps(GOOD)[:-1] + f', "extra": {text}}}')
    for file in (bad, extra):
        for command in (
            ("compare", file, good),
            ("compare", good, file),
            ("baseline", file, "-o", tmp_path / "new.json"),
            ("report", file, "-o", tmp_path / "new.html"),
            ("report", good, "--baseline", file, "-o", tmp_path / "new.html"),
        ):
            result = verb(*command)
            assert result.exit_code == 2, command
            assert f"{file}: expected the JSON of a results file" in result.stderr
            assert "nested too deeply" in result.stderr
    with pytest.raises(
        ceiling.CeilingError, match=r"bad\.json: expected a JSON file, got .*nested"
    ):
        ceiling.load(bad)
    with pytest.raises(ValueError, match="nested too deeply"):
        Report.from_json(text)
    with pytest.raises(ValueError, match=r"expected what Report\.to_json wrote"):
        Report.from_json('{"schema_version": 1, "results": [7]}')
    (tmp_path / "writer.json").write_text(text)
    assert lock.owner(tmp_path) is None


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(ceiling.CeilingError, match="got a device or a pipe"):
        ceiling.load(pipe)
    with pytest.raises(RecordedError, match="got a device or a pipe"):
        read(pipe)
    os.rename(pipe, tmp_path / "writer.json")
    assert lock.owner(tmp_path) is None


@pytest.mark.parametrize(
    "changed",
    [{"pid": 10**30}, {"pid": -1}, {"pid": "7"}, {"pid": True}, {"host": 7}, {"user": None}],
    ids=str,
)
def test_an_owner_that_no_writer_recorded_is_none(tmp_path, changed):
    owner = {"host": "h", "pid": 7, "user": "u", "started": "2026-01-01"}
    (tmp_path / "writer.json").write_text(json.dumps(owner))
    assert lock.owner(tmp_path) == lock.Owner(**owner)
    (tmp_path / "writer.json").write_text(json.dumps({**owner, **changed}))
    assert lock.owner(tmp_path) is None


def test_memory_that_is_full_is_said_in_a_sentence(tmp_path):
    """A process that may have little memory, and a file that needs more."""
    big = tmp_path / "big.json"
    big.write_text('{"a": [' + "[1],[2]," * 6_000_000 + "0]}")
    code = (
        "import resource, psutil; from analogy.cli import base, compare;"
        "import analogy.results.comparison;"
        "size = psutil.Process().memory_info().vms + 300_000_000;"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size)); base.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", big, big], capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith(
        "analogy: memory is full; a run folder keeps finished work. Free "
    )
    assert "Traceback" not in done.stderr
