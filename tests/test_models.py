"""Finding models without a network, telling one from another, and saying what is wrong with one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import diffusers
import pytest
import torch

from analogy import models
from analogy.models import (
    CHECKSUMS,
    ModelError,
    find_pipeline,
    fingerprint,
    load_pipeline,
    machine,
    native_dtype,
    shipped,
    write_checksums,
)


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


def test_another_family_is_refused(folder):
    index = {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ModelError, match=r"\(StableDiffusionXLPipeline\), got StableDiffusionPipeline$"
    ):
        find_pipeline(str(folder), dtype="float32")


@pytest.mark.parametrize("index", ["", "{", "{}", "[]", "null", "\udcff"])
def test_an_index_that_is_none(folder, index):
    (folder / "model_index.json").write_bytes(index.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"model_index\.json: not a pipeline's index"):
        find_pipeline(str(folder), dtype="float32")


@pytest.mark.parametrize("name", ["nosuch", "a/b/c", "bad name/model", "../up", "-/-", "~no/x"])
def test_what_is_neither_a_folder_nor_a_hub_id(name):
    with pytest.raises(ModelError) as refusal:
        find_pipeline(name, dtype="float32")
    expected = f"--model {name!r}: expected 'embedded', a folder that exists, or a hub id such as"
    assert str(refusal.value).startswith(expected)


@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_hub_model_without_a_network_says_how_to_fetch_it(revision):
    with pytest.raises(
        ModelError,
        match=rf"'no-such/model{revision}' is not on this machine.*'hf download no-such/model'",
    ):
        find_pipeline(f"no-such/model{revision}", dtype="float32")


@pytest.mark.parametrize(
    ("dtype", "variants"),
    [("float32", [None, "fp16"]), ("float16", ["fp16", None]), ("bfloat16", ["fp16", None])],
)
def test_a_hub_model_is_fetched_in_the_variant_that_fits(folder, monkeypatch, dtype, variants):
    asked = []

    def download(name, *, revision, variant, use_safetensors):
        asked.append((name, revision, variant, use_safetensors))
        if len(asked) == 1:
            raise OSError("no such variant")
        return str(folder)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    source = find_pipeline("someone/model@v1", dtype=dtype)
    assert asked == [("someone/model", "v1", variant, True) for variant in variants]
    assert source.folder == folder
    assert source.fingerprint == f"someone/model@{folder.name[:12]}"


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
    monkeypatch.setattr(models, "_cpu_has_bfloat16", lambda: has_bfloat16)
    assert native_dtype(device) == dtype


def test_this_machines_cpu_never_computes_in_float16():
    assert native_dtype("cpu") in ("bfloat16", "float32")


def test_the_machine_is_described():
    described = machine("cpu")
    assert described["device"] == "cpu"
    assert described["threads"] >= 1
    assert described["processor"]
    json.dumps(described)
