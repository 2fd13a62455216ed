"""Load, validate and select word pairs: CSV in, `Pair` records out.

A file is read completely and all errors are reported at once: each with its line in the file, its
column, what was expected, what was found and what to do.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

from analogy.core.errors import AnalogyError
from analogy.core.records import Pair
from analogy.core.text import is_printable
from analogy.core.words import confusable, differs_in_more, folded, has_word, invisible
from analogy.settings.options import csv_list

COLUMNS = tuple(column.name for column in fields(Pair))

MAX_FILE_BYTES = 32_000_000
"""A larger file is refused before it is read; the shipped one, of 400 pairs, has under 50,000."""

MAX_PAIRS = 100_000
"""Most pairs in a file. Counting stops at the first one more, and the file is refused."""

MAX_FIELD_CHARACTERS = 10_000
MAX_REPORTED = 20
MIN_PAIRS = 2
WEAK_PAIRS = 5

MAX_NAMED = 5
"""How many pairs a note lists by id; it counts the rest."""

_UTF8_BOM = b"\xef\xbb\xbf"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


class PairsError(AnalogyError, ValueError):
    """A file of pairs, or a selection from it, cannot be used; the message says what to do.

    ``problems``: every problem of a file, each with its line. The message lists the first
    `MAX_REPORTED` of them.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class PairsWarning(UserWarning):
    """The pairs can be used, but their figures may not mean what they seem to."""


class WeakCategoryWarning(PairsWarning):
    """A category has so few pairs that its statistics are weak."""


class DifferingPromptsWarning(PairsWarning):
    """The prompts of a pair differ in more than its words."""


class UnreadPairsWarning(PairsWarning):
    """A judge or a generator reads two texts of a pair as one."""


class UnevenPairsWarning(PairsWarning):
    """Pairs are left out: their prompts have different numbers of tokens."""


def load_pairs(path: str | Path) -> list[Pair]:
    """Read a CSV file of word pairs, in the file's order.

    Blank lines, white space around a field and columns beyond `COLUMNS` are ignored. Words and
    prompts are compared without letter case, which CLIP's tokenizers ignore, too. Raises
    `PairsError` if the file cannot be used; warns with a `PairsWarning` of doubtful pairs.
    """
    path = Path(path)
    check = _Check(path)
    pairs = check.pairs(_rows(check, _read(path)))
    if check.problems:
        raise PairsError(check.report(), check.problems)
    for category, members in _by_category(pairs).items():
        if len(members) <= WEAK_PAIRS:
            warnings.warn(
                f"{path}: category {category!r} has {len(members)} pairs; with {WEAK_PAIRS} or "
                "fewer its statistics are weak: add pairs, or draw no conclusion from it",
                WeakCategoryWarning,
                stacklevel=2,
            )
    differing = differing_pairs(pairs)
    if differing:
        warnings.warn(
            f"{path}: {differing_note(differing, len(pairs))}",
            DifferingPromptsWarning,
            stacklevel=2,
        )
    return pairs


def differing_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs whose prompts differ in more than the words, by the rule of `differs_in_more`."""
    return [
        pair
        for pair in pairs
        if differs_in_more(
            pair.source_prompt, pair.target_prompt, pair.source_word, pair.target_word
        )
    ]


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Pairs that can be used, but may not measure what they seem to."""

    name: str
    pairs: list[Pair]
    note: str


def differing_note(differing: Sequence[Pair], count: int) -> str:
    """The note about `differing`, which are some of `count` pairs."""
    first = differing[0]
    return (
        f"the prompts of {len(differing):,} of {count:,} pairs differ in more than the words "
        f"({named(differing)}), such as {_shown(first.source_prompt)} and "
        f"{_shown(first.target_prompt)}; what else differs is measured, too: let the prompts of a "
        "pair differ in its words alone"
    )


def named(pairs: Sequence[Pair]) -> str:
    """The ids of these pairs, or the first of many."""
    return named_ids([pair.id for pair in pairs])


