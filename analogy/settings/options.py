"""The options of a run, defined once, and the parsers of their text. Imports no torch."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from analogy.core.engines import ENGINES
from analogy.core.errors import AnalogyError, FieldError, OptionError
from analogy.core.fields import DTYPES, OFFLOADS, QUANTIZATIONS
from analogy.core.records import Limit
from analogy.core.registry import Registry
from analogy.grid_metrics import DEFAULT, grid_names
from analogy.models.samplings import EMBEDDED_SAMPLING
from analogy.settings.request import INCONCLUSIVE, RunRequest, option_error
from analogy.steering.base import DEFAULT_ALPHAS, METHODS
from analogy.writers import WRITERS, Output


@dataclass(frozen=True, slots=True)
class Option:
    """One command-line option: its flag, how its text is read, and its help.

    ``parse`` turns the text into a value, or raises ``OptionError``; None for a switch.
    """

    flag: str
    help: str
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()

    @property
    def completions(self) -> tuple[str, ...]:
        """The values that a shell offers. Only here are installed packages searched for more."""
        return self.choices() if callable(self.choices) else self.choices

    @property
    def key(self) -> str:
        """The field of :class:`~analogy.settings.request.RunRequest` that it sets."""
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def default(self) -> str | bool | None:
        """The default as text, or a bool for a switch; None if there is no fixed default."""
        if self.key == "alphas":  # the method's own
            return None
        value = getattr(_DEFAULTS, self.key)
        if isinstance(value, tuple):
            return ",".join(map(str, value)) or None
        return value if value is None or isinstance(value, bool) else str(value)

    @property
    def panel(self) -> str:
        """The option's group in the help."""
        return next(title for title, keys in PANELS.items() if self.key in keys)

    @property
    def name(self) -> str:
        """The option's name among pytest's options."""
        return f"analogy_{self.key}"


PANELS: dict[str, tuple[str, ...]] = {
    "Model and judge": (
        "gpu", "device", "offline", "model", "transformer", "lora", "dtype", "clip_model",
        "clip_pretrained", "clip_dtype", "quantize",
    ),
    "Pairs and method": (
        "pairs", "categories", "limit", "method", "alphas", "seeds", "control", "target", "steps",
        "guidance", "second_guidance", "size", "steer_from", "steer_until",
    ),
    "Stopping early": ("sequential", "order_seed", "full_unsteered", "futility", "reserve"),
    "Execution": (
        "batch_size", "memory", "offload", "engine", "num_workers", "ray_address", "run_dir",
    ),
    "Judgement": (
        "metrics", "limits", "baseline", "tolerance", "update_baseline", "inconclusive",
        "reference", "lpips_weights", "ceiling",
    ),
    "Outputs": ("results", "report", "write", "wide"),
}  # fmt: skip
"""The groups of options in the help, by their keys."""

_DEFAULTS = RunRequest()

MAX_INTEGER = 2**63 - 1
"""Largest integer that an option takes."""

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_RANGE = re.compile(r"([0-9]{1,9}) *(?:-|\.\.|:|to) *([0-9]{1,9})")
_MOST_OF_A_RANGE = 20


def _integer(low: int) -> Callable[[str], int]:
    """A parser of integers >= ``low``: ASCII digits and an optional sign; not 1e3, 1_000 or 3.0."""

    def parse(text: str) -> int:
        given = text.strip()
        if not _INTEGER.fullmatch(given) or len(given) > 20:
            raise OptionError(f"expected an integer >= {low}, got {text!r}{_plainly(given, int)}")
        value = int(given)
        if not low <= value <= MAX_INTEGER:
            most = f" and <= {MAX_INTEGER}" if value > MAX_INTEGER else ""
            raise OptionError(f"expected an integer >= {low}{most}, got {value}")
        return value

    return parse


def parse_number(text: str) -> float:
    """A finite decimal number: ASCII digits, a point, an exponent; not nan, inf, 1_000 or 0,5."""
    is_special = text.strip().lower().lstrip("+-") in ("nan", "inf", "infinity")
    return _finite(text, "a finite number" if is_special else "a number")


