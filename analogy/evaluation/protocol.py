"""The protocol of a metric, and a wrapper that turns a plain function into one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from analogy.core.errors import AnalogyError
from analogy.evaluation.samples import Samples


class TaskError(AnalogyError, ValueError):
    """A task, or a model for it, cannot be evaluated; the message says what to do."""


class UnmetNeedError(TaskError):
    """A metric cannot be computed by a task; ``reason``: what it needs, and how to give it."""

    def __init__(self, metric: str, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{metric} {reason}")


class Metric(Protocol):
    """A metric of a task: a built-in one, or any object with these three attributes.

    Optional attributes:

    - ``units``: text;
    - ``needs``: names of fields of :class:`Samples`, by default ``images`` alone;
    - ``judge``: the fingerprint of the network that it uses;
    - ``least``: the fewest images that it is defined for, by default 1;
    - ``same_size``: whether references must have the size of the images, by default False.
    """

    @property
    def name(self) -> str:
        """Its name in results."""
        ...

    @property
    def higher_is_better(self) -> bool | None:
        """None if neither is better."""
        ...

    def compute(self, samples: Samples) -> Any:
        """A value for each image, ``(n,)``; or, for all images together, one number or a
        :class:`~analogy.evaluation.measurement.Measurement`.
        """
        ...


class ImageSource(Protocol):
    """The properties of a model or an image folder that decide which metrics can be computed."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of a folder's images; empty for a model."""
        ...

    @property
    def generates(self) -> bool:
        """True for a model, which generates images from prompts."""
        ...

    @property
    def has_files(self) -> bool:
        """True for a model whose weights are files."""
        ...


@dataclass(frozen=True)
class FunctionMetric:
    """A function of :class:`Samples` as a metric."""

    name: str
    compute: Callable[[Samples], Any]
    higher_is_better: bool | None
    units: str = ""
    needs: frozenset[str] = frozenset({"images"})
    judge: str | None = None
    least: int = 1
    same_size: bool = False


def metric(
    name: str,
    function: Callable[[Samples], Any],
    *,
    higher_is_better: bool | None,
    units: str = "",
    needs: str | Iterable[str] = ("images",),
) -> FunctionMetric:
    """A metric from a plain function: samples -> a value for each image, or one number for all."""
    needs = frozenset([needs] if isinstance(needs, str) else needs)
    return FunctionMetric(name, function, higher_is_better, units, needs)


def needs_of(metric: Metric) -> frozenset[str]:
    """The fields of samples that a metric needs."""
    return frozenset(getattr(metric, "needs", ("images",)))


def near(name: str, names: Collection[str]) -> str:
    """A suggestion to append to an error: the nearest name, if one is near."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
