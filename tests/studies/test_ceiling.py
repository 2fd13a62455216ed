"""The metric on ground truth: the judge's figures for the true change, and the file that carries
them, whatever stands in it.
"""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from analogy.core import files
from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.results.model import share
from analogy.settings.pairs import categories, load_pairs
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.statistics.values import MIN_DECISIVE
from analogy.store.grid import content, digest
from analogy.studies import ceiling as ceiling_module
from analogy.studies.ceiling import (
    Ceiling,
    CeilingError,
    GroundTruth,
    auc,
    ceiling,
    default_path,
    load,
)
from analogy.world import ceiling as command

quick = settings(deadline=None, max_examples=100)


@pytest.fixture(scope="module")
def shipped_truth():
    """The shipped file."""
    return load(default_path())


# --- the figures


def pair_named(name: str) -> Pair:
    return Pair(name, "color", "red", "blue", f"a red {name}", f"a blue {name}")


def planted(targets, sources) -> tuple[GroundTruth, list[Pair]]:
    """Ground truth with these margins, each of the shape (pairs, renders), and its pairs."""
    pairs = [pair_named(f"thing-{i}") for i in range(len(targets))]
    sides = zip(np.asarray(targets).tolist(), np.asarray(sources).tolist(), strict=True)
    drawn = {
        digest(content(pair)): (tuple(target), tuple(source))
        for pair, (target, source) in zip(pairs, sides, strict=True)
    }
    return GroundTruth(Path("planted.json"), "judge", drawn), pairs


def noise(seed: int, n: int = 50, renders: int = 3, spread: float = 0.1):
    """Two sets of margins of pure noise."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, spread, (n, renders)), rng.normal(0, spread, (n, renders))


def test_the_figures_are_of_pair_means():
    a, b = noise(0, n=20)
    a, b = a + 0.3, b - 0.2
    found = ceiling(*planted(a, b))
    assert found.n == 20
    assert found.mean == pytest.approx(a.mean())
    assert found.floor == pytest.approx(b.mean())
    assert found.change == pytest.approx((a - b).mean())
    assert (found.ci_low, found.ci_high) == pytest.approx(bootstrap_ci(a.mean(axis=1)))
    assert (found.change_low, found.change_high) == pytest.approx(
        bootstrap_ci((a - b).mean(axis=1))
    )
    assert found.ci_low < found.mean < found.ci_high
    assert not found.is_blind


def test_more_renders_of_a_pair_are_no_more_pairs():
    a, b = noise(1, n=20)
    once, thrice = (ceiling(*planted(np.tile(a, (1, k)), np.tile(b, (1, k)))) for k in (1, 3))
    for field in fields(Ceiling):
        assert getattr(thrice, field.name) == pytest.approx(getattr(once, field.name))


def test_the_order_of_the_pairs_does_not_matter():
    truth, pairs = planted(*noise(2))
    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert ceiling(truth, shuffled) == ceiling(truth, pairs)


def test_pairs_are_known_by_their_content():
    truth, pairs = planted(*noise(3))
    assert ceiling(truth, [replace(pair, id="x", category="y") for pair in pairs]) == ceiling(
        truth, pairs
    )
    assert ceiling(truth, pairs[:10]).n == 10
    assert ceiling(truth, [*pairs, pair_named("other")]) is None
    with pytest.raises(ValueError, match="at least one pair"):
        ceiling(truth, [])


steps = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@quick
@given(steps, steps)
@example([1.0, 1.0], [1.0, 1.0])
@example([1.0], [0.0])
def test_auc_matches_brute_force(positives, negatives):
    won = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    assert auc(positives, negatives) == pytest.approx(sum(won) / len(won))


def test_auc_has_one_threshold_for_all_pairs():
    """Every pair's target is above its source, but no threshold serves two pairs."""
    centre = np.arange(8.0)[:, None] / 4 - 1
    found = ceiling(*planted(centre + 0.1, centre - 0.1))
    assert found.change == pytest.approx(0.2)
    assert found.auc == pytest.approx((8 * 9 / 2) / 64)


