"""Error rates of sequential decisions on simulated cells, and the command that tabulates them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from analogy.calibration import __main__ as command
from analogy.calibration import sequential as simulation
from analogy.calibration.sequential import SEQUENTIAL_DISTRIBUTIONS, Decided, decided, margins
from analogy.calibration.sequential_report import (
    SEQUENTIAL_SIZES,
    EffectFound,
    Errors,
    SequentialFigures,
    sequential_tables,
)
from analogy.calibration.simulation import Share
from analogy.core.records import Verdict
from analogy.statistics.multiplicity import holm
from analogy.statistics.sequential import Decision, Design, decide

DESIGN = Design.of(50, 3)
DOCUMENT = Path(__file__).parents[2] / "docs" / "calibration.md"


@cache
def cells(distribution="normal", effect=0.0, repetitions=200):
    return decided(distribution, 50, effect=effect, repetitions=repetitions)


@pytest.mark.parametrize("distribution", SEQUENTIAL_DISTRIBUTIONS)
def test_margins_have_the_stated_moments(distribution):
    icc = 0.5 if distribution == "clustered" else 0.8
    table = margins(np.random.default_rng(0), distribution, (400, 500, 3), icc=icc)
    assert table.mean() == pytest.approx(0, abs=0.015)
    if distribution == "Student t(3)":  # its sample variance hardly converges
        return
    assert table.std() == pytest.approx(1, rel=0.03)
    between = np.corrcoef(table[..., 0].ravel(), table[..., 1].ravel())[0, 1]
    assert between == pytest.approx(icc, abs=0.02)


def test_a_mirrored_distribution_is_the_others_negative():
    one = margins(np.random.default_rng(0), "lognormal", (3, 20, 3), icc=0.8)
    other = margins(np.random.default_rng(0), "mirrored lognormal", (3, 20, 3), icc=0.8)
    assert (one == -other).all()
    assert one.max() > -one.min()


def test_a_simulated_decision_is_the_suites():
    """Resamples drawn together change nothing."""
    rng = np.random.default_rng(0)
    tables = np.stack([rng.standard_normal((50, 3)) + effect for effect in (0, 0.5, 1, -1, 2)])
    found = simulation._decisions(tables, DESIGN, 7)
    assert found == [decide(table, DESIGN, seed=7) for table in tables]
    assert len({one.look for one in found}) > 2


def test_figures_depend_only_on_their_arguments():
    assert cells(repetitions=20).decisions == cells().decisions[:20]


def test_without_an_effect_few_cells_are_decided():
    null = cells()
    for verdict in (Verdict.SUCCESS, Verdict.FAILURE):
        share = null.share(verdict)
        assert share.value <= 0.025 + 3 * share.error
        assert abs(share.value - null.fixed_share(verdict).value) <= 0.02
    assert null.covered.value >= 0.94 - 2 * null.covered.error
    assert null.images > 145


def test_a_large_effect_takes_few_images():
    found = cells(effect=2.0, repetitions=60)
    assert found.images <= 19
    assert found.share(Verdict.SUCCESS).value == 1
    assert found.covered.value == 1
    assert found.bias(early=True) == found.bias(early=False)


def decision(p, verdict, look=3):
    return Decision(look, verdict, 50, 3, 0.954, 0.1, -1.0, 1.0, p_seq=p, is_early=look < 3)


def test_families_are_adjusted_by_holm():
    p = np.array([0.001, 0.04, 0.04, 0.03, 0.02, 0.9])
    verdicts = [Verdict.INCONCLUSIVE, *[Verdict.SUCCESS] * 5]
    of = Decided(
        "normal", 50, 0.0, 0.0, tuple(map(decision, p.tolist(), verdicts)), tuple(verdicts), p
    )
    expected = sum(
        any(v is Verdict.SUCCESS and a < 0.05 for v, a in zip(some, holm(q), strict=True))
        for some, q in ((verdicts[:3], p[:3].tolist()), (verdicts[3:], p[3:].tolist()))
    )
    assert of.family(cells=3) == Share(expected, 2)
    assert of.family(cells=3, fixed=True) == Share(expected, 2)


def test_a_bias_is_the_means_less_the_truth():
    two = (decision(0.001, Verdict.SUCCESS, look=0), decision(0.5, Verdict.INCONCLUSIVE))
    of = Decided("normal", 50, 0.5, 0.05, two, (Verdict.SUCCESS,) * 2, np.array([0.1, 0.2]))
    assert of.bias(early=True) == pytest.approx(0.05)
    assert of.covered == Share(2, 2)
    assert np.isnan(Decided("normal", 50, 0, 0, two[1:], (), np.array([])).bias(early=True))


def figures():
    share = Share(60, 2_000)
    null = Errors(
        "normal", 50, share, share, Share(70, 2_000), share, Share(4, 80), share, share, 149.5
    )
    return SequentialFigures(
        [null], [EffectFound(0.4, 0.8, share, share, 118.3, Share(1_900, 2_000), 0.02, 0.2)]
    )


def test_tables_mark_what_has_a_bar():
    text = sequential_tables(figures())
    assert "| normal | 50 | 3.0 ± 0.4 ✓ | 3.0 | +0.0 ✓ | 3.5 ± 0.4 ≈ | 3.0 | +0.5 ✓ |" in text
    assert "| 0.4 | 0.8 | 3.0 ± 0.4 | 3.0 | 118.3 | 95.0 ± 0.5 ✓ | +0.02 | +0.20 |" in text


def test_the_command_writes_between_its_own_lines(tmp_path, monkeypatch):
    asked = {}

    def measured(**given):
        asked.update(given)
        return figures()

    monkeypatch.setattr(command, "measure_sequential", measured)
    document = tmp_path / "calibration.md"
    begin, end = command.SEQUENTIAL_BEGIN, command.SEQUENTIAL_END
    document.write_text(f"{command.BEGIN}\nold\n{command.END}\n{begin}\nold\n{end}\nafter\n")
    command.main(["--sequential", "--repetitions", "100", "--seed", "3", "-o", str(document)])
    text = document.read_text("utf-8")
    assert asked == {"repetitions": 100, "seed": 3, "workers": 2}
    assert text.startswith(f"{command.BEGIN}\nold\n{command.END}\n{begin}\n\n`python -m")
    assert "--sequential --repetitions 100 --seed 3" in text
    assert sequential_tables(figures()) in text
    assert text.endswith(f"{end}\nafter\n")


def test_the_committed_figures_hold_their_bars():
    text = DOCUMENT.read_text("utf-8").partition(command.SEQUENTIAL_BEGIN)[2]
    errors, families, effects = text.partition(command.SEQUENTIAL_END)[0].split("###")[1:]
    for name in SEQUENTIAL_DISTRIBUTIONS:
        for n in SEQUENTIAL_SIZES:
            assert f"| {name} | {n} |" in errors
            assert f"| {name} | {n} |" in families
    assert "✗" not in text
    rows = [line.split("|")[1:-1] for line in effects.splitlines() if line.startswith("| ")]
    found = {(row[0].strip(), row[1].strip()): row for row in rows}
    weak, strong, strongest = (found[effect, "0.8"] for effect in ("0.4", "1", "2"))
    assert float(weak[2].split("±")[0]) >= float(weak[3]) - 2.5
    assert float(strong[4]) <= 32
    assert float(strongest[4]) <= 19


@pytest.mark.slow
@pytest.mark.parametrize(("distribution", "bar"), [("normal", 0.032), ("lognormal", 0.05)])
def test_wrong_verdicts(distribution, bar):
    null = cells(distribution, repetitions=1_000)
    for verdict in (Verdict.SUCCESS, Verdict.FAILURE):
        share, fixed = null.share(verdict), null.fixed_share(verdict)
        assert share.value <= bar + 2 * share.error
        assert abs(share.value - fixed.value) <= 0.01


@pytest.mark.slow
def test_power_and_coverage():
    weak, strong = (cells(effect=d, repetitions=400) for d in (0.4, 1.0))
    found, fixed = weak.share(Verdict.SUCCESS), weak.fixed_share(Verdict.SUCCESS)
    assert found.value >= fixed.value - 0.025
    assert strong.images <= 32
    for one in (weak, strong):
        assert one.covered.value >= 0.94 - 2 * one.covered.error
