"""The records: what they hold, what they refuse, and that they survive JSON and pickle."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import subprocess
import sys

import pytest

from analogy.core.records import Cell, Estimate, ItemLevel, Pair, RunConfig, Trend, Verdict
from analogy.results.model import CellFigures
from analogy.studies.method_comparison import Difference

PAIR = Pair("color-01", "color", "red", "blue", "a red car", "a blue car")

CONFIG = RunConfig(
    model="segmind/SSD-1B",
    clip_model="ViT-B-32",
    clip_pretrained="openai",
    pairs="fixtures/pairs.csv",
    categories=("color", "size"),
    alphas=(0.5, 0.8, 1.0),
    seeds=(0, 1, 2),
    method="word",
    steps=10,
    guidance=5.0,
    size=64,
    dtype="float32",
    device="cpu",
    batch_size=32,
    limit=None,
)

ESTIMATE = Estimate(
    n=50,
    n_items=50,
    mean=0.1,
    ci_low=0.05,
    ci_high=0.15,
    p=0.001,
    success_rate=0.9,
    verdict=Verdict.SUCCESS,
    success_low=0.8,
    success_high=0.95,
    p_bootstrap=0.003,
    p_wilcoxon=0.002,
    p_sign=0.003,
    effect_size=0.6,
    effect_low=0.3,
    effect_high=0.9,
    min_detectable=0.07,
    n_needed=None,
)

TREND = Trend(n=50, slope=0.2, ci_low=0.1, ci_high=0.3, p=0.001, p_page=0.002)

ITEM_LEVEL = ItemLevel(n=150, ci_low=0.06, ci_high=0.14, p=0.0001)


@pytest.mark.parametrize(
    "record", [PAIR, CONFIG, ESTIMATE, TREND, ITEM_LEVEL], ids=lambda r: type(r).__name__
)
def test_records_are_frozen_hashable_and_picklable(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, "other")
    assert not hasattr(record, "__dict__")
    copy = pickle.loads(pickle.dumps(record))
    assert copy == record
    assert hash(copy) == hash(record)


@pytest.mark.parametrize(
    "make",
    [
        lambda mean: Estimate(n=1, n_items=1, verdict=Verdict.TOO_FEW, mean=mean),
        lambda mean: CellFigures(Cell("color", 1.0), ESTIMATE, None, {}, p_holm=mean),
        lambda mean: Difference("lerp", "word", None, None, 6, mean=mean),
    ],
    ids=["Estimate", "CellFigures", "Difference"],
)
def test_a_missing_figure_equals_a_missing_one_and_nothing_else(make):
    """On every Python: dataclasses compare NaN by identity up to 3.12, and as unequal from 3.13."""
    assert make(float("nan")) == make(float("nan"))
    assert make(float("nan")) != make(0.1)
    assert make(0.1) == make(0.1)
    assert make(0.1) != make(0.2)
    assert make(0.1) != 0.1


def test_records_with_missing_figures_are_one_key():
    missing = [Estimate(n=1, n_items=1, verdict=Verdict.TOO_FEW, mean=float("nan")) for _ in "ab"]
    assert len(set(missing)) == 1


def test_importing_records_is_cheap():
    heavy = "{'torch', 'numpy', 'pandas', 'scipy'}"
    code = f"import sys, analogy.core.records; sys.exit(bool({heavy} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_verdict_prints_and_serialises_as_its_value():
    assert f"{Verdict.TOO_FEW}" == str(Verdict.TOO_FEW) == "too_few"
    assert json.dumps(Verdict.TOO_FEW) == '"too_few"'
    assert Verdict("too_few") is Verdict.TOO_FEW
    assert [verdict.value for verdict in Verdict] == [
        "success",
        "failure",
        "inconclusive",
        "too_few",
        "incomplete",
        "blind",
    ]


def test_an_estimate_as_a_dict():
    assert ESTIMATE.to_dict() == {
        "n": 50,
        "n_items": 50,
        "mean": 0.1,
        "ci_low": 0.05,
        "ci_high": 0.15,
        "p": 0.001,
        "success_rate": 0.9,
        "verdict": "success",
        "success_low": 0.8,
        "success_high": 0.95,
        "p_bootstrap": 0.003,
        "p_wilcoxon": 0.002,
        "p_sign": 0.003,
        "effect_size": 0.6,
        "effect_low": 0.3,
        "effect_high": 0.9,
        "min_detectable": 0.07,
        "n_needed": None,
    }
    assert type(ESTIMATE.to_dict()["verdict"]) is str


def test_figures_as_dicts():
    assert TREND.to_dict() == {
        "n": 50,
        "slope": 0.2,
        "ci_low": 0.1,
        "ci_high": 0.3,
        "p": 0.001,
        "p_page": 0.002,
    }
    assert ITEM_LEVEL.to_dict() == {"n": 150, "ci_low": 0.06, "ci_high": 0.14, "p": 0.0001}


def test_an_estimate_of_counts_alone_is_incomplete_and_has_no_figures():
    figures = json.loads(json.dumps(Estimate(n=50, n_items=40).to_dict(), allow_nan=False))
    assert figures.pop("n") == 50
    assert figures.pop("n_items") == 40
    assert figures.pop("verdict") == "incomplete"
    assert figures.keys() == ESTIMATE.to_dict().keys() - {"n", "n_items", "verdict"}
    assert set(figures.values()) == {None}


def test_a_figure_that_does_not_exist_is_null():
    lone = dataclasses.replace(
        ESTIMATE, n=1, ci_low=math.nan, ci_high=math.nan, p=math.nan, verdict=Verdict.TOO_FEW
    )
    figures = json.loads(json.dumps(lone.to_dict(), allow_nan=False))
    assert figures["ci_low"] is figures["ci_high"] is figures["p"] is None
    assert figures["mean"] == 0.1
    trend = dataclasses.replace(TREND, p_page=math.nan)
    assert json.loads(json.dumps(trend.to_dict(), allow_nan=False))["p_page"] is None


def test_the_control_is_always_in_the_grid():
    assert CONFIG.grid_alphas == (0.0, 0.5, 0.8, 1.0)
    assert dataclasses.replace(CONFIG, alphas=(1.0, -0.5)).grid_alphas == (-0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, clip_pretrained=None, categories=None, limit=2),
    ],
)
def test_a_configuration_survives_json(config):
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


def test_equal_configurations_serialise_equally():
    whole = dataclasses.replace(CONFIG, alphas=(1, 2), guidance=5)
    real = dataclasses.replace(CONFIG, alphas=(1.0, 2.0), guidance=5.0)
    assert whole == real
    assert json.dumps(whole.to_dict()) == json.dumps(real.to_dict())


def test_a_key_with_a_default_may_be_missing():
    values = CONFIG.to_dict()
    del values["memory"]
    assert RunConfig.from_dict(values) == CONFIG


def test_the_scheduler_s_key_stays_in_json_and_means_nothing():
    values = CONFIG.to_dict()
    names = list(values)
    assert values.pop("scheduler", 0) is None
    assert names[names.index("limit") + 1] == "scheduler"  # digests of recorded commands rest on it
    assert not hasattr(CONFIG, "scheduler")
    assert RunConfig.from_dict(values) == CONFIG
    assert RunConfig.from_dict({**values, "scheduler": "DDIMScheduler"}) == CONFIG


def test_unknown_and_missing_keys_are_named():
    values = CONFIG.to_dict() | {"step": 10}
    del values["steps"]
    with pytest.raises(ValueError, match="unknown: step; missing: steps"):
        RunConfig.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "", "model: expected a non-empty string, got ''"),
        ("clip_model", None, "clip_model: expected a non-empty string, got None"),
        ("clip_pretrained", " ", "clip_pretrained: expected a non-empty string, got ' '"),
        ("categories", (), "categories: expected a non-empty tuple"),
        ("categories", "color", "categories: expected a non-empty tuple, got 'color'"),
        ("categories", ("color", "color"), "categories: expected each value once"),
        ("categories", (["color"],), "categories: expected a non-empty string, got ['color']"),
        ("alphas", (), "alphas: expected a non-empty tuple"),
        ("alphas", (0.5, 0.5), "alphas: expected each value once"),
        ("alphas", (0.5, 0.0), "alpha 0 (unsteered) is always in the grid"),
        ("alphas", (5.1,), "alphas: expected a finite number from -5 to 5, got 5.1"),
        ("alphas", (math.nan,), "alphas: expected a finite number from -5 to 5, got nan"),
        ("alphas", ("0.5",), "alphas: expected a finite number from -5 to 5, got '0.5'"),
        ("seeds", (), "seeds: expected a non-empty tuple"),
        ("seeds", (1, 1), "seeds: expected each value once"),
        ("seeds", (-1,), "seeds: expected an integer in 0..9223372036854775807, got -1"),
        ("seeds", (2**63,), "seeds: expected an integer in 0..9223372036854775807"),
        ("seeds", (True,), "seeds: expected an integer in 0..9223372036854775807, got True"),
        ("method", "", "method: expected a non-empty string"),
        ("steps", 0, "steps: expected an integer in 1..1000000000, got 0"),
        ("steps", 1.5, "steps: expected an integer in 1..1000000000, got 1.5"),
        ("guidance", -1.0, "guidance: expected a finite number from 0 to 1e+06, got -1.0"),
        ("guidance", math.inf, "guidance: expected a finite number from 0 to 1e+06, got inf"),
        ("size", 0, "size: expected an integer in 8..1000000000, got 0"),
        ("size", 100, "size: expected a multiple of 8 pixels, got 100"),
        ("size", 10**8, "size: expected at most 16,384 pixels, got 100,000,000"),
        ("dtype", "int8", "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ("device", "", "device: expected a non-empty string"),
        ("batch_size", 0, "batch_size: expected an integer in 1..1000000000, got 0"),
        ("memory", -1.0, "memory: expected a finite number from 0 to 1e+09, got -1.0"),
        ("limit", 0, "limit: expected an integer in 1..1000000000, got 0"),
        ("ray_address", "", "ray_address: expected a non-empty string"),
        ("guidance", 10**400, "guidance: expected a finite number from 0 to 1e+06, got 1000"),
        ("alphas", (10**400,), "alphas: expected a finite number from -5 to 5, got 1000"),
        ("steps", 10**10, "steps: expected an integer in 1..1000000000, got 10000000000"),
        ("method", "wo\nrd", "method: expected a text without control characters"),
        ("device", "cpu\x1b[2J", "device: expected a text without control characters"),
        ("categories", ("a\u2028b",), "categories: expected a text without control characters"),
        ("model", "a\0b", "model: expected at most 10,000 characters and no NUL"),
        ("pairs", "x" * 10_001, "pairs: expected at most 10,000 characters and no NUL"),
    ],
)
def test_wrong_values_are_refused(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(CONFIG, **{field: value})
