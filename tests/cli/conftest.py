"""Another judge for the commands that score."""

from __future__ import annotations

import shutil

import pytest

from analogy.models.places import shipped


@pytest.fixture
def second(tmp_path):
    """The folder of a second judge, which is the embedded one with other weights."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(shipped("models/clip-tiny"), tmp_path / "second")
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    [file] = folder.glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("text_projection"))
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, file)
    return folder
