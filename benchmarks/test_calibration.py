"""The statistics have their stated error rates, and the judge can tell what it has to judge.

Simulations use the same functions that decide a run's verdicts, on data whose true mean is known:
coverage of the intervals, errors of the verdicts, power. They need no model. `python -m
analogy.calibration` makes the full table, docs/calibration.md; here are fewer repetitions, so every
required range is widened by three Monte-Carlo standard errors.

The judge is tested on drawings whose truth is known. If it cannot tell a pair's target from its
source, its verdicts on a method mean nothing, and the verdict of the cells is `blind`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from analogy.calibration import (
    COVERAGE_BAR,
    ERROR_BAR,
    SKEWED_BAR,
    Bar,
    Share,
    coverage,
    family_wise_error,
    power,
    type_one_error,
)
from analogy.sessions.session import Session
from analogy.statistics import power as power_module
from analogy.studies import ceiling as ceilings
from analogy.studies.ceiling import GroundTruth
from analogy.world.ceiling import measure

# A library's deprecation warning must not fail a case about the judge.
pytestmark = pytest.mark.filterwarnings("default", "ignore::DeprecationWarning:diffusers.*")

ERRORS = 3.0
REPETITIONS = {10: 1_000, 20: 500, 50: 500}  # at n = 10 enough for BCa to fail
N_RESAMPLES = 500


@pytest.mark.parametrize(
    ("distribution", "n", "bar"),
    [
        ("normal", 50, COVERAGE_BAR),
        ("clustered", 50, COVERAGE_BAR),
        ("exponential", 20, SKEWED_BAR),
        ("exponential", 50, SKEWED_BAR),
        ("mirrored exponential", 10, SKEWED_BAR),
        ("lognormal", 20, SKEWED_BAR),
    ],
)
def test_intervals_and_verdicts(
    distribution: str, n: int, bar: Bar, record_property: Callable[[str, object], None]
) -> None:
    """95% intervals contain the true mean; at a true mean of 0 at most 5% of cells succeed."""
    settings = {"repetitions": REPETITIONS[n], "n_resamples": N_RESAMPLES}
    covered = coverage(distribution, n, **settings)
    errors = type_one_error(distribution, n, **settings)
    shares = {
        "coverage": (covered.held, bar),
        "success at true mean 0": (errors.success, ERROR_BAR),
        "failure at true mean 0": (errors.failure, ERROR_BAR),
    }
    record_property("width", covered.width)
    for what, (share, limit) in shares.items():
        _judge(what, share, limit, record_property)


def test_family_of_cells(record_property: Callable[[str, object], None]) -> None:
    """24 cells without an effect have a success in nearly half of runs, and after Holm in 5%."""
    figures = family_wise_error("normal", 50, repetitions=200, n_resamples=N_RESAMPLES)
    _judge("by the verdicts alone", figures.raw, Bar(0.35, 0.55), record_property)
    _judge("after Holm", figures.holm, ERROR_BAR, record_property)


def test_power(record_property: Callable[[str, object], None]) -> None:
    """The smallest detectable margin is detected as often as planned."""
    figures = power(50, repetitions=REPETITIONS[50], n_resamples=N_RESAMPLES)
    record_property("effect", figures.effect)
    _judge("success", figures.success, Bar(power_module.POWER, power_module.POWER), record_property)


@pytest.mark.measures("judge")
def test_judge(
    category: str, bench: Session, record_property: Callable[[str, object], None]
) -> None:
    """The judge tells drawings of targets from drawings of sources, with the recorded margins."""
    study = bench.study
    if study.truth is None or study.ceiling(category) is None:
        pytest.skip(
            "no ground truth for this judge and these pairs; where their prompts are captions of "
            "the rendered world, python -m analogy.world.ceiling -o FILE and --ceiling FILE give it"
        )
    pairs = [pair for pair in study.pairs if pair.category == category]
    records = measure(pairs, study.loaded_judge(), renders=1)["pairs"]
    drawn = {key: (tuple(row["target"]), tuple(row["source"])) for key, row in records.items()}
    for key, margins in drawn.items():
        recorded = [side[0] for side in study.truth.pairs[key]]
        if [side[0] for side in margins] != pytest.approx(recorded, abs=0.01):
            pytest.fail(
                f"pair {records[key]['id']}: its drawings score other margins than "
                f"{study.truth.path} has; write it anew with python -m analogy.world.ceiling",
                pytrace=False,
            )
    found = ceilings.ceiling(GroundTruth(study.truth.path, study.judge.fingerprint, drawn), pairs)
    if found is None:
        pytest.fail(f"{category}: its drawings give no margins", pytrace=False)
    for name, value in found.to_dict().items():
        record_property(name, value)
    if found.is_blind:
        pytest.fail(
            f"{category}: the judge is blind: margin of true targets {found.mean:+.4f}, 95% CI "
            f"[{found.ci_low:+.4f}, {found.ci_high:+.4f}], of the true change {found.change:+.4f} "
            f"[{found.change_low:+.4f}, {found.change_high:+.4f}], AUC {found.auc:.3f}",
            pytrace=False,
        )


def _judge(
    what: str, share: Share, bar: Bar, record_property: Callable[[str, object], None]
) -> None:
    """Fail if a share is outside its required range, after recording it for JUnit."""
    record_property(what, share.value)
    record_property(f"{what}, Monte-Carlo error", share.error)
    if not bar.holds(share, errors=ERRORS):
        pytest.fail(
            f"{what}: {share.value:.1%} of {share.of} simulations, Monte-Carlo error "
            f"{share.error:.1%}; expected from {bar.low:.0%} to {bar.high:.0%}, give or take "
            f"{ERRORS:g} errors",
            pytrace=False,
        )
