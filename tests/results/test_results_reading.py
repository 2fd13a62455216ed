"""Results files: what is read of them, and that whatever stands in one there is no other error."""

from __future__ import annotations

import copy
import json
import math
import os
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from planted import results, small, write_results

from analogy.core.records import MARGIN_LIMIT, Cell, Verdict
from analogy.results import reading
from analogy.results.model import RESULTS_VERSION
from analogy.results.reading import RecordedError, from_json, header_from_json, read
from analogy.results.writing import provenance_to_json, to_json


@pytest.fixture
def data():
    """The results of two categories at two alphas."""
    return results(small(), git_commit="0" * 40)


@pytest.fixture
def path(data, tmp_path):
    """Their file."""
    write_results(data, tmp_path / "results.json")
    return tmp_path / "results.json"


# --- reading


def test_what_is_read_is_what_was_written(data, path):
    found = read(path)
    header = found.header
    assert header.path == path
    measurement = header.measurement
    assert measurement.judge == data["provenance"]["judge"]
    assert (measurement.size, measurement.seeds, measurement.limit) == (64, (0, 1, 2), None)
    assert (measurement.alphas, measurement.pairs) == ((0.5, 1.0), data["pairs"])
    subject = header.subject
    assert (subject.model, subject.scheduler, subject.suite) == tuple(
        data["provenance"][name] for name in ("model", "scheduler", "suite")
    )
    assert (subject.method, subject.steps, subject.guidance) == ("word", 8, 4.0)
    assert (subject.dtype, subject.device, subject.commit) == ("float32", "cpu", "0" * 40)
    assert subject.packages == {"torch": "2.15.0", "numpy": "2.4.6"}
    assert (found.throughput.generate, found.throughput.score) == (20.0, 400.0)
    overall = found.analysis.overall.margin
    assert (overall.verdict, overall.mean) == (Verdict.SUCCESS, data["overall"]["mean"])
    assert header.config.values == data["config"]
    unknown = {"python": None, "time": None}  # in these results
    assert provenance_to_json(header.provenance) == {**data["provenance"], **unknown}
    assert header.categories == ("color", "size")
    assert list(found.analysis.cells) == [(c, a) for c in ("color", "size") for a in (0.5, 1.0)]
    for row in data["cells"]:
        cell = found.analysis.cells[Cell(row["category"], row["alpha"])]
        assert (cell.margin.n, cell.margin.verdict) == (12, row["verdict"])
        assert (cell.margin.mean, cell.items) == (row["mean"], row["items"])


def test_in_memory_is_the_same_but_for_its_path(data, path):
    found = from_json(data)
    assert found.header.path is None
    assert found == read(path)


def test_a_run_folder_holds_its_latest(path):
    assert read(path.parent).header.path == path
    assert read(path.parent) == read(path)


def test_the_order_of_seeds_and_alphas_is_none_of_a_mean(data):
    data["config"] |= {"seeds": [2, 0, 1], "alphas": [1, 0.5]}
    data["cells"].reverse()
    found = from_json(data)
    measurement = found.header.measurement
    assert (measurement.seeds, measurement.alphas) == ((0, 1, 2), (0.5, 1.0))
    assert next(iter(found.analysis.cells)) == ("color", 0.5)


def test_an_incomplete_cell_has_what_is_complete_and_no_figures():
    margins = small()
    margins["color", 0.5][3:] = math.nan
    found = from_json(results(margins))
    cell = found.analysis.cells[Cell("color", 0.5)]
    assert cell.margin.verdict is Verdict.INCOMPLETE
    assert (cell.margin.n, len(cell.items)) == (12, 3)
    assert math.isnan(cell.margin.mean)
    assert math.isnan(found.analysis.overall.margin.mean)


def test_a_study_s_results_are_read(make_study, fill):
    study = make_study()
    fill(study, lambda job: 0.1 + 0.01 * math.sin(sum(job.pair.id.encode())), study.jobs("color"))
    data = to_json(study.results())
    assert data["schema_version"] == RESULTS_VERSION
    found = from_json(data)
    assert found.header.measurement.judge == study.judge.fingerprint
    assert found.header.subject.model == study.grid.model
    cells = found.analysis.cells
    assert cells[Cell("color", 0.5)].margin.verdict is Verdict.SUCCESS
    assert cells[Cell("object", 0.5)].margin.verdict is Verdict.INCOMPLETE


def test_a_header_is_what_is_known_before_there_are_figures(data):
    only = {name: data[name] for name in ("schema_version", "config", "provenance", "pairs")}
    assert header_from_json(only) == from_json(data).header
    with pytest.raises(RecordedError, match="overall: expected a value, got none"):
        from_json(only)
    with pytest.raises(RecordedError, match="expected schema version 2, got 1"):
        header_from_json({**only, "schema_version": 1})


