"""Settings in a file: the options' own names, for the command line and pytest alike."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import looks
import pytest
from verbs import verb

from analogy import plugin
from analogy.cli import runs
from analogy.core.errors import OptionError
from analogy.core.records import Limit
from analogy.sessions.session import Session
from analogy.settings.config_file import given_settings, read_settings, settings_line, settings_text
from analogy.settings.options import parse_options
from analogy.settings.request import RunRequest
from analogy.writers import Output

pytest_plugins = ["pytester"]

NOTHING = {}.get

FULL = RunRequest(
    model="a \"model\"", categories=("color", "red, or blue"), alphas=(0.5, 2.0), seeds=(0, 7),
    method="lerp", control=True, steps=4, guidance=2.5, limit=3, limits=(Limit("ssim", True, 0.4),),
    write=(Output("cells.csv", "csv"),), run_dir="a folder", tolerance=0.01, metrics=("ssim",),
)  # fmt: skip


@pytest.fixture
def given(monkeypatch):
    """The request that ``analogy run`` gets, which then does nothing."""
    found = []
    monkeypatch.setattr(
        runs, "work", SimpleNamespace(run=lambda request, **_: found.append(request))
    )
    return found


def test_what_is_written_is_read_as_the_same_request(tmp_path, config):
    file = tmp_path / "run.toml"
    resolved = replace(config, steps=4, guidance=2.5, alphas=(0.5, 2.0), size=64)
    file.write_text(settings_text(FULL, resolved))
    again = parse_options(NOTHING, read_settings(file))
    assert again == replace(FULL, size=64, dtype="float32")
    assert tomllib.loads(file.read_text())["limit"] == 3


def test_only_what_differs_from_the_default_is_given():
    assert given_settings(RunRequest()) == {}
    assert given_settings(RunRequest(limit=2, update_baseline=True, baseline="b.json")) == {
        "limit": 2, "baseline": "b.json",
    }  # fmt: skip
    line = settings_line(RunRequest(limit=2, categories=("color", "count")))
    assert line == "categories = color, count, limit = 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = ", "expected a TOML file that can be read"),
        ("clip_model = 'x'", r"got 'clip_model'; did you mean 'clip-model'\?"),
        ("sedes = [0]", r"got 'sedes'; did you mean 'seeds'\?"),
        ("config = 'x'", "expected names of options"),
        ("control = 'yes'", "control: expected true or false, got 'yes'"),
        ("limit = true", "limit: expected a text, a number or a list, got True"),
        ("seeds = [[0]]", r"seeds: expected a text, a number or a list of them, got \[0\]"),
        ("[run]\nlimit = 2", "got 'run'"),
    ],
)
def test_what_is_no_setting_is_refused(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(OptionError, match=message):
        read_settings(file)
    with pytest.raises(OptionError, match="--config"):
        read_settings(tmp_path / "missing.toml")


def test_a_value_is_read_as_that_of_its_option(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("limit = 2.5")
    with pytest.raises(OptionError, match="--limit: expected an integer"):
        parse_options(NOTHING, read_settings(file))


def test_options_and_environment_override_the_file(tmp_path, given):
    file = tmp_path / "run.toml"
    file.write_text("limit = 2\nseeds = [5]\ncontrol = true\nsteps = 3\n")
    result = verb("run", "--seeds=0,1,2", f"--config={file}", env={"ANALOGY_RUN_STEPS": "9"})
    assert result.exit_code == 0, result.stderr
    assert given == [RunRequest(limit=2, seeds=(0, 1, 2), control=True, steps=9)]
    file.write_text("limt = 2")
    result = verb("run", f"--config={file}")
    assert result.exit_code == 2
    assert "did you mean 'limit'?" in result.stderr
    assert len(given) == 1


def test_pytest_reads_the_same_file(pytester):
    file = pytester.makefile(".toml", run="limit = 2\nseeds = [5]\ncontrol = true\n")
    config = pytester.parseconfig("-p", "analogy.plugin", f"--config={file}", "--seeds=0,1,2")
    plugin.pytest_configure(config)
    assert config.stash[plugin.REQUEST] == RunRequest(limit=2, control=True)
    file.write_text("limt = 2")
    with pytest.raises(pytest.UsageError, match="did you mean 'limit'"):
        plugin.pytest_configure(config)


def test_a_run_keeps_its_settings_and_they_repeat_it(tmp_path):
    looks.plant(looks.margin)
    request = looks.request(tmp_path, sequential=None, metrics="ssim", limit="2")
    session = Session.open(request)
    jobs = session.study.jobs()
    session.study.close()
    kept = read_settings(tmp_path / "run" / "run.toml")
    assert kept["dtype"] == session.study.config.dtype
    again = Session.open(parse_options(NOTHING, kept))
    assert again.study.jobs() == jobs
    assert again.study.folder.path == tmp_path / "run"
    again.study.close()
    (tmp_path / "run" / "run.toml").unlink()
    (tmp_path / "run" / "run.toml").symlink_to(Path(tmp_path / "elsewhere"))
    with pytest.raises(Exception, match=r"run\.toml"):
        Session.open(request)
