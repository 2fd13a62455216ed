"""Colour and bold type for lines on terminals that support them."""

from __future__ import annotations

import io
from typing import TextIO

from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.theme import Theme

_THEME = Theme(
    {
        "analogy.success": "green",
        "analogy.failure": "red",
        "analogy.open": "yellow",
        "analogy.undecided": "magenta",
        "analogy.head": "bold",
        "analogy.answer": "bold",
    }
)


class _Lines(RegexHighlighter):
    """Colours verdicts and outcomes, and sets heads of tables and the answer in bold."""

    base_style = "analogy."
    highlights = (
        r"(?<=  )(?P<success>success|improved|better)\b",
        r"(?<=  )(?P<failure>failure|regressed|worse)\b",
        r"(?<=  )(?P<open>inconclusive|undecided)\b",
        r"(?<=  )(?P<undecided>too_few|incomplete|blind)\b",
        r"(?m)^(?P<head>(category|quality|target|random|dose-response|decided|all images) .*)$",
        r"(?m)^(?P<answer>(answer|conclusion)  .*)$",
    )


def has_style(stream: TextIO) -> bool:
    """Whether a stream is a terminal with colours and NO_COLOR is not set."""
    console = Console(file=stream)
    return console.is_terminal and not console.no_color and not console.is_dumb_terminal


def styled(text: str) -> str:
    """The text with escape codes for a terminal of 16 colours."""
    console = Console(
        file=io.StringIO(), force_terminal=True, color_system="standard", no_color=False,
        theme=_THEME, highlighter=_Lines(), markup=False, emoji=False, soft_wrap=True,
    )  # fmt: skip
    with console.capture() as shown:
        console.print(text, end="")
    return shown.get()
