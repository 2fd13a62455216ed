"""Commands that are printed for pasting, and what a name can do to a terminal."""

import shlex

import pytest
from verbs import verb

from analogy.core.errors import StoreError
from analogy.results.reading import RecordedError, read
from analogy.studies.verify import verify

HOSTILE = "x; touch PWNED #"
ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\r"


@pytest.fixture
def hostile_study(make_study, tmp_path):
    """A study without images, in a folder whose name is a command."""
    study = make_study(folder=tmp_path / HOSTILE)
    study.record(None)
    return study


def next_commands(lines):
    """The commands behind ``next``, as a shell splits them; what follows a ``#`` is a comment."""
    return [
        shlex.split(line.removeprefix("next"), comments=True)
        for line in lines
        if line.startswith("next")
    ]


def test_verify_names_the_folder_as_one_word(hostile_study, fill, tmp_path):
    folder = str(tmp_path / HOSTILE)
    [missing] = next_commands(verify(hostile_study.folder).lines())
    assert missing[:3] == ["pytest", "benchmarks", f"--run-dir={folder}"]
    fill(hostile_study, lambda job: 0.1)  # scores of images that do not exist
    commands = next_commands(verify(hostile_study.folder).lines())
    assert ["python", "-m", "analogy", "verify", folder, "--repair"] in commands


def test_a_run_without_results_names_the_folder_as_one_word(hostile_study, tmp_path):
    with pytest.raises(RecordedError) as refused:
        read(tmp_path / HOSTILE)
    command = shlex.split(str(refused.value).rpartition(": ")[2], comments=True)
    assert command == ["pytest", "benchmarks", f"--run-dir={tmp_path / HOSTILE}"]


def test_a_damaged_image_names_the_folder_as_one_word(hostile_study, tmp_path):
    job = hostile_study.jobs()[0]
    folder = hostile_study.folder
    hostile_study.generate([job])
    [row] = folder.image_rows()
    (folder.path / row.path).write_bytes(b"damaged")
    with pytest.raises(StoreError) as refused:
        folder.read_png(job)
    command = shlex.split(str(refused.value).rpartition(": ")[2], comments=True)
    assert command == ["python", "-m", "analogy", "verify", str(tmp_path / HOSTILE), "--repair"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", ESCAPES],
        ["verify", f"--no-{ESCAPES}"],
        [ESCAPES],
        ["run", "--method", ESCAPES],
        ["run", "--model", ESCAPES],
        ["run", "--clip-model", ESCAPES],
        ["run", "--lora", ESCAPES],
        ["run", "--pairs", ESCAPES],
        ["run", "--categories", ESCAPES],
        ["run", "--alphas", ESCAPES],
        ["steer", "a", "b", "--model", ESCAPES],
        ["methods", "--methods", ESCAPES],
        ["report", ESCAPES],
        ["compare", ESCAPES, ESCAPES],
        ["baseline", ESCAPES, "-o", "b.json"],
        ["pairs", ESCAPES],
        ["score", ESCAPES, "--clip-model", "embedded"],
        ["import", "run", ESCAPES, "--model-name", "m"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(ESCAPES, "X"),
)
def test_a_refusal_sends_no_control_character_to_the_terminal(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = verb(*arguments)
    assert result.exit_code not in (0, 1)
    assert "red" in result.output  # the name is in the refusal
    assert not set(result.output) & set("\x00\x07\x1b\x9b\r")
