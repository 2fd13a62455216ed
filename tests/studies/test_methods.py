"""Methods compared: paired figures against scipy's, one family, and one folder for all of them."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests
from typer.testing import CliRunner

from analogy import cli
from analogy.core.errors import OptionError
from analogy.core.records import Verdict
from analogy.report.text_methods import method_tables
from analogy.settings import options
from analogy.settings.options import parse_methods, parse_options
from analogy.statistics.bootstrap import bootstrap_ci, bootstrap_test
from analogy.studies.method_comparison import (
    MethodComparison,
    compare_methods,
    compared,
)
from analogy.studies.run_methods import open_methods, run_methods

ALPHAS = (0.0, 0.5, 1.0)


def table(pairs, *, shift=0.0, sd=0.05, seed=0, alphas=ALPHAS):
    """Items of a method: the pairs' own margins, which all methods share, and noise."""
    own = np.random.default_rng(99).normal(0, 0.2, (len(pairs), 1))
    noise = np.random.default_rng(seed).normal(shift, sd, (len(pairs), len(alphas)))
    return pd.DataFrame(own + noise, index=[pair.id for pair in pairs], columns=alphas)


@pytest.fixture
def tables(pairs):
    """Three methods: the first two alike, the third far above."""
    return {
        "lerp": table(pairs, seed=1),
        "slerp": table(pairs, seed=2),
        "word": table(pairs, shift=0.3, seed=3),
    }


def steered(frame):
    return frame[[0.5, 1.0]].mean(axis=1)


def by_two(differences):
    return {frozenset((d.first, d.second)): d for d in differences}


def open_values(tmp_path, **given):
    raw = {option.name: option.default for option in options.OPTIONS}
    raw |= {"analogy_run_dir": str(tmp_path / "run")}
    raw |= {f"analogy_{name}": text for name, text in given.items()}
    return parse_options(raw.__getitem__)


# --- figures


def test_differences_are_paired_as_scipys_and_adjusted_as_statsmodels(tables, pairs):
    found = compare_methods(tables, pairs)
    assert len(found.overall) == 3
    p = []
    for one in found.overall:
        first, second = steered(tables[one.first]), steered(tables[one.second])
        assert one.n == 12
        assert one.mean == pytest.approx(first.mean() - second.mean())
        assert one.p == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue)
        assert (one.ci_low, one.ci_high) == bootstrap_ci(first - second)
        away = first - second if first.mean() > second.mean() else second - first
        assert one.p_bootstrap == min(2 * bootstrap_test(away), 1.0)
        p.append(max(one.p, one.p_bootstrap))
    np.testing.assert_allclose(
        [d.p_holm for d in found.overall], multipletests(p, method="holm")[1]
    )


def test_alphas_and_categories_have_figures_of_their_own_and_no_holm(tables, pairs):
    found = compare_methods(tables, pairs)
    assert [d.alpha for d in found.alphas] == [0.5] * 3 + [1.0] * 3
    assert [d.category for d in found.categories] == ["color"] * 3 + ["object"] * 3
    for one in found.alphas:
        first, second = tables[one.first][one.alpha], tables[one.second][one.alpha]
        assert (one.n, one.category) == (12, None)
        assert one.p == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue)
    for one in found.categories:
        rows = [pair.id for pair in pairs if pair.category == one.category]
        first, second = (steered(tables[name].loc[rows]) for name in (one.first, one.second))
        assert (one.n, one.alpha) == (6, None)
        assert one.p == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue)
    assert all(np.isnan(d.p_holm) for d in (*found.alphas, *found.categories))


def test_the_ranking_goes_by_the_mean_and_names_whom_it_does_not_tell_apart(tables, pairs):
    found = compare_methods(tables, pairs)
    means = {name: steered(frame).mean() for name, frame in tables.items()}
    order = sorted(means, key=means.get, reverse=True)
    assert order[0] == "word"
    assert [one.method for one in found.ranking] == order
    assert [one.margin.mean for one in found.ranking] == pytest.approx([means[m] for m in order])
    assert [(d.first, d.second) for d in found.overall] == list(combinations(order, 2))
    assert {one.method: one.like for one in found.ranking} == {
        "word": (),
        "lerp": ("slerp",),
        "slerp": ("lerp",),
    }


