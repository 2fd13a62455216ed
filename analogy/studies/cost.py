"""The cost of a steering method in time and memory, from the batches recorded in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from analogy.core.records import RunConfig
from analogy.results.cost import FitCost, MethodCost
from analogy.store.folder import RunFolder
from analogy.store.work_index import BatchRow


def method_cost(folder: RunFolder, config: RunConfig) -> MethodCost | None:
    """The measured cost of the configuration's method. Returns None if nothing was measured.

    Only batches count whose images are all by this method and window, or all unsteered, and only
    those of the machine that measured the method last, since times of several machines are not
    comparable. Seconds per image are the median over batches, so that a slow first batch does not
    count.
    """
    steered = folder.batches(config.method, config.window)
    unsteered = folder.batches(None)
    if steered:
        machine = steered[-1].machine
        steered, unsteered = (
            [row for row in rows if row.machine == machine] for rows in (steered, unsteered)
        )
    fit = _fit(folder, config.method)
    if not steered and fit is None:
        return None
    kinds = {row.memory for row in steered}
    peaks = [row.peak_bytes for row in steered if row.peak_bytes is not None]
    is_of_one_kind = len(kinds) == 1 and len(peaks) > 0
    return MethodCost(
        images=sum(row.images for row in steered),
        seconds=_seconds(steered),
        unsteered_seconds=_seconds(unsteered) if steered else None,
        memory=kinds.pop() if is_of_one_kind else None,
        peak_bytes=max(peaks) if is_of_one_kind else None,
        fit=fit,
    )


def _seconds(rows: Sequence[BatchRow]) -> float | None:
    """Seconds per image, the median over batches; None without batches."""
    return median(row.seconds / row.images for row in rows) if rows else None


def _fit(folder: RunFolder, method: str) -> FitCost | None:
    work = folder.fits(method)
    if not work:
        return None
    inputs: dict[str, tuple[str, ...]] = {}
    for one in work:
        inputs[one.category] = (*inputs.get(one.category, ()), one.inputs)
    return FitCost(
        seconds=sum(one.seconds for one in work),
        images=sum(one.images for one in work),
        inputs=inputs,
    )
