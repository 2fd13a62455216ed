"""Steering by step and by the noise prediction, against plain diffusers and loops by hand."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import zoo
from diffusers import HeunDiscreteScheduler, StableDiffusionXLPAGPipeline
from tiny import MODELS, SIZE, build

from analogy.core.errors import ModelError
from analogy.core.records import WHOLE, Pair, Window
from analogy.models.families import stacked
from analogy.models.generator import Generator, latents_for
from analogy.models.stepping import Stepped
from analogy.steering.base import METHODS
from analogy.steering.conditioning import Conditioning
from analogy.steering.course import Course, course

PAIR = Pair("color-01", "color", "red", "blue", "a red car", "a blue hat at night")
STEPS, GUIDANCE = 4, 3.0


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two uint8 images, in steps of 1/255."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


class Bench:
    """A pipeline, both prompts' conditionings, and latents."""

    def __init__(self, pipeline, guidance: float = GUIDANCE) -> None:
        self.pipeline = pipeline
        self.size = pipeline.vae.config.sample_size
        self.generator = Generator(pipeline, steps=STEPS, guidance=guidance, size=self.size)
        encoded = self.generator.encode([PAIR.source_prompt, PAIR.target_prompt])
        self.source, self.target = encoded[PAIR.source_prompt], encoded[PAIR.target_prompt]
        self.shape = self.generator.latent_shape
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(STEPS)
        self.total = len(scheduler.timesteps)  # of some schedulers more than steps

    def latents(self, *seeds: int):
        return torch.stack([latents_for(PAIR, seed, self.shape) for seed in seeds])

    def images(self, conditionings, *seeds: int, change=None, rows=(), window=WHOLE) -> np.ndarray:
        made = self.generator.generate(conditionings, self.latents(*seeds), change, rows, window)
        assert not made.faults
        return made.images

    def steered(self, method: str, alpha: float, window: Window = WHOLE):
        """What an image of a built-in method is conditioned on."""
        made = self.target if alpha else self.source
        return course(METHODS.get(method), self.source, made, alpha, window)


@pytest.fixture(scope="module", params=[*MODELS, "embedded"])
def bench(request, pipeline):
    """Every family with random weights, and the trained model, on which prompts matter more."""
    if request.param != "embedded":
        return Bench(build(request.param))
    return Bench(copy.copy(pipeline))


@pytest.fixture(scope="module")
def trained(pipeline):
    """The trained model alone."""
    return Bench(copy.copy(pipeline))


# --- windows


@pytest.mark.parametrize(
    ("window", "total", "steps"),
    [
        (WHOLE, 8, range(8)), (Window(0.25, 1.0), 8, range(2, 8)), (Window(0.0, 0.5), 7, range(4)),
        (Window(1 - 0.8, 1.0), 8, range(2, 8)), (Window(0.3, 0.3), 10, range(3, 3)),
        (Window(0.5, 1.0).within(Window(0.5, 1.0)), 8, range(6, 8)),
        (Window(0.0, 0.5).within(Window(0.2, 0.6)), 10, range(2, 4)),
    ],
)  # fmt: skip
def test_a_window_is_a_range_of_whole_steps(window, total, steps):
    assert window.steps(total) == steps


# --- by step


def by_callback(bench: Bench, first: Conditioning, then: Conditioning, switched: int, seed: int):
    """The image by plain diffusers, whose callback puts other embeddings in after some steps."""
    pipeline, empty = bench.pipeline, bench.generator._empty
    names = {"prompt_embeds": "prompt_embeds"}
    if first.pooled:
        is_sdxl = type(pipeline).__name__.startswith("StableDiffusionXL")
        names["pooled_prompt_embeds"] = "add_text_embeds" if is_sdxl else "pooled_prompt_embeds"

    def swap(_, step, timestep, given):
        if step == switched - 1:
            for name, inner in names.items():
                own = then.tensors()[name][None]
                both = [empty.tensors()[name][None], *[own] * (len(given[inner]) - 1)]
                given[inner] = torch.cat(both).to(given[inner].dtype)
        return given

    plain = stacked([first], torch.device("cpu"), torch.float32)
    negative = stacked([empty], torch.device("cpu"), torch.float32)
    return pipeline(
        **plain, **{f"negative_{name}": tensor for name, tensor in negative.items()},
        latents=bench.latents(seed), num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        height=bench.size, width=bench.size, output_type="np",
        callback_on_step_end=swap, callback_on_step_end_tensor_inputs=list(names.values()),
    ).images[0]  # fmt: skip


