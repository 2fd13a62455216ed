"""Results in a run folder: each measurement keeps its own, and nothing smaller takes its place."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from planted import results as planted
from planted import small, write_results

from analogy.results import kept
from analogy.results.kept import Measured, found, notes
from analogy.results.model import RESULTS_NAME
from analogy.results.reading import RecordedError, from_json, read
from analogy.results.writing import to_json

CATEGORIES = ("color", "size")


def whole(data):
    """Results as JSON with every key that a run writes."""
    return to_json(from_json(data))


def keep(data, folder, **given):
    return kept.keep(from_json(data), folder, **given)


def put(data, path):
    return kept.put(from_json(data), path)


def with_quality(data, folder):
    return to_json(kept.with_quality(from_json(data), folder))


def measured(data):
    return Measured.of(from_json(data))


def of(n=12, categories=CATEGORIES, alphas=(0.5, 1.0), missing=0, shift=0.1, **changed):
    """Results of the first ``n`` pairs of each category; of the last ``missing`` no images."""
    margins = small(n, shift, categories, alphas)
    for values in margins.values():
        values[len(values) - missing :] = np.nan
    digests = {name: f"{n} of {name}" for name in categories}
    made = planted(margins, **{"pairs": digests, **changed})
    chosen = list(categories) if len(categories) < len(CATEGORIES) else None
    made["config"] |= {"categories": chosen, "control": False, "target": False}
    made["config"] |= {name: changed[name] for name in ("control", "target") if name in changed}
    if "ceiling" in changed:
        made["provenance"]["ceiling"] = changed["ceiling"]
    return whole(made)


WHOLE = of()


def shown(folder):
    return json.loads((folder / RESULTS_NAME).read_text())


def all_kept(folder):
    """Every measurement's results that are anywhere in the folder, by the measurement."""
    files = [folder / RESULTS_NAME, *(folder / "results").glob("*.json")]
    every = [one for one in map(found, files) if one is not None]
    made = {}
    for one in every:
        best = made.setdefault(one.scope.digest, one)
        if best.lacks(one):
            made[one.scope.digest] = one
    return {digest: to_json(one.results) for digest, one in made.items()}


# --- which results are shown


LESS = {
    "fewer pairs": of(2, limit=2),
    "one category": of(categories=("color",)),
    "one category's first pairs": of(2, categories=("color",), limit=2),
    "fewer strengths": of(alphas=(1.0,)),
    "fewer seeds": of(seeds=[0]),
    "first pairs by another method": of(2, limit=2, method="lerp"),
    "more strengths, interrupted": of(alphas=(0.5, 0.8, 1.0), missing=5),
    "more seeds, interrupted": of(seeds=[0, 1, 2, 3], missing=12),
    "another method, interrupted": of(method="lerp", missing=1),
    "fewer pairs from a file of fewer": of(4),
}
NO_LESS = {
    "another method": of(method="lerp"),
    "another judge": of(judge="another@sha256:00"),
    "more pairs": of(20),
    "more strengths": of(alphas=(0.5, 0.8, 1.0)),
    "more seeds": of(seeds=[0, 1, 2, 3]),
    "other seeds": of(seeds=[7]),
    "with the random control": of(control=True),
    "other pairs, though fewer": of(6, categories=("mood",), pairs={"mood": "mine"})
    | {"config": {**of(6)["config"], "categories": None}},
    "with another ceiling": of(ceiling="00"),
}


@pytest.mark.parametrize("name", LESS)
def test_what_is_less_does_not_take_the_place_of_what_is_finished(tmp_path, name):
    keep(WHOLE, tmp_path)
    outcome = keep(LESS[name], tmp_path)
    assert shown(tmp_path) == WHOLE
    assert json.loads(outcome.file.read_text()) == LESS[name]
    assert outcome.file.parent == tmp_path / "results"
    assert len(list((tmp_path / "results").iterdir())) == 2
    *_, (_, told) = outcome.summary()
    assert "stays that of word, 24 pairs in color, size" in told
    assert shown(tmp_path) == to_json(read(tmp_path))


