"""The method activation: against plain hooks, cross-fitted, each image by itself, all undone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import own
import pytest
import torch
from leftovers import in_threads
from tiny import SIZE, build

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.core.registry import ExtensionError
from analogy.generation.engine import Setup
from analogy.generation.fitting import FIT_SEED, Learning
from analogy.generation.worker import changed_alike, texts
from analogy.models.generator import Generator, latents_for
from analogy.models.memory import MemoryFullError
from analogy.settings.options import OPTIONS, parse_options
from analogy.steering.activation import TooFewPairsError, activation, direction
from analogy.steering.base import (
    METHODS,
    Intervention,
    Observed,
    ObservingMethod,
    intervention,
)
from analogy.steering.hooks import conditional, cross_attention, hooked
from analogy.store.grid import Grid

STEPS, GUIDANCE = 2, 3.0


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two uint8 images, in steps of 1/255."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def cross_modules(pipeline) -> dict[str, torch.nn.Module]:
    """In diffusers' blocks the second attention is the one to the text."""
    return {
        name: module for name, module in pipeline.unet.named_modules() if name.endswith("attn2")
    }


def hooks_left(pipeline) -> int:
    return sum(len(module._forward_hooks) for module in pipeline.unet.modules())


@pytest.fixture
def setup(config, pairs, model_source):
    return Setup(replace(config, method="activation"), pairs, model_source, None)


@pytest.fixture(scope="module")
def encoded(generator, pairs):
    return generator.encode(texts(pairs))


@pytest.fixture
def jobs(config, pairs):
    """One of each pair at two strengths."""
    mine = replace(config, method="activation", alphas=(1.0, 3.0), seeds=(0,))
    return [job for job in Grid(mine, "model", "Euler/1", pairs).jobs() if job.alpha]


@pytest.fixture(scope="module")
def rows(config, pairs, model_source, generator, encoded):
    """Four rows of three pairs, at four strengths."""
    learning = Learning(Setup(replace(config, method="activation"), pairs, model_source, None))
    mine = replace(config, method="activation", alphas=(1.0, 3.0), seeds=(0,))
    jobs = [job for job in Grid(mine, "model", "Euler/1", pairs).jobs() if job.alpha == 1.0][:3]
    made, _ = learning.rows(jobs, generator, encoded)
    alphas = (3.0, 1.0, -2.0, 0.5)
    return [replace(row, alpha=a) for row, a in zip([*made, made[0]], alphas, strict=True)]


@pytest.fixture(scope="module")
def batch(rows, encoded, generator):
    """Their conditionings and latents."""
    latents = [latents_for(row.pair, 0, generator.latent_shape) for row in rows]
    return [encoded[row.pair.source_prompt] for row in rows], torch.stack(latents)


@pytest.fixture(scope="module")
def images(generator, rows, batch):
    """Their images, made in one batch."""
    return generator.generate(*batch, activation, rows).images


# --- the formula, by plain hooks on plain diffusers