def test_switch_is_two_prompts_joined_at_the_step(bench):
    """Rows of one batch have steps of their own, and each equals diffusers' own with a callback."""
    alphas = (0.25, 0.5, 0.75, 1.0)
    given = [bench.steered("switch", alpha) for alpha in alphas]
    images = bench.images([bench.source, *given], *range(5))
    for seed, alpha in enumerate(alphas, start=1):
        total = bench.total
        target_steps = WHOLE.steps(total)[-1] + 1 - Window(1 - alpha, 1).steps(total).start
        first = bench.target if target_steps == total else bench.source
        plain = by_callback(bench, first, bench.target, total - target_steps, seed)
        assert np.abs(images[seed] / 255 - plain).max() <= 1 / 255
    [alone] = bench.images([bench.source], 0)
    assert apart(images[0], alone) <= 1


def test_a_method_begins_and_ends_where_it_is_told(bench):
    """From the third of four steps on; and until it."""
    late = bench.steered("prompt", 1.0, Window(0.5, 1.0))
    early = bench.steered("prompt", 1.0, Window(0.0, 0.5))
    images = bench.images([late, early, bench.target], 0, 1, 2)
    middle = Window(0.5, 1.0).steps(bench.total).start
    for seed, (first, then) in enumerate(
        [(bench.source, bench.target), (bench.target, bench.source)]
    ):
        plain = by_callback(bench, first, then, middle, seed)
        assert np.abs(images[seed] / 255 - plain).max() <= 1 / 255
        assert apart(images[seed], bench.images([bench.target], seed)[0]) >= 1


def test_the_whole_schedule_takes_the_way_that_it_took_before(bench):
    assert bench.steered("prompt", 1.0) is bench.target
    assert bench.steered("switch", 1.0) is bench.target
    stepped = Course(bench.source, bench.target)
    assert np.array_equal(bench.images([stepped], 0), bench.images([bench.target], 0))


@pytest.mark.parametrize("method", ["switch", "guidance"])
def test_an_unsteered_image_is_the_same_bit_for_bit_beside_others(bench, method):
    """In a batch of as many images without steering, whatever the others are steered by."""
    plain = bench.images([bench.source] * 3, 0, 1, 2)
    for place in (0, 2):
        given = [bench.steered(method, alpha) for alpha in (0.3, 0.5, 0.9)]
        given[place] = bench.source
        images = bench.images(given, 0, 1, 2)
        assert np.array_equal(images[place], plain[place])
        others = [i for i in range(3) if i != place]
        assert not np.array_equal(images[others], plain[others])


@pytest.mark.parametrize("method", ["switch", "guidance"])
def test_an_image_does_not_depend_on_its_batch(trained, method):
    alphas = (0.25, 0.5, 0.75, 0.9)
    given = [trained.steered(method, alpha, Window(0.0, 0.75)) for alpha in alphas]
    images = trained.images(given, 0, 1, 2, 3)
    for chosen in ([1], [2, 0], [3, 3, 1]):
        alone = trained.images([given[i] for i in chosen], *chosen)
        assert apart(alone, images[chosen]) <= 1


# --- by the noise prediction


