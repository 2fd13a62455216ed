"""The pipelines that replay supports, with the facts that a pipeline's class does not show.

A row has only what differs from the defaults. Imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Knob:
    """A guidance scale of a pipeline: the argument or part that has it, and its kind."""

    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.name}, {self.kind}"


CLASSIFIER_FREE = "classifier-free"
#: The scale is an input of the denoiser, which was trained to imitate classifier-free guidance.
DISTILLED = "distilled"
PERTURBED = "perturbed attention"

CFG = Knob("guidance_scale", CLASSIFIER_FREE)
TRUE_CFG = Knob("true_cfg_scale", CLASSIFIER_FREE)
EMBEDDED_GUIDANCE = Knob("guidance_scale", DISTILLED)
#: A component of the pipeline, not an argument of its call.
GUIDER = Knob("guider", CLASSIFIER_FREE)
PAG = Knob("pag_scale", PERTURBED)


@dataclass(frozen=True, slots=True)
class PipelineRow:
    """What a pipeline's class does not show.

    - ``guidance``: what ``--guidance`` sets, None if the class has no guidance; ``second``: what
      ``--second-guidance`` sets;
    - ``least_guidance``: the smallest scale that its call takes, at which guidance is off;
    - ``guidance_default``: the default scale, if the signature of its call has none;
    - ``fixed``: further arguments of its call;
    - ``from_size``: attributes of the pipeline that decide an image's size, each with how it
      follows from the side: ``latents`` (the side in latents) or ``sizes`` (a list of sizes);
    - ``parts``: the classes of a part whose annotation names a base class;
      ``unloaded``: parts that its call never uses with the suite's arguments;
    - ``decoder`` and ``decoding``: the part that decodes latents, and arguments of its ``decode``;
    - ``is_single``: True if it makes one image at a time;
    - ``asks_encoder``: True if its call reads the text encoder's dtype;
    - ``hides_masked``: True if the values of masked tokens have no effect on images, so that only
      the other tokens are kept. False for pipelines that mask hardly any tokens;
    - ``counted``: the tokenizers whose number of tokens for a prompt decides the length, mask or
      zeros of its conditioning; empty if these are the same for all prompts, None for all
      tokenizers;
    - ``encoders``: the text encoder of token states, by the states' name, if lengths do not
      identify it.
    """

    guidance: Knob | None = CFG
    second: Knob | None = None
    least_guidance: float = 0.0
    guidance_default: float | None = None
    fixed: Mapping[str, object] = field(default_factory=dict)
    from_size: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unloaded: tuple[str, ...] = ()
    decoder: str = "vae"
    decoding: Mapping[str, object] = field(default_factory=dict)
    is_single: bool = False
    asks_encoder: bool = False
    hides_masked: bool = False
    counted: tuple[str, ...] | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)


_QWEN_TOKENIZER = ("transformers.Qwen2Tokenizer", "transformers.Qwen2TokenizerFast")
_LLAMA_TOKENIZER = (
    "transformers.PreTrainedTokenizerFast", "transformers.TokenizersBackend",
    "transformers.LlamaTokenizer", "transformers.LlamaTokenizerFast",
)  # fmt: skip

_GEMMA_TOKENIZER = (
    *_LLAMA_TOKENIZER, "transformers.GemmaTokenizer", "transformers.GemmaTokenizerFast",
    "transformers.T5Tokenizer", "transformers.T5TokenizerFast",
)  # fmt: skip

#: Rows by the name of the pipeline's class.
ROWS: Mapping[str, PipelineRow] = {
    "FluxPipeline": PipelineRow(EMBEDDED_GUIDANCE, second=TRUE_CFG, counted=()),
    "Flux2Pipeline": PipelineRow(
        EMBEDDED_GUIDANCE, parts={"tokenizer": ("transformers.PixtralProcessor",)}, counted=()
    ),
    "Flux2KleinPipeline": PipelineRow(counted=()),
    "Flux2KleinKVPipeline": PipelineRow(None, counted=()),
    "ChromaPipeline": PipelineRow(),
    "QwenImagePipeline": PipelineRow(TRUE_CFG, second=EMBEDDED_GUIDANCE),
    "QwenImage21Pipeline": PipelineRow(TRUE_CFG, counted=("processor",)),
    "ZImagePipeline": PipelineRow(
        parts={"text_encoder": ("transformers.Qwen3Model", "transformers.Qwen3ForCausalLM"),
               "tokenizer": _QWEN_TOKENIZER}
    ),
    "SanaPipeline": PipelineRow(
        parts={"text_encoder": ("transformers.Gemma2Model",)}, hides_masked=True
    ),
    # Its default intermediate timestep works with two steps only.
    "SanaSprintPipeline": PipelineRow(
        EMBEDDED_GUIDANCE,
        parts={"text_encoder": ("transformers.Gemma2Model",)},
        fixed={"intermediate_timesteps": None}, hides_masked=True,
    ),
    "PixArtAlphaPipeline": PipelineRow(hides_masked=True),
    "PixArtSigmaPipeline": PipelineRow(hides_masked=True),
    "LuminaPipeline": PipelineRow(parts={"text_encoder": ("transformers.GemmaModel",)}),
    "Lumina2Pipeline": PipelineRow(
        parts={"text_encoder": ("transformers.Gemma2Model",)}, hides_masked=True
    ),
    "AuraFlowPipeline": PipelineRow(),
    "HiDreamImagePipeline": PipelineRow(
        from_size={"default_sample_size": "latents"}, parts={"tokenizer_4": _LLAMA_TOKENIZER},
        counted=(), encoders={"0.0": "text_encoder_3", "0.2": "text_encoder_4"},
    ),
    "CogView3PlusPipeline": PipelineRow(counted=()),
    "CogView4Pipeline": PipelineRow(parts={"tokenizer": _LLAMA_TOKENIZER}),
    "HunyuanDiTPipeline": PipelineRow(),
    "HunyuanImagePipeline": PipelineRow(
        GUIDER,
        second=Knob("distilled_guidance_scale", DISTILLED),
        guidance_default=3.5,  # AdaptiveProjectedMixGuidance's own
        hides_masked=True, counted=("tokenizer",),
    ),
    "Kandinsky3Pipeline": PipelineRow(decoder="movq", decoding={"force_not_quantize": True}),
    "Kandinsky5T2IPipeline": PipelineRow(
        from_size={"resolutions": "sizes"}, counted=("tokenizer",)
    ),
    "OvisImagePipeline": PipelineRow(),
    "LatentConsistencyModelPipeline": PipelineRow(EMBEDDED_GUIDANCE, counted=()),
    "Krea2Pipeline": PipelineRow(parts={"tokenizer": _QWEN_TOKENIZER}),
    "BriaPipeline": PipelineRow(),
    "BriaFiboPipeline": PipelineRow(parts={"tokenizer": _LLAMA_TOKENIZER}),
    "DreamLitePipeline": PipelineRow(
        parts={"tokenizer": _QWEN_TOKENIZER}, is_single=True, asks_encoder=True
    ),
    "DreamLiteMobilePipeline": PipelineRow(
        None, parts={"tokenizer": _QWEN_TOKENIZER}, is_single=True, asks_encoder=True
    ),
    "LongCatImagePipeline": PipelineRow(counted=()),
    # Its parts that rewrite prompts are not loaded.
    "ErnieImagePipeline": PipelineRow(
        parts={"tokenizer": _LLAMA_TOKENIZER, "pe_tokenizer": _LLAMA_TOKENIZER},
        unloaded=("pe", "pe_tokenizer"),
    ),
    "PRXPipeline": PipelineRow(
        least_guidance=1.0, parts={"tokenizer": _GEMMA_TOKENIZER}, is_single=True
    ),
    "BriaFibo2Pipeline": PipelineRow(counted=("processor",)),
    "StableDiffusionPAGPipeline": PipelineRow(second=PAG, counted=()),
    "StableDiffusion3PAGPipeline": PipelineRow(second=PAG, counted=()),
    "PixArtSigmaPAGPipeline": PipelineRow(second=PAG),
    "SanaPAGPipeline": PipelineRow(
        second=PAG, parts={"text_encoder": ("transformers.Gemma2Model",)}
    ),
}  # fmt: skip

#: Text-to-image pipelines of diffusers that the suite does not support, with the reason.
NOT_CARRIED: Mapping[str, str] = {
    "KolorsPipeline": (
        "its tokenizer needs the package sentencepiece and its text encoder is a class of "
        "diffusers' own with which the suite was not tested"
    ),
    "KolorsPAGPipeline": "as KolorsPipeline",
    "HunyuanDiTPAGPipeline": "its call fails where classifier-free guidance is off",
    "GlmImagePipeline": "an autoregressive stage reads the prompt besides its text encoder",
    "IFPipeline": "it denoises pixels, in three stages that are three pipelines",
    "PRXPixelPipeline": "it denoises pixels: there is nothing to decode",
    "Ideogram4Pipeline": (
        "its encoding depends on the image's size and its guidance on a second denoiser"
    ),
    "Cosmos2TextToImagePipeline": (
        "it runs only with a safety checker of the package cosmos_guardrail"
    ),
    "NucleusMoEImagePipeline": (
        "its encoding has a mask for some prompts and none for others, depending on their length"
    ),
    "StableUnCLIPPipeline": "a prior reads the prompt besides its text encoder",
    "StableCascadePipeline": "its two stages are two denoisers",
    "StableCascadePriorPipeline": "its two stages are two denoisers",
    "StableCascadeCombinedPipeline": "its two stages are two denoisers",
    "WuerstchenCombinedPipeline": "its two stages are two denoisers",
    "KandinskyCombinedPipeline": "a prior reads the prompt and gives image embeddings",
    "KandinskyPipeline": "it needs image embeddings of another pipeline, its prior",
    "KandinskyV22CombinedPipeline": "a prior reads the prompt and gives image embeddings",
    "KandinskyV22Pipeline": "it needs image embeddings of another pipeline, its prior",
    "OmniGenPipeline": "it has no encode_prompt: its transformer reads the prompt's tokens",
}
