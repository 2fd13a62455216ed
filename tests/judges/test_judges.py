"""Judges run on their own weights, and see images as they were trained to; all else is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from broken import DEEP, LFS, save
from safetensors.torch import load_file

from analogy.core.errors import ModelError
from analogy.judges.open_clip import Judge, find_judge
from analogy.judges.open_clip_files import Preprocessing


@pytest.fixture
def judge_folder(judge_source, tmp_path):
    """A copy of the embedded judge without its checksums."""
    place = Path(judge_source.name.removeprefix("local-dir:"))
    shutil.copytree(place, tmp_path / "judge", ignore=shutil.ignore_patterns("SHA256SUMS"))
    return tmp_path / "judge"


WEIGHTS = "open_clip_model.safetensors"


def test_a_judge_without_its_weights(judge_folder):
    (judge_folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=rf"{re.escape(str(judge_folder))}: expected .*weights"):
        find_judge(str(judge_folder), None)


@pytest.mark.parametrize("content", [LFS, b"", b"\xff" * 40, None])
def test_a_judge_whose_weights_are_not_whole(judge_folder, content):
    file = judge_folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    with pytest.raises(ModelError, match=re.escape(str(file))):
        find_judge(str(judge_folder), None)


@pytest.mark.parametrize("how", ["missing", "unexpected", "of another shape", "stretched"])
@pytest.mark.parametrize("key", ["text_projection", "positional_embedding", "visual.conv1.weight"])
def test_a_judges_key_that_is_odd_is_named(judge_folder, how, key):
    file = judge_folder / WEIGHTS
    state = load_file(file)
    if how == "missing":
        del state[key]
    elif how == "unexpected":
        key = "more.weight"
        state[key] = torch.zeros(2)
    elif how == "stretched":  # open_clip interpolates positions of another context length
        state[key] = torch.cat([state[key]] * 2)
    else:
        state[key] = torch.zeros(3, 5)
    save(state, file)
    named = re.escape(key).replace("positional_embedding", "pos(itional)?_embed")
    with pytest.raises(ModelError, match=named):
        Judge(find_judge(str(judge_folder), None), device="cpu").load()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff{}", DEEP, LFS, b"{}"])
def test_a_judges_configuration_that_is_broken_is_named(judge_folder, content):
    file = judge_folder / "open_clip_config.json"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(str(file))):
        find_judge(str(judge_folder), None)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_judges_preprocessing_is_not_assumed(judge_folder, key):
    file = judge_folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    del config["preprocess_cfg"][key]
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"preprocess_cfg .* found no {key}"):
        find_judge(str(judge_folder), None)
    del config["preprocess_cfg"]
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="preprocess_cfg"):
        find_judge(str(judge_folder), None)


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("model_cfg", {"vision_cfg": []}),
        ("model_cfg", {"embed_dim": 64}),
        ("model_cfg", {"no_such_setting": 1}),
        ("preprocess_cfg", {"interpolation": "magic"}),
        ("preprocess_cfg", {"mean": "grey"}),
    ],
)
def test_a_judges_settings_that_no_network_has(judge_folder, part, settings):
    file = judge_folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config[part] |= settings
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError):
        Judge(find_judge(str(judge_folder), None), device="cpu").load()


@pytest.fixture
def weights(tmp_path):
    """A file that passes for weights until they are loaded."""
    save({"logit_scale": torch.ones(())}, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def test_weights_in_a_file_are_preprocessed_as_all_tags_of_their_architecture(weights):
    usual = find_judge("ViT-B-32", str(weights))
    assert re.fullmatch(r"ViT-B-32/mine@sha256:[0-9a-f]{16}", usual.fingerprint)
    source = find_judge("MobileCLIP-S1", str(weights))
    assert source.preprocessing == Preprocessing((0, 0, 0), (1, 1, 1), "bilinear", "shortest")
    # Their scores are others than those that were computed with open_clip's own values.
    name = r"MobileCLIP-S1/mine@sha256:[0-9a-f]{16}\+[0-9a-f]{8}"
    assert re.fullmatch(name, source.fingerprint)


def test_weights_whose_preprocessing_tags_disagree_about_are_asked_for(weights):
    with pytest.raises(ModelError) as refusal:
        find_judge("ViT-L-14", str(weights))
    said = str(refusal.value)
    assert "mean 0.5/0.5/0.5, std 0.5/0.5/0.5, bicubic, shortest: laion2b_s32b_b82k" in said
    assert "TAG:FILE" in said
    told = find_judge("ViT-L-14", f"laion2b_s32b_b82k:{weights}")
    assert told.preprocessing.mean == (0.5, 0.5, 0.5)
    other = find_judge("ViT-L-14", f"openai:{weights}")
    assert other.preprocessing.mean == (0.48145466, 0.4578275, 0.40821073)
    assert told.fingerprint.startswith(other.fingerprint)
    assert told.fingerprint != other.fingerprint


def test_weights_of_an_architecture_without_tags_are_put_into_a_folder(weights):
    with pytest.raises(ModelError, match=r"open_clip_config\.json, whose preprocess_cfg says mean"):
        find_judge("ViT-S-32", str(weights))


@pytest.mark.parametrize("given", ["notag:{}", "openai:", "openai:/no/such.safetensors"])
def test_a_tag_and_file_that_are_none(weights, given):
    with pytest.raises(ModelError, match="expected a file, TAG:FILE, or one of"):
        find_judge("ViT-L-14", given.format(weights))


def test_a_files_preprocessing_is_what_its_images_go_through(tmp_path):
    import open_clip

    torch.manual_seed(0)
    file = tmp_path / "mine.safetensors"
    save(open_clip.create_model("MobileCLIP-S1").state_dict(), file)
    judge = Judge(find_judge("MobileCLIP-S1", str(file)), device="cpu")
    _, crop, _, normalize = judge._preprocess
    assert (list(normalize.mean), list(normalize.std)) == ([0, 0, 0], [1, 1, 1])
    assert judge._preprocess[0].interpolation.value == "bilinear"
    assert crop.size == [256, 256]


def test_weights_of_another_architecture(tmp_path, judge_folder):
    file = judge_folder / WEIGHTS
    with pytest.raises(ModelError, match="each of its weights"):
        Judge(find_judge("RN50", str(file)), device="cpu").load()


def test_a_tag_that_cannot_be_fetched(monkeypatch, tmp_path):
    """Without --offline, too: once a RuntimeError, and so a failed cell."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="judge ViT-B-32/laion2b_s34b_b79k"):
        Judge(find_judge("ViT-B-32", "laion2b_s34b_b79k"), device="cpu").load()
