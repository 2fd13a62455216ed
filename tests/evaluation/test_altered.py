"""What changes a live pipeline's images changes its fingerprint, or nobody finds them again."""

from __future__ import annotations

import diffusers
import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file

from analogy.evaluation import EvaluationAgent, Task
from analogy.evaluation.altered import UnknownError, alterations
from analogy.evaluation.subjects import pipeline_fingerprint
from analogy.models.loading import load_pipeline
from analogy.models.sources import find_pipeline

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def live(model_source):
    """The embedded pipeline, one of its own for each test."""
    return load_pipeline(model_source, device="cpu", dtype="float32")


@pytest.fixture
def adapted(live, tmp_path):
    """The same with an adapter that is loaded and not fused."""
    pytest.importorskip("peft")
    weights = {"lora_A.weight": torch.full((2, 160), 0.1), "lora_B.weight": torch.ones(160, 2)}
    save_file({f"unet.{LAYER}.{k}": v for k, v in weights.items()}, tmp_path / "a.safetensors")
    live.load_lora_weights(str(tmp_path), weight_name="a.safetensors", adapter_name="a")
    return live


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pipeline_as_it_was_made_is_not_altered(name, dtype):
    assert alterations(tiny.build(name).to(dtype)) == {}


@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_pipeline_as_it_was_loaded_is_not_altered(name, tmp_path):
    tiny.build(name).save_pretrained(tmp_path / name)
    source = find_pipeline(str(tmp_path / name), dtype="float32")
    assert alterations(load_pipeline(source, device="cpu", dtype="float32")) == {}


def test_an_adapters_weight_switch_and_fusion_are_in_the_fingerprint(adapted, model_source):
    plain = pipeline_fingerprint(load_pipeline(model_source, device="cpu", dtype="float32"))
    whole = pipeline_fingerprint(adapted)
    adapted.set_adapters("a", 0.5)
    half = pipeline_fingerprint(adapted)
    adapted.disable_lora()
    disabled = pipeline_fingerprint(adapted)
    adapted.enable_lora()
    adapted.set_adapters("a", 1.0)
    assert pipeline_fingerprint(adapted) == whole
    adapted.fuse_lora()
    assert len({plain, whole, half, disabled, pipeline_fingerprint(adapted)}) == 5


def _circular(pipeline):
    pipeline.unet.conv_in.padding_mode = "circular"


def _other_positions(pipeline):
    names = [n for n, _ in pipeline.text_encoder.named_buffers() if n.endswith("position_ids")]
    pipeline.text_encoder.get_buffer(names[0]).zero_()


def _dropout(pipeline):
    for module in pipeline.unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    pipeline.unet.train()


@pytest.mark.parametrize(
    "alter",
    [
        lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        lambda p: p.unet.set_attn_processor(AttnProcessor()),
        lambda p: p.enable_attention_slicing(),
        lambda p: p.vae.enable_tiling(),
        lambda p: p.unet.fuse_qkv_projections(),
        lambda p: setattr(p.tokenizer, "model_max_length", 16),
        lambda p: setattr(p.unet.conv_norm_out, "eps", 0.1),
        lambda p: p.unet.mid_block.resnets.append(torch.nn.Identity()),
        _circular, _other_positions, _dropout,
    ],
)  # fmt: skip
def test_what_changes_images_changes_the_fingerprint(live, alter):
    before = pipeline_fingerprint(live)
    alter(live)
    assert pipeline_fingerprint(live) != before


@pytest.mark.parametrize(
    "alter",
    [
        lambda p: (p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4), p.disable_freeu()),
        lambda p: p.unet.mid_block.register_forward_hook(lambda *_: None).remove(),
        lambda p: p.unet.to(memory_format=torch.channels_last),
        lambda p: p.unet.train(),  # without dropout, as all these networks are
    ],
)
def test_what_changes_no_image_keeps_the_fingerprint(live, alter):
    before = pipeline_fingerprint(live)
    alter(live)
    assert pipeline_fingerprint(live) == before


class Mine:
    """An attention processor that is in no library."""

    def __call__(self, attn, hidden_states, *given, **more):
        return hidden_states * 0.5


class Other(diffusers.StableDiffusionXLPipeline):
    """A pipeline with other code under the same name."""


Other.__name__ = "StableDiffusionXLPipeline"


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda p: p.unet.set_attn_processor(Mine()), "processor is of the class Mine"),
        (lambda p: p.unet.mid_block.register_forward_hook(lambda *_: None), "mid_block has a hook"),
        (
            lambda p: p.unet.register_forward_pre_hook(lambda *_: None),
            "unet has a hook",
        ),
        (lambda p: setattr(p.unet, "forward", p.unet.forward), "method forward of unet"),
        (lambda p: setattr(p, "encode_prompt", p.encode_prompt), "its method encode_prompt"),
        (lambda p: setattr(p, "unet", torch.nn.Sequential(p.unet)), "cannot be built"),
        (lambda p: setattr(p.scheduler, "__class__", Scheduler), "scheduler is of the class"),
    ],
)
def test_code_of_ones_own_is_unknown(live, alter, said):
    alter(live)
    with pytest.raises(UnknownError, match=said):
        pipeline_fingerprint(live)


class Scheduler(diffusers.EulerDiscreteScheduler):
    """Of no library either."""


def test_a_class_of_the_same_name_is_unknown(live):
    with pytest.raises(UnknownError, match="of no library"):
        pipeline_fingerprint(Other(**live.components))


def test_stale_images_are_not_taken_for_an_altered_pipelines(live, tmp_path):
    """Adapter, FreeU and hook each make images of their own, and a plain pipeline finds its own."""
    task = Task(["clip_score"], ["a red car"], run_dir=tmp_path, size=16, steps=2, batch_size=1)

    def values():
        report = EvaluationAgent(task).evaluate(live)
        (model,) = report.config["models"].values()
        return report.results[0].value, model.get("not_kept")

    before = pipeline_fingerprint(live)
    plain, reason = values()
    assert reason is None
    assert pipeline_fingerprint(live) == before  # libraries' own hooks, set at the first call
    live.enable_freeu(s1=0.1, s2=0.1, b1=2.0, b2=2.0)
    assert values()[0] != plain
    live.disable_freeu()
    assert values() == (plain, None)
    hook = live.unet.register_forward_hook(lambda module, given, made: (made[0] * 0.5,))
    hooked, reason = values()
    assert hooked != plain
    assert reason == "unet has a hook"
    folders = {folder.name for folder in tmp_path.iterdir()}
    values()
    assert len({folder.name for folder in tmp_path.iterdir()} - folders) == 1  # made once more
    hook.remove()
    assert values() == (plain, None)