def test_a_judge_of_noise_is_blind():
    is_blind = [ceiling(*planted(*noise(seed))).is_blind for seed in range(40)]
    assert sum(is_blind) >= 38  # at least 39 expected, see the docstring


@pytest.mark.parametrize(
    ("target", "source", "is_blind"),
    [
        (0.3, -0.3, False),
        (0.3, 0.1, False),  # biased, but it sees the change
        (-0.3, 0.3, True),  # the wrong sign
        (0.3, 0.3, True),  # both nearer to the target's prompt: doing nothing would succeed
        (0.3, 0.5, True),
        (-0.1, -0.5, True),  # it sees the change, but a perfect edit would not succeed
    ],
)
def test_a_judge_sees_where_the_true_change_is_a_success(target, source, is_blind):
    a, b = noise(4)
    found = ceiling(*planted(a + target, b + source))
    assert found.is_blind is is_blind


def test_few_pairs_say_nothing_of_the_judge():
    for n in (1, 2, MIN_DECISIVE - 1, MIN_DECISIVE):
        a, b = noise(5, n=n)
        found = ceiling(*planted(a - 1, b + 1))
        assert found.is_blind is (n >= MIN_DECISIVE)
    alone = ceiling(*planted([[0.2]], [[0.1]]))
    assert math.isnan(alone.ci_low)
    plain = alone.to_dict()
    assert list(plain) == [field.name for field in fields(Ceiling)]
    assert plain["ci_low"] is plain["change_high"] is None
    assert plain["mean"] == 0.2
    json.dumps(plain, allow_nan=False)


def test_a_share_is_of_a_ceiling_above_zero():
    found = ceiling(*planted(*(margins + 0.2 for margins in noise(6, spread=0.01))))
    assert share(found.mean, found) == 1
    assert share(-found.mean / 2, found) == -0.5
    assert share(math.nan, found) is None
    assert share(0.1, replace(found, mean=0.0)) is None
    assert share(0.1, replace(found, mean=-0.2)) is None


# --- the shipped file


def test_the_embedded_judge_sees_every_category(shipped_truth, shipped_pairs, judge_source):
    assert default_path() == command.OUTPUT
    assert shipped_truth.judge == judge_source.fingerprint
    assert len(shipped_truth.pairs) == len(shipped_pairs)
    for category in categories(shipped_pairs):
        found = ceiling(shipped_truth, [p for p in shipped_pairs if p.category == category])
        assert not found.is_blind
        assert found.n == 50
        assert found.auc > 0.98
        assert found.floor < 0 < found.mean < found.change


def test_the_shipped_file_is_what_the_command_writes(shipped_truth, shipped_pairs, judge):
    text = command.OUTPUT.read_text("utf-8")
    assert command.as_json(json.loads(text)) == text
    few = [pair for pair in shipped_pairs if pair.id.endswith(("-07", "-31"))]
    assert len(few) == 16
    # Other ids, another order, other company: the same drawings, the same margins.
    renamed = [replace(pair, id=f"mine-{i}") for i, pair in enumerate(reversed(few))]
    measured = command.measure(renamed, judge)
    assert measured["judge"] == shipped_truth.judge
    for key, record in measured["pairs"].items():
        target, source = shipped_truth.pairs[key]
        assert record["target"] == pytest.approx(target, abs=1e-5)
        assert record["source"] == pytest.approx(source, abs=1e-5)


def test_there_may_be_no_shipped_file(monkeypatch):
    def missing(name):
        raise ModelError(name)

    monkeypatch.setattr(ceiling_module, "shipped", missing)
    assert default_path() is None


# --- the command


