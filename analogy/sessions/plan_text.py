"""A plan as lines of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from analogy.report.numbers import counted, duration, number, size
from analogy.sessions.plan import Plan
from analogy.statistics.designs import MIN_PAIRS


def plan_lines(plan: Plan) -> Iterator[str]:
    """The table of a plan."""
    there = plan.images - plan.missing
    yield (
        f"images    {plan.images:,}: {there:,} already there, {plan.missing:,} to make, "
        f"{plan.unscored:,} to score"
    )
    if plan.first_look is not None:
        yield (
            f"          --sequential: {plan.first_look:,} for the first looks, and further ones "
            "only"
        )
        yield "          for cells that these leave open (docs/sequential.md)"
    yield from _time(plan)
    if plan.memory_bytes is not None:
        what = "at most" if plan.is_peak else "of weights, and the work beside them"
        yield f"memory    {size(plan.memory_bytes)} {what}{_free(plan.memory_free)}"
    if plan.folder is not None:
        more = "unknown" if plan.disk_bytes is None else f"{size(plan.disk_bytes)} of images"
        yield f"disk      {more}{_free(plan.disk_free)}"
        yield f"run       {plan.folder}"
    yield from _downloads(plan)
    yield from _designs(plan)


def _free(n: int | None) -> str:
    return "" if n is None else f"; {size(n)} free"


def _time(plan: Plan) -> Iterator[str]:
    rates, seconds = plan.rates, plan.seconds
    if seconds is None:
        yield "time      unknown: not measured, and this machine has no earlier run to go by"
        return
    if rates is None:
        yield "time      none: nothing is left to do"
        return
    yield (
        f"time      about {duration(seconds)}: {rates.generate:.3g} images/s made, "
        f"{rates.score:.3g} scored"
    )
    if rates.folder is None:
        yield f"          (measured now, on {counted(rates.images, 'image')}, on {plan.device})"
    else:
        yield f"          (as an earlier run of {rates.images:,} images on {plan.device}:"
        yield f"          {rates.folder})"


def _downloads(plan: Plan) -> Iterator[str]:
    if not plan.downloads:
        yield "download  nothing: the models are on this machine"
        return
    yield "download  a model is not on this machine; nothing else is known before:"
    for command in plan.downloads:
        yield f"          {command}"


def _designs(plan: Plan) -> Iterator[str]:
    if plan.spread_of is None:
        if not plan.downloads:
            yield ""
            yield (
                f"No smaller run can be judged: no spread is known. {MIN_PAIRS} pairs a category, "
                "by"
            )
            yield f"'analogy run --limit {MIN_PAIRS}' with the same options, show it."
        return
    yield ""
    yield f"{'pairs':>5} {'seeds':>5} {'images':>8} {'time':>8} {'detects':>8}  decided"
    for i, one in enumerate(plan.smaller):
        design = one.design
        time = "" if one.seconds is None else duration(one.seconds)
        detects = number(design.detectable)
        yield (
            f"{design.pairs:>5} {design.seeds:>5} {one.images:>8,} {time:>8} "
            f"{'' if detects is None else f'{detects:.3f}':>8}  "
            f"{design.decided} of {design.of} cells{'' if i else ' (this run)'}"
        )
    yield ""
    yield "pairs     of each category; images and time are those of the whole grid"
    yield "detects   the mean margin that a cell shows as a success with a power of 80%"
    yield "decided   cells that succeed or fail with a power of 80%, if their true means"
    yield f"          are those of {plan.spread_of}"
