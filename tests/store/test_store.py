"""The run folder: keys, what an interruption leaves behind, and folders that cannot be used."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from cases import change_index

from analogy.core import files
from analogy.core.errors import StoreError
from analogy.core.records import Pair
from analogy.store.database import SCHEMA_VERSION
from analogy.store.folder import RunFolder
from analogy.store.grid import Grid, content, digest

MODEL, SCHEDULER = "model@sha256:1", "Euler/1"

PAIRS = [
    Pair("c-1", "color", "red", "blue", "a red car", "a blue car"),
    Pair("c-2", "color", "blue", "red", "a blue hat", "a red hat"),
    Pair("s-1", "size", "tiny", "large", "a tiny cup", "a large cup"),
]


@pytest.fixture
def folder(tmp_path):
    """A new run folder."""
    made = RunFolder(tmp_path / "run")
    yield made
    made.close()


@pytest.fixture
def jobs(config):
    """The grid of three pairs, three alphas and two seeds."""
    return Grid(config, MODEL, SCHEDULER, PAIRS).jobs()


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 64, 64, 3), np.uint8)


def rows(folder: RunFolder, query: str) -> list[tuple]:
    """What another process would read from the index."""
    db = sqlite3.connect(folder.path / "index.sqlite")
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def assert_whole(folder: RunFolder) -> None:
    """Each image that the index names is there."""
    for (path,) in rows(folder, "SELECT path FROM images"):
        assert (folder.path / path).is_file()


# --- plan


def test_a_plan_is_the_grid_in_order_with_a_key_for_each_image(jobs):
    assert [(job.pair.id, job.alpha, job.seed) for job in jobs] == [
        (pair.id, alpha, seed) for pair in PAIRS for alpha in (0.0, 0.5, 1.0) for seed in (0, 1)
    ]
    assert len({job.key for job in jobs}) == len(jobs)


def keys(config, *, model=MODEL, scheduler=SCHEDULER, pairs=PAIRS) -> dict:
    return {
        (job.pair.id, job.alpha, job.seed): job.key
        for job in Grid(config, model, scheduler, pairs).jobs()
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 3},
        {"guidance": 3.5},
        {"size": 128},
        {"dtype": "bfloat16"},
        {"model": "model@sha256:2"},
        {"scheduler": "Euler/2"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_key_changes_with_what_made_the_image(config, changed):
    outer = {name: changed.pop(name) for name in ("model", "scheduler") if name in changed}
    before, after = keys(config), keys(replace(config, **changed), **outer)
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


@pytest.mark.parametrize("field", ["source_word", "target_word", "source_prompt", "target_prompt"])
def test_a_key_changes_with_its_own_pair_alone(config, field):
    changed = [replace(PAIRS[0], **{field: "another"}), *PAIRS[1:]]
    before, after = keys(config), keys(config, pairs=changed)
    assert {name[0] for name in before if before[name] != after[name]} == {"c-1"}
    assert all(before[name] != after[name] for name in before if name[0] == "c-1")


def test_keys_are_independent_of_ids_order_other_pairs_batches_and_devices(config):
    before = set(keys(config).values())
    renamed = [replace(pair, id=f"mine-{pair.id}") for pair in PAIRS[::-1]]
    elsewhere = replace(config, batch_size=1, device="cuda", limit=3, pairs="mine.csv")
    assert set(keys(elsewhere, pairs=renamed).values()) == before
    assert set(keys(config, pairs=PAIRS[:1]).values()) < before


def test_more_alphas_and_seeds_extend_a_run(config):
    more = replace(config, alphas=(-0.5, *config.alphas), seeds=(0, 1, 2))
    assert set(keys(config).values()) < set(keys(more).values())


def test_methods_share_the_control_and_nothing_else(config):
    by_method = [keys(replace(config, method=m)) for m in ("word", "lerp", "category", "random")]
    for name in by_method[0]:
        assert len({of[name] for of in by_method}) == (1 if name[1] == 0.0 else 4)


def test_the_category_methods_keys_know_words_that_differ_in_case_alone(config):
    """Earlier suites compared words as written: where that matters the images are others."""
    config = replace(config, method="category")
    a, b = (replace(PAIRS[0], id=i, source_word=w, target_word=t, source_prompt=f"{w} {i}")
            for i, w, t in (("a", "red", "blue"), ("b", "pink", "Red")))  # fmt: skip
    jobs = Grid(config, MODEL, SCHEDULER, [a, b]).jobs(alpha=1.0)
    subject = {"model": MODEL, "steps": config.steps, "guidance": config.guidance,
               "size": config.size, "dtype": config.dtype, "scheduler": SCHEDULER}  # fmt: skip
    what = {**subject, "method": "category", "alpha": 1.0, "pair": content(a), "seed": 0}
    assert jobs[0].key == digest({**what, "others": [content(b)], "words": "folded"})
    same = replace(b, target_word="red")
    [job, *_] = Grid(config, MODEL, SCHEDULER, [a, same]).jobs(alpha=1.0)
    assert job.key == digest({**what, "others": [content(same)]})


def test_the_category_methods_keys_hold_the_other_pairs(config):
    config = replace(config, method="category")
    before = keys(config)
    fewer = keys(config, pairs=[PAIRS[0], PAIRS[2]])
    for name, key in fewer.items():
        pair_id, alpha, _ = name
        assert (key == before[name]) == (pair_id == "s-1" or alpha == 0.0)


# --- images and scores


def test_images_come_back_as_they_were(folder, jobs):
    images = pictures(len(jobs))
    folder.add_images(jobs, images, 2.0)
    for job, image in zip(jobs, images, strict=True):
        np.testing.assert_array_equal(folder.read_image(job), image)
    assert_whole(folder)
    assert not list(folder.path.rglob("*.partial"))


def test_what_is_there_is_not_missing(folder, jobs):
    assert folder.without_image(jobs) == jobs
    folder.add_images(jobs[2:4], pictures(2), 1.0)
    assert folder.without_image(jobs) == jobs[:2] + jobs[4:]
    assert folder.without_score(jobs, "judge") == jobs[2:4]
    folder.add_scores(jobs[3:4], "judge", [(0.3, 0.1, 0.2)], 1.0)
    assert folder.without_score(jobs, "judge") == jobs[2:3]
    assert folder.without_score(jobs, "another judge") == jobs[2:4]


def test_a_folder_can_be_opened_again(folder, jobs):
    folder.add_images(jobs, pictures(len(jobs)), 1.0)
    folder.add_scores(jobs, "judge", [(0.3, 0.1, 0.2)] * len(jobs), 1.0)
    folder.close()
    again = RunFolder(folder.path)
    assert again.without_image(jobs) == again.without_score(jobs, "judge") == []
    np.testing.assert_array_equal(again.read_image(jobs[0]), pictures(1)[0])
    again.close()


def test_margins_are_those_of_one_judge_in_the_order_of_the_jobs(folder, jobs):
    scores = [(0.1 * i, 0.05 * i, 0.05 * i) for i in range(len(jobs))]
    folder.add_scores(jobs, "judge", scores, 1.0)
    folder.add_scores(jobs, "another judge", [(1.0, 0.0, 1.0)] * len(jobs), 1.0)
    frame = folder.margins(jobs[::-2], "judge")
    assert list(frame.columns) == [
        "key", "pair_id", "category", "alpha", "seed", "margin", "cos_target", "cos_source",
    ]  # fmt: skip
    expected = list(zip(jobs, scores, strict=True))[::-2]
    for row, (job, score) in zip(frame.itertuples(index=False), expected, strict=True):
        assert row[:5] == (job.key, job.pair.id, job.pair.category, job.alpha, job.seed)
        assert (row.cos_target, row.cos_source, row.margin) == score


def test_margins_leave_out_what_has_no_score(folder, jobs):
    assert len(folder.margins(jobs, "judge")) == 0
    folder.add_scores(jobs[:1], "judge", [(0.3, 0.1, 0.2)], 1.0)
    assert len(folder.margins(jobs, "judge")) == 1


def test_rates_are_over_all_work(folder, jobs):
    assert folder.rate("generate") is None
    assert folder.rate("score") is None
    folder.add_images(jobs[:4], pictures(4), 3.0)
    folder.add_images(jobs[4:6], pictures(2), 1.0)
    folder.add_scores(jobs[:2], "judge", [(0.3, 0.1, 0.2)] * 2, 0.5)
    assert folder.rate("generate") == 6 / 4.0
    assert folder.rate("score") == 4.0


def test_the_latest_configuration_is_kept(folder, config):
    folder.record_config(config, {"suite": "1"})
    folder.record_config(replace(config, steps=7), {"suite": "2"})
    kept = {name: json.loads(value) for name, value in rows(folder, "SELECT * FROM meta")}
    assert kept["config"]["steps"] == 7
    assert kept["provenance"] == {"suite": "2"}
    assert kept["schema_version"] == SCHEMA_VERSION


# --- interruptions


@pytest.mark.parametrize("where", ["before", "within", "after"])
def test_an_interrupted_batch_is_not_in_the_index(folder, jobs, monkeypatch, where):
    """Killed at the batch's third image: before it is written, half way, or before its rename."""
    folder.add_images(jobs[:2], pictures(2), 1.0)
    replaced, written = files.os.replace, []

    def rename(source, target):
        if len(written) == 2:
            if where == "within":
                source.write_bytes(b"half a")
            if where == "after":
                replaced(source, target)
            raise KeyboardInterrupt
        written.append(target)
        replaced(source, target)

    monkeypatch.setattr(files.os, "replace", rename)
    with pytest.raises(KeyboardInterrupt):
        folder.add_images(jobs[2:6], pictures(4), 1.0)
    assert len(rows(folder, "SELECT * FROM images")) == 2
    assert folder.rate("generate") == 2.0
    assert_whole(folder)
    monkeypatch.undo()
    assert folder.without_image(jobs[:6]) == jobs[2:6]
    folder.add_images(jobs[2:6], pictures(4, seed=1), 1.0)
    assert_whole(folder)
    np.testing.assert_array_equal(folder.read_image(jobs[4]), pictures(4, seed=1)[2])


