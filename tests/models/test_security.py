"""Folders that a stranger gave: none of their code runs, none of their names is followed.

Each test plants code that writes a marker, loads what is around it as a user would, and finds no
marker but a sentence. What the loaders do with the same files without the suite's check is in
``test_the_planted_code_is_real``. docs/security.md lists these tests.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sqlite3
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from cases import ROOT
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from analogy import cli
from analogy.core.errors import ModelError
from analogy.generation.engine import Setup
from analogy.generation.worker import Worker
from analogy.judges.open_clip import Judge, find_judge
from analogy.metrics.weights import read_weights
from analogy.models.fingerprints import fingerprint
from analogy.models.loading import load_pipeline
from analogy.models.places import shipped
from analogy.models.sources import find_pipeline
from analogy.models.trust.judges import check_judge
from analogy.models.trust.pipelines import check_pipeline, read_index
from analogy.store.folder import RunFolder
from analogy.studies.repair import NotConfirmedError, repair
from analogy.studies.study import Study
from analogy.studies.verify import verify

# --- what is planted


class Stranger:
    """A folder of someone else's making, and the marker that their code would leave."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.marker = place / "RAN"
        self.code = f"import pathlib; pathlib.Path({str(self.marker)!r}).touch()\n"

    @property
    def ran(self) -> bool:
        return self.marker.exists()

    def copy(self, kind: str, name: str) -> Path:
        """One of the embedded models, without its checksums: every file may be changed."""
        left_out = shutil.ignore_patterns("SHA256SUMS")
        return shutil.copytree(shipped(f"models/{kind}"), self.place / name, ignore=left_out)

    def module(self, file: Path, body: str = "") -> Path:
        """A module that leaves the marker when it is imported."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.code + body)
        return file

    def pickle(self, file: Path) -> Path:
        """A pickle that leaves the marker when it is read."""
        file.write_bytes(pickle.dumps(Touches(self.marker)))
        return file


class Touches:
    """When unpickled, it touches a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self):
        return os.open, (self.file, os.O_CREAT | os.O_WRONLY)


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    cache = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(cache))
    place = tmp_path / "theirs"
    place.mkdir()
    return Stranger(place)


def change(file: Path, *keys: str, to: object) -> None:
    """Set a value in a JSON file, which is made if there is none."""
    settings = json.loads(file.read_text()) if file.exists() else {}
    inner = settings
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = to
    file.write_text(json.dumps(settings))


def load_judge(folder: Path | str, weights: Path | None = None) -> Judge:
    source = find_judge(str(folder), None if weights is None else str(weights))
    return Judge(source, device="cpu").load()


def load_model(folder: Path | str, lora: Path | None = None):
    given = None if lora is None else str(lora)
    source = find_pipeline(str(folder), dtype="float32", lora=given)
    return load_pipeline(source, device="cpu", dtype="float32")


# --- judges

TOKENIZER = "from transformers import CLIPTokenizer\nclass Theirs(CLIPTokenizer): pass\n"
AUTO_MAP = {"AutoTokenizer": ["theirs.Theirs", None]}


def code_for_the_tokenizer(folder, stranger):
    text = ("model_cfg", "text_cfg")
    change(
        folder / "open_clip_config.json", *text, "tokenizer_kwargs", to={"trust_remote_code": True}
    )
    change(folder / "tokenizer_config.json", "auto_map", to=AUTO_MAP)
    stranger.module(folder / "theirs.py", TOKENIZER)


def test_the_planted_code_is_real(stranger):
    """The control of all that follows: open_clip by itself runs what the next test refuses."""
    folder = stranger.copy("clip-tiny", "judge")
    code_for_the_tokenizer(folder, stranger)
    open_clip.get_tokenizer(f"local-dir:{folder}")
    assert stranger.ran


def in_judge(*keys, to):
    return lambda folder, _: change(folder / "open_clip_config.json", "model_cfg", *keys, to=to)


def in_tokenizer(*keys, to):
    return lambda folder, _: change(folder / "tokenizer_config.json", *keys, to=to)


def in_file(name, *keys, to):
    return lambda folder, _: change(folder / name, *keys, to=to)


def code_beside(name):
    return lambda folder, stranger: stranger.module(folder / name)


def a_network_elsewhere(folder, stranger):
    """transformers asks on a terminal whether to run it, and takes a piped "y" for an answer."""
    other = stranger.place / "other"
    stranger.module(other / "theirs.py")
    settings = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}
    (other / "config.json").write_text(json.dumps(settings))
    in_judge("text_cfg", "hf_model_name", to=str(other))(folder, stranger)


def moved_out(name):
    def move(folder, stranger):
        (folder / name).rename(stranger.place / "elsewhere")
        (folder / name).symlink_to(stranger.place / "elsewhere")

    return move


def a_pipe(name):
    def make(folder, _):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


