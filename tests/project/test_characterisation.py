"""What must outlive any move of code: keys, digests, folder names, results.json, table, options.

Held to characterisation.json. Where a change of these is meant, write that file anew and read what
changed in it, since run folders and baselines that users have depend on it::

    WRITE_CHARACTERISATION=1 python -m pytest tests/project/test_characterisation.py
    git diff tests/project/characterisation.json

``python -m tools.characterise`` records far more, images included, on one machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from cases import ROOT, judge_by
from verbs import verb

from analogy import cli

GOLDEN = Path(__file__).with_name("characterisation.json")
METHODS = ("lerp", "slerp", "word", "category", "random")
UNSTEERED = "unsteered"
"""The images at alpha 0, which are of no method."""
#: Twelve of the shipped pairs; the pairs' path is in the digests, so that it is a relative one.
GRID = (
    "--pairs=pairs.csv", "--categories=color,size", "--limit=6", "--alphas=0.5,1", "--seeds=3",
    "--steps=1", "--dtype=float32", "--device=cpu", "--batch-size=16",
)  # fmt: skip
SPELLED_OUT = "size-02"
"""The pair whose image keys are in the golden file one by one; of the others, a digest."""


def margin(job) -> float:
    """Success in color, failure and then inconclusive in size; a little different by the pair."""
    spread = sum(job.pair.source_prompt.encode()) % 7 - 3
    return 0.2 * job.alpha - 0.2 * (job.pair.category == "size") + 0.01 * spread


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What a run and a comparison of all methods leave in the folder that both have by default."""
    path = tmp_path_factory.mktemp("characterised")
    shutil.copy(ROOT / "fixtures" / "pairs.csv", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("TORCH_HOME", str(path))  # has no weights of LPIPS
        judge_by(patch, margin)
        run = verb(
            "run", *GRID, "--wide", "--method=word", "--control", "--target", "--results=word.json"
        )
        compared = verb("methods", *GRID, f"--methods={','.join(METHODS)}")
    runs = path / ".analogy" / "runs"
    names = sorted(folder.name for folder in runs.iterdir())
    return {
        "exit_codes": [run.exit_code, compared.exit_code],
        "folders": names,
        **index_of(runs / names[0]),
        "results": tree(json.loads((path / "word.json").read_text())),
        "table": table_of(run.stdout),
    }


@pytest.fixture(scope="module")
def options():
    """The options of every verb and of pytest, as their help has them."""
    return {"pytest": pytest_options(), **dict(verb_options())}


@pytest.fixture(scope="module")
def golden(made, options):
    if os.environ.get("WRITE_CHARACTERISATION"):
        text = json.dumps(made | {"options": options}, indent=1, ensure_ascii=False) + "\n"
        GOLDEN.write_text(text, "utf-8")
        pytest.fail(f"wrote {GOLDEN}; unset WRITE_CHARACTERISATION to test", pytrace=False)
    return json.loads(GOLDEN.read_text("utf-8"))


def index_of(folder: Path) -> dict:
    """A folder's image keys, with what each is of, by method; its commands' digests."""
    db = sqlite3.connect(folder / "index.sqlite")
    try:
        images = db.execute("SELECT what, key FROM images ORDER BY what, key").fetchall()
        commands = [name for (name,) in db.execute("SELECT digest FROM commands ORDER BY rowid")]
    finally:
        db.close()
    keys = {}
    for method in (*METHODS, UNSTEERED):
        mine = [row for row in images if json.loads(row[0]).get("method", UNSTEERED) == method]
        text = "".join(f"{key} {what}\n" for what, key in mine)
        keys[method] = {
            "images": len(mine),
            "digest": hashlib.sha256(text.encode()).hexdigest(),
            "spelled_out": {what: key for what, key in mine if SPELLED_OUT in what},
        }
    return {"keys": keys, "commands": commands}


def table_of(text: str) -> list[str]:
    """What is printed of the margins: without the head's versions and the images' own metrics."""
    lines = [line.rstrip() for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("category "))
    end = next(i for i, line in enumerate(lines) if line.startswith("quality "))
    return lines[start:end]


def tree(value):
    """Names, order and types; in an array each kind of entry once. Versions may be missing."""
    if isinstance(value, dict):
        return {
            name: list(each) if name == "provenance" else tree(each) for name, each in value.items()
        }
    if isinstance(value, list):
        kinds = {json.dumps(tree(each)): tree(each) for each in value}
        return list(kinds.values())
    return type(value).__name__


def verb_options(*names: str, command: Any = None):
    """The options of a verb and of all verbs below it, in the help's order."""
    command = command or typer.main.get_command(cli.app)
    options = [each for each in command.params if each.param_type_name == "option"]
    yield (
        " ".join(("analogy", *names)),
        [*(each.opts[0] for each in options), "--help"],
    )
    for name, inner in getattr(command, "commands", {}).items():
        yield from verb_options(*names, name, command=inner)


def pytest_options() -> list[str]:
    command = [sys.executable, "-m", "pytest", "--help", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    group = re.search(r"^analogy.*?:\n(.*?)^\S", done.stdout, re.DOTALL | re.M)
    assert group, done.stdout
    return re.findall(r"^  (--[\w-]+)", group[1], re.M)


@pytest.mark.parametrize("method", [*METHODS, UNSTEERED])
def test_image_keys(made, golden, method):
    found, expected = made["keys"][method], golden["keys"][method]
    assert found["spelled_out"] == expected["spelled_out"]
    assert found == expected


def test_default_folder_commands_and_exit_codes(made, golden):
    for name in ("folders", "commands", "exit_codes"):
        assert made[name] == golden[name]


def test_names_order_and_types_of_results(made, golden):
    assert json.dumps(made["results"], indent=1) == json.dumps(golden["results"], indent=1)


def test_the_table(made, golden):
    assert made["table"] == golden["table"]


def test_options(options, golden):
    assert options == golden["options"]
