"""Texts that a model cannot tell apart, because its tokenizer gives them the same tokens.

A tokenizer drops the end of a long prompt and does not distinguish all characters. If both prompts
of a pair have the same tokens to a judge, every margin is 0, whatever the image shows. If the texts
that a method steers between have the same tokens to the generator, steering does nothing. Both are
found with the tokenizers alone, before any model is loaded.
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

#: Prompts to the token ids that a model gets, one row each; equal rows are one text to it.
Read = Callable[[Sequence[str]], Sequence[Sequence[int]]]

#: The token ids of a text by each of a model's tokenizers.
Reading = tuple[tuple[int, ...], ...]

#: Tokenizers that a generator's folder may name; others are not asked.
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")

# transformers makes a tokenizer without words of a folder that has none of these.
_VOCABULARY = ("tokenizer.json", "vocab.json", "spiece.model")
_BATCH = 4096
_LONGEST = 100_000
_STAND_IN = 16


def read_by_judge(tokenize: Callable[[list[str]], torch.Tensor]) -> Read:
    """The token ids of texts, by a judge's own tokenizer."""
    return lambda prompts: tokenize(list(prompts)).tolist()


def same_to_judge(read: Read, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs of which a judge reads both prompts as one."""
    ids = _readings([read], (p for pair in pairs for p in (pair.source_prompt, pair.target_prompt)))
    return [pair for pair in pairs if ids[pair.source_prompt] == ids[pair.target_prompt]]


@dataclass(frozen=True, slots=True)
class Reader:
    """A generator's tokenizer: texts to the token ids that its encoder gets."""

    tokenizer: Any
    most: int

    def __call__(self, prompts: Sequence[str]) -> Sequence[Sequence[int]]:
        """One row of token ids for each prompt."""
        made = self.tokenizer(list(prompts), truncation=True, max_length=self.most)
        ids: Sequence[Sequence[int]] = made["input_ids"]
        return ids

    def has_word(self, prompt: str, word: str) -> bool:
        """True if a token of the word in the prompt is read."""
        return bool(word_tokens(self.tokenizer, prompt, word, most=self.most))


def readers_of(folder: Path) -> list[Reader]:
    """For each text encoder of a generator, its folder's tokenizer.

    Empty where the folder has none that is known. Raises ``ModelError`` for one that cannot be
    loaded.
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
            return []  # what one of the encoders reads is not known
        readers.append(_reader(folder / name, part[1]))
    return readers


def _tokenizer(folder: Path, kind: str) -> Any:
    """A folder's tokenizer, or that of its processor."""
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
    """The pairs whose prompts have different numbers of tokens to a model whose conditioning is as
    long as the prompt, or has a mask of that length.

    Empty for any other model. By the tokenizers alone: templates have the same tokens around every
    prompt. A prompt is counted at the beginning of a text and after a space, since the template
    decides which. Raises ``ModelError`` for a tokenizer that cannot be loaded.
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
    """The pairs that a method leaves as they are, since the text encoders tell nothing apart.

    Every reading gets a vector of its own in the place of its encoding, and the method steers
    between those: what it leaves where it was, it would leave with any encoder. A method that
    steers the words' tokens also leaves a prompt in which no encoder reads the source word.
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
    """Each distinct text to its token ids by all tokenizers."""
    distinct = list(dict.fromkeys(given))
    columns: list[list[tuple[int, ...]]] = []
    for read in readers:
        rows: list[tuple[int, ...]] = []
        for i in range(0, len(distinct), _BATCH):
            rows += [tuple(row) for row in read(distinct[i : i + _BATCH])]
        columns.append(rows)
    return dict(zip(distinct, zip(*columns, strict=True), strict=True))
