"""Every pipeline class that is carried by replay, from a saved folder to images.

Tolerances: a pipeline's own image within 2/255; what depends on the batch within 2e-5 of the
largest latent. An edit moves latents at least a hundred times as far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from analogy.models.families import Sampling, family_of
from analogy.models.generator import Generator, latents_for
from analogy.models.loading import load_pipeline
from analogy.models.replay import Replay, generator_of
from analogy.models.replay_table import ROWS
from analogy.models.sources import find_pipeline
from analogy.steering.base import METHODS
from analogy.steering.conditioning import Conditioning, Edit

# diffusers' own, in Chroma.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

#: The classes that are tested by default: one or two of each kind of encoder and of latents.
FAST = {
    "FluxPipeline", "ChromaPipeline", "ZImagePipeline", "PixArtSigmaPipeline", "QwenImagePipeline",
    "LatentConsistencyModelPipeline",
}  # fmt: skip
STEPS = 2
#: What a batch may change, as a share of the largest latent. An edit moves latents by at least a
#: hundred times what the batch was seen to change.
TOLERANCE, ROUNDING, RATIO = 2e-5, 2e-6, 100

#: The words and prompts of the pair have different numbers of tokens in every tokenizer of letters.
PAIR = Pair("color-01", "color", "red", "blue", "a red car", "a blue car")


@dataclass(frozen=True)
class Loaded:
    name: str
    pipeline: Any
    family: Replay
    size: int

    def generator(self, guidance: float) -> Generator:
        return Generator(self.pipeline, steps=STEPS, guidance=guidance, size=self.size)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in zoo.ZOO],
)
def loaded(request, tmp_path_factory) -> Loaded:
    """A pipeline as a run loads it: every check of the folder allows what the class saves."""
    if not hasattr(diffusers, request.param):
        pytest.skip(f"needs a diffusers that has {request.param}")
    folder = tmp_path_factory.mktemp("zoo") / request.param
    zoo.build(request.param).save_pretrained(folder)
    source = find_pipeline(str(folder), dtype="float32")
    pipeline = load_pipeline(source, device="cpu", dtype="float32")
    family = family_of(pipeline)
    assert isinstance(family, Replay)
    return Loaded(request.param, pipeline, family, zoo.SIZES.get(request.param, zoo.SIZE))


def test_every_class_of_the_table_is_tested():
    assert zoo.ZOO.keys() == ROWS.keys()
    assert zoo.ZOO.keys() > FAST


def edit_of(encoded: Mapping[str, Conditioning]) -> Edit:
    return edits.edit_of(PAIR, METHODS.get("word"), (), encoded)


@pytest.mark.parametrize("guidance", [3.0, 0.0])
def test_a_class_is_carried(loaded, guidance):
    """Its own image at alpha 0; steered ones that differ, alike in any batch and at each call."""
    family, size = loaded.family, loaded.size
    generator = loaded.generator(guidance)
    sampling = Sampling(STEPS, guidance, size)
    edit = edit_of(generator.encode([PAIR.source_prompt, PAIR.target_prompt, "red", "blue"]))
    noise = torch.stack([latents_for(PAIR, seed, generator.latent_shape) for seed in (0, 1)])

    # Alpha 0 is the image of the pipeline's own call.
    image = generator.generate([edit.source], noise[:1]).images[0]
    own = own_image(loaded, sampling, PAIR.source_prompt, noise[0])
    assert image.shape == own.shape == (size, size, 3)
    assert image.std() > 1
    assert np.abs(image / 255 - own).max() <= 2 / 255
    # ... and alpha 1 of lerp is that of the target prompt.
    word, lerp, random = (METHODS.get(name) for name in ("word", "lerp", "random"))
    target = generator.generate([lerp.condition(edit, 1.0)], noise[:1]).images[0]
    own = own_image(loaded, sampling, PAIR.target_prompt, noise[0])
    assert np.abs(target / 255 - own).max() <= 2 / 255

    # A batch of several numbers of tokens, with another seed's image among them.
    conditionings = [
        word.condition(edit, 0.0), word.condition(edit, 1.0), random.condition(edit, 1.0),
        lerp.condition(edit, 1.0), edit.source, word.condition(edit, 1e-5),
    ]  # fmt: skip
    places = noise[[0, 0, 0, 0, 1, 0]]

    def denoised(chosen: slice) -> torch.Tensor:
        with torch.inference_mode():
            return family.denoise(
                loaded.pipeline, conditionings[chosen], edit.source, places[chosen], sampling
            )

    together = denoised(slice(None))
    assert torch.isfinite(together).all()
    assert torch.equal(together, denoised(slice(None)))
    scale = together.abs().max().item()
    by_batch = max(
        (denoised(slice(i, i + 1))[0] - together[i]).abs().max().item() / scale for i in (0, 2, 4)
    )
    assert by_batch <= TOLERANCE

    # What steering moves, and that it begins where the source is.
    moved = [(each - together[0]).abs().max().item() / scale for each in together]
    if loaded.name in UNGUIDED_IS_EMPTY and guidance == 0.0:
        assert max(moved[1:4]) == 0.0
    else:
        assert min(moved[1:4]) >= RATIO * max(by_batch, ROUNDING), (by_batch, moved)
        assert moved[5] <= min(moved[1:4]) / 10
    assert moved[4] > 0.1  # the other seed's


#: Pipelines whose guidance scale multiplies the prompt's prediction even below 1: at 0 they draw
#: the negative prompt's image.
UNGUIDED_IS_EMPTY = {"DreamLitePipeline"}


def own_image(loaded: Loaded, sampling: Sampling, prompt: str, noise: torch.Tensor) -> Any:
    """The image that diffusers draws by itself, float (size, size, 3) of 0..1."""
    pipeline, family = loaded.pipeline, loaded.family
    vars(pipeline).update(family.attributes(pipeline, sampling))
    made = pipeline(
        prompt=prompt, generator=generator_of(noise), height=sampling.size, width=sampling.size,
        output_type="np", return_dict=False, **family.arguments(sampling),
    )  # fmt: skip
    return np.asarray(made[0])[0]


def test_a_size_that_a_pipeline_rounds_is_refused(loaded):
    """An image of another size than was asked for would be scored as it is."""
    vae = getattr(loaded.pipeline, loaded.family.decoder)
    generator = loaded.generator(3.0)
    source = generator.encode([PAIR.source_prompt])[PAIR.source_prompt]
    noise = latents_for(PAIR, 0, generator.latent_shape)[None]
    sampling = Sampling(1, 3.0, loaded.size)
    with torch.inference_mode():
        latents = loaded.family.denoise(loaded.pipeline, [source], source, noise, sampling)
        with pytest.raises(ModelError, match=f"{loaded.name}: expected images of 8x8 pixels, got"):
            loaded.family.decode(vae, latents, 8)


def test_images_change_steadily_with_alpha(loaded):
    continuity.check(loaded.pipeline, loaded.family, loaded.size)


def test_the_tokens_of_a_word_spell_it(loaded):
    continuity.check_words(loaded.pipeline, loaded.family)


def test_text_encoders_can_be_dropped(loaded):
    """All that is needed to denoise was recorded. The last test of a class: it changes it."""
    generator = loaded.generator(3.0)
    source = generator.encode([PAIR.source_prompt])[PAIR.source_prompt]
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