def named_ids(given: Sequence[str]) -> str:
    """These ids, or the first of many."""
    ids = [each if len(each) <= 40 else f"{each[:39]}…" for each in given[:MAX_NAMED]]
    more = len(given) - len(ids)
    return ", ".join(ids) + (f" and {more:,} more" if more else "")


def categories(pairs: Iterable[Pair]) -> list[str]:
    """The categories in order of first appearance."""
    return list(_by_category(pairs))


def select(
    pairs: Sequence[Pair], categories: Iterable[str] | None = None, limit: int | None = None
) -> list[Pair]:
    """Choose categories (default: all) and the first `limit` pairs of each, in the file's order.

    Names match in every Unicode form. Raises `PairsError` for an unknown category, for an empty
    list of categories, and for a limit below 1.
    """
    known = {confusable(name): name for name in _by_category(pairs)}
    given = list(known.values()) if categories is None else list(categories)
    choose = f"choose from {csv_list(known.values(), ', ')}"
    if not given:
        raise PairsError(f"expected at least one category, got none; {choose}")
    wanted: set[str] = set()
    for name in given:
        if confusable(name) not in known:
            raise PairsError(f"unknown category {name!r}; {choose}{_hint(given, known.values())}")
        wanted.add(known[confusable(name)])
    if limit is not None and limit < 1:
        raise PairsError(f"expected a limit of at least 1 pair per category, got {limit}")

    chosen: list[Pair] = []
    taken: Counter[str] = Counter()
    for pair in pairs:
        if pair.category in wanted and (limit is None or taken[pair.category] < limit):
            taken[pair.category] += 1
            chosen.append(pair)
    return chosen


def _hint(given: Sequence[str], known: Iterable[str]) -> str:
    """Advice for categories of which one is unknown: quotes, or the nearest name."""
    for name in known:
        parts = [part.strip() for part in name.split(",")]
        if len(parts) > 1 and any(
            given[i : i + len(parts)] == parts for i in range(len(given) - len(parts) + 1)
        ):
            return f"; a name that holds a comma is quoted: {csv_list([name])}"
    unknown = next(name for name in given if name not in known)
    near = difflib.get_close_matches(unknown, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True, slots=True)
class _Row:
    """One record of the file: the line it starts on, and its stripped fields by column."""

    line: int
    fields: dict[str, str]