TEXT, VISION = ("text_cfg",), ("vision_cfg",)
JUDGES = {
    "code of a tokenizer": (code_for_the_tokenizer, "expected no code"),
    "trust_remote_code": (
        in_judge(*TEXT, "tokenizer_kwargs", to={"trust_remote_code": True}),
        "'model_cfg.text_cfg.tokenizer_kwargs.trust_remote_code' is true",
    ),
    "any other keyword": (
        in_judge(*TEXT, "tokenizer_kwargs", to={"bpe_path": "x"}),
        r"tokenizer_kwargs.bpe_path' is \"x\"; expected no such setting",
    ),
    "a module": (code_beside("theirs.py"), r"theirs\.py: expected no code"),
    "a module within": (code_beside("a/b/Theirs.PY"), r"Theirs\.PY: expected no code"),
    "a compiled module": (code_beside("theirs.so"), r"theirs\.so: expected no code"),
    "auto_map": (in_tokenizer("auto_map", to=AUTO_MAP), "'auto_map' is .* runs no code"),
    "auto_map of a repository": (
        in_tokenizer("auto_map", to={"AutoTokenizer": ["a/b--theirs.Theirs", None]}),
        "'auto_map' is .* runs no code",
    ),
    "auto_map within": (
        in_tokenizer("added_tokens_decoder", "0", "auto_map", to=AUTO_MAP),
        r"'added_tokens_decoder\.0\.auto_map'",
    ),
    "auto_map of a network": (
        in_file("config.json", "auto_map", to={"AutoConfig": "theirs.Theirs"}),
        r"config\.json: 'auto_map'",
    ),
    "an attention kernel": (
        in_file("config.json", "attn_implementation", to="someone/kernel"),
        r"'attn_implementation' is \"someone/kernel\"; expected a plain setting",
    ),
    "an adapter": (
        in_file("adapter_config.json", "base_model_name_or_path", to="/somewhere"),
        r"adapter_config\.json: expected no other configuration",
    ),
    "a network elsewhere": (a_network_elsewhere, "hf_model_name' is .* a repository that open_cl"),
    "a network's repository": (
        in_judge(*TEXT, "hf_model_name", to="someone/theirs"), "hf_model_name' is \"someone/theirs",
    ),
    "a timm repository": (
        in_judge(*VISION, "timm_model_name", to="hf-hub:someone/theirs"),
        "timm_model_name' is \"hf-hub:someone/theirs\"; expected a plain setting",
    ),
    "a timm scheme": (
        in_judge(*VISION, "timm_model_name", to="local-dir:theirs"),
        "expected the plain name of a timm network",
    ),
    "unknown settings": (
        in_judge(*VISION, "loader", to="x"), r"'model_cfg\.vision_cfg\.loader' is \"x\"",
    ),
    "unknown arguments": (in_judge("factory", to="x"), r"'model_cfg\.factory' is \"x\""),
    "another tokenizer's file": (
        in_tokenizer("tokenizer_file", to="/somewhere/tokenizer.json"), "'tokenizer_file' is",
    ),
    "another vocabulary": (in_tokenizer("vocab_file", to="../vocab.json"), "'vocab_file' is"),
    "other tokenizer files": (
        in_tokenizer("fast_tokenizer_files", to=["../tokenizer.4.0.json"]),
        "'fast_tokenizer_files' is",
    ),
    "a sentencepiece model": (
        in_tokenizer("sp_model_kwargs", to={"model_file": "/somewhere"}), "'sp_model_kwargs' is",
    ),
    "a class of its own": (
        in_tokenizer("tokenizer_class", to="TransfoXLTokenizer"), "one of BertTokenizer,",
    ),
    "no class": (in_tokenizer("tokenizer_class", to=None), "'tokenizer_class' is null"),
    "keywords that are none": (in_judge(*TEXT, "tokenizer_kwargs", to=None), "expected a mapping"),
    "a list of keywords": (in_judge(*VISION, "act_kwargs", to=["x"]), "expected a mapping"),
    "preprocessing that is none": (
        in_file("open_clip_config.json", "preprocess_cfg", to=["x"]), "expected a mapping",
    ),
    "a tower that is none": (in_judge("vision_cfg", to=["x"]), "expected a mapping of settings"),
    "nested deeply": (in_file("config.json", "a", to=nested(900)), "nested more than 20 deep"),
    "nested too deeply": (
        lambda folder, _: (folder / "config.json").write_text('{"a": ' + "[" * 100_000),
        "expected a file of settings",
    ),
    "an endless number": (
        lambda folder, _: (folder / "config.json").write_text('{"a": ' + "9" * 10_000 + "}"),
        "expected a file of settings",
    ),
    "checksums elsewhere": (
        lambda folder, _: (folder / "SHA256SUMS").write_text("0  ../../etc/hosts\n"),
        "expected names of files in",
    ),
    "weights elsewhere": (moved_out("open_clip_model.safetensors"), "got a link to"),
    "settings elsewhere": (moved_out("open_clip_config.json"), "got a link to"),
    "a tokenizer elsewhere": (moved_out("tokenizer.json"), "got a link to"),
    "a pipe": (a_pipe("config.json"), "expected a regular file"),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "sentence"), JUDGES.values(), ids=JUDGES)