@pytest.mark.parametrize("name", ["embedded", "sd1", "sd2", "sdxl"])
def test_it_is_the_difference_of_means_added_to_the_conditional_half(
    name, request, config, pairs, model_source
):
    """The pipelines are called by prompts, one image at a time; nothing of the suite's is used."""
    pipeline = request.getfixturevalue("pipeline") if name == "embedded" else build(name)
    size = 64 if name == "embedded" else SIZE
    # Red to blue. Blue to green has one of its prompts, and is left out; of the others none says
    # red or blue, so that each one's own difference counts.
    steered, others = pairs[0], pairs[2:6]
    assert pairs[1].source_prompt == steered.target_prompt
    generator = Generator(pipeline, steps=STEPS, guidance=GUIDANCE, size=size)

    def drawn(prompt: str, pair: Pair, seed: int, guidance: float) -> np.ndarray:
        made = pipeline(
            prompt, latents=latents_for(pair, seed, generator.latent_shape)[None],
            num_inference_steps=STEPS, guidance_scale=guidance, height=size, width=size,
            output_type="np",
        )  # fmt: skip
        return made.images[0]

    def means(prompt: str, pair: Pair) -> dict[str, list[np.ndarray]]:
        seen = {name: [] for name in cross_modules(pipeline)}
        handles = [
            module.register_forward_hook(
                lambda _, __, out, name=name: seen[name].append(out[0].double().mean(0).numpy())
            )
            for name, module in cross_modules(pipeline).items()
        ]
        drawn(prompt, pair, FIT_SEED, 1.0)
        for handle in handles:
            handle.remove()
        return seen

    both = [
        (means(other.source_prompt, other), means(other.target_prompt, other)) for other in others
    ]
    alpha = 2.0 if name == "embedded" else 200.0  # random weights hardly tell prompts apart
    count = dict.fromkeys(cross_modules(pipeline), 0)

    def add(module, given, out, name):
        step = count[name]
        count[name] += 1
        way = np.mean([target[name][step] - source[name][step] for source, target in both], axis=0)
        assert out.shape[0] == 2  # the negative prompt's row, then the prompt's
        changed = out.clone()
        changed[1] += alpha * torch.from_numpy(way).to(out)
        return changed

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: add(m, i, o, name))
        for name, module in cross_modules(pipeline).items()
    ]
    expected = drawn(steered.source_prompt, steered, 0, GUIDANCE)
    for handle in handles:
        handle.remove()

    setup = Setup(replace(config, method="activation"), pairs[:6], model_source, None)
    job = Grid(replace(config, method="activation", alphas=(1.0,)), "model", "Euler/1", pairs).jobs(
        alpha=1.0
    )[0]
    assert job.pair == steered
    encoded = generator.encode(texts(pairs[:6]))
    [row], _ = Learning(setup).rows([job], generator, encoded)
    latents = latents_for(steered, 0, generator.latent_shape)[None]
    given = [encoded[steered.source_prompt]], latents
    ours = generator.generate(*given, activation, [replace(row, alpha=alpha)]).images[0]
    assert np.abs(ours / 255 - expected).max() <= 2 / 255
    assert apart(ours, generator.generate(*given).images[0]) > 10


def seen(value: float) -> dict[str, torch.Tensor]:
    return {"module": torch.full((1, 1), value)}


@pytest.mark.parametrize(
    ("words", "others", "expected"),
    [
        # Both words recur: mean of (5, 20) for blue, minus mean of (1, 3) for red.
        (("red", "blue"), [("RED", "green", 1.0, 100.0), ("pink", "red", 200.0, 3.0),
                           ("blue", "pink", 5.0, 300.0), ("grey", "Blue", 400.0, 20.0)], 10.5),
        # One does not: the mean of 1 and 3.
        (("red", "blue"), [("red", "green", 1.0, 2.0), ("man", "woman", 10.0, 13.0)], 2.0),
        # Parts of them do: 7 for two, minus the mean of (1, 2) for one.
        (("one red hat", "two red hats"),
         [("one cup", "three cups", 1.0, 50.0), ("two red cars", "one red car", 7.0, 2.0)], 5.5),
        # What the steered pair has too is not there.
        (("red", "blue"), [("red", "green", None, 4.0), ("blue", "pink", 9.0, 12.0)], 3.0),
    ],
)  # fmt: skip
def test_the_direction_by_hand(words, others, expected):
    made = direction(
        words,
        [
            Observed((a, b), None if x is None else seen(x), None if y is None else seen(y))
            for a, b, x, y in others
        ],
    )
    assert made["module"].tolist() == [[expected]]


@pytest.mark.parametrize("others", [[], [Observed(("red", "blue"), None, seen(1.0))]])
def test_nothing_to_learn_from_is_an_error(others):
    with pytest.raises(TooFewPairsError, match="another pair in the category to learn 'red' to"):
        direction(("red", "blue"), others)


# --- cross-fitted


def learned(setup, jobs, generator, encoded) -> dict[str, dict[str, torch.Tensor]]:
    made, _ = Learning(setup).rows(jobs, generator, encoded)
    return {row.pair.id: row.learned for row in made}


def is_same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("poisoned", "category"), [(8, "object"), (2, "color")])
def test_a_pair_is_never_in_the_data_of_its_own_direction(
    setup, jobs, generator, encoded, pairs, poisoned, category
):
    """By poison: it changes the other pairs' directions, and not the pair's own by a bit.

    The second pair's prompts are those of two other pairs as well.
    """
    one_each = [job for job in jobs if job.alpha == 1.0 and job.pair.category == category]
    clean = learned(setup, one_each, generator, encoded)
    pair = pairs[poisoned]
    own = {pair.source_prompt, pair.target_prompt}
    users = [p for p in pairs if own & {p.source_prompt, p.target_prompt}]
    assert len(users) == (1 if category == "object" else 3)
    noise = torch.Generator().manual_seed(1)
    bad = {
        text: made.map(lambda t: torch.randn(t.shape, generator=noise)) if text in own else made
        for text, made in encoded.items()
    }
    after = learned(setup, one_each, generator, bad)
    assert is_same(after[pair.id], clean[pair.id])
    changed = {name for name in clean if not is_same(after[name], clean[name])}
    if category == "object":
        assert changed == clean.keys() - {pair.id}
    else:
        assert {"color-0", "color-3", "color-4"} <= changed


