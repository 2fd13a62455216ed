"""The pipelines that are carried by replay, with the facts that a pipeline itself does not tell.

A row is as small as the pipeline allows: most are empty. Imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """What a pipeline's class does not say of itself.

    - ``guidance``: the argument of its call that ``--guidance`` sets;
    - ``guider``: True if guidance is a component of the pipeline, ``guider``, besides;
    - ``fixed``: further arguments of its call;
    - ``from_size``: attributes of the pipeline that decide an image's size, each with how it
      follows from the side: ``latents`` (the side in latents) or ``sizes`` (a list of sizes);
    - ``parts``: the classes of a part, where its annotation names a base class;
    - ``decoder`` and ``decoding``: the part that decodes latents, and arguments of its ``decode``;
    - ``is_single``: True if it makes one image at a time;
    - ``asks_encoder``: True if its call asks the text encoder for its dtype;
    - ``counted``: the tokenizers whose number of tokens for a prompt decides the length, mask or
      zeros of its conditioning; empty if all prompts have the same, None for all tokenizers;
    - ``encoders``: the text encoder of token states by their name, where lengths do not tell.
    """

    guidance: str = "guidance_scale"
    guider: bool = False
    fixed: Mapping[str, object] = field(default_factory=dict)
    from_size: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decoder: str = "vae"
    decoding: Mapping[str, object] = field(default_factory=dict)
    is_single: bool = False
    asks_encoder: bool = False
    counted: tuple[str, ...] | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)


_QWEN_TOKENIZER = ("transformers.Qwen2Tokenizer", "transformers.Qwen2TokenizerFast")
_LLAMA_TOKENIZER = (
    "transformers.PreTrainedTokenizerFast", "transformers.TokenizersBackend",
    "transformers.LlamaTokenizer", "transformers.LlamaTokenizerFast",
)  # fmt: skip

#: By the name of the pipeline's class.
ROWS: Mapping[str, Row] = {
    "FluxPipeline": Row(counted=()),
    "Flux2Pipeline": Row(parts={"tokenizer": ("transformers.PixtralProcessor",)}, counted=()),
    "Flux2KleinPipeline": Row(counted=()),
    "ChromaPipeline": Row(),
    "QwenImagePipeline": Row(guidance="true_cfg_scale"),
    "ZImagePipeline": Row(
        parts={"text_encoder": ("transformers.Qwen3Model", "transformers.Qwen3ForCausalLM"),
               "tokenizer": _QWEN_TOKENIZER}
    ),
    "SanaPipeline": Row(parts={"text_encoder": ("transformers.Gemma2Model",)}),
    # Its intermediate timestep goes with two steps alone.
    "SanaSprintPipeline": Row(
        parts={"text_encoder": ("transformers.Gemma2Model",)},
        fixed={"intermediate_timesteps": None},
    ),
    "PixArtAlphaPipeline": Row(),
    "PixArtSigmaPipeline": Row(),
    "LuminaPipeline": Row(parts={"text_encoder": ("transformers.GemmaModel",)}),
    "Lumina2Pipeline": Row(parts={"text_encoder": ("transformers.Gemma2Model",)}),
    "AuraFlowPipeline": Row(),
    "HiDreamImagePipeline": Row(
        from_size={"default_sample_size": "latents"}, parts={"tokenizer_4": _LLAMA_TOKENIZER},
        counted=(), encoders={"0.0": "text_encoder_3", "0.2": "text_encoder_4"},
    ),
    "CogView3PlusPipeline": Row(counted=()),
    "CogView4Pipeline": Row(parts={"tokenizer": _LLAMA_TOKENIZER}),
    "HunyuanDiTPipeline": Row(),
    "HunyuanImagePipeline": Row(
        guidance="distilled_guidance_scale", guider=True, counted=("tokenizer",)
    ),
    "Kandinsky3Pipeline": Row(decoder="movq", decoding={"force_not_quantize": True}),
    "Kandinsky5T2IPipeline": Row(
        from_size={"resolutions": "sizes"}, counted=("tokenizer",)
    ),
    "OvisImagePipeline": Row(),
    "LatentConsistencyModelPipeline": Row(counted=()),
    "Krea2Pipeline": Row(parts={"tokenizer": _QWEN_TOKENIZER}),
    "BriaPipeline": Row(),
    "BriaFiboPipeline": Row(parts={"tokenizer": _LLAMA_TOKENIZER}),
    "DreamLitePipeline": Row(
        parts={"tokenizer": _QWEN_TOKENIZER}, is_single=True, asks_encoder=True
    ),
}  # fmt: skip

#: Pipelines from text to images that diffusers has and the suite does not carry, with the reason.
NOT_CARRIED: Mapping[str, str] = {
    "KolorsPipeline": "it needs the package sentencepiece, without which it could not be tested",
    "PRXPipeline": "transformers 5 does not load its text encoder, T5GemmaEncoder, by its name",
    "GlmImagePipeline": "an autoregressive stage reads the prompt besides its text encoder",
    "ErnieImagePipeline": "its prompt rewriter reads the prompt besides its text encoder",
    "LongCatImagePipeline": "its prompt rewriter reads the prompt besides its text encoder",
    "IFPipeline": "its second stage is another pipeline",
    "StableCascadePipeline": "its two stages are two denoisers",
    "StableCascadeCombinedPipeline": "its two stages are two denoisers",
    "KandinskyV22Pipeline": "it needs image embeddings of another pipeline, its prior",
    "OmniGenPipeline": "it has no encode_prompt: its transformer reads the prompt's tokens",
}