def test_a_judges_folder_runs_and_reaches_nothing(stranger, plant, sentence):
    folder = stranger.copy("clip-tiny", "judge")
    plant(folder, stranger)
    with pytest.raises(ModelError, match=sentence):
        load_judge(folder)
    assert not stranger.ran


@pytest.mark.parametrize("verb", ["run", "steer"])
def test_a_refusal_is_wrong_usage_and_writes_nothing(stranger, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    folder = stranger.copy("clip-tiny", "judge")
    code_for_the_tokenizer(folder, stranger)
    words = ["a red car", "a blue car"] if verb == "steer" else []
    result = CliRunner().invoke(cli.app, [verb, *words, "--clip-model", str(folder)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "expected no code" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
    assert not stranger.ran


def test_a_folder_that_changes_after_it_was_found_is_refused(stranger):
    folder, model = stranger.copy("clip-tiny", "judge"), stranger.copy("sdxl-tiny", "model")
    judge = find_judge(str(folder), None)
    source = find_pipeline(str(model), dtype="float32")
    code_for_the_tokenizer(folder, stranger)
    stranger.module(model / "unet" / "theirs.py")
    with pytest.raises(ModelError, match="expected no code"):
        Judge(judge, device="cpu").load()
    with pytest.raises(ModelError, match="expected no code"):
        load_pipeline(source, device="cpu", dtype="float32")
    assert not stranger.ran


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_architecture_of_open_clip_is_accepted(tmp_path, name):
    """What is allowed is wide enough: a repository may hold any of them."""
    model = open_clip.get_model_config(name)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    (tmp_path / "open_clip_model.safetensors").touch()
    assert check_judge(tmp_path, "someone/judge").tokenizer == (
        model["text_cfg"].get("hf_tokenizer_name")
    )


# --- judges of the hub


class Hub:
    """The hub's cache, with repositories in it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def snapshot(self, repository: str, commit: str) -> Path:
        """The folder of a commit, which ``main`` is from now on."""
        folder = self.place / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        made = folder / "snapshots" / commit
        made.mkdir(parents=True)
        return made

    def judge(self, repository: str, commit: str, tokenizer: str) -> Path:
        """The embedded judge, its files linked to the blobs as the hub's library does."""
        made = self.snapshot(repository, commit)
        blobs = made.parent.parent / "blobs"
        blobs.mkdir(exist_ok=True)
        for file in shipped("models/clip-tiny").iterdir():
            if file.name == "SHA256SUMS":
                continue
            blob = blobs / f"{commit[:4]}-{file.name}"
            shutil.copy(file, blob)
            (made / file.name).symlink_to(Path("../../blobs") / blob.name)
        name = ("model_cfg", "text_cfg", "hf_tokenizer_name")
        change(made / "open_clip_config.json", *name, to=tokenizer)
        return made


@pytest.fixture
def hub(tmp_path, monkeypatch):
    place = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    return Hub(place)


def test_a_hub_judge_is_loaded_as_it_was_found(hub, stranger, judge):
    """Of the commit that its fingerprint names, from its own files, whatever ``main`` is then."""
    hub.judge("someone/judge", "a" * 40, "someone/judge")
    source = find_judge("hf-hub:someone/judge", None, offline=True)
    assert source.fingerprint == f"hf-hub:someone/judge@{'a' * 12}"
    later = hub.judge("someone/judge", "b" * 40, "someone/judge")
    code_for_the_tokenizer(later, stranger)
    loaded = Judge(source, device="cpu")
    prompts = ["a red car", "two blue cups"]
    expected = judge.text_features(prompts)
    np.testing.assert_allclose(loaded.text_features(prompts), expected, atol=1e-6)
    with pytest.raises(ModelError, match="expected no code"):
        find_judge("hf-hub:someone/judge", None, offline=True)
    assert not stranger.ran


@pytest.mark.parametrize("plant", [code_for_the_tokenizer, a_network_elsewhere])
def test_a_hub_judge_runs_no_code(hub, stranger, plant):
    plant(hub.judge("someone/judge", "a" * 40, "someone/judge"), stranger)
    with pytest.raises(ModelError, match=r"expected no code|hf_model_name"):
        load_judge("hf-hub:someone/judge")
    assert not stranger.ran


def test_a_hub_judges_tokenizer_is_its_own_or_a_known_one(hub, stranger):
    hub.judge("someone/judge", "a" * 40, str(stranger.place))
    with pytest.raises(ModelError, match=r"hf_tokenizer_name' is .* such as xlm-roberta-base"):
        load_judge("hf-hub:someone/judge")


def test_a_folder_in_the_place_of_a_known_repository_is_not_taken(tmp_path, monkeypatch, stranger):
    folder = stranger.copy("clip-tiny", "judge")
    in_judge("text_cfg", "hf_model_name", to="roberta-base")(folder, stranger)
    stranger.module(tmp_path / "here" / "roberta-base" / "theirs.py")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModelError, match="would be loaded in its place"):
        load_judge(folder)


# --- a judge's weights


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "pytorch_model.pth", "x.pt"])
def test_pickled_weights_beside_others_are_not_loaded(stranger, name):
    folder = stranger.copy("clip-tiny", "judge")
    (folder / "open_clip_model.safetensors").rename(folder / "unrelated.safetensors")
    stranger.pickle(folder / name)
    with pytest.raises(ModelError, match=rf"{name}: expected weights as \.safetensors"):
        load_judge(folder)
    assert not stranger.ran


