"""The table of engines, by name.

It is separate from :mod:`analogy.engine`, whose types need torch: options list and check the names
without torch.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from analogy.registry import Registry


@runtime_checkable
class Factory(Protocol):
    """An :class:`~analogy.engine.EngineFactory`, which has the types."""

    def __call__(self, setup: Any, worker: Any) -> Any:
        """The engine of one run."""
        ...


ENGINES = Registry[Factory](
    "engine",
    "analogy.engines",
    {"serial": "analogy.serial:Serial", "ray": "analogy.cluster:RayEngine"},
    Factory,  # type: ignore[type-abstract]
)
