"""Pipelines of diffusers that the suite is not tested with."""

from __future__ import annotations

import json

import pytest
import torch
import zoo

from analogy.core.errors import ModelError
from analogy.models.families import FAMILIES, family_of
from analogy.models.loading import load_pipeline
from analogy.models.replay import Replay
from analogy.models.sources import find_pipeline
from analogy.models.untested import check_untested, family_named

NAME = "ChromaPipeline"
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


@pytest.fixture
def untested(monkeypatch):
    """As if the suite had no row of a class that it has."""
    monkeypatch.delitem(FAMILIES.builtin, NAME)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("untested") / "model"
    zoo.build(NAME).save_pretrained(path)
    return path


def loaded(folder):
    return load_pipeline(find_pipeline(str(folder), dtype="float32"), device="cpu", dtype="float32")


def test_another_class_runs_with_a_warning_that_names_it(untested, folder):
    with pytest.warns(UserWarning, match=f"^{NAME} is not among the pipelines that .* tested with"):
        pipeline = loaded(folder)
    family = family_of(pipeline)
    assert isinstance(family, Replay)
    assert family.pipeline == NAME
    made = family.encode(pipeline, ["a red car"])[0]
    assert any(states.abs().max() > 0 for states in made.states.values())


def test_one_whose_prompt_changes_nothing_is_refused(untested, folder):
    pipeline = zoo.build(NAME)
    with torch.no_grad():
        pipeline.transformer.proj_out.weight.zero_()
        pipeline.transformer.proj_out.bias.zero_()
    with pytest.raises(ModelError, match="does not change its image"):
        check_untested(pipeline, family_named(NAME))


def test_one_whose_image_is_not_reproduced_is_refused(untested, folder, monkeypatch):
    pipeline = zoo.build(NAME)
    family = family_named(NAME)
    denoise = family.denoise
    monkeypatch.setattr(family, "denoise", lambda *given: denoise(*given) + 1.0)
    with pytest.raises(ModelError, match="its own image was not reproduced"):
        check_untested(pipeline, family)


def test_one_whose_call_needs_more_than_a_prompt_is_refused(untested, monkeypatch):
    pipeline = zoo.build(NAME)

    def check_inputs(*_, **__):
        raise ValueError("`image` is missing")

    monkeypatch.setattr(pipeline, "check_inputs", check_inputs, raising=False)
    with pytest.raises(ModelError, match=r"an image of a prompt alone, got .*image"):
        check_untested(pipeline, family_named(NAME))


@pytest.mark.parametrize(
    "name", ["FluxKontextPipeline", "ZImageOmniPipeline", "SanaPAGPipeline", "LattePipeline"]
)
def test_parts_are_of_declared_classes_alone(name, monkeypatch):
    """Whatever a class is, no part of it may be of a base class, from any library but these two."""
    monkeypatch.delitem(FAMILIES.builtin, name, raising=False)
    try:
        family = family_named(name)
    except ModelError:
        return  # refused as a whole
    for classes in family.parts.values():
        for each in classes:
            library, _, kind = each.partition(".")
            assert library in ("diffusers", "transformers", "stable_diffusion")
            assert kind not in ("PreTrainedModel", "ModelMixin", "AutoModel", "AutoTokenizer")


def test_a_stranger_cannot_name_a_module(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "os.pathPipeline"}))
    with pytest.raises(ModelError, match="has no such pipeline"):
        find_pipeline(str(tmp_path), dtype="float32")
