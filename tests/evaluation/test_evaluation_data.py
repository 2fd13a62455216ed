"""What an evaluation reads: checked and decoded before the first image is made, and read again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analogy.core.images import to_png
from analogy.core.records import Pair
from analogy.evaluation import EvaluationAgent, Task, TaskError, metric, subjects
from analogy.evaluation.data import (
    ImageFolder,
    PromptImages,
    Prompts,
    WordPairs,
    read_data,
    steered,
)
from analogy.evaluation.folders import METADATA, by_name, read_folder
from analogy.evaluation.samples import NEEDS, FeatureCache
from analogy.models.places import shipped
from analogy.settings.pairs import load_pairs, select

PROMPTS = ("a red car", "two blue cups")


def brightness(samples):
    return samples.images.mean(axis=(1, 2, 3))


BRIGHT = metric("brightness", brightness, higher_is_better=None)


def picture(seed: int = 0, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


@pytest.fixture
def make_task(tmp_path, judge):
    """Build a task of one step on the embedded models."""

    def build_task(what, data=PROMPTS, **settings):
        given = {"steps": 1, "judge": judge, "dtype": "float32", "run_dir": tmp_path / "runs"}
        return Task(what, data, **{**given, **settings})

    return build_task


@pytest.fixture
def agent(make_task):
    """Build an agent of such a task."""
    return lambda *arguments, **settings: EvaluationAgent(make_task(*arguments, **settings))


@pytest.fixture
def nothing_made(monkeypatch):
    """Fail if a model makes an image."""
    monkeypatch.setattr(subjects.Model, "_generate", lambda *_: pytest.fail("an image was made"))


@pytest.fixture
def one_pipeline(monkeypatch, pipeline):
    """The embedded pipeline is loaded once a session."""
    monkeypatch.setattr(subjects, "load_pipeline", lambda source, **settings: pipeline)


@pytest.fixture
def write(tmp_path):
    """Write images by name as a folder, with lines of metadata if given."""

    def write_folder(images, *lines, name="folder"):
        folder = tmp_path / name
        for file, image in images.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(image if isinstance(image, bytes) else to_png(image))
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / METADATA).write_text(text, "utf-8")
        return folder

    return write_folder


CUT = to_png(picture())[:3000]
REFUSED = r"b\.png: expected an image file of PNG, JPEG, WEBP, BMP that is complete"


# --- before the first image


@pytest.mark.usefixtures("nothing_made")
def test_a_truncated_reference_is_said_before_an_image_is_made(agent, write):
    folder = write({"a.png": picture(), "b.png": CUT})
    data = [(PROMPTS[0], folder / "a.png"), (PROMPTS[1], folder / "b.png")]
    for evaluation in (
        agent(["kid"], references=folder),
        agent(["psnr"], data),
        agent(["kid"], data),
    ):
        with pytest.raises(ValueError, match=REFUSED):
            evaluation.evaluate("embedded")
    lines = [{"file_name": f"{name}.png", "text": prompt}
             for name, prompt in zip("ab", PROMPTS, strict=True)]  # fmt: skip
    with_texts = write({"a.png": picture(), "b.png": CUT}, *lines, name="texts")
    with pytest.raises(ValueError, match=REFUSED):
        agent(["ssim"], with_texts).evaluate("embedded")
    alone = write({"a.png": picture(), "b.png": CUT}, name="alone")
    with pytest.raises(ValueError, match=REFUSED):
        agent(["ssim"], alone).evaluate(write({"a.png": picture(), "b.png": picture(1)}, name="o"))


@pytest.mark.usefixtures("nothing_made")
@pytest.mark.parametrize("is_first", [True, False])
def test_a_folder_is_read_before_another_model_makes_its_images(agent, write, is_first):
    lines = [{"file_name": f"{name}.png", "text": prompt}
             for name, prompt in zip("ab", PROMPTS, strict=True)]  # fmt: skip

    def compare(folder, what=BRIGHT):
        both = (folder, "embedded") if is_first else ("embedded", folder)
        agent([what]).compare(*both)

    with pytest.raises(ValueError, match=REFUSED):
        compare(write({"a.png": picture(), "b.png": CUT}, *lines, name="cut"))
    with pytest.raises(ValueError, match="expected images of one size"):
        compare(write({"a.png": picture(), "b.png": picture(size=32)}, *lines, name="sizes"))
    small = {"a.png": picture(size=32), "b.png": picture(1, 32)}
    with pytest.raises(TaskError, match=r"from both, got (64x64 and 32x32|32x32 and 64x64).*psnr"):
        compare(write(small, *lines, name="small"), "psnr")


@pytest.mark.usefixtures("nothing_made")
def test_a_folder_without_the_images_at_alpha_0_is_said_before_an_image_is_made(agent, write):
    pairs = select(load_pairs(shipped("pairs.csv")), ["color"], limit=2)
    line = {"file_name": "a.png", "key": f"{pairs[0].id} alpha 1 #0"}
    other = {"file_name": "b.png", "key": f"{pairs[1].id} alpha 1 #0"}
    folder = write({"a.png": picture(), "b.png": picture(1)}, line, other)
    with pytest.raises(TaskError, match=r"no image for 2 of 4 samples, the first .* alpha 0 #0"):
        agent(["directional_similarity"], pairs, alphas=(1.0,)).compare("embedded", folder)


@pytest.mark.usefixtures("nothing_made")
def test_too_few_references_for_a_set_are_said_before_an_image_is_made(agent, write):
    with pytest.raises(TaskError, match=r"kid .* needs 2 references or more, got 1"):
        agent(["kid"], references=write({"a.png": picture()})).evaluate("embedded")


@pytest.mark.usefixtures("nothing_made")
@pytest.mark.parametrize("text", ["a \ud800 car", "\udcff"])
def test_half_a_character_is_refused(agent, text):
    pair = Pair("a", "color", text, "blue", f"{text} car", "a blue car")
    for data in ([text], [(text, picture())], [pair, pair]):
        with pytest.raises(TaskError, match="expected text that UTF-8 can write"):
            agent([BRIGHT], data)


@pytest.mark.usefixtures("nothing_made", "one_pipeline")
def test_a_damaged_list_of_a_run_is_said_before_an_image_is_made(agent, make_task):
    folder = subjects.Model("embedded", make_task([BRIGHT])).folder
    folder.mkdir(parents=True)
    (folder / METADATA).write_text('{"file_name": 1}\n')
    with pytest.raises(TaskError, match=r"metadata\.jsonl, line 1: .*; delete the file"):
        agent([BRIGHT]).evaluate("embedded")


# --- line feeds alone end a line


@pytest.mark.usefixtures("one_pipeline")
def test_an_evaluation_is_repeated_whatever_its_prompts_hold(agent):
    """Every character at which ``str.splitlines`` splits."""
    prompts = [f"a red{mark}car" for mark in "\v\f\x1c\x1d\x1e\x85\u2028\u2029\r"]
    first = agent([BRIGHT], prompts).evaluate("embedded")
    again = agent([BRIGHT], prompts, seeds=(0, 1)).evaluate("embedded")
    values = again["brightness"].values
    assert len(values) == 2 * len(prompts)
    assert first["brightness"].values.items() <= values.items()
    folder = again.config["models"]["model"]
    assert folder["fingerprint"].startswith("sdxl-tiny@")


@pytest.mark.usefixtures("one_pipeline")
def test_a_runs_list_is_read_as_it_was_written(agent, make_task, tmp_path):
    prompts = ["a\u2028b", "c\x85d"]
    agent([BRIGHT], prompts).evaluate("embedded")
    folder = subjects.Model("embedded", make_task([BRIGHT], prompts)).folder
    assert [entry.text for entry in read_folder(folder)] == prompts
    before = (folder / METADATA).read_bytes()
    agent([BRIGHT], prompts).evaluate("embedded")
    assert (folder / METADATA).read_bytes() == before
    report = agent([BRIGHT], prompts, run_dir=tmp_path / "none").evaluate(folder)
    assert set(report["brightness"].values) == {f"{prompt} #0" for prompt in prompts}


def test_metadata_may_have_a_mark_windows_lines_and_blank_ones(write):
    folder = write({"a.png": picture(), "b.png": picture(1)})
    rows = [json.dumps({"file_name": f"{name}.png", "text": name}) for name in "ab"]
    (folder / METADATA).write_bytes(("\ufeff" + "\r\n\r\n".join(rows)).encode())
    assert [(entry.file.name, entry.text) for entry in read_folder(folder)] == [
        ("a.png", "a"), ("b.png", "b"),
    ]  # fmt: skip


# --- what is refused, and what is left out


@pytest.mark.parametrize(
    "name",
    ["../outside.png", "deep/../../outside.png", "{absolute}", "..", "a\0.png", "\ud800.png"],
)
def test_metadata_names_files_below_its_folder(write, tmp_path, name):
    (tmp_path / "outside.png").write_bytes(to_png(picture()))
    name = name.format(absolute=tmp_path / "outside.png")
    folder = write({"a.png": picture(), "deep/b.png": picture()})
    (folder / METADATA).write_text(json.dumps({"file_name": name}) + "\n")
    with pytest.raises(TaskError, match=r"line 1: (file_name: expected a path below|no such file)"):
        by_name(folder)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"[" * 100_000, "expected JSON"), (b"\xff", "expected JSON lines in UTF-8"),
        (b'{"file_name": null}', "with file_name"), (b'{"file_name": true}', "expected str"),
        (b'{"file_name": "a.png", "seed": true}', "seed: expected int"),
        (b'{"file_name": "a.png", "seed": 1.0}', "seed: expected int"),
        (b'{"file_name": "a.png", "text": 3}', "text: expected str"),
        (b'{"file_name": "a.png", "seed": ' + b"1" * 5000 + b"}", "expected JSON"),
    ],
)  # fmt: skip
def test_damaged_metadata_is_said(write, line, said):
    folder = write({"a.png": picture()})
    (folder / METADATA).write_bytes(line)
    with pytest.raises(TaskError, match=said):
        read_folder(folder)


def test_pipes_folders_and_lost_links_are_refused_and_nobody_waits(write, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(TaskError, match="image of 'a': expected a regular file, got another kind"):
        read_data([("a", tmp_path / "pipe.png")])
    for make in (
        lambda path: os.mkfifo(path), lambda path: path.mkdir(),
        lambda path: path.symlink_to("none"), lambda path: path.symlink_to("/dev/zero"),
    ):  # fmt: skip
        folder = write({"a.png": picture()}, name=f"metadata{make.__code__.co_firstlineno}")
        (folder / METADATA).unlink(missing_ok=True)
        make(folder / METADATA)
        with pytest.raises(TaskError, match=r"metadata\.jsonl: expected JSON lines"):
            read_data(folder)
        if (folder / METADATA).is_dir():
            (folder / METADATA).rmdir()
    folder = write({"a.png": picture()}, name="other")
    os.mkfifo(folder / "b.png")
    with pytest.raises(TaskError, match=r"b\.png: expected an image file, got a pipe"):
        read_data(folder)


def test_hidden_files_and_what_systems_leave_behind_are_no_samples(write, agent):
    clutter = ("._a.png", ".ipynb_checkpoints/a.png", "@eaDir/a.png/S.jpg", "__MACOSX/a.png")
    clean = write({"a.png": picture(), "b/c.png": picture(1)}, name="clean")
    full = {"a.png": picture(), "b/c.png": picture(1), **dict.fromkeys(clutter, b"no image")}
    folder = write(full, name="full")
    assert list(by_name(folder)) == ["a", "b/c"]
    report = agent(["psnr"], clean).evaluate(folder)
    assert (report["psnr"].n, report["psnr"].n_infinite) == (2, 2)


def test_files_that_look_alike_are_equal_to_a_metric(write, agent, tmp_path):
    """Turned by EXIF, of 16 bits, with colours hidden under alpha 0."""
    grey = np.dstack([picture()[..., 0]] * 3)
    alpha = np.dstack([picture(1), np.full((64, 64, 1), 255, np.uint8)])
    alpha[20:40, :, 3] = 0
    shown = np.where(alpha[..., 3:] == 0, 255, alpha[..., :3]).astype(np.uint8)
    folder = write({"turned.png": picture(2), "grey.png": grey, "alpha.png": shown})
    other = tmp_path / "other"
    other.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(picture(2)).copy()).save(other / "turned.png", exif=exif)
    Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(other / "grey.png")
    Image.fromarray(alpha).save(other / "alpha.webp", lossless=True, exact=True)
    report = agent(["psnr", "ssim"], folder).evaluate(other)
    assert (report["psnr"].n_infinite, report["ssim"].value) == (3, pytest.approx(1.0))


PAIR = Pair("p", "color", "red", "blue", "a red car", "a blue car")


@pytest.mark.parametrize(
    "data",
    [
        Prompts(("a", "b")),
        PromptImages(("a", "b"), {"a": Path("a.png"), "b": Path("b.png")}),
        ImageFolder({"a": Path("a.png"), "b": Path("b.png")}),
        WordPairs((PAIR,)),
    ],
    ids=lambda data: data.kind,
)
def test_data_gives_what_it_says_that_it_provides(data):
    samples = data.samples((0, 1), (0.5, 1.0))
    wanted = [sample.key for sample in samples] or list(data.files)
    unsteered = [steered(PAIR, 0.0, seed).key for seed in (0, 1)]
    rng = np.random.default_rng(0)
    every = wanted if not data.pairs else [*wanted, *unsteered]
    images = {key: rng.integers(0, 256, (8, 8, 3), np.uint8) for key in every}
    known = {name: np.full((8, 8, 3), i, np.uint8) for i, name in enumerate(data.pictures)}
    made = data.given(images, samples, frozenset(NEEDS), lambda: known, FeatureCache())
    fields = ("prompts", "source_prompts", "sources", "references")
    given = {name for name in fields if getattr(made, name) is not None}
    assert given == data.provides() - {"reference_set"}
    assert ("reference_set" in data.provides()) == bool(data.pictures)
    assert made.keys == tuple(wanted)
    np.testing.assert_array_equal(made.images, np.stack([images[key] for key in wanted]))
    if data.pairs:
        assert len(made) == 4
        np.testing.assert_array_equal(made.sources[1], images[unsteered[1]])
        assert set(made.source_prompts) == {PAIR.source_prompt}
    if data.kind == "prompt-image pairs":
        assert [int(image[0, 0, 0]) for image in made.references] == [0, 0, 1, 1]
