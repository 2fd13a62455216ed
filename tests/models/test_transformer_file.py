"""A transformer in a file of its own, .safetensors or GGUF: FLUX.1's, with the keys of both."""

from __future__ import annotations

import json
import shutil
import struct
import types

import numpy as np
import pytest
import torch
import verbs
import zoo
from broken import LFS, save
from extras import extra
from flux_names import original
from safetensors.torch import load_file

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.models import gguf_files, sources
from analogy.models.folders import weight_files
from analogy.models.generator import Generator
from analogy.models.libraries import single_file_model
from analogy.models.loading import load_pipeline
from analogy.models.sources import find_pipeline
from analogy.steering.base import METHODS, Row

gguf = extra("gguf")

WIDTH = 32


def write_gguf(state, file, kind="Q8_0"):
    """A GGUF file as those of FLUX are: matrices quantized where they can be, the rest F32."""
    kind = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(file, "flux")
    for key, tensor in state.items():
        values = tensor.numpy()
        if tensor.ndim == 2 and tensor.shape[-1] % 32 == 0:
            values = gguf.quantize(values, kind)
            writer.add_tensor(key, values, raw_dtype=kind)
        else:
            writer.add_tensor(key, values)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rounded(tensor, kind):
    """The values of a tensor as :func:`write_gguf` keeps them."""
    if tensor.ndim != 2 or tensor.shape[-1] % 32:
        return tensor
    kind = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.numpy(), kind), kind))


@pytest.fixture(scope="module", autouse=True)
def tiny_conversion():
    """diffusers' conversion has FLUX's width, 3072, as a constant; here it is the tiny model's."""
    known = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    own = known["checkpoint_mapping_fn"]
    constants = tuple(WIDTH if each == 3072 else each for each in own.__code__.co_consts)
    assert WIDTH in constants
    changed = types.FunctionType(own.__code__.replace(co_consts=constants), own.__globals__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(known, "checkpoint_mapping_fn", changed)
        zoo.shorten(patch, "FluxPipeline")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny FLUX.1 without its transformer's weights."""
    place = tmp_path_factory.mktemp("flux") / "flux"
    zoo.build("FluxPipeline").save_pretrained(place)
    (place / "transformer" / "diffusion_pytorch_model.safetensors").rename(
        place.parent / "own.safetensors"
    )
    return place


@pytest.fixture(scope="module")
def own(folder):
    """The weights of its transformer, in diffusers' format."""
    return load_file(folder.parent / "own.safetensors")


@pytest.fixture(scope="module")
def files(folder, own):
    """The same weights in the formats that are passed around, by what they are called here."""
    made = {"diffusers": folder.parent / "own.safetensors"}
    made |= {name: folder.parent / f"{name}.safetensors" for name in ("original", "comfy")}
    save(original(own), made["original"])
    save({f"model.diffusion_model.{key}": each for key, each in original(own).items()},
         made["comfy"])  # fmt: skip
    for name, state, kind in (
        ("q8", original(own), "Q8_0"), ("f16", original(own), "F16"), ("q8-own", own, "Q8_0"),
        ("bf16", original(own), "BF16"),
    ):  # fmt: skip
        made[name] = folder.parent / f"{name}.gguf"
        write_gguf(state, made[name], kind)
    return made


def loaded(folder, file, dtype="float32", **settings):
    source = find_pipeline(str(folder), dtype=dtype, transformer=str(file))
    return load_pipeline(source, device="cpu", dtype=dtype, **settings)


def image(pipeline, *change):
    """Of one prompt, uint8 (32, 32, 3) as integers. ``change``: a method, and its rows."""
    generator = Generator(pipeline, steps=2, guidance=3.0, size=32)
    noise = torch.randn(1, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    made = generator.encode(["a red car"])["a red car"]
    return generator.generate([made], noise, *change).images[0].astype(int)


@pytest.mark.parametrize("name", ["diffusers", "original", "comfy"])
def test_a_safetensors_file_has_the_weights_of_the_folder(folder, files, own, name):
    weights = loaded(folder, files[name]).transformer.state_dict()
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in own.items())


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        ("q8", "Q8_0", "float32"), ("q8", "Q8_0", "bfloat16"), ("q8-own", "Q8_0", "float32"),
        ("f16", "F16", "float32"), ("bf16", "BF16", "float32"),
    ],
)  # fmt: skip
def test_a_gguf_file_draws_the_image_of_its_rounded_weights(folder, files, own, name, kind, dtype):
    """Held to the same weights, rounded by the package gguf and computed with as ordinary ones."""
    pipeline = loaded(folder, files[name], dtype)
    assert pipeline.transformer.dtype == getattr(torch, dtype)
    quantized = [each for each in pipeline.transformer.parameters() if hasattr(each, "quant_type")]
    assert bool(quantized) == (name != "f16")
    made = image(pipeline)

    plain = loaded(folder, files["diffusers"], dtype)
    unrounded = image(plain)
    plain.transformer.load_state_dict({key: rounded(each, kind) for key, each in own.items()})
    most = 1 if dtype == "float32" else 8  # of 255: each product is rounded to 8 bits
    assert np.abs(made - image(plain)).max() <= most
    assert not np.array_equal(made, unrounded)