@dataclass
class _Check:
    """Turns a file's rows into pairs and collects its problems on the way."""

    path: Path
    problems: list[str] = field(default_factory=list)
    rows_lost: bool = False
    """True if rows were unreadable, so that a category may have more pairs than were counted."""

    def add(self, line: int, column: str, problem: str) -> None:
        """Record one problem; `column` is empty if it concerns the whole line."""
        where = f"line {line}, column {column}" if column else f"line {line}"
        self.problems.append(f"{self.path}, {where}: {problem}")

    def lose(self, line: int, problem: str) -> None:
        """Record a problem that makes a row, or all rows from there on, unreadable."""
        self.add(line, "", problem)
        self.rows_lost = True

    def report(self) -> str:
        """The message: all problems, one a line, or the first `MAX_REPORTED`."""
        if len(self.problems) == 1:
            return self.problems[0]
        shown = self.problems[:MAX_REPORTED]
        if len(self.problems) > MAX_REPORTED:
            shown.append(f"... and {len(self.problems) - MAX_REPORTED} more")
        return "\n  ".join([f"{self.path}: {len(self.problems)} problems", *shown])

    def pairs(self, rows: Iterable[_Row]) -> list[Pair]:
        """Check every row, by itself and against the others."""
        pairs: list[Pair] = []
        ids: dict[str, int] = {}
        prompts: dict[str, int] = {}
        lines: dict[str, list[int]] = {}
        spelled: dict[str, tuple[str, int]] = {}
        known = list(islice(rows, MAX_PAIRS + 1))  # reading is quick, checking is not
        if len(known) > MAX_PAIRS:
            line = known[-1].line
            self.lose(line, f"expected at most {MAX_PAIRS:,} pairs, got more; split the file")
            return pairs
        for row in known:
            pair = Pair(**row.fields)
            pairs.append(pair)
            self._check_fields(row)
            self._check_words(pair, row.line)
            if pair.id:
                self._check_new(ids, confusable(pair.id), pair.id, row.line, "id")
            if pair.source_prompt and pair.target_prompt:
                key = f"{folded(pair.source_prompt)!r} -> {folded(pair.target_prompt)!r}"
                self._check_new(prompts, key, key, row.line, "source_prompt")
            if pair.category:
                lines.setdefault(pair.category, []).append(row.line)
                first = spelled.setdefault(confusable(pair.category), (pair.category, row.line))
                if first[0] != pair.category:
                    self.add(
                        row.line,
                        "category",
                        f"expected one spelling of a category, got {pair.category!a} here and "
                        f"{first[0]!a} on line {first[1]}, which look alike; write one",
                    )
        if not self.rows_lost:
            self._check_counts(lines)
        if not pairs and not self.problems:
            self.add(1, "", "expected word pairs, got none; write one a line below the header")
        return pairs

    def _check_fields(self, row: _Row) -> None:
        for column, text in row.fields.items():
            if not text:
                self.add(row.line, column, "expected text, got an empty field; fill it in")
            elif len(text) > MAX_FIELD_CHARACTERS:
                self.add(
                    row.line,
                    column,
                    f"expected at most {MAX_FIELD_CHARACTERS:,} characters, got {len(text):,}; "
                    "shorten it, or close a quote that was left open",
                )
            elif hidden := invisible(text):
                self.add(row.line, column, _of_invisible(hidden, text))
            elif column in ("id", "category") and not is_printable(text):
                self.add(
                    row.line,
                    column,
                    f"expected text on one line, got {_shown(text)}; "
                    "take out line breaks and control characters",
                )

    def _check_words(self, pair: Pair, line: int) -> None:
        for what in ("word", "prompt"):
            source, target = getattr(pair, f"source_{what}"), getattr(pair, f"target_{what}")
            if source and folded(source) == folded(target):
                self.add(
                    line,
                    f"target_{what}",
                    f"expected another {what} than source_{what}, got {_shown(target)} in both; "
                    "a pair leads from one concept to another",
                )
        for side in ("source", "target"):
            word, prompt = getattr(pair, f"{side}_word"), getattr(pair, f"{side}_prompt")
            if word and prompt and not has_word(prompt, word):
                self.add(
                    line,
                    f"{side}_word",
                    f"expected whole words of {side}_prompt {_shown(prompt)}, got {_shown(word)}; "
                    "write the word as it stands in the prompt",
                )

    def _check_new(self, seen: dict[str, int], key: str, text: str, line: int, column: str) -> None:
        first = seen.setdefault(key, line)
        if first != line:
            what, got = "a pair of prompts of its own", text[:200]
            if column == "id":
                what, got = "an id of its own", _shown(text)
            self.add(
                line,
                column,
                f"expected {what}, got {got} as on line {first}; change or remove one",
            )

    def _check_counts(self, lines: dict[str, list[int]]) -> None:
        for category, where in lines.items():
            if len(where) < MIN_PAIRS:
                self.add(
                    where[0],
                    "category",
                    f"expected at least {MIN_PAIRS} pairs in each category, got {len(where)} in "
                    f"{_shown(category)}; add pairs to it or take it out",
                )