def test_a_direction_depends_on_no_other_jobs_and_no_order(setup, jobs, generator, encoded):
    one_each = [job for job in jobs if job.alpha == 1.0]
    together = learned(setup, one_each, generator, encoded)
    for job in one_each[::-5]:
        alone = learned(setup, [job], generator, encoded)
        assert is_same(alone[job.pair.id], together[job.pair.id])


def test_the_fit_is_done_once_and_its_cost_is_recorded(make_study):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        study = make_study(method="activation", alphas=(1.0,), seeds=(0,), batch_size=3)
        study.generate(study.jobs())
    finally:
        torch.set_num_threads(before)
    fits = {fit.category: fit for fit in study.execution.fits}
    assert {name: fit.images for name, fit in fits.items()} == {"color": 12, "object": 12}
    assert len({fit.inputs for fit in fits.values()}) == 2
    kept = {fit.category: fit for fit in study.folder.fits("activation")}
    assert kept.keys() == fits.keys()
    for name, fit in kept.items():
        assert fit[:4] == fits[name][:4]
        assert fit.seconds == pytest.approx(fits[name].seconds)
    assert study.folder.fits("word") == []
    assert len(study.folder.image_rows()) == len(study.jobs())


# --- rows


def test_alpha_0_is_the_unsteered_image_bit_for_bit(generator, rows, batch, images):
    """In a batch of its own kind, and beside rows that are steered."""
    plain = generator.generate(*batch).images
    still = [replace(row, alpha=0.0) for row in rows]
    assert np.array_equal(generator.generate(*batch, activation, still).images, plain)
    mixed = [rows[0], still[1], rows[2], still[3]]
    made = generator.generate(*batch, activation, mixed).images
    assert np.array_equal(made[[1, 3]], plain[[1, 3]])
    assert np.array_equal(made[[0, 2]], images[[0, 2]])
    assert all(apart(a, b) > 2 for a, b in zip(images, plain, strict=True))


@pytest.mark.parametrize("chosen", [[0], [2], [3, 0], [2, 1, 0]])
def test_an_image_does_not_depend_on_its_batch(generator, rows, batch, images, chosen):
    conditionings, latents = batch
    made = generator.generate(
        [conditionings[i] for i in chosen], latents[chosen], activation, [rows[i] for i in chosen]
    ).images
    assert apart(made, images[chosen]) <= 1


def test_a_batch_that_does_not_fit_is_halved_with_its_rows(
    pipeline, rows, batch, images, monkeypatch
):
    forward, seen = pipeline.unet.forward, []

    def crowded(x, *given, **settings):
        seen.append(len(x))
        if len(x) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(x, *given, **settings)

    monkeypatch.setattr(pipeline.unet, "forward", crowded)
    halved = Generator(pipeline, steps=STEPS, guidance=GUIDANCE, size=64)
    assert apart(halved.generate(*batch, activation, rows).images, images) <= 1
    assert seen == [8, 4, 4, 4, 4]


def test_without_guidance_all_rows_are_the_prompts(pipeline, rows, batch):
    unguided = Generator(pipeline, steps=STEPS, guidance=1.0, size=64)
    made = unguided.generate(*batch, activation, rows).images
    plain = unguided.generate(*batch).images
    assert all(apart(a, b) > 1 for a, b in zip(made, plain, strict=True))


def test_steering_that_begins_at_a_step_has_that_steps_directions(pipeline, rows):
    """The module is called as in the second of two steps."""
    [name, *_] = cross_modules(pipeline)
    module = pipeline.unet.get_submodule(name)
    dim = module.to_q.in_features
    given = torch.randn(1, 5, dim), torch.randn(1, 3, module.to_k.in_features)
    with torch.inference_mode():
        plain = module(*given)
        with activation.applied(pipeline, rows[:1], start=1):
            moved = module(*given) - plain
    expected = rows[0].alpha * rows[0].learned[name][1].expand(5, dim)
    torch.testing.assert_close(moved[0], expected, atol=1e-5, rtol=0)
    assert not torch.equal(rows[0].learned[name][0], rows[0].learned[name][1])


