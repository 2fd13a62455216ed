"""Prompts read as scenes and drawn: the same meaning both ways, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analogy.core.records import Pair
from analogy.world import (
    ATTRIBUTES,
    CaptionError,
    Scene,
    caption,
    matches,
    mentions,
    read,
    sample_scene,
)
from analogy.world.drawings import drawings, scenes
from analogy.world.scene import ORDINARY, TYPICAL_COLOR, is_drawable
from analogy.world.vocabulary import PREFIXES

quick = settings(deadline=None, max_examples=100)

seeds = st.integers(0, 2**32)


# --- reading captions


class Phrasing(random.Random):
    """An rng that makes `caption` choose a given phrasing."""

    def __init__(self, prefix: str, definite: bool, place_first: bool, weather: bool) -> None:
        super().__init__(0)
        self._prefix = prefix
        shares = [0.0, *(0.0 if yes else 0.99 for yes in (definite, place_first, weather))]
        self._shares = iter(shares)

    def choice(self, seq):
        assert self._prefix in seq
        return self._prefix

    def random(self) -> float:
        return next(self._shares)


def phrasings(scene: Scene, said: frozenset[str]) -> set[str]:
    """Every way in which a caption can say these attributes of the scene."""
    switches = product(PREFIXES, *[[False, True]] * 3)
    return {caption(scene, said, Phrasing(*each)) for each in switches}


def test_every_prompt_is_a_caption_of_the_scene_that_it_is_read_as(shipped_pairs):
    for pair in shipped_pairs:
        for prompt in (pair.source_prompt, pair.target_prompt):
            assert prompt in phrasings(*read(prompt))


@quick
@given(seeds)
def test_a_caption_is_read_as_what_it_says(seed):
    rng = random.Random(seed)
    scene = sample_scene(rng)
    said = mentions(scene, rng)
    found, found_said = read(caption(scene, said, rng))
    assert found_said == said
    assert matches(found, scene, said)
    assert is_drawable(found)
    for name in set(ATTRIBUTES) - said - {"color", "count"}:
        assert getattr(found, name) == ORDINARY[name]
    if "color" not in said:
        assert found.color == TYPICAL_COLOR[scene.object]
    if "count" not in said:  # the plural says that there are several, but not how many
        is_plural = scene.count != "one" and scene.object != "fish"
        assert found.count == ("two" if is_plural else "one")


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        ("A  Red Car ", Scene(object="car", color="red")),
        ("an red car", Scene(object="car", color="red")),
        ("the fish", Scene(object="fish", color="orange")),
        ("two fish", Scene(object="fish", color="orange", count="two")),
        ("three medium-sized cars", Scene(object="car", count="three")),
        ("in foggy weather, a cup", Scene(object="cup", color="white", weather="foggy")),
        ("a photo of a tiny sad face", Scene("face", "yellow", size="tiny", emotion="sad")),
    ],
)
def test_what_does_not_change_the_meaning_is_accepted(text, scene):
    assert read(text)[0] == scene


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a tall car",
            r"expected a size \(tiny, .* or an object \(car, .*, got 'tall'; the rendered",
        ),
        ("a striped small car", r"expected a color \(red, .* or an object \(car, .* got 'small'"),
        ("a red red car", r"expected an object \(car, .*, got 'red'"),
        ("red car", r"expected an article \(a, an, the\) or a count \(one, .*, got 'red'"),
        ("two car", r"or an object \(cars, houses, .*, got 'car'"),
        ("a cars", r"or an object \(car, house, .*, got 'cars'"),
        ("a red", r"expected an object \(.*, got nothing"),
        ("", r"caption '': expected an article .*, got nothing"),
        ("a car at school", r"expected a place \(at night, .*, got 'at school'"),
        ("at school, a car", r"expected a place \(at night, .*, got 'at school'"),
        ("a car on a clear day", r"expected a place .*, got 'on a clear day'"),
        ("a car, a hat", r"expected a place .*, got 'a car'"),
        ("at night, a car in space", "expected the end, .* said first, got 'in space'"),
        ("a car in space at night", "expected a place .*, got 'in space at night'"),
        ("a sad car", "expected a face to be sad, got a car; only faces"),
        ("two tiny cars", "expected one object to be tiny, got two; several are drawn at one size"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(CaptionError, match=message):
        read(text)


@quick
@given(
    st.tuples(
        st.sampled_from(["", "at night,", "on a rainy day,", ","]),
        st.sampled_from(["", "a photo of", "photo"]),
        st.sampled_from(["a", "the", "two", "one", ""]),
        st.sampled_from(["", "tiny", "medium-sized", "sad", "tiny sad", "sad tiny"]),
        st.sampled_from(["", "red", "striped red", "red striped"]),
        st.sampled_from(["car", "cars", "face", "faces", "fish", ""]),
        st.sampled_from(["", "at night", "in rainy weather", "night"]),
    )
)
def test_any_words_are_a_scene_or_a_caption_error(words):
    try:
        scene, said = read(" ".join(words))
    except CaptionError:
        return
    assert "object" in said
    assert scene.count == "one" or scene.size == "medium-sized"
    assert scene.emotion == "neutral" or scene.object == "face"


# --- drawing


def test_both_scenes_of_every_pair_differ_in_its_categorys_attribute_alone(shipped_pairs):
    for pair in shipped_pairs:
        for i in range(3):
            source, target = scenes(pair, random.Random(i))
            changed = [n for n in ATTRIBUTES if getattr(source, n) != getattr(target, n)]
            assert changed == [pair.category]


def test_a_colour_that_neither_prompt_says_is_typical_of_either_object():
    pair = Pair("x", "object", "cup", "hat", "a cup", "a hat")
    drawn = {scenes(pair, random.Random(i))[0].color for i in range(20)}
    assert drawn == {TYPICAL_COLOR["cup"], TYPICAL_COLOR["hat"]}
    said = replace(pair, target_prompt="a pink hat")
    assert [scene.color for scene in scenes(said, random.Random(0))] == ["white", "pink"]


def test_prompts_that_describe_one_scene_are_refused():
    pair = Pair("mine", "color", "a red", "the red", "a red car", "the red car")
    with pytest.raises(CaptionError, match="pair mine: expected prompts that describe different"):
        scenes(pair, random.Random(0))


def test_twins_are_laid_out_alike_and_renders_are_not(shipped_pairs):
    for pair in shipped_pairs[:200:5]:  # colour, object, pattern, count
        [(source, target), (other, _)] = drawings(pair, 2)
        assert (source != target).any()
        assert (source != other).any()
        assert (source[[0, -1]] == target[[0, -1]]).mean() > 0.9  # the background's edge
    red, blue = drawings(Pair("", "", "", "", "a red car", "a blue car"), 1)[0]
    outlines = [(drawing == (40, 35, 45)).all(axis=-1) for drawing in (red, blue)]
    assert outlines[0].sum() > 20
    assert (outlines[0] == outlines[1]).all()