def test_one_file_of_weights_is_loaded_and_fingerprinted(stranger, judge):
    """Its own safetensors, whatever open_clip would prefer; and a change of them is seen."""
    folder = stranger.copy("clip-tiny", "judge")
    own = folder / "open_clip_model.safetensors"
    stranger.pickle(folder / "open_clip_pytorch_model.bin")
    weights = load_file(own)
    save_file({name: value + 1 for name, value in weights.items()}, folder / "a.safetensors")
    assert check_judge(folder).weights == own
    prompts = ["a red car", "two blue cups"]
    features = load_judge(folder).text_features(prompts)
    np.testing.assert_allclose(features, judge.text_features(prompts), atol=1e-6)
    before = fingerprint(folder)
    save_file({**weights, "logit_scale": weights["logit_scale"] + 1}, own)
    assert fingerprint(folder) != before
    assert not stranger.ran


@pytest.mark.parametrize(("names", "found"), [((), "none"), (("a", "b"), "a.safetensors, b.saf")])
def test_a_judge_without_a_file_to_choose_is_refused(stranger, names, found):
    folder = stranger.copy("clip-tiny", "judge")
    own = folder / "open_clip_model.safetensors"
    for name in names:
        shutil.copy(own, folder / f"{name}.safetensors")
    own.unlink()
    with pytest.raises(ModelError, match=rf"open_clip_model\.safetensors or .* got {found}"):
        load_judge(folder)


@pytest.mark.parametrize("name", ["theirs.pt", "theirs.npz", "theirs.weights", "theirs"])
def test_a_file_of_weights_is_safetensors(stranger, name):
    file = stranger.pickle(stranger.place / name)
    with pytest.raises(ModelError, match=r"\.safetensors"):
        load_judge("ViT-B-32", file)
    assert not stranger.ran


# --- pipelines

UNET = "from diffusers import UNet2DConditionModel\nclass Theirs(UNet2DConditionModel): pass\n"


def code_for_a_part(folder, stranger):
    change(folder / "model_index.json", "unet", to=["theirs", "Theirs"])
    stranger.module(folder / "unet" / "theirs.py", UNET)


def code_on_the_path(folder, stranger):
    """``python -m`` puts the working directory there, which may be the stranger's."""
    change(folder / "model_index.json", "unet", to=["theirs_on_the_path", "Theirs"])
    stranger.module(stranger.place / "theirs_on_the_path.py", UNET)
    sys.path.insert(0, str(stranger.place))


def a_pipeline_of_its_own(folder, stranger):
    change(folder / "model_index.json", "_class_name", to=["theirs", "Theirs"])
    stranger.module(folder / "theirs.py")


def another_model_by_an_adapter(folder, stranger):
    """transformers loads the model that an adapter says it is for, wherever that is."""
    other = stranger.copy("sdxl-tiny", "other")
    change(
        folder / "text_encoder" / "adapter_config.json",
        "base_model_name_or_path", to=str(other / "text_encoder"),
    )  # fmt: skip


def shards(name):
    def plant(folder, stranger):
        part = folder / "text_encoder"
        weights = part / "model.fp16.safetensors"
        names = load_file(weights)
        weights.rename(stranger.place / "outside.safetensors")
        stranger.pickle(part / "model.bin")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
        (part / "model.fp16.safetensors.index.json").write_text(json.dumps(index))

    return plant


def a_linked_part(folder, stranger):
    (folder / "vae").rename(stranger.place / "vae")
    (folder / "vae").symlink_to(stranger.place / "vae")


def pickles_beside_others(folder, stranger):
    part = folder / "text_encoder"
    (part / "model.fp16.safetensors").rename(part / "unrelated.safetensors")
    stranger.pickle(part / "pytorch_model.bin")


def in_index(*keys, to):
    return in_file("model_index.json", *keys, to=to)


