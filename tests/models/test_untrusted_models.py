"""Models and LoRAs that a stranger gave: none of their code runs, no name in them is followed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from strangers import AUTO_MAP, a_pipe, change, code_beside, in_file, moved_out

from analogy.core.errors import ModelError
from analogy.models.loading import load_pipeline
from analogy.models.sources import find_pipeline
from analogy.models.trust.pipelines import check_pipeline, read_index

# --- what is planted


def load_model(folder: Path | str, lora: Path | None = None):
    given = None if lora is None else str(lora)
    source = find_pipeline(str(folder), dtype="float32", lora=given)
    return load_pipeline(source, device="cpu", dtype="float32")


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


# --- run folders


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
