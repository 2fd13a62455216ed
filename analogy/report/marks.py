"""A report's notes on single pairs: those left out of figures, and those with unknown words."""

from __future__ import annotations

from collections.abc import Iterator

from analogy.core.text import listed
from analogy.report.numbers import counted
from analogy.results.model import CellFigures, Results
from analogy.settings.pairs import named_ids

UNKNOWN = "*"
"""The mark of figures that include pairs with unknown words."""


def pair_notes(results: Results) -> dict[str, str]:
    """Pair id to a note on the pair; only pairs that need one."""
    notes: dict[str, list[str]] = {}
    for ids, note in _left_out(results):
        for pair in ids:
            notes.setdefault(pair, []).append(note)
    for pair, words in results.unknown.items():
        notes.setdefault(pair, []).append(f"{UNKNOWN} words that are not known: {listed(words)}")
    return {pair: "; ".join(of) for pair, of in notes.items()}


def run_notes(results: Results) -> Iterator[str]:
    """A sentence for each kind of pairs that need a note, with their ids."""
    if results.unknown:
        yield (
            f"{UNKNOWN} with {counted(len(results.unknown), 'pair')} "
            f"({named_ids([*results.unknown])}) whose words the embedded model or judge does not "
            f"know: {listed(results.unknown_words)}. Their images and margins say nothing about "
            "these words."
        )
    for ids, note in _left_out(results):
        if ids:
            yield f"{counted(len(ids), 'pair')} ({named_ids(ids)}) {note}."


def cell_mark(results: Results, *cells: CellFigures) -> str:
    """`UNKNOWN` if a pair in one of these cells has unknown words, otherwise empty."""
    return UNKNOWN if any(results.mark(one) for one in cells) else ""


def _left_out(results: Results) -> tuple[tuple[tuple[str, ...], str], ...]:
    """For each kind of pairs that figures leave out, their ids and the note."""
    return (
        (results.uneven, "left out: the numbers of tokens of the two prompts differ"),
        (results.unread, "in no figure: the judge reads both prompts as one"),
        (results.unsteered, "not steered: the model reads both words or prompts as one"),
    )
