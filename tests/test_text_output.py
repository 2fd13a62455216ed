import shlex
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from analogy.text import command_line, printable


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
