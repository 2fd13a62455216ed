"""A run's plots: each function draws on axes and returns them; `svg` makes an image for a page.

Colours are those of Okabe and Ito (2008), which colour-blind people can distinguish, and colour is
never the only distinction. pyplot's global state is not used.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analogy.core.text import printable

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#767f89"
INK, FAINT = "#1b1f24", "#d5dae0"

#: A hue for each of up to eight categories.
HUES = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#e69f00", "#7b4fb5", "#8c6d31")

SIZE = 11.0
"""The size of all text, in points. A page shows a plot at its own size or larger."""

#: The colour and marker of each verdict, and of each outcome of a comparison.
MARKS: Mapping[str, tuple[str, str]] = {
    "success": (BLUE, "o"), "improved": (BLUE, "o"),
    "failure": (ORANGE, "X"), "regressed": (ORANGE, "X"),
    "equivalent": (GREEN, "s"),
}  # fmt: skip
OTHER_MARK = (GREY, "D")

# Maps colours of drawings to the page's variables, which differ between light and dark mode.
_VARIABLES = {
    BLUE: "var(--blue)", ORANGE: "var(--orange)", GREEN: "var(--green)", GREY: "var(--grey)",
    INK: "var(--ink)", FAINT: "var(--line)",
    **{hue: f"var(--hue-{i})" for i, hue in enumerate(HUES) if i > 2},
}  # fmt: skip

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "analogy", "text.parse_math": False,
    "font.family": "sans-serif", "font.size": SIZE, "axes.unicode_minus": True,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": GREY, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
    "figure.facecolor": "none", "axes.facecolor": "none", "lines.linewidth": 1.2,
}  # fmt: skip

_MARGIN = "margin"


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """A mean with its interval, in units of the margin; None if there is none.

    ``verdict``: that of an estimate, or the outcome of a comparison; ``confidence``: that of the
    interval, as text, if the plot must show it because rows differ; otherwise "".
    """

    label: str
    mean: float | None
    low: float | None
    high: float | None
    verdict: str
    confidence: str = ""


@dataclass(frozen=True, slots=True)
class StoppedCell:
    """A cell of a sequential run: the look, from 1 to ``looks``, at which it stopped.

    ``pairs``, ``seeds``: their numbers at that look. All numbers are 0 if images are missing.
    """

    label: str
    verdict: str
    look: int = 0
    looks: int = 0
    pairs: int = 0
    seeds: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A cell's gain and preservation (``kept``: a metric such as SSIM), with intervals or None."""

    alpha: float
    kept: float
    gain: float
    kept_interval: tuple[float, float] | None = None
    gain_interval: tuple[float, float] | None = None


Limits: TypeAlias = tuple[float, float]
"""The lowest and the highest value of an axis."""