EXPECTED_UNET = r"'unet' is .*expected diffusers\.UNet2DConditionModel"
PIPELINES = {
    "code of a part": (code_for_a_part, EXPECTED_UNET),
    "code on the path": (code_on_the_path, EXPECTED_UNET),
    "a pipeline of its own": (a_pipeline_of_its_own, "'_class_name' is .*runs no code"),
    "a module": (code_beside("unet/theirs.py"), r"theirs\.py: expected no code"),
    "a module within": (code_beside("unet/a/theirs.py"), r"theirs\.py: expected no code"),
    "a library of Python's": (in_index("unet", to=["subprocess", "Popen"]), EXPECTED_UNET),
    "an automatic class": (in_index("unet", to=["transformers", "AutoModel"]), EXPECTED_UNET),
    "another class of diffusers": (
        in_index("unet", to=["diffusers", "OnnxRuntimeModel"]), EXPECTED_UNET,
    ),
    "a scheduler elsewhere": (
        in_index("scheduler", to=["theirs", "TheirScheduler"]), r"expected diffusers\.\*Scheduler",
    ),
    "no scheduler": (
        in_index("scheduler", to=["diffusers", "DiffusionPipeline"]),
        r"expected diffusers\.\*Scheduler",
    ),
    "three words": (in_index("unet", to=["diffusers", "UNet2DConditionModel", 1]), EXPECTED_UNET),
    "no words": (in_index("unet", to=[[], {}]), EXPECTED_UNET),
    "another part": (
        in_index("theirs", to=["diffusers", "UNet2DConditionModel"]), "'theirs' is .*only the",
    ),
    "a part elsewhere": (
        in_index("../other", to=["diffusers", "UNet2DConditionModel"]), "'../other' is .*only the",
    ),
    "a custom pipeline": (
        in_index("custom_pipeline", to="theirs"), "'custom_pipeline' is .*runs no code",
    ),
    "a mapping": (in_index("auto_map", to=AUTO_MAP), "'auto_map' is"),
    "auto_map": (
        in_file("unet/config.json", "auto_map", to={"AutoModel": "theirs.Theirs"}),
        r"unet.config\.json: 'auto_map' is .*runs no code",
    ),
    "auto_map within": (
        in_file("text_encoder/config.json", "text_config", "auto_map", to={"AutoModel": "a.B"}),
        r"'text_config\.auto_map' is .*runs no code",
    ),
    "auto_map of a tokenizer": (
        in_file("tokenizer_2/tokenizer_config.json", "auto_map", to=AUTO_MAP), "'auto_map' is",
    ),
    "a tokenizer's file": (
        in_file("tokenizer/tokenizer_config.json", "tokenizer_file", to="/somewhere"),
        "'tokenizer_file' is",
    ),
    "an attention kernel": (
        in_file("text_encoder/config.json", "attn_implementation", to="someone/kernel"),
        "'attn_implementation' is \"someone/kernel\"",
    ),
    "an attention kernel by part": (
        in_file("text_encoder/config.json", "_attn_implementation", to={"": "someone/kernel"}),
        "'_attn_implementation' is .*not a mapping",
    ),
    "a quantizer": (
        in_file("unet/config.json", "quantization_config", to={"quant_method": "theirs"}),
        "'quantization_config' is .*not a mapping",
    ),
    "another model": (another_model_by_an_adapter, r"adapter_config\.json: expected no other"),
    "an unknown file of settings": (
        in_file("unet/redirect.json", "to", to="x"), r"redirect\.json: expected no other config",
    ),
    "shards outside": (shards("../../outside.safetensors"), "weight_map.* beside it"),
    "shards anywhere": (shards("/outside.safetensors"), "weight_map.* beside it"),
    "pickled shards": (shards("model.bin"), "weight_map.* beside it"),
    "a part of links": (a_linked_part, "vae: expected the folder of the part .* got a link"),
    "weights elsewhere": (moved_out("unet/diffusion_pytorch_model.fp16.safetensors"), "got a link"),
    "settings elsewhere": (moved_out("scheduler/scheduler_config.json"), "got a link to"),
    "an index elsewhere": (moved_out("model_index.json"), "got a link to"),
    "a pipe": (a_pipe("unet/generation_config.json"), "expected a regular file"),
    "pickles": (pickles_beside_others, r"pytorch_model\.bin: expected weights as \.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "sentence"), PIPELINES.values(), ids=PIPELINES)
def test_a_models_folder_runs_and_reaches_nothing(stranger, monkeypatch, plant, sentence):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = stranger.copy("sdxl-tiny", "model")
    plant(folder, stranger)
    with pytest.raises(ModelError, match=sentence):
        load_model(folder)
    assert not stranger.ran


def test_a_folder_beside_a_single_file_runs_nothing(stranger):
    """A checkpoint's configuration is a pipeline's folder, too."""
    folder = stranger.copy("sdxl-tiny", "model")
    code_for_a_part(folder, stranger)
    file = folder.with_suffix(".safetensors")
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match=EXPECTED_UNET):
        load_model(file)
    assert not stranger.ran


def test_a_repository_is_refused_by_its_index_before_it_is_downloaded(hub, stranger, monkeypatch):
    """diffusers 0.35's download imports the pipeline that a repository names."""
    monkeypatch.setattr(
        "diffusers.DiffusionPipeline.download", lambda *_, **__: pytest.fail("downloaded")
    )
    made = hub.snapshot("someone/model", "a" * 40)
    theirs = stranger.module(stranger.place / "theirs.py")
    (made / "model_index.json").write_text(json.dumps({"_class_name": [str(theirs), "Theirs"]}))
    with pytest.raises(ModelError, match=r"'_class_name' is .*runs no code"):
        load_model("someone/model")
    assert not stranger.ran


CLIP_TEXT = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu", "hidden_size": 768, "model_type": "clip_text_model",
    "torch_dtype": "float16", "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}  # fmt: skip
TOKEN = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False}
CLIP_TOKENIZER = {
    "add_prefix_space": False, "bos_token": TOKEN, "do_lower_case": True, "eos_token": TOKEN,
    "errors": "replace", "model_max_length": 77, "name_or_path": "openai/clip-vit-large-patch14",
    "pad_token": "<|endoftext|>", "special_tokens_map_file": "./special_tokens_map.json",
    "tokenizer_class": "CLIPTokenizer", "unk_token": TOKEN,
}  # fmt: skip
T5_TOKENIZER = {
    "additional_special_tokens": ["<extra_id_0>"], "clean_up_tokenization_spaces": True,
    "eos_token": "</s>", "extra_ids": 100, "legacy": True, "model_max_length": 512,
    "sp_model_kwargs": {}, "special_tokens_map_file": "/home/someone/special_tokens_map.json",
    "added_tokens_decoder": {"0": {"content": "<pad>", "special": True}}, "pad_token": "<pad>",
    "tokenizer_class": "T5Tokenizer", "vocab_file": None,
}  # fmt: skip
KNOWN = {
    "stable-diffusion-v1-5": {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            "requires_safety_checker": True,
        },
        "feature_extractor/preprocessor_config.json": {
            "crop_size": {"height": 224, "width": 224}, "feature_extractor_type": "CLIP",
            "image_mean": [0.5, 0.5, 0.5], "size": {"shortest_edge": 224}, "resample": 3,
        },
        "scheduler/scheduler_config.json": {"_class_name": "PNDMScheduler", "trained_betas": None},
        "text_encoder/config.json": CLIP_TEXT,
        "tokenizer/tokenizer_config.json": CLIP_TOKENIZER,
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel", "down_block_types": ["DownBlock2D"],
            "attention_head_dim": [5, 10], "transformer_layers_per_block": [[1], 2],
        },
        "vae/config.json": {"_class_name": "AutoencoderKL", "_name_or_path": "../x/vae"},
    },
    "stable-diffusion-3": {
        "model_index.json": {
            "_class_name": "StableDiffusion3Pipeline", "_name_or_path": "stabilityai/sd3",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_3": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "tokenizer_3": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        "text_encoder/config.json": CLIP_TEXT,
        "text_encoder_2/config.json": CLIP_TEXT,
        "text_encoder_3/config.json": {
            "_name_or_path": "google/t5-v1_1-xxl", "architectures": ["T5EncoderModel"],
            "task_specific_params": {"translation": {"prefix": "translate English: "}},
        },
        "text_encoder_3/model.safetensors.index.fp16.json": {
            "metadata": {}, "weight_map": {"a": "model.fp16-00001-of-00002.safetensors"},
        },
        "text_encoder_3/pytorch_model.bin.index.json": {"weight_map": {"a": "pytorch_model.bin"}},
        "tokenizer/tokenizer_config.json": CLIP_TOKENIZER,
        "tokenizer_2/tokenizer_config.json": CLIP_TOKENIZER,
        "tokenizer_3/tokenizer_config.json": T5_TOKENIZER,
        "transformer/config.json": {"_class_name": "SD3Transformer2DModel", "sample_size": 128},
        "vae/config.json": {"_class_name": "AutoencoderKL", "latents_mean": None},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_configurations_as_published_are_accepted(tmp_path, name):
    """With the oddities that published repositories have: other people's paths, old keys."""
    for file, settings in KNOWN[name].items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(settings))
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "notes.json").write_text('{"auto_map": "in no part"}')
    assert check_pipeline(tmp_path)[0].pipeline == read_index(tmp_path)[1]["_class_name"]


