"""The work: even batches, only what is missing, and what each steering method is given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analogy import execute, memory
from analogy.execute import Worker, _even_batches, _seed_of
from analogy.generator import Generator, latents_for
from analogy.margin import margin
from analogy.store import RunFolder, plan


@pytest.fixture
def make_worker(tmp_path, config, pairs, model_source, judge_source, pipeline, judge, monkeypatch):
    """Build a worker on a new folder, with the session's models; ``loaded`` says which it used."""
    loaded = []

    def load_pipeline(source, **settings):
        loaded.append("pipeline")
        return pipeline

    def load_judge(source, **settings):
        loaded.append("judge")
        return judge

    monkeypatch.setattr(execute, "load_pipeline", load_pipeline)
    monkeypatch.setattr(execute, "Judge", load_judge)
    folders = [RunFolder(tmp_path / "run")]

    def build(pairs=pairs, **settings):
        changed = replace(config, **settings)
        worker = Worker(changed, pairs, model_source, judge_source, folders[0])
        jobs = plan(changed, model_source.fingerprint, "Euler/1", pairs, changed.grid_alphas)
        return worker, jobs, folders[0]

    build.loaded = loaded
    yield build
    folders[0].close()


@given(st.integers(0, 300), st.integers(1, 100))
def test_batches_are_even_as_few_as_can_be_and_in_order(n, size):
    jobs = list(range(n))
    batches = _even_batches(jobs, size)
    assert [job for batch in batches for job in batch] == jobs
    assert len(batches) == -(-n // size)
    lengths = [len(batch) for batch in batches]
    assert not lengths or (min(lengths) > 0 and max(lengths) <= size)
    assert not lengths or max(lengths) - min(lengths) <= 1
    for done in range(len(batches)):  # killed after these
        left = [job for batch in batches[done:] for job in batch]
        assert _even_batches(left, size) == batches[done:]


def test_only_what_is_missing_is_generated(make_worker):
    worker, jobs, folder = make_worker()
    jobs = jobs[:10]
    reported = []
    worker.generate(jobs[3:6], reported.append)
    before = {job: folder.read_image(job) for job in jobs[3:6]}
    worker.generate(jobs, reported.append)
    assert reported == [3, 4, 3]
    assert folder.without_image(jobs) == []
    for job, image in before.items():
        np.testing.assert_array_equal(folder.read_image(job), image)
    worker.generate(jobs, reported.append)
    assert reported == [3, 4, 3]


def test_nothing_is_loaded_when_nothing_is_missing(make_worker):
    worker, jobs, _ = make_worker()
    worker.generate(jobs[:2])
    assert make_worker.loaded == ["pipeline"]
    worker.score(jobs[:2])
    assert make_worker.loaded == ["pipeline", "judge"]
    again, jobs, _ = make_worker()
    again.generate(jobs[:2])
    assert again.score(jobs[:2]) == 0
    assert make_worker.loaded == ["pipeline", "judge"]


def test_scores_are_the_margins_of_the_images(make_worker, judge, monkeypatch):
    monkeypatch.setattr(execute, "SCORE_BATCH", 3)
    worker, jobs, folder = make_worker()
    jobs = jobs[:8]
    worker.generate(jobs)
    assert worker.score(jobs[:2]) == 2
    assert worker.score(jobs) == 6
    frame = folder.margins(jobs, judge.fingerprint)
    expected = margin(
        judge.image_features(np.stack([folder.read_image(job) for job in jobs])),
        target=judge.text_features([job.pair.target_prompt for job in jobs]),
        source=judge.text_features([job.pair.source_prompt for job in jobs]),
    )
    np.testing.assert_allclose(frame["margin"], expected, atol=1e-5)
    np.testing.assert_allclose(frame["cos_target"] - frame["cos_source"], expected, atol=1e-5)


def test_an_image_is_made_of_its_pair_alpha_and_seed(make_worker, pipeline, config):
    worker, jobs, folder = make_worker(method="lerp")
    job = next(j for j in jobs if j.alpha == 1.0 and j.seed == 1)
    worker.generate([job])
    plain = Generator(pipeline, steps=config.steps, guidance=config.guidance, size=config.size)
    target = plain.encode([job.pair.target_prompt])[job.pair.target_prompt]
    latents = latents_for(job.pair, 1, plain.latent_shape)[None]
    expected = plain.generate([target], latents).images[0]
    assert np.abs(folder.read_image(job).astype(int) - expected.astype(int)).max() <= 1


def test_the_control_is_the_source_whatever_the_method(make_worker):
    controls = []
    for method in ("word", "random"):
        worker, jobs, _ = make_worker(method=method)
        controls.append(worker._steered(next(job for job in jobs if job.alpha == 0.0)))
    assert controls[0].states.equal(controls[1].states)


def test_category_is_given_all_other_pairs_of_the_category_and_never_its_own(
    make_worker, pairs, monkeypatch
):
    edits = []

    def spy(edit, alpha):
        edits.append((edit, alpha))
        return edit.source

    monkeypatch.setitem(execute.METHODS, "category", spy)
    worker, jobs, _ = make_worker(method="category")
    worker._steered(next(job for job in jobs if job.pair == pairs[2] and job.alpha == 0.5))
    [(edit, alpha)] = edits
    assert alpha == 0.5
    assert edit.words == (pairs[2].source_word, pairs[2].target_word)
    assert [(o.source_word, o.target_word) for o in edit.others] == [
        (p.source_word, p.target_word)
        for p in pairs
        if p.category == "color" and p.id != pairs[2].id
    ]
    for prompt, encoded in (
        (pairs[2].source_prompt, edit.source),
        (pairs[2].target_prompt, edit.target),
        (pairs[2].source_word, edit.source_word),
        (pairs[2].target_word, edit.target_word),
        (pairs[0].target_prompt, edit.others[0].target),
    ):
        assert encoded.states.equal(worker._loaded[1][prompt].states)


def test_the_random_control_has_a_direction_of_its_own_for_every_pair(pairs):
    seeds = {_seed_of(pair) for pair in pairs}
    assert len(seeds) == len(pairs)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert _seed_of(replace(pairs[0], id="mine")) == _seed_of(pairs[0])


# --- memory and failures


def test_an_image_that_is_none_is_kept_as_failed_and_not_scored(make_worker, monkeypatch):
    draw = Generator.generate

    def spoilt(generator, conditionings, latents):
        made = draw(generator, conditionings, latents)
        return replace(made, faults={0: "black"})

    monkeypatch.setattr(Generator, "generate", spoilt)
    worker, jobs, folder = make_worker()
    jobs = jobs[:6]
    reported = []
    worker.generate(jobs, reported.append)  # in batches of 3
    assert reported == [3, 3]
    assert folder.failures(jobs) == [(jobs[0], "black"), (jobs[3], "black")]
    assert worker.missing(jobs) == []
    worker.generate(jobs, reported.append)  # not tried twice by one worker
    assert reported == [3, 3]
    assert worker.score(jobs) == 4
    monkeypatch.setattr(Generator, "generate", draw)
    again, jobs, _ = make_worker()
    again.generate(jobs[:6], reported.append)
    assert reported == [3, 3, 2]
    assert folder.failures(jobs) == folder.without_image(jobs[:6]) == []


@pytest.fixture
def card(monkeypatch):
    """Stands in for a CUDA device: the work itself goes on on the CPU."""
    gib = memory.GIB
    calls = []
    monkeypatch.setattr(execute, "limit_memory", lambda *given: calls.append(("limit", *given)))
    monkeypatch.setattr(execute, "budget", lambda device, limit: int((limit or 24) * gib))
    monkeypatch.setattr(Generator, "peak_memory", lambda self, n: (4 + n) * gib)
    monkeypatch.setattr(
        Generator, "drop_text_encoders", lambda self: calls.append(("encoders dropped",))
    )
    monkeypatch.setattr(execute.torch.cuda, "max_memory_allocated", lambda device: 9 * gib)
    return calls


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"memory": 12.0}, 6), ({"memory": None}, 17), ({"memory": 12.0, "batch_size": 3}, 3)],
)
def test_on_a_card_a_batch_is_what_fits(make_worker, card, settings, expected):
    worker, jobs, folder = make_worker(
        **{"device": "cuda:0", "batch_size": None, "alphas": (1.0,), **settings}
    )
    reported = []
    worker.generate(jobs[:18], reported.append)
    assert max(reported) == -(-18 // -(-18 // expected))
    limits = [("limit", "cuda:0", 12.0)] if settings["memory"] else []
    assert card == [*limits, ("encoders dropped",)]
    assert folder.peak_memory() == 9 * memory.GIB


def test_memory_that_runs_out_in_the_middle_costs_no_image_and_no_wrong_one(
    make_worker, pipeline, monkeypatch
):
    worker, jobs, folder = make_worker()
    worker.generate(jobs[:8])
    expected = [folder.read_image(job).astype(int) for job in jobs[:8]]
    whole = pipeline.unet.forward

    def crowded(x, *given, **settings):
        if len(x) > 2:  # one image with guidance
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(x, *given, **settings)

    monkeypatch.setattr(pipeline.unet, "forward", crowded)
    folder._db.execute("DELETE FROM images")
    again, jobs, _ = make_worker()
    again.generate(jobs[:8])
    for job, image in zip(jobs[:8], expected, strict=True):
        assert np.abs(folder.read_image(job).astype(int) - image).max() <= 1