def test_the_control_does_not_enter(tables, pairs):
    changed = {name: frame.assign(**{}).copy() for name, frame in tables.items()}
    changed["lerp"][0.0] = np.nan
    assert compare_methods(changed, pairs) == compare_methods(tables, pairs)


def test_pairs_that_lack_items_by_any_method_are_left_out_of_all(tables, pairs):
    tables["lerp"].loc["color-0", 0.5] = np.nan
    tables["word"].loc["object-2", 1.0] = np.nan
    found = compare_methods(tables, pairs)
    kept = [pair for pair in pairs if pair.id not in ("color-0", "object-2")]
    without = compare_methods({m: t.loc[[p.id for p in kept]] for m, t in tables.items()}, kept)
    assert (found.n, found.n_left_out) == (10, 2)
    assert found.overall == without.overall
    assert found.categories == without.categories
    assert "2 pairs lack images" in "\n".join(method_tables(found))


def test_methods_with_the_same_images_differ_by_nothing(tables, pairs):
    found = compare_methods({"lerp": tables["lerp"], "slerp": tables["lerp"]}, pairs)
    [one] = found.overall
    assert (one.mean, one.ci_low, one.ci_high) == (0.0, 0.0, 0.0)
    assert (one.p, one.p_bootstrap, one.p_holm) == (1.0, 1.0, 1.0)
    assert [ranked.method for ranked in found.ranking] == ["lerp", "slerp"]
    assert found.ranking[0].like == ("slerp",)


def test_five_pairs_tell_nothing_apart(pairs):
    few = pairs[:5]
    found = compare_methods({"a": table(few, shift=1, sd=0.01), "b": table(few, sd=0.01)}, few)
    assert found.overall[0].p < 1e-6
    assert [one.like for one in found.ranking] == [("b",), ("a",)]
    assert {one.margin.verdict for one in found.ranking} == {Verdict.TOO_FEW}
    text = "\n".join(method_tables(found))
    assert "too_few: n 5, and 6 pairs or more tell methods apart" in text
    assert "*" not in text.partition("category")[2].splitlines()[1]


def test_nothing_to_compare_is_said_as_that(tables, pairs):
    tables["lerp"][:] = np.nan
    found = compare_methods(tables, pairs)
    assert (found.n, found.n_left_out) == (0, 12)
    assert [one.method for one in found.ranking] == list(tables)
    assert all(d.n == 0 and np.isnan(d.mean) and not d.is_distinct for d in found.overall)
    assert "incomplete" in "\n".join(method_tables(found))
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("lerp") is None or t.pop("slerp"), "two or more, got word"),
        (lambda t: t.update(word=t["word"].iloc[::-1]), "word: expected a row for each"),
        (lambda t: t.update({m: f[[0.0]] for m, f in t.items()}), "a strength other than 0"),
    ],
)
def test_tables_of_different_grids_are_refused(tables, pairs, change, said):
    change(tables)
    with pytest.raises(ValueError, match=said):
        compare_methods(tables, pairs)


def test_methods_with_strengths_of_their_own_are_compared_at_the_full_one_of_each(pairs):
    own = {
        "lerp": table(pairs, seed=1),
        "activation": table(pairs, seed=2, alphas=(0.0, 1.0, 2.0, 3.0)),
        "slider": table(pairs, seed=3, alphas=(-2.0, -1.0, 0.0, 2.0)),
    }
    full = {"lerp": 1.0, "activation": 3.0, "slider": 2.0}
    found = compare_methods(own, pairs)
    assert dict(found.at) == full
    assert found.alphas == ()
    for one in found.overall:
        first, second = (own[name][full[name]] for name in (one.first, one.second))
        assert one.mean == pytest.approx(first.mean() - second.mean())
        assert one.p == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue)
    best = max(own, key=lambda name: own[name][full[name]].mean())
    assert found.ranking[0].method == best
    assert found.ranking[0].margin.mean == pytest.approx(own[best][full[best]].mean())
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["at"] == full
    text = "\n".join(method_tables(found))
    assert "compared at the full strength of each, lerp 1, activation 3, slider 2" in text
    assert "at alpha" not in text
    own["activation"][1.0] = np.nan  # a strength that is not compared
    assert compare_methods(own, pairs) == found
    same = {"lerp": own["lerp"], "slerp": own["lerp"]}
    assert compare_methods(same, pairs).at == {}


