"""Pipelines that are carried by replay as models of an evaluation."""

from __future__ import annotations

import pytest
import zoo
from broken import save
from evaluated import BRIGHT
from safetensors.torch import load_file

from analogy.core.errors import FieldError, ModelError
from analogy.evaluation import EvaluationAgent, TaskError
from analogy.evaluation.subjects import Model

EXACT = ("FluxPipeline", "ZImagePipeline")


def check_model(name, make_task, tmp_path, prompts):
    """Evaluate a class in memory and as a folder: the pipeline, and both values."""
    pipeline = zoo.build(name)
    pipeline.save_pretrained(tmp_path / "model")
    size = zoo.SIZES.get(name, zoo.SIZE)
    agent = EvaluationAgent(
        make_task([BRIGHT], prompts, seeds=(0,), steps=1, size=size, guidance=1.5)
    )
    in_memory = agent.evaluate(pipeline)["brightness"]
    folder = agent.evaluate(str(tmp_path / "model"))["brightness"]
    assert in_memory.n == folder.n == len(prompts)
    assert folder.value > 0
    return pipeline, in_memory.value, folder.value


@pytest.mark.parametrize("name", EXACT)
def test_a_pipeline_is_a_model_in_memory_and_as_a_folder(name, make_task, tmp_path):
    prompts = ["a red car", "two blue cups"]
    pipeline, in_memory, folder = check_model(name, make_task, tmp_path, prompts)
    assert in_memory == folder
    other = make_task([BRIGHT], ["a red car"], seeds=(0,), steps=1, size=zoo.SIZE, guidance=1.5)
    assert EvaluationAgent(other).evaluate(pipeline)["brightness"].value != folder


# diffusers' own, in Chroma and PRX.
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(zoo.ZOO.keys() - set(EXACT)))
def test_every_other_class_is_a_model(name, make_task, tmp_path):
    """A float's last digit may round a pixel to the next of the 256 levels."""
    _, in_memory, folder = check_model(name, make_task, tmp_path, ["a red car"])
    assert in_memory == pytest.approx(folder, abs=0.01)


@pytest.fixture
def flux(tmp_path):
    """A tiny FLUX.1, its folder without the transformer's weights, and two files of weights."""
    pipeline = zoo.build("FluxPipeline")
    pipeline.save_pretrained(tmp_path / "flux")
    own = tmp_path / "own.safetensors"
    (tmp_path / "flux" / "transformer" / "diffusion_pytorch_model.safetensors").rename(own)
    tune = tmp_path / "tune.safetensors"
    save({key: 1.1 * tensor for key, tensor in load_file(own).items()}, tune)
    return pipeline, str(tmp_path / "flux"), own, tune


def test_a_transformer_in_a_file_of_its_own_is_the_models(flux, make_task, tmp_path):
    pipeline, folder, own, tune = flux

    def task(**settings):
        return make_task(
            [BRIGHT], ["a red car"], seeds=(0,), steps=1, size=zoo.SIZE, guidance=1.5, **settings
        )

    with pytest.raises(ModelError, match=r"expected the part.s weights as \.safetensors"):
        EvaluationAgent(task()).evaluate(folder)
    plain = EvaluationAgent(task()).evaluate(pipeline)
    given = EvaluationAgent(task(transformer=str(own))).evaluate(folder)
    assert given["brightness"].value == plain["brightness"].value
    fingerprint = given["brightness"].models["model"]
    assert "+own@sha256:" in fingerprint

    # Another file is another model, compared with the first one's images.
    other = task(transformer=tune)
    first = Model(folder, task(transformer=own)).folder
    compared = EvaluationAgent(other).compare(first, folder)
    assert compared["brightness"].value_a == given["brightness"].value
    assert compared["brightness"].value_b != given["brightness"].value
    assert "+tune@sha256:" in compared["brightness"].models["b"]


def test_a_pipeline_in_memory_has_a_transformer_of_its_own(flux, make_task):
    pipeline, _, own, _ = flux
    task = make_task([BRIGHT], ["a red car"], transformer=own)
    with pytest.raises(TaskError, match="transformer: expected a model by name or files with it"):
        EvaluationAgent(task).evaluate(pipeline)


@pytest.mark.parametrize("given", ["", "a\0b"])
def test_a_transformer_that_is_no_path_is_refused(given, make_task):
    with pytest.raises(FieldError, match="transformer: expected"):
        make_task([BRIGHT], ["a red car"], transformer=given)
