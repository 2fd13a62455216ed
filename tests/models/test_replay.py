"""Every pipeline class that is tested, from a saved folder to images.

A pipeline's own image is reached, as 8-bit pixels, of which at most one in a hundred may be rounded
to the next level. What depends on the batch is within 2e-5 of the largest latent; an edit
moves latents at least a hundred times as far as that, so that nothing passes for having no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import continuity
import diffusers
import numpy as np
import pytest
import torch
import zoo

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.generation import edits
from analogy.models.families import FAMILIES, Family, Sampling, family_of
from analogy.models.generator import Generator, latents_for
from analogy.models.loading import load_pipeline
from analogy.models.replay import Replay, generator_of
from analogy.models.replay_table import DISTILLED, ROWS
from analogy.models.sources import find_pipeline
from analogy.steering.base import METHODS
from analogy.steering.conditioning import Conditioning, Edit

# diffusers' own, in Chroma and PRX.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),
]

#: The classes that are tested by default: one or two of each kind of encoder and of latents.
FAST = {
    "FluxPipeline", "ChromaPipeline", "ZImagePipeline", "PixArtSigmaPipeline", "QwenImagePipeline",
    "LatentConsistencyModelPipeline", "StableDiffusionPAGPipeline",
}  # fmt: skip
STEPS = 2
#: What a batch may change, as a share of the largest latent, and how often as far an edit moves it.
TOLERANCE, RATIO = 2e-5, 100
#: Of classes whose tiny denoiser is moved less: the batch may change less, too.
TOLERANCES = {"Lumina2Pipeline": 2e-6}

#: The words and prompts of the pair have different numbers of tokens in every tokenizer of letters.
PAIR = continuity.UNEVEN


@dataclass(frozen=True)
class Loaded:
    name: str
    pipeline: Any
    family: Family
    size: int
    built: Any

    @cached_property
    def empty(self) -> Conditioning:
        with torch.inference_mode():
            return self.family.empty(self.pipeline)

    @cached_property
    def encoded(self) -> Mapping[str, Conditioning]:
        return self.generator(GUIDED).encode(continuity.TEXTS)

    def generator(self, guidance: float) -> Generator:
        return Generator(
            self.pipeline, steps=STEPS, guidance=guidance, size=self.size, empty=self.empty
        )


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in zoo.ZOO],
)
def loaded(request, tmp_path_factory) -> Iterator[Loaded]:
    """A pipeline as a run loads it: every check of the folder allows what the class saves."""
    if not hasattr(diffusers, request.param):
        pytest.skip(f"needs a diffusers that has {request.param}")
    with pytest.MonkeyPatch.context() as patch:
        zoo.shorten(patch, request.param)
        folder = tmp_path_factory.mktemp("zoo") / request.param
        built = zoo.build(request.param)
        built.save_pretrained(folder)
        source = find_pipeline(str(folder), dtype="float32")
        pipeline = load_pipeline(source, device="cpu", dtype="float32")
        size = zoo.SIZES.get(request.param, zoo.SIZE)
        yield Loaded(request.param, pipeline, family_of(pipeline), size, built)


def test_every_class_of_the_table_is_tested():
    assert zoo.ZOO.keys() == FAMILIES.builtin.keys() >= ROWS.keys()
    assert zoo.ZOO.keys() > FAST
    assert len(zoo.ZOO) >= 33


def edit_of(encoded: Mapping[str, Conditioning]) -> Edit:
    return edits.edit_of(PAIR, METHODS.get("word"), (), encoded)


def test_a_class_is_carried(loaded, record_property):
    """Its own image at alpha 0; steered ones that differ, alike in any batch and at each call."""
    edit = edit_of(loaded.encoded)
    guided, by_batch, effect = check_images(loaded, edit, GUIDED)
    record_property("batch", by_batch)  # for tools.family_table
    record_property("effect", effect)
    off, *_ = check_images(loaded, edit, 0.0)
    knob = getattr(loaded.family, "knob", None)
    # Of a distilled guidance the tiny networks may make nothing.
    assert knob is None or knob.kind == DISTILLED or not np.array_equal(guided, off)

    # Off is what the class itself calls off: no guidance at 1, or at 0 where it guides below 1.
    if loaded.name not in {*GUIDED_BELOW_1, *UNGUIDED_IS_EMPTY} and knob is not None:
        assert knob.kind == DISTILLED or np.array_equal(off, image_of(loaded, edit.source, 1.0))


def check_images(loaded: Loaded, edit: Edit, guidance: float) -> tuple[Any, float, float]:
    """Check a class at one guidance scale.

    Returns the source prompt's image, and as shares of the largest latent how far a batch and how
    far steering moves an image's latents: at most, and at least.
    """
    family, size = loaded.family, loaded.size
    generator = loaded.generator(guidance)
    sampling = Sampling(STEPS, guidance, size)
    noise = torch.stack([latents_for(PAIR, seed, generator.latent_shape) for seed in (0, 1)])

    # Alpha 0 is the image of the pipeline's own call, and, once, of the pipeline that was saved.
    image = image_of(loaded, edit.source, guidance)
    assert image.shape == (size, size, 3)
    assert image.std() > 1
    for pipeline in (loaded.pipeline, loaded.built)[: 2 if guidance else 1]:
        own = own_image(pipeline, family, sampling, PAIR.source_prompt, noise[0])
        assert_same(image, own)
    # ... and alpha 1 of lerp is that of the target prompt.
    word, lerp = METHODS.get("word"), METHODS.get("lerp")
    target = image_of(loaded, lerp.condition(edit, 1.0), guidance)
    own = own_image(loaded.pipeline, family, sampling, PAIR.target_prompt, noise[0])
    assert_same(target, own)

    # A batch of several numbers of tokens, with another seed's image among them.
    conditionings = [
        word.condition(edit, 0.0), word.condition(edit, 1.0), word.condition(edit, -1.0),
        lerp.condition(edit, 1.0), edit.source, word.condition(edit, 1e-3),
    ]  # fmt: skip
    places = noise[[0, 0, 0, 0, 1, 0]]

    def denoised(chosen: slice) -> torch.Tensor:
        with torch.inference_mode():
            return family.denoise(
                loaded.pipeline, conditionings[chosen], loaded.empty, places[chosen], sampling
            )

    together = denoised(slice(None))
    assert torch.isfinite(together).all()
    alone = denoised(slice(2, 3))
    assert torch.equal(alone, denoised(slice(2, 3)))
    scale = together.abs().max().item()
    pairs = ((alone[0], together[2]), (denoised(slice(4, 5))[0], together[4]))
    by_batch = max((a - b).abs().max().item() / scale for a, b in pairs)
    tolerance = TOLERANCES.get(loaded.name, TOLERANCE)
    assert by_batch <= tolerance

    # What steering moves, and that it begins where the source is.
    moved = [(each - together[0]).abs().max().item() / scale for each in together]
    if loaded.name in UNGUIDED_IS_EMPTY and guidance == 0.0:
        assert max(moved[1:4]) == 0.0
    else:
        assert min(moved[1:4]) >= RATIO * tolerance, (by_batch, moved)
        assert moved[5] <= max(moved[1], moved[3]) / 20
    assert moved[4] > 0.1  # the other seed's
    return image, by_batch, min(moved[1:4])


def assert_same(image: Any, other: Any) -> None:
    """Equal but for values that a float's last digit rounds to the next level."""
    difference = np.abs(image.astype(int) - other)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.01