def test_scores_are_kept_batch_by_batch_or_not_at_all(folder, jobs):
    folder.add_images(jobs[:2], pictures(2), 1.0)
    with pytest.raises(sqlite3.IntegrityError):
        folder.add_scores(jobs[:2], "judge", [(0.3, 0.1, 0.2), (0.3, 0.1, None)], 1.0)
    assert folder.without_score(jobs[:2], "judge") == jobs[:2]
    assert folder.rate("score") is None


def test_what_is_no_picture_is_kept_as_failed_until_there_is_one(folder, jobs):
    folder.add_images(jobs[:3], pictures(3), 1.0, faults={1: "black"}, peak_bytes=7)
    folder.add_images(jobs[3:4], pictures(1), 1.0, peak_bytes=5)
    assert folder.without_image(jobs[:3]) == folder.without_image(jobs[1:2]) == jobs[1:2]
    assert folder.failures(jobs) == [(jobs[1], "black")]
    assert folder.failures(jobs[2:]) == []
    assert folder.without_score(jobs, "judge") == [jobs[0], jobs[2], jobs[3]]
    assert folder.rate("generate") == 1.5  # pictures a second
    assert folder.peak_memory() == 7
    assert_whole(folder)
    assert len(list((folder.path / "images").rglob("*.png"))) == 3
    folder.add_images(jobs[1:2], pictures(1), 1.0)
    assert folder.failures(jobs) == folder.without_image(jobs[:3]) == []


