"""The judge: its features, its preprocessing against open_clip's own, names it does not know."""

from __future__ import annotations

import json
import random
import re
import shutil

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from analogy.core.errors import ModelError
from analogy.judges.open_clip import Judge, find_judge
from analogy.judges.open_clip_files import preprocessing_layers as _preprocessing
from analogy.models.places import shipped
from analogy.world import Scene, render


@pytest.fixture(scope="module")
def images():
    """Eight drawings, uint8 (8, 64, 64, 3)."""
    return np.stack([render(Scene(color=c), random.Random(c)) for c in ("red", "blue") * 4])


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


# --- features


def test_features_are_unit_vectors(judge, images):
    for features, n in (
        (judge.image_features(images), len(images)),
        (judge.text_features(["a red car", "a blue car", ""]), 3),
    ):
        assert features.dtype == np.float32
        assert features.shape[0] == n
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-5)


def test_an_images_features_do_not_depend_on_its_batch(judge, images):
    whole = judge.image_features(images)
    for batch_size in (1, 3):
        np.testing.assert_allclose(
            judge.image_features(images, batch_size=batch_size), whole, atol=1e-5
        )
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_allclose(judge.image_features(images[order]), whole[order], atol=1e-5)


def test_each_distinct_prompt_is_encoded_once_and_the_order_kept(judge, monkeypatch):
    encoded = []
    tokenize = judge.tokenize

    def spy(texts):
        encoded.extend(texts)
        return tokenize(texts)

    monkeypatch.setattr(judge, "tokenize", spy)
    monkeypatch.setattr(judge, "_texts", {})  # other tests' prompts
    prompts = ["a red car", "two cups", "a red car", "a blue car", "two cups"]
    features = judge.text_features(prompts, batch_size=2)
    assert sorted(encoded) == ["a blue car", "a red car", "two cups"]
    judge.text_features(prompts)
    assert len(encoded) == 3
    for prompt, feature in zip(prompts, features, strict=True):
        judge._texts.clear()
        np.testing.assert_allclose(feature, judge.text_features([prompt])[0], atol=1e-5)


# --- dtype


def test_another_dtype_is_another_judge(judge_source):
    half = judge_source.in_dtype("bfloat16")
    assert half.fingerprint == f"{judge_source.fingerprint}+bfloat16"
    assert half.in_dtype("float16").fingerprint == f"{judge_source.fingerprint}+float16"
    assert half.in_dtype("float32") == judge_source
    assert judge_source.in_dtype("float32") == judge_source


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_in_half_precision_are_float32_near_those_in_float32(
    judge, judge_source, images, dtype
):
    half = Judge(judge_source.in_dtype(dtype), device="cpu")
    assert half.fingerprint.endswith(f"+{dtype}")
    for mine, exact in (
        (half.image_features(images), judge.image_features(images)),
        (half.text_features(["a red car"]), judge.text_features(["a red car"])),
    ):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(mine, axis=1), 1.0, atol=1e-5)
        assert (mine * exact).sum(axis=1).min() > 1 - 1e-3
        assert not np.allclose(mine, exact, atol=1e-5)  # it did compute in another dtype


# --- preprocessing


@pytest.mark.parametrize(
    ("width", "height"),
    [(64, 64), (100, 80), (80, 100), (50, 40), (512, 512), (1024, 1024), (1024, 768)],
)
def test_images_of_any_size_score_as_with_open_clips_own_transform(judge, images, width, height):
    rng = np.random.default_rng(0)
    pictures = np.stack([resized(image, width, height) for image in images[:2]])
    pictures = np.concatenate([pictures, rng.integers(0, 256, (1, height, width, 3), np.uint8)])
    config = open_clip.get_model_preprocess_cfg(judge._model)
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    tensors = torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
    with torch.inference_mode():
        expected = judge._model.encode_image(tensors, normalize=True).numpy()
    cosines = (judge.image_features(pictures) * expected).sum(axis=1)
    assert cosines.min() > 1 - 1e-3


@pytest.mark.parametrize(
    ("mode", "shape"), [("shortest", (1, 3, 32, 32)), ("squash", (1, 3, 32, 32))]
)
def test_resize_modes(mode, shape):
    """A picture whose left half is black: squashed both halves are there, cropped to the middle
    three quarters of it.
    """
    config = {"size": 32, "mean": [0.0] * 3, "std": [1.0] * 3, "resize_mode": mode}
    picture = torch.zeros(1, 3, 40, 80, dtype=torch.uint8)
    picture[..., 20:60] = 255
    tensor = _preprocessing(config)(picture)
    assert tensor.shape == shape
    assert tensor.mean().item() == pytest.approx(1.0 if mode == "shortest" else 0.5, abs=0.03)


