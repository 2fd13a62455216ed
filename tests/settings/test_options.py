"""Options: defaults, how text is read, and messages that name the option and what is allowed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analogy.core.errors import OptionError
from analogy.core.records import Limit
from analogy.settings.options import OPTIONS, csv_list, parse_names, parse_options, parse_path
from analogy.settings.request import RunRequest
from analogy.steering.base import METHODS

DEFAULTS = {option.name: option.default for option in OPTIONS}


def parse(**given):
    raw = {**DEFAULTS, **{f"analogy_{name}": text for name, text in given.items()}}
    return parse_options(raw.__getitem__)


def test_the_defaults_are_the_studys():
    values = parse()
    assert values.alphas == (0.5, 0.8, 1.0)
    assert values.seeds == (0, 1, 2)
    assert values.method == "word"
    assert values.clip_dtype == "float32"
    assert values.results is None  # results.json, unless that has those of a larger run
    assert values.gpu is values.update_baseline is values.offline is False
    for name in (
        "model",
        "clip_model",
        "pairs",
        "categories",
        "limit",
        "steps",
        "run_dir",
        "device",
        "lora",
    ):
        assert getattr(values, name) is None


def test_every_option_has_a_name_of_its_own_and_a_help():
    assert len(DEFAULTS) == len(OPTIONS)
    assert all(option.help for option in OPTIONS)
    assert {field.name for field in fields(RunRequest)} == {
        name.removeprefix("analogy_") for name in DEFAULTS
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("alphas", "1", (1.0,)),
        ("alphas", " -0.5, 0.5 ,1e0", (-0.5, 0.5, 1.0)),
        ("seeds", "7", (7,)),
        ("seeds", "0,1, 2", (0, 1, 2)),
        ("categories", "color, size", ("color", "size")),
        ("categories", '"food, drink",tea, "5"" disk"', ("food, drink", "tea", '5" disk')),
        ("categories", '5" disk', ('5" disk',)),
        ("limit", " +3 ", 3),
        ("guidance", ".5", 0.5),
        ("guidance", "1.e1", 10.0),
        ("steps", "3", 3),
        ("limit", "2", 2),
        ("batch_size", "1", 1),
        ("memory", "11.5", 11.5),
        ("size", "512", 512),
        ("dtype", "bfloat16", "bfloat16"),
        ("guidance", "2", 2.0),
        ("gpu", True, True),
        ("device", "cuda:1", "cuda:1"),
        ("device", "mps", "mps"),
        ("limits", "ssim>=0.4", (Limit("ssim", True, 0.4),)),
        (
            "limits",
            " lpips <= 3e-1 ,kid<=-1",
            (Limit("lpips", False, 0.3), Limit("kid", False, -1)),
        ),
        ("clip_dtype", "bfloat16", "bfloat16"),
        *[("method", name, name) for name in METHODS.builtin],
    ],
)
def test_text_is_read(name, text, value):
    assert getattr(parse(**{name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("method", "wrod", "--method: expected one of lerp, slerp, word, category, random, "),
        ("method", "wrod", "did you mean 'word'?"),
        ("method", "", "--method: expected one of lerp"),
        ("alphas", "half", "--alphas: expected a number, got 'half'"),
        ("alphas", "", "--alphas: expected values separated by commas, got ''"),
        ("alphas", "0.5,,1", "--alphas: expected values separated by commas, got '0.5,,1'"),
        ("seeds", "-1", "--seeds: expected an integer >= 0, got -1"),
        ("seeds", "0,1.5", "--seeds: expected an integer >= 0, got '1.5'"),
        ("device", "gpu", "--device: expected cpu, mps, cuda or cuda:N, got 'gpu'"),
        ("device", "cuda:", "--device: expected cpu, mps, cuda or cuda:N, got 'cuda:'"),
        ("clip_dtype", "bf16", "--clip-dtype: expected one of float32, bfloat16, float16, got "),
        ("device", "cpu:0", "--device: expected cpu, mps, cuda or cuda:N, got 'cpu:0'"),
        ("steps", "0", "--steps: expected an integer >= 1, got 0"),
        ("steps", "ten", "--steps: expected an integer >= 1, got 'ten'"),
        ("limit", "0", "--limit: expected an integer >= 1, got 0"),
        ("batch_size", "0", "--batch-size: expected an integer >= 1, got 0"),
        ("memory", "0", "--memory: expected a finite number > 0, got '0'"),
        ("memory", "inf", "--memory: expected a finite number > 0, got 'inf'"),
        ("size", "7", "--size: expected an integer >= 8, got 7"),
        ("dtype", "float8", "--dtype: expected one of float32, bfloat16, float16, got 'float8'"),
        ("limits", "ssim>0.4", "--limits: expected metric>=value or metric<=value, got 'ssim>0.4'"),
        ("limits", "", "--limits: expected metric>=value or metric<=value, got ''"),
        ("limits", "sim>=1", "--limits: expected one of clip_score, directional_similarity, psnr,"),
        ("limits", "sim>=1", "did you mean 'ssim'?"),
        ("limits", "ssim>=high", "--limits: expected a number, got 'high'"),
        ("guidance", "much", "--guidance: expected a number, got 'much'"),
        ("alphas", "0.5 0.8", "--alphas: expected a number, got '0.5 0.8'; write 0.5,0.8"),
        ("alphas", "[0.5;0.8]", "got '[0.5;0.8]'; write 0.5,0.8"),
        ("alphas", "0.5,,1", "got '0.5,,1'; write 0.5,1"),
        ("alphas", "0.5,nan", "--alphas: expected a finite number, got 'nan'"),
        ("seeds", "3-5", "--seeds: expected an integer >= 0, got '3-5'; write 3,4,5"),
        ("seeds", "0..2", "got '0..2'; write 0,1,2"),
        ("seeds", "0 1", "got '0 1'; write 0,1"),
        ("seeds", "-inf", "--seeds: expected an integer >= 0, got '-inf'"),
        ("limit", "1e3", "--limit: expected an integer >= 1, got '1e3'; write 1000"),
        ("limit", "1_000", "got '1_000'; write 1000"),
        ("limit", "\uff11\uff12", "; write 12"),
        ("limit", "3.0", "got '3.0'; write 3"),
        ("limit", "9" * 30, "--limit: expected an integer >= 1, got '999"),
        ("limit", str(2**63), "--limit: expected an integer >= 1 and <= 9223372036854775807, got"),
        ("guidance", "7,5", "--guidance: expected a number, got '7,5'; write 7.5"),
        ("guidance", "\u0663", "--guidance: expected a number, got '\u0663'"),
        ("guidance", "infinity", "--guidance: expected a finite number, got 'infinity'"),
        ("guidance", "1e999", "got '1e999', which is too large"),
        ("tolerance", "1_0", "--tolerance: expected a finite number >= 0, got '1_0'; write 10"),
        ("memory", "nan", "--memory: expected a finite number > 0, got 'nan'"),
        ("limits", "ssim>=nan", "--limits: expected a finite number, got 'nan'"),
        ("device", "cuda:\u0661", "--device: expected cpu, mps, cuda or cuda:N"),
        ("run_dir", " ", "--run-dir: expected a path, got ' '"),
        (
            "run_dir",
            "~nobody_here/x",
            "got '~nobody_here'; for a file of that name write ./~nobody",
        ),
        ("categories", '"food, drink', "those that hold a comma in double quotes, got '\"food"),
        ("categories", "color,", "--categories: expected values separated by commas, got 'color,'"),
    ],
)
def test_wrong_text_is_refused(name, text, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        parse(**{name: text})


PATHS = (
    "model", "transformer", "lora", "clip_model", "clip_pretrained", "pairs", "run_dir", "ceiling",
    "reference", "lpips_weights", "baseline", "results", "report",
)  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_a_tilde_is_the_home_in_every_path(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert getattr(parse(**{name: "~/a b"}), name) == str(tmp_path / "a b")
    assert getattr(parse(**{name: "a/~/b"}), name) == "a/~/b"
    (tmp_path / "~own").touch()
    assert (
        getattr(parse(**{name: "~own"}), name) == "~own"
    )  # what exists under its own name is that


def test_no_other_option_takes_a_path():
    assert {option.key for option in OPTIONS if option.parse is parse_path} == set(PATHS)


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1))
def test_names_are_read_back_as_they_are_printed(names):
    wanted = tuple(f"{name}, {name}" if i % 2 else name for i, name in enumerate(names))
    assert parse_names(csv_list(wanted)) == wanted
    assert parse_names(csv_list(wanted, ", ")) == wanted


def test_a_name_like_no_method_gets_no_suggestion():
    with pytest.raises(OptionError) as refusal:
        parse(method="zzz")
    assert "did you mean" not in str(refusal.value)


def test_reading_options_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'pandas', 'scipy', 'diffusers'}"
    code = f"import sys, analogy.plugin; sys.exit(bool({heavy} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)