def test_what_a_judge_saw_is_kept_with_its_scores(folder, jobs):
    folder.add_images(jobs[:3], pictures(3), 1.0)
    seen = np.random.default_rng(0).standard_normal((2, 5), np.float32)
    folder.add_scores(jobs[:2], "judge", [(0.3, 0.1, 0.2)] * 2, 1.0, features=seen)
    kept = folder.features(jobs, "judge")
    assert list(kept) == [jobs[0].key, jobs[1].key]
    np.testing.assert_array_equal(np.stack(list(kept.values())), seen)
    assert folder.features(jobs[1:2], "judge").keys() == {jobs[1].key}
    assert folder.features(jobs, "another") == {}


def test_values_of_metrics_are_kept_by_image_and_name(folder, jobs):
    folder.add_images(jobs[:3], pictures(3), 1.0)
    folder.add_metric("psnr", {jobs[0].key: float("inf"), jobs[2].key: 20.5})
    folder.add_metric("ssim", {jobs[0].key: 1.0})
    assert folder.metric("psnr", jobs[:1]) == {jobs[0].key: float("inf")}
    assert folder.metric("psnr", jobs) == {jobs[0].key: float("inf"), jobs[2].key: 20.5}
    assert folder.metric("lpips", jobs) == {}


def test_the_index_says_what_an_image_is(folder, jobs):
    folder.add_images(jobs[:3], pictures(3), 1.0)
    said = [json.loads(what) for (what,) in rows(folder, "SELECT what FROM images ORDER BY rowid")]
    assert said[0] == {"pair_id": "c-1", "category": "color", "alpha": 0.0, "seed": 0}
    assert said[2] == {
        "pair_id": "c-1", "category": "color", "alpha": 0.5, "seed": 0, "method": "word",
    }  # fmt: skip


