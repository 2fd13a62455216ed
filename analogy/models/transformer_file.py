"""A transformer whose weights are in a file of its own, ``.safetensors`` or GGUF.

It replaces the transformer of a pipeline's folder. The folder has its configuration and the other
parts. FLUX and its fine-tunes are often distributed this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from analogy.core.errors import ModelError
from analogy.models.fingerprints import file_fingerprint
from analogy.models.folders import family_of_folder
from analogy.models.gguf_files import SUFFIX, shapes_in_gguf
from analogy.models.libraries import diffusers, single_file_model
from analogy.models.networks import (
    loading,
    mismatch,
    quiet_libraries,
    read_object,
    refuse_odd_keys,
    shapes_in,
)
from analogy.models.places import ModelSource
from analogy.models.trust.rules import refuse_pickles

_Convert: TypeAlias = Callable[..., Mapping[str, Tensor]]

#: The name of a pipeline's part whose weights may be in a file of their own.
TRANSFORMER = "transformer"

#: The prefix of keys in files that ComfyUI writes.
_PREFIX = "model.diffusion_model."


def find_transformer(name: str) -> Path:
    """The file of ``--transformer``. Raises ModelError if it is missing, invalid or a LoRA."""
    file = Path(expanduser(name)).absolute()
    if not file.is_file():
        raise ModelError(
            f"--transformer {name}: expected a .safetensors or {SUFFIX} file, got "
            f"{'a folder' if file.is_dir() else 'no such file'}"
        )
    refuse_pickles([file])
    if any(".lora" in key or "lora_" in key for key in _shapes(file)):
        raise ModelError(
            f"--transformer {name}: expected the weights of a whole transformer, got a LoRA; give "
            "it with --lora"
        )
    return file


def with_transformer(source: ModelSource, file: Path) -> ModelSource:
    """A source whose transformer is loaded from a file; its fingerprint has the file's digest.

    Raises ModelError if the model is a single file, or its denoiser is not a transformer.
    """
    if source.file is not None:
        raise ModelError(
            f"--transformer {file}: expected --model as a folder or a hub id, got the single "
            f"file {source.file}"
        )
    family = family_of_folder(source.folder)
    if family.denoiser != TRANSFORMER:
        raise ModelError(
            f"--transformer {file}: expected --model with a transformer, such as FLUX.1's, got a "
            f"{family.pipeline}, whose denoiser is its {family.denoiser}"
        )
    name = file_fingerprint(f"{source.fingerprint}+{file.stem}", file)
    return replace(source, fingerprint=name, transformer=file)


def is_gguf(file: Path | None) -> bool:
    """True for a file whose weights are quantized in GGUF's format."""
    return file is not None and file.suffix == SUFFIX


def load_transformer(kind: Any, file: Path, folder: Path, *, dtype: torch.dtype) -> nn.Module:
    """Load the diffusers transformer that ``folder`` configures, with all weights from ``file``.

    The weights of a GGUF file stay quantized; the network computes in ``dtype``. Raises
    :class:`ModelError` for keys that are missing, unexpected or of another shape.
    """
    _check_fit(kind, file, folder)
    quantization = diffusers.GGUFQuantizationConfig(compute_dtype=dtype) if is_gguf(file) else None
    with loading(file, f"a {kind.__name__} as {folder} configures it"), quiet_libraries():
        network = kind.from_single_file(
            str(file), config=str(folder), torch_dtype=dtype, local_files_only=True,
            quantization_config=quantization,
        )  # fmt: skip
    refuse_odd_keys(file, network)
    _check_quantized(file, network)
    assert isinstance(network, nn.Module)
    return network


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if is_gguf(file):
        return shapes_in_gguf(file)
    if file.suffix == ".safetensors":
        return shapes_in(file)
    raise ModelError(f"--transformer {file}: expected a .safetensors or {SUFFIX} file")


def _check_fit(kind: Any, file: Path, folder: Path) -> None:
    """Check a file's keys and shapes against the network that a folder configures.

    If the file has fewer than half of the network's own keys, its keys are taken for those of the
    model's makers. They are converted as diffusers does when it loads the file.
    """
    loadable: Any = single_file_model.SINGLE_FILE_LOADABLE_CLASSES.get(kind.__name__)
    if loadable is None:
        raise ModelError(
            f"--transformer {file}: expected a model whose transformer diffusers loads from a "
            f"single file, got {folder.parent} with a {kind.__name__}; save the model as a folder"
        )
    config = read_object(folder / "config.json", what="a network's configuration")
    shapes = _shapes(file)
    with loading(file, f"a {kind.__name__} as {folder} configures it"), torch.device("meta"):
        network = kind.from_config(config)
        takes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        own = {key.removeprefix(_PREFIX) for key in shapes} & takes.keys()
        if len(own) * 2 < len(takes):
            held = {key: torch.empty(shape) for key, shape in shapes.items()}
            gives, rest = _converted(loadable["checkpoint_mapping_fn"], held, config, file, kind)
        else:
            gives, rest = {key.removeprefix(_PREFIX): each for key, each in shapes.items()}, set()
    refuse_odd_keys(
        f"{file} (configured by {folder})",
        network,
        missing=takes.keys() - gives.keys(),
        unexpected=(gives.keys() - takes.keys()) | rest,
        mismatched=[
            mismatch((key, gives[key], takes[key]))
            for key in gives.keys() & takes.keys()
            if gives[key] != takes[key]
        ],
        is_loaded=False,
    )


def _converted(
    convert: _Convert, held: dict[str, Tensor], config: Mapping[str, object], file: Path, kind: Any
) -> tuple[dict[str, tuple[int, ...]], set[str]]:  # fmt: skip
    """The shapes of a file's tensors after a conversion, and the keys that it has not used.

    Some conversions take what they use out of their dictionary, so that the rest stays in it. If
    the result has as many numbers as the file, nothing is unused.
    """
    numbers = sum(tensor.numel() for tensor in held.values())
    try:
        made = convert(config=config, checkpoint=held)
    except (KeyError, IndexError) as error:  # a key that it looked for
        raise ModelError(
            f"{file}: expected the weights of a {kind.__name__}, with diffusers' keys or those of "
            f"the model's makers, got a file without {error if error.args else 'them'}: it is of "
            "another architecture, or a part is missing"
        ) from error
    rest = set() if made is held else set(held)
    used = sum(tensor.numel() for tensor in made.values())
    if used == numbers:
        rest = set()
    return {key: tuple(tensor.shape) for key, tensor in made.items()}, rest


def _check_quantized(file: Path, network: nn.Module) -> None:
    """Raise ModelError for quantized tensors other than the matrices of linear layers.

    diffusers would compute with their bytes as if they were numbers.
    """
    if not is_gguf(file):
        return
    matrices = {
        f"{name}.weight" for name, layer in network.named_modules() if isinstance(layer, nn.Linear)
    }
    odd = [
        name
        for name, tensor in network.named_parameters()
        if hasattr(tensor, "quant_type") and name not in matrices
    ]
    if odd:
        raise ModelError(
            f"{file}: expected quantized weights of linear layers alone, got quantized "
            f"{', '.join(odd[:4])}; choose a file in which these are F32 or F16"
        )