@pytest.mark.parametrize("name", NO_LESS)
def test_what_is_no_less_is_shown_and_the_other_kept(tmp_path, name):
    first = keep(WHOLE, tmp_path)
    outcome = keep(NO_LESS[name], tmp_path)
    assert shown(tmp_path) == json.loads(outcome.file.read_text()) == NO_LESS[name]
    assert json.loads(first.file.read_text()) == WHOLE
    assert list(outcome.summary()) == []
    again = keep(WHOLE, tmp_path)  # whose turn it is again, unless it is a part
    is_part = name in ("more pairs", "more strengths", "more seeds", "with the random control")
    assert shown(tmp_path) == (NO_LESS[name] if is_part else WHOLE)
    assert again.file == first.file


def test_of_parts_alone_the_latest_is_shown_unless_it_is_a_part_of_the_other(tmp_path):
    ten, two, lerp = of(10, limit=10), of(2, limit=2), of(10, limit=10, method="lerp")
    for results, then in ((two, two), (ten, ten), (two, ten), (lerp, lerp), (ten, ten)):
        keep(results, tmp_path)
        assert shown(tmp_path) == then
    keep(WHOLE, tmp_path)
    keep(ten, tmp_path)
    assert shown(tmp_path) == WHOLE
    assert len(all_kept(tmp_path)) == 4


def test_what_is_not_finished_gives_way_to_anything(tmp_path):
    keep(of(missing=3), tmp_path)
    keep(of(2, limit=2), tmp_path)
    assert shown(tmp_path) == of(2, limit=2)
    assert of(missing=3) in all_kept(tmp_path).values()


# --- one measurement, twice


def test_the_same_measurement_again_replaces_its_own_results(tmp_path):
    keep(of(missing=4), tmp_path)
    for results in (of(missing=2), WHOLE, of(shift=0.2), WHOLE):
        outcome = keep(results, tmp_path)
        assert shown(tmp_path) == json.loads(outcome.file.read_text()) == results
        assert not outcome.has_more
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_an_interrupted_run_of_it_does_not(tmp_path):
    keep(WHOLE, tmp_path)
    outcome = keep(of(missing=1), tmp_path)
    assert shown(tmp_path) == json.loads(outcome.file.read_text()) == WHOLE
    [(_, line)] = outcome.summary()
    assert line.endswith("has more of this measurement than was measured now, and stays")
    (tmp_path / RESULTS_NAME).unlink()
    keep(of(missing=1), tmp_path)
    assert shown(tmp_path) == WHOLE


@pytest.mark.parametrize("part", ["controls", "targets", "random"])
def test_what_was_measured_beside_the_cells_counts(tmp_path, part):
    more, less = of(), of()
    if part == "random":
        more["cells"][0]["random"] = {"margin": {"n": 12, "n_items": 12}}
        less["cells"][0]["random"] = {"margin": {"n": 12, "n_items": 3}}
    else:
        more[part] = [{"category": "color", "alpha": 0.0, "n": 2, "n_items": 2,
                        "items": {"a": 0.0, "b": 0.1}}]  # fmt: skip
        less[part] = [{"category": "color", "alpha": 0.0, "n": 2, "n_items": 1,
                       "items": {"a": 0.0}}]  # fmt: skip
    keep(more, tmp_path)
    assert keep(less, tmp_path).has_more
    assert shown(tmp_path) == whole(more)
    assert not keep(more, tmp_path).has_more


# --- kills, damage, folders of an earlier suite


def test_a_folder_of_an_earlier_suite_keeps_what_it_has(tmp_path):
    write_results(WHOLE, tmp_path / RESULTS_NAME)
    assert list(notes(tmp_path)) == []
    keep(of(method="lerp"), tmp_path)
    assert WHOLE in all_kept(tmp_path).values()
    write_results(of(2, limit=2), tmp_path / RESULTS_NAME)  # by the earlier suite once more
    keep(of(method="slerp"), tmp_path)
    kinds = {(one["config"]["method"], one["config"]["limit"])
             for one in all_kept(tmp_path).values()}  # fmt: skip
    assert kinds == {("word", None), ("lerp", None), ("word", 2), ("slerp", None)}


SEQUENCES = [
    [WHOLE, of(2, limit=2)],
    [WHOLE, of(method="lerp")],
    [of(missing=3), WHOLE],
    [of(2, limit=2), WHOLE, of(method="lerp")],
    [of(missing=2), of(2, limit=2), WHOLE, of(missing=1)],
]


