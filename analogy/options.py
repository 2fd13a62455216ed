"""The options of a run, defined once, and how their text is read. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from analogy import records
from analogy.records import DTYPES, ENGINES, PER_SET, Limit

#: Steps and guidance of the embedded default.
EMBEDDED_SAMPLING = (8, 4.0)

#: Steps and guidance that a model's card asks for, where that is not what its pipeline does by
#: itself. SSD-1B's (huggingface.co/segmind/SSD-1B) asks for a "CFG around 9.0" and names no number
#: of steps, which leaves the pipeline's; the turbo models are distilled to few steps without
#: guidance.
CARD_SAMPLING: dict[str, tuple[int, float]] = {
    "segmind/SSD-1B": (50, 9.0),
    "stabilityai/sd-turbo": (1, 0.0),
    "stabilityai/sdxl-turbo": (1, 0.0),
    "stabilityai/stable-diffusion-3.5-large-turbo": (4, 0.0),
}
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
    choices: tuple[str, ...] = ()  # what a shell completes

    @property
    def key(self) -> str:
        """The key of its parsed value."""
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def name(self) -> str:
        """Its name among pytest's options."""
        return f"analogy_{self.key}"


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


def _above_zero(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise ValueError(f"expected a finite number > 0, got {text!r}")
    return value


def _list_of(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse_list(text: str) -> tuple[Any, ...]:
        items = [item.strip() for item in text.split(",")]
        if not all(items):
            raise ValueError(f"expected values separated by commas, got {text!r}")
        return tuple(parse(item) for item in items)

    return parse_list


def parse_device(text: str) -> str:
    """The name of a device; another text is a ``ValueError``."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise ValueError(f"expected cpu, mps, cuda or cuda:N, got {text!r}")
    return text


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            near = get_close_matches(text, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected one of {', '.join(names)}, got {text!r}{hint}")
        return text

    return parse


def parse_methods(text: str) -> tuple[str, ...]:
    """Two or more different steering methods; another text is a ``ValueError``."""
    names: tuple[str, ...] = _list_of(_one_of(METHOD_NAMES))(text)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"expected two or more different ones of {', '.join(METHOD_NAMES)}, got {text!r}"
        )
    return names


def _limits(text: str) -> tuple[Limit, ...]:
    limits = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*(\S+)\s*", part)
        if not found:
            raise ValueError(f"expected metric>=value or metric<=value, got {part.strip()!r}")
        metric, sign, value = found.groups()
        name = _one_of((*records.PER_IMAGE, *PER_SET))(metric)
        limits.append(Limit(name, sign == ">=", _number(value)))
    return tuple(limits)


OPTIONS: tuple[Option, ...] = (
    Option("--gpu", "run on CUDA; the model is then segmind/SSD-1B and the judge open_clip's "
           "ViT-B-32 laion2b_s34b_b79k unless given", default=False),
    Option("--device", "cpu, mps, cuda or cuda:N [default: cpu; with --gpu cuda]",
           parse=parse_device, metavar="DEVICE", choices=("cpu", "mps", "cuda")),
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
    Option("--clip-dtype", f"what the judge computes in: {', '.join(DTYPES)}; half precision "
           "is faster and moves the margins (docs/performance.md)", default="float32",
           parse=_one_of(DTYPES), metavar="DTYPE", choices=DTYPES),
    Option("--pairs", "CSV file of word pairs [default: the suite's 400]", parse=str,
           metavar="FILE"),
    Option("--categories", "only these, separated by commas [default: all in the pairs]",
           parse=_list_of(str), metavar="NAMES"),
    Option("--alphas", "steering strengths, separated by commas; the control 0 is always there",
           default="0.5,0.8,1.0", parse=_list_of(_number), metavar="LIST"),
    Option("--seeds", "seeds, separated by commas: one image per pair, alpha and seed",
           default="0,1,2", parse=_list_of(_integer(0)), metavar="LIST"),
    Option("--method", f"steering method: {', '.join(METHOD_NAMES)}", default="word",
           parse=_one_of(METHOD_NAMES), metavar="NAME", choices=METHOD_NAMES),
    Option("--control", "measure the null control, the method random, beside the method",
           default=False),
    Option("--target", "also draw each target prompt itself: what the model can do at best, and "
           "the report's last column [default: on with --report]", default=False),
    Option("--steps", f"denoising steps [default: {EMBEDDED_SAMPLING[0]} for the embedded model; "
           "else what the model's card asks for, or its pipeline's own]", parse=_integer(1),
           metavar="N"),
    Option("--guidance", "classifier-free guidance scale [default: "
           f"{EMBEDDED_SAMPLING[1]} for the embedded model; else as for --steps]", parse=_number,
           metavar="SCALE"),
    Option("--size", "pixels a side [default: what the model was trained for]", parse=_integer(8),
           metavar="PIXELS"),
    Option("--dtype", f"what the generator computes in: {', '.join(DTYPES)} [default: the fastest "
           "that the device has: float16 on CUDA]", parse=_one_of(DTYPES), metavar="NAME",
           choices=DTYPES),
    Option("--limit", "only the first N pairs of each category, said so in every result",
           parse=_integer(1), metavar="N"),
    Option("--batch-size", "images generated together [default: as many as pay and fit; fewer by "
           "itself once memory runs out]", parse=_integer(1), metavar="N"),
    Option("--memory", "the most of a CUDA device's memory to use, in GiB [default: all that is "
           "free]", parse=_above_zero, metavar="GIB"),
    Option("--engine", f"who does the work: {', '.join(ENGINES)}; ray has workers on all "
           "devices of this machine or of a cluster", default="serial", parse=_one_of(ENGINES),
           metavar="NAME", choices=ENGINES),
    Option("--num-workers", "Ray's workers [default: one for each GPU; on CPUs one for each "
           "machine, which they share out]", parse=_integer(1), metavar="N"),
    Option("--ray-address", "a Ray cluster's address, such as auto or ray://head:10001 [default: "
           "this machine alone]", parse=str, metavar="ADDRESS"),
    Option("--run-dir", "where images and scores are kept and continued from "
           "[default: .analogy/runs/<config hash>]", parse=str, metavar="FOLDER"),
    Option("--ceiling", "the judge's margins on ground truth, by python -m fixtures.ceiling "
           "[default: the suite's own, for the embedded judge]", parse=str, metavar="FILE"),
    Option("--reference", "images that those of the grid should be distributed like, for CMMD and "
           "KID [default: for the embedded model, drawings of the pairs' targets]", parse=str,
           metavar="FOLDER"),
    Option("--lpips-weights", "torchvision's AlexNet for LPIPS [default: where torch keeps its "
           "downloads]", parse=str, metavar="FILE"),
    Option("--limits", "what quality metrics must be, such as 'ssim>=0.4,lpips<=0.3'; a case fails "
           "if its whole interval is beyond [default: recorded, never failed]", default=None,
           parse=_limits, metavar="LIST"),
    Option("--baseline", "results of an earlier run: no cell may fall below them, and cells that "
           "did not succeed there are expected not to [default: the suite's own for the embedded "
           "model, else none]", parse=str, metavar="FILE"),
    Option("--tolerance", "how far below the baseline a mean margin may be", default="0.005",
           parse=_at_least_zero, metavar="MARGIN"),
    Option("--update-baseline", "write this run's results as the baseline", default=False),
    Option("--results", "where to write the results", default="results.json", parse=str,
           metavar="FILE"),
    Option("--report", "write the report, one HTML file with every image and figure", parse=str,
           metavar="FILE.html"),
)  # fmt: skip


def parse_options(get: Callable[[str], Any]) -> dict[str, Any]:
    """Every option's parsed value, by the option's key.

    ``get`` gives an option's raw text (or bool) by its name. A wrong value is an
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
        values[option.key] = raw
    return values
