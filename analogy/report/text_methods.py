"""A comparison of steering methods as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from analogy.core.records import Verdict
from analogy.core.text import display_width, padded, shortened
from analogy.report.text import first_column, interval
from analogy.report.text_sequential import confidence, look
from analogy.results.cost import MethodCost
from analogy.statistics.values import MIN_DECISIVE

if TYPE_CHECKING:
    from analogy.studies.method_comparison import Difference, MethodComparison


def method_tables(found: MethodComparison) -> Iterator[str]:
    """The ranking, every two methods compared, and their differences by alpha and category."""
    ci = f"{confidence(found.stop)} CI"
    yield (
        f"{'method':<10} {'n':>4} {'margin':>8} {ci:>18} {'>0':>5}  {'verdict':<12}  "
        "not told apart from"
    )
    for ranked in found.ranking:
        margin = ranked.margin
        head = f"{ranked.method:<10} {margin.n:>4}"
        if margin.mean != margin.mean:
            yield f"{head}  {margin.verdict}"
            continue
        yield (
            f"{head} {margin.mean:>+8.4f} {interval(margin.ci_low, margin.ci_high):>18} "
            f"{margin.success_rate:>5.0%}  {margin.verdict:<12}  {', '.join(ranked.like) or '-'}"
        )
    if found.at:
        at = ", ".join(f"{name} {alpha:g}" for name, alpha in found.at.items())
        yield f"Strengths differ: methods are compared at the full strength of each, {at}."
    if found.n_left_out:
        left = f"{found.n_left_out} {'pair lacks' if found.n_left_out == 1 else 'pairs lack'}"
        yield f"{left} images by one of the methods and are left out."
    if found.n < MIN_DECISIVE:
        yield (
            f"{Verdict.TOO_FEW}: n {found.n}, and {MIN_DECISIVE} pairs or more tell methods apart."
        )
    yield ""
    width = max(len("difference"), *(len(_two(one)) for one in found.overall))
    of_look = "look's CI" if found.stop is not None else "95% CI"
    yield f"{'difference':<{width}} {'n':>4} {'margin':>8} {of_look:>18} {'p':>8} {'Holm p':>8}"
    for d in found.overall:
        head = f"{_two(d):<{width}} {d.n:>4}"
        if d.mean != d.mean:
            yield f"{head}  {Verdict.INCOMPLETE}"
            continue
        yield (
            f"{head} {d.mean:>+8.4f} {interval(d.ci_low, d.ci_high):>18} {d.p:>8.2g} "
            f"{d.p_holm:>8.2g}" + ("" if d.stop is None else f"  {look(d.stop)}")
        )
    yield (
        "A difference is of margins, pair by pair; p is two-sided, of the t-test. Holm's p is of "
        f"the larger of this and the bootstrap's, for {found.family}."
        if found.stop is None
        else "A difference is of margins, pair by pair; p is two-sided, of the t-test. Holm's p is "
        "here Bonferroni's, for all comparisons and all looks: below 0.05 the two are told apart."
    )
    for name, differences in (
        ("at alpha", [(f"{d.alpha:g}", d) for d in found.alphas]),
        ("category", [(str(d.category), d) for d in found.categories]),
    ):
        if not differences:
            continue
        yield ""
        columns = {column: first_column([column], 9) for column, _ in differences}
        yield f"{name:<{width}}" + "".join(
            f" {' ' * (most - display_width(shortened(column, most)))}{shortened(column, most)}"
            for column, most in columns.items()
        )
        of_two: dict[str, list[str]] = {}
        for column, d in differences:
            of_two.setdefault(_two(d), []).append(f" {_marked(d):>{columns[column]}}")
        for two, row in of_two.items():
            yield f"{two:<{width}}" + "".join(row)
    yield (
        f"*: the {confidence(found.stop)} interval, of this difference by itself, lies on one side "
        f"of 0. <{MIN_DECISIVE}: too few pairs."
    )
    if found.blind:
        yield (
            f"The judge does not see the true change in: {', '.join(found.blind)}. "
            "Nothing is said about the methods there."
        )


def _two(difference: Difference) -> str:
    return f"{difference.first} - {difference.second}"


def _marked(difference: Difference) -> str:
    if difference.n < MIN_DECISIVE:
        return f"<{MIN_DECISIVE}"
    # As printed: two methods whose images are the same differ by the rounding of their arithmetic.
    is_one_sided = round(difference.ci_low, 4) > 0 or round(difference.ci_high, 4) < 0
    return f"{difference.mean:+.4f}{'*' if is_one_sided else ' '}"


def cost_table(costs: Mapping[str, MethodCost]) -> Iterator[str]:
    """The cost of each method beside that of an unsteered image; empty if none was measured."""
    if not costs:
        return
    width = first_column(["cost", *costs])
    yield (
        f"{'cost':<{width}} {'images':>7} {'s/image':>8} {'unsteered':>9} {'ratio':>6} "
        f"{'peak MiB':>9} {'fit s':>8} {'fit images':>10}"
    )
    for name, cost in costs.items():
        fit = cost.fit
        yield (
            f"{padded(shortened(name, width), width)} {cost.images:>7,} "
            f"{_or_dash(cost.seconds, '.4f'):>8} {_or_dash(cost.unsteered_seconds, '.4f'):>9} "
            f"{_or_dash(cost.ratio, '.2f'):>6} "
            f"{_or_dash(cost.peak_bytes and cost.peak_bytes / 2**20, ',.0f'):>9} "
            f"{_or_dash(None if fit is None else fit.seconds, '.1f'):>8} "
            f"{_or_dash(None if fit is None else fit.images, ','):>10}"
        )
    kinds = sorted({cost.memory for cost in costs.values() if cost.memory is not None})
    yield (
        "Seconds of one worker an image: the median over batches of that method alone, without "
        "fitting. -: not measured" + (f". Peak: of the {' or the '.join(kinds)}." if kinds else ".")
    )


def _or_dash(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