# --- LoRA

MODULE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def lora(file: Path, **settings: object) -> Path:
    """A LoRA of one module, with settings for peft in its header."""
    weights = {
        f"unet.{MODULE}.lora_A.weight": torch.full((2, 160), 0.1),
        f"unet.{MODULE}.lora_B.weight": torch.full((160, 2), 0.2),
    }
    plain = {
        "r": 2, "lora_alpha": 2, "target_modules": [MODULE], "rank_pattern": {},
        "alpha_pattern": {}, "megatron_core": "megatron.core", "loftq_config": {},
    }  # fmt: skip
    header = {f"unet.{name}": value for name, value in {**plain, **settings}.items()}
    save_file(weights, file, metadata={"lora_adapter_metadata": json.dumps(header)})
    return file


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"megatron_config": {"a": 1}, "megatron_core": "theirs_for_a_lora"},
            r"unet\.megatron_core' is .*: peft may import a module for it",
        ),
        ({"megatron_core": "theirs_for_a_lora"}, "megatron_core' is .*expected 'megatron.core'"),
        ({"auto_mapping": {"parent_library": "theirs_for_a_lora"}}, "auto_mapping' is"),
        ({"base_model_name_or_path": "/somewhere"}, "base_model_name_or_path' is"),
    ],
)
def test_a_loras_header_imports_nothing(stranger, monkeypatch, settings, sentence):
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(stranger.place))
    stranger.module(stranger.place / "theirs_for_a_lora.py")
    file = lora(stranger.place / "style.safetensors", **settings)
    with pytest.raises(ModelError, match=sentence):
        load_model("embedded", file)
    assert not stranger.ran


