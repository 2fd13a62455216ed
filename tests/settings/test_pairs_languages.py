"""Words and prompts in other scripts and forms: what is a word, what is the same, what is seen."""

from __future__ import annotations

import json
import unicodedata
import warnings

import pytest
from verbs import verb

from analogy.core.records import Pair
from analogy.core.text import display_width, padded, shortened
from analogy.core.words import confusable, differs_in_more, folded, has_word, invisible
from analogy.report.provenance import command
from analogy.results.model import Settings
from analogy.settings.pairs import (
    DifferingPromptsWarning,
    PairsError,
    PairsWarning,
    differing_pairs,
    load_pairs,
    select,
)
from tools.training.pairs import PAIRS_CSV

HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"


@pytest.fixture
def load(tmp_path):
    """Write rows to a file and load it."""

    def load_rows(*rows, header=HEADER):
        path = tmp_path / "mine.csv"
        path.write_text(header + "".join(f"{row}\n" for row in rows), "utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PairsWarning)
            return load_pairs(path)

    return load_rows


# --- a word in its prompt


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("一辆红色的车", "红色"),
        ("赤い車", "赤い"),
        ("รถสีแดงคันหนึ่ง", "แดง"),
        ("ລົດສີແດງ", "ແດງ"),
        ("ឡានពណ៌ក្រហម", "ក្រហម"),
        ("빨간색의 자동차", "빨간색"),  # a particle follows
        ("BMW가 있다", "bmw"),
        ("काला कुत्ता", "काला"),
        ("a cafe\u0301 in the rain", "caf\u00e9"),
        ("a RED car", "red"),
        ("Straße", "STRASSE"),
    ],
)
def test_a_word_is_found(prompt, word):
    assert has_word(prompt, word)


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("a bluebird", "blue"),
        ("a cafe\u0301", "cafe"),  # the accent belongs to the letter
        ("काला कुत्ता", "काल"),  # so does a vowel sign
        ("กินี", "กิน"),
        ("スカート", "スカ"),  # and a vowel's length
        ("새고양이", "고양이"),  # Korean has a space before a word
        ("赤い車", "青い"),
    ],
)
def test_a_part_of_a_word_is_not(prompt, word):
    assert not has_word(prompt, word)


@pytest.mark.parametrize(
    "rows",
    [
        (
            "1,颜色,红色,蓝色,一辆红色的车,一辆蓝色的车",
            "2,颜色,绿色,粉色,一顶绿色的帽子,一顶粉色的帽子",
        ),
        ("1,形,赤い,青い,赤い車,青い車", "2,形,熱い,冷たい,熱いお茶,冷たいお茶"),
        ("1,색,빨간,파란,빨간 차,파란 차", "2,색,고양이,개,고양이가 있다,개가 있다"),
    ],
    ids=["zh", "ja", "ko"],
)
def test_files_of_languages_without_spaces_are_taken(load, rows):
    pairs = load(*rows)
    assert len(pairs) == 2
    assert not differing_pairs(pairs)


# --- what else differs


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("a red car", "an orange car", ("red", "orange")),
        ("one car in the rain", "two cars in the rain", ("one", "two")),
        ("one city is old", "two cities are old", ("one", "two")),
        ("A red car", "a Blue  car", ("red", "blue")),
        ("a red car on a red road", "a blue car on a red road", ("red", "blue")),
        ("a red car on a red road", "a blue car on a blue road", ("red", "blue")),
        ("ein roter Hut", "eine rote Mütze", ("Hut", "Mütze")),
        ("책이 있다", "사과가 있다", ("책", "사과")),
    ],
)
def test_prompts_may_differ_in_what_goes_with_a_word(source, target, words):
    assert not differs_in_more(source, target, *words)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("a red car", "a blue house at night, oil on canvas", ("red", "blue")),
        ("a red car", "a blue bus", ("red", "blue")),
        ("a red car", "a blue car at night", ("red", "blue")),
        ("a red car", "the blue car", ("red", "blue")),
        ("一辆红色的车", "一座蓝色的房子", ("红色", "蓝色")),
    ],
)
def test_prompts_that_differ_in_more_are_told(source, target, words):
    assert differs_in_more(source, target, *words)


def test_the_shipped_pairs_raise_no_false_alarm():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert differing_pairs(load_pairs(PAIRS_CSV)) == []


def test_a_file_of_such_pairs_is_taken_with_a_note_and_check_says_which(tmp_path):
    file = tmp_path / "more.csv"
    rows = [f"d{i},paint,red,blue,a red car {i},a blue house {i} at night\n" for i in range(6)]
    file.write_text(HEADER + "".join(rows) + "ok,paint,red,blue,a red car,a blue car\n")
    with pytest.warns(DifferingPromptsWarning, match=r"6 of 7 pairs differ .*\(d0, .* 1 more\)"):
        assert len(load_pairs(file)) == 7
    found = verb("pairs", "check", file, "--json=-")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["differing"] == [f"d{i}" for i in range(6)]
    assert "differing the prompts of 6 of 7 pairs" in found.stderr