@pytest.fixture
def few_csv(shipped_pairs, tmp_path):
    """Six pairs of one category in a file."""
    lines = command.PAIRS.read_text("utf-8").splitlines()[:7]
    path = tmp_path / "few.csv"
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_the_command_writes_the_same_file_twice_and_prints_the_table(
    few_csv, tmp_path, capsys, monkeypatch, judge
):
    monkeypatch.setattr(command, "Judge", lambda source, device: judge)
    for name in ("a.json", "b.json"):
        path = tmp_path / "new" / name
        command.main(["--pairs", str(few_csv), "--renders", "2", "-o", str(path)])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == str(path)
        assert lines[2].split()[:3] == ["category", "n", "ceiling"]
        [row] = lines[3:]
        pairs = load_pairs(few_csv)
        found = ceiling(load(path), pairs)
        assert row.split()[:3] == ["color", "6", f"{found.mean:.4f}"]
        assert row.endswith("sees")
        assert f"[{found.change_low:.4f}, {found.change_high:.4f}]" in row
    files = sorted((tmp_path / "new").iterdir())
    assert [file.name for file in files] == ["a.json", "b.json"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads(files[0].read_text())["renders"] == 2


def test_only_the_defaults_write_the_shipped_file(few_csv, tmp_path, monkeypatch, capsys):
    output = tmp_path / "shipped.json"
    monkeypatch.setattr(command, "OUTPUT", output)
    for options in (["--renders", "2"], ["--pairs", str(few_csv)], ["--clip-model", "ViT-B-32"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(options)
        assert "-o FILE: expected one" in capsys.readouterr().err
    assert not output.exists()
    monkeypatch.setattr(command, "PAIRS", few_csv)
    command.main([])
    assert len(load(output).pairs) == 6


@pytest.mark.parametrize(
    ("noun", "options", "message"),
    [
        (
            "shark",
            [],
            r"pair color-2: caption 'a red shark': expected .*, got 'shark'; the rendered",
        ),
        ("fish", ["--pairs", "none.csv"], r"none\.csv: .*[Nn]o such file"),
        ("fish", ["--clip-model", "nonsense"], r"--clip-model 'nonsense': expected"),
        ("fish", ["--renders", "0"], r"--renders: expected an integer >= 1, got 0"),
    ],
)
def test_the_command_says_what_it_cannot_use(
    few_csv, tmp_path, capsys, monkeypatch, judge, noun, options, message
):
    monkeypatch.setattr(command, "Judge", lambda source, device: judge)
    rows = [
        f"color-{i},color,red,blue,a red {word},a blue {word}"
        for i, word in enumerate(("car", "hat", noun, "boat", "cup", "star"))
    ]
    few_csv.write_text("\n".join([few_csv.read_text("utf-8").splitlines()[0], *rows]), "utf-8")
    output = tmp_path / "other.json"
    with pytest.raises(SystemExit, match="2"):
        command.main(["--pairs", str(few_csv), "-o", str(output), *options])
    assert re.search(rf"python -m analogy\.world\.ceiling: .*{message}", capsys.readouterr().err)
    assert not output.exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "truth.json"
    path.write_text("old")
    record = {"id": "x", "category": "color", "target": [math.nan], "source": [0.0]}
    data = {"schema_version": 1, "judge": "j", "renders": 1, "pairs": {"0" * 32: record}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        command.write(data, path)
    record["target"] = [0.5]
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            command.write(data, path)
    assert path.read_text() == "old"
    command.write(data, path)
    assert load(path).pairs == {"0" * 32: ((0.5,), (0.0,))}


# --- what is refused


def whole() -> dict:
    """A file in small."""
    record = {"id": "a", "category": "color", "target": [0.2, 1], "source": [-0.1, -2]}
    return {"schema_version": 1, "judge": "j", "renders": 2, "pairs": {"0a" * 16: record}}


def changed_record(**changes) -> dict:
    data = whole()
    data["pairs"]["0a" * 16].update(changes)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"an object at the top, got \[\]"),
        ({**whole(), "schema_version": 2}, "schema version 1, got 2"),
        ({**whole(), "schema_version": True}, "schema version 1, got True"),
        ({**whole(), "schema_version": "1"}, "schema version 1, got '1'"),
        *[
            ({k: v for k, v in whole().items() if k != name}, f"expected the key '{name}'")
            for name in whole()
        ],
        ({**whole(), "judge": ""}, "the judge's fingerprint, a string, got ''"),
        ({**whole(), "judge": None}, "the judge's fingerprint, a string, got None"),
        ({**whole(), "renders": 0}, "renders, an integer >= 1, got 0"),
        ({**whole(), "renders": 2.0}, r"renders, an integer >= 1, got 2\.0"),
        ({**whole(), "renders": 3}, "to have 3 margins"),
        ({**whole(), "pairs": []}, r"pairs, an object by digest, got \[\]"),
        ({**whole(), "pairs": {"x": {}}}, "a pair's digest, 32 hex digits, got 'x'"),
        ({**whole(), "pairs": {"0A" * 16: {}}}, "a pair's digest, 32 hex digits"),
        ({**whole(), "pairs": {"0a" * 16: 3}}, r"pair 0a\w+ to be an object, got 3"),
        (changed_record(id=None), "to have a text 'id', got None"),
        (changed_record(category=""), "to have a text 'category', got ''"),
        (changed_record(target=None), "2 margins in -2..2 as 'target', got None"),
        (changed_record(source="ab"), "2 margins in -2..2 as 'source', got 'ab'"),
        (changed_record(source=[0.1]), r"2 margins in -2..2 as 'source', got \[0.1\]"),
        (changed_record(source=[0.1, True]), "2 margins in -2..2 as 'source'"),
        (changed_record(source=[0.1, None]), "2 margins in -2..2 as 'source'"),
        (changed_record(source=[0.1, 10**400]), "2 margins in -2..2 as 'source'"),
        (changed_record(source=[0.1, math.nan]), "NaN is no JSON"),
        (changed_record(source=[0.1, -math.inf]), "-Infinity is no JSON"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, data, message):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(whole()))
    assert load(path) == GroundTruth(path, "j", {"0a" * 16: ((0.2, 1.0), (-0.1, -2.0))})
    path.write_text(json.dumps(data))
    with pytest.raises(CeilingError, match=rf"ground truth .*{message}.*world\.ceiling -o"):
        load(path)


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b"1" * 5000, b"NaN", b'{"pairs": 1e999}']
)
def test_what_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "truth.json"
    path.write_bytes(text)
    with pytest.raises(CeilingError, match=r"expected .*, got .*analogy\.world\.ceiling -o"):
        load(path)


