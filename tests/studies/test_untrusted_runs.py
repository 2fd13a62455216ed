"""Run folders that a stranger gave: what they name is imported and loaded only if confirmed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from strangers import code_for_the_tokenizer
from typer.testing import CliRunner

from analogy import cli
from analogy.core.errors import ModelError
from analogy.generation.engine import Setup
from analogy.generation.worker import Worker
from analogy.judges.open_clip import find_judge
from analogy.models.fingerprints import fingerprint
from analogy.models.places import shipped
from analogy.models.sources import find_pipeline
from analogy.store.folder import RunFolder
from analogy.studies.repair import NotConfirmedError, repair
from analogy.studies.study import Study
from analogy.studies.verify import verify

# --- run folders


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy of a finished run's folder."""
    return shutil.copytree(whole_run / "run", tmp_path / "run")


def rename(run: Path, *, judge: str | None = None, **named: str) -> None:
    """Have the run folder's index name other models; ``judge``: by this fingerprint."""
    connection = sqlite3.connect(run / "index.sqlite")
    with connection:
        for row, config in connection.execute("SELECT rowid, config FROM commands").fetchall():
            changed = json.dumps({**json.loads(config), **named})
            connection.execute("UPDATE commands SET config = ? WHERE rowid = ?", (changed, row))
            if judge is not None:
                connection.execute("UPDATE commands SET judge = ? WHERE rowid = ?", (judge, row))
    connection.close()


def lose_an_image(run: Path) -> None:
    next((run / "images").rglob("*.png")).unlink()