@pytest.mark.parametrize("sequence", range(len(SEQUENCES)))
@pytest.mark.parametrize("starts_old", [False, True])
def test_a_kill_between_any_two_writes_loses_nothing(tmp_path, monkeypatch, sequence, starts_old):
    write, count = kept.write_atomically, itertools.count()
    for limit in range(20):
        folder = tmp_path / str(limit)
        folder.mkdir()
        results = list(SEQUENCES[sequence])
        if starts_old:
            write_results(results[0], folder / RESULTS_NAME)
        count = itertools.count()

        def killed(path, data, limit=limit, count=count):
            if next(count) >= limit:
                raise KeyboardInterrupt
            write(path, data)

        before: dict = {}
        was_killed = False
        with monkeypatch.context() as patch:
            patch.setattr(kept, "write_atomically", killed)
            for each in results[1:] if starts_old else results:
                before = all_kept(folder)
                try:
                    keep(each, folder)
                except KeyboardInterrupt:
                    was_killed = True
                    break
        # Whatever was there is there, and what is shown is whole.
        now = all_kept(folder)
        for digest, one in before.items():
            assert not measured(now[digest]).lacks(measured(one))
        if (folder / RESULTS_NAME).exists():
            read(folder)
        # The next run loses nothing either.
        keep(of(method="category"), folder)
        for digest, one in now.items():
            assert not measured(all_kept(folder)[digest]).lacks(measured(one))
        if not was_killed:
            return
    pytest.fail("more writes than expected")


def test_a_damaged_file_hides_no_other_and_gives_way(tmp_path):
    outcome = keep(WHOLE, tmp_path)
    keep(of(method="lerp"), tmp_path)
    outcome.file.write_text("{")
    (tmp_path / "results" / "0123456789ab.json").write_text("[]")
    (tmp_path / "results" / "mine.json").write_text(json.dumps(of(2, limit=2)))
    os.mkfifo(tmp_path / "results" / "ba9876543210.json")
    keep(of(method="slerp"), tmp_path)
    lines = list(notes(tmp_path))
    assert lines[0] == f"note: {tmp_path} has results of 2 measurements"
    assert "slerp" in lines[1]
    assert "lerp" in lines[2]
    keep(WHOLE, tmp_path)
    assert json.loads(outcome.file.read_text()) == WHOLE
    (tmp_path / RESULTS_NAME).write_text("{")
    with pytest.raises(RecordedError):
        read(tmp_path)
    keep(WHOLE, tmp_path)
    assert shown(tmp_path) == WHOLE


def test_a_folder_without_results_json_names_the_place_of_the_others(tmp_path):
    (tmp_path / "index.sqlite").touch()
    keep(WHOLE, tmp_path)
    (tmp_path / RESULTS_NAME).unlink()
    with pytest.raises(RecordedError, match=r"name one of the files in its folder 'results'"):
        read(tmp_path)


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    keep(WHOLE, tmp_path)
    left = [
        "results.json.7.partial",
        "results-a.json.7.partial",
        "results/0123456789ab.json.7.partial",
    ]
    own = ["mine.partial", "results/mine.partial", "results/mine.json.7.partial"]
    for name in (*left, *own):
        (tmp_path / name).touch()
    keep(WHOLE, tmp_path)
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.partial")}
    assert there == {*own}


def test_a_judge_s_scores_of_the_run_s_own_images_lose_no_quality(tmp_path):
    more = with_metrics(WHOLE, [("color", 0.5)])
    keep(more, tmp_path)
    outcome = keep(with_metrics(WHOLE, []), tmp_path, name="results-clip-tiny.json")
    assert to_json(outcome.results)["quality"] == more["quality"]
    assert json.loads(outcome.file.read_text()) == more == shown(tmp_path)


def test_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text("mine")
    folder = tmp_path / "run"
    (folder / "results").mkdir(parents=True)
    (folder / RESULTS_NAME).symlink_to(mine)
    (folder / "results" / measured(WHOLE).name).symlink_to(mine)
    keep(WHOLE, folder)
    assert mine.read_text() == "mine"
    assert shown(folder) == WHOLE