def test_further_guidance_terms_are_refused():
    assert conditional(torch.arange(4), 2).tolist() == [2, 3]
    with pytest.raises(ModelError, match="of 2 rows, or 4 with guidance, for 2 images, got"):
        conditional(torch.zeros(6, 3), 2)


def test_strengths_and_pairs_share_a_batch(jobs):
    assert isinstance(activation, ObservingMethod)
    assert isinstance(activation, Intervention)
    assert changed_alike(jobs) == [jobs]
    assert {job.alpha for job in jobs} == {1.0, 3.0}


def test_its_strengths_are_its_own():
    raw = {option.name: option.default for option in OPTIONS} | {"analogy_method": "activation"}
    assert parse_options(raw.get).alphas == METHODS.get("activation").default_alphas == (1, 2, 3)


def test_an_intervention_of_an_earlier_protocol_is_refused():
    with pytest.raises(ExtensionError, match=r"expected exclusive, per_row and applied\(pipel"):
        intervention("own:old_louder", 1.0)
    assert intervention("own:louder", 1.0) is own.louder


# --- what is left behind, and what others see


def test_everything_is_undone_after_an_error(pipeline, rows, batch, monkeypatch):
    generator = Generator(pipeline, steps=STEPS, guidance=GUIDANCE, size=64)
    plain = generator.generate(*batch).images
    hooked_then = []

    def fail(*_, **__):
        hooked_then.append(hooks_left(pipeline))
        raise MemoryFullError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.unet, "forward", fail)
        with pytest.raises(MemoryFullError):
            generator.generate(*batch, activation, rows)
        with pytest.raises(MemoryFullError):
            generator.observe(activation, *batch)
    assert hooked_then == [len(cross_modules(pipeline))] * 2
    assert hooks_left(pipeline) == 0
    assert np.array_equal(generator.generate(*batch).images, plain)


def test_a_hook_that_cannot_be_set_leaves_none_behind(pipeline):
    modules = {**cross_modules(pipeline), "none": None}
    with pytest.raises(AttributeError), hooked(modules, lambda *_: None):
        pass
    assert hooks_left(pipeline) == 0


def test_other_threads_on_the_same_weights_see_nothing(generator, pipeline, rows, batch, images):
    """While one thread's hooks are set, another generates unsteered, and a third steers its own."""
    plain = generator.generate(*batch).images
    twins = [generator.clone(), generator.clone()]
    assert twins[0]._pipeline.unet is pipeline.unet
    made = {}

    def work(name, twin, *change):
        made[name] = twin.generate(*batch, *change).images

    with activation.applied(pipeline, [replace(row, alpha=50.0) for row in rows]):
        assert hooks_left(pipeline) == len(cross_modules(pipeline))
        in_threads(
            partial(work, "plain", twins[0]), partial(work, "steered", twins[1], activation, rows)
        )
    assert apart(made["plain"], plain) <= 1
    assert apart(made["steered"], images) <= 1
    assert hooks_left(pipeline) == 0


def test_a_run_leaves_nothing_behind_and_does_not_depend_on_threads(make_study, pairs):
    before = torch.get_num_threads()
    found = []
    try:
        for threads, batch_size in ((1, 2), (2, 5)):
            torch.set_num_threads(threads)
            study = make_study(
                method="activation", alphas=(1.0, 2.0), seeds=(0,), pairs=pairs[6:9],
                control=True, batch_size=batch_size,
            )  # fmt: skip
            study.generate(study.jobs())
            assert hooks_left(study.execution._worker._pool.generators[0]._pipeline) == 0
            found.append({job.key: study.folder.read_image(job) for job in study.jobs()})
    finally:
        torch.set_num_threads(before)
    assert len(found[0]) == 3 * (1 + 2 + 2)
    assert max(apart(found[0][key], found[1][key]) for key in found[0]) <= 1


# --- other models


def test_a_model_without_cross_attention_is_refused():
    with pytest.raises(
        ModelError,
        match=r"method activation: expected a denoiser with cross-attention modules .* got "
        "SD3Transformer2DModel, which has none; choose another method",
    ):
        cross_attention(build("sd3"), method="activation")


def test_the_modules_are_those_that_read_the_text(pipeline):
    assert cross_attention(pipeline, method="activation") == cross_modules(pipeline)
    assert len(cross_modules(pipeline)) == 4
