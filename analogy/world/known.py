"""The words of prompts that the embedded models were not trained on.

Their training captions have only the words of `analogy.world.vocabulary`. A pair with another word
still has images and margins, but these say nothing about the word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from analogy.core.records import Pair
from analogy.models.places import EMBEDDED
from analogy.results.model import Results
from analogy.world.reading import ARTICLES, BEFORE_NOUN, PLACES
from analogy.world.vocabulary import COUNTS, OBJECTS, PREFIXES

_WORD = re.compile(r"[^\W_]+(?:[-'\u2019][^\W_]+)*")

WORDS: frozenset[str] = frozenset(
    word
    for phrases in (
        ARTICLES, COUNTS, OBJECTS, OBJECTS.values(), *BEFORE_NOUN.values(), PLACES, PREFIXES,
    )
    for phrase in phrases
    for word in phrase.split()
)  # fmt: skip
"""Every word of the captions that the embedded models were trained on, in lower case."""


def unknown_words(prompts: Iterable[str]) -> tuple[str, ...]:
    """The words of prompts that are not in `WORDS`, as they are written, each once.

    Letter case is ignored, as it is by the models' tokenizers.
    """
    found: dict[str, str] = {}
    for prompt in prompts:
        for word in _WORD.findall(prompt):
            if word.casefold() not in WORDS:
                found.setdefault(word.casefold(), word)
    return tuple(found.values())


def unknown_pairs(
    pairs: Iterable[Pair], *, model: str | None, judge: str | None
) -> dict[str, tuple[str, ...]]:
    """Pair id to its unknown words, for pairs that have some.

    ``model``, ``judge``: their names, as in options. Empty unless one of them is embedded.
    """
    if EMBEDDED not in (model, judge):
        return {}
    words = {pair.id: unknown_words((pair.source_prompt, pair.target_prompt)) for pair in pairs}
    return {name: of for name, of in words.items() if of}


def with_unknown(results: Results, pairs: Sequence[Pair]) -> Results:
    """The results with the unknown words of these pairs."""
    settings = results.header.config
    found = unknown_pairs(pairs, model=settings.model, judge=settings.text("clip_model"))
    return replace(results, unknown=found)


def unknown_note(words: Iterable[str], *, model: str | None) -> str:
    """A note such as ``the embedded model does not know: watercolour, Paris``; it names the judge
    if only that is embedded.
    """
    who = "model" if model == EMBEDDED else "judge"
    listed = list(dict.fromkeys(words))
    more = f" and {len(listed) - _MOST} more" if len(listed) > _MOST else ""
    return f"the embedded {who} does not know: {', '.join(listed[:_MOST])}{more}"


_MOST = 10
