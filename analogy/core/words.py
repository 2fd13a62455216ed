"""How words and prompts are compared: letter case, Unicode forms, scripts, invisible characters.

Every comparison of words in the suite uses this module. Images and their keys do not: they depend
on the text exactly as it is written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# Scripts that put no space between words: Thai, Lao, Tibetan, Myanmar, Khmer, Tai, Balinese,
# Javanese, kana, bopomofo, Han, Yi.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f"
    "\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua000-\ua4cf\ua980-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
# Korean has spaces, but its particles follow a word without one.
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
_PROLONGED = "\u30fc\uff70"  # katakana's length marks, which belong to the letter before them

# Invisible, though Unicode counts them among letters and marks: fillers, blanks, selectors.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufffe\uffff"
    "\U000e0000-\U000e0fff]"
)
# Visible format characters: signs that enclose the digits after them.
_SEEN = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd]")
# Scripts in which a joiner changes how letters are drawn: Arabic, Indic, Khmer, Mongolian.
_JOINING = re.compile("[\u0600-\u0fff\u1000-\u109f\u1780-\u18af\ua840-\ua87f\ufb50-\ufdff]")
_MONGOLIAN = re.compile("[\u1800-\u18af]")
_EMOJI = re.compile("[\u2139\u203c\u2049\u2190-\u2bff\u3030\u303d\ufe0f\U0001f000-\U0001faff]")
_FLAG = "\U0001f3f4"

# Function words, which change with the word beside them but not what a prompt says.
_AGREEING = (
    {"a", "an"}, {"is", "are"}, {"was", "were"}, {"has", "have"}, {"this", "these"},
    {"that", "those"}, {"der", "die", "das", "den", "dem", "des"},
    {"ein", "eine", "einen", "einem", "einer", "eines"}, {"le", "la", "les", "l"},
    {"un", "une", "des"}, {"du", "de", "d"}, {"el", "la", "los", "las"},
    {"un", "una", "unos", "unas", "uno"}, {"il", "lo", "la", "i", "gli", "le", "l"},
    {"o", "a", "os", "as"}, {"um", "uma"}, {"de", "het"},
)  # fmt: skip
_ENDINGS = ("ies", "ves", "ing", "es", "ed", "en", "em", "er", "s", "e", "y", "f")
_SHORTEST_STEM = 3
_MOST_PLACES = 8
_MOST_SPACE = 16  # a word's place has at most this many characters more than twice the word's
_TOKEN = re.compile(r"\w+")


def folded(text: str) -> str:
    """The text as it is compared: case-folded, in one Unicode form, with single spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(text.casefold().split())


def confusable(name: str) -> str:
    """The form that look-alike names share: NFC, single spaces, no invisible characters.

    Letter case is kept, since it is visible.
    """
    if not name.isascii():
        name = "".join(c for c in name if not _is_invisible(c))
        name = unicodedata.normalize("NFC", name)
    return " ".join(name.split())


def has_word(prompt: str, word: str) -> bool:
    """True if the prompt contains the word, or the words of a phrase, whole.

    A word ends where no letter, digit or combining mark follows. In scripts that put no space
    between words (Chinese, Japanese, Thai, Lao, Khmer, Myanmar, Tibetan) it may end anywhere but
    before a combining mark, and in Korean before the particle that follows it.
    """
    return next(_places(folded(prompt), folded(word)), None) is not None


def places(prompt: str, word: str) -> list[tuple[int, int]]:
    """The places where the prompt contains the word whole, by the rule of :func:`has_word`.

    Each place is a start and an end, in characters of the prompt as it is written.
    """
    text, part = folded(prompt), folded(word)
    if prompt.isascii() and len(text) == len(prompt):  # character by character the same
        return [(at, at + len(part)) for at in _places(text, part)]
    found = []
    for start in range(len(prompt)):
        if prompt[start].isspace() or _is_inside(prompt, start):
            continue
        for end in range(start + 1, min(start + 2 * len(word) + _MOST_SPACE, len(prompt)) + 1):
            is_end = not prompt[end - 1].isspace() and not _is_inside(prompt, end, is_end=True)
            if is_end and folded(prompt[start:end]) == part:
                found.append((start, end))
    return found