def test_a_resize_mode_that_is_not_supported_is_refused():
    config = {"size": 32, "mean": [0.0] * 3, "std": [1.0] * 3, "resize_mode": "longest"}
    with pytest.raises(ModelError, match="resize_mode 'shortest' or 'squash', got 'longest'"):
        _preprocessing(config)


# --- finding


def test_the_embedded_judge_is_found(judge_source):
    assert judge_source.name.startswith("local-dir:")
    assert judge_source.pretrained is None
    assert re.fullmatch(r"clip-tiny@sha256:[0-9a-f]{16}", judge_source.fingerprint)


def test_a_name_with_its_weights_is_found():
    source = find_judge("ViT-B-32", "laion2b_s34b_b79k")
    assert (source.name, source.pretrained) == ("ViT-B-32", "laion2b_s34b_b79k")
    assert source.fingerprint == "ViT-B-32/laion2b_s34b_b79k"


def cached(home, repository: str, file: str, commit: str) -> None:
    """Put a file where the hub's library looks for what it fetched."""
    folder = home / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / file).touch()


def test_a_hub_judge_is_known_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef" + "0" * 24
    cached(tmp_path, "someone/model", "open_clip_model.safetensors", commit)
    folder = tmp_path / "models--someone--model" / "snapshots" / commit
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        shutil.copy(shipped("models/clip-tiny") / name, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    del config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    source = find_judge("hf-hub:someone/model", None, offline=True)
    assert source.name == "hf-hub:someone/model"
    assert source.fingerprint == "hf-hub:someone/model@0123456789ab"
    assert source.snapshot == folder


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_judge_that_is_not_here_says_how_to_fetch_it(offline):
    with pytest.raises(ModelError, match=r"not on this machine.*: hf download no-such/judge"):
        find_judge("hf-hub:no-such/judge", None, offline=offline)


def test_a_tags_weights_are_found_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached(
        tmp_path, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors", "01234567"
    )
    source = find_judge("ViT-B-32", "laion2b_s34b_b79k", offline=True)
    assert source.fingerprint == "ViT-B-32/laion2b_s34b_b79k"


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_a_pickled_judge_is_refused(tmp_path, suffix):
    weights = tmp_path / f"open_clip_pytorch_model{suffix}"
    weights.touch()
    (tmp_path / "open_clip_config.json").write_text("{}")
    for given in ((str(tmp_path), None), ("ViT-B-32", str(weights))):
        with pytest.raises(ModelError, match="a pickle runs whatever code is in it"):
            find_judge(*given)


def test_an_unknown_name_brings_near_ones():
    with pytest.raises(ModelError, match=r"--clip-model 'ViT-B-23': .* such as .*ViT-B-32"):
        find_judge("ViT-B-23", None)


def test_a_name_like_no_other_brings_an_example():
    with pytest.raises(ModelError, match=r"one of open_clip's \d+ names, such as ViT-B-32$"):
        find_judge("§§§", None)


def test_a_path_in_an_unknown_home_is_a_name_like_another():
    with pytest.raises(ModelError, match="--clip-model '~nobody/clip': expected"):
        find_judge("~nobody/clip", None)


@pytest.mark.parametrize("tag", [None, "laion2b"])
def test_unknown_weights_bring_the_known_ones(tag):
    with pytest.raises(ModelError, match=r"--clip-pretrained .* for ViT-B-32: .*laion2b_s34b_b79k"):
        find_judge("ViT-B-32", tag)


def test_weights_may_be_a_file(tmp_path):
    weights = tmp_path / "mine.safetensors"
    save_file({"logit_scale": torch.ones(())}, weights)
    source = find_judge("ViT-B-32", str(weights))
    assert source.pretrained == str(weights)
    assert re.fullmatch(r"ViT-B-32/mine@sha256:[0-9a-f]{16}", source.fingerprint)


def test_a_folder_that_is_no_judge(tmp_path):
    with pytest.raises(ModelError, match=r"in open_clip's format, with open_clip_config\.json"):
        find_judge(str(tmp_path), None)