@pytest.fixture
def frozen():
    """All objects out of the collector's reach: statsmodels calls it for every family."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_three_equal_methods_are_told_apart_in_one_run_of_twenty(draw):
    """The family-wise error of all overall comparisons together, pairs' own level shared."""
    rng = np.random.default_rng(5)
    repetitions, n = 400, 24
    errors = 0
    for _ in range(repetitions):
        own = rng.normal(0, 0.2, n)
        noise = getattr(rng, "standard_exponential" if draw == "exponential" else "standard_normal")
        values = {name: own + 0.05 * noise(n) for name in ("a", "b", "c")}
        errors += any(one.is_distinct for one in compared(values, n_resamples=500))
    # Three standard errors of the simulation around 5%; dependent tests err a little less often.
    assert 0.01 < errors / repetitions < 0.05 + 3 * (0.05 * 0.95 / repetitions) ** 0.5


# --- as text and as JSON


def test_the_text_has_every_comparison_and_its_family(tables, pairs):
    found = compare_methods(tables, pairs, blind=["object"])
    text = "\n".join(method_tables(found))
    assert "all overall differences, 3 tests" in text
    for one in found.overall:
        [line] = [ln for ln in text.splitlines()
                  if ln.startswith(f"{one.first} - {one.second} ") and "[" in ln]  # fmt: skip
        assert f"{one.mean:+.4f}" in line
        assert f"[{one.ci_low:+.4f}, {one.ci_high:+.4f}]" in line
        assert line.endswith(f"{one.p_holm:.2g}")
    for one in (*found.alphas, *found.categories):
        star = "*" if one.ci_low > 0 or one.ci_high < 0 else " "
        assert f"{one.mean:+.4f}{star}" in text
    assert "does not see the true change in: object" in text


def test_json_has_every_figure(tables, pairs):
    found = compare_methods(tables, pairs)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(data) == [
        "n", "n_left_out", "family", "ranking", "overall", "alphas", "categories", "blind",
    ]  # fmt: skip
    assert [row["method"] for row in data["ranking"]] == [one.method for one in found.ranking]
    assert data["ranking"][0]["not_distinguishable"] == []
    assert data["ranking"][0]["mean"] == found.ranking[0].margin.mean
    assert {**data["overall"][0], "stop": None} == found.overall[0].to_dict()
    assert data["alphas"][0]["p_holm"] is None


# --- options


def test_methods_are_read_as_two_or_more_different_ones():
    assert parse_methods("lerp, word") == ("lerp", "word")
    for text in ("lerp", "lerp,lerp", "lerp,word,lerp", "lerp,wrd", "lerp,"):
        with pytest.raises(ValueError, match="expected"):
            parse_methods(text)


# --- a run


def test_all_methods_share_one_folder_and_one_control(tmp_path):
    values = open_values(
        tmp_path,
        categories="color,size",
        limit="2",
        seeds="0",
        alphas="1",
        steps="1",
        dtype="float32",
    )
    studies = open_methods(values, ("lerp", "slerp", "category"))
    try:
        made = []
        found = run_methods(studies, made.append)
        assert [study.config.method for study in studies] == ["lerp", "slerp", "category"]
        assert sum(made) == len(studies[0].folder.image_rows()) == 4 * (1 + 3)
        assert isinstance(found, MethodComparison)
        assert (found.n, found.n_left_out) == (4, 0)
        means = {study.config.method: study.overall().margin.mean for study in studies}
        assert {one.method: one.margin.mean for one in found.ranking} == pytest.approx(means)
        two = by_two(found.overall)
        assert two[frozenset(("lerp", "slerp"))].mean == 0.0  # both end at the target prompt
        assert two[frozenset(("lerp", "category"))].mean != 0.0
        assert len(studies[0].folder.commands()) == 3
        again = []
        assert run_methods(studies, again.append) == found
        assert again == []
    finally:
        studies[0].folder.close()


