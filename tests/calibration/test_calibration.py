"""The simulators: on intervals whose coverage is known, against loops, and their command."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from functools import cache, partial
from typing import get_args

import numpy as np
import pytest
import scipy.stats
from cases import ROOT

from analogy.calibration import __main__ as command
from analogy.calibration import report as reports
from analogy.calibration import simulation
from analogy.calibration.__main__ import BEGIN, END, main
from analogy.calibration.report import SIZES, CalibrationFigures, measure, tables
from analogy.calibration.simulation import (
    COVERAGE_BAR,
    DISTRIBUTIONS,
    ERROR_BAR,
    SKEWED_BAR,
    Bar,
    Coverage,
    FamilyWiseError,
    Power,
    Share,
    TypeOneError,
    coverage,
    coverage_of,
    family_wise_error,
    power,
    type_one_error,
)
from analogy.core.records import Verdict
from analogy.statistics import bootstrap, estimates, multiplicity, tests
from analogy.statistics import values as values_module

DOCUMENT = ROOT / "docs" / "calibration.md"


@cache
def t_quantile(n):
    return float(scipy.stats.t.ppf(0.975, n - 1))


def t_interval(values, seed=0, scale=1.0):
    """Student's interval, of exactly 95% coverage on normal data; its width times `scale`."""
    values = np.asarray(values).mean(axis=-1) if np.ndim(values) == 2 else np.asarray(values)
    n = len(values)
    half = scale * t_quantile(n) * values.std(ddof=1) / math.sqrt(n)
    return values_module.Interval(values.mean() - half, values.mean() + half)


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """statsmodels collects garbage at each of its corrections: 0.2 s with torch loaded."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.fixture
def exact(monkeypatch):
    """Student's interval in the bootstrap's place: quick, and what it does is known exactly."""
    simulation._intervals.cache_clear()
    for module in (bootstrap, estimates):
        monkeypatch.setattr(module, "bootstrap_ci", lambda values, **_: t_interval(values))
        monkeypatch.setattr(module, "bootstrap_test", lambda values, **_: tests.t_test(values))
    yield
    simulation._intervals.cache_clear()


def is_near(share, truth, errors=4.0):
    return abs(share.value - truth) <= errors * math.sqrt(truth * (1 - truth) / share.of)


# Shares and bars


def test_error_of_a_share_is_the_binomials_standard_error():
    rng = np.random.default_rng(0)
    shares = rng.binomial(500, 0.3, size=20_000) / 500
    assert Share(150, 500).error == pytest.approx(shares.std(), rel=0.02)


@pytest.mark.parametrize("hits", [0, 100])
def test_error_of_none_and_of_all_is_not_zero(hits):
    assert 0.01 < Share(hits, 100).error < 0.02


def test_a_bar_is_widened_by_so_many_errors():
    bar, share = Bar(0.94, 0.96), Share(930, 1000)  # one error is 0.0081
    assert [bar.holds(share, errors=k) for k in (0, 1, 2)] == [False, False, True]
    assert bar.holds(Share(940, 1000))
    assert not bar.holds(Share(961, 1000))


# The data


@pytest.mark.parametrize(
    ("name", "skewness"),
    [
        ("normal", 0),
        ("clustered", 0),
        ("exponential", 2),
        ("mirrored exponential", -2),
        # Closed form (Johnson, Kotz and Balakrishnan 1994, section 14.4).
        ("lognormal", (math.exp(0.25) + 2) * math.sqrt(math.exp(0.25) - 1)),
    ],
)
def test_moments(name, skewness):
    means = DISTRIBUTIONS[name].draw(np.random.default_rng(0), (400, 1000)).mean(axis=2).ravel()
    assert means.mean() == pytest.approx(0, abs=4 * DISTRIBUTIONS[name].sd / math.sqrt(means.size))
    assert means.std() == pytest.approx(DISTRIBUTIONS[name].sd, rel=0.01)
    assert scipy.stats.skew(means) == pytest.approx(skewness, abs=0.1)


def test_heavy_tails_are_students_t():
    # Its fourth moment is infinite, so that no moment of a sample tells much.
    values = DISTRIBUTIONS["Student t(3)"].draw(np.random.default_rng(0), (100, 100)).ravel()
    assert scipy.stats.kstest(values, scipy.stats.t(3).cdf).pvalue > 0.01
    assert DISTRIBUTIONS["Student t(3)"].sd == pytest.approx(scipy.stats.t(3).std())


def test_items_of_a_pair_are_correlated():
    items = DISTRIBUTIONS["clustered"].draw(np.random.default_rng(0), (100, 1000)).reshape(-1, 3)
    expected = np.full((3, 3), 0.5) + 0.5 * np.eye(3)
    assert np.cov(items.T) == pytest.approx(expected, abs=0.02)


# Coverage


@pytest.mark.parametrize("name", ["normal", "clustered"])
@pytest.mark.parametrize("n", [10, 50])
def test_students_interval_covers_95_percent(name, n):
    figures = coverage_of(t_interval, name, n, repetitions=4000)
    assert is_near(figures.held, 0.95)
    assert is_near(figures.below, 0.025)
    assert is_near(figures.above, 0.025)


def test_an_interval_of_half_the_width_is_found_out():
    figures = coverage_of(partial(t_interval, scale=0.5), "normal", 50, repetitions=1000)
    assert is_near(figures.held, 2 * scipy.stats.t.cdf(t_quantile(50) / 2, 49) - 1)
    assert not COVERAGE_BAR.holds(figures.held, errors=3)


def test_students_interval_is_found_out_on_skewed_data():
    """It covers about 90%: what the skewed data and their bar are there to tell."""
    figures = coverage_of(t_interval, "exponential", 10, repetitions=2000)
    assert not SKEWED_BAR.holds(figures.held)
    assert figures.below.hits > 4 * figures.above.hits


def test_misses_have_their_side():
    below = coverage_of(lambda table, seed: (-2.0, -1.0), "normal", 10, repetitions=7)
    above = coverage_of(lambda table, seed: (1.0, 2.0), "normal", 10, repetitions=7)
    assert (below.below, below.above, below.held) == (Share(7, 7), Share(0, 7), Share(0, 7))
    assert (above.below, above.above, above.held) == (Share(0, 7), Share(7, 7), Share(0, 7))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_width_is_in_units_of_the_normal_theorys(name):
    half = 1.959964 * DISTRIBUTIONS[name].sd / math.sqrt(20)
    figures = coverage_of(lambda table, seed: (-half, 2 * half), name, 20, repetitions=3)
    assert figures.width == pytest.approx(1.5)


@pytest.mark.parametrize("method", ["studentized", "BCa", "percentile"])
def test_coverage_is_of_the_suites_interval(method):
    samples, seeds = simulation._samples("exponential", 10, 40, seed=3)
    held = 0
    for items, seed in zip(samples[:, :, 0], seeds, strict=True):
        low, high = bootstrap.bootstrap_ci(items, n_resamples=200, seed=seed, method=method)
        held += low <= 0 <= high
    figures = coverage("exponential", 10, repetitions=40, n_resamples=200, method=method, seed=3)
    assert figures.held == Share(held, 40)
    assert figures.method == method


def test_items_taken_for_independent_cover_too_little(exact):
    """Normal theory: 3 items, correlation 0.5, so the standard error is sqrt(2) times as large."""
    naive = coverage("clustered", 200, repetitions=300, method="items")
    by_pair = coverage("clustered", 200, repetitions=300)
    assert is_near(naive.held, 2 * scipy.stats.norm.cdf(1.959964 / math.sqrt(2)) - 1)
    assert is_near(by_pair.held, 0.95)
    assert naive.width == pytest.approx(by_pair.width / math.sqrt(2), rel=0.01)


# Errors of verdicts


@pytest.mark.parametrize("name", ["exponential", "mirrored exponential"])
def test_verdicts_are_the_suites(name):
    samples, seeds = simulation._samples(name, 8, 40, seed=0)
    verdicts = [
        estimates.estimate(items, n_resamples=100, seed=seed).verdict
        for items, seed in zip(samples[:, :, 0], seeds, strict=True)
    ]
    figures = type_one_error(name, 8, repetitions=40, n_resamples=100)
    assert figures.success == Share(verdicts.count(Verdict.SUCCESS), 40)
    assert figures.failure == Share(verdicts.count(Verdict.FAILURE), 40)
    assert figures.success.hits + figures.failure.hits > 0


def test_families_are_judged_by_the_suites_verdicts_and_holm(monkeypatch):
    monkeypatch.setattr(simulation, "FAR_RESAMPLES", 1000)
    samples, seeds = simulation._samples("mirrored exponential", 8, 60, seed=9)
    cells = [
        estimates.estimate(items, n_resamples=1000, seed=seed)
        for items, seed in zip(samples[:, :, 0], seeds, strict=True)
    ]
    raw = holm = 0
    for family in (cells[i : i + 6] for i in range(0, 60, 6)):
        adjusted = multiplicity.holm([max(cell.p, cell.p_bootstrap) for cell in family])
        successes = np.array([cell.verdict is Verdict.SUCCESS for cell in family])
        raw += successes.any()
        holm += (successes & (adjusted < 0.05)).any()
    figures = family_wise_error(
        "mirrored exponential", 8, cells=6, repetitions=10, n_resamples=1000, seed=9
    )
    assert (figures.raw, figures.holm) == (Share(raw, 10), Share(holm, 10))
    assert 0 < holm < raw


def test_type_one_error_of_students_interval(exact):
    figures = type_one_error("normal", 10, repetitions=3000)
    assert is_near(figures.success, 0.025)
    assert is_near(figures.failure, 0.025)


def test_family_wise_error_of_students_interval(exact):
    """A success is a t above its 97.5% quantile; after Holm, above that of 1 - 0.05 / 24."""
    figures = family_wise_error("normal", 10, repetitions=400)
    assert figures.cells == 24
    assert is_near(figures.raw, 1 - 0.975**24)
    assert is_near(figures.holm, 1 - (1 - 0.05 / 24) ** 24)


def test_a_family_of_one_is_a_cell(exact):
    single = family_wise_error("normal", 10, cells=1, repetitions=500, seed=4)
    assert (
        single.raw == single.holm == type_one_error("normal", 10, repetitions=500, seed=4).success
    )


def test_students_test_is_found_out_in_families_of_skewed_cells(exact):
    figures = family_wise_error("mirrored exponential", 10, repetitions=50)
    assert not ERROR_BAR.holds(figures.holm, errors=3)


@pytest.mark.parametrize(("n", "effect"), [(10, None), (50, None), (50, 0.2)])
def test_power_is_the_t_tests(exact, n, effect):
    figures = power(n, effect=effect, repetitions=300)
    truth = scipy.stats.nct.sf(t_quantile(n), n - 1, figures.effect * math.sqrt(n))
    assert is_near(figures.success, truth)
    if effect is None:
        assert truth == pytest.approx(0.8, abs=1e-6)


def test_an_effect_is_in_standard_deviations(exact):
    assert is_near(power(200, distribution="clustered", repetitions=300).success, 0.8)


# All of them


@pytest.mark.parametrize(
    "simulate",
    [
        partial(coverage, "normal", 10),
        partial(type_one_error, "mirrored exponential", 6),
        partial(family_wise_error, "mirrored exponential", 6, cells=3),
        partial(power, 10),
    ],
)
def test_the_seed_decides(simulate):
    settings = {"repetitions": 30, "n_resamples": 100}
    first = simulate(**settings, seed=1)
    simulation._intervals.cache_clear()
    assert simulate(**settings, seed=1) == first
    assert any(simulate(**settings, seed=seed) != first for seed in (2, 3))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("exponental", 10), {}, r"distribution: .* did you mean 'exponential'\?"),
        (("normal", 5), {}, "n: expected at least 6, got 5"),
        (("normal", 10), {"repetitions": 0}, "repetitions: expected at least 1, got 0"),
        (("normal", 10), {"method": "bca"}, "method: expected one of .*items, got 'bca'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        coverage(*arguments, **settings)


# The command


@pytest.fixture
def report(monkeypatch):
    """Figures of 50 pairs that hold every bar, planted."""
    monkeypatch.setattr(reports, "SIZES", (50,))
    good, few = Share(3800, 4000), Share(80, 4000)
    cases = [(name, 50, method) for name in DISTRIBUTIONS for method in get_args(bootstrap.Method)]
    covered = [Coverage(*case, good, few, Share(120, 4000), 1.25) for case in cases]
    return CalibrationFigures(
        coverages=covered,
        type_one_errors=[TypeOneError(*case, few, few) for case in cases],
        items=[Coverage("clustered", 50, "items", Share(3320, 4000), few, few, 0.71)],
        families=[FamilyWiseError("normal", 50, 24, Share(900, 2000), Share(90, 2000))],
        powers=[Power("normal", 50, 0.404, Share(1640, 2000))],
        more_resamples=covered[:2],
    )


def row(text, start):
    """The cells of the one line of a table that starts so."""
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_have_every_figure(report):
    covered, verdicts, items, families, powers, more = tables(report).split("### ")[1:]
    for name in DISTRIBUTIONS:
        mark = "" if name == "Student t(3)" else " ✓"
        own = [f"95.0 ± 0.3{mark}", "2.0 / 3.0", "1.25"]
        contrast = [f"95.0 ± 0.3{mark}", "1.25"]
        assert row(covered, f"| {name} |") == [name, "50", *own, *contrast, *contrast]
        assert row(verdicts, f"| {name} |") == [name, "50", *["2.0 ± 0.2 ✓"] * 6]
    assert row(items, "| 50 |") == ["50", "95.0 ± 0.3", "1.25", "83.0 ± 0.6", "0.71"]
    assert row(families, "| normal |") == ["normal", "50", "45.0 ± 1.1", "4.5 ± 0.5 ✓"]
    assert row(powers, "| 50 |") == ["50", "0.404", "80.0", "82.0 ± 0.9"]
    assert "normal, 50 pairs: 95.0 ± 0.3 with the resamples above, 95.0 with 10,000" in more


@pytest.mark.parametrize(("hits", "mark"), [(3800, "✓"), (3740, "≈"), (3700, "✗"), (3880, "✗")])
def test_a_missed_bar_is_marked(report, hits, mark):
    """Of 4,000: 95%, 93.5% (one and a half errors below the bar), 92.5% and 97%."""
    planted = [
        replace(figures, held=Share(hits, 4000)) if figures.distribution == "normal" else figures
        for figures in report.coverages
    ]
    text = tables(report._replace(coverages=planted)).split("###")[1]
    assert row(text, "| normal | 50 |")[2].endswith(f" {mark}")


def test_everything_is_measured(exact, monkeypatch):
    monkeypatch.setattr(reports, "SIZES", (6, 10))
    monkeypatch.setattr(reports, "FAMILY_SIZES", (6,))
    report = measure(repetitions=40, n_resamples=100, seed=2, workers=1)
    settings = {"n_resamples": 100, "seed": 2}
    for method, of in (("studentized", 40), ("BCa", 10), ("percentile", 10)):
        for case in ((name, n) for name in DISTRIBUTIONS for n in (6, 10)):
            given = {"method": method, "repetitions": of, **settings}
            assert coverage(*case, **given) in report.coverages
            assert type_one_error(*case, **given) in report.type_one_errors
    assert [figures.n for figures in report.items] == [6, 10]
    assert report.items[0] == coverage("clustered", 6, method="items", repetitions=10, **settings)
    assert report.powers == [power(n, repetitions=20, **settings) for n in (6, 10)]
    assert [figures.distribution for figures in report.families] == list(reports.FAMILIES)
    assert report.families[0] == family_wise_error("normal", 6, repetitions=20, **settings)
    assert len(report.more_resamples) == 4


@pytest.mark.slow
def test_another_process_changes_nothing():
    jobs = [partial(type_one_error, "normal", 6, repetitions=10, n_resamples=100)]
    assert reports._run(jobs, workers=2) == reports._run(jobs, workers=1)


def test_the_command_replaces_the_tables_and_nothing_else(report, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "measure", lambda **settings: report)
    document = tmp_path / "calibration.md"
    document.write_text(f"# Title\n\nbefore\n{BEGIN}\n12 stale figures\n{END}\nafter ±\n", "utf-8")
    main(["--repetitions", "100", "-o", str(document)])
    text = document.read_text("utf-8")
    assert text.startswith(f"# Title\n\nbefore\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter ±\n")
    assert tables(report) in text
    assert "--repetitions 100 --resamples 1000 --seed 0" in text
    assert "stale" not in text


def test_the_command_prints_without_a_document(report, monkeypatch, capsys):
    monkeypatch.setattr(command, "measure", lambda **settings: report)
    main([])
    assert tables(report) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repetitions", "99"], "--repetitions: expected an integer >= 100, got '99'"),
        (["--resamples", "1e4"], "--resamples: expected an integer >= 100, got '1e4'"),
        (["--workers", "0"], "--workers: expected an integer >= 1, got '0'"),
        (["--seed", "-1"], "--seed: expected an integer >= 0, got '-1'"),
        (["-o", "nowhere/at-all.md"], "-o: expected a document that can be read"),
        (["-o", __file__], f"-o: expected the lines {BEGIN} and {END}"),
    ],
)
def test_the_command_refuses_before_it_works(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(command, "measure", lambda **settings: pytest.fail("it worked"))
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_committed_tables_are_of_what_is_simulated_now():
    sections = DOCUMENT.read_text("utf-8").partition(BEGIN)[2].split("###")
    for name in DISTRIBUTIONS:
        for n in SIZES:
            assert len(row(sections[1], f"| {name} | {n} |")) == 9
            assert len(row(sections[2], f"| {name} | {n} |")) == 8
    for name in reports.FAMILIES:
        for n in reports.FAMILY_SIZES:
            assert len(row(sections[4], f"| {name} | {n} |")) == 4
