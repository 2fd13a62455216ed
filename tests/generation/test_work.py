"""A worker: what each steering method is given, and that a batch is a batch whoever does it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from analogy.generation import worker as work
from analogy.generation.edits import seed_of
from analogy.generation.engine import Setup
from analogy.generation.worker import Worker, steered, texts
from analogy.models import texts as texts_module
from analogy.models.generator import Generator
from analogy.steering import words
from analogy.steering.base import Need, steering_method
from analogy.store.grid import Grid


@pytest.fixture
def jobs_of(config, pairs, model_source):
    def jobs(**settings):
        changed = replace(config, **settings)
        return Grid(changed, model_source.fingerprint, "Euler/1", pairs).jobs()

    return jobs


@pytest.fixture
def encoded(pipeline, config, pairs):
    generator = Generator(pipeline, steps=config.steps, guidance=config.guidance, size=config.size)
    return generator.encode(texts(pairs))


@pytest.fixture
def make_worker(config, pairs, model_source, judge_source, pipeline, monkeypatch):
    monkeypatch.setattr(work, "load_pipeline", lambda *_, **__: pipeline)

    def make(**settings):
        return Worker(Setup(replace(config, **settings), pairs, model_source, judge_source))

    return make


def same(one, other):
    """Whether two conditionings are equal bit for bit."""
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    return one.shapes() == other.shapes() and all(a.equal(b) for a, b in pairs)


def test_the_control_is_the_source_whatever_the_method(jobs_of, pairs, encoded):
    controls = [
        steered(next(job for job in jobs_of(method=method) if job.alpha == 0.0), pairs, encoded)
        for method in ("word", "random")
    ]
    assert same(*controls)


def test_category_is_given_all_other_pairs_of_the_category_and_never_its_own(
    jobs_of, pairs, encoded, monkeypatch
):
    edits = []

    def spy(edit, alpha):
        edits.append((edit, alpha))
        return edit.source

    monkeypatch.setattr(words, "category", steering_method(Need.OTHERS)(spy))
    jobs = jobs_of(method="category")
    job = next(job for job in jobs if job.pair == pairs[2] and job.alpha == 0.5)
    steered(job, pairs, encoded)
    [(edit, alpha)] = edits
    assert alpha == 0.5
    assert edit.words == (pairs[2].source_word, pairs[2].target_word)
    assert [(o.source_word, o.target_word) for o in edit.others] == [
        (p.source_word, p.target_word)
        for p in pairs
        if p.category == "color" and p.id != pairs[2].id
    ]
    for prompt, given in (
        (pairs[2].source_prompt, edit.source),
        (pairs[2].target_prompt, edit.target),
        (pairs[2].source_word, edit.source_word),
        (pairs[2].target_word, edit.target_word),
        (pairs[0].target_prompt, edit.others[0].target),
    ):
        assert same(given, encoded[prompt])


def test_the_random_control_has_a_direction_of_its_own_for_every_pair(pairs):
    seeds = {seed_of(pair) for pair in pairs}
    assert len(seeds) == len(pairs)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(replace(pairs[0], id="mine")) == seed_of(pairs[0])


def test_a_batch_is_the_same_with_any_number_of_threads(make_worker, jobs_of):
    batch = jobs_of()[4:9]
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            worker = make_worker()
            assert worker.prepare().at_once == threads
            drawn.append(worker.generate(batch).pngs)
    finally:
        torch.set_num_threads(before)
    assert drawn[0] == drawn[1]


def test_prompts_that_are_too_many_to_keep_are_encoded_with_their_batch(
    make_worker, jobs_of, monkeypatch
):
    batch = jobs_of()[4:9]
    kept = make_worker().generate(batch)
    asked = []
    encode = Generator.encode

    def spy(generator, prompts, **settings):
        asked.append(set(prompts))
        return encode(generator, prompts, **settings)

    monkeypatch.setattr(Generator, "encode", spy)
    monkeypatch.setattr(work, "MOST_TEXTS", 3)
    again = make_worker().generate(batch)
    assert asked == [set(texts({job.pair for job in batch}))]
    pixels = [
        [work.from_png(png).astype(int) for png in drawn.pngs if png] for drawn in (kept, again)
    ]
    assert all(abs(a - b).max() <= 1 for a, b in zip(*pixels, strict=True))


@pytest.mark.parametrize("method", ["word", "category"])
def test_images_are_the_same_with_a_budget_of_memory(make_worker, jobs_of, monkeypatch, method):
    """Nearly all texts are read from a file, by several threads."""
    batch = jobs_of(method=method)[3:7]
    whole = make_worker(method=method).generate(batch)
    monkeypatch.setattr(texts_module, "MOST_BYTES", 100_000)
    encode, made = Generator.encode, []
    monkeypatch.setattr(Generator, "encode", lambda *given: made.append(encode(*given)) or made[-1])
    drawn = make_worker(method=method).generate(batch)
    assert drawn.pngs == whole.pngs
    assert 0 < made[0].bytes_in_memory <= 100_000 < made[0].bytes_in_file
