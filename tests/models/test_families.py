"""Every family the whole way, from a saved folder to a score, with tiny random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from tiny import MODELS, SIZE, build, original_format

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.models import loading
from analogy.models.families import FAMILIES, family_of
from analogy.models.folders import native_size
from analogy.models.generator import Generator, latents_for
from analogy.models.loading import load_pipeline
from analogy.models.replay_table import ROWS
from analogy.models.sources import find_pipeline
from analogy.steering.base import METHODS

PAIR = Pair("color-01", "color", "red", "blue", "a red car", "a blue car")
STEPS, GUIDANCE = 2, 3.0
SD_PIPELINE = "StableDiffusionPipeline"


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory) -> Path:
    """A saved pipeline of each family."""
    path = tmp_path_factory.mktemp("models") / request.param
    build(request.param).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    """It, as a run loads it."""
    return load_pipeline(find_pipeline(str(folder), dtype="float32"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tiny_generator(loaded):
    return Generator(loaded, steps=STEPS, guidance=GUIDANCE, size=SIZE)


def test_the_native_size_is_read_from_the_folder(folder):
    assert native_size(folder) == SIZE


def test_every_family_is_tested():
    assert {family_of(build(name)).pipeline for name in MODELS} == (
        FAMILIES.builtin.keys() - ROWS.keys()
    )


@pytest.mark.parametrize("guidance", [GUIDANCE, 1.0])
def test_an_image_equals_plain_diffusers(loaded, guidance):
    """The pipeline, asked as its documentation says, gives what the suite gets."""
    generator = Generator(loaded, steps=STEPS, guidance=guidance, size=SIZE)
    encoded = generator.encode([PAIR.source_prompt, PAIR.target_prompt])
    latents = latents_for(PAIR, 0, generator.latent_shape)[None]
    plain = loaded(
        PAIR.source_prompt, latents=latents.clone(), num_inference_steps=STEPS,
        guidance_scale=guidance, height=SIZE, width=SIZE, output_type="np",
    ).images[0]  # fmt: skip
    ours = generator.generate([encoded[PAIR.source_prompt]], latents).images[0]
    assert ours.shape == (SIZE, SIZE, 3)
    assert np.abs(ours / 255 - plain).max() <= 1 / 255
    other = generator.generate([encoded[PAIR.target_prompt]], latents).images[0]
    assert np.abs(ours.astype(int) - other).max() > 1  # the prompt matters


def test_a_twin_draws_the_same(tiny_generator):
    encoded = tiny_generator.encode([PAIR.source_prompt])[PAIR.source_prompt]
    latents = latents_for(PAIR, 0, tiny_generator.latent_shape)[None]
    clone = tiny_generator.clone()
    assert clone._pipeline.scheduler is not tiny_generator._pipeline.scheduler
    for _ in range(2):  # the first's scheduler is in use when the twin begins
        assert np.array_equal(
            clone.generate([encoded], latents).images,
            tiny_generator.generate([encoded], latents).images,
        )


@pytest.mark.parametrize("method", METHODS.builtin)
def test_the_whole_way_to_a_score(folder, make_study, method):
    """A study on the folder: load, encode, steer, generate, score with the embedded judge."""
    pairs = [
        PAIR,
        Pair("color-02", "color", "green", "red", "a green cup", "a red cup"),
    ]
    study = make_study(
        model=find_pipeline(str(folder), dtype="float32"), pairs=pairs, method=method,
        seeds=(0,), alphas=(1.0,), size=SIZE, steps=STEPS,
    )  # fmt: skip
    jobs = study.jobs()
    if method == "activation" and folder.name == "sd3":
        with pytest.raises(ModelError, match="expected a denoiser with cross-attention modules"):
            study.generate(jobs)
        return
    if method == "slider":
        with pytest.raises(ModelError, match=r"--method slider: .*safetensors: .*(fit|belong)"):
            study.generate(jobs)
        return
    study.generate(jobs)
    assert study.score(jobs) == len(jobs) == 4
    assert np.isfinite(study.table().to_numpy()).all()
    images = {study.folder.read_image(job).tobytes() for job in jobs}
    assert len(images) == len(jobs)  # steering moved each


def test_a_step_along_the_difference_ends_at_the_target(tiny_generator):
    """In families without a pooled vector too."""
    encoded = tiny_generator.encode([PAIR.source_prompt, PAIR.target_prompt])
    source, target = encoded[PAIR.source_prompt], encoded[PAIR.target_prompt]
    moved = source.plus(target.minus(source), 1.0)
    assert moved.shapes() == source.shapes()
    assert moved.is_close(target, atol=1e-5)
    assert (not moved.pooled) == (type(tiny_generator._pipeline).__name__ == SD_PIPELINE)


@pytest.mark.parametrize("name", MODELS)
def test_a_part_with_pickled_weights_alone_is_refused(tmp_path, name):
    build(name).save_pretrained(tmp_path / name)
    weights = next((tmp_path / name / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"vae/diffusion_pytorch_model\.bin: expected weights as"):
        find_pipeline(str(tmp_path / name), dtype="float32")


def test_the_safety_checker_is_neither_loaded_nor_asked_about(tmp_path):
    """Its pickled weights, which Stable Diffusion 1 ships beside safetensors, are no reason."""
    build("sd1").save_pretrained(tmp_path / "sd1")
    (tmp_path / "sd1" / "safety_checker").mkdir()
    (tmp_path / "sd1" / "safety_checker" / "pytorch_model.bin").touch()
    source = find_pipeline(str(tmp_path / "sd1"), dtype="float32")
    assert loading.load_pipeline(source, device="cpu", dtype="float32").safety_checker is None


def test_a_single_file_draws_what_its_folder_draws(tmp_path):
    """The layout in which fine-tunes are shared, with the configuration of a folder beside it."""
    pipeline = build("sd1")
    pipeline.save_pretrained(tmp_path / "mine")
    for weights in (tmp_path / "mine").rglob("*.safetensors"):
        weights.unlink()
    save_file(original_format(pipeline), tmp_path / "mine.safetensors")
    source = find_pipeline(str(tmp_path / "mine.safetensors"), dtype="float32", offline=True)
    images = []
    for each in (pipeline, load_pipeline(source, device="cpu", dtype="float32")):
        generator = Generator(each, steps=STEPS, guidance=GUIDANCE, size=SIZE)
        encoded = generator.encode([PAIR.source_prompt])[PAIR.source_prompt]
        latents = latents_for(PAIR, 0, generator.latent_shape)[None]
        images.append(generator.generate([encoded], latents).images)
    assert np.array_equal(*images)
