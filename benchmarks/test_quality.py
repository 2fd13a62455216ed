"""What steering does beside the margin: alignment, preservation, distribution; on the same grid.

Recorded in results.json and the table. A case fails only where the user sets limits (`--limits`),
and only if its whole interval is beyond them; CMMD and KID have no interval, and are compared as
they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from analogy.metrics import Lpips, SetScore
from analogy.models import EMBEDDED, ModelError
from analogy.plugin import Bench, measure
from analogy.quality import Mean, References
from analogy.records import Cell

# A library's deprecation warning is no verdict on a model.
pytestmark = pytest.mark.filterwarnings("default", "ignore::DeprecationWarning:diffusers.*")


@pytest.fixture(scope="module")
def lpips(bench: Bench, pytestconfig: pytest.Config) -> Lpips | str:
    """LPIPS's network, or the reason why there is none."""
    weights = pytestconfig.getoption("analogy_lpips_weights")
    try:
        return Lpips("alex", weights=weights, device=bench.study.config.device)
    except ModelError as error:
        if weights:
            raise
        return str(error)


@pytest.fixture(scope="module")
def references(bench: Bench, pytestconfig: pytest.Config) -> References | str:
    """The images that the grid's should be distributed like, or the reason why there are none."""
    folder, study = pytestconfig.getoption("analogy_reference"), bench.study
    if folder is not None:
        return References.of_folder(Path(folder), study.execution.judge)
    if study.config.model != EMBEDDED:
        return "name some with --reference FOLDER"
    from fixtures.ceiling import drawings
    from fixtures.world import CaptionError

    try:
        drawn = [drawings(pair, len(study.config.seeds)) for pair in study.pairs]
    except CaptionError as error:
        return f"no drawings of these pairs ({error})"
    targets = np.stack([target for twins in drawn for _, target in twins])
    return References(
        "drawings of the pairs' targets", study.execution.judge.image_features(targets)
    )


def test_quality(
    cell: Cell, bench: Bench, lpips: Lpips | str, request: pytest.FixtureRequest
) -> None:
    """The metrics of single images keep the user's limits in this cell."""
    study = bench.study
    measure(bench, study.cell_jobs(*cell), request)
    study.quality.lpips = lpips
    _judge(str(cell), study.quality.cell(cell), bench, request)


def test_distribution(
    strength: float, bench: Bench, references: References | str, request: pytest.FixtureRequest
) -> None:
    """The distances of all images at this alpha from the references keep the user's limits."""
    study = bench.study
    measure(bench, study.jobs(alpha=strength), request)
    study.quality.references = references
    if isinstance(references, str):
        pytest.skip(f"nothing to compare with: {references}")
    _judge(f"alpha {strength:g}", study.quality.alpha(strength), bench, request)


def _judge(
    what: str, found: Mapping[str, Mean | SetScore], bench: Bench, request: pytest.FixtureRequest
) -> None:
    """Fail where a limit is broken, after putting the figures where JUnit's reader finds them."""
    if not found or not all(figures.n for figures in found.values()):
        pytest.skip(f"{what}: images are missing")
    record_property = request.getfixturevalue("record_property")
    broken = []
    for name, figures in found.items():
        value, low, high = _interval(figures)
        record_property(name, value)
        if low < high:
            record_property(f"{name}_ci_low", low)
            record_property(f"{name}_ci_high", high)
        broken += [
            f"{name} {value:.4g} [{low:.4g}, {high:.4g}], limit {limit}"
            for limit in bench.limits
            if limit.metric == name and limit.is_broken(low, high)
        ]
    if broken:
        pytest.fail(f"{what}: {'; '.join(broken)}", pytrace=False)


def _interval(figures: Mean | SetScore) -> tuple[float, float, float]:
    """A value with its interval; what has none is its own."""
    if isinstance(figures, SetScore):
        return figures.value, figures.value, figures.value
    if figures.ci_low != figures.ci_low:
        return figures.mean, figures.mean, figures.mean
    return figures.mean, figures.ci_low, figures.ci_high
