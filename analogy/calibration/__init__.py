"""Do intervals and tests have their stated error rates? Simulations with a known true mean.

    python -m analogy.calibration -o docs/calibration.md
    python -m analogy.calibration --sequential -o docs/calibration.md

:mod:`~analogy.calibration.simulation` computes a single figure; :mod:`~analogy.calibration.report`
computes all figures of the document and writes their tables.
:mod:`~analogy.calibration.sequential` and :mod:`~analogy.calibration.sequential_report` do the same
for sequential decisions.
"""

from analogy.calibration.simulation import (
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

__all__ = [
    "COVERAGE_BAR",
    "ERROR_BAR",
    "SKEWED_BAR",
    "Bar",
    "Share",
    "coverage",
    "family_wise_error",
    "power",
    "type_one_error",
]