def test_the_verb_prints_the_tables_and_writes_them_as_json(tmp_path):
    grid = ["--categories", "color,size", "--limit", "3", "--seeds", "0", "--alphas", "1",
            "--steps", "1", "--dtype", "float32", "--run-dir", str(tmp_path / "run")]  # fmt: skip
    verb = ["methods", "--methods", "lerp,slerp", *grid]
    done = CliRunner().invoke(cli.app, [*verb, "--json", str(tmp_path / "m.json")])
    assert done.exit_code == 0, done.output
    assert "lerp - slerp" in done.stdout
    assert "limit     3 pairs per category" in done.stdout
    data = json.loads((tmp_path / "m.json").read_text())
    assert (data["schema_version"], data["exit_code"]) == (1, 0)
    assert data["methods"] == ["lerp", "slerp"]
    assert "method" not in data["config"]
    assert (data["n"], data["n_left_out"], len(data["overall"])) == (6, 0, 1)
    assert data["overall"][0]["mean"] == 0.0
    alone = CliRunner().invoke(cli.app, [*verb, "--json", "-"])
    assert json.loads(alone.stdout)["ranking"] == data["ranking"]


def test_each_method_has_its_own_alphas_unless_some_are_given(tmp_path):
    grid = ["--categories", "color", "--limit", "2", "--seeds", "0", "--steps", "1",
            "--dtype", "float32", "--run-dir", str(tmp_path / "run")]  # fmt: skip
    verb = ["methods", "--methods", "lerp,prompt", *grid]
    done = CliRunner().invoke(cli.app, [*verb, "--json", str(tmp_path / "m.json")])
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "m.json").read_text())
    assert data["strengths"] == {"lerp": [0.5, 0.8, 1.0], "prompt": [1.0]}
    assert data["at"] == {"lerp": 1.0, "prompt": 1.0}
    assert data["overall"][0]["mean"] == 0.0  # at alpha 1 the images are the same
    assert data["alphas"] == []
    assert "alphas    prompt: 1\n" in done.stdout
    given = CliRunner().invoke(cli.app, [*verb, "--alphas", "0.5,1", "--json", "-"])
    data = json.loads(given.stdout)
    assert "at" not in data
    assert data["config"]["alphas"] == [0.5, 1.0]
    assert [one["alpha"] for one in data["alphas"]] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--methods", "lerp"], 2, "--methods: expected two or more different ones"),
        (["--methods", "lerp,wrd"], 2, "did you mean 'word'"),
        (["--methods", "lerp,category", "--limit", "1"], 2, "category needs 2 pairs or more"),
        (["--run-dir", "file"], 4, "file"),
    ],
)
def test_the_verb_refuses_what_it_cannot_do(tmp_path, monkeypatch, given, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    done = CliRunner().invoke(cli.app, ["methods", *given])
    assert done.exit_code == code
    assert said in done.stderr
    assert done.stdout == ""


def test_the_default_folder_is_the_same_for_every_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = []
    for method in ("word", "lerp"):
        studies = open_methods(
            replace(open_values(tmp_path), run_dir=None, limit=2), (method, "random")
        )
        studies[0].folder.close()
        paths.append(studies[0].folder.path)
    assert paths[0] == paths[1]


def test_a_method_that_cannot_run_leaves_the_folder_free(tmp_path):
    values = open_values(tmp_path, categories="color", limit="1")
    for _ in range(2):  # a folder that was left open would refuse the second time
        with pytest.raises(OptionError, match="category needs 2 pairs or more"):
            open_methods(values, ("lerp", "category"))
