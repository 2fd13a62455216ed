"""Finding models without a network, telling one from another, and saying what is wrong with one."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from extras import extra
from safetensors.torch import save_file

from analogy.core.errors import ModelError
from analogy.models import defaults, loading
from analogy.models import lora as lora_module
from analogy.models.defaults import machine, native_dtype
from analogy.models.fingerprints import CHECKSUMS, fingerprint, write_checksums
from analogy.models.folders import native_size
from analogy.models.loading import load_pipeline
from analogy.models.lora import LORA_WEIGHTS
from analogy.models.places import shipped
from analogy.models.sources import find_pipeline


@pytest.fixture
def folder(tmp_path):
    """A pipeline's folder in small: an index, a configuration and weights of three bytes."""
    made = tmp_path / "mine"
    (made / "unet").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionXLPipeline"}
    (made / "model_index.json").write_text(json.dumps(index))
    (made / "unet" / "config.json").write_text("{}")
    (made / "unet" / "weights.safetensors").write_bytes(b"abc")
    return made


# --- finding


def test_the_embedded_pipeline_is_found(model_source):
    assert (model_source.folder / "model_index.json").is_file()
    assert (model_source.folder / CHECKSUMS).is_file()
    assert re.fullmatch(r"sdxl-tiny@sha256:[0-9a-f]{16}", model_source.fingerprint)


def test_a_folder_is_found(folder):
    source = find_pipeline(str(folder), dtype="float32")
    assert source.folder == folder
    assert source.fingerprint == fingerprint(folder)


def test_what_the_suite_does_not_ship_is_said():
    with pytest.raises(ModelError, match="the suite's own models/none is missing: looked in"):
        shipped("models/none")


@pytest.mark.parametrize(("files", "found"), [((), "nothing"), (("b", "a"), "a, b")])
def test_a_folder_that_is_no_pipeline(tmp_path, files, found):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=f"folder with model_index.json; found {found}$"):
        find_pipeline(str(tmp_path), dtype="float32")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("OmniGenPipeline", "it has no encode_prompt"),
        ("GlmImagePipeline", "an autoregressive stage reads the prompt"),
        ("StableDiffusionImageVariationPipeline", r"it needs an input image \(image\)"),
        ("WuerstchenDecoderPipeline", "it needs an input image"),
        ("DDIMPipeline", "it has no encode_prompt"),
        ("AnimateDiffPipeline", "it makes videos"),
        ("PRXPixelPipeline", "it denoises pixels"),
        ("DiffusionPipeline", "(the diffusers that is installed|it has no encode_prompt)"),
        ("NonePipeline", "the diffusers that is installed has no such pipeline"),
        ("os", "the diffusers that is installed has no such pipeline"),
    ],
)
def test_another_family_is_refused(folder, name, why):
    index = {"_class_name": name}
    (folder / "model_index.json").write_text(json.dumps(index))
    families = "StableDiffusionXLPipeline, StableDiffusionPipeline, StableDiffusion3Pipeline, .*"
    expected = rf"families supported \({families}\), got {name}: {why}"
    with pytest.raises(ModelError, match=expected):
        find_pipeline(str(folder), dtype="float32")


@pytest.mark.parametrize("index", ["", "{", "{}", "[]", "null", "\udcff"])
def test_an_index_that_is_none(folder, index):
    (folder / "model_index.json").write_bytes(index.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"model_index\.json: expected a pipeline's index"):
        find_pipeline(str(folder), dtype="float32")


@pytest.mark.parametrize("name", ["nosuch", "a/b/c", "bad name/model", "../up", "-/-", "~no/x"])
def test_what_is_neither_a_folder_nor_a_hub_id(name):
    with pytest.raises(ModelError) as refusal:
        find_pipeline(name, dtype="float32")
    expected = f"--model {name!r}: expected 'embedded', a folder or .safetensors file that"
    assert str(refusal.value).startswith(expected)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(("revision", "option"), [("", ""), ("@main", " --revision main")])
def test_a_hub_model_without_a_network_says_how_to_fetch_it(revision, option, offline):
    why = "and --offline fetches nothing" if offline else "and could not be fetched"
    model, command = f"no-such/model{revision}", f"hf download no-such/model{option}"
    with pytest.raises(ModelError, match=rf"'{model}' is not on this machine {why}.*: {command}$"):
        find_pipeline(model, dtype="float32", offline=offline)