def differs_in_more(
    source_prompt: str, target_prompt: str, source_word: str, target_word: str
) -> bool:
    """True if two prompts differ in more than their words.

    Without their words, both prompts must be the same, word by word, except for what changes with
    a word: an article (*a red*, *an orange*), an ending (*one car*, *two cars*), a verb's number
    (*is*, *are*), a Korean particle. Returns False if a prompt does not contain its word.
    """
    prompts = folded(source_prompt), folded(target_prompt)
    words = folded(source_word), folded(target_word)
    source, target = (list(_rests(*each)) for each in zip(prompts, words, strict=True))
    if not source or not target:
        return False
    return not any(_is_alike(a, b) for a in source for b in target)


def _rests(text: str, part: str) -> Iterator[list[str]]:
    """The words of a text without one place of ``part``, for each of the first, and without all."""
    found = list(_places(text, part))
    for at in found[:_MOST_PLACES]:
        yield _tokens(text[:at]) + _tokens(text[at + len(part) :])
    if len(found) > 1:
        kept, start = "", 0
        for at in found:
            if at >= start:
                kept += text[start:at] + " "
                start = at + len(part)
        yield _tokens(kept + text[start:])


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _is_alike(a: list[str], b: list[str]) -> bool:
    return len(a) == len(b) and all(x == y or _agree(x, y) for x, y in zip(a, b, strict=True))


def _agree(a: str, b: str) -> bool:
    """True if two words differ only as the word beside them requires, such as *a* and *an*."""
    if any(a in words and b in words for words in _AGREEING):
        return True
    if len(a) <= 2 and len(b) <= 2 and _HANGUL.match(a) and _HANGUL.match(b):
        return True
    return _stem(a) == _stem(b)


def _stem(word: str) -> str:
    """The word without its ending, unless hardly anything would be left."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM:
            return word[: -len(ending)]
    return word


def _places(text: str, part: str) -> Iterator[int]:
    """The positions at which a whole word begins in a text; both are folded."""
    at = text.find(part)  # compiling a pattern for each word would take most of the time
    while at >= 0:
        end = at + len(part)
        if not _is_inside(text, at) and not _is_inside(text, end, is_end=True):
            yield at
        at = text.find(part, at + 1)


def _is_inside(text: str, at: int, *, is_end: bool = False) -> bool:
    """True if a word continues from the character before this place to the one after it."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if unicodedata.category(after).startswith("M") or after in _PROLONGED:
        return True
    if not (_is_of_word(before) and _is_of_word(after)):
        return False
    if is_end and _HANGUL.match(after):
        return False
    return not (_UNSPACED.match(before) or _UNSPACED.match(after))


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def invisible(text: str) -> str | None:
    """The first invisible character of a text that changes no visible one, or None.

    White space does not count, nor does a character that has an effect: a joiner between letters of
    a script that joins them or within an emoji, a variation selector after what has variants.
    """
    if text.isprintable() and text.isascii():
        return None
    for i, character in enumerate(text):
        if _is_invisible(character):
            before, after = text[i - 1 : i] if i else "", text[i + 1 : i + 2]
            if not _has_its_place(character, before, after):
                return character
    return None


def _is_invisible(character: str) -> bool:
    if character.isspace():
        return False
    if _BLANK.match(character):
        return True
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and not _SEEN.match(character)


def _has_its_place(character: str, before: str, after: str) -> bool:
    if not before:
        return False
    if character in "\u200c\u200d":
        if unicodedata.combining(before) == 9:  # a virama; it may also end a word
            return True
        return any(script.match(before) and script.match(after) for script in (_JOINING, _EMOJI))
    if character in "\ufe0e\ufe0f":
        return after == "\u20e3" or bool(_EMOJI.match(before)) or before in "\xa9\xae\u2122"
    if "\u180b" <= character <= "\u180f":
        return bool(_MONGOLIAN.match(before))
    if "\ufe00" <= character <= "\ufe0d" or "\U000e0100" <= character <= "\U000e01ef":
        return bool(_UNSPACED.match(before))
    if "\U000e0020" <= character <= "\U000e007f":  # the tags of a region's flag
        return before == _FLAG or "\U000e0020" <= before <= "\U000e007e"
    return False
