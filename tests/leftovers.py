"""What a steering method may leave behind on a pipeline, looked for after every batch in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock, Thread
from typing import Any

import torch
from torch import nn

from analogy.generation.worker import GeneratorPool
from analogy.models.generator import Generator

State = dict[str, object]
"""Names of a pipeline's parts, and of what a method could change in them, to what is there."""


def state_of(pipeline: Any) -> State:
    """Parts, hooks, attention processors, adapters' scales and weights; not what sampling keeps."""
    found: State = {}
    for part, component in pipeline.components.items():
        found[part] = id(component)
        if not isinstance(component, nn.Module):
            found[f"{part}: own attributes"] = "step" in getattr(component, "__dict__", {})
            continue
        for name, module in component.named_modules():
            place = f"{part}.{name}"
            found[f"{place}: hooks"] = (
                tuple(module._forward_hooks), tuple(module._forward_pre_hooks),
                tuple(getattr(getattr(module, "_diffusers_hook", None), "hooks", ())),
            )  # fmt: skip
            found[f"{place}: forward"] = "forward" in vars(module)
            found[f"{place}: processor"] = id(getattr(module, "processor", None))
            found[f"{place}: adapters"] = repr(
                [getattr(module, each, None) for each in ("scaling", "_active_adapter", "merged")]
            )
        is_offloaded = any(map(_is_offloaded, component.modules()))
        is_denoiser = part in ("unet", "transformer")
        for name, weight in component.named_parameters() if is_denoiser else ():
            if weight.is_meta:  # offloaded: it has values while its layer is at work
                continue
            # Of GGUF's quantized weights, a class of their own, the bytes.
            length = weight.detach().as_subclass(torch.Tensor).float().norm().item()
            place = 0 if is_offloaded else weight.data_ptr()  # offloading moves weights
            found[f"{part}.{name}: weights"] = (place, length)
    return found


def _is_offloaded(module: nn.Module) -> bool:
    hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", ())
    return hasattr(module, "_hf_hook") or any("offloading" in name for name in hooks)


def left_behind(before: State, after: State) -> list[str]:
    """The names of what differs."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


class Watch:
    """Compares a pipeline before a batch and after it; several at once, after the last of them.

    Generators in other threads have their own hooks on the same modules meanwhile.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._at_work: dict[int, int] = {}
        self._before: dict[int, State] = {}

    def batch(self, pool: GeneratorPool, generate: Callable[[], Any]) -> Any:
        """A batch's images. Raises ``AssertionError`` if it left something behind."""
        pipeline = _of(pool.generators[0])
        key = id(pool)
        with self._lock:
            if not self._at_work.get(key):
                self._before[key] = state_of(pipeline)
            self._at_work[key] = self._at_work.get(key, 0) + 1
        left: list[str] = []
        try:
            made = generate()
        finally:
            with self._lock:
                self._at_work[key] -= 1
                if not self._at_work[key]:
                    left = left_behind(self._before[key], state_of(pipeline))
        assert not left, f"left behind on the pipeline: {', '.join(left[:5])}"
        return made


def watched(patch: Any) -> Iterator[None]:
    """Watch every batch of every pool."""
    watch = Watch()
    whole = GeneratorPool.__call__
    patch.setattr(
        GeneratorPool, "__call__",
        lambda pool, batch: watch.batch(pool, lambda: whole(pool, batch)),
    )  # fmt: skip
    yield


def _of(generator: Generator) -> Any:
    return generator._pipeline


def in_threads(*calls: Callable[[], Any]) -> None:
    """Make the calls beside each other, and wait for all."""
    threads = [Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