def test_a_slider_steers_a_gguf_file_as_its_rounded_weights(folder, files, own, tmp_path):
    drawn, layer = torch.Generator().manual_seed(0), "transformer_blocks.0.attn.to_q"
    key = f"transformer.{layer}.lora"
    state = {f"{key}_A.weight": (2, WIDTH), f"{key}_B.weight": (WIDTH, 2)}
    state = {name: torch.randn(shape, generator=drawn) for name, shape in state.items()}
    save(state, tmp_path / "style.safetensors")
    pair = Pair("color-01", "color", "red", "blue", "a red car", "a blue car")
    change = METHODS.get(f"slider:{tmp_path / 'style.safetensors'}"), [Row(pair, 1.0)]
    pipeline, plain = loaded(folder, files["q8"]), loaded(folder, files["diffusers"])
    plain.transformer.load_state_dict({key: rounded(each, "Q8_0") for key, each in own.items()})
    before, moved = image(pipeline), image(pipeline, *change)
    assert np.abs(moved - before).max() > 5
    assert np.abs(moved - image(plain, *change)).max() <= 1
    assert np.array_equal(image(pipeline), before)


def test_a_gguf_file_can_be_offloaded_but_not_by_layers(folder, files, on_cpu):
    """On a CPU, from the CPU to the CPU: the same image."""
    whole = image(loaded(folder, files["q8"]))
    for offload in ("model", "group"):
        assert np.array_equal(image(loaded(folder, files["q8"], offload=offload)), whole)
    with pytest.raises(
        ModelError, match=r"--offload sequential: .* choose --offload model or group"
    ):
        loaded(folder, files["q8"], offload="sequential")
    assert np.array_equal(image(loaded(folder, files["original"], offload="sequential")),
                          image(loaded(folder, files["original"])))  # fmt: skip


# --- what it is called, and what is read


def test_the_fingerprint_is_of_the_file_and_not_of_weights_in_its_place(folder, files, tmp_path):
    one, other = (
        find_pipeline(str(folder), dtype="float32", transformer=str(files[name]))
        for name in ("q8", "bf16")
    )
    base, _, name = one.fingerprint.partition("+")
    assert name.startswith("q8@sha256:")
    assert other.fingerprint.startswith(f"{base}+bf16@sha256:")
    whole = tmp_path / "flux"
    shutil.copytree(folder, whole)
    shutil.copy(files["diffusers"], whole / "transformer" / "diffusion_pytorch_model.safetensors")
    given = find_pipeline(str(whole), dtype="float32", transformer=str(files["q8"]))
    assert given.fingerprint == one.fingerprint
    assert find_pipeline(str(whole), dtype="float32").fingerprint != base
    read = weight_files(given, dtype="float32")
    assert files["q8"] in read
    assert not [file for file in read if file.parent.name == "transformer"]


def test_a_hub_models_transformer_is_not_downloaded(folder, files, monkeypatch):
    asked = []

    def download(name, **settings):
        asked.append({"name": name, **settings})
        return str(folder)

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    monkeypatch.setattr(sources, "hf_hub_download", lambda *given, **_: asked.append(given))
    monkeypatch.setattr(sources, "_check_hub_index", lambda *_, **__: None)
    find_pipeline("someone/flux", dtype="float32", transformer=str(files["q8"]))
    assert asked[0]["transformer"] is None
    assert asked[1] == ("someone/flux", "transformer/config.json")
    asked.clear()
    with pytest.raises(ModelError, match="found none"):  # the transformer's weights, in this folder
        find_pipeline("someone/flux", dtype="float32")
    assert "transformer" not in asked[0]


# --- refusals


def refused(folder, file, match, dtype="float32"):
    with pytest.raises(ModelError, match=match):
        loaded(folder, file, dtype)


def test_files_of_other_weights_are_refused(folder, files, own, tmp_path):
    file = tmp_path / "a.safetensors"
    theirs = original(own)
    save({"blocks.0.weight": torch.zeros(2), "blocks.1.weight": torch.zeros(2)}, file)
    refused(folder, file, "expected the weights of a FluxTransformer2DModel, .* another architec")
    save({**own, "blocks.0.weight": torch.zeros(2)}, file)
    refused(folder, file, r"unexpected: blocks\.0\.weight")
    save({**theirs, "vae.decoder.weight": torch.zeros(2)}, file)
    refused(folder, file, r"unexpected: vae\.decoder\.weight")
    save({key: each for key, each in own.items() if "x_embedder" not in key}, file)
    refused(folder, file, r"missing: x_embedder\.bias, x_embedder\.weight")
    save({key: each for key, each in theirs.items() if "guidance" not in key}, file)  # schnell's
    refused(folder, file, "missing: time_text_embed.guidance_embedder")
    save({key: each for key, each in theirs.items() if "img_in" not in key}, file)
    refused(folder, file, "without 'img_in.weight'")
    save({**theirs, "img_in.weight": torch.zeros(WIDTH, 8)}, file)
    refused(folder, file, r"of another shape: x_embedder\.weight \(32x8, not 32x16\)")
    lora = "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight"
    save({lora: torch.zeros(2, 32)}, file)
    refused(folder, file, "--transformer .*, got a LoRA; give it with --lora")


