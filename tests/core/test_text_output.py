import shlex
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from analogy.core.text import command_line, lines_of, printable


def test_printable_keeps_all_but_what_breaks_lines_and_xml():
    assert printable("größe 色 \N{SLIGHTLY SMILING FACE}") == "größe 色 \N{SLIGHTLY SMILING FACE}"
    assert printable("a\x00b\x1bc\nd\ud800e\u2028") == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffd"
    assert printable("a\u202eb\u2066c") == "a\ufffdb\ufffdc"


@given(st.lists(st.text(), min_size=1))
def test_a_shell_reads_the_words_that_went_into_a_command_line(words):
    assert shlex.split(command_line(*words)) == words


def test_a_path_with_a_command_in_its_name_stays_one_word():
    assert command_line("analogy", "verify", Path("x; touch PWNED #")) == (
        "analogy verify 'x; touch PWNED #'"
    )


def test_lines_end_at_line_feeds_alone():
    text = "a\u2028b\vc\fd\x1ce\x85f\rg"
    assert lines_of(f"{text}\n\n{text}\r\n") == [text, "", text]
    assert lines_of(f"{text}\n{text}") == [text, text]
    assert lines_of("") == []


@given(st.lists(st.text().map(lambda text: text.replace("\n", "").rstrip("\r"))))
def test_lines_that_are_written_are_read(lines):
    assert lines_of("".join(f"{line}\n" for line in lines)) == lines