# --- what cannot be seen


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("c1\u200b", "\u200b"),
        ("\ufeffc1", "\ufeff"),
        ("re\u00add", "\u00ad"),
        ("a\x07b", "\x07"),
        ("\u3164", "\u3164"),
        ("a\u202eb", "\u202e"),
        ("red\u200d car", "\u200d"),
        ("x\ufe0f", "\ufe0f"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),  # Persian has the joiner
        ("\u0d28\u0d4d\u200d", None),  # Malayalam at a word's end
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f 1\ufe0f\u20e3", None),
        ("a red\n\tcar\u00a0", None),
    ],
)
def test_characters_that_are_not_seen_are_found_where_they_have_no_place(text, found):
    assert invisible(text) == found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c\u200b1,color,red,blue,a red cup,a blue cup", "column id: .*U\\+200B .ZERO WIDTH SPACE"),
        ("c2,co\u2060lor,red,blue,a red cup,a blue cup", r"column category: .*U\+2060"),
        ("c2,color,red,blue,a red\u200b cup,a blue cup", r"column source_prompt: .*U\+200B"),
        ("\ufeffc2,color,red,blue,a red cup,a blue cup", "column id: .*, a byte order mark"),
        ("\ufeff" + HEADER.strip(), "line 4: expected a pair, got the header again; remove"),
        (HEADER.strip(), "line 4: expected a pair, got the header again; remove the line"),
        ("caf\u00e9,color,red,blue,a red cup,a blue cup", "column id: .*as on line 2"),
    ],
)
def test_names_that_look_alike_are_refused(load, row, message):
    rows = (
        "cafe\u0301,color,red,blue,a red car,a blue car",
        "c1,color,red,tan,a red hat,a tan hat",
    )
    with pytest.raises(PairsError, match=message):
        load(*rows, row)


def test_a_category_has_one_spelling_and_is_known_in_every_form(load):
    rows = [f"{i},caf\u00e9,red,blue,a red car {i},a blue car {i}" for i in range(2)]
    with pytest.raises(PairsError, match=r"one spelling of a category, got 'cafe\\u0301' here"):
        load(*rows, "2,cafe\u0301,red,blue,a red cup,a blue cup")
    pairs = load(*rows)
    assert select(pairs, ["cafe\u0301"]) == pairs
    assert confusable("a \u00a0b") == "a b"
    assert confusable("A") != confusable("a")


def test_comparisons_mind_neither_case_nor_unicode_form():
    assert folded("Caf\u00c9  X") == folded("cafe\u0301 x")
    decomposed = unicodedata.normalize("NFD", "pré")
    row = f"1,c,pr\u00e9,{decomposed},un pr\u00e9,un {decomposed}"
    assert folded(row.split(",")[2]) == folded(row.split(",")[3])


# --- other files


@pytest.mark.parametrize(
    ("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")]
)
def test_another_separator_is_said_in_one_line(load, separator, name):
    with pytest.raises(PairsError) as refusal:
        load("1,c,red,blue,a red car,a blue car".replace(",", separator),
             header=HEADER.replace(",", separator))  # fmt: skip
    assert len(refusal.value.problems) == 1
    assert f"line 1: expected commas between the columns, got {name}; " in str(refusal.value)


def test_a_spreadsheets_first_line_is_said(load):
    with pytest.raises(PairsError, match=r"line 1: .*got a spreadsheet's 'sep=;'; remove the line"):
        load(header="sep=;\n" + HEADER.replace(",", ";"))


# --- categories with commas, and names in tables


def test_a_category_with_a_comma_is_chosen_in_quotes_and_printed_so():
    pairs = [Pair(str(i), "food, drink", "a", "b", f"a {i}", f"b {i}") for i in range(2)]
    with pytest.raises(PairsError, match=r'a name that holds a comma is quoted: "food, drink"$'):
        select(pairs, ["food", "drink"])
    config = {"model": "embedded", "categories": ["food, drink", "tea"], "alphas": [1.0]}
    assert """'--categories="food, drink",tea'""" in command(Settings(config))


def test_names_keep_a_tables_columns():
    assert (display_width("颜色"), display_width("e\u0301"), display_width("ab")) == (4, 1, 2)
    assert padded("颜色", 6) == "颜色  "
    assert shortened("capital-common-countries", 32) == "capital-common-countries"
    assert shortened("a" * 20 + "b" * 20, 11) == "aaaaa…bbbbb"
    assert display_width(shortened("颜色" * 20, 12)) <= 12