def _finite(text: str, expected: str) -> float:
    given = text.strip()
    if not _NUMBER.fullmatch(given):
        raise OptionError(f"expected {expected}, got {text!r}{_plainly(given, float)}")
    value = float(given)
    if math.isinf(value):
        raise OptionError(f"expected {expected}, got {text!r}, which is too large")
    return value


def _plainly(text: str, kind: type[int] | type[float]) -> str:
    """Advice on how to write the number that this text seems to mean; empty if it means none."""
    meant = unicodedata.normalize("NFKC", text).replace("_", "").replace("\u2212", "-")
    if kind is float and re.fullmatch(r"[+-]?[0-9]+,[0-9]+", meant):
        meant = meant.replace(",", ".")
    if len(meant) > 20 or not _NUMBER.fullmatch(meant):
        return ""
    value = float(meant)
    if kind is int and (not value.is_integer() or abs(value) > MAX_INTEGER):
        return ""
    return f"; write {int(value) if kind is int else meant}"


def parse_tolerance(text: str) -> float:
    """A finite number >= 0. Raises ``OptionError`` for any other text."""
    value = _finite(text, "a finite number >= 0")
    if value < 0:
        raise OptionError(f"expected a finite number >= 0, got {text!r}")
    return value


def _above_zero(text: str) -> float:
    value = _finite(text, "a finite number > 0")
    if value <= 0:
        raise OptionError(f"expected a finite number > 0, got {text!r}")
    return value


