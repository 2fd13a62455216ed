"""Tokenizers, text encoders and VAEs of :mod:`zoo`: tiny, with random weights, made on the spot."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-_/\n<>|*[]{}"
_WORDS = ("red", "car", "a")
#: The chat template of all models that have one.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *_LETTERS, *(f"▁{word}" for word in _WORDS)]
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    return transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def gemma_tokenizer() -> Any:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *_LETTERS]
    made = transformers.GemmaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], padding_side="right",
        model_max_length=64,
    )  # fmt: skip
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)]
    )
    return made


def qwen_tokenizer() -> Any:
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = transformers.Qwen2TokenizerFast(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], extra_special_tokens=[
            "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
            "<|video_pad|>", "<|vision_pad|>",
        ],
    )  # fmt: skip
    made.chat_template = CHAT
    return made


def plain_tokenizer() -> Any:
    """A tokenizer of no class of its own, as GLM's and Llama's."""
    pieces = ["<pad>", "<eos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = TemplateProcessing(
        single="<eos> $A", pair="<eos> $A $B", special_tokens=[("<eos>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        bos_token="<eos>", model_max_length=128,
    )  # fmt: skip


def bert_tokenizer() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz",
              *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]  # fmt: skip
    return transformers.BertTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=77
    )


def t5(kind: Any = transformers.T5EncoderModel, config: Any = transformers.T5Config) -> Any:
    return kind(config(**{
        "vocab_size": 384, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    })).eval()  # fmt: skip


def qwen3(kind: Any = transformers.Qwen3Model, *, width: int = 16, layers: int = 2) -> Any:
    return kind(transformers.Qwen3Config(
        hidden_size=width, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, vocab_size=384, max_position_embeddings=2048,
    )).eval()  # fmt: skip


def qwen25_vl(width: int = 16) -> Any:
    return transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width, "intermediate_size": width, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 384,
            "rope_scaling": {"mrope_section": [width // 16, width // 16, width // 8],
                             "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
        },
        vision_config={"depth": 1, "hidden_size": width, "intermediate_size": width,
                       "num_heads": 2, "out_hidden_size": width},
        vision_end_token_id=259, vision_start_token_id=258, vision_token_id=260,
        image_token_id=260, video_token_id=261,
    )).eval()  # fmt: skip


def qwen3_vl(kind: Any, *, layers: int = 2) -> Any:
    return kind(transformers.Qwen3VLConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": layers,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 384,
            "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default"},
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                       "out_hidden_size": 16, "deepstack_visual_indexes": [0]},
        vision_end_token_id=259, vision_start_token_id=258, image_token_id=260, video_token_id=261,
    )).eval()  # fmt: skip


def gemma(kind: Any = transformers.Gemma2Model, config: Any = transformers.Gemma2Config) -> Any:
    return kind(config(
        head_dim=8, hidden_size=8, intermediate_size=16, num_attention_heads=2,
        num_hidden_layers=2, num_key_value_heads=2, vocab_size=128,
    )).eval()  # fmt: skip


def flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def wide_vae(channels: int = 16, *, levels: int = 2, **options: Any) -> Any:
    """Latents of these channels, ``2 ** (levels - 1)`` pixels each."""
    return diffusers.AutoencoderKL(
        block_out_channels=(16,) * levels, down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, latent_channels=channels, sample_size=32,
        norm_num_groups=8, layers_per_block=1, shift_factor=0.1159, scaling_factor=0.3611,
        **options,
    )  # fmt: skip


def flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,), layers_per_block=1, latent_channels=1, norm_num_groups=1,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=12, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def dc_vae() -> Any:
    return diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
