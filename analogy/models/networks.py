"""Check a model's weight files against its networks: every weight must come from the files.

The libraries that load a network fill missing keys with random numbers and only log a line. Here
every key of every part must be present, or a :class:`ModelError` names the part and the keys. What
a file's header shows is checked when a model is found, the rest when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from analogy.core.errors import ModelError
from analogy.core.strict_json import Json
from analogy.core.text import command_line
from analogy.models.libraries import (
    diffusers_logging,
    peft_tuners,
    single_file_model,
    transformers,
    transformers_logging,
)
from analogy.models.memory import MemoryFullError, memory_said

#: The first bytes of a pointer that git-lfs has left in the place of a file.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

#: The most keys or problems that a message names. It gives the number of further ones.
_MOST_NAMED = 4

_SAVED_ANEW = "fetch the model again, whole, or save it again with the versions that are installed"


@contextmanager
def loading(what: object, expected: str) -> Iterator[None]:
    """Turn any error of a library that reads a user's files into a :class:`ModelError`.

    An out-of-memory error becomes a ``MemoryFullError`` instead: the files are not its cause.
    """
    try:
        with memory_said(f"loading {what}"):
            yield
    except (ModelError, MemoryFullError):
        raise
    except Exception as error:  # libraries' readers raise errors of any type
        raise ModelError(f"{what}: expected {expected}, got {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An error of another library in one line, cut after 500 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else f"{text[:500]}..."


def read_object(file: Path, *keys: str, what: str) -> dict[str, Json]:
    """The object in a JSON file, which must have these keys.

    Raises :class:`ModelError` if the file cannot be read, is not a JSON object, or lacks a key.
    """
    expected = f"{what}, a JSON object"
    if keys:
        expected += f" with {', '.join(keys)}"
    refuse_pointer(file)
    try:
        found = json.loads(file.read_text("utf-8"))
    except RecursionError:
        raise ModelError(
            f"{file}: expected {expected}, got values nested too deeply; {_SAVED_ANEW}"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file}: expected {expected}, got {reason(error)}; {_SAVED_ANEW}"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{file}: expected {expected}, got {type(found).__name__}; {_SAVED_ANEW}")
    if missing := [key for key in keys if key not in found]:
        raise ModelError(f"{file}: expected {expected}, found no {missing[0]}; {_SAVED_ANEW}")
    return found


def refuse_pointer(file: Path) -> None:
    """Raise :class:`ModelError` if git-lfs has left a pointer in the file's place."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(len(_LFS_POINTER))
    except OSError:
        return  # whoever reads the file reports it
    if start == _LFS_POINTER:
        raise ModelError(
            f"{file}: expected the file itself, got a pointer of git-lfs; "
            f"fetch it with: {command_line('git', '-C', str(file.parent), 'lfs', 'pull')}"
        )


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file, from its header.

    Raises :class:`ModelError` for a file that is missing, cut off, or of another format.
    """
    refuse_pointer(file)
    try:
        with safe_open(file, framework="pt") as opened:
            keys = opened.keys()
            return {key: tuple(opened.get_slice(key).get_shape()) for key in keys}
    except Exception as error:  # a SafetensorError, an OSError, or another error of its reader
        raise ModelError(
            f"{file}: not a safetensors file, or not all of one ({reason(error)}); fetch it again"
        ) from error


def check_weights(folder: Path, files: Iterable[Path]) -> None:
    """Raise :class:`ModelError` if a part's weights are missing or incomplete, by their headers.

    ``files``: those that are to be loaded from ``folder``.
    """
    files = list(files)
    if not files:
        raise ModelError(
            f"{folder}: expected the part's weights as .safetensors in the precision that is "
            f"asked for, found none; {_SAVED_ANEW}"
        )
    for file in files:
        shapes_in(file)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        listed = read_object(index, "weight_map", what="the index of a part's shards")["weight_map"]
        if not isinstance(listed, dict):
            raise ModelError(f"{index}: expected weight_map as an object; {_SAVED_ANEW}")
        names = set(map(str, listed.values()))
        if names & {file.name for file in files}:  # this index lists files that are to be loaded
            missing = sorted(name for name in names if not (folder / name).is_file())
            if missing:
                raise ModelError(
                    f"{folder}: expected the shards that {index.name} lists, found no "
                    f"{_listed(missing)}; fetch them"
                )


def load_network(
    kind: Any, folder: Path, *, dtype: torch.dtype, variant: str | None, quantization: Any = None
) -> nn.Module:
    """Load a part of a pipeline, with all of its weights from its files.

    ``kind``: its class in diffusers or transformers; ``quantization``: the library's configuration
    of how its weights are quantized; None if they are not. Raises :class:`ModelError` for keys that
    are missing, unexpected or of another shape.
    """
    options: dict[str, Any] = {"torch_dtype": dtype}
    if issubclass(kind, transformers.PreTrainedModel):
        # Without this, the library names the keys that do not fit only in its log.
        options = {"dtype": dtype, "ignore_mismatched_sizes": True}
    if quantization is not None:
        options["quantization_config"] = quantization
    with loading(folder, f"a {kind.__name__} in the format of save_pretrained"), quiet_libraries():
        network, found = kind.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    refuse_odd_keys(
        folder,
        network,
        missing=found["missing_keys"],
        unexpected=found["unexpected_keys"],
        mismatched=[mismatch(each) for each in found["mismatched_keys"]],
    )
    return network


def refuse_odd_keys(
    part: object,
    network: nn.Module,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    mismatched: Iterable[str] = (),
    is_loaded: bool = True,
) -> None:
    """Raise :class:`ModelError` if the weights of a part do not match its network.

    An unexpected key that names one of the network's buffers, such as ``position_ids`` in older
    files, is harmless: the network computes it by itself. A tensor of a loaded network that still
    has no values counts as missing, even if the library has not reported it.
    """
    buffers = {name for name, _ in network.named_buffers()}
    tensors = (*network.named_parameters(), *network.named_buffers())
    empty = [name for name, tensor in tensors if tensor.is_meta and is_loaded]
    problems = {
        "missing": sorted({*missing, *empty}),
        "unexpected": sorted(set(unexpected) - buffers),
        "of another shape": sorted(set(mismatched)),
    }
    said = [f"{kind}: {_listed(keys)}" for kind, keys in problems.items() if keys]
    if said:
        raise ModelError(
            f"{part}: expected the weights of every parameter of its {type(network).__name__} and "
            f"no others, got keys {'; '.join(said)}; its network would compute with random "
            f"numbers. {_SAVED_ANEW.capitalize()}"
        )


def check_converted(kind: Any, file: Path, folder: Path) -> None:
    """Check a single-file checkpoint against the diffusers network that ``folder`` configures.

    Compares only shapes, after the conversion with which diffusers loads the file. For a UNet, it
    also refuses keys of the file that a network of this configuration would leave out. Raises
    :class:`ModelError`.
    """
    config = read_object(folder / "config.json", what="a network's configuration")
    with loading(file, f"a {kind.__name__} as {folder} configures it"), torch.device("meta"):
        network = kind.from_config(config)
        held = {key: torch.empty(shape) for key, shape in shapes_in(file).items()}
        known: Mapping[str, Any] = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
        converted = known[kind.__name__]["checkpoint_mapping_fn"](
            config=config, checkpoint=dict(held)
        )
    takes = network.state_dict()
    used = {id(tensor) for tensor in converted.values()}
    refuse_odd_keys(
        f"{file}: {folder.name} (configured by {folder})",
        network,
        missing=takes.keys() - converted.keys(),
        unexpected=[
            key
            for key, tensor in held.items()
            if key.startswith(_UNET) and folder.name == "unet" and id(tensor) not in used
        ],
        mismatched=[
            mismatch((key, tuple(tensor.shape), tuple(takes[key].shape)))
            for key, tensor in converted.items()
            if key in takes and takes[key].shape != tensor.shape
        ],
        is_loaded=False,
    )


#: The prefix of a UNet's keys in a single file.
_UNET = "model.diffusion_model."


def refuse_resized(file: Path, network: nn.Module) -> None:
    """Raise :class:`ModelError` if a judge's weights have been stretched to fit its network.

    open_clip interpolates position embeddings made for another image size or context length.
    """
    takes = network.state_dict()
    mismatched = []
    for key, shape in shapes_in(file).items():
        name = key if key in takes else f"text.{key}"
        is_stretched = name in takes and tuple(takes[name].shape) != shape
        if is_stretched and key.endswith("positional_embedding"):
            mismatched.append(mismatch((key, shape, tuple(takes[name].shape))))
    refuse_odd_keys(file, network, mismatched=mismatched)


def read_adapter(file: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a LoRA's file, and True if its header has their scales.

    Raises :class:`ModelError` if it cannot be read.
    """
    with loading(file, "a LoRA as a safetensors file"), safe_open(file, framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        return tensors, bool((opened.metadata() or {}).get("lora_adapter_metadata"))


def check_adapter(
    pipeline: Any, given: Mapping[str, Tensor], what: str, dtype: torch.dtype,
    *, has_scales_of_its_own: bool,
) -> None:  # fmt: skip
    """Check that a LoRA is completely loaded into a pipeline, with the values that were given.

    Libraries drop what does not fit: layers of another model, the magnitudes of a DoRA, scales. So
    each tensor and each scale of the file must be found, by its values, in the layers.
    ``given`` and ``has_scales_of_its_own``: as from :func:`read_adapter`; ``what``: the option and
    the file, for messages; ``dtype``: of the loaded layers, in which values are compared. Raises
    :class:`ModelError` with the keys that were not found.
    """
    arrived: Counter[bytes] = Counter()
    scales: dict[bytes, list[float]] = {}
    for layer in _lora_layers(pipeline):
        for name, tensor in layer.named_parameters():
            if not name.startswith("lora_"):
                continue  # the layer's own weight, below
            digest = _digest(tensor, dtype)
            arrived[digest] += 1
            if name.startswith("lora_A."):
                scales.setdefault(digest, []).extend(map(float, layer.scaling.values()))
    alphas = {
        key.removesuffix(_ALPHA): value
        for key, value in given.items()
        if key.endswith(_ALPHA) and value.numel() == 1
    }
    lost, unscaled = [], []
    for key, value in given.items():
        if key.removesuffix(_ALPHA) in alphas and key.endswith(_ALPHA):
            continue
        digest = _digest(value, dtype)
        if not arrived[digest]:
            lost.append(key)
            continue
        arrived[digest] -= 1
        base = next((key.removesuffix(end) for end in _DOWN if key.endswith(end)), None)
        if base is None or has_scales_of_its_own:
            continue
        alpha = alphas.pop(base, None)
        scale = 1.0 if alpha is None else float(alpha) / value.shape[0]
        if not any(abs(scale - each) <= 1e-3 * abs(scale) for each in scales.get(digest, [])):
            unscaled.append(key)
    lost += [base + _ALPHA for base in alphas if not has_scales_of_its_own]
    if not lost and not unscaled:
        return
    said = []
    if lost:
        said.append(f"{len(lost)} of its {len(given)} tensors have no place: {_listed(lost)}")
    if unscaled:
        said.append(f"of these the scale (alpha) is lost: {_listed(unscaled)}")
    raise ModelError(
        f"{what}: expected a LoRA that a {type(pipeline).__name__} of this size takes whole "
        f"as diffusers reads it, but {'; '.join(said)}. A part of it would be another adapter. "
        "Choose one that was trained for this model as a plain LoRA (not DoRA in another tool's "
        "format, LoHa or LoKr)"
    )


_ALPHA = ".alpha"
#: The endings of the key of a LoRA's first matrix, in the formats of different tools.
_DOWN = (
    ".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight",
    "_lora.down.weight",
)  # fmt: skip


def _lora_layers(pipeline: Any) -> Iterator[Any]:
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            yield from (
                layer for layer in part.modules() if isinstance(layer, peft_tuners.BaseTunerLayer)
            )


def _digest(tensor: Tensor, dtype: torch.dtype) -> bytes:
    """A digest of a tensor's values in ``dtype``, independent of its shape and its file's dtype."""
    values = tensor.detach().cpu().to(dtype).float().contiguous().reshape(-1)
    return hashlib.sha256(values.numpy().tobytes()).digest()


def mismatch(found: Any) -> str:
    """A mismatched key, for messages: its name, with both shapes if the library reports them."""
    if isinstance(found, str):
        return found
    key, *shapes = found
    return f"{key} ({', not '.join('x'.join(map(str, shape)) for shape in shapes)})"


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _MOST_NAMED:,} more" if len(keys) > _MOST_NAMED else ""
    return ", ".join(keys[:_MOST_NAMED]) + more


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the logs of diffusers and transformers about keys, which our own error reports."""
    before = [each.get_verbosity() for each in (diffusers_logging, transformers_logging)]
    try:
        for each in (diffusers_logging, transformers_logging):
            each.set_verbosity_error()
        yield
    finally:
        for each, level in zip((diffusers_logging, transformers_logging), before, strict=True):
            each.set_verbosity(level)
