"""`steer`: which words are the pair's, the strip, and the whole way on the embedded default."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
from cases import ROOT
from PIL import Image
from verbs import verb

from analogy.cli.look import pair_of
from analogy.core.records import Pair
from analogy.generation import worker as work
from analogy.models.generator import Generator
from analogy.report.strips import EDGE, LARGE, StripImage, draw_strip, generate_strip

CARS = ("a photo of a red car", "a photo of a blue car")


# --- the words


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (*CARS, ("red", "blue")),
        ("a red car", "an orange car", ("red", "orange")),
        ("a cat", "a dog", ("cat", "dog")),
        ("A  red car", "a blue\ncar", ("red", "blue")),
        ("a car, red.", "a car, blue.", ("red", "blue")),
        ("a red car", "a dark blue car", ("red", "dark blue")),
        ("one boat at sea", "two boats at sea", ("one boat", "two boats")),
        ("summer", "a deep winter", ("summer", "a deep winter")),
        ("a a b", "a c a b", None),
    ],
)
def test_the_words_are_what_differs(source, target, words):
    if words is None:
        with pytest.raises(ValueError, match="--words"):
            pair_of(source, target, None)
    else:
        pair = pair_of(source, target, None)
        assert (pair.source_word, pair.target_word) == words


def test_words_that_are_given_are_the_pair():
    pair = pair_of("a red car by a red house", "a blue car by a blue house", ("red", "blue"))
    assert (pair.source_word, pair.target_word) == ("red", "blue")


@pytest.mark.parametrize(
    ("source", "target", "words", "said"),
    [
        ("a red car", "A RED  car", None, "expected two prompts that differ, got 'a red car'"),
        ("a car", "a red car", None, "expected words of the source prompt .*--words SOURCE TARGET"),
        ("a red car", "a car", None, "expected words of the target prompt .*--words SOURCE TARGET"),
        ("", "a car", None, "expected two prompts, got an empty one"),
        ("a red car", "x " * 9000, None, "expected prompts of at most 10,000 characters, got"),
        (*CARS, ("green", "blue"), "--words: expected whole words of the source prompt .*'green'"),
        (*CARS, ("red", "blu"), "--words: expected whole words of the target prompt .*'blu'"),
        (*CARS, ("car", "car"), "--words: expected two that differ, got 'car' twice"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_told_are_said_with_what_to_do(source, target, words, said):
    with pytest.raises(ValueError, match=said):
        pair_of(source, target, words)


# --- the strip


def shots(margins, seeds=(0,), alphas=(0.0, 0.5, 1.0, None)):
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 2] = 200
    return [
        StripImage(seed, alpha, image, margin, 0.5, 0.5, "")
        for seed in seeds
        for alpha, margin in zip(alphas, margins, strict=True)
    ]


def drawn(source, target, made):
    of = SimpleNamespace(
        grid=SimpleNamespace(model="sdxl-tiny@sha256:0"),
        judge=SimpleNamespace(fingerprint="clip-tiny@sha256:0"),
        config=SimpleNamespace(method="word"),
    )
    return draw_strip(of, Pair("pair", "pair", "a", "b", source, target), made)


def ink(sheet, box):
    """Whether anything but white stands in a box (left, top, right, bottom)."""
    return bool((np.asarray(sheet.crop(box)) < 255).any())


@pytest.mark.parametrize(
    "prompt", ["a red car", "a very " * 100 + "red car", "r" * 5000, "größe 色 <b>", "x " * 3000]
)
def test_no_prompt_breaks_the_strip(prompt):
    sheet = drawn(prompt, "a blue car", shots([-0.2, 0.1, 0.2, 0.3]))
    assert sheet.width == drawn(*CARS, shots([0.1] * 4)).width
    assert sheet.height <= drawn(*CARS, shots([0.1] * 4)).height + 3 * 30
    edges = [(0, 0, EDGE - 2, sheet.height), (sheet.width - EDGE + 2, 0, sheet.width, sheet.height)]
    assert not any(ink(sheet, box) for box in edges)
    assert not ink(sheet, (0, sheet.height - 8, sheet.width, sheet.height))


def test_every_image_is_there_for_every_seed():
    sheet = drawn(*CARS, shots([-0.2, 0.1, 0.2, 0.3], seeds=(0, 1, 2)))
    blue = (np.asarray(sheet) == (0, 0, 200)).all(axis=-1)
    assert blue.sum() == 12 * LARGE**2


def test_bars_go_from_zero_to_the_margin():
    """Towards the target to the right, away from it to the left, the largest half an image."""
    sheet = np.asarray(drawn(*CARS, shots([-0.1, 0.0, 0.05, 0.2])))
    blue = (sheet == (0, 0, 200)).all(axis=-1)
    top, bottom = np.flatnonzero(blue.any(axis=1))[[0, -1]]
    starts = np.flatnonzero(np.diff(blue[top].astype(int), prepend=0) == 1)
    bar = sheet[bottom + 39]
    for start, share, color in zip(
        starts, (-0.5, 0.0, 0.25, 1.0), ((213, 94, 0), (213, 94, 0), (0, 114, 178), (0, 114, 178)),
        strict=True,
    ):  # fmt: skip
        own = np.flatnonzero((bar[start : start + LARGE] == color).all(axis=-1))
        assert len(own) == pytest.approx(abs(share) * LARGE / 2, abs=2)
        if share:
            assert (own.mean() > LARGE / 2) == (share > 0)


def test_what_is_no_picture_is_said_in_its_place(tmp_path):
    made = shots([-0.2, 0.1, 0.2, 0.3])
    made[1] = StripImage(0, 0.5, None, float("nan"), float("nan"), float("nan"), "NaN")
    blue = (np.asarray(drawn(*CARS, made)) == (0, 0, 200)).all(axis=-1)
    assert blue.sum() == 3 * LARGE**2
    assert made[1].to_dict()["margin"] is None
    assert drawn(*CARS, [StripImage(0, None, None, *[float("nan")] * 3, "NaN")]).width > 0


def test_the_targets_own_image_is_that_of_its_prompt(make_study, pipeline):
    """By the pipeline itself from the pair's latents, and by the target prompt alone."""
    from analogy.models.generator import latents_for

    begun = make_study(seeds=(3,))
    pair = begun.pairs[0]
    own = generate_strip(begun, pair, begun.config.seeds)[-1]
    assert (own.title, own.seed) == ("target prompt", 3)
    maker = Generator(pipeline, steps=2, guidance=3.0, size=64)
    encoded = maker.encode([pair.target_prompt])[pair.target_prompt]
    expected = maker.generate([encoded], latents_for(pair, 3, maker.latent_shape)[None]).images[0]
    assert np.abs(own.image.astype(int) - expected).max() <= 2