def _list_of(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse_list(text: str) -> tuple[Any, ...]:
        items = [item.strip() for item in text.split(",")]
        try:
            if not all(items):
                raise OptionError(f"expected values separated by commas, got {text!r}")
            return tuple(parse(item) for item in items)
        except OptionError as error:
            raise OptionError(f"{error}{_with_commas(text, parse)}") from None

    return parse_list


def _with_commas(text: str, parse: Callable[[str], Any]) -> str:
    """Advice on how to write the list that this text seems to mean; empty if it means none."""
    span = _RANGE.fullmatch(text.strip())
    if span:
        first, last = map(int, span.groups())
        items = [str(value) for value in range(first, min(last, first + _MOST_OF_A_RANGE) + 1)]
        if not 1 < len(items) <= _MOST_OF_A_RANGE:
            return ""
    else:
        items = [item for item in re.split(r"[\s,;/|()\[\]{}]+", text) if item]
    try:
        for item in items:
            parse(item)
    except OptionError:
        return ""
    return f"; write {','.join(items)}" if items else ""


def parse_names(text: str) -> tuple[str, ...]:
    """Names separated by commas, as one record of CSV: quotes enclose a name that has a comma.

    Raises ``OptionError`` if a name is empty, or a quote is not closed.
    """
    expected = "expected values separated by commas, those that hold a comma in double quotes"
    try:
        records = list(csv.reader(io.StringIO(text), strict=True, skipinitialspace=True))
    except csv.Error as error:
        raise OptionError(f"{expected}, got {text!r} ({error})") from None
    names = tuple(name.strip() for name in records[0]) if len(records) == 1 else ()
    if not names or not all(names):
        raise OptionError(f"expected values separated by commas, got {text!r}")
    return names


def csv_list(names: Iterable[str], separator: str = ",") -> str:
    """Names as :func:`parse_names` reads them."""
    quoted = (
        '"' + name.replace('"', '""') + '"' if "," in name or name.startswith('"') else name
        for name in names
    )
    return separator.join(quoted)


def parse_path(text: str) -> str:
    """A path with ``~`` and ``~user`` expanded, since no shell expands ``--run-dir=~/a``.

    A path that exists as written, with its tilde, is not expanded. Raises ``OptionError`` if the
    text is empty, or the user is unknown.
    """
    if not text.strip():
        raise OptionError(f"expected a path, got {text!r}")
    if not text.startswith("~") or os.path.lexists(text):
        return text
    path = os.path.expanduser(text)
    if path.startswith("~"):
        name = text.partition("/")[0]
        raise OptionError(
            f"expected a user of this machine after the ~, got {name!r}; for a file of that name "
            f"write ./{text}"
        )
    return path


def parse_device(text: str) -> str:
    """The name of a device. Raises ``OptionError`` for any other text."""
    if not re.fullmatch(r"cpu|mps|cuda(:(0|[1-9][0-9]{0,3}))?", text):
        raise OptionError(f"expected cpu, mps, cuda or cuda:N, got {text!r}")
    return text


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            near = get_close_matches(text, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"expected one of {', '.join(names)}, got {text!r}{hint}")
        return text

    return parse


def _name_in(registry: Registry[Any]) -> Callable[[str], str]:
    """A parser of the names that a registry offers; it imports nothing that they name."""

    def parse(text: str) -> str:
        try:
            return registry.check(text)
        except AnalogyError as error:
            raise OptionError(str(error)) from None

    return parse


_method = _name_in(METHODS)


def _outputs(text: str) -> tuple[Output, ...]:
    """Files with their writers. Imports the writers among which a suffix is looked up."""
    try:
        outputs = [Output.parse(file) for file in parse_names(text)]
    except AnalogyError as error:
        raise OptionError(str(error)) from None
    return tuple(replace(output, path=parse_path(output.path)) for output in outputs)


def parse_methods(text: str) -> tuple[str, ...]:
    """Two or more different steering methods. Raises ``OptionError`` for any other text."""
    names: tuple[str, ...] = _list_of(_method)(text)
    if len(names) < 2 or len(set(names)) < len(names):
        raise OptionError(
            f"expected two or more different ones of {', '.join(METHODS.names())}, got {text!r}"
        )
    return names


def _limits(text: str) -> tuple[Limit, ...]:
    limits = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*(\S+)\s*", part)
        if not found:
            raise OptionError(f"expected metric>=value or metric<=value, got {part.strip()!r}")
        metric, sign, value = found.groups()
        limits.append(Limit(metric, sign == ">=", parse_number(value)))
    return tuple(limits)


def _writer_starts() -> tuple[str, ...]:
    return tuple(f"{name}=" for name in WRITERS.names())


OPTIONS: tuple[Option, ...] = (
    Option("--gpu", "run on CUDA; the model is then segmind/SSD-1B and the judge open_clip's "
           "ViT-B-32 laion2b_s34b_b79k unless given"),
    Option("--device", "cpu, mps, cuda or cuda:N [default: cpu; with --gpu cuda]",
           parse=parse_device, metavar="DEVICE", choices=("cpu", "mps", "cuda")),
    Option("--offline", "never use the network; a file that is missing on this machine is an error "
           "that names the command to download it"),
    Option("--model", "'embedded', a diffusers folder, a .safetensors file, or a hub id with "
           "optional @revision [default: embedded; with --gpu segmind/SSD-1B]", parse=parse_path,
           metavar="MODEL"),
    Option("--transformer", "a .safetensors or .gguf file of a transformer's weights, in the place "
           "of the model's own (docs/models.md)", parse=parse_path, metavar="FILE"),
    Option("--lora", "a LoRA that is fused into the model: a .safetensors file, a folder that "
           "holds one, or a hub id with optional @revision", parse=parse_path, metavar="LORA"),
    Option("--clip-model", "the judge: 'embedded', an open_clip folder, name or hf-hub: id, the "
           "name of an installed package's judge, or your own as package.module:name "
           "[default: embedded; with --gpu ViT-B-32]", parse=parse_path, metavar="CLIP"),
    Option("--clip-pretrained", "open_clip's tag of the judge's weights, a .safetensors file, or "
           "TAG:FILE, a file of weights with the preprocessing of that tag "
           "[default: none; with --gpu laion2b_s34b_b79k]", parse=parse_path, metavar="TAG"),
    Option("--clip-dtype", f"the judge's number format: {', '.join(DTYPES)}; half precision "
           "is faster and changes margins slightly (docs/performance.md)",
           parse=_one_of(DTYPES), metavar="DTYPE", choices=DTYPES),
    Option("--pairs", "CSV file of word pairs [default: the suite's 400]", parse=parse_path,
           metavar="FILE"),
    Option("--categories", "only these categories, separated by commas; put a name that contains a "
           "comma in double quotes [default: all in the pairs]", parse=parse_names,
           metavar="NAMES"),
    Option("--alphas", "steering strengths, separated by commas; 0 (unsteered) is always included "
           f"[default: {','.join(map(str, DEFAULT_ALPHAS))}, or the method's own]",
           parse=_list_of(parse_number), metavar="LIST"),
    Option("--seeds", "seeds, separated by commas: one image per pair, alpha and seed",
           parse=_list_of(_integer(0)), metavar="LIST"),
    Option("--method", f"steering method: {', '.join(METHODS.builtin)}, one that an installed "
           "package adds, or package.module:name", parse=_method, metavar="NAME",
           choices=METHODS.names),
    Option("--control", "measure the null, the method random, beside the method; in results.json "
           "it is called random, and unsteered images (alpha 0) are called controls"),
    Option("--target", "also generate each target prompt's own image: the best that the model can "
           "do, and the report's last column [default: on with --report]"),
    Option("--steps", f"denoising steps [default: {EMBEDDED_SAMPLING[0]} for the embedded model; "
           "else what the model's card recommends, or its pipeline's default]", parse=_integer(1),
           metavar="N"),
    Option("--guidance", "classifier-free guidance scale [default: "
           f"{EMBEDDED_SAMPLING[1]} for the embedded model; else as for --steps]",
           parse=parse_number,
           metavar="SCALE"),
    Option("--second-guidance", "scale of the other guidance of a pipeline that has two, such as "
           "FLUX.1's true_cfg_scale (docs/models.md) [default: the pipeline's]",
           parse=parse_number, metavar="SCALE"),
    Option("--size", "pixels a side [default: the size that the model was trained for]",
           parse=_integer(8), metavar="PIXELS"),
    Option("--steer-from", "where steering begins, as a share of the steps: 0.25 leaves the first "
           "quarter to the source prompt, which decides the composition", parse=parse_number,
           metavar="SHARE"),
    Option("--steer-until", "where steering ends, as a share of the steps", parse=parse_number,
           metavar="SHARE"),
    Option("--dtype", f"the generator's number format: {', '.join(DTYPES)} [default: the fastest "
           "on the device: float16 on CUDA]", parse=_one_of(DTYPES), metavar="NAME",
           choices=DTYPES),
    Option("--quantize", "load the denoiser and the text encoders with rounded weights: "
           f"{', '.join(QUANTIZATIONS)} (docs/models.md)", parse=_one_of(QUANTIZATIONS),
           metavar="NAME", choices=QUANTIZATIONS),
    Option("--offload", "keep networks on the CPU until they are at work: model (whole networks), "
           "group or sequential (layers); for models that are larger than the device's memory",
           parse=_one_of(OFFLOADS), metavar="NAME", choices=OFFLOADS),
    Option("--limit", "only the first N pairs of each category; every result says so",
           parse=_integer(1), metavar="N"),
    Option("--sequential", "look at each cell after 16, 30, ... pairs in a random order and stop "
           "it once it is decided: the same verdicts for about half the images "
           "(docs/sequential.md); with --limit N the first N of that order"),
    Option("--order-seed", "seed of the random order of --sequential [default: 0]",
           parse=_integer(0), metavar="N"),
    Option("--full-unsteered", "with --sequential: make unsteered images as long as any cell of "
           "their category is open, not only until their gains are decided"),
    Option("--futility", "with --sequential: also stop cells that would hardly be decided by all "
           "their pairs; they count as inconclusive"),
    Option("--reserve", "with --sequential: keep a part of the error, so that pairs may be added "
           "once to cells that are undecided at the end"),
    Option("--batch-size", "images generated together [default: as many as fit and are faster; "
           "halved automatically if memory runs out]", parse=_integer(1), metavar="N"),
    Option("--memory", "the most of a CUDA device's memory to use, in GiB [default: all that is "
           "free]", parse=_above_zero, metavar="GIB"),
    Option("--engine", f"what runs the work: {', '.join(ENGINES.builtin)}; ray has workers on all "
           "devices of this machine or of a cluster", parse=_name_in(ENGINES), metavar="NAME",
           choices=ENGINES.names),
    Option("--num-workers", "number of Ray workers [default: one for each GPU; on CPUs one for "
           "each machine; workers of a machine share its CPUs]", parse=_integer(1), metavar="N"),
    Option("--ray-address", "a Ray cluster's address, such as auto or ray://head:10001 [default: "
           "only this machine]", parse=str, metavar="ADDRESS"),
    Option("--run-dir", "the folder that keeps images and scores; an existing one is continued "
           "[default: .analogy/runs/<config hash>]", parse=parse_path, metavar="FOLDER"),
    Option("--ceiling", "the judge's margins on ground truth, by python -m analogy.world.ceiling "
           "[default: the suite's own, for the embedded judge]", parse=parse_path, metavar="FILE"),
    Option("--reference", "reference images for CMMD and KID, which measure the distance between "
           "distributions [default: for the embedded model, drawings of the pairs' targets]",
           parse=parse_path, metavar="FOLDER"),
    Option("--lpips-weights", "torchvision's AlexNet for LPIPS [default: torch's download folder]",
           parse=parse_path, metavar="FILE"),
    Option("--metrics", "what is measured beside the margin: names, those of installed packages "
           "and package.module:name, separated by commas [default: "
           f"{', '.join(DEFAULT)}]", parse=_list_of(str), metavar="NAMES",
           choices=grid_names),
    Option("--limits", "limits of quality metrics, such as 'ssim>=0.4,lpips<=0.3'; a case fails "
           "if its whole interval is beyond [default: metrics are recorded and fail no case]",
           parse=_limits, metavar="LIST"),
    Option("--baseline", "results of an earlier run: a cell that falls below them fails, and cells "
           "that did not succeed there are expected failures [default: the suite's own for the "
           "embedded model, else none]", parse=parse_path, metavar="FILE"),
    Option("--tolerance", "how far below the baseline a mean margin may be",
           parse=parse_tolerance, metavar="MARGIN"),
    Option("--inconclusive", f"what an inconclusive case does: {', '.join(INCONCLUSIVE)} [default: "
           "fail with --baseline, --limits or --strict, else skip]", parse=_one_of(INCONCLUSIVE),
           metavar="HOW", choices=INCONCLUSIVE),
    Option("--update-baseline", "write this run's results as the baseline"),
    Option("--results", "the results file to write [default: results.json, unless it has results "
           "of a larger run]", parse=parse_path, metavar="FILE"),
    Option("--report", "write the report, one HTML file with every image and figure",
           parse=parse_path, metavar="FILE.html"),
    Option("--write", "further files of the results, separated by commas: FILE, whose suffix says "
           "how (.json, .html, .csv, .md, or one that an installed package adds), or NAME=FILE "
           f"with a writer of {', '.join(WRITERS.builtin)}, an installed package's or "
           "package.module:name", parse=_outputs, metavar="FILES", choices=_writer_starts),
    Option("--wide", "print all columns of the tables, some 120 characters"),
)  # fmt: skip


def parse_options(
    get: Callable[[str], Any], settings: Mapping[str, str | bool] | None = None
) -> RunRequest:
    """The request of all options.

    ``get`` returns an option's text (or bool) by the option's ``name``; None or False if it was not
    given. ``settings``: text (or bool) by the option's ``key``, for options that ``get`` does not
    give. Raises ``OptionError``, which names the option and what is allowed.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        raw = get(option.name)
        if settings is not None and raw in (None, False):
            raw = settings.get(option.key)
        if isinstance(raw, str) and option.parse is not None:
            try:
                raw = option.parse(raw)
            except OptionError as error:
                raise OptionError(f"{option.flag}: {error}") from None
        if raw is not None:
            values[option.key] = raw
    try:
        return RunRequest(**values)
    except FieldError as error:
        raise option_error(error) from None