def _read(path: Path) -> str:
    """Read the file's text, without a byte order mark and with its line endings as they are."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise PairsError(
                f"{path}: expected a CSV file of word pairs, got a device or a pipe; check the path"
            )
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            data = stream.read(MAX_FILE_BYTES + 1) if size <= MAX_FILE_BYTES else b""
    except (OSError, ValueError) as error:
        if isinstance(error, PairsError):
            raise
        what = getattr(error, "strerror", None) or error  # ValueError: a NUL in the path
        raise PairsError(
            f"{path}: expected a CSV file of word pairs, got: {what}; check the path"
        ) from error
    if max(size, len(data)) > MAX_FILE_BYTES:
        raise PairsError(
            f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, got {max(size, len(data)):,}; "
            "split the file"
        )
    bom = len(_UTF8_BOM) if data.startswith(_UTF8_BOM) else 0
    try:
        text = data[bom:].decode("utf-8")
    except UnicodeDecodeError as error:
        position = bom + error.start
        line = _line_at(data[:position].decode("latin-1"))
        raise PairsError(
            f"{path}, line {line}: expected UTF-8 text, got byte 0x{data[position]:02x} at byte "
            f"position {position}; save the file as UTF-8 (in a spreadsheet: CSV UTF-8)"
        ) from error
    before, nul, _ = text.partition("\0")
    if nul:
        raise PairsError(
            f"{path}, line {_line_at(before)}: expected text, got a NUL character; "
            "save the file as CSV in UTF-8"
        )
    return text


def _rows(check: _Check, text: str) -> Iterator[_Row]:
    """Split the text into records, with the line each starts on; the first names the columns."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for record in reader:
            start, line = line, reader.line_num + 1
            values = [value.strip() for value in record]
            if not any(values):
                continue
            if not header:
                header = values
                if not _check_header(check, header, start):
                    return
            elif [confusable(value) for value in values] == header:
                check.add(start, "", "expected a pair, got the header again; remove the line")
            elif len(values) != len(header):
                check.lose(
                    start,
                    f"expected {len(header)} fields as in the header, got {len(values)}; "
                    "put quotes around text that holds a comma",
                )
            else:
                named = dict(zip(header, values, strict=True))
                yield _Row(start, {column: named[column] for column in COLUMNS})
    except csv.Error as error:
        check.lose(
            line,
            f"expected CSV with commas and double quotes, got: {error}; "
            "look for a quote that is not closed, or not doubled inside quotes",
        )
    if not header:
        check.lose(1, f"expected a header line with {_listed(COLUMNS)}, got an empty file; add it")


def _check_header(check: _Check, header: list[str], line: int) -> bool:
    """Record the header's problems, such as missing or repeated columns; True if there are none."""
    for separator, name in _SEPARATORS.items():
        if set(COLUMNS) <= {each.strip(' "') for each in ",".join(header).split(separator)}:
            check.lose(
                line,
                f"expected commas between the columns, got {name}; save the file as CSV that is "
                "separated by commas",
            )
            return False
    if header[0].casefold().startswith("sep="):
        check.lose(
            line,
            f"expected a header line with {_listed(COLUMNS)}, got a spreadsheet's "
            f"{_shown(header[0])}; remove the line",
        )
        return False
    for column in COLUMNS:
        if header.count(column) == 1:
            continue
        if column in header:
            got, do = f"{header.count(column)}", "keep one"
        else:
            near = difflib.get_close_matches(column, set(header) - set(COLUMNS), n=1)
            got = _shown(_listed(header))
            do = f"rename {_shown(near[0])}" if near else "add it, separated by commas"
        check.add(line, column, f"expected one column of this name in the header, got {got}; {do}")
        check.rows_lost = True
    return not check.rows_lost


def _by_category(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.category, []).append(pair)
    return groups


def _of_invisible(character: str, text: str) -> str:
    """The problem that a text contains this invisible character."""
    is_control = unicodedata.category(character) == "Cc"
    name = unicodedata.name(character, "a control character" if is_control else "without a name")
    if character == "\ufeff":
        name += ", a byte order mark"
    return (
        f"expected characters that can be seen, got U+{ord(character):04X} ({name}) in "
        f"{_shown(text)}; take it out"
    )


def _line_at(before: str) -> int:
    """The number of the line, from 1, on which the text after `before` starts."""
    return len(re.findall(r"\r\n|\r|\n", before)) + 1


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _shown(text: str) -> str:
    """Quote a text for a message, shortened when very long."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