#: A scale at which every pipeline with guidance guides.
GUIDED = 3.0
#: Pipelines that guide at any scale above 0.
GUIDED_BELOW_1 = {"ZImagePipeline", "Krea2Pipeline"}
#: Pipelines whose guidance scale multiplies the prompt's prediction even below 1: at 0 they draw
#: the negative prompt's image.
UNGUIDED_IS_EMPTY = {"DreamLitePipeline"}


def image_of(loaded: Loaded, made: Conditioning, guidance: float) -> Any:
    """The suite's image of a conditioning, uint8 (size, size, 3)."""
    generator = loaded.generator(guidance)
    noise = latents_for(PAIR, 0, generator.latent_shape)
    return generator.generate([made], noise[None]).images[0]


def own_image(
    pipeline: Any, family: Family, sampling: Sampling, prompt: str, noise: torch.Tensor
) -> Any:
    """The image that diffusers draws by itself, uint8 (size, size, 3)."""
    given: dict[str, Any] = {"latents": noise[None].clone()}
    if isinstance(family, Replay):
        vars(pipeline).update(family.attributes(pipeline, sampling))
        given = {"generator": generator_of(noise)}
    given |= {"num_inference_steps": sampling.steps, **family.arguments(sampling)}
    made = pipeline(
        prompt=prompt, height=sampling.size, width=sampling.size, output_type="np",
        return_dict=False, **given,
    )  # fmt: skip
    return (np.asarray(made[0])[0, :, :, :3] * 255).round().astype(np.uint8)


def test_a_size_that_a_pipeline_rounds_is_refused(loaded):
    """An image of another size than was asked for would be scored as it is."""
    if not isinstance(loaded.family, Replay):
        pytest.skip("its family gives the pipeline latents of the size that was asked for")
    vae = getattr(loaded.pipeline, loaded.family.decoder)
    generator = loaded.generator(GUIDED)
    source = loaded.encoded[PAIR.source_prompt]
    noise = latents_for(PAIR, 0, generator.latent_shape)[None]
    sampling = Sampling(1, 3.0, loaded.size)
    with torch.inference_mode():
        latents = loaded.family.denoise(loaded.pipeline, [source], source, noise, sampling)
        with pytest.raises(ModelError, match=f"{loaded.name}: expected images of 8x8 pixels, got"):
            loaded.family.decode(vae, latents, 8)


def test_images_change_steadily_with_alpha(loaded):
    continuity.check(loaded.pipeline, loaded.family, loaded.size, loaded.encoded)


def test_the_tokens_of_a_word_spell_it(loaded):
    if not isinstance(loaded.family, Replay):
        pytest.skip("its words are found by the tokenizers' offsets")
    continuity.check_words(loaded.pipeline, loaded.family)


def test_text_encoders_can_be_dropped(loaded):
    """All that is needed to denoise was recorded. The last test of a class: it changes it."""
    generator = loaded.generator(GUIDED)
    source = loaded.encoded[PAIR.source_prompt]
    noise = latents_for(PAIR, 0, generator.latent_shape)[None]
    before = generator.generate([source], noise).images
    generator.drop_text_encoders()
    assert np.array_equal(generator.generate([source], noise).images, before)


@pytest.mark.parametrize("method", ["word", "category"])
def test_the_whole_way_to_a_score(tmp_path, make_study, method):
    """Prompts of different token counts in one run: load, encode, steer, generate, score."""
    zoo.build("ZImagePipeline").save_pretrained(tmp_path / "z-image")
    pairs = [PAIR, Pair("color-02", "color", "green", "red", "a green cup", "a red cup")]
    study = make_study(
        model=find_pipeline(str(tmp_path / "z-image"), dtype="float32"), pairs=pairs,
        method=method, seeds=(0,), alphas=(1.0,), size=zoo.SIZE, steps=STEPS,
    )  # fmt: skip
    jobs = study.jobs()
    study.generate(jobs)
    assert study.score(jobs) == len(jobs) == 4
    assert len({study.folder.read_image(job).tobytes() for job in jobs}) == len(jobs)