def test_readers_write_nothing(tmp_path, monkeypatch):
    keep(WHOLE, tmp_path)
    keep(of(2, limit=2), tmp_path)
    for name in ("mkdir", "touch", "unlink", "write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, lambda *_, **__: pytest.fail("written"))
    monkeypatch.setattr(kept, "write_atomically", lambda *_: pytest.fail("written"))
    assert len(list(notes(tmp_path))) == 3
    assert read(tmp_path).header.measurement.limit is None


# --- what readers are told


def test_the_other_measurements_are_listed_with_files_that_can_be_read(tmp_path):
    keep(WHOLE, tmp_path)
    assert list(notes(tmp_path)) == []
    keep(of(2, categories=("color",), limit=2), tmp_path)
    keep(of(judge="another@sha256:00"), tmp_path, name="results-another.json")
    head, is_shown, *rest = notes(tmp_path)
    assert head == f"note: {tmp_path} has results of 3 measurements"
    assert is_shown == (
        f"shown     {tmp_path / RESULTS_NAME}: word, 24 pairs in color, size, alpha 0.5, 1, "
        "seeds 0, 1, 2"
    )
    files = {line.removeprefix("other     ").partition(": ")[0]: line for line in rest}
    assert {Path(file).parent for file in files} == {tmp_path / "results"}
    found_ = {read(Path(file)).header.measurement.limit: line for file, line in files.items()}
    assert found_[2].endswith(": word, 2 pairs in color, alpha 0.5, 1, seeds 0, 1, 2, limit 2")
    assert found_[None].endswith("seeds 0, 1, 2, judge another@sha256:00")
    for file in files:
        assert list(notes(Path(file))) == []  # it was chosen


def test_a_judge_s_results_of_an_earlier_suite_are_listed(tmp_path):
    write_results(WHOLE, tmp_path / RESULTS_NAME)
    write_results(of(judge="another@sha256:00"), tmp_path / "results-another.json")
    assert [line.split()[1] for line in notes(tmp_path)][2:] == [
        f"{tmp_path / 'results-another.json'}:"
    ]


def test_not_more_files_are_read_than_can_be_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "MOST_READ", 3)
    for seed in range(8):
        keep(of(2, seeds=[seed]), tmp_path)
    lines = list(notes(tmp_path))
    assert lines[0].endswith("has results of 8 measurements")
    assert lines[-1] == f"other     4 more files in {tmp_path / 'results'}"
    assert len(lines) == 2 + 3 + 1


@pytest.mark.parametrize(
    "name", ["results.json", "results-other.json", "results/0123456789ab.json"]
)
def test_a_results_file_knows_its_run_folder(tmp_path, name):
    (tmp_path / "results").mkdir()
    (tmp_path / name).touch()
    (tmp_path / "index.sqlite").touch()
    assert kept.folder_of(tmp_path / name) == kept.folder_of(tmp_path) == tmp_path
    assert kept.folder_of(tmp_path / "none") == tmp_path / "none"


# --- the results file that nobody named


@pytest.mark.parametrize("name", LESS)
def test_the_default_file_stays_for_what_is_less(tmp_path, name):
    path = tmp_path / "results.json"
    assert put(WHOLE, path) is None
    why = put(LESS[name], path)
    assert why.startswith(f"{path} stays that of word, 24 pairs in color, size, alpha 0.5, 1")
    assert json.loads(path.read_text()) == WHOLE


def test_the_default_file_stays_for_a_smaller_grid_of_anything_else(tmp_path):
    path = tmp_path / "results.json"
    put(WHOLE, path)
    assert put(of(6, model="another@sha256:00"), path).endswith("since this run is smaller")
    assert put(of(12, model="another@sha256:00"), path) is None
    assert put(of(missing=1, model="another@sha256:00"), path).endswith("more of this measurement")


def test_the_default_file_is_written_by_each_of_two_equal_runs(tmp_path):
    path = tmp_path / "results.json"
    for results in (of(missing=4), WHOLE, of(shift=0.3), of(method="lerp"), WHOLE):
        assert put(results, path) is None
        assert json.loads(path.read_text()) == results
    for text in ("", "{}", json.dumps({**WHOLE, "schema_version": 1})):
        path.write_text(text)
        assert put(of(2, limit=2), path) is None


# --- quality