def test_a_loras_plain_header_is_accepted(stranger, pipeline):
    pytest.importorskip("peft")
    steered = load_model("embedded", lora(stranger.place / "style.safetensors"))
    name = f"{MODULE}.weight"
    assert not torch.equal(pipeline.unet.state_dict()[name], steered.unet.state_dict()[name])


# --- weights of metrics


def test_weights_of_a_metric_run_no_code(stranger):
    with pytest.raises(ModelError, match=r"expected a state dict saved by torch\.save"):
        read_weights(stranger.pickle(stranger.place / "alexnet.pth"))
    assert not stranger.ran


# --- run folders


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy of a finished run's folder."""
    return shutil.copytree(whole_run / "run", tmp_path / "run")


def rename(run: Path, *, judge: str | None = None, **named: str) -> None:
    """Have the run folder's index name other models; ``judge``: by this fingerprint."""
    connection = sqlite3.connect(run / "index.sqlite")
    with connection:
        for row, config in connection.execute("SELECT rowid, config FROM commands").fetchall():
            changed = json.dumps({**json.loads(config), **named})
            connection.execute("UPDATE commands SET config = ? WHERE rowid = ?", (changed, row))
            if judge is not None:
                connection.execute("UPDATE commands SET judge = ? WHERE rowid = ?", (judge, row))
    connection.close()


def lose_an_image(run: Path) -> None:
    next((run / "images").rglob("*.png")).unlink()


