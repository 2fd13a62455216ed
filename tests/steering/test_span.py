"""The method span: the tokens of a word in every encoder, and the direction that is added there."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_steering import assert_same_bits, drawn
from tiny import SIZE, build

from analogy.core.errors import ModelError, OptionError
from analogy.core.records import Pair
from analogy.core.words import has_word, places
from analogy.models.families import SD3, family_of
from analogy.models.generator import Generator
from analogy.models.places import shipped
from analogy.models.tokens import T5_TOKENS, WordReader, word_tokens
from analogy.settings.pairs import UnreadPairsWarning
from analogy.steering.base import METHODS
from analogy.steering.conditioning import Span, WordTokens
from analogy.studies.finding import unsteered_pairs
from analogy.studies.tokenizers import readers_of, unsteered

PAIR = Pair("color-01", "color", "red", "blue", "a red car", "a blue car")
LONG = ", ".join(["a tree", "a house", "a star", "a cup"] * 6)
LATE = Pair("late", "color", "red", "blue", f"{LONG} and a red car", f"{LONG} and a blue car")


def reader(pipeline) -> WordReader:
    return WordReader(pipeline, family_of(pipeline).layout)


# --- where a word stands


@pytest.mark.parametrize(
    ("prompt", "word", "found"),
    [
        ("a red car", "red", ["red"]), ("a Red car, red", "red", ["Red", "red"]),
        ("a reddish car", "red", []), ("a  light  blue car", "light blue", ["light  blue"]),
        ("ein GRU\u0308NES Haus", "gr\u00fcnes", ["GRU\u0308NES"]), ("stra\u00dfe", "strasse",
        ["stra\u00dfe"]), ("\u8d64\u3044\u8eca", "\u8d64\u3044", ["\u8d64\u3044"]),
        ("a cup", "cup", ["cup"]), ("an \u00e9tude cup", "cup", ["cup"]),
    ],
)  # fmt: skip
def test_the_places_of_a_word_are_those_of_the_prompt_as_written(prompt, word, found):
    assert [prompt[start:end] for start, end in places(prompt, word)] == found
    assert has_word(prompt, word) == bool(found)


# --- its tokens


def test_tokens_are_found_by_their_offsets_and_not_by_their_number(pipeline):
    tokenizer = pipeline.tokenizer
    text = "a na\u00efve car and a Red car"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    found = word_tokens(tokenizer, text, "na\u00efve", most=32)
    assert "".join(tokens[i] for i in found) == "na\u00c3\u00afve</w>"
    assert len(found) > 1
    [red] = word_tokens(tokenizer, text, "red", most=32)
    assert tokens[red] == "red</w>"
    assert word_tokens(tokenizer, text, "blue", most=32) == []
    whole = word_tokens(tokenizer, text, most=32)
    assert whole == list(range(1, len(tokens) - 1))  # without the special ones
    assert word_tokens(tokenizer, text, "red", most=red + 1) == []  # the end token is there


def test_each_encoder_has_its_own_dimensions(pipeline):
    """SDXL: side by side; of the embedded model 64 and 128."""
    found = reader(pipeline)(PAIR)
    assert found.prompt == tuple(Span("prompt_embeds", (2,), dims) for dims in ((0, 64), (64, 192)))
    assert [span.tokens for span in found.source + found.target] == [(1,)] * 4


def test_t5_follows_the_tokens_of_clip():
    """SD3 with an encoder in the place of T5's, whose tokenizer is the embedded model's."""
    pipeline = build("sd3")
    pipeline.tokenizer_3 = pipeline.tokenizer
    pipeline.text_encoder_3 = SimpleNamespace(config=SimpleNamespace(hidden_size=64))
    clip = pipeline.tokenizer.model_max_length
    found = WordReader(pipeline, SD3.layout)(PAIR)
    assert found.prompt == (
        Span("prompt_embeds", (2,), (0, 32)), Span("prompt_embeds", (2,), (32, 64)),
        Span("prompt_embeds", (clip + 2,), (0, 64)),
    )  # fmt: skip
    assert SD3.layout[2].limit == T5_TOKENS


def test_what_no_encoder_reads_has_no_tokens(pipeline):
    assert reader(pipeline)(LATE) == WordTokens((), (), ())
    absent = replace(PAIR, source_prompt="a green car")
    assert reader(pipeline)(absent) == WordTokens((), (), ())


def test_a_family_or_a_tokenizer_that_does_not_say_is_refused(pipeline):
    with pytest.raises(ModelError, match="expected a family that says where each text encoder's"):
        WordReader(pipeline, ())(PAIR)
    with pytest.raises(ModelError, match="SimpleNamespace: expected a tokenizer that says where"):
        word_tokens(SimpleNamespace(is_fast=False), "a cup", most=8)


# --- the direction


def test_span_adds_the_difference_of_means_at_the_words_tokens():
    """By hand, with numpy: two tokens of one word, one of the other, two encoders side by side."""
    edit = drawn()
    tokens = WordTokens(
        prompt=(Span("states", (0, 2), (0, 3)), Span("states", (1,), (3, 4))),
        source=(Span("states", (1, 2), (0, 3)), Span("states", (1,), (3, 4))),
        target=(Span("states", (1,), (0, 3)), Span("states", (0, 1, 2), (3, 4))),
    )
    made = METHODS.get("span").condition(replace(edit, tokens=tokens), 0.7)
    a, b = edit.source_word.states["states"].numpy(), edit.target_word.states["states"].numpy()
    expected = edit.source.states["states"].numpy().copy()
    for place in (0, 2):
        expected[place, :3] += 0.7 * (b[1, :3] - (a[1, :3] + a[2, :3]) / 2)
    expected[1, 3] += 0.7 * ((b[0, 3] + b[1, 3] + b[2, 3]) / 3 - a[1, 3])
    np.testing.assert_allclose(made.states["states"].numpy(), expected, rtol=0, atol=1e-6)
    assert made.pooled is edit.source.pooled


def test_span_without_tokens_steers_nothing():
    edit = replace(drawn(), tokens=WordTokens((), (), ()))
    assert_same_bits(METHODS.get("span").condition(edit, 1.0), edit.source)


def test_a_word_of_one_token_takes_the_words_direction_and_the_rest_is_left(make_study, pairs):
    """The whole way to the conditioning, of the embedded model, whose words are a token each."""
    study = make_study(pairs=pairs[:2], method="span", seeds=(0,), alphas=(0.5,))
    pool = study.execution._worker._pool
    [pair, _] = study.pairs
    jobs = [job for job in study.jobs() if job.pair == pair]
    made, *_ = pool._inputs(jobs)
    source, span = (each.states["prompt_embeds"] for each in made)
    assert (span != source).any(dim=-1).nonzero().flatten().tolist() == [2]
    encoded = pool.generators[0].encode([pair.source_word, pair.target_word])
    a, b = (each.states["prompt_embeds"][1] for each in encoded.values())
    torch.testing.assert_close(span[2], source[2] + 0.5 * (b - a), atol=1e-5, rtol=0)
    assert torch.equal(*(each.pooled["pooled_prompt_embeds"] for each in made))


def test_words_of_other_numbers_of_tokens_are_steered(pipeline, make_study):
    pair = replace(PAIR, target_word="na\u00efve", target_prompt="a na\u00efve car")
    found = reader(pipeline)(pair)
    assert {len(span.tokens) for span in found.target} == {6}
    study = make_study(pairs=[pair], method="span", seeds=(0,), alphas=(1.0,))
    study.generate(study.jobs())
    first, second = (study.folder.read_image(job) for job in study.jobs())
    assert np.any(first != second)


def test_tokens_are_found_after_the_text_encoders_are_dropped(pipeline):
    """On a GPU they give their memory to images before the first batch."""
    own = Generator(copy.copy(pipeline), steps=2, guidance=3.0, size=64)
    found = own.word_reader()
    own.drop_text_encoders()
    assert found(PAIR) == reader(pipeline)(PAIR)
    assert own.clone().word_reader() is not None
    assert build("sd1").vae.config.sample_size == SIZE


# --- what is not read


def test_a_pair_whose_word_is_not_read_is_not_steered():
    readers = readers_of(shipped("models/sdxl-tiny"))
    absent = replace(PAIR, id="absent", source_prompt="a green car")
    same = Pair("same", "color", f"{LONG} red", f"{LONG} blue", f"{LONG} red", f"{LONG} blue")
    assert unsteered(readers, [PAIR, LATE, absent, same], "span") == [LATE, absent, same]
    assert unsteered(readers, [PAIR, absent], "word") == []


def test_a_study_names_it(model_source):
    said = r"read both words as one, or no token of the source word in 1 of 2 pairs \(late\)"
    with pytest.warns(UnreadPairsWarning, match=said):
        assert unsteered_pairs(model_source, [PAIR, LATE], "span") == ["late"]
    with pytest.raises(OptionError, match=r"in every pair \(late\): nothing would be steered"):
        unsteered_pairs(model_source, [LATE], "span")