def with_metrics(results, places, lpips=None, references="drawings", sets=()):
    made = copy.deepcopy(results)
    mean = {"mean": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 12, "n_equal": 0}
    rows = [{"category": c, "alpha": a, "ssim": mean} for c, a in places]
    if lpips:
        rows = [{**row, "lpips": mean} for row in rows]
    made["quality"] = {
        "cells": rows,
        "alphas": [{"alpha": a, "cmmd": {"value": v}} for a, v in sets],
        "lpips": lpips or "no weights",
        "references": references if sets else "not asked for",
    }
    return whole(made)


def test_quality_that_an_earlier_session_measured_is_kept(tmp_path):
    first = with_metrics(WHOLE, [("color", 0.5), ("color", 1.0)], "alex@1", sets=[(1.0, 3.0)])
    keep(first, tmp_path)
    none = with_metrics(WHOLE, [])
    assert with_quality(none, tmp_path)["quality"] == first["quality"]
    more = with_quality(with_metrics(WHOLE, [("size", 1.0), ("color", 1.0)]), tmp_path)["quality"]
    assert [(row["category"], row["alpha"], "lpips" in row) for row in more["cells"]] == [
        ("color", 0.5, True), ("color", 1.0, True), ("size", 1.0, False),
    ]  # fmt: skip
    assert more["lpips"] == "alex@1"
    other = with_metrics(WHOLE, [("size", 1.0)], "alex@2", "photos", sets=[(0.5, 1.0)])
    other = with_quality(other, tmp_path)["quality"]
    assert [(row["category"], row["alpha"], "lpips" in row) for row in other["cells"]] == [
        ("color", 0.5, False), ("color", 1.0, False), ("size", 1.0, True),
    ]  # fmt: skip
    assert (other["lpips"], other["references"]) == ("alex@2", "photos")
    assert [(row["alpha"], row["cmmd"]["value"]) for row in other["alphas"]] == [(0.5, 1.0)]


def test_how_own_metrics_are_shown_is_kept_with_them(tmp_path):
    first = with_metrics(WHOLE, [("color", 0.5)])
    shown = {"name": "redness", "label": "red", "unit": "%", "higher_is_better": None}
    first["quality"] |= {"metrics": [shown], "features": "an image tower of another shape"}
    keep(first, tmp_path)
    again = with_quality(with_metrics(WHOLE, []), tmp_path)["quality"]
    assert again["metrics"][0].items() >= shown.items()
    assert again["features"] == "an image tower of another shape"
    other = with_quality(with_metrics(WHOLE, [("color", 1.0)]), tmp_path)["quality"]
    assert "features" not in other


def test_quality_of_another_measurement_is_not(tmp_path):
    keep(with_metrics(WHOLE, [("color", 0.5)]), tmp_path)
    less = with_metrics(of(2, limit=2), [])
    assert with_quality(less, tmp_path) == less


ODD = [
    None, [], "x", {"cells": 3, "alphas": [[]]},
    {"cells": [{"category": 3}, {"alpha": 10**400}], "alphas": None},
    {"cells": [{"category": "color", "alpha": 0.5, "ssim": 3, "psnr": []}], "lpips": 3},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_odd_parts_that_nobody_checked_are_left_out(tmp_path, odd):
    write_results({**WHOLE, "quality": odd, "controls": odd, "targets": [odd]},
                  tmp_path / RESULTS_NAME)  # fmt: skip
    now = with_metrics(WHOLE, [("color", 0.5)])
    assert with_quality(now, tmp_path)["quality"]["cells"] == now["quality"]["cells"]
    keep(now, tmp_path)
    assert shown(tmp_path) == now


# --- a measurement's name


def test_a_measurement_s_name_is_of_what_determines_its_figures():
    every = [WHOLE, *LESS.values(), *NO_LESS.values()]
    scopes = [measured(results).scope for results in every]
    names = [scope.digest for scope in scopes if scope.is_finished]
    assert len({*names}) == len(names) == len(every) - 3
    for same in (
        of(missing=3),
        of(shift=0.4),
        of(device="cuda"),
        of(suite="9"),
        of(seeds=[2, 1, 0]),
    ):
        assert measured(same).scope.digest == measured(WHOLE).scope.digest


def test_a_copy_of_the_folder_shows_the_same(tmp_path):
    keep(WHOLE, tmp_path / "a")
    keep(of(2, limit=2), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert shown(tmp_path / "a") == shown(tmp_path / "b")
    assert len(list(notes(tmp_path / "b"))) == 3