def on_its_own(width: float, height: float, draw: Callable[[Axes], Axes]) -> Axes:
    """The axes that ``draw`` has drawn on, in a new white figure of this size in points."""
    with mpl.rc_context({**_STYLE, "figure.facecolor": "white"}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        return draw(figure.add_subplot())


def svg(width: float, height: float, draw: Callable[[Axes], object]) -> str:
    """The drawing by ``draw`` as an ``<svg>`` element of this size in points for an HTML page.

    The same drawing gives the same element. Words stay text, and colours are variables of the page:
    ``--ink``, ``--line``, ``--blue``, ``--orange``, ``--green``, ``--grey``, ``--hue-3`` and on.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # matplotlib's own font only measures the text; the page's fonts have the missing glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* nativ")
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Type": None, "Format": None}
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g|<svg) id="[^"]*"', r"\1", text)  # the same in every plot of a page
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ?', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ?', r"<svg \1", text, count=1)
    text = re.sub(r"\n\s*", "\n", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text


def forest(ax: Axes, rows: Sequence[IntervalRow], *, label: str = _MARGIN) -> Axes:
    """Means and their intervals, the first row on top; a row without figures shows its verdict."""
    for i, row in enumerate(rows):
        if row.mean is None:
            ax.annotate(row.verdict, (0.5, i), xycoords=("axes fraction", "data"), ha="center",
                        va="center", color=GREY)  # fmt: skip
            continue
        color, marker = MARKS.get(row.verdict, OTHER_MARK)
        if row.low is not None and row.high is not None:
            ax.plot([row.low, row.high], [i, i], color=color, solid_capstyle="butt")
            if row.confidence:
                ax.annotate(row.confidence, (1.01, i), xycoords=("axes fraction", "data"),
                            va="center")  # fmt: skip
        ax.plot(row.mean, i, marker, color=color, markersize=4.5, markeredgewidth=0)
    ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlabel(label)
    return ax


def dose_response(
    ax: Axes,
    alphas: Sequence[float],
    margins: NDArray[np.float64],
    rows: Sequence[IntervalRow],
    *,
    ceiling: float | None = None,
    limits: Limits | None = None,
) -> Axes:
    """The mean margin at each alpha with its interval, over a thin line for every pair.

    ``margins``: ``(pairs, alphas)``, NaN where an item is missing; ``rows``: one per alpha;
    ``limits``: those of the margins' axis, if several plots share it.
    """
    lines = [np.column_stack([alphas, line]) for line in margins]
    ax.add_collection(LineCollection(lines, colors=GREY, linewidths=0.5, alpha=0.35))
    means = [(a, row.mean) for a, row in zip(alphas, rows, strict=True) if row.mean is not None]
    ax.plot(*np.array(means).reshape(-1, 2).T, "o-", color=BLUE, linewidth=1.8, markersize=4.5,
            markeredgewidth=0)  # fmt: skip
    for alpha, row in zip(alphas, rows, strict=True):
        if row.low is not None and row.high is not None:
            ax.plot([alpha, alpha], [row.low, row.high], color=BLUE, solid_capstyle="butt")
            if row.confidence:
                ax.annotate(row.confidence, (alpha, row.high), (0, 2), textcoords="offset points",
                            ha="center", va="bottom", rotation=90)  # fmt: skip
    if ceiling is not None:
        ax.axhline(ceiling, color=GREEN, linestyle="--", linewidth=1)
        ax.annotate("ceiling", (0.02, ceiling), xycoords=("axes fraction", "data"), va="bottom")
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.autoscale_view()
    if limits is not None:
        room = 0.05 * (limits[1] - limits[0]) or 1.0
        ax.set_ylim(limits[0] - room, limits[1] + room)
    ax.set_xticks(list(alphas), [f"{alpha:g}" for alpha in alphas])
    ax.set_xlabel("alpha")
    ax.set_ylabel(_MARGIN)
    return ax


def distribution(
    ax: Axes,
    alphas: Sequence[float],
    margins: NDArray[np.float64],
    *,
    bins: int = 24,
    limits: Limits | None = None,
) -> Axes:
    """A histogram of the items' margins at each alpha, the first on top, with a line at the mean.

    ``margins``: ``(pairs, alphas)``, NaN where an item is missing; ``limits``: those of the
    margins' axis, if several plots share it.
    """
    there = margins[~np.isnan(margins)]
    low, high = limits or ((there.min(), there.max()) if there.size else (-1.0, 1.0))
    edges = np.linspace(min(low, 0.0), max(high, 0.0, low + 1e-6), bins + 1)
    counts = [np.histogram(column[~np.isnan(column)], edges)[0] for column in margins.T]
    most = max((int(count.max()) for count in counts), default=0) or 1
    for i, (count, column) in enumerate(zip(counts, margins.T, strict=True)):
        base = len(counts) - 1 - i
        ax.stairs(base + 0.85 * count / most, edges, baseline=base, fill=True,
                  color=BLUE if alphas[i] else GREY, alpha=0.55)  # fmt: skip
        if not np.isnan(column).all():
            mean = float(np.nanmean(column))
            ax.plot([mean, mean], [base, base + 0.85], color=INK, linewidth=1.4)
    ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in reversed(alphas)])
    ax.set_ylim(0, len(alphas))
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(f"{_MARGIN} of a pair")
    ax.set_ylabel("alpha")
    return ax


def decisions(ax: Axes, rows: Sequence[StoppedCell]) -> Axes:
    """The look at which each cell of a sequential run was decided: a row per cell.

    A bar ends at the cell's look; a small dot is a look that the cell did not need. The number of
    the cell's images is beside the bar. A look's pairs and seeds are below its number, if all cells
    that stopped there have the same.
    """
    most = max((row.looks for row in rows), default=0) or 1
    for i, row in enumerate(rows):
        if not row.look:
            ax.annotate(row.verdict, (0.5, i), xycoords=("axes fraction", "data"), ha="center",
                        va="center", color=GREY)  # fmt: skip
            continue
        color, marker = MARKS.get(row.verdict, OTHER_MARK)
        ax.plot([0.5, row.look], [i, i], color=color, linewidth=4, alpha=0.45,
                solid_capstyle="butt")  # fmt: skip
        ax.plot(row.look, i, marker, color=color, markersize=5, markeredgewidth=0)
        left = range(row.look + 1, row.looks + 1)
        ax.plot(left, [i] * len(left), ".", color=GREY, markersize=3, markeredgewidth=0)
        images = row.pairs * row.seeds
        ax.annotate(f"{images:,} image{'' if images == 1 else 's'}", (1.01, i),
                    xycoords=("axes fraction", "data"), va="center")  # fmt: skip
    ax.set_xticks(range(1, most + 1), [_look_name(look, rows) for look in range(1, most + 1)])
    ax.set_xlim(0.5, most + 0.25)
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_xlabel("look")
    return ax


def _look_name(look: int, rows: Sequence[StoppedCell]) -> str:
    """A look's number and, below it, its pairs and seeds, if all cells that stopped there agree."""
    sizes = {(row.pairs, row.seeds) for row in rows if row.look == look}
    if len(sizes) != 1:
        return str(look)
    [(pairs, seeds)] = sizes
    return f"{look}\n{pairs} pairs x {seeds} seed{'' if seeds == 1 else 's'}"


def trade_off(ax: Axes, series: Mapping[str, Sequence[Point]], *, label: str) -> Axes:
    """Gain against preservation: a line, a hue and a marker per category.

    ``series``: category to its points, ascending in alpha; larger markers are larger alphas.
    """
    for i, points in enumerate(series.values()):
        hue, marker = HUES[i % len(HUES)], "osD^vPX*"[i % 8]
        x, y = [point.kept for point in points], [point.gain for point in points]
        ax.plot(x, y, color=hue, linewidth=1.2, linestyle=("-", "--", ":")[i // len(HUES) % 3])
        ax.errorbar(
            x, y, xerr=_errors(x, [point.kept_interval for point in points]),
            yerr=_errors(y, [point.gain_interval for point in points]),
            fmt="none", ecolor=hue, elinewidth=0.9, alpha=0.6,
        )  # fmt: skip
        sizes = [4 + 4 * j / max(len(points) - 1, 1) for j in range(len(points))]
        ax.scatter(x, y, np.square(sizes), marker=marker, color=hue, linewidths=0, zorder=2)
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.margins(x=0.15)
    ax.grid(color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_xlabel(label)
    ax.set_ylabel("gain")
    _name_ends(ax, {name: [(p.kept, p.gain) for p in points] for name, points in series.items()})
    return ax


def heat_map(
    ax: Axes,
    rows: Mapping[str, Sequence[tuple[float | None, float, str]]],
    columns: Sequence[str],
) -> Axes:
    """A table of means, coloured by sign and size, each with its verdict's symbol.

    ``rows``: name to ``(mean, strength, mark)`` per column; ``strength``: the colour's opacity,
    0..1.
    """
    colors = [
        [to_rgba(BLUE if (mean or 0) > 0 else ORANGE, strength) for mean, strength, _ in row]
        for row in rows.values()
    ]
    ax.imshow(np.array(colors).reshape(len(rows), len(columns), 4), aspect="auto")
    for i, row in enumerate(rows.values()):
        for j, (mean, _, mark) in enumerate(row):
            text = "" if mean is None else f"{mean:+.2f}".replace("-", "\N{MINUS SIGN}")
            ax.text(j, i, f"{mark} {text}".strip(), ha="center", va="center", color=INK)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), [short(name) for name in rows])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def strip(
    ax: Axes,
    alphas: Sequence[float],
    rows: Mapping[int, Sequence[tuple[NDArray[np.uint8] | None, float | None]]],
    *,
    title: str = "",
) -> Axes:
    """One pair's images: a row per seed, a column per alpha, the margin below each.

    ``rows``: seed to ``(image, margin)`` per alpha; an image is uint8 HWC, 0..255. Both may be
    None.
    """
    for i, row in enumerate(rows.values()):
        for j, (image, margin) in enumerate(row):
            if image is not None:
                box = (j + 0.03, j + 0.97, 1.2 * i + 0.94, 1.2 * i)
                ax.imshow(image, extent=box, interpolation="nearest")
            said = "no image" if image is None else "not scored"
            if margin is not None:
                said = f"{margin:+.3f}".replace("-", "\N{MINUS SIGN}")
            ax.text(j + 0.5, 1.2 * i + 0.97, said, ha="center", va="top")
    ax.set_xlim(0, len(alphas))
    ax.set_ylim(1.2 * len(rows), 0)
    ax.set_aspect("equal")
    ax.set_xticks([j + 0.5 for j in range(len(alphas))], [f"alpha {alpha:g}" for alpha in alphas])
    ax.set_yticks([1.2 * i + 0.47 for i in range(len(rows))], [f"seed {seed}" for seed in rows])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    lines = map(printable, title.split("\n"))
    ax.set_title("\n".join(lines), fontsize=SIZE, parse_math=False)
    return ax


def _errors(values: Sequence[float], intervals: Sequence[Limits | None]) -> NDArray[np.float64]:
    """Lengths of error bars below and above, ``(2, points)``; 0 without an interval."""
    ends = [(0.0, 0.0) if of is None else (at - of[0], of[1] - at)
            for at, of in zip(values, intervals, strict=True)]  # fmt: skip
    return np.maximum(np.array(ends, dtype=float).reshape(-1, 2).T, 0.0)


def _name_ends(ax: Axes, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Write each line's name beside its last point, where it overlaps no point or other name."""

    def points_of(xy: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
        return ax.transData.transform(xy) * 72 / ax.figure.dpi

    taken = [(x - 3, y - 3, x + 3, y + 3) for xy in lines.values() for x, y in points_of(xy)]
    for name, xy in zip(map(short, lines), lines.values(), strict=True):
        width, height = 6.0 * len(name), 12.0
        [(x, y)] = points_of(xy[-1:])
        boxes = {}
        for dx, dy in ((-1, 0), (1, 0), (0, 1), (0, -1)):  # left, right, above, below
            center = x + dx * (7 + width / 2), y + dy * 12
            boxes[dx, dy] = (center[0] - width / 2, center[1] - height / 2,
                             center[0] + width / 2, center[1] + height / 2)  # fmt: skip
        free = [at for at, box in boxes.items() if not any(_overlap(box, one) for one in taken)]
        dx, dy = free[0] if free else (-1, 0)
        taken.append(boxes[dx, dy])
        side = {-1: "right", 0: "center", 1: "left"}[dx]
        ax.annotate(name, xy[-1], (7 * dx, 12 * dy), textcoords="offset points",
                    ha=side, va="center")  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def short(name: str, most: int = 22) -> str:
    """A name cut to ``most`` characters, to leave a plot room for its figures."""
    name = printable(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"