def content(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder but SQLite's own."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {file: file.read_bytes() for file in files if not file.name.startswith("index.sqlite-")}


def verified(run: Path, *options: str):
    result = CliRunner().invoke(cli.app, ["verify", str(run), *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_repairing_a_strangers_run_loads_nothing_that_it_names(run, stranger):
    """Its index has another judge's fingerprint, and so no scores: that judge is to make them."""
    folder = stranger.copy("clip-tiny", "judge")
    code_for_the_tokenizer(folder, stranger)
    rename(run, judge=fingerprint(folder), clip_model=str(folder))
    before = content(run)
    result = verified(run, "--repair")
    assert not stranger.ran
    assert result.exit_code == 2
    assert f"what its index names would be loaded: the judge '{folder}'" in result.stderr
    assert "give --trust" in result.stderr
    assert content(run) == before


@pytest.mark.parametrize("given", [["--trust"], ["--clip-model"]])
def test_confirmed_code_is_still_not_run(run, stranger, given):
    folder = stranger.copy("clip-tiny", "judge")
    code_for_the_tokenizer(folder, stranger)
    rename(run, judge=fingerprint(folder), clip_model=str(folder))
    result = verified(run, "--repair", *given, *([str(folder)] if given != ["--trust"] else []))
    assert not stranger.ran
    assert result.exit_code == 4
    assert "expected no code" in result.stderr


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ({"model": "{theirs}"}, ["the model '{theirs}'"]),
        ({"model": "someone/model"}, ["the model 'someone/model'"]),
        ({"clip_model": "hf-hub:a/b"}, ["the judge 'hf-hub:a/b'"]),
        (
            {"clip_model": "ViT-B-32", "clip_pretrained": "{theirs}/x"},
            ["the judge 'ViT-B-32' with the weights '{theirs}/x'"],
        ),
        (
            {"model": "{theirs}", "clip_model": "{theirs}"},
            ["the model '{theirs}'", "the judge '{theirs}'"],
        ),
    ],
)
def test_every_path_and_id_is_shown_and_none_looked_for(run, stranger, monkeypatch, named, shown):
    for find in (find_judge, find_pipeline):

        def embedded_alone(given, *rest, find=find, **options):
            assert given == "embedded"
            return find(given, *rest, **options)

        monkeypatch.setattr(f"analogy.studies.repair.{find.__name__}", embedded_alone)
    rename(run, **{key: text.format(theirs=stranger.place) for key, text in named.items()})
    lose_an_image(run)
    before = content(run)
    result = verified(run, "--repair")
    assert result.exit_code == 2
    for text in shown:
        assert text.format(theirs=stranger.place) in result.stderr
    assert content(run) == before


def test_a_lora_that_a_run_folder_names_is_shown(run, stranger):
    connection = sqlite3.connect(run / "index.sqlite")
    theirs = str(stranger.place / "style.safetensors")
    with connection:
        connection.execute("UPDATE commands SET lora = ?", (theirs,))
    connection.close()
    rename(run, model=f"embedded+{theirs}")
    lose_an_image(run)
    folder = RunFolder(run)
    try:
        with pytest.raises(NotConfirmedError, match=f"loaded: the LoRA '{theirs}'. If you trust"):
            repair(folder, verify(folder))
    finally:
        folder.close()


@pytest.mark.parametrize("how", ["trusted", "named", "named elsewhere"])
def test_a_confirmed_model_repairs(run, stranger, how):
    """By --trust, which shows it; by its name, given again; by another copy of the same files."""
    embedded = shipped("models/clip-tiny")
    theirs = shutil.copytree(embedded, stranger.place / "clip-tiny")
    rename(run, clip_model=str(theirs))
    lose_an_image(run)
    given = {
        "trusted": ["--trust"],
        "named": ["--clip-model", str(theirs)],
        "named elsewhere": ["--clip-model", str(embedded)],
    }[how]
    result = verified(run, "--repair", *given)
    assert result.exit_code == 0
    assert (f"trusted: the judge '{theirs}'" in result.stderr) == (how == "trusted")
    assert verified(run).exit_code == 0


def test_another_model_than_the_runs_confirms_nothing(run, stranger):
    rename(run, clip_model=str(stranger.copy("clip-tiny", "clip-tiny")))
    other = stranger.copy("clip-tiny", "other")
    lose_an_image(run)
    result = verified(run, "--repair", "--clip-model", str(other))
    assert result.exit_code == 2
    assert f"the judge '{stranger.place / 'clip-tiny'}'" in result.stderr


def test_only_repairing_asks(run, stranger, monkeypatch):
    """What looks at a run folder loads no model, so it has nothing to ask."""
    rename(run, model=str(stranger.place), clip_model=str(stranger.place))
    monkeypatch.setattr("analogy.generation.worker.load_pipeline", pytest.fail)
    monkeypatch.setattr("analogy.judges.open_clip.JudgeSource.load", pytest.fail)
    assert verified(run).exit_code == 0
    (run / "results.json").unlink(missing_ok=True)
    import analogy

    assert len(analogy.load_run(run).images)


@pytest.fixture
def method(tmp_path, monkeypatch):
    """A module on the path whose method a run folder may name; importing it leaves a mark."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text(
        f"open({str(tmp_path / 'mark')!r}, 'w').close()\nfrom own import pooled\n"
    )
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    yield tmp_path / "mark"
    sys.modules.pop("theirs", None)


def lose_a_control(run: Path) -> None:
    """Lose an image of alpha 0, which is in the grid of every method."""
    folder = RunFolder(run, read_only=True)
    job = next(job for job in folder.commands()[0].jobs() if job.alpha == 0.0)
    folder.close()
    (run / "images" / job.key[:2] / f"{job.key}.png").unlink()


def test_a_method_that_a_run_folder_names_is_not_imported(run, method):
    rename(run, method="theirs:pooled")
    lose_a_control(run)
    before = content(run)
    folder = RunFolder(run, read_only=True)
    Study.reopen(folder, folder.commands()[0]).analysis()
    folder.close()
    assert verified(run).exit_code == 1
    result = verified(run, "--repair")
    assert result.exit_code == 2
    assert "would be loaded: the method 'theirs:pooled'. If you trust" in result.stderr
    assert "again with --method" in result.stderr
    assert not method.exists()
    assert content(run) == before
    assert verified(run, "--repair", "--method", "own:pooled").exit_code == 2
    assert not method.exists()


@pytest.mark.parametrize("given", [["--trust"], ["--method", "theirs:pooled"]])
def test_a_confirmed_method_is_imported(run, method, given):
    rename(run, method="theirs:pooled", method_version="2", method_needs=["words"])
    lose_a_control(run)
    result = verified(run, "--repair", *given)
    assert method.exists()
    assert "repaired  1 images" in result.stdout, result.stderr
    assert ("trusted: the method 'theirs:pooled'" in result.stderr) == (given == ["--trust"])


def test_another_version_of_a_method_repairs_nothing(run, method):
    rename(run, method="theirs:pooled", method_version="1", method_needs=["words"])
    lose_a_control(run)
    before = content(run)
    result = verified(run, "--repair", "--trust")
    assert result.exit_code == 4
    assert "version '1', got version '2'" in result.stderr
    assert content(run) == before


def test_a_study_of_a_run_folder_alone_loads_nothing(run, stranger):
    """Whatever comes to read run folders: a study of one cannot load what it names."""
    rename(run, model=str(stranger.place), clip_model=str(stranger.place))
    folder = RunFolder(run)
    try:
        study = Study.reopen(folder, folder.commands()[0])
        with pytest.raises(ModelError, match="known from a run folder alone"):
            study.judge.load("cpu")
        with pytest.raises(ModelError, match="known from a run folder alone"):
            Worker(Setup(study.config, study.pairs, study.model, study.judge)).prepare()
    finally:
        folder.close()
