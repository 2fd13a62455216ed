"""Hooks on a denoiser's modules that act only in the thread that sets them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from threading import Lock, get_ident
from typing import Any, TypeAlias

from torch import Tensor, nn

from analogy.core.errors import ModelError

Hook: TypeAlias = Callable[[str, Tensor], object]
"""Called with a module's name and its output. It may change the output in place."""

InputHook: TypeAlias = Callable[[str, Tensor, Tensor], object]
"""Called with a module's name, its input and its output. It may change the output in place."""

#: torch numbers hooks with a counter that threads share: two set at once could get the same number.
_registering = Lock()


def hooked(modules: Mapping[str, nn.Module], hook: Hook) -> AbstractContextManager[None]:
    """Within this context call ``hook`` after each of ``modules`` has run in this thread.

    Calls from other threads to the same modules are not affected. All hooks are removed on exit. If
    a module returns a tuple, its first element is the output. Raises ``ModelError`` if a module's
    output is not a tensor.
    """
    return _hooked(modules, lambda name, given, output: hook(name, output))


def hooked_with_input(
    modules: Mapping[str, nn.Module], hook: InputHook
) -> AbstractContextManager[None]:
    """As :func:`hooked`, for layers with one input, such as linear ones."""
    return _hooked(modules, lambda name, given, output: hook(name, given[0], output))


@contextmanager
def _hooked(
    modules: Mapping[str, nn.Module], hook: Callable[[str, tuple[Any, ...], Tensor], object]
) -> Iterator[None]:
    owner = get_ident()

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def called(module: nn.Module, given: Any, made: Any) -> None:
            if get_ident() != owner:
                return
            output = made[0] if isinstance(made, tuple) else made
            if not isinstance(output, Tensor):
                raise ModelError(
                    f"module {name}: expected a tensor as its output, got {type(made).__name__}; "
                    "choose another module"
                )
            hook(name, given, output)

        return called

    handles = []
    try:
        for name, module in modules.items():
            with _registering:
                handles.append(module.register_forward_hook(after(name)))
        yield
    finally:
        with _registering:
            for handle in handles:
                handle.remove()


def sharing(module: nn.Module) -> Any:
    """A copy of a module's structure with the same parameters and buffers, without more memory."""
    with _registering:  # setting hooks would change what is being copied
        shared = (*module.parameters(), *module.buffers())
        return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def denoiser(pipeline: Any) -> nn.Module:
    """The pipeline's denoiser: its UNet or its transformer.

    Raises ``ModelError`` if it has neither.
    """
    for name in ("unet", "transformer"):
        if isinstance(part := getattr(pipeline, name, None), nn.Module):
            return part
    raise ModelError(
        f"{type(pipeline).__name__}: expected a pipeline with a unet or a transformer, got "
        "neither; choose a method that changes no activations"
    )


def cross_attention(pipeline: Any, *, method: str) -> dict[str, nn.Module]:
    """The denoiser's cross-attention modules by their names in it.

    ``method``: the method that needs them, for messages. Raises ``ModelError`` if there are none.
    """
    whole = denoiser(pipeline)
    found = {
        name: module
        for name, module in whole.named_modules()
        if getattr(module, "is_cross_attention", False) is True
    }
    if not found:
        raise ModelError(
            f"method {method}: expected a denoiser with cross-attention modules (diffusers' "
            f"Attention), as the UNets of Stable Diffusion 1, 2 and XL have, got "
            f"{type(whole).__name__}, which has none; choose another method"
        )
    return found


def conditional(output: Tensor, n: int) -> Tensor:
    """The rows of ``n`` images' own prompts, ``(n, ...)``: a view of a module's output.

    With guidance a pipeline puts as many rows of the negative prompt before them. Raises
    ``ModelError`` for another number of rows.
    """
    if output.shape[0] not in (n, 2 * n):
        raise ModelError(
            f"expected a module's output of {n} rows, or {2 * n} with guidance, for {n} images, "
            f"got {tuple(output.shape)}; choose a pipeline without further guidance terms"
        )
    return output[-n:]


class Calls:
    """Counts the calls of each module, one in each denoising step. ``start``: the first step."""

    def __init__(self, start: int = 0) -> None:
        self._start = start
        self._counts: dict[str, int] = {}

    def next(self, name: str) -> int:
        """The step of this call of the module."""
        count = self._counts.get(name, self._start)
        self._counts[name] = count + 1
        return count