def content(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder but SQLite's own."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {file: file.read_bytes() for file in files if not file.name.startswith("index.sqlite-")}


def verified(run: Path, *options: str):
    result = CliRunner().invoke(cli.app, ["verify", str(run), *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_repairing_a_strangers_run_loads_nothing_that_it_names(run, stranger):
    """Its index has another judge's fingerprint, and so no scores: that judge is to make them."""
    folder = stranger.copy("clip-tiny", "judge")
    code_for_the_tokenizer(folder, stranger)
    rename(run, judge=fingerprint(folder), clip_model=str(folder))
    before = content(run)
    result = verified(run, "--repair")
    assert not stranger.ran
    assert result.exit_code == 2
    assert f"what its index names would be loaded: the judge '{folder}'" in result.stderr
    assert "give --trust" in result.stderr
    assert content(run) == before


@pytest.mark.parametrize("given", [["--trust"], ["--clip-model"]])
def test_confirmed_code_is_still_not_run(run, stranger, given):
    folder = stranger.copy("clip-tiny", "judge")
    code_for_the_tokenizer(folder, stranger)
    rename(run, judge=fingerprint(folder), clip_model=str(folder))
    result = verified(run, "--repair", *given, *([str(folder)] if given != ["--trust"] else []))
    assert not stranger.ran
    assert result.exit_code == 4
    assert "expected no code" in result.stderr


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ({"model": "{theirs}"}, ["the model '{theirs}'"]),
        ({"model": "someone/model"}, ["the model 'someone/model'"]),
        ({"clip_model": "hf-hub:a/b"}, ["the judge 'hf-hub:a/b'"]),
        (
            {"clip_model": "ViT-B-32", "clip_pretrained": "{theirs}/x"},
            ["the judge 'ViT-B-32' with the weights '{theirs}/x'"],
        ),
        (
            {"model": "{theirs}", "clip_model": "{theirs}"},
            ["the model '{theirs}'", "the judge '{theirs}'"],
        ),
    ],
)
def test_every_path_and_id_is_shown_and_none_looked_for(run, stranger, monkeypatch, named, shown):
    for find in (find_judge, find_pipeline):

        def embedded_alone(given, *rest, find=find, **options):
            assert given == "embedded"
            return find(given, *rest, **options)

        monkeypatch.setattr(f"analogy.studies.repair.{find.__name__}", embedded_alone)
    rename(run, **{key: text.format(theirs=stranger.place) for key, text in named.items()})
    lose_an_image(run)
    before = content(run)
    result = verified(run, "--repair")
    assert result.exit_code == 2
    for text in shown:
        assert text.format(theirs=stranger.place) in result.stderr
    assert content(run) == before


def test_a_lora_that_a_run_folder_names_is_shown(run, stranger):
    connection = sqlite3.connect(run / "index.sqlite")
    theirs = str(stranger.place / "style.safetensors")
    with connection:
        connection.execute("UPDATE commands SET lora = ?", (theirs,))
    connection.close()
    rename(run, model=f"embedded+{theirs}")
    lose_an_image(run)
    folder = RunFolder(run)
    try:
        with pytest.raises(NotConfirmedError, match=f"loaded: the LoRA '{theirs}'. If you trust"):
            repair(folder, verify(folder))
    finally:
        folder.close()


@pytest.mark.parametrize("how", ["trusted", "named", "named elsewhere"])
def test_a_confirmed_model_repairs(run, stranger, how):
    """By --trust, which shows it; by its name, given again; by another copy of the same files."""
    embedded = shipped("models/clip-tiny")
    theirs = shutil.copytree(embedded, stranger.place / "clip-tiny")
    rename(run, clip_model=str(theirs))
    lose_an_image(run)
    given = {
        "trusted": ["--trust"],
        "named": ["--clip-model", str(theirs)],
        "named elsewhere": ["--clip-model", str(embedded)],
    }[how]
    result = verified(run, "--repair", *given)
    assert result.exit_code == 0
    assert (f"trusted: the judge '{theirs}'" in result.stderr) == (how == "trusted")
    assert verified(run).exit_code == 0


def test_another_model_than_the_runs_confirms_nothing(run, stranger):
    rename(run, clip_model=str(stranger.copy("clip-tiny", "clip-tiny")))
    other = stranger.copy("clip-tiny", "other")
    lose_an_image(run)
    result = verified(run, "--repair", "--clip-model", str(other))
    assert result.exit_code == 2
    assert f"the judge '{stranger.place / 'clip-tiny'}'" in result.stderr


def test_only_repairing_asks(run, stranger, monkeypatch):
    """What looks at a run folder loads no model, so it has nothing to ask."""
    rename(run, model=str(stranger.place), clip_model=str(stranger.place))
    monkeypatch.setattr("analogy.generation.worker.load_pipeline", pytest.fail)
    monkeypatch.setattr("analogy.judges.open_clip.JudgeSource.load", pytest.fail)
    assert verified(run).exit_code == 0
    (run / "results.json").unlink(missing_ok=True)
    import analogy

    assert len(analogy.load_run(run).images)


@pytest.fixture
def method(tmp_path, monkeypatch):
    """A module on the path whose method a run folder may name; importing it leaves a mark."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text(
        f"open({str(tmp_path / 'mark')!r}, 'w').close()\nfrom own import pooled\n"
    )
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    yield tmp_path / "mark"
    sys.modules.pop("theirs", None)


def lose_a_control(run: Path) -> None:
    """Lose an image of alpha 0, which is in the grid of every method."""
    folder = RunFolder(run, read_only=True)
    job = next(job for job in folder.commands()[0].jobs() if job.alpha == 0.0)
    folder.close()
    (run / "images" / job.key[:2] / f"{job.key}.png").unlink()


def test_a_method_that_a_run_folder_names_is_not_imported(run, method):
    rename(run, method="theirs:pooled")
    lose_a_control(run)
    before = content(run)
    folder = RunFolder(run, read_only=True)
    Study.reopen(folder, folder.commands()[0]).analysis()
    folder.close()
    assert verified(run).exit_code == 1
    result = verified(run, "--repair")
    assert result.exit_code == 2
    assert "would be loaded: the method 'theirs:pooled'. If you trust" in result.stderr
    assert "again with --method" in result.stderr
    assert not method.exists()
    assert content(run) == before
    assert verified(run, "--repair", "--method", "own:pooled").exit_code == 2
    assert not method.exists()


@pytest.mark.parametrize("given", [["--trust"], ["--method", "theirs:pooled"]])
def test_a_confirmed_method_is_imported(run, method, given):
    rename(run, method="theirs:pooled", method_version="2", method_needs=["words"])
    lose_a_control(run)
    result = verified(run, "--repair", *given)
    assert method.exists()
    assert "repaired  1 images" in result.stdout, result.stderr
    assert ("trusted: the method 'theirs:pooled'" in result.stderr) == (given == ["--trust"])


def test_another_version_of_a_method_repairs_nothing(run, method):
    rename(run, method="theirs:pooled", method_version="1", method_needs=["words"])
    lose_a_control(run)
    before = content(run)
    result = verified(run, "--repair", "--trust")
    assert result.exit_code == 4
    assert "version '1', got version '2'" in result.stderr
    assert content(run) == before


def test_a_models_index_imports_no_family(stranger, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    folder = stranger.copy("sdxl-tiny", "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "theirs:family"
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"families supported \(.*, got theirs:family"):
        find_pipeline(str(folder), dtype="float32")
    assert not (tmp_path / "mark").exists()


def test_a_study_of_a_run_folder_alone_loads_nothing(run, stranger):
    """Whatever comes to read run folders: a study of one cannot load what it names."""
    rename(run, model=str(stranger.place), clip_model=str(stranger.place))
    folder = RunFolder(run)
    try:
        study = Study.reopen(folder, folder.commands()[0])
        with pytest.raises(ModelError, match="known from a run folder alone"):
            study.judge.load("cpu")
        with pytest.raises(ModelError, match="known from a run folder alone"):
            Worker(Setup(study.config, study.pairs, study.model, study.judge)).prepare()
    finally:
        folder.close()


# --- what docs/security.md says


def test_every_test_that_the_page_names_is_there_and_each_of_these_is_named():
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    named = set(re.findall(r"`(tests/\w+\.py)::(test_\w+)`", page))
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.M), (file, name)
    own = {name for name in globals() if name.startswith("test_")}
    assert own - {name for _, name in named} == {
        "test_every_test_that_the_page_names_is_there_and_each_of_these_is_named"
    }
