"""The table of engines, by name.

It is separate from :mod:`analogy.generation.engine`, whose types need torch, so that options can
list and check the names without torch.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from analogy.core.registry import Registry


@runtime_checkable
class Factory(Protocol):
    """An :class:`~analogy.generation.engine.EngineFactory`, without its types."""

    def __call__(self, setup: Any, worker: Any) -> Any:
        """The engine of one run."""
        ...


ENGINES = Registry[Factory](
    "engine",
    "analogy.engines",
    {
        "serial": "analogy.generation.serial:Serial",
        "ray": "analogy.generation.ray_engine:RayEngine",
    },
    Factory,  # type: ignore[type-abstract]
)
