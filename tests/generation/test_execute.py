"""The work: even batches, only what is missing, and what each steering method is given."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from cases import change_index
from hypothesis import given, settings
from hypothesis import strategies as st
from injected import Injected

from analogy.core.registry import UnknownNameError
from analogy.generation import execution as execute
from analogy.generation import worker as work
from analogy.generation.engine import Setup
from analogy.generation.execution import Execution, even_batches
from analogy.generation.serial import Serial
from analogy.judges.margin import margin
from analogy.metrics.efficiency import Memory
from analogy.models import memory
from analogy.models.generator import Generator, latents_for
from analogy.store.folder import RunFolder
from analogy.store.grid import Grid


@pytest.fixture
def make_run(tmp_path, config, pairs, model_source, pipeline, judge, monkeypatch):
    """Build a run's execution on a new folder, with the session's models; ``loaded``: which."""
    loaded = []

    def load_pipeline(source, **settings):
        loaded.append("pipeline")
        return pipeline

    def load_judge():
        loaded.append("judge")
        return build.judge

    monkeypatch.setattr(work, "load_pipeline", load_pipeline)
    found = Injected(judge.fingerprint, load_judge)
    folders = [RunFolder(tmp_path / "run")]

    def build(pairs=pairs, **settings):
        changed = replace(config, **settings)
        run = Execution(Setup(changed, pairs, model_source, found), folders[0])
        jobs = Grid(changed, model_source.fingerprint, "Euler/1", pairs).jobs()
        return run, jobs, folders[0]

    build.loaded = loaded
    build.judge = judge
    yield build
    folders[0].close()


@settings(deadline=None)  # of an absolute time, which other work on the machine prolongs
@given(st.integers(0, 300), st.integers(1, 100))
def test_batches_are_even_as_few_as_can_be_and_in_order(n, size):
    jobs = list(range(n))
    batches = even_batches(jobs, size)
    assert [job for batch in batches for job in batch] == jobs
    assert len(batches) == -(-n // size)
    lengths = [len(batch) for batch in batches]
    assert not lengths or (min(lengths) > 0 and max(lengths) <= size)
    assert not lengths or max(lengths) - min(lengths) <= 1
    for done in range(len(batches)):  # killed after these
        left = [job for batch in batches[done:] for job in batch]
        assert even_batches(left, size) == batches[done:]


def test_only_what_is_missing_is_generated(make_run):
    run, jobs, folder = make_run()
    jobs = jobs[:10]
    reported = []
    run.generate(jobs[3:6], reported.append)
    before = {job: folder.read_image(job) for job in jobs[3:6]}
    run.generate(jobs, reported.append)
    assert reported == [3, 4, 3]
    assert folder.without_image(jobs) == []
    for job, image in before.items():
        np.testing.assert_array_equal(folder.read_image(job), image)
    run.generate(jobs, reported.append)
    assert reported == [3, 4, 3]


def test_nothing_is_loaded_when_nothing_is_missing(make_run):
    run, jobs, _ = make_run()
    run.generate(jobs[:2])
    assert make_run.loaded == ["pipeline"]
    run.score(jobs[:2])
    assert make_run.loaded == ["pipeline", "judge"]
    again, jobs, _ = make_run()
    again.generate(jobs[:2])
    assert again.score(jobs[:2]) == 0
    assert make_run.loaded == ["pipeline", "judge"]


def test_scores_are_the_margins_of_the_images(make_run, judge, monkeypatch):
    monkeypatch.setattr(execute, "SCORE_BATCH", 3)
    run, jobs, folder = make_run()
    jobs = jobs[:8]
    run.generate(jobs)
    assert run.score(jobs[:2]) == 2
    assert run.score(jobs) == 6
    frame = folder.margins(jobs, judge.fingerprint)
    expected = margin(
        judge.image_features(np.stack([folder.read_image(job) for job in jobs])),
        target=judge.text_features([job.pair.target_prompt for job in jobs]),
        source=judge.text_features([job.pair.source_prompt for job in jobs]),
    )
    np.testing.assert_allclose(frame["margin"], expected, atol=1e-5)
    np.testing.assert_allclose(frame["cos_target"] - frame["cos_source"], expected, atol=1e-5)


def test_an_image_is_made_of_its_pair_alpha_and_seed(make_run, pipeline, config):
    run, jobs, folder = make_run(method="lerp")
    job = next(j for j in jobs if j.alpha == 1.0 and j.seed == 1)
    run.generate([job])
    plain = Generator(pipeline, steps=config.steps, guidance=config.guidance, size=config.size)
    target = plain.encode([job.pair.target_prompt])[job.pair.target_prompt]
    latents = latents_for(job.pair, 1, plain.latent_shape)[None]
    expected = plain.generate([target], latents).images[0]
    assert np.abs(folder.read_image(job).astype(int) - expected.astype(int)).max() <= 1


# --- engines


class Counting(Serial):
    """An engine of another package: counts the batches that it generates."""

    batches: ClassVar[list[int]] = []

    def generate(self, batches):
        for batch, generated, _ in super().generate(batches):
            self.batches.append(len(batch))
            yield batch, generated, "counting"


@pytest.mark.parametrize("how", ["by name", "given"])
def test_an_engine_of_another_package_does_the_work(
    make_run, config, pairs, model_source, judge_source, how
):
    """Named as --engine takes it, or given as an object: nothing in the suite knows of it."""
    Counting.batches.clear()
    if how == "by name":
        run, jobs, folder = make_run(engine="test_execute:Counting")
    else:
        _, jobs, folder = make_run()
        setup = Setup(config, pairs, model_source, judge_source)
        run = Execution(setup, folder, engine=Counting)
    run.generate(jobs[:6])
    assert Counting.batches == [3, 3]
    assert list(folder.worker_rates()) == ["counting"]
    assert run.score(jobs[:6]) == 6


def test_an_engine_that_does_not_exist_is_refused_before_any_work(make_run):
    with pytest.raises(UnknownNameError, match=r"expected one of serial, ray, .* mean 'ray'"):
        make_run(engine="rai")


def test_generating_leaves_as_many_threads_as_there_were(make_run):
    before = torch.get_num_threads()
    run, jobs, _ = make_run()
    run.generate(jobs[:8])
    with ThreadPoolExecutor(1) as others:  # a new thread takes the number of the process
        assert torch.get_num_threads() == others.submit(torch.get_num_threads).result() == before


# --- memory and failures


def test_an_image_that_is_none_is_kept_as_failed_and_not_scored(make_run, monkeypatch):
    draw = Generator.generate

    def spoilt(generator, conditionings, latents):
        made = draw(generator, conditionings, latents)
        return replace(made, faults={0: "black"})

    monkeypatch.setattr(Generator, "generate", spoilt)
    run, jobs, folder = make_run()
    jobs = jobs[:6]
    reported = []
    run.generate(jobs, reported.append)  # in batches of 3
    assert reported == [3, 3]
    assert folder.failures(jobs) == [(jobs[0], "black"), (jobs[3], "black")]
    assert run.missing(jobs) == []
    run.generate(jobs, reported.append)  # not tried twice by one worker
    assert reported == [3, 3]
    assert run.score(jobs) == 4
    monkeypatch.setattr(Generator, "generate", draw)
    again, jobs, _ = make_run()
    again.generate(jobs[:6], reported.append)
    assert reported == [3, 3, 2]
    assert folder.failures(jobs) == folder.without_image(jobs[:6]) == []


@pytest.fixture
def card(monkeypatch):
    """Stands in for a CUDA device: the work itself goes on on the CPU."""
    gib = memory.GIB
    calls = []
    monkeypatch.setattr(work, "limit_memory", lambda *given: calls.append(("limit", *given)))
    monkeypatch.setattr(work, "budget", lambda device, limit: int((limit or 24) * gib))
    monkeypatch.setattr(Generator, "peak_memory", lambda self, n: (4 + n) * gib)
    monkeypatch.setattr(
        Generator, "drop_text_encoders", lambda self: calls.append(("encoders dropped",))
    )

    def measured(run, *, device):
        run()
        return Memory("cuda allocator", device, 9 * gib, 0, 9 * gib, None, None)

    monkeypatch.setattr(work, "peak_memory", measured)
    return calls


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"memory": 12.0}, 6), ({"memory": None}, 17), ({"memory": 12.0, "batch_size": 3}, 3)],
)
def test_on_a_card_a_batch_is_what_fits(make_run, card, settings, expected):
    run, jobs, folder = make_run(
        **{"device": "cuda:0", "batch_size": None, "alphas": (1.0,), **settings}
    )
    reported = []
    run.generate(jobs[:18], reported.append)
    assert max(reported) == -(-18 // -(-18 // expected))
    limits = [("limit", "cuda:0", 12.0)] if settings["memory"] else []
    assert card == [*limits, ("encoders dropped",)]
    assert folder.peak_memory() == 9 * memory.GIB


def test_memory_that_runs_out_in_the_middle_costs_no_image_and_no_wrong_one(
    make_run, pipeline, monkeypatch
):
    run, jobs, folder = make_run()
    run.generate(jobs[:8])
    expected = [folder.read_image(job).astype(int) for job in jobs[:8]]
    whole = pipeline.unet.forward

    def crowded(x, *given, **settings):
        if len(x) > 2:  # one image with guidance
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(x, *given, **settings)

    monkeypatch.setattr(pipeline.unet, "forward", crowded)
    change_index(folder.path, "DELETE FROM images")
    again, jobs, _ = make_run()
    again.generate(jobs[:8])
    for job, image in zip(jobs[:8], expected, strict=True):
        assert np.abs(folder.read_image(job).astype(int) - image).max() <= 1


class Crowded:
    """A judge with room for so many images at a time."""

    def __init__(self, judge, room):
        self.judge, self.room, self.asked = judge, room, []

    def __getattr__(self, name):
        return getattr(self.judge, name)

    def text_features(self, prompts):
        return self.judge.text_features(prompts)

    def image_features(self, images, *, batch_size=None):
        self.asked.append(len(images))
        if len(images) > self.room:
            torch.empty(1 << 50)
        return self.judge.image_features(images)


def test_scoring_with_half_as_many_images_where_memory_runs_out(make_run, judge, monkeypatch):
    run, jobs, folder = make_run()
    run.generate(jobs[:8])
    run.score(jobs[:8])
    expected = folder.margins(jobs[:8], judge.fingerprint)["margin"]
    change_index(folder.path, "DELETE FROM scores")
    crowded = Crowded(judge, 2)
    make_run.judge = crowded
    again, jobs, _ = make_run()
    monkeypatch.setattr(execute, "SCORE_BATCH", 6)
    assert again.score(jobs[:8]) == 8
    assert crowded.asked == [6, 3, 1, 1, 1, 1, 1, 1, 1, 1]
    found = folder.margins(jobs[:8], judge.fingerprint)["margin"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scoring_without_room_for_one_image_is_said(make_run, judge):
    make_run.judge = Crowded(judge, 0)
    run, jobs, _ = make_run()
    run.generate(jobs[:2])
    with pytest.raises(memory.MemoryFullError, match="out of memory with one image at a time"):
        run.score(jobs[:2])


def test_a_model_that_memory_has_no_room_for_is_said(make_run, monkeypatch):
    monkeypatch.setattr(work, "load_pipeline", lambda *_, **__: torch.empty(1 << 50))
    run, jobs, _ = make_run()
    with pytest.raises(memory.MemoryFullError, match="out of memory while generating: expected"):
        run.generate(jobs[:2])
