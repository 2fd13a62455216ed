"""Finds how a live pipeline differs from one built only from its configuration and weights.

Adapters, FreeU, attention processors, hooks, slicing and patched methods change images but are
neither in the weights nor in the configuration. Each part is therefore compared with a part that is
built from its configuration, without weights. Every difference becomes part of the pipeline's
fingerprint. Images are not reused if a difference has no stable name (the user's own code).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from analogy.core.strict_json import Json

#: Code of these libraries is identified by its name, since results record the libraries' versions.
_LIBRARIES = frozenset({"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate"})
_PLAIN = frozenset({"builtins", "collections", "enum", "functools"})

#: Attributes that every module has, and those that libraries set while loading a part.
_OF_ALL = frozenset(vars(nn.Module())) | {
    "_weight_conversions", "_use_kernels", "_internal_dict", "_output_capturing_hooks_installed",
}  # fmt: skip

#: The module of transformers' hooks that collect hidden states; they stay after the first call.
_OUTPUTS = "transformers.utils.output_capturing"

#: Settings of a tokenizer that may be changed after it was loaded.
_TOKENIZER = ("model_max_length", "padding_side", "truncation_side")

_MOST_NESTED = 12


class UnknownError(ValueError):
    """A part of the pipeline has no stable identity; the message names it."""


def alterations(pipeline: Any) -> dict[str, Json]:
    """The alterations, as plain values by place; empty for a pipeline as it was loaded.

    Raises :class:`UnknownError` if the pipeline has the user's own code, hooks, or a part that
    cannot be built from its configuration.
    """
    _check_class(pipeline, type(pipeline).__name__)
    _check_class(pipeline.scheduler, "scheduler")
    for name, value in vars(pipeline).items():
        if callable(value) and name not in pipeline.components:
            raise UnknownError(f"its method {name} is another one")
    found: dict[str, Json] = {}
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, nn.Module):
            found |= _of_network(name, part)
        elif hasattr(part, "init_kwargs"):
            found |= {
                f"{name}.{key}": getattr(part, key)
                for key in _TOKENIZER
                if getattr(part, key) != part.init_kwargs.get(key, getattr(part, key))
            }
    return found


def _of_network(name: str, part: nn.Module) -> dict[str, Json]:
    for inner, module in part.named_modules():
        _check_module(module, f"{name}.{inner}" if inner else name)
    try:
        built = dict(_as_configured(part).named_modules())
    except Exception as error:  # a class with another constructor may raise anything
        raise UnknownError(f"{name} cannot be built from its configuration ({error})") from error
    found: dict[str, Json] = {}
    modules = dict(part.named_modules())
    if absent := sorted(built.keys() - modules.keys()):
        found[f"{name}: without"] = absent
    for inner, module in modules.items():
        place = f"{name}.{inner}" if inner else name
        like = built.get(inner)
        if like is None or type(module) is not type(like):
            found[place] = type(module).__qualname__
        ours, theirs = _attributes(module), {} if like is None else _attributes(like)
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) is None and theirs.get(key) is None:
                continue  # a feature that was switched on and off again
            if key not in ours:
                found[f"{place}.{key}"] = "absent"
            elif key not in theirs or not _is_same(ours[key], theirs[key]):
                described = _described(ours[key], f"{place}.{key}")
                if key not in theirs or described != _described(theirs[key], f"{place}.{key}"):
                    found[f"{place}.{key}"] = described
    return found


def _as_configured(part: Any) -> nn.Module:
    """A part of the same class and configuration, its parameters without values."""
    with init_empty_weights(include_buffers=False):
        if hasattr(part, "from_config") and hasattr(part, "register_to_config"):
            made = type(part).from_config(part.config)
        else:
            made = type(part)(part.config)
    made.eval()
    assert isinstance(made, nn.Module)
    return made


def _check_module(module: nn.Module, place: str) -> None:
    """Raises :class:`UnknownError` if the module's class name does not identify its computation."""
    _check_class(module, place)
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if any(getattr(hook, "__module__", None) != _OUTPUTS for hook in hooks):
        raise UnknownError(f"{place} has a hook")
    for name, value in vars(module).items():
        if name in ("forward", "__call__") and callable(value):
            raise UnknownError(f"the method {name} of {place} is another one")


def _check_class(given: Any, place: str) -> None:
    for function in (type(given), getattr(type(given), "forward", None)):
        if not _is_known(function):
            raise UnknownError(f"{place} is of the class {type(given).__name__}, of no library")


def _is_known(function: Any) -> bool:
    module = getattr(function, "__module__", None)
    return module is None or module.partition(".")[0] in _LIBRARIES | _PLAIN


def _attributes(module: nn.Module) -> dict[str, object]:
    """A module's state without its weights, but with buffers that are not saved with weights."""
    found = {key: value for key, value in vars(module).items() if key not in _OF_ALL}
    if module.training and _drops(module):
        found["training"] = True
    for key in module._non_persistent_buffers_set:
        found[key] = module._buffers[key]
    return found


def _drops(module: nn.Module) -> bool:
    """Whether a module computes something else in training mode (dropout, batch norm)."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    rates = [value for key, value in vars(module).items() if key == "p" or "dropout" in key]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _is_same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        b = b.to(a.device, a.dtype)  # as the pipeline was cast and moved
        return a.shape == b.shape and bool(torch.equal(a, b))
    plain = (bool, int, float, str, tuple, torch.dtype, type(None))
    return isinstance(a, plain) and type(a) is type(b) and bool(a == b)


def _described(value: Any, place: str, depth: int = 0) -> Json:
    """A value as JSON without addresses; an object is described by its class and attributes.

    Raises :class:`UnknownError` for the user's own code, values that cannot be inspected, and
    nesting deeper than 12.
    """
    if depth > _MOST_NESTED:
        raise UnknownError(f"{place} is nested too deeply")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(raw).hexdigest()]
    if isinstance(value, Mapping):
        return {
            str(key): _described(each, f"{place}.{key}", depth + 1) for key, each in value.items()
        }
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, Sequence):
        return [_described(each, place, depth + 1) for each in value]
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        if not _is_known(value) or "<" in value.__qualname__ or hasattr(value, "__self__"):
            raise UnknownError(f"{place} is code of no library")
        return f"{value.__module__}.{value.__qualname__}"
    _check_class(value, place)
    if not isinstance(value, nn.Module) and not hasattr(value, "__dict__"):
        raise UnknownError(f"{place} is a {type(value).__name__}, whose values cannot be seen")
    return {
        "class": type(value).__qualname__,
        **{
            key: _described(each, f"{place}.{key}", depth + 1)
            for key, each in sorted(vars(value).items())
        },
    }