@pytest.mark.parametrize(
    ("dtype", "variants"),
    [("float32", [None, "fp16"]), ("float16", ["fp16", None]), ("bfloat16", ["fp16", None])],
)
def test_a_hub_model_is_fetched_in_the_variant_that_fits(folder, monkeypatch, dtype, variants):
    asked = []

    def download(name, *, revision, variant, use_safetensors, local_files_only):
        assert local_files_only is False
        asked.append((name, revision, variant, use_safetensors))
        if len(asked) == 1:
            raise OSError("no such variant")
        return str(folder)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    source = find_pipeline("someone/model@v1", dtype=dtype)
    assert asked == [("someone/model", "v1", variant, True) for variant in variants]
    assert source.folder == folder
    assert source.fingerprint == f"someone/model@{folder.name[:12]}"


def test_a_hub_model_with_pickled_weights_alone_is_refused(monkeypatch):
    def download(name, **given):
        assert given["use_safetensors"] is True
        raise OSError("Could not find the necessary `safetensors` weights in {...}")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    with pytest.raises(ModelError, match="a pickle runs whatever code is in it"):
        find_pipeline("someone/model", dtype="float32")


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth"])
def test_a_pickled_file_or_folder_is_refused_unopened(tmp_path, suffix):
    """The file would raise if it were unpickled."""
    file = tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps(_Trap()))
    for given in (file, tmp_path):
        with pytest.raises(ModelError, match=rf"model\{suffix}: expected weights as \.safetensors"):
            find_pipeline(str(given), dtype="float32")


class _Trap:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_offline_never_opens_a_connection(tmp_path):
    """In a process of its own, without the tests' HF_HUB_OFFLINE, where connecting is recorded."""
    code = """
import socket, sys
def refuse(*given, **more):
    print("CONNECTED", given); raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from analogy.settings.request import RunRequest
from analogy.studies.study import Study
for model, clip, tag in (
    ("no-such/model", None, None), (None, "hf-hub:no/judge", None),
    (None, "ViT-B-32", "laion2b_s34b_b79k"), (None, "ViT-B-32", "laion400m_e31"),
):
    try:
        Study.open(RunRequest(
            model=model, clip_model=clip, clip_pretrained=tag, offline=True, limit=2,
            run_dir=sys.argv[1],
        ))
    except Exception as error:
        print(type(error).__name__, error)
"""
    environment = {k: v for k, v in os.environ.items() if "OFFLINE" not in k}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert "CONNECTED" not in done.stdout
    assert len(lines) == 4
    for line, repository in zip(
        lines,
        ("no-such/model", "no/judge", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", ""),
        strict=True,
    ):
        assert line.startswith("ModelError")
        assert "is not on this machine and --offline fetches nothing" in line
        assert f"hf download {repository}" in line or "curl -L" in line


# --- a single file


@pytest.fixture
def single(tmp_path):
    """A checkpoint's file, of which diffusers can say what it is no more than we can."""
    file = tmp_path / "mine.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.bias": torch.zeros(4)}, file)
    return file


@pytest.mark.parametrize("place", ["", "mine"])
def test_a_single_file_takes_the_configuration_beside_it(single, monkeypatch, place, model_source):
    beside = single.parent / place
    beside.mkdir(exist_ok=True)
    for file in model_source.folder.rglob("*.json"):
        target = beside / file.relative_to(model_source.folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target)
    source = find_pipeline(str(single), dtype="float32", offline=True)
    assert source.folder == beside
    digest = hashlib.sha256(single.read_bytes()).hexdigest()
    name = rf"mine@sha256:{digest[:16]}\+configuration@sha256:[0-9a-f]{{16}}"
    assert re.fullmatch(name, source.fingerprint)
    assert native_size(source.folder) == 64

    asked = {}

    def from_single_file(path, **given):
        asked.update(given, path=path)
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "check_converted", lambda *_: None)  # it would refuse this one
    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "from_single_file", from_single_file)
    with pytest.raises(KeyboardInterrupt):
        load_pipeline(source, device="cpu", dtype="bfloat16")
    assert (asked["path"], asked["config"]) == (str(single), str(beside))
    assert (asked["torch_dtype"], asked["local_files_only"]) == (torch.bfloat16, True)


