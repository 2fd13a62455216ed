"""The suite in Python: ``analogy.run``, ``analogy.compare`` and the request behind them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

import analogy
from analogy.core.errors import AnalogyError, ExitCode, OptionError
from analogy.models.places import shipped
from analogy.sessions import session
from analogy.settings.options import OPTIONS, parse_options
from analogy.settings.pairs import load_pairs, select
from analogy.settings.request import RunRequest


@pytest.fixture
def no_model(monkeypatch):
    """Fail if a session is opened: the models would be looked for."""
    monkeypatch.setattr(session.Study, "open", lambda *_: pytest.fail("a study was opened"))


@pytest.fixture
def some():
    """Six pairs of one category."""
    return select(load_pairs(shipped("pairs.csv")), ["color"], 6)


def test_a_run_of_one_call(tmp_path, some, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"seeds": (0,), "alphas": [1.0], "steps": 2, "dtype": "float32"}
    run = analogy.run(
        model="embedded", method="word", pairs=some, run_dir=tmp_path / "run", **small
    )
    assert isinstance(run, analogy.Run)
    assert len(run.images) == 2 * len(some)
    assert run.path == tmp_path / "run"
    assert not Path("results.json").exists()  # nothing outside the run folder unless asked for
    again = analogy.load_run(tmp_path / "run")
    assert again.items.equals(run.items)
    other = analogy.run(method="lerp", pairs=some, run_dir=tmp_path / "other", **small)
    comparison = analogy.compare(run, tmp_path / "other")
    assert [change.n for change in comparison.changes] == [6]
    assert comparison.overall == analogy.compare(tmp_path / "run", other).overall


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wrod"}, r"method: expected one of .*, got 'wrod'; did you mean 'word'\?"),
        ({"metod": "word"}, r"metod: expected an option .*; did you mean 'method'\?"),
        ({"alphas": (0.0,)}, "alphas: expected strengths other than 0"),
        ({"alphas": 0.5}, "alphas: expected a non-empty tuple, got 0.5"),
        ({"seeds": (1, 1)}, "seeds: expected each value once"),
        ({"size": 60}, "size: expected a multiple of 8 pixels, got 60"),
        ({"limit": 0}, "limit: expected an integer in 1"),
        ({"dtype": "int8"}, "dtype: expected one of float32"),
        ({"engine": "dask"}, "engine: expected one of serial"),
        ({"tolerance": -1.0}, "tolerance: expected a finite number from 0"),
        ({"limits": "ssim>=0.4"}, "limits: expected a tuple of Limit"),
        ({"run_dir": ""}, "run_dir: expected a non-empty string"),
        ({"control": "yes"}, "control: expected true or false, got 'yes'"),
    ],
)
def test_a_wrong_value_is_refused_before_any_model(no_model, options, message):
    with pytest.raises(AnalogyError, match=message) as refused:
        analogy.run(**options)
    assert refused.value.exit_code is ExitCode.USAGE


def test_a_refusal_has_its_parts(no_model):
    with pytest.raises(OptionError) as refused:
        parse_options({"analogy_size": "60"}.get)
    error = refused.value
    assert (error.place, error.expected, error.got) == ("--size", "a multiple of 8 pixels", "60")


def test_every_option_is_a_field_with_the_same_default():
    assert [option.key for option in OPTIONS] == [
        field.name for field in sorted(fields(RunRequest), key=_place)
    ]
    assert parse_options({}.get) == RunRequest()
    texts = {option.name: option.default for option in OPTIONS}
    assert parse_options(texts.get) == RunRequest()


def _place(field):
    return [option.key for option in OPTIONS].index(field.name)


def test_results_that_are_not_comparable_are_refused(tmp_path, some):
    small = {"seeds": (0,), "alphas": (1.0,), "steps": 1, "dtype": "float32"}
    run = analogy.run(pairs=some, run_dir=tmp_path / "run", **small)
    with pytest.raises(AnalogyError, match="same measurement") as refused:
        analogy.compare(run, "fixtures/baselines/smoke.json")
    assert refused.value.exit_code is ExitCode.NOT_COMPARABLE
