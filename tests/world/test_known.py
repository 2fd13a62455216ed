"""The words that the embedded models know: those of their captions, and no others."""

from __future__ import annotations

import json
import random

import pytest

from analogy.core.records import Pair
from analogy.models.places import shipped
from analogy.world import caption, mentions, sample_scene
from analogy.world.known import WORDS, unknown_note, unknown_pairs, unknown_words

PAIRS = [
    Pair("a", "color", "red", "blue", "a red car", "a Blue car"),
    Pair("b", "style", "photo", "watercolour", "a photo of Paris", "a watercolour of Paris"),
    Pair("c", "style", "red", "teal", "a red car, on a rainy day", "a teal car, on a rainy day"),
]


def test_every_word_of_a_caption_is_known():
    rng = random.Random(0)
    for _ in range(300):
        scene = sample_scene(rng)
        assert unknown_words([caption(scene, mentions(scene, rng), rng)]) == ()


def test_known_words_are_single_tokens_of_the_shipped_tokenizer():
    """Which was trained on the captions; others are pieced together of parts."""
    vocabulary = json.loads(shipped("models/sdxl-tiny/tokenizer/vocab.json").read_text())
    parts = {part for word in WORDS for part in word.split("-")}
    assert {part for part in parts if f"{part}</w>" not in vocabulary} == set()
    for word in ("watercolour", "paris", "teal"):
        assert f"{word}</w>" not in vocabulary


def test_the_suites_own_pairs_have_no_other_words(shipped_pairs):
    assert unknown_pairs(shipped_pairs, model="embedded", judge="embedded") == {}


def test_unknown_words_are_named_as_they_are_written():
    assert unknown_words(["A WATERCOLOUR of Paris", "a watercolour of a medium-sized car."]) == (
        "WATERCOLOUR", "Paris",
    )  # fmt: skip
    assert unknown_words(["a clear day"]) == ("clear",)  # clear weather is never said


def test_pairs_are_named_for_embedded_models_alone():
    found = {"b": ("Paris", "watercolour"), "c": ("teal",)}
    assert unknown_pairs(PAIRS, model="embedded", judge="ViT-B-32") == found
    assert unknown_pairs(PAIRS, model="some/model", judge="embedded") == found
    assert unknown_pairs(PAIRS, model="some/model", judge="ViT-B-32") == {}


@pytest.mark.parametrize(("model", "who"), [("embedded", "model"), ("some/model", "judge")])
def test_the_note_says_who_does_not_know(model, who):
    words = ("watercolour", "Paris", "Paris")
    assert unknown_note(words, model=model) == (
        f"the embedded {who} does not know: watercolour, Paris"
    )
    many = unknown_note([f"w{i}" for i in range(12)], model=model)
    assert many.endswith("w9 and 2 more")
