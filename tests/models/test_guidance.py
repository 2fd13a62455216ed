"""Which scale of a pipeline ``--guidance`` and ``--second-guidance`` set."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from analogy.core.errors import OptionError
from analogy.core.text import guidance_text
from analogy.models.families import FAMILIES, Sampling, knobs_of
from analogy.models.replay_table import CFG, ROWS
from analogy.settings.request import RunRequest
from analogy.store.grid import ImageSettings
from analogy.studies import resolve
from analogy.studies.provenance import unusual_guidance

AS_ASKED = {"num_inference_steps": 2}


def arguments(name: str, guidance: float, second: float | None = None) -> dict[str, object]:
    return FAMILIES.get(name).arguments(Sampling(2, guidance, 32, second))


@pytest.mark.parametrize(
    ("name", "guidance", "second", "given"),
    [
        # FLUX.1's own scale is distilled: without the second no negative prompt is encoded.
        ("FluxPipeline", 3.5, None, {"guidance_scale": 3.5}),
        ("FluxPipeline", 3.5, 2.0,
         {"guidance_scale": 3.5, "true_cfg_scale": 2.0, "negative_prompt": ""}),
        ("FluxPipeline", 3.5, 1.0, {"guidance_scale": 3.5, "true_cfg_scale": 1.0}),
        ("QwenImagePipeline", 4.0, None, {"true_cfg_scale": 4.0, "negative_prompt": ""}),
        ("QwenImagePipeline", 1.0, None, {"true_cfg_scale": 1.0}),
        ("QwenImagePipeline", 1.0, 3.0, {"true_cfg_scale": 1.0, "guidance_scale": 3.0}),
        ("HunyuanImagePipeline", 3.5, None, {"negative_prompt": ""}),
        ("HunyuanImagePipeline", 0.0, 3.0, {"distilled_guidance_scale": 3.0}),
        ("ChromaPipeline", 5.0, None, {"guidance_scale": 5.0}),
        ("Flux2KleinKVPipeline", 0.0, None, {}),
        ("StableDiffusion3PAGPipeline", 7.0, 1.5, {"guidance_scale": 7.0, "pag_scale": 1.5}),
    ],
)  # fmt: skip
def test_each_scale_sets_what_the_family_says(name, guidance, second, given):
    assert arguments(name, guidance, second) == {**AS_ASKED, **given}


@pytest.mark.parametrize(("guidance", "enabled"), [(3.5, True), (1.0, False), (0.0, False)])
def test_a_guider_is_set_and_switched_off(guidance, enabled):
    class Guider:
        def __init__(self) -> None:
            self.config = {"guidance_scale": 9.0, "enabled": True, "momentum": 0.5}

        @staticmethod
        def from_config(config):
            return dict(config)

    family = FAMILIES.get("HunyuanImagePipeline")
    pipeline = SimpleNamespace(guider=Guider(), ocr_guider=None)
    made = family.attributes(pipeline, Sampling(2, guidance, 32))
    expected = {"guidance_scale": guidance, "enabled": enabled, "momentum": 0.5}
    assert made == {"guider": expected}


def test_every_scale_is_an_argument_of_the_call_or_a_part():
    for name in ROWS:
        family = FAMILIES.get(name)
        for knob in knobs_of(family):
            assert knob is None or knob.name == "guider" or knob.name in family._call


def test_defaults_are_those_of_the_call():
    assert FAMILIES.get("FluxPipeline").defaults() == (28, 3.5)
    assert FAMILIES.get("QwenImagePipeline").defaults() == (50, 4.0)
    assert FAMILIES.get("HunyuanImagePipeline").defaults() == (50, 3.5)
    assert FAMILIES.get("DreamLiteMobilePipeline").defaults() == (4, 0.0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("StableDiffusionXLPipeline", None),
        ("ChromaPipeline", None),
        ("FluxPipeline", "guidance_scale, distilled"),
        ("QwenImagePipeline", "true_cfg_scale, classifier-free"),
        ("HunyuanImagePipeline", "guider, classifier-free"),
        ("Flux2KleinKVPipeline", "none: the pipeline has no guidance"),
    ],
)
def test_what_is_not_plain_classifier_free_guidance_is_said(tmp_path, name, said):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    assert unusual_guidance(tmp_path) == said


def test_the_header_says_both_scales():
    assert guidance_text(4.0, None, None) == "guidance 4"
    said = guidance_text(3.5, 2.0, "guidance_scale, distilled")
    assert said == "guidance 3.5 (guidance_scale, distilled), second guidance 2"


def test_the_second_scale_is_in_an_images_key_only_if_it_is_given():
    plain = ImageSettings(8, 4.0, 64, "float32", "Euler/0").subject("m")
    assert "second_guidance" not in plain
    second = ImageSettings(8, 4.0, 64, "float32", "Euler/0", 2.0).subject("m")
    assert second == {**plain, "second_guidance": 2.0}


@pytest.mark.parametrize(
    ("name", "request_", "refused"),
    [
        ("StableDiffusionXLPipeline", RunRequest(second_guidance=2.0), "--second-guidance"),
        ("Flux2KleinKVPipeline", RunRequest(guidance=2.0), "--guidance"),
    ],
)
def test_a_scale_that_a_pipeline_lacks_is_refused(name, request_, refused):
    with pytest.raises(OptionError, match=f"{refused}: expected no such option, since {name}"):
        resolve._check_guidance(request_, FAMILIES.get(name))


def test_scales_that_a_pipeline_has_are_taken():
    resolve._check_guidance(
        RunRequest(guidance=3.0, second_guidance=2.0), FAMILIES.get("FluxPipeline")
    )
    resolve._check_guidance(RunRequest(guidance=0.0), FAMILIES.get("Flux2KleinKVPipeline"))
    assert knobs_of(object()) == (CFG, None)  # a family of another package
