"""Nothing runs on weights that its files do not have, and what is broken is said before any image.

Each of these once ran to an ordinary verdict, or ended in a traceback.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from broken import DEEP, LFS, save
from safetensors.torch import load_file
from tiny import MODELS, build, original_format
from transformers import T5Config, T5EncoderModel

from analogy.core.errors import ModelError
from analogy.models.fingerprints import write_checksums
from analogy.models.folders import native_size
from analogy.models.loading import load_pipeline
from analogy.models.networks import load_network
from analogy.models.sources import find_pipeline

PARTS = [(name, part) for name in MODELS for part in ("denoiser", "vae", "text_encoder")]


def load(folder: Path | str, **more):
    source = find_pipeline(str(folder), dtype="float32", offline=True, **more)
    return load_pipeline(source, device="cpu", dtype="float32")


def weights_of(folder: Path, part: str) -> Path:
    if part == "denoiser":
        part = "unet" if (folder / "unet").is_dir() else "transformer"
    (file,) = (folder / part).glob("*.safetensors")
    return file


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each family, made once."""
    root = tmp_path_factory.mktemp("saved")
    for name in MODELS:
        build(name).save_pretrained(root / name)
    return root


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of one, to be broken."""
    return lambda name: Path(shutil.copytree(saved / name, tmp_path / name))


# --- parts of a pipeline


@pytest.mark.parametrize(("name", "part"), PARTS)
@pytest.mark.parametrize("how", ["missing", "unexpected", "of another shape"])
def test_a_key_that_is_odd_is_named_with_its_part(folder, name, part, how):
    place = folder(name)
    file = weights_of(place, part)
    state = load_file(file)
    key = sorted(state)[len(state) // 2]
    if how == "missing":
        del state[key]
    elif how == "unexpected":
        key = "more.weight"
        state[key] = torch.zeros(2)
    else:
        state[key] = torch.zeros(3, 5)
    save(state, file)
    with pytest.raises(ModelError) as refusal:
        load(place)
    said = str(refusal.value)
    assert str(file.parent) in said
    assert key.removeprefix("text_model.") in said


@pytest.mark.parametrize("name", MODELS)
def test_whole_folders_load_as_diffusers_loads_them(saved, name):
    mine = load(saved / name)
    theirs = getattr(diffusers, type(mine).__name__).from_pretrained(
        saved / name, **({"text_encoder_3": None, "tokenizer_3": None} if name == "sd3" else {})
    )
    for part, network in mine.components.items():
        if isinstance(network, torch.nn.Module):
            own, other = network.state_dict(), theirs.components[part].state_dict()
            assert own.keys() == other.keys()
            assert all(torch.equal(own[key], other[key]) for key in own)
            assert not network.training


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_a_buffer_that_older_versions_saved_is_harmless(folder, part):
    place = folder("sdxl")
    file = weights_of(place, part)
    state = load_file(file)
    prefix = "text_model." if any(key.startswith("text_model.") for key in state) else ""
    save(state | {f"{prefix}embeddings.position_ids": torch.arange(32)[None]}, file)
    assert load(place)


def test_tied_weights_are_saved_once_and_harmless(tmp_path):
    settings = T5Config(
        vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    T5EncoderModel(settings).save_pretrained(tmp_path)
    assert load_network(T5EncoderModel, tmp_path, dtype=torch.float32, variant=None)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.final_layer_norm.weight"]
    save(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing: encoder\.final_layer_norm\.weight"):
        load_network(T5EncoderModel, tmp_path, dtype=torch.float32, variant=None)


def test_a_shard_that_lacks_what_its_index_lists(folder):
    place = folder("sdxl")
    pipeline = build("sdxl")
    shutil.rmtree(place / "unet")
    pipeline.unet.save_pretrained(place / "unet", max_shard_size="500KB")
    shards = sorted((place / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert load(place)
    state = load_file(shards[1])
    lost = state.popitem()[0]
    save(state, shards[1])
    with pytest.raises(ModelError, match=rf"unet: .* missing: {re.escape(lost)}"):
        load(place)
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"unet: expected the shards .* no {shards[1].name}"):
        find_pipeline(str(place), dtype="float32")


@pytest.mark.parametrize("part", ["denoiser", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS, r"pointer of git-lfs.*git -C \S+ lfs pull"),
        (None, "not a safetensors file, or not all of one"),  # cut off
        (b"", "not a safetensors file"),
        (b"\xff" * 40, "not a safetensors file"),
    ],
)
def test_weights_that_are_not_whole_are_said_when_they_are_found(folder, part, content, said):
    place = folder("sd1")
    file = weights_of(place, part)
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    with pytest.raises(ModelError, match=rf"{re.escape(str(file))}: .*{said}"):
        find_pipeline(str(place), dtype="float32")
    file.unlink()
    with pytest.raises(ModelError, match=rf"{re.escape(str(file.parent))}: expected the part's"):
        find_pipeline(str(place), dtype="float32")


@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
             "scheduler/scheduler_config.json"],
)  # fmt: skip
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b'"x"', b"null", b"\xff{}", b"NaN", DEEP, LFS]
)
def test_a_configuration_that_is_broken_is_named(folder, file, content):
    place = folder("sd1")
    (place / file).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{re.escape(str(place / file))}: expected ") as refusal:
        find_pipeline(str(place), dtype="float32")
    assert len(str(refusal.value)) < 1000
    (place / file).unlink()
    with pytest.raises(ModelError, match=re.escape(str(place / Path(file).parent))):
        find_pipeline(str(place), dtype="float32")


@pytest.mark.parametrize(
    ("part", "value"),
    [("unet", "x"), ("unet", ["diffusers"]), ("unet", {}), ("unet", [1, 2]), ("vae", None),
     ("scheduler", ["diffusers", "NoSuchScheduler"]), ("unet", ["diffusers", "NoSuchUNet"]),
     ("text_encoder", ["no_such_library", "X"])],
)  # fmt: skip
def test_an_index_whose_parts_are_not_parts(folder, part, value):
    place = folder("sd1")
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | {part: value}))
    with pytest.raises(ModelError, match=re.escape(str(place))):
        load(place)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("unet/config.json", {"block_out_channels": "x"}),
        ("unet/config.json", {"cross_attention_dim": -1}),
        ("vae/config.json", {"down_block_types": ["NoSuchBlock"]}),
        ("text_encoder/config.json", {"hidden_size": "wide"}),
        ("text_encoder/config.json", {"num_hidden_layers": 1}),
        ("unet/config.json", {"layers_per_block": 2}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "nonsense"}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "long"}),
    ],
)
def test_settings_that_a_network_cannot_have(folder, file, settings):
    """Or that it could, but not with the weights beside it."""
    place = folder("sd1")
    old = json.loads((place / file).read_text())
    (place / file).write_text(json.dumps(old | settings))
    with pytest.raises(ModelError, match=re.escape(str(place))):
        load(place)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("unet/config.json", {"sample_size": value})
        for value in (None, "64", 0, -1, 1e999, [64, 64], 10**9, {})
    ]
    + [("vae/config.json", {"block_out_channels": value}) for value in (None, [], 3, [1] * 2000)],
)
def test_a_size_that_no_model_has(folder, file, settings):
    place = folder("sd1")
    (place / file).write_text(json.dumps(json.loads((place / file).read_text()) | settings))
    with pytest.raises(ModelError, match=rf"{re.escape(str(place / file))}: expected .*--size"):
        native_size(place)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\xff\xfe", "expected lines of sha256sum"),
        (b"nonsense", r"SHA256SUMS, line 1: expected '<64 hex digits>"),
        (b"0" * 64 + b"  ../../etc/passwd", "line 1: expected"),
        (b"0" * 64 + b"  /etc/passwd", "line 1: expected"),
        (b"0" * 64 + b"  vae", "got no such file"),
    ],
)
def test_checksums_that_are_broken_are_named(folder, line, said):
    place = folder("sd1")
    (place / "SHA256SUMS").write_bytes(line + b"\n")
    with pytest.raises(ModelError, match=said):
        find_pipeline(str(place), dtype="float32")


def test_checksums_as_other_tools_write_them(folder):
    place = folder("sd1")
    write_checksums(place)
    sums = (place / "SHA256SUMS").read_bytes()
    (place / "SHA256SUMS").write_bytes(sums.replace(b"  ", b" *").replace(b"\n", b"\r\n"))
    assert find_pipeline(str(place), dtype="float32")


# --- a single file


@pytest.fixture
def single(saved, tmp_path):
    """A checkpoint of one file, beside its configuration; write it with these changes."""
    place = shutil.copytree(
        saved / "sd1", tmp_path / "mine", ignore=shutil.ignore_patterns("*.safetensors")
    )
    state = original_format(build("sd1"))

    def write(without: str = "-", **more: torch.Tensor) -> Path:
        kept = {key: tensor for key, tensor in state.items() if not key.startswith(without)}
        save(kept | more, place.with_suffix(".safetensors"))
        return place.with_suffix(".safetensors")

    return write


@pytest.mark.parametrize(
    ("prefix", "part", "keys"),
    [
        ("model.diffusion_model.out.2.weight", "unet", r"missing: conv_out\.weight;"),
        ("model.diffusion_model.", "unet", "missing: .* and 2.. more"),
        ("first_stage_model.encoder.conv_in.weight", "vae", r"missing: encoder\.conv_in\.weight;"),
        ("first_stage_model.", "vae", "missing: "),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.weight", "text_encoder",
            r"missing: .*final_layer_norm\.weight;",
        ),
        ("cond_stage_model.", "CLIPTextModel", "missing"),
    ],
)  # fmt: skip
def test_a_single_file_that_lacks_keys(single, prefix, part, keys):
    assert load(single())
    with pytest.raises(ModelError, match=rf"mine\.safetensors: .*{part}.*{keys}"):
        load(single(prefix))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model.diffusion_model.out.2.weight", r"unet .*another shape: conv_out\.weight"),
        ("model.diffusion_model.input_blocks.9.0.weight", r"unet .*unexpected: .*blocks\.9\.0"),
        ("first_stage_model.quant_conv.weight", r"vae .*another shape: quant_conv\.weight"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "final_layer_norm"),
    ],
)
def test_a_single_file_with_keys_of_another_network(single, key, said):
    with pytest.raises(ModelError, match=rf"mine\.safetensors: .*{said}"):
        load(single(**{key: torch.zeros(3, 3)}))


def test_a_single_files_other_contents_are_no_ones_weights(single):
    position = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert load(single(alphas_cumprod=torch.ones(3), **{position: torch.arange(32)[None]}))


@pytest.mark.parametrize("file", ["unet/config.json", "tokenizer/tokenizer_config.json"])
def test_a_single_files_fingerprint_is_of_its_configuration_too(single, file):
    mine = single()
    before = find_pipeline(str(mine), dtype="float32", offline=True).fingerprint
    (mine.with_suffix("") / "notes.json").write_text("{}")  # no part of it
    assert find_pipeline(str(mine), dtype="float32", offline=True).fingerprint == before
    place = mine.with_suffix("") / file
    place.write_text(json.dumps({**json.loads(place.read_text()), "more": 1}))
    assert find_pipeline(str(mine), dtype="float32", offline=True).fingerprint != before


# --- parts of different models


def test_parts_that_are_whole_and_do_not_fit_each_other(folder):
    place = folder("sd1")
    wide = build("sdxl").unet  # takes 64 channels of text
    shutil.rmtree(place / "unet")
    wide.save_pretrained(place / "unet")
    with pytest.raises(ModelError, match=r"expected text of 64 channels.* got 32"):
        load(place)