@torch.inference_mode()
def by_hand(bench: Bench, alpha: float, guidance: float, seed: int, start: int = 0) -> np.ndarray:
    """A denoising loop for one image: a forward pass for each prediction, and the scheduler."""
    pipeline = bench.pipeline
    kind = type(pipeline).__name__
    denoiser = pipeline.transformer if kind == "StableDiffusion3Pipeline" else pipeline.unet
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    size = torch.tensor([[bench.size, bench.size, 0, 0, bench.size, bench.size]])

    def predicted(x, t, of: Conditioning):
        states = of.tensors()["prompt_embeds"][None]
        if kind == "StableDiffusion3Pipeline":
            pooled = of.tensors()["pooled_prompt_embeds"][None]
            return denoiser(x, encoder_hidden_states=states, pooled_projections=pooled,
                            timestep=t[None]).sample  # fmt: skip
        added = None
        if kind == "StableDiffusionXLPipeline":
            pooled = of.tensors()["pooled_prompt_embeds"][None]
            added = {"text_embeds": pooled, "time_ids": size.float()}
        return denoiser(x, t, encoder_hidden_states=states, added_cond_kwargs=added).sample

    x = bench.latents(seed) * getattr(scheduler, "init_noise_sigma", 1.0)
    for step, t in enumerate(scheduler.timesteps):
        scaled = x if kind == "StableDiffusion3Pipeline" else scheduler.scale_model_input(x, t)
        source = predicted(scaled, t, bench.source)
        target = predicted(scaled, t, bench.target)
        whole, w = source, 1.0
        if guidance > 1.0:
            empty, w = predicted(scaled, t, bench.generator._empty), guidance
            whole = empty + w * (source - empty)
        if step >= start:
            whole = whole + alpha * w * (target - source)
        x = scheduler.step(whole, t, x, return_dict=False)[0]
    return bench.generator._decode(x)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("guidance", [GUIDANCE, 1.0])
def test_guidance_is_the_formula(bench, guidance):
    """Several strengths in one batch, each against its own loop, within 2/255."""
    own = Bench(bench.pipeline, guidance)
    alphas = (-0.5, 0.5, 1.0)
    images = own.images([own.steered("guidance", alpha) for alpha in alphas], 0, 1, 2)
    for seed, alpha in enumerate(alphas):
        expected = by_hand(own, alpha, guidance, seed)
        assert np.abs(images[seed] / 255 - expected).max() <= 2 / 255
    assert apart(images[2], own.images([own.target], 2)[0]) <= 1  # alpha 1: the target's own


def test_guidance_warms_up(bench):
    window = Window(0.5, 1.0)
    [image] = bench.images([bench.steered("guidance", 0.7, window)], 0)
    expected = by_hand(bench, 0.7, GUIDANCE, 0, start=window.steps(bench.total).start)
    assert np.abs(image / 255 - expected).max() <= 2 / 255


def test_guidance_costs_one_row_for_each_image_that_it_steers(bench):
    denoiser = getattr(bench.pipeline, bench.generator._family.denoiser)
    rows = []
    handle = denoiser.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(args[0] if args else given["hidden_states"])),
        with_kwargs=True,
    )
    try:
        given = [bench.source, *[bench.steered("guidance", 0.5, Window(0.5, 1.0))] * 2]
        bench.images(given, 0, 1, 2)
    finally:
        handle.remove()
    late = Window(0.5, 1.0).steps(bench.total)
    assert rows == [6] * late.start + [6, 2] * len(late)


# --- other pipelines


def test_a_scheduler_of_two_passes_a_step_counts_its_passes(pipeline):
    heun = copy.copy(pipeline)
    heun.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    bench = Bench(heun)
    given = [bench.steered("switch", alpha) for alpha in (0.5, 1.0)]
    images = bench.images(given, 0, 1)
    assert bench.total == 2 * STEPS - 1
    assert apart(images[1], bench.images([bench.target], 1)[0]) <= 1
    plain = by_callback(bench, bench.source, bench.target, 4, 0)  # 3.5 of 7, rounded up
    assert np.abs(images[0] / 255 - plain).max() <= 1 / 255


def test_a_pipeline_by_replay_is_steered_by_step_as_well():
    """FLUX: no negative prompt, packed latents, other names for the denoiser's arguments."""
    bench = Bench(zoo.build("FluxPipeline"))
    assert bench.size == SIZE
    images = {}
    for method in ("switch", "guidance"):
        given = [bench.steered(method, alpha) for alpha in (0.5, 1.0)]
        images[method] = bench.images([bench.source, *given], 0, 0, 0)
        assert apart(images[method][2], bench.images([bench.target], 0)[0]) <= 1
        assert len({image.tobytes() for image in images[method]}) == 3
    assert apart(images["switch"][1], images["guidance"][1]) > 0