def test_gguf_files_of_other_weights_are_refused(folder, files, own, tmp_path):
    file = tmp_path / "a.gguf"
    write_gguf({"blk.0.attn_q.weight": torch.zeros(32, 32)}, file)
    refused(folder, file, "expected the weights of a FluxTransformer2DModel, .* another architec")
    write_gguf({**original(own), "txt_in.bias": torch.zeros(1, 32)}, file)
    refused(folder, file, r"context_embedder\.bias \(1x32, not 32\)")
    file.unlink()
    writer = gguf.GGUFWriter(file, "flux")
    for key, tensor in original(own).items():
        kind = gguf.GGMLQuantizationType.Q8_0 if key == "img_in.bias" else None
        values = tensor.numpy() if kind is None else gguf.quantize(tensor.numpy(), kind)
        writer.add_tensor(key, values, raw_dtype=kind)
    finish(writer)
    refused(folder, file, r"linear layers alone, got quantized x_embedder\.bias")


@pytest.mark.parametrize("name", ["original", "q8"])
def test_files_that_are_not_whole_are_refused(folder, files, tmp_path, name):
    whole = files[name].read_bytes()
    file = tmp_path / files[name].name
    for bytes_of, said in (
        (whole[: len(whole) // 2], "a whole GGUF file|or not all of one"),
        (whole[:100], "a whole GGUF file|or not all of one"),
        (b"", "a whole GGUF file|not a safetensors file"),
        (LFS, "a pointer of git-lfs"),
        (b"PK" + whole, "a whole GGUF file|not a safetensors file"),
    ):
        file.write_bytes(bytes_of)
        refused(folder, file, said)


def test_a_gguf_file_of_endless_counts_is_refused(folder, tmp_path):
    """The package's reader would count to 2**60: nothing is read beyond the file's end."""
    file = tmp_path / "endless.gguf"
    key = struct.pack("<Q1sIIQ", 1, b"a", 9, 0, 2**60)  # an array of 2**60 bytes
    file.write_bytes(struct.pack("<IIQQ", gguf.GGUF_MAGIC, 3, 0, 1) + key)
    refused(folder, file, "bytes, which end within its data")


def test_what_a_transformer_file_cannot_be_combined_with_is_said(folder, files, tmp_path):
    def find(model=folder, transformer="q8", match="", **settings):
        with pytest.raises(ModelError, match=match):
            find_pipeline(
                str(model), dtype="bfloat16", transformer=str(files.get(transformer, transformer)),
                **settings,
            )  # fmt: skip

    find("embedded", match="expected --model with a transformer, .* got a StableDiffusionXL.*unet")
    find(files["original"].with_name("none"), match="expected 'embedded', a folder")
    find(transformer=str(tmp_path), match="expected a .safetensors or .gguf file, got a folder")
    find(transformer=str(tmp_path / "a"), match="got no such file")
    (tmp_path / "a.bin").touch()
    find(transformer=str(tmp_path / "a.bin"), match="weights as .safetensors, found them pickled")
    (tmp_path / "a.txt").touch()
    find(transformer=str(tmp_path / "a.txt"), match="expected a .safetensors or .gguf file")
    find(lora=str(files["diffusers"]), match="expected a transformer whose weights are not quant")


def test_the_package_that_reads_gguf_files_is_named(folder, files, monkeypatch):
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    refused(folder, files["q8"], "expected the package gguf, .* pip install gguf")


# --- the whole way


def test_a_run_by_a_gguf_file_is_continued_and_verified(folder, files, tmp_path):
    run = tmp_path / "run"
    given = [
        f"--model={folder}", f"--transformer={files['q8']}", "--categories=color", "--limit=2",
        "--seeds=0", "--alphas=1", "--size=32", "--steps=1", f"--run-dir={run}",
    ]  # fmt: skip
    for method, n_images in (("word", 4), ("lerp", 6)):
        made = verbs.verb("run", *given, f"--method={method}")
        assert made.exit_code in (0, 1), made.output
        kept = sorted(run.glob("images/**/*.png"))
        assert len(kept) == n_images
    found = json.loads((run / "results.json").read_text("utf-8"))
    assert found["config"]["transformer"] == str(files["q8"])
    assert "+q8@sha256:" in found["provenance"]["model"]
    dates = [file.stat().st_mtime_ns for file in kept]
    assert verbs.verb("run", *given, "--method=lerp").exit_code in (0, 1)
    assert [file.stat().st_mtime_ns for file in kept] == dates
    assert verbs.verb("verify", run).exit_code == 0

    kept[0].unlink()
    asked = verbs.verb("verify", run, "--repair")
    assert asked.exit_code == 2
    assert f"the transformer '{files['q8']}'" in asked.output
    named = [f"--model={folder}", f"--transformer={files['q8']}"]
    assert verbs.verb("verify", run, "--repair", *named).exit_code in (0, 1)
    assert verbs.verb("verify", run).exit_code == 0