def test_a_missing_file_is_said(tmp_path):
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "none" / "none.json"):
        with pytest.raises(CeilingError, match=r"cannot be read .*analogy\.world\.ceiling -o"):
            load(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["id", "category", "target", "source", "0a" * 16]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip

sides = st.lists(st.floats(-3, 3) | st.integers(-3, 3), min_size=1, max_size=1) | anything

record = st.fixed_dictionaries(
    {"id": st.just("x"), "category": st.just("color"), "target": sides, "source": sides}
)

KNOWN = pair_named("car")

hostile = anything | st.fixed_dictionaries(
    {
        "schema_version": st.just(1) | anything,
        "judge": st.just("j") | anything,
        "renders": st.just(1) | anything,
        "pairs": st.dictionaries(
            st.sampled_from([digest(content(KNOWN)), "0a" * 16, "x"]), record | anything, max_size=2
        )
        | anything,
    }
)


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(hostile)
@example({**whole(), "renders": 1, "pairs": {}})
@example(
    {
        **whole(),
        "renders": 1,
        "pairs": {
            digest(content(KNOWN)): {"id": "x", "category": "y", "target": [2], "source": [2.0]}
        },
    }
)
def test_whatever_json_it_holds_there_is_no_other_error(tmp_path, data):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    try:
        truth = load(path)
    except CeilingError:
        return
    found = ceiling(truth, [KNOWN])
    if found is not None:
        json.dumps(found.to_dict(), allow_nan=False)
        share(0.1, found)
