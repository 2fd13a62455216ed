"""A judge that is loaded already, where a study asks for one that is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Injected:
    """``load`` gives the judge; ``tokenize`` is its tokenizer, if it has one."""

    fingerprint: str
    give: Callable[[], Any]
    tokenize: Any = None
    dtype: str = "float32"

    @classmethod
    def of(cls, judge) -> Injected:
        """Of an open_clip judge."""
        return cls(judge.fingerprint, lambda: judge, judge.tokenize)

    @property
    def places(self) -> list[Path]:
        return []

    def in_dtype(self, dtype: str) -> Injected:
        return self

    def tokenizer(self) -> Any:
        return self.tokenize

    def load(self, device: str) -> Any:
        return self.give()