def test_a_further_guidance_term_with_the_prompt_is_steered_too(tmp_path, install, pipeline):
    """Perturbed-attention guidance: three predictions, two of them with the prompt."""
    install("analogy.families", "StableDiffusionXLPAGPipeline", "own:perturbed")
    bench = Bench(StableDiffusionXLPAGPipeline(**build("sdxl").components))
    images = bench.images([bench.steered("switch", 0.5), bench.target, bench.source], 0, 0, 0)
    plain = by_callback(bench, bench.source, bench.target, 2, 0)
    assert np.abs(images[0] / 255 - plain).max() <= 1 / 255
    with pytest.raises(ModelError, match="that predicts once with the prompt, got 2 predictions"):
        bench.images([bench.steered("guidance", 0.5)], 0)


def test_a_pipeline_that_changes_its_conditioning_is_refused(pipeline, monkeypatch):
    """By a sentence: the denoiser gets none of it, so that it cannot be exchanged there."""
    bench = Bench(copy.copy(pipeline))
    own = type(pipeline).encode_prompt

    def louder(self, *args, **given):
        states, negative, *pooled = own(self, *args, **given)
        return 2 * states, negative, *pooled

    monkeypatch.setattr(type(pipeline), "encode_prompt", louder)
    with pytest.raises(ModelError, match=r"StableDiffusionXL.*: expected the denoiser to be given"):
        bench.images([bench.steered("switch", 0.5)], 0)


def test_nothing_of_it_is_left_on_the_pipeline(bench):
    before = dict(vars(bench.pipeline))
    scheduler = bench.pipeline.scheduler
    bench.images([bench.steered("switch", 0.5), bench.steered("guidance", 0.5)], 0, 1)
    after = vars(bench.pipeline)
    assert {name: id(value) for name, value in after.items()} == {
        name: id(value) for name, value in before.items()
    }
    assert "step" not in vars(scheduler)


def test_an_error_within_a_step_leaves_nothing(trained):
    bench = trained

    class BrokenError(Exception):
        pass

    def fail(*_):
        raise BrokenError

    denoiser = getattr(bench.pipeline, bench.generator._family.denoiser)
    handle = denoiser.register_forward_pre_hook(fail)
    try:
        with pytest.raises(BrokenError):
            bench.images([bench.steered("switch", 0.5)], 0)
    finally:
        handle.remove()
    assert getattr(bench.pipeline, bench.generator._family.denoiser) is denoiser
    assert apart(*(bench.images([bench.steered("switch", 0.5)], 0) for _ in range(2))) == 0


def test_a_change_of_the_pipeline_lasts_for_its_part_of_the_schedule(trained):
    """An intervention's context is entered at the first step of its part, left after the last."""
    bench = trained
    seen, entered, starts = [], [], []

    class Noting:
        name, version, needs = "noting", "", frozenset()
        exclusive, per_row = False, True

        def condition(self, edit, alpha):
            return edit.source

        def applied(self, pipeline, rows, start=0):
            starts.append(start)
            return noted()

    @contextmanager
    def noted():
        entered.append(len(seen))
        try:
            yield
        finally:
            entered.append(len(seen))

    denoiser = getattr(bench.pipeline, bench.generator._family.denoiser)
    handle = denoiser.register_forward_hook(lambda *_: seen.append(1))
    try:
        image = bench.images(
            [bench.source], 0, change=Noting(), rows=[None], window=Window(0.25, 0.75)
        )
    finally:
        handle.remove()
    steps = Window(0.25, 0.75).steps(len(seen))
    assert entered == [steps.start, steps.stop]
    assert starts == [steps.start]
    assert np.array_equal(image, bench.images([bench.source], 0))


def test_the_denoiser_is_otherwise_the_pipelines_own(pipeline, generator):
    encoded = generator.encode(["a red car"])["a red car"]
    stepped = Stepped(pipeline, "unet", [Course(encoded, encoded)])
    assert stepped.pipeline.unet.config is pipeline.unet.config
    assert stepped.pipeline.unet.dtype == torch.float32


def test_its_tensors_are_free_as_soon_as_the_batch_is_done(trained):
    """Without waiting for the garbage collector, which knows nothing of a GPU's memory."""
    gc.collect()
    gc.disable()
    try:
        made = []
        own = Stepped.__enter__

        def entered(stepped):
            made.append(weakref.ref(stepped._steered["prompt_embeds"]))
            return own(stepped)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stepped, "__enter__", entered)
            trained.images([trained.steered("switch", 0.5)], 0)
        assert [each() for each in made] == [None]
    finally:
        gc.enable()
