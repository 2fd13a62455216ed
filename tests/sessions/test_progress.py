"""Progress beside pytest's dots: the line is afterwards as it was before."""

from __future__ import annotations

import io

import pytest

from analogy.sessions import progress
from analogy.sessions.progress import Beside, Lines, bar


class Terminal(io.StringIO):
    """What one line of a terminal shows, with the cursor's place."""

    def __init__(self, line: str = "") -> None:
        super().__init__()
        self.line, self.at = list(line), len(line)
        self.widest = 0

    def isatty(self):
        return True

    def write(self, text):
        for character in text:
            if character == "\b":
                self.at -= 1
            elif character == "\r":
                self.at = 0
            else:
                self.line[self.at : self.at + 1] = [character]
                self.at += 1
        self.widest = max(self.widest, len("".join(self.line).rstrip()))
        return len(text)


@pytest.mark.parametrize("room", [60, 35, 20])
def test_a_bar_leaves_the_dots_as_they_were(monkeypatch, room):
    terminal = Terminal("benchmarks/test_margin.py ..")
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    shown = bar(240, 60, room=room)
    assert " 60/240" in "".join(terminal.line)
    shown.mininterval = 0.0
    for _ in range(3):
        shown.update(20)
        shown.refresh()
    assert "benchmarks/test_margin.py .. 120/240" in "".join(terminal.line)
    shown.close()
    assert "".join(terminal.line).rstrip() == "benchmarks/test_margin.py .."
    assert terminal.at == len("benchmarks/test_margin.py ..")
    assert terminal.widest <= len("benchmarks/test_margin.py ..") + room


def test_wide_letters_are_taken_back_as_the_two_columns_that_they_take():
    written = io.StringIO()
    stream = Beside(written)
    stream.write("\r颜色")
    stream.write("\rx")
    assert written.getvalue() == "颜色\b\b\b\bx"


def test_without_a_terminal_each_text_is_a_line():
    written = io.StringIO()
    stream = Lines(written)
    for text in ("\rgenerating: 1/2 images", "\r   ", "\rgenerating: 2/2 images", ""):
        stream.write(text)
    assert written.getvalue() == "\ngenerating: 1/2 images\ngenerating: 2/2 images\n"
