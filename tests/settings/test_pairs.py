"""The loader's refusals, with their messages; choosing pairs; and the shipped file's properties."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter
from dataclasses import astuple, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from analogy.core.records import Pair
from analogy.core.words import confusable, invisible
from analogy.settings import pairs as pairs_module
from analogy.settings.pairs import (
    COLUMNS,
    MAX_FIELD_CHARACTERS,
    PairsError,
    PairsWarning,
    WeakCategoryWarning,
    categories,
    load_pairs,
    select,
)
from analogy.world import vocabulary
from tools.training.pairs import PAIRS_CSV, PER_CATEGORY, all_pairs, as_csv

HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"
NOUNS = ("car", "cup", "hat", "fish", "star", "tree")
GOOD_ROWS = "".join(
    f"c{i},color,red,blue,a red {noun},a blue {noun}\n" for i, noun in enumerate(NOUNS)
)


@pytest.fixture
def load(tmp_path):
    """Write text or bytes to a file and load it."""

    def load_content(content: str | bytes) -> list[Pair]:
        path = tmp_path / "mine.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_pairs(path)

    return load_content


# --- what is accepted


def test_loads_in_the_files_order(load):
    pairs = load(HEADER + GOOD_ROWS)
    assert pairs[0] == Pair("c0", "color", "red", "blue", "a red car", "a blue car")
    assert [pair.id for pair in pairs] == [f"c{i}" for i in range(6)]


def test_takes_columns_in_any_order_and_ignores_others(load):
    columns = ("note", *reversed(COLUMNS))
    rows = csv.DictReader(io.StringIO(HEADER + GOOD_ROWS))
    text = ",".join(columns) + "\n"
    text += "".join(",".join({"note": "x", **row}[c] for c in columns) + "\n" for row in rows)
    assert load(text) == load(HEADER + GOOD_ROWS)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + (HEADER + GOOD_ROWS).encode(),
        (HEADER + GOOD_ROWS).replace("\n", "\r\n"),
        (HEADER + GOOD_ROWS).replace("\n", "\r"),
        (HEADER + GOOD_ROWS).replace("\n", "\n\n"),
        (HEADER + GOOD_ROWS).replace(",", " , "),
        "\n" + (HEADER + GOOD_ROWS).rstrip("\n"),
    ],
    ids=["bom", "crlf", "cr", "blank lines", "spaces", "no final newline"],
)
def test_layout_does_not_matter(load, content):
    assert load(content) == load(HEADER + GOOD_ROWS)


def test_letter_case_of_a_word_does_not_count(load):
    assert load(HEADER + GOOD_ROWS + "c9,color,Red,BLUE,a red boat,a Blue boat\n")[-1].id == "c9"


@pytest.mark.parametrize(("n", "weak"), [(2, True), (5, True), (6, False)])
def test_warns_of_a_weak_category(load, n, weak):
    content = HEADER + "".join(GOOD_ROWS.splitlines(keepends=True)[:n])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(load(content)) == n
    assert [w.category for w in caught] == [WeakCategoryWarning] * weak
    if weak:
        assert re.search(rf"mine\.csv: category 'color' has {n} pairs", str(caught[0].message))


# --- what is refused


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        (
            "c0,color,red,tan,a red bow,a tan bow",
            "id",
            "expected an id of its own, got 'c0' as on line 2; change or remove one",
        ),
        (
            "x,color,red,blue,A red  car,a blue car",
            "source_prompt",
            "expected a pair of prompts of its own, got 'a red car' -> 'a blue car' as on line 2; ",
        ),
        (
            "x,,red,blue,a red bow,a blue bow",
            "category",
            "expected text, got an empty field; fill it in",
        ),
        ("x,color,red, ,a red bow,a blue bow", "target_word", "expected text, got an empty field;"),
        (
            "x,color,red,Red,a red bow,a Red cat",
            "target_word",
            "expected another word than source_word, got 'Red' in both; a pair leads from one",
        ),
        (
            "x,color,red,blue,a red blue bow,a red blue bow",
            "target_prompt",
            "expected another prompt than source_prompt, got 'a red blue bow' in both; a pair",
        ),
        (
            "x,color,crimson,blue,a red bow,a blue bow",
            "source_word",
            "expected whole words of source_prompt 'a red bow', got 'crimson'; "
            "write the word as it stands in the prompt",
        ),
        (
            "x,color,red,blue,a red bow,a bluebird",
            "target_word",
            "expected whole words of target_prompt 'a bluebird', got 'blue'; write the word",
        ),
        (
            '"x\ny",color,red,blue,a red bow,a blue bow',
            "id",
            "expected text on one line, got 'x\\ny'; take out line breaks and control characters",
        ),
        (
            f"x,color,red,blue,a red bow{'w' * MAX_FIELD_CHARACTERS},a blue bow",
            "source_prompt",
            "expected at most 10,000 characters, got 10,009; shorten it, or close a quote",
        ),
        (
            "x,size,small,large,a small bow,a large bow",
            "category",
            "expected at least 2 pairs in each category, got 1 in 'size'; add pairs to it or take",
        ),
    ],
)
def test_refuses_a_field(load, row, column, problem):
    with pytest.raises(PairsError) as error:
        load(HEADER + GOOD_ROWS + row + "\n")
    assert f"mine.csv, line 8, column {column}: {problem}" in str(error.value)


BROKEN_CSV = "expected CSV with commas and double quotes, got: "


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("x,color,red,blue,a red bow", "expected 6 fields as in the header, got 5; put quotes"),
        ("x,color,red,blue,a, red bow,b", "expected 6 fields as in the header, got 7; put quotes"),
        ('x,color,red,blue,a red bow,"a "blue bow"', f"{BROKEN_CSV}',' expected after '\"'; look"),
        ('x,color,red,blue,a red bow,"a blue bow', f"{BROKEN_CSV}unexpected end of data; look for"),
        (f"x,color,red,blue,{'w' * 200_000},b", f"{BROKEN_CSV}field larger than field limit"),
    ],
)
def test_refuses_a_line(load, row, problem):
    with pytest.raises(PairsError) as error:
        load(HEADER + GOOD_ROWS + row + "\n")
    assert f"mine.csv, line 8: {problem}" in str(error.value)


def test_lines_are_the_files_own_lines(load):
    quoted = 'q,color,red,blue,"a red\n\nbow","a blue\r\nbow"\n'
    with pytest.raises(PairsError, match="line 6, column source_word"):
        load(HEADER + quoted + "x,color,tan,blue,a red cat,a blue cat\n" + GOOD_ROWS)


GOOD = HEADER + GOOD_ROWS
BAD_BYTE = len(GOOD) + len("x,color,caf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: expected a header line with id, category, .*, got an empty file; add it"),
        (HEADER, "line 1: expected word pairs, got none; write one a line below the header"),
        (
            GOOD.replace("target_word", "target word"),
            "line 1, column target_word: expected one column of this name in the header, "
            "got 'id, category, .*'; rename 'target word'",
        ),
        (
            GOOD.replace("id,", "id,id,"),
            "line 1, column id: expected one column of this name in the header, got 2; keep one",
        ),
        (
            GOOD.replace(",", ";"),
            "line 1: expected commas between the columns, got semicolons; save the file as CSV",
        ),
        (
            GOOD.encode() + b"x,color,caf\xe9,blue\n",
            f"line 8: expected UTF-8 text, got byte 0xe9 at byte position {BAD_BYTE}; save the",
        ),
        (b"\xef\xbb\xbf\xff", "line 1: expected UTF-8 text, got byte 0xff at byte position 3;"),
        (GOOD + "x,color,\0,blue\n", "line 8: expected text, got a NUL character; save the file"),
    ],
)
def test_refuses_a_file(load, content, message):
    with pytest.raises(PairsError, match=f"mine.csv, {message}"):
        load(content)


def test_refuses_a_missing_file(tmp_path):
    expected = "expected a CSV file of word pairs, got"
    with pytest.raises(PairsError, match=rf"no\.csv: {expected}: No such file .*; check the path"):
        load_pairs(tmp_path / "no.csv")
    with pytest.raises(PairsError, match=f"{expected}: .*; check the path"):
        load_pairs(tmp_path)


def test_refuses_a_huge_file_unread(load, monkeypatch):
    monkeypatch.setattr(pairs_module, "MAX_FILE_BYTES", 100)
    with pytest.raises(PairsError, match=r"csv: expected at most 100 bytes, got 1\d\d; split the"):
        load(GOOD[:150])


def test_reports_all_problems_at_once(load):
    with pytest.raises(PairsError) as error:
        load(HEADER + GOOD_ROWS + ",color,red,blue,a red bow,a tan bow\nc1,color,a,b,is a,is b\n")
    lines = str(error.value).splitlines()
    assert lines[0].endswith("mine.csv: 3 problems")
    assert [re.search(r"line (\d), column (\w+)", line).groups() for line in lines[1:]] == [
        ("8", "id"),
        ("8", "target_word"),
        ("9", "id"),
    ]


def test_reports_at_most_twenty_problems(load):
    rows = "".join(f"x{i},color,red,blue,a red {i},\n" for i in range(33))
    with pytest.raises(PairsError) as error:
        load(HEADER + rows)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("33 problems")
    assert len(lines) == 22
    assert lines[-1].strip() == "... and 13 more"


def test_an_unreadable_row_is_not_held_against_its_category(load):
    with pytest.raises(PairsError) as error:
        load(HEADER + "a,size,small,large,small x,large x\nb,size,small,large,a, b,c\n")
    assert "at least 2 pairs" not in str(error.value)


# --- choosing


def test_categories_in_order_of_first_appearance():
    pair = all_pairs()[0]
    named = [replace(pair, category=name) for name in "bacab"]
    assert categories(named) == ["b", "a", "c"]


def test_select_keeps_the_files_order():
    pairs = all_pairs()
    assert select(pairs) == pairs
    chosen = select(pairs, ["size", "color"], limit=3)
    assert [pair.id for pair in chosen] == [
        *(f"color-0{i}" for i in (1, 2, 3)),
        *(f"size-0{i}" for i in (1, 2, 3)),
    ]
    assert len(select(pairs, ["size"], limit=1000)) == PER_CATEGORY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"categories": ["colour"]},
            r"unknown category 'colour'; choose from color, object, .*; did you mean 'color'\?",
        ),
        ({"categories": ["zzz"]}, "unknown category 'zzz'; choose from color, .*, emotion$"),
        ({"categories": []}, "expected at least one category, got none; choose from color, "),
        ({"limit": 0}, "expected a limit of at least 1 pair per category, got 0"),
    ],
)
def test_select_refuses(options, message):
    with pytest.raises(PairsError, match=message):
        select(all_pairs(), **options)


# --- any content

TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=8
).filter(lambda text: invisible(text) is None)
WORD = st.text("abcdefgh", min_size=1, max_size=6)
LAYOUT = st.sampled_from([" ", "  ", ", ", ' "', "\n", "\r\n"])


@st.composite
def valid_pairs(draw):
    """Draw pairs that the loader accepts: two categories of at least two, told apart by number."""
    pairs = []
    for category in draw(st.lists(TEXT, min_size=1, max_size=3, unique_by=confusable)):
        for _ in range(draw(st.integers(2, 4))):
            number, word, rest = len(pairs), draw(WORD), draw(TEXT)
            before, after = draw(LAYOUT), draw(LAYOUT)
            prompts = [f"{number}{before}{w}{after}{rest}".strip() for w in (word, word + "x")]
            pairs.append(Pair(f"{number}-{rest}", category, word, word + "x", *prompts))
    return pairs


@given(valid_pairs(), st.sampled_from(["\n", "\r\n"]))
def test_round_trip(tmp_path_factory, pairs, newline):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=newline)
    writer.writerow(COLUMNS)
    writer.writerows(map(astuple, pairs))
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    path.write_bytes(text.getvalue().encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PairsWarning)
        assert load_pairs(path) == pairs


@given(st.binary() | st.text('\r\n",;ab \0é\ufeff').map(lambda text: (HEADER + text).encode()))
@example(b'"' + b"a" * 200_000)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_bytes_raise_anything_else(load, content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PairsWarning)
        try:
            pairs = load(content)
        except PairsError:
            return
    assert len(pairs) >= 2


# --- the shipped file

SHIPPED = load_pairs(PAIRS_CSV)
VALUES = {
    "color": tuple(vocabulary.COLORS),
    "object": tuple(vocabulary.OBJECTS)[:-1],
    "pattern": vocabulary.PATTERNS,
    "count": vocabulary.COUNTS,
    "size": vocabulary.SIZES,
    "scene": tuple(vocabulary.SCENES.values())[1:],
    "weather": vocabulary.WEATHERS[1:],
    "emotion": vocabulary.EMOTIONS[1:],
}
BY_CATEGORY = {name: [pair for pair in SHIPPED if pair.category == name] for name in VALUES}


def one_of(name, words):
    return f"(?P<{name}>{'|'.join(sorted(words, key=len, reverse=True))})"


SCENE_PHRASES = VALUES["scene"]
NOUN = one_of("noun", [*vocabulary.OBJECTS, *vocabulary.OBJECTS.values()])
#: The grammar of the world's captions, written down apart from the code that made the prompts.
GRAMMAR = re.compile(
    f"(?:{one_of('first', SCENE_PHRASES)}, )?"
    f"{one_of('prefix', vocabulary.PREFIXES)}"
    f"(?:{one_of('article', ('a', 'an', 'the'))}|{one_of('count', vocabulary.COUNTS)}) "
    f"(?:{one_of('size', vocabulary.SIZES)} )?"
    f"(?:{one_of('emotion', VALUES['emotion'])} )?"
    f"(?:{one_of('pattern', vocabulary.PATTERNS)} )?"
    f"(?:{one_of('color', vocabulary.COLORS)} )?"
    f"{NOUN}"
    f"(?: (?:{one_of('scene', SCENE_PHRASES)}|on a {one_of('weather', VALUES['weather'])} day))?"
)
ATTRIBUTES = ("count", "size", "emotion", "pattern", "color", "place")


def parsed(prompt):
    """Take a prompt apart into what it mentions."""
    match = GRAMMAR.fullmatch(prompt)
    assert match, f"not in the grammar: {prompt}"
    said = {name: text for name, text in match.groupdict().items() if text}
    places = [said[name] for name in ("first", "scene", "weather") if name in said]
    assert len(places) <= 1, prompt
    return {**said, "place": places[0]} if places else said


def value_of(category, word):
    return word.split()[0] if category == "count" else word


def test_shipped_file_is_what_its_script_makes():
    assert PAIRS_CSV.read_bytes() == as_csv(all_pairs()).encode()


def test_shipped_sizes():
    assert categories(SHIPPED) == list(VALUES)
    assert {len(pairs) for pairs in BY_CATEGORY.values()} == {PER_CATEGORY} == {50}
    assert [pair.id for pair in BY_CATEGORY["color"]] == [f"color-{i:02d}" for i in range(1, 51)]


@pytest.mark.parametrize("category", VALUES)
def test_shipped_values_are_balanced(category):
    counts = []
    for side in ("source", "target"):
        words = (getattr(pair, f"{side}_word") for pair in BY_CATEGORY[category])
        seen = Counter(value_of(category, word) for word in words)
        assert set(seen) == set(VALUES[category])
        counts += seen.values()
    assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("category", sorted(set(VALUES) - {"object", "emotion"}))
def test_shipped_subjects_are_balanced(category):
    nouns = {plural: noun for noun, plural in vocabulary.OBJECTS.items()}
    said = [parsed(pair.source_prompt)["noun"] for pair in BY_CATEGORY[category]]
    seen = Counter(nouns.get(noun, noun) for noun in said)
    assert len(seen) >= 15
    assert max(seen.values()) - min(seen.values()) <= 2


@pytest.mark.parametrize("category", VALUES)
def test_shipped_phrasing_is_varied(category):
    said = [parsed(pair.source_prompt) for pair in BY_CATEGORY[category]]
    forms = Counter(frozenset(words) - {"noun"} for words in said)
    assert len(forms) >= 7
    prefixed = sum("prefix" in words for words in said)
    assert 5 <= prefixed <= 25
    assert any(words.get("article") == "the" for words in said) or category in ("count", "scene")


@pytest.mark.parametrize("category", VALUES)
def test_shipped_prompts_differ_only_in_the_words(category):
    for pair in BY_CATEGORY[category]:
        whole_word = re.compile(rf"(?<![\w-]){re.escape(pair.source_word)}(?![\w-])")
        swapped = whole_word.subn(pair.target_word, pair.source_prompt)
        assert swapped == (pair.target_prompt, 1), pair


@pytest.mark.parametrize("category", VALUES)
def test_shipped_prompts_say_the_pairs_value_and_little_else(category):
    own = {"object": "noun", "scene": "place", "weather": "place"}.get(category, category)
    for pair in BY_CATEGORY[category]:
        for side in ("source", "target"):
            said = parsed(getattr(pair, f"{side}_prompt"))
            assert said[own] == value_of(category, getattr(pair, f"{side}_word")), pair
            further = [name for name in ATTRIBUTES if name in said and name != own]
            assert len(further) <= 2, pair
            assert ("emotion" in said) == (category == "emotion"), pair
            assert ("count" in said) == (category == "count"), pair
            assert not (said["noun"] == "face" and "pattern" in said), pair


def test_shipped_articles_are_right():
    for pair in SHIPPED:
        for prompt in (pair.source_prompt, pair.target_prompt):
            for article, initial in re.findall(r"\b(an?) (\w)", prompt):
                assert (article == "an") == (initial in "aeiou"), prompt


def test_shipped_counts_agree_with_their_nouns():
    for pair in BY_CATEGORY["count"]:
        for prompt in (pair.source_prompt, pair.target_prompt):
            said = parsed(prompt)
            forms = vocabulary.OBJECTS if said["count"] == "one" else vocabulary.OBJECTS.values()
            assert said["noun"] in forms


def test_shipped_prompts_are_never_the_same_pair_nor_its_reverse():
    seen = {(pair.source_prompt, pair.target_prompt) for pair in SHIPPED}
    assert len(seen) == len(SHIPPED)
    assert not seen & {(target, source) for source, target in seen}


def test_shipped_faces_are_few_where_another_object_would_do():
    faces = Counter(pair.category for pair in SHIPPED if " face" in pair.source_prompt)
    assert faces["emotion"] == PER_CATEGORY
    assert faces["object"] == faces["pattern"] == faces["count"] == 0
    assert all(faces[name] <= 4 for name in ("color", "size", "scene", "weather"))
