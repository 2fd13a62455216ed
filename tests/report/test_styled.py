"""Colour and bold: on terminals that have it, and nowhere else; the text stays the same."""

from __future__ import annotations

import io
import re

import pytest

from analogy.report.styled import has_style, styled

TABLE = """category alpha    n margin           95% CI   >0   gain  verdict
-----------------------------------------------------------------
color      0.5   10 +0.123 [+0.100, +0.200] 100% +0.300  success
size       0.5   10 -0.123 [-0.200, -0.100]   0% +0.300  failure (known)
[bold]x    0.5   10 +0.001 [-0.200, +0.100]  50% +0.300  inconclusive
:smile:    0.5    3 +0.001 [-0.200, +0.100]  50% +0.300  too_few

answer    In part at 0.5: 1 of 4 categories
"""
CODE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_styles_change_no_character():
    shown = styled(TABLE)
    assert CODE.sub("", shown) == TABLE
    for code, word in (("32", "success"), ("31", "failure"), ("33", "inconclusive"),
                       ("35", "too_few"), ("1", "answer    In part")):  # fmt: skip
        assert f"\x1b[{code}m{word}" in shown


def test_a_long_line_is_not_wrapped():
    assert CODE.sub("", styled("x " * 500 + "\n")) == "x " * 500 + "\n"


@pytest.mark.parametrize(
    ("env", "expected"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_terminals_have_styles_unless_they_say_no(monkeypatch, env, expected):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert has_style(Terminal()) is expected
    assert has_style(io.StringIO()) is False
