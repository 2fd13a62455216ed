"""Texts that a model cannot tell apart, because its tokenizer gives them the same tokens.

A tokenizer drops the end of a long prompt and does not distinguish all characters. If a judge's
tokenizer gives both prompts of a pair the same tokens, every margin is 0, whatever the image shows.
If the generator's tokenizers give the texts that a method steers between the same tokens, steering
changes nothing. Both are found with the tokenizers alone, before any model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.core.strict_json import Json
from analogy.generation.worker import steered, texts
from analogy.models.families import Counted
from analogy.models.folders import family_of_folder, parts_of
from analogy.models.libraries import transformers
from analogy.models.tokens import T5_TOKENS, word_tokens
from analogy.steering.base import METHODS, Intervention, Need
from analogy.steering.conditioning import Conditioning, Span, WordTokens
from analogy.store.grid import Job

#: Prompts to token ids, one row each. Prompts with equal rows are the same text to the model.
Read = Callable[[Sequence[str]], Sequence[Sequence[int]]]

#: The token ids of a text by each of a model's tokenizers.
Reading = tuple[tuple[int, ...], ...]

#: The supported tokenizer classes of a generator's folder; with others no pairs are checked.
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")

# Without any of these files in the folder, transformers makes a tokenizer without a vocabulary.
_VOCABULARY = ("tokenizer.json", "vocab.json", "spiece.model")
_BATCH = 4096
_LONGEST = 100_000
_STAND_IN = 16


def read_by_judge(tokenize: Callable[[list[str]], torch.Tensor]) -> Read:
    """A judge's own tokenizer as a function from texts to token ids."""
    return lambda prompts: tokenize(list(prompts)).tolist()


