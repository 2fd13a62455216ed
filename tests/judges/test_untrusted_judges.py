"""Judges that a stranger gave: none of their code runs, none of their names is followed.

Each test plants code that writes a marker, loads what is around it as a user would, and finds no
marker but a sentence. What the loaders do with the same files without the suite's check is in
``test_the_planted_code_is_real``. docs/security.md lists these tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
from safetensors.torch import load_file, save_file
from strangers import (
    AUTO_MAP,
    a_pipe,
    change,
    code_beside,
    code_for_the_tokenizer,
    in_file,
    moved_out,
)
from typer.testing import CliRunner

from analogy import cli
from analogy.core.errors import ModelError
from analogy.judges.open_clip import Judge, find_judge
from analogy.models.fingerprints import fingerprint
from analogy.models.loading import load_pipeline
from analogy.models.sources import find_pipeline
from analogy.models.trust.judges import check_judge

# --- what is planted


def load_judge(folder: Path | str, weights: Path | None = None) -> Judge:
    source = find_judge(str(folder), None if weights is None else str(weights))
    return Judge(source, device="cpu").load()


# --- judges


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


def a_network_elsewhere(folder, stranger):
    """transformers asks on a terminal whether to run it, and takes a piped "y" for an answer."""
    other = stranger.place / "other"
    stranger.module(other / "theirs.py")
    settings = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}
    (other / "config.json").write_text(json.dumps(settings))
    in_judge("text_cfg", "hf_model_name", to=str(other))(folder, stranger)


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
