"""The results of the check, written as JSON and as a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from analogy.core.files import write_atomically

Value = float | int | str | bool


class State(StrEnum):
    """How a step ended."""

    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. ``bar``: the smallest acceptable value, None if there is no bar."""

    name: str
    value: Value
    unit: str = ""
    bar: float | None = None

    @property
    def holds(self) -> bool:
        """True if the bar is reached or there is none."""
        return self.bar is None or float(self.value) >= self.bar


@dataclass(slots=True)
class Step:
    """One step's result. ``reason``: why it failed or did not run; empty otherwise."""

    name: str
    state: State
    seconds: float = 0.0
    reason: str = ""
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine on which the check ran."""

    device: str
    processor: str
    cores: int
    python: str
    packages: dict[str, str]


@dataclass(slots=True)
class Report:
    """The whole check.

    ``rehearsal``: whether it ran at small sizes on the CPU, so that its figures mean nothing.
    """

    rehearsal: bool
    commit: str
    machine: Machine
    steps: list[Step] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """True if every step is done and every bar is reached."""
        return all(
            step.state is State.DONE and all(figure.holds for figure in step.figures)
            for step in self.steps
        )

    @classmethod
    def read(cls, file: Path) -> Report:
        """The report in a JSON file, which must have no steps."""
        data = json.loads(file.read_text())
        return cls(**{**data, "machine": Machine(**data["machine"])})

    def write(self, folder: Path) -> None:
        """Write ``gpu_check.json`` and ``gpu_check.md``, each atomically."""
        data = json.dumps(asdict(self), indent=1, allow_nan=False, default=str)
        write_atomically(folder / "gpu_check.json", f"{data}\n".encode())
        page = "\n".join(self.lines())
        write_atomically(folder / "gpu_check.md", f"{page}\n".encode())

    def lines(self) -> Iterator[str]:
        """The page, line by line."""
        machine = self.machine
        packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
        if self.rehearsal:
            yield "**A rehearsal on the CPU in small: these figures say nothing about any device.**"
            yield ""
        yield (
            f"{machine.device}; {machine.cores} cores of {machine.processor}; Python "
            f"{machine.python}; {packages}; commit {self.commit}. The check took "
            f"{self.seconds:.0f} s."
        )
        for step in self.steps:
            yield ""
            yield f"### {step.name}: {step.state.value}, {step.seconds:.0f} s"
            if step.reason:
                yield ""
                yield step.reason
            if step.figures:
                yield ""
                yield "| what | value | unit | bar | holds |"
                yield "|---|---:|---|---:|---|"
            for figure in step.figures:
                bar, holds = "", ""
                if figure.bar is not None:
                    bar, holds = f"{figure.bar:g}", "yes" if figure.holds else "**no**"
                value = _shown(figure.value)
                yield f"| {figure.name} | {value} | {figure.unit} | {bar} | {holds} |"


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