# --- the verb


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made, to see what is left there."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "temporary"


def test_one_pair_becomes_a_strip_and_the_same_table(temporary, pipeline, judge):
    result = verb("steer", *CARS, "--steps=2", "--alphas=0.5,1", "--seeds=0,1", "--json=s.json")
    assert (result.exit_code, result.stderr) == (0, "")
    data = json.loads(Path("s.json").read_text())
    assert (data["schema_version"], data["words"]) == (1, ["red", "blue"])
    assert data["source_prompt"], data["target_prompt"] == CARS
    assert "unknown" not in result.stdout
    assert [(each["seed"], each["alpha"]) for each in data["images"]] == [
        (seed, alpha) for seed in (0, 1) for alpha in (0.0, 0.5, 1.0, None)
    ]
    rows = [line for line in result.stdout.splitlines() if line[:1] in "01" and line.strip()]
    for row, each in zip(rows, data["images"], strict=True):
        assert f"{each['margin']:+.4f}" in row.split()
        assert each["margin"] == pytest.approx(each["cos_target"] - each["cos_source"])
    with Image.open("steer.png") as picture:
        assert picture.width > 4 * LARGE
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in Path().iterdir()) == ["s.json", "steer.png", "temporary"]


def test_words_that_the_model_does_not_know_are_named(temporary, pipeline, judge):
    prompts = ("a photo of Paris", "a watercolour of Paris")
    result = verb("steer", *prompts, "--steps=1", "--alphas=1", "--json=s.json")
    said = "unknown   the embedded model does not know: Paris, watercolour: no margin is of these"
    assert any(line.startswith(said) for line in result.stdout.splitlines())
    assert json.loads(Path("s.json").read_text())["unknown_words"] == ["Paris", "watercolour"]


def test_the_strip_shows_the_very_margins_of_a_run(temporary, pipeline, judge, make_study):
    pair = pair_of(*CARS, None)
    begun = make_study(pairs=[pair], alphas=(0.5, 1.0), seeds=(0,), guidance=4.0)
    begun.generate(begun.jobs())
    begun.score(begun.jobs())
    [row] = begun.table().to_numpy().tolist()
    options = ["--steps=2", "--alphas=0.5,1", "--guidance=4", "--dtype=float32"]
    data = json.loads(verb("steer", *CARS, *options, "--json=-").stdout)
    assert [each["margin"] for each in data["images"][:3]] == pytest.approx(row, abs=2e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a car", "a car"], "expected two prompts that differ, got 'a car' twice"),
        ([*CARS, "--method=category"], "--method: expected a method of one pair alone, got"),
        ([*CARS, "--method=wrod"], "--method: expected one of lerp"),
        ([*CARS, "--alphas=0"], "--alphas: expected strengths other than 0"),
        ([*CARS, "--model=none"], "--model 'none': expected 'embedded'"),
        ([*CARS, "-o", "steer"], "-o: expected a name such as steer.png, got 'steer'"),
        ([*CARS, "--words", "red", "green"], "--words: expected whole words of the target prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said_in_one_line(temporary, given, said, monkeypatch):
    monkeypatch.setattr(work, "load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    result = verb("steer", *given)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"analogy: {said}")
    assert result.stderr.count("\n") == 1
    assert list(temporary.iterdir()) == []
    assert not Path("steer.png").exists()


@pytest.mark.slow
def test_the_whole_way_as_a_process(tmp_path):
    done = processes.run_module(
        "analogy", "steer", *CARS, "-o", "made/strip.png", cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "made" / "strip.png") as picture:
        assert picture.format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