# --- writing


def test_writing_replaces_whole_files_only(data, path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results({**data, "extra": math.nan}, path)
    assert path.read_bytes() == before
    write_results({**data, "extra": 1}, path)
    assert json.loads(path.read_text())["extra"] == 1
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(data, path, monkeypatch):
    before = path.read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_results({**data, "extra": 1}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# --- what is refused: the file


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(RecordedError, match=r"none\.json: expected .* got nothing there; check"):
        read(tmp_path / "none.json")
    with pytest.raises(RecordedError, match=r"cannot be read|nothing there"):
        read(tmp_path / "a\0b")


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(RecordedError, match=r"got a folder without results\.json; check the path"):
        read(tmp_path)


def test_a_run_that_has_written_nothing_says_how_to_continue(tmp_path):
    (tmp_path / "index.sqlite").touch()
    with pytest.raises(RecordedError, match=rf"continue it .*--run-dir={re.escape(str(tmp_path))}"):
        read(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecordedError, match="got a device or a pipe"):
        read(tmp_path / "pipe")


def test_a_file_that_may_not_be_read_is_said(path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(RecordedError, match="got: Permission denied; check the path"):
        read(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    large = tmp_path / "large.json"
    with open(large, "wb") as file:
        file.truncate(reading.MAX_FILE_BYTES + 1)
    monkeypatch.setattr("builtins.open", pytest.fail)
    with pytest.raises(RecordedError, match="at most 64,000,000 bytes"):
        read(large)


def test_a_file_that_grows_while_it_is_read_is_refused(path, monkeypatch):
    monkeypatch.setattr(reading, "_file_of", lambda path: path)
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 100)
    with pytest.raises(RecordedError, match="at most 100 bytes"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"{", b"[]", b"null", b"3", b'"x"', b"[" * 100_000, b'{"a":' * 100_000,
        b"1" * 5000, b"NaN", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}',
        b'{"schema_version": 2, "schema_version": 2}', b"\xef\xbb\xbf{}",
    ],
    ids=lambda content: content[:20],
)  # fmt: skip
def test_what_is_no_strict_json_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(RecordedError, match=r"expected the JSON of a results file.*; name a"):
        read(path)


# --- what is refused: the content


def test_an_earlier_file_says_how_to_write_it_anew(data):
    with pytest.raises(RecordedError, match=r"version 2, got 1; .*earlier suite.*--update-base"):
        from_json({**data, "schema_version": 1})


def test_a_later_file_says_to_update(data):
    with pytest.raises(RecordedError, match="got 3; it was written by a later suite: update"):
        from_json({**data, "schema_version": 3})


@pytest.mark.parametrize("version", [None, True, "2", 2.5, [2], -1, 0])
def test_another_version_is_none(data, version):
    with pytest.raises(RecordedError, match="expected schema version 2, got"):
        from_json({**data, "schema_version": version})


def broken(place, value):
    """A change of the data: ``value`` at ``place``, or nothing there if it is ``...``."""

    def change(data):
        *way, last = place
        for key in way:
            data = data[key]
        if value is ...:
            del data[last]
        else:
            data[last] = value

    return change


HUGE = 10**400
MISSING = [
    broken(place, ...)
    for place in [
        ("schema_version",), ("config",), ("provenance",), ("pairs",), ("cells",), ("overall",),
        ("throughput",), ("config", "seeds"), ("config", "limit"), ("provenance", "judge"),
        ("provenance", "machine"), ("provenance", "packages"), ("provenance", "git_commit"),
        ("cells", 0), ("cells", 0, "category"), ("cells", 0, "alpha"), ("cells", 0, "n"),
        ("cells", 0, "mean"), ("cells", 0, "verdict"), ("cells", 0, "items"), ("overall", "mean"),
        ("overall", "verdict"), ("throughput", "score_images_per_s"), ("pairs", "size"),
        ("cells", 0, "items", "color-00"),
    ]
]  # fmt: skip
WRONG = [
    broken(place, value)
    for place, values in {
        ("config",): [None, [], 3, "x"],
        ("config", "size"): [None, True, "64", 0, 64.0, HUGE],
        ("config", "seeds"): [None, [], 0, "0", [0, 0], [True], ["0"], [-1], [2**63], [0.0]],
        ("config", "alphas"): [[], [0], [0.5, 0.5], [0.5], ["0.5"], [math.nan], [1, True], [HUGE]],
        ("config", "limit"): [0, True, "1", 1.5],
        ("config", "method"): [None, "", " ", 3, ["word"], "wo\x1b[31mrd", "\ud800"],
        ("config", "guidance"): [None, True, "4", -1, math.inf, math.nan, HUGE],
        ("provenance", "packages"): [None, [], {"torch": 2}, {"": "2"}],
        ("provenance", "git_commit"): ["", 3],
        ("provenance", "machine"): [None, {}, {"processor": ["x"]}, {"a\nb": 1}],
        ("pairs",): [None, {}, [], {"color": 3}, {"color": "x", "si\x00ze": "y"}],
        ("cells",): [None, {}, [], [3]],
        ("cells", 0): [None, 3, []],
        ("cells", 0, "category"): [None, ["color"], "texture", 3],
        ("cells", 0, "alpha"): ["0.5", None, 0, 0.7, True, math.nan, HUGE],
        ("cells", 0, "n"): [None, "12", 12.0, True, 0, 11, HUGE],
        ("cells", 0, "mean"): [None, "0", True, math.nan, math.inf, 3.0, 0.5, HUGE],
        ("cells", 0, "verdict"): [None, "great", [], "incomplete", 3],
        ("cells", 0, "items"): [None, [], {}, {"a": 0.1}],
        ("cells", 0, "items", "color-00"): [None, "0", True, math.nan, math.inf, -3.0, 1.9, HUGE],
        ("cells", 0, "items", "color-\x00"): [0.1],
        ("overall",): [None, "success", 0],
        ("overall", "mean"): [None, math.nan, "0", 3.0],
        ("overall", "verdict"): [None, "incomplete", "great"],
        ("throughput",): [None, 3],
        ("throughput", "score_images_per_s"): [0, -1, "fast", math.inf, True],
    }.items()
    for value in values
]  # fmt: skip


@pytest.mark.parametrize("change", [*MISSING, *WRONG])
def test_damage_is_refused_in_memory(data, change):
    from_json(data)
    changed = copy.deepcopy(data)
    change(changed)
    with pytest.raises(RecordedError, match=r"expected .*got"):
        from_json(changed)


def test_cells_of_a_category_are_of_the_same_pairs(data):
    items = data["cells"][0]["items"]
    items["other"] = items.pop("color-00")
    with pytest.raises(RecordedError, match="the same pairs at every alpha, got others in color"):
        from_json(data)


def test_a_pair_is_in_one_category(data):
    for cell in data["cells"]:
        cell["items"] = {name[-2:]: margin for name, margin in cell["items"].items()}
    with pytest.raises(RecordedError, match="a pair in one category"):
        from_json(data)


def test_a_cell_twice_is_refused(data):
    data["cells"].append(data["cells"][0])
    with pytest.raises(RecordedError, match=r"cells\[4\]: .* got another color at alpha 0\.5"):
        from_json(data)


def test_a_cell_that_is_not_there_is_named(data):
    del data["cells"][1]
    with pytest.raises(RecordedError, match="got none of color at alpha 1;"):
        from_json(data)


def test_an_error_names_the_file_the_place_and_what_to_do(data, path):
    data["cells"][2]["items"]["size-03"] = "high"
    path.write_text(json.dumps(data))
    with pytest.raises(RecordedError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: cells[2].items['size-03']: expected a number from -2")
    assert "got 'high'" in text
    assert "python -m analogy baseline RUN -o FILE" in text


def test_numpy_s_floats_are_numbers_and_its_arrays_are_none(data):
    data["cells"][0]["mean"] = np.float64(data["cells"][0]["mean"])
    from_json(data)
    data["cells"][0]["items"] = np.zeros(12)
    with pytest.raises(RecordedError, match=r"items: expected an object"):
        from_json(data)


def test_names_in_any_script_are_names(data):
    text = json.dumps(data, ensure_ascii=False).replace("color", "farbe größer 色")
    assert from_json(json.loads(text)).header.categories == ("farbe größer 色", "size")


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([*Verdict, "color", 0.5, 2, HUGE])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["category", "alpha", "items", "verdict", "n", "mean", "color-00", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def places(data, way=()):
    """Every place in nested data."""
    if way:
        yield way
    entries = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in entries:
        if isinstance(value, (dict, list)):
            yield from places(value, (*way, key))
        else:
            yield (*way, key)


GOOD = results(small(6))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(list(places(GOOD))), values | st.just(...)), max_size=3))
@example([(("cells", 0, "verdict"), "incomplete"), (("cells", 0, "mean"), None)])
def test_whatever_stands_at_any_place_there_is_no_other_error(changes):
    data = copy.deepcopy(GOOD)
    for place, value in changes:
        try:
            broken(place, value)(data)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    try:
        found = from_json(data)
    except RecordedError:
        return
    for cell in found.analysis.cells.values():
        assert all(abs(margin) <= MARGIN_LIMIT for margin in cell.items.values())
        assert (cell.margin.verdict is Verdict.INCOMPLETE) == math.isnan(cell.margin.mean)


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(values)
def test_whatever_json_a_file_holds_there_is_no_other_error(tmp_path, data):
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RecordedError):
        read(path)