def same_to_judge(read: Read, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose two prompts have the same token ids to a judge."""
    ids = _readings([read], (p for pair in pairs for p in (pair.source_prompt, pair.target_prompt)))
    return [pair for pair in pairs if ids[pair.source_prompt] == ids[pair.target_prompt]]


@dataclass(frozen=True, slots=True)
class Reader:
    """A generator's tokenizer: texts to the token ids that its encoder gets, at most ``most``."""

    tokenizer: Any
    most: int

    def __call__(self, prompts: Sequence[str]) -> Sequence[Sequence[int]]:
        """One row of token ids for each prompt."""
        made = self.tokenizer(list(prompts), truncation=True, max_length=self.most)
        ids: Sequence[Sequence[int]] = made["input_ids"]
        return ids

    def has_word(self, prompt: str, word: str) -> bool:
        """True if a token of the word in the prompt lies within the first ``most`` tokens."""
        return bool(word_tokens(self.tokenizer, prompt, word, most=self.most))


def readers_of(folder: Path) -> list[Reader]:
    """The tokenizer of each text encoder of a generator, from the generator's folder.

    Empty if any of them is missing or of another class than :data:`TOKENIZERS`. Raises
    ``ModelError`` if one cannot be loaded.
    """
    try:
        index: Mapping[str, Json] = json.loads((folder / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    readers = []
    for name, part in sorted(index.items()):
        if not name.startswith("tokenizer") or not isinstance(part, list) or len(part) != 2:
            continue
        encoder = index.get(name.replace("tokenizer", "text_encoder"))
        if encoder in (None, [None, None]) or part[1] is None:
            continue
        if part[1] not in TOKENIZERS or not any((folder / name / v).is_file() for v in _VOCABULARY):
            return []  # the tokens of one encoder are unknown
        readers.append(_reader(folder / name, part[1]))
    return readers


def _tokenizer(folder: Path, kind: str) -> Any:
    """The tokenizer in a folder, or the tokenizer of the processor there."""
    try:
        made = getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{folder}: expected a {kind} that can be loaded ({error})") from error
    return getattr(made, "tokenizer", made)


def _reader(folder: Path, kind: str) -> Reader:
    tokenizer = _tokenizer(folder, kind)
    most = min(int(tokenizer.model_max_length), T5_TOKENS if kind.startswith("T5") else _LONGEST)
    return Reader(tokenizer, most)


def uneven_pairs(folder: Path, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose prompts have different numbers of tokens, for a model whose conditioning, or
    the mask of it, is as long as the prompt.

    Empty for any other model. The tokenizers suffice, because templates put the same tokens around
    every prompt. Prompts are counted both at the start of a text and after a space, since either
    may occur in a template. Raises ``ModelError`` if a tokenizer cannot be loaded.
    """
    parts, family = parts_of(folder), family_of_folder(folder)
    counted = family.counted if isinstance(family, Counted) else ()
    if counted is None:
        counted = tuple(name for name in parts if re.fullmatch(r"tokenizer(_\d)?", name))
        counted = counted or ("processor",)
    tokenizers = [_tokenizer(folder / name, parts[name][1]) for name in counted if name in parts]

    def counts(prompt: str) -> list[int]:
        return [len(t(text)["input_ids"]) for t in tokenizers for text in (prompt, f" {prompt}")]

    return [pair for pair in pairs if counts(pair.source_prompt) != counts(pair.target_prompt)]


def unsteered(readers: Sequence[Reader], pairs: Sequence[Pair], method: str) -> list[Pair]:
    """The pairs that a method cannot change, because the texts that it steers between have the same
    tokens.

    A random vector stands for the encoding of each distinct reading, and the method steers between
    these vectors: a pair whose vector it does not change would not change with any encoder. A
    method that steers the words' tokens also cannot change a prompt in which no encoder reads the
    source word.
    """
    if not readers or isinstance(METHODS.get(method), Intervention):
        return []  # what an intervention changes is not in the text
    ids = _readings(readers, texts(pairs))
    needs = METHODS.get(method).needs
    lost = {
        pair.id
        for pair in pairs
        if Need.TOKENS in needs
        and not any(reader.has_word(pair.source_prompt, pair.source_word) for reader in readers)
    }
    whole = Span("states", (0,), (0, _STAND_IN))
    suspects = {pair.category for pair in pairs if _has_equal(pair, ids)}
    stand_ins: dict[Reading, Conditioning] = {}
    generator = torch.Generator().manual_seed(0)
    for reading in ids.values():
        if reading not in stand_ins:
            drawn = torch.randn(2, _STAND_IN, generator=generator)
            stand_ins[reading] = Conditioning({"states": drawn[:1]}, {"pooled": drawn[1]})
    encoded = {text: stand_ins[reading] for text, reading in ids.items()}
    found = []
    for pair in pairs:
        if pair.id in lost:
            found.append(pair)
            continue
        if pair.category not in suspects:
            continue
        if Need.OTHERS not in needs and not _has_equal(pair, ids):
            continue
        job = Job(pair, 0.5, 0, method, "")
        made = steered(job, pairs, encoded, tokens=lambda _: WordTokens(*[(whole,)] * 3))
        if made.is_close(encoded[pair.source_prompt], atol=1e-4):
            found.append(pair)
    return found


def _has_equal(pair: Pair, ids: Mapping[str, Reading]) -> bool:
    """True if both prompts, or both words, of the pair have the same token ids."""
    return (
        ids[pair.source_prompt] == ids[pair.target_prompt]
        or ids[pair.source_word] == ids[pair.target_word]
    )


def _readings(readers: Collection[Read], given: Iterable[str]) -> dict[str, Reading]:
    """Each distinct text mapped to its token ids by every tokenizer."""
    distinct = list(dict.fromkeys(given))
    columns: list[list[tuple[int, ...]]] = []
    for read in readers:
        rows: list[tuple[int, ...]] = []
        for i in range(0, len(distinct), _BATCH):
            rows += [tuple(row) for row in read(distinct[i : i + _BATCH])]
        columns.append(rows)
    return dict(zip(distinct, zip(*columns, strict=True), strict=True))
