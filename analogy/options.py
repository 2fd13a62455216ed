"""The options of a run, defined once, and how their text is read. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

#: Steps and guidance of the embedded default, and those of SSD-1B: its model card
#: (huggingface.co/segmind/SSD-1B) asks for a "CFG around 9.0" and names no number of steps, which
#: leaves the 50 of diffusers' pipeline; the scheduler is the one in its folder (Euler).
EMBEDDED_SAMPLING = (8, 4.0)
GPU_SAMPLING = (50, 9.0)
EMBEDDED_BATCH, GPU_BATCH = 75, 8
CLIP_DTYPES = ("float32", "bfloat16", "float16")
METHOD_NAMES = ("lerp", "slerp", "word", "category", "random")


class OptionError(ValueError):
    """An option's value cannot be used; the message names the option and what is allowed."""


@dataclass(frozen=True, slots=True)
class Option:
    """One command-line option: its flag, how its text is read, its default and its help."""

    flag: str
    help: str
    default: Any = None
    parse: Callable[[str], Any] | None = None  # None: a switch
    metavar: str | None = None

    @property
    def name(self) -> str:
        """The key under which the parsed value is kept."""
        return "analogy_" + self.flag.lstrip("-").replace("-", "_")


def _integer(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"expected an integer >= {low}, got {text!r}") from None
        if value < low:
            raise ValueError(f"expected an integer >= {low}, got {value}")
        return value

    return parse


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, got {text!r}") from None


def _at_least_zero(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise ValueError(f"expected a finite number >= 0, got {text!r}")
    return value


def _list_of(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse_list(text: str) -> tuple[Any, ...]:
        items = [item.strip() for item in text.split(",")]
        if not all(items):
            raise ValueError(f"expected values separated by commas, got {text!r}")
        return tuple(parse(item) for item in items)

    return parse_list


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise ValueError(f"expected cpu, mps, cuda or cuda:N, got {text!r}")
    return text


def _method(text: str) -> str:
    if text not in METHOD_NAMES:
        near = get_close_matches(text, METHOD_NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expected one of {', '.join(METHOD_NAMES)}, got {text!r}{hint}")
    return text


def _dtype(text: str) -> str:
    if text not in CLIP_DTYPES:
        raise ValueError(f"expected one of {', '.join(CLIP_DTYPES)}, got {text!r}")
    return text


OPTIONS: tuple[Option, ...] = (
    Option("--gpu", "run on CUDA; the model is then segmind/SSD-1B and the judge open_clip's "
           "ViT-B-32 laion2b_s34b_b79k unless given", default=False),
    Option("--device", "cpu, mps, cuda or cuda:N [default: cpu; with --gpu cuda]", parse=_device,
           metavar="DEVICE"),
    Option("--offline", "never touch the network; a file that is not on this machine is an error "
           "that names the command that fetches it", default=False),
    Option("--model", "'embedded', a diffusers folder, a .safetensors file, or a hub id with "
           "optional @revision [default: embedded; with --gpu segmind/SSD-1B]", parse=str,
           metavar="MODEL"),
    Option("--lora", "a LoRA that is fused into the model: a .safetensors file, a folder that "
           "holds one, or a hub id with optional @revision", parse=str, metavar="LORA"),
    Option("--clip-model", "the judge: 'embedded', an open_clip folder, name or hf-hub: id "
           "[default: embedded; with --gpu ViT-B-32]", parse=str, metavar="CLIP"),
    Option("--clip-pretrained", "open_clip's tag of the judge's weights "
           "[default: none; with --gpu laion2b_s34b_b79k]", parse=str, metavar="TAG"),
    Option("--clip-dtype", f"what the judge computes in: {', '.join(CLIP_DTYPES)}; half precision "
           "is faster and moves the margins (docs/performance.md)", default="float32",
           parse=_dtype, metavar="DTYPE"),
    Option("--pairs", "CSV file of word pairs [default: the suite's 400]", parse=str,
           metavar="FILE"),
    Option("--categories", "only these, separated by commas [default: all in the pairs]",
           parse=_list_of(str), metavar="NAMES"),
    Option("--alphas", "steering strengths, separated by commas; the control 0 is always there",
           default="0.5,0.8,1.0", parse=_list_of(_number), metavar="LIST"),
    Option("--seeds", "seeds, separated by commas: one image per pair, alpha and seed",
           default="0,1,2", parse=_list_of(_integer(0)), metavar="LIST"),
    Option("--method", f"steering method: {', '.join(METHOD_NAMES)}", default="word",
           parse=_method, metavar="NAME"),
    Option("--control", "measure the null control, the method random, beside the method",
           default=False),
    Option("--steps", f"denoising steps [default: {EMBEDDED_SAMPLING[0]}; with --gpu "
           f"{GPU_SAMPLING[0]}]", parse=_integer(1), metavar="N"),
    Option("--guidance", f"classifier-free guidance scale [default: {EMBEDDED_SAMPLING[1]}; with "
           f"--gpu {GPU_SAMPLING[1]}]", parse=_number, metavar="SCALE"),
    Option("--limit", "only the first N pairs of each category, said so in every result",
           parse=_integer(1), metavar="N"),
    Option("--batch-size", f"images generated together [default: {EMBEDDED_BATCH}; with --gpu "
           f"{GPU_BATCH}]", parse=_integer(1), metavar="N"),
    Option("--run-dir", "where images and scores are kept and continued from "
           "[default: .analogy/runs/<config hash>]", parse=str, metavar="FOLDER"),
    Option("--ceiling", "the judge's margins on ground truth, by python -m fixtures.ceiling "
           "[default: the suite's own, for the embedded judge]", parse=str, metavar="FILE"),
    Option("--baseline", "results of an earlier run: no cell may fall below them, and cells that "
           "did not succeed there are expected not to [default: the suite's own for the embedded "
           "model, else none]", parse=str, metavar="FILE"),
    Option("--tolerance", "how far below the baseline a mean margin may be", default="0.005",
           parse=_at_least_zero, metavar="MARGIN"),
    Option("--update-baseline", "write this run's results as the baseline", default=False),
    Option("--results", "where to write the results", default="results.json", parse=str,
           metavar="FILE"),
)  # fmt: skip


def parse_options(get: Callable[[str], Any]) -> dict[str, Any]:
    """Every option's parsed value, keyed without the ``analogy_`` prefix.

    ``get`` gives an option's raw text (or bool) by its key. A wrong value is an
    :class:`OptionError` that names the option and what is allowed.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        raw = get(option.name)
        if isinstance(raw, str) and option.parse is not None:
            try:
                raw = option.parse(raw)
            except ValueError as error:
                raise OptionError(f"{option.flag}: {error}") from None
        values[option.name.removeprefix("analogy_")] = raw
    return values
