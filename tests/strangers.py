"""What a stranger may plant in a folder, and what loads it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

from analogy.models.places import shipped


class Stranger:
    """A folder of someone else's making, and the marker that their code would leave."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.marker = place / "RAN"
        self.code = f"import pathlib; pathlib.Path({str(self.marker)!r}).touch()\n"

    @property
    def ran(self) -> bool:
        return self.marker.exists()

    def copy(self, kind: str, name: str) -> Path:
        """One of the embedded models, without its checksums: every file may be changed."""
        left_out = shutil.ignore_patterns("SHA256SUMS")
        return shutil.copytree(shipped(f"models/{kind}"), self.place / name, ignore=left_out)

    def module(self, file: Path, body: str = "") -> Path:
        """A module that leaves the marker when it is imported."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.code + body)
        return file

    def pickle(self, file: Path) -> Path:
        """A pickle that leaves the marker when it is read."""
        file.write_bytes(pickle.dumps(Touches(self.marker)))
        return file


class Touches:
    """When unpickled, it touches a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self):
        return os.open, (self.file, os.O_CREAT | os.O_WRONLY)


def change(file: Path, *keys: str, to: object) -> None:
    """Set a value in a JSON file, which is made if there is none."""
    settings = json.loads(file.read_text()) if file.exists() else {}
    inner = settings
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = to
    file.write_text(json.dumps(settings))


TOKENIZER = "from transformers import CLIPTokenizer\nclass Theirs(CLIPTokenizer): pass\n"

AUTO_MAP = {"AutoTokenizer": ["theirs.Theirs", None]}


def code_for_the_tokenizer(folder, stranger):
    text = ("model_cfg", "text_cfg")
    change(
        folder / "open_clip_config.json", *text, "tokenizer_kwargs", to={"trust_remote_code": True}
    )
    change(folder / "tokenizer_config.json", "auto_map", to=AUTO_MAP)
    stranger.module(folder / "theirs.py", TOKENIZER)


def in_file(name, *keys, to):
    return lambda folder, _: change(folder / name, *keys, to=to)


def code_beside(name):
    return lambda folder, stranger: stranger.module(folder / name)


def moved_out(name):
    def move(folder, stranger):
        (folder / name).rename(stranger.place / "elsewhere")
        (folder / name).symlink_to(stranger.place / "elsewhere")

    return move


def a_pipe(name):
    def make(folder, _):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


class Hub:
    """The hub's cache, with repositories in it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def snapshot(self, repository: str, commit: str) -> Path:
        """The folder of a commit, which ``main`` is from now on."""
        folder = self.place / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        made = folder / "snapshots" / commit
        made.mkdir(parents=True)
        return made

    def judge(self, repository: str, commit: str, tokenizer: str) -> Path:
        """The embedded judge, its files linked to the blobs as the hub's library does."""
        made = self.snapshot(repository, commit)
        blobs = made.parent.parent / "blobs"
        blobs.mkdir(exist_ok=True)
        for file in shipped("models/clip-tiny").iterdir():
            if file.name == "SHA256SUMS":
                continue
            blob = blobs / f"{commit[:4]}-{file.name}"
            shutil.copy(file, blob)
            (made / file.name).symlink_to(Path("../../blobs") / blob.name)
        name = ("model_cfg", "text_cfg", "hf_tokenizer_name")
        change(made / "open_clip_config.json", *name, to=tokenizer)
        return made