def test_a_single_file_without_a_configuration_says_how_to_get_one(single):
    with pytest.raises(ModelError) as refusal:
        find_pipeline(str(single), dtype="float32", offline=True)
    message = str(refusal.value)
    assert "a single file holds weights alone; expected the configuration in" in message
    assert re.search(r"hf download \S+/\S+ --include '\*\.json' --include '\*\.txt'", message)


def test_a_single_file_that_is_no_safetensors(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"abc")
    with pytest.raises(ModelError, match=r"mine\.safetensors: not a safetensors file"):
        find_pipeline(str(tmp_path / "mine.safetensors"), dtype="float32")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ModelError, match=r"mine\.txt: expected a \.safetensors file or"):
        find_pipeline(str(tmp_path / "mine.txt"), dtype="float32")


# --- LoRA


@pytest.fixture
def lora(tmp_path):
    """A LoRA of rank 2 for one projection of the embedded model's UNet."""
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    file = tmp_path / "style" / "style.safetensors"
    file.parent.mkdir()
    width = 160
    save_file(
        {
            f"{name}.lora_A.weight": torch.full((2, width), 0.1),
            f"{name}.lora_B.weight": torch.full((width, 2), 0.2),
        },
        file,
    )
    return file


@pytest.fixture
def peft_is_there(monkeypatch):
    monkeypatch.setattr(lora_module.importlib.util, "find_spec", lambda name: object())


def test_without_peft_a_lora_says_what_to_install(monkeypatch, lora):
    monkeypatch.setattr(lora_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"--lora needs the package peft.*pip install peft"):
        find_pipeline("embedded", dtype="float32", lora=str(lora))


@pytest.mark.usefixtures("peft_is_there")
def test_a_lora_is_part_of_the_fingerprint(lora, model_source):
    source = find_pipeline("embedded", dtype="float32", lora=str(lora))
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()[:16]
    assert source.fingerprint == f"{model_source.fingerprint}+style@sha256:{digest}"
    assert find_pipeline("embedded", dtype="float32", lora=str(lora.parent)) == source
    save_file({"other.lora_A.weight": torch.zeros(2, 2)}, lora)
    other = find_pipeline("embedded", dtype="float32", lora=str(lora))
    assert other.fingerprint != source.fingerprint


@pytest.mark.usefixtures("peft_is_there")
def test_what_is_no_lora_is_refused(lora):
    def refuse(given, message):
        with pytest.raises(ModelError, match=message):
            find_pipeline("embedded", dtype="float32", lora=str(given), offline=True)

    refuse("none", "--lora 'none': expected a .safetensors file or a folder that exists, or a hub")
    refuse("no-such/lora@v1", "fetch it with: hf download no-such/lora --revision v1")
    shutil.copy(lora, lora.with_name("other.safetensors"))
    refuse(lora.parent, "exactly one .safetensors file, found other.safetensors, style.safetensors")
    shutil.copy(lora, lora.with_name(LORA_WEIGHTS))
    assert find_pipeline("embedded", dtype="float32", lora=str(lora.parent)).lora.name == (
        LORA_WEIGHTS
    )
    pickled = lora.with_name("style.bin")
    pickled.touch()
    refuse(pickled, r"style\.bin: expected weights as \.safetensors")


def test_a_lora_changes_the_weights_it_names_and_no_others(lora, pipeline):
    extra("peft")
    source = find_pipeline("embedded", dtype="float32", lora=str(lora))
    steered = load_pipeline(source, device="cpu", dtype="float32")
    before = pipeline.unet.state_dict()
    after = steered.unet.state_dict()
    assert after.keys() == before.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    # B A, with the scale 1 of a LoRA that names none: 2 * 0.2 * 0.1.
    difference = after[changed[0]] - before[changed[0]]
    torch.testing.assert_close(difference, torch.full_like(difference, 0.04))


def test_a_lora_of_another_model_is_refused(lora):
    extra("peft")
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = {"lora_A.weight": torch.zeros(2, 7), "lora_B.weight": torch.zeros(7, 2)}
    save_file({f"{name}.{part}": value for part, value in weights.items()}, lora)
    source = find_pipeline("embedded", dtype="float32", lora=str(lora))
    with pytest.raises(ModelError, match="does not fit a StableDiffusionXLPipeline"):
        load_pipeline(source, device="cpu", dtype="float32")


