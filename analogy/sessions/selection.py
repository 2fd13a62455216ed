"""The cases of a run, derived from its options before anything slow is imported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from analogy.core.errors import OptionError
from analogy.core.records import Pair
from analogy.grid_metrics import chosen_metrics
from analogy.models.places import shipped
from analogy.settings.pairs import PairsError, PairsWarning, load_pairs, select
from analogy.settings.request import RunRequest

BASELINE = "baseline"
"""The name of what a case of the regression gate measures; other cases have names of metrics."""


def chosen_pairs(request: RunRequest) -> list[Pair]:
    """The pairs of a run's cases, read without warnings.

    While pytest collects tests a warning may be an error. The study reads the pairs again and then
    warns.

    Raises ``OptionError`` if the file or the selection cannot be used.
    """
    option = "--pairs"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PairsWarning)
            pairs = load_pairs(request.pairs or shipped("pairs.csv"))
        option = "--categories"
        return select(pairs, request.categories, request.limit)
    except PairsError as error:
        raise OptionError(f"{option}: {error}") from None


def bars(request: RunRequest) -> Iterator[tuple[str, frozenset[str]]]:
    """Each limit and baseline that the user gave, as its option and the names under which cases
    measure it: for a limit the metric's name and its kind (:class:`~analogy.grid_metrics.Per`).

    Raises ``OptionError`` for a metric that cannot be imported.
    """
    if request.limits:
        per = {metric.name: metric.per for metric in chosen_metrics(request.metrics)}
        for limit in request.limits:
            yield f"--limits {limit}", frozenset({limit.metric, per[limit.metric]})
    if request.gates:
        yield f"--baseline {request.baseline}", frozenset({BASELINE})
