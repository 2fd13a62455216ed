"""What the tests of evaluations share: tasks on the embedded models, and their images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluated import PROMPTS, SEEDS

from analogy.core.images import to_png
from analogy.evaluation import (
    Task,
    metric,
    subjects,
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Where a file's images are kept, so that each is made once."""
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture
def one_pipeline(monkeypatch, pipeline):
    """The embedded pipeline is loaded once a session."""
    monkeypatch.setattr(subjects, "load_pipeline", lambda source, **settings: pipeline)


@pytest.fixture
def make_task(run_dir, judge):
    """Build a task of two steps on the embedded models."""

    def build_task(what, data=PROMPTS, **settings):
        given = {"seeds": SEEDS, "steps": 2, "judge": judge, "dtype": "float32"}
        return Task(what, data, run_dir=run_dir, **{**given, **settings})

    return build_task


@pytest.fixture(scope="module")
def made(run_dir, judge, pipeline):
    """The embedded model's images of the prompts, by key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "load_pipeline", lambda source, **settings: pipeline)
        task = Task(
            [metric("nothing", lambda samples: 0.0, higher_is_better=None)], PROMPTS,
            seeds=SEEDS, steps=2, judge=judge, dtype="float32", run_dir=run_dir,
        )  # fmt: skip
        model = subjects.Model("embedded", task)
        images, failed = model.images(task.samples, lambda n: None)
    assert not failed
    return images


@pytest.fixture
def write_folder(tmp_path):
    """Write images by key as a folder, under names that say nothing, in shuffled order."""

    def write(images, name="elsewhere", *, by_key=False, seed=0):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        order = np.random.default_rng(seed).permutation(len(images))
        for i, (key, image) in enumerate([list(images.items())[j] for j in order]):
            (folder / f"{i:03}.png").write_bytes(to_png(image))
            prompt, _, number = key.rpartition(" #")
            row = {"key": key} if by_key else {"text": prompt, "seed": int(number)}
            rows.append({"file_name": f"{i:03}.png", **row})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return write