def test_a_lora_for_another_family_is_refused(lora):
    """One whose weights all belong elsewhere: nothing would change but the fingerprint."""
    extra("peft")
    save_file({f"transformer.to_q.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}, lora)
    source = find_pipeline("embedded", dtype="float32", lora=str(lora))
    with pytest.raises(ModelError, match="none of its weights belong to a StableDiffusionXLPipe"):
        load_pipeline(source, device="cpu", dtype="float32")


# --- fingerprints and checksums


def test_a_fingerprint_is_of_the_files_not_of_the_place(folder, tmp_path):
    before = fingerprint(folder)
    copied = shutil.copytree(folder, tmp_path / "elsewhere" / "mine")
    assert fingerprint(copied) == before
    (folder / "README.md").write_text("no part of the model")
    assert fingerprint(folder) == before


@pytest.mark.parametrize("name", ["unet/config.json", "unet/weights.safetensors"])
def test_a_fingerprint_changes_with_a_files_content(folder, name):
    before = fingerprint(folder)
    with open(folder / name, "ab") as file:
        file.write(b" ")
    assert fingerprint(folder) != before


def test_a_fingerprint_changes_with_a_files_name_and_presence(folder):
    seen = {fingerprint(folder)}
    moved = folder / "unet" / "other.safetensors"
    (folder / "unet" / "weights.safetensors").rename(moved)
    seen.add(fingerprint(folder))
    moved.unlink()
    seen.add(fingerprint(folder))
    (folder / "merges.txt").write_text("a b")
    seen.add(fingerprint(folder))
    assert len(seen) == 4


def test_files_as_listed_are_accepted(folder):
    write_checksums(folder)
    listed = (folder / CHECKSUMS).read_text().splitlines()
    assert [line.split("  ")[1] for line in listed] == [
        "model_index.json",
        "unet/config.json",
        "unet/weights.safetensors",
    ]
    assert fingerprint(folder)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_listed_names_end_at_line_feeds_alone(folder, ending):
    """Not where Python's splitlines sees a line's end, which a name may hold."""
    (folder / "unet" / "a\u2028b\x85c.json").write_text("{}")
    write_checksums(folder)
    text = (folder / CHECKSUMS).read_text("utf-8")
    (folder / CHECKSUMS).write_bytes(text.replace("\n", ending).encode())
    assert fingerprint(folder)


@pytest.mark.parametrize("name", ["unet/weights.safetensors", "notes.bin"])
def test_a_file_that_is_not_as_listed_is_named(folder, name):
    (folder / "notes.bin").write_bytes(b"as it was")
    write_checksums(folder)
    (folder / name).write_bytes(b"abd")
    with pytest.raises(ModelError, match=rf"{re.escape(str(folder / name))}: expected SHA-256"):
        find_pipeline(str(folder), dtype="float32")


def test_a_listed_file_that_is_missing_is_named(folder):
    write_checksums(folder)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"unet/config\.json: .*, got no such file; restore it"):
        find_pipeline(str(folder), dtype="float32")


def test_a_changed_copy_of_the_embedded_judge_is_refused(judge_source, tmp_path):
    original = Path(judge_source.name.removeprefix("local-dir:"))
    copied = shutil.copytree(original, tmp_path / original.name)
    assert fingerprint(copied) == judge_source.fingerprint
    weights = copied / "open_clip_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=re.escape(f"{weights}: expected SHA-256")):
        fingerprint(copied)


# --- loading


def test_the_pipeline_computes_in_the_dtype_asked_for(pipeline, model_source):
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    assert pipeline.device.type == "cpu"
    assert load_pipeline(model_source, device="cpu", dtype="bfloat16").unet.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "dtype"),
    [
        ("cpu", True, "bfloat16"),
        ("cpu", False, "float32"),
        ("cuda", False, "float16"),
        ("cuda:1", True, "float16"),
        ("mps", True, "float32"),
    ],
)
def test_the_native_dtype(monkeypatch, device, has_bfloat16, dtype):
    monkeypatch.setattr(defaults, "_cpu_has_bfloat16", lambda: has_bfloat16)
    assert native_dtype(device) == dtype


def test_this_machines_cpu_never_computes_in_float16():
    assert native_dtype("cpu") in ("bfloat16", "float32")


def test_the_machine_is_described():
    described = machine("cpu")
    assert described["device"] == "cpu"
    assert described["threads"] >= 1
    assert described["processor"]
    json.dumps(described)
