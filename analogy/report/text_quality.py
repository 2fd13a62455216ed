"""The metrics beside the margin as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analogy.core.text import listed, printable
from analogy.grid_metrics import Absent, Input, Per
from analogy.report.text import first_column, fitted, wrapped
from analogy.results.model import Mean

if TYPE_CHECKING:
    from analogy.studies.quality import Quality


def quality_table(quality: Quality, *, wide: bool = False) -> Iterator[str]:
    """The metrics beside the margin: of single images by cell, of all images by alpha.

    ``wide``: print means with their intervals, otherwise only means, which fit 80 columns.
    """
    measured = {name for of in quality.cells.values() for name in of}
    shown = [metric for metric in quality.metrics if metric.name in measured]
    names = [metric.name for metric in shown]
    if names:
        width = first_column(cell.category for cell in quality.cells)
        heads = [printable(metric.column) for metric in shown]
        columns = [max(21, len(head)) if wide else max(7, len(head)) for head in heads]
        yield f"{'quality':<{width}} {'alpha':>5} {'n':>4}" + "".join(
            f"  {head:>{column}}" for head, column in zip(heads, columns, strict=True)
        )
        for cell, found in quality.cells.items():
            n = max(of.n for of in found.values())
            yield f"{fitted(cell.category, width)} {cell.alpha:>5g} {n:>4}" + "".join(
                f"  {_mean(found[name], wide):>{column}}"
                for name, column in zip(names, columns, strict=True)
            )
        explained = [_EXPLAINED[name] for name in names if name in _EXPLAINED]
        if explained:
            yield " ".join(explained)
        if not wide:
            yield "Intervals: with --wide, in the report and in results.json."
        kept = [metric.column for metric in shown if metric.name in _KEPT]
        if kept:
            yield f"{', '.join(kept)}: what is left of the image at alpha 0."
        yield from _absent_lines(quality, Input.FEATURES)
        yield from _absent_lines(quality, Input.LPIPS)
    if quality.alphas:
        heads = [score.name for score in next(iter(quality.alphas.values())).values()]
        yield ""
        yield f"{'all images':<10} {'alpha':>5} {'n':>4}" + "".join(f"  {n:>18}" for n in heads)
        for alpha, scores in quality.alphas.items():
            n = max(score.n for score in scores.values())
            yield f"{'':<10} {alpha:>5g} {n:>4}" + "".join(
                f"  {score.value:>18.4g}" for score in scores.values()
            )
    elif names:
        yield from _absent_lines(quality, Input.REFERENCES)
    if quality.alphas and not isinstance(quality.references, Absent):
        yield f"Distance from {len(quality.references.features)} {quality.references.name}."


#: Explanations of some columns, and the metrics that compare an image with the unsteered one.
_EXPLAINED = {
    "clip_score": "CLIPScore: to the target prompt.",
    "directional_similarity": "direction: did the image move as the prompt did?",
}
_KEPT = ("psnr", "ssim", "lpips")


def _absent_lines(quality: Quality, needed: Input) -> Iterator[str]:
    """The metrics that are not measured because the run lacks this input, with the reason.

    For LPIPS it is a single line; the full reason is in the results.
    """
    absent = {
        Input.LPIPS: quality.lpips, Input.REFERENCES: quality.references,
        Input.FEATURES: quality.features,
    }[needed]  # fmt: skip
    labels = [
        printable(metric.label) for metric in quality.metrics
        if needed in metric.inputs and (metric.per is Per.SET) == (needed is Input.REFERENCES)
    ]  # fmt: skip
    if not labels or not isinstance(absent, Absent):
        return
    said = f"{listed(labels)} {'are' if len(labels) > 1 else 'is'} not measured"
    if needed is Input.LPIPS:
        yield f"{said}: --lpips-weights FILE names its weights (docs/metrics.md)."
        return
    yield from wrapped(f"{said}: {absent.reason}")


def _mean(figures: Mean, with_interval: bool) -> str:
    if figures.mean != figures.mean:
        return "-"
    digits = 1 if abs(figures.mean) >= 10 else 2
    low, high = figures.ci_low, figures.ci_high
    if low != low or not with_interval:
        return f"{figures.mean:.{digits}f}"
    return f"{figures.mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