def test_a_batch_needs_an_image_for_every_job(folder, jobs):
    with pytest.raises(ValueError, match="zip"):
        folder.add_images(jobs[:3], pictures(2), 1.0)
    assert folder.without_image(jobs) == jobs


# --- what is refused


def image_path(folder: RunFolder, job) -> str:
    [(path,)] = rows(folder, f"SELECT path FROM images WHERE key = '{job.key}'")
    return folder.path / path


def test_a_deleted_image_is_said(folder, jobs):
    folder.add_images(jobs[:1], pictures(1), 1.0)
    path = image_path(folder, jobs[0])
    path.unlink()
    with pytest.raises(StoreError, match=r"the index names this image but it cannot be read"):
        folder.read_image(jobs[0])


def test_a_changed_image_is_said(folder, jobs):
    folder.add_images(jobs[:2], pictures(2), 1.0)
    image_path(folder, jobs[0]).write_bytes(image_path(folder, jobs[1]).read_bytes())
    with pytest.raises(StoreError, match=r"not the one that was written \(SHA-256 differs\)"):
        folder.read_image(jobs[0])
    folder.read_image(jobs[1])


def test_an_image_that_was_never_made_is_said(folder, jobs):
    with pytest.raises(StoreError, match=r"c-1, .* seed 0: the index has no such image"):
        folder.read_image(jobs[0])


def test_the_index_may_be_deleted_to_start_anew(folder, jobs):
    """What a damaged index's error tells the user to do."""
    folder.add_images(jobs, pictures(len(jobs)), 1.0)
    folder.close()
    (folder.path / "index.sqlite").unlink()
    again = RunFolder(folder.path)
    assert again.without_image(jobs) == jobs
    again.add_images(jobs, pictures(len(jobs), seed=1), 1.0)
    np.testing.assert_array_equal(again.read_image(jobs[-1]), pictures(len(jobs), seed=1)[-1])
    again.close()


def test_a_folder_of_another_version_is_refused(folder):
    folder.close()
    change_index(
        folder.path, "UPDATE meta SET value = ? WHERE name = 'schema_version'", SCHEMA_VERSION + 1
    )
    with pytest.raises(StoreError, match=r"expected schema version 2, got 3;.*--run-dir"):
        RunFolder(folder.path)


@pytest.mark.parametrize("content", [b"no database" * 100, None], ids=["text", "folder"])
def test_an_index_that_is_none_is_refused(tmp_path, content):
    index = tmp_path / "index.sqlite"
    if content is None:
        index.mkdir()
    else:
        index.write_bytes(content)
    with pytest.raises(StoreError, match=r"with this suite's index or none .*--run-dir"):
        RunFolder(tmp_path)


def test_an_index_of_something_else_is_refused(tmp_path):
    db = sqlite3.connect(tmp_path / "index.sqlite")
    db.execute("CREATE TABLE images (name TEXT)")
    db.execute("CREATE TABLE meta (something TEXT)")
    db.close()
    with pytest.raises(StoreError, match=r"with this suite's index or none .*--run-dir"):
        RunFolder(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"expected a folder that can be written"):
        RunFolder(tmp_path / place)
