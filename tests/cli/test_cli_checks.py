"""`pairs check` and `models`: what there is, before anything is run."""

from __future__ import annotations

import json

import pytest
from verbs import verb

from analogy.models import defaults
from analogy.models.places import shipped

HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"


@pytest.fixture
def pairs(tmp_path):
    """Write a file with so many pairs of each category."""

    def write(**counts):
        rows = (
            f"{name}{i},{name},red,blue,a red {name} {i},a blue {name} {i}\n"
            for name, count in counts.items()
            for i in range(count)
        )
        (tmp_path / "pairs.csv").write_text(HEADER + "".join(rows))
        return tmp_path / "pairs.csv"

    return write


def test_counts_say_what_they_are_good_for(pairs):
    result = verb("pairs", "check", pairs(car=5, cup=6, hat=9, boat=10))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split(None, 2) for line in lines[1:5]] == [
        ["car", "5", "no verdict (6 or more give one)"],
        ["cup", "6", "a verdict, if margins are not skewed (10 or more: skewed ones, too)"],
        ["hat", "9", "a verdict, if margins are not skewed (10 or more: skewed ones, too)"],
        ["boat", "10", "a verdict"],
    ]
    assert lines[6] == "pairs     30 in 4 categories; no problems"
    assert lines[7] == "weak      car: add pairs, or draw no conclusion from them"


def test_words_that_the_embedded_model_does_not_know_are_named(tmp_path):
    file = tmp_path / "art.csv"
    rows = [f"a{i},art,photo,watercolour,a photo of a {c} car,a watercolour of a {c} car\n"
            for i, c in enumerate(("red", "blue", "teal"))]  # fmt: skip
    file.write_text(HEADER + "".join(rows) + "b,art,red,blue,a red car,a blue car\n")
    result = verb("pairs", "check", file, "--json", tmp_path / "c.json")
    assert result.exit_code == 0
    said = "unknown   3 of 4 pairs: the embedded model does not know: watercolour, teal"
    assert said in result.stdout.splitlines()
    assert json.loads((tmp_path / "c.json").read_text())["unknown"] == ["a0", "a1", "a2"]


def test_the_suites_own_pairs_are_whole():
    result = verb("pairs", "check", shipped("pairs.csv"), "--json=-")
    data = json.loads(result.stdout)
    assert (data["schema_version"], data["exit_code"], data["pairs"]) == (1, 0, 400)
    assert {each["pairs"] for each in data["categories"]} == {50}
    assert data["problems"] == data["unknown"] == []
    assert "weak" not in result.stderr


def test_every_problem_is_said_with_its_line_and_column(tmp_path):
    file = tmp_path / "bad.csv"
    rows = [f"c{i},color,rad,blue,a red {i},a blue {i}\n" for i in range(30)]
    file.write_text(HEADER + "".join(rows))
    result = verb("pairs", "check", file, "--json", tmp_path / "c.json")
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert len(lines) == 31
    for number, line in enumerate(lines[:-1], start=2):
        assert line.startswith(f"{file}, line {number}, column source_word: expected whole words")
    assert lines[-1] == "problems  30; nothing can be run on the file"
    data = json.loads((tmp_path / "c.json").read_text())
    assert (data["exit_code"], data["problems"]) == (2, lines[:-1])


def test_a_file_that_is_not_there_is_a_problem(tmp_path):
    result = verb("pairs", "check", tmp_path / "none.csv")
    assert result.exit_code == 2
    assert "none.csv: expected a CSV file of word pairs" in result.stdout


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """No model of the hub on this machine, whatever its cache holds."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def test_models_says_what_is_here_and_how_to_get_the_rest(no_hub):
    result = verb("models")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[1].split()[:2] == ["model", "embedded"]
    assert lines[1].split()[-1].startswith("sdxl-tiny@sha256:")
    assert lines[2].split()[-1].startswith("clip-tiny@sha256:")
    assert lines[3].endswith("not here: fetch it with: hf download segmind/SSD-1B")
    assert lines[4].endswith("fetch it with: hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    assert lines[7].startswith("cpu (")


def test_models_as_json_has_sizes_fingerprints_and_devices(no_hub):
    data = json.loads(verb("models", "--json=-").stdout)
    assert data["schema_version"] == 1
    model, judge, *others = data["models"]
    weights = [file.stat().st_size for file in shipped("models/sdxl-tiny").rglob("*.safetensors")]
    assert model["bytes"] >= sum(weights) > 10_000_000
    assert judge["fingerprint"].startswith("clip-tiny@sha256:")
    assert [(each["fingerprint"], each["bytes"]) for each in others] == [(None, None)] * 2
    [cpu] = [each for each in data["devices"] if each["device"] == "cpu"]
    assert cpu["dtype"] == defaults.native_dtype("cpu")
    assert cpu["steps"] == {"embedded": 8, "segmind/SSD-1B": 50}
