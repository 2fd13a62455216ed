"""A run as tidy pandas frames and matplotlib axes, for notebooks: :func:`load_run`.

It only reads: read-only access is enough, and another process may write to the folder meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analogy.core.deferred import deferred
from analogy.core.errors import StoreError
from analogy.core.records import UNSTEERED, Pair
from analogy.report import numbers
from analogy.results import kept
from analogy.results.model import RESULTS_NAME, Header, Results
from analogy.results.reading import header_of, provenance_from_json, read
from analogy.results.scope import Scope, scope_of_results
from analogy.results.writing import cell_to_json, to_json
from analogy.statistics.items import items_from_margins
from analogy.store.folder import RunFolder
from analogy.store.grid import Command, Job, Role, digest, pairs_digest
from analogy.studies.extension import jobs_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analogy.report import figures, plots
    from analogy.studies import study
else:
    figures = deferred("analogy.report.figures")  # matplotlib, which may not be installed
    plots = deferred("analogy.report.plots")  # the same
    study = deferred("analogy.studies.study")  # torchvision: only for a run without results


@dataclass(frozen=True, eq=False)
class Run:
    """A run's images, items, cells and results. The caller may change the frames.

    ``images``, a row per existing image, those of the null included. It is empty for a results file
    outside of its run folder:

    - `key` (str): the image's key in the run folder;
    - `pair_id`, `category`, `source_word`, `target_word`, `source_prompt`, `target_prompt` (str);
    - `alpha` (float64), `seed` (int64);
    - `method` (str): None at alpha 0, since all methods share the unsteered image. With
      ``--target``, `lerp` at alpha 1 is the target prompt's own image;
    - `path` (str): the PNG file;
    - `margin`, `cos_target`, `cos_source` (float64): by the run's judge, margin in -2..2, cosines
      in -1..1; NaN if not scored;
    - a column (float64) for each metric that was measured: `clip_score` (0..100),
      `directional_similarity` (-1..1), `psnr` (dB), `ssim`, `lpips-NETWORK`; NaN elsewhere.

    ``items``, a row per pair and alpha that has a score, without the null:

    - `pair_id`, `category` (str), `alpha` (float64);
    - `margin` (float64): the mean over seeds;
    - `gain` (float64): margin minus the pair's at alpha 0; NaN if that is missing;
    - `n_seeds` (int64): images in the mean. With fewer than the run's seeds the item is incomplete
      and enters no figure of ``cells``.

    ``cells``, a row per cell in the results' order: `category`, `alpha`, `n`, `verdict` (str), and
    every other figure of results.json (docs/results.md) as float64, NaN if it is missing. Figures
    of an object within a cell have joined names: `gain_mean`, `ceiling_share`,
    `random_margin_mean`, and for quality metrics `ssim_mean`, `ssim_n`.

    - ``figures``: the results as typed records, which :func:`analogy.compare` accepts;
    - ``results``: the same as in results.json;
    - ``path``: the loaded path; ``folder``: the run folder, None if there is none;
    - ``others``: results files of the folder's other measurements, for :func:`load_run`; empty if a
      file was loaded and not the folder.
    """

    path: Path
    folder: Path | None
    figures: Results
    images: pd.DataFrame
    items: pd.DataFrame
    cells: pd.DataFrame
    others: tuple[Path, ...] = ()

    @cached_property
    def results(self) -> Mapping[str, Any]:
        """All of results.json."""
        return to_json(self.figures)

    @property
    def config(self) -> Mapping[str, Any]:
        """All options of the run as resolved."""
        return self.figures.header.config.values

    @property
    def categories(self) -> list[str]:
        """The categories, in the run's order."""
        return list(self.figures.header.categories)

    @property
    def verdict(self) -> str:
        """The verdict on all cells together."""
        return str(self.figures.analysis.overall.margin.verdict)

    def __repr__(self) -> str:
        """The run on one line, with its measurement if its folder has several."""
        text = (
            f"<Run {self.path}: {len(self.images):,} images, {len(self.items):,} items, "
            f"{len(self.cells)} cells, overall {self.verdict}"
        )
        if self.others:
            text += f"; {scope_of_results(self.figures)}; {len(self.others)} more in .others"
        return text + ">"

    # Each plot draws on `ax`, or on a new figure (`axes.figure`), and returns the axes. The plots
    # are those of the report. pyplot is not used.

    def plot_heat_map(self, ax: Axes | None = None) -> Axes:
        """Mean margins, category by alpha, with verdict marks; pools in the last row and column.

        A mark in brackets is a success that is not significant after Holm's correction.
        """
        rows = {
            row.name: [(cell.mean, cell.strength / 100, cell.mark) for cell in row.cells]
            for row in figures.verdict_map(self.figures)
        }
        columns = [f"alpha {alpha:g}" for alpha in self.figures.header.alphas]
        draw = partial(plots.heat_map, rows=rows, columns=[*columns, "all"])
        return _drawn(ax, draw, 80 + 70 * (len(columns) + 1), 40 + 22 * len(rows))

    def plot_forest(self, ax: Axes | None = None, *, figure: str = "margin") -> Axes:
        """Every cell's mean ``margin`` or ``gain`` with its 95% interval."""
        _check_name("figure", figure, ("margin", "gain"))
        rows = figures.forest_rows(self.figures.analysis, figure)
        draw = partial(plots.forest, rows=rows, label=figure)
        return _drawn(ax, draw, 320, 44 + 13.5 * len(rows))

    def plot_dose_response(self, category: str, ax: Axes | None = None) -> Axes:
        """A category's mean margin at each alpha, its pairs' own lines behind, and the ceiling."""
        _check_name("category", category, self.categories)
        of = figures.responses(self.figures.analysis, category)
        draw = partial(
            plots.dose_response, alphas=of.alphas, margins=of.margins, rows=of.rows,
            ceiling=of.ceiling_mean,
        )  # fmt: skip
        return _drawn(ax, draw, 300, 210)

    def plot_distribution(self, category: str, ax: Axes | None = None) -> Axes:
        """A category's items at each alpha as histograms; a tick is the mean."""
        _check_name("category", category, self.categories)
        of = figures.responses(self.figures.analysis, category)
        draw = partial(plots.distribution, alphas=of.alphas, margins=of.margins)
        return _drawn(ax, draw, 300, 210)

    def plot_trade_off(self, ax: Axes | None = None, *, metric: str = "ssim") -> Axes:
        """Gain against the similarity to the unsteered image, by ``ssim`` or ``lpips``.

        Raises ``ValueError`` if the metric was not measured.
        """
        labels = figures.preservation(self.figures)
        _check_name("metric", metric, labels)
        series = figures.trade_off_series(self.figures, metric)
        if not series:
            raise ValueError(
                f"metric: expected one that this run has, got {metric!r}, which was not measured; "
                "'pytest benchmarks/test_quality.py' with the run's options measures it"
            )
        draw = partial(plots.trade_off, series=series, label=labels[metric])
        return _drawn(ax, draw, 400, 300)

    def plot_pair(self, pair_id: str, ax: Axes | None = None) -> Axes:
        """A pair's images, a row per seed and a column per alpha, with their margins.

        Raises ``StoreError`` if an image's file is missing or was changed, and ``ValueError`` for
        an unknown pair and for a run without images.
        """
        images = self.images
        if self.folder is None or images.empty:
            raise ValueError(
                f"pair_id: expected a run with images, got {self.path}, which has none; load its "
                "run folder"
            )
        _check_name("pair_id", pair_id, images["pair_id"].unique().tolist())
        method = self.figures.header.subject.method
        mine = images[
            (images["pair_id"] == pair_id)
            & (images["method"].isna() | (images["method"] == method))
        ]
        alphas = sorted(mine["alpha"].unique().tolist())
        seeds = sorted(mine["seed"].unique().tolist())
        rows: dict[int, list[tuple[Any, float | None]]] = {
            seed: [(None, None)] * len(alphas) for seed in seeds
        }
        store = RunFolder(self.folder, read_only=True)
        try:
            for row in mine.to_dict("records"):
                pair = Pair(*(row[name] for name in _PAIR))
                job = Job(pair, row["alpha"], row["seed"], method, row["key"])
                margin = numbers.number(row["margin"])
                place = alphas.index(row["alpha"])
                rows[row["seed"]][place] = store.read_image(job), margin
        finally:
            store.close()
        pair = Pair(*(mine.iloc[0][name] for name in _PAIR))
        width = 14 * len(alphas)  # letters that fit above the images
        title = "\n".join(
            [
                *textwrap.wrap(pair.source_prompt, width),
                *textwrap.wrap(f"\N{RIGHTWARDS ARROW} {pair.target_prompt}", width),
            ]
        )
        draw = partial(plots.strip, alphas=alphas, rows=rows, title=title)
        lines = title.count("\n") + 1
        return _drawn(ax, draw, 50 + 72 * len(alphas), 28 + 12 * lines + 86 * len(rows))


_PAIR = ("pair_id", "category", "source_word", "target_word", "source_prompt", "target_prompt")


def load_run(path: str | os.PathLike[str]) -> Run:
    """A run from its folder, or from a results file.

    A folder gives its ``results.json`` and the images of these results; a folder without that file
    gives what its index contains now. If a folder has results of several measurements,
    ``Run.others`` has the files of the others: load one of these, such as
    ``RUN/results/0123456789ab.json``, to get that measurement. ``RUN/results-JUDGE.json`` gives
    that judge's scores of the folder's images. A results file elsewhere gives no images. While a
    run is writing, images and items are current, and figures are those last written.

    Raises :class:`~analogy.results.reading.RecordedError` if results cannot be read, and
    :class:`~analogy.core.errors.StoreError` if the folder cannot.
    """
    path = Path(path)
    folder = kept.folder_of(path)
    if not (folder / "index.sqlite").is_file():
        results = read(path)
        return Run(path, None, results, _no_images(), _recorded_items(results), _cells(results))
    others: tuple[Path, ...] = ()
    store = RunFolder(folder, read_only=True)
    try:
        if path == folder and not (folder / RESULTS_NAME).exists():
            command = latest_command(store)
            results = _live(store, command)
        else:
            results = read(path)
            command = command_of(store, results.header)
            if path == folder:
                found, _ = kept.others(folder, kept.Measured.of(results))
                others = tuple(each.path for each in found if each.path is not None)
        images = store.image_table(jobs_of(command, store), command.judge)
    finally:
        store.close()
    images["path"] = [str(folder / name) for name in images["path"]]
    items = _items(images, command, results.unread)
    return Run(path, folder, results, images, items, _cells(results), others)


def latest_command(store: RunFolder) -> Command:
    """The command that ran last on a folder. Raises ``StoreError`` if there was none."""
    commands = store.commands()
    if not commands:
        raise StoreError(
            f"run folder {store.path}: expected the configuration of a command, got none; give the "
            "run's command once again, which keeps it"
        )
    return commands[0]


def command_of(store: RunFolder, header: Header) -> Command:
    """The command with the configuration, models and pairs of these results.

    Raises ``StoreError`` if the folder has none.
    """
    provenance = header.provenance
    with contextlib.suppress(ValueError):  # no command has a configuration of a later suite
        of = (header.config.run_config(), provenance.model, provenance.judge)
        for command in store.commands():
            same = of == (command.config, command.model, command.judge)
            if same and _digests(command) == header.measurement.pairs:
                return command
    raise StoreError(
        f"run folder {store.path}: expected the command that its results are of, got none that has "
        "their configuration, model, judge and pairs; give the run's command once again, which "
        "keeps it, or load the results file from another folder, without images"
    )


def command_to_score(store: RunFolder) -> Command:
    """The command whose images another judge is to score: the latest one.

    If that is less than the results that the folder shows (by
    :func:`analogy.results.kept.why_stays`), it is the command of these results.
    """
    latest = latest_command(store)
    shown = kept.found(store.path / RESULTS_NAME)
    if shown is None:
        return latest
    try:
        own = command_of(store, shown.results.header)
    except StoreError:
        return latest
    is_finished = not store.without_image(jobs_of(latest, store))
    return own if kept.why_stays(scope_of(latest, is_finished), shown.scope) else latest


def scope_of(command: Command, is_finished: bool) -> Scope:
    """The measurement of a command."""
    config = command.config
    ids: dict[str, frozenset[str]] = {}
    for pair in command.pairs:
        ids[pair.category] = ids.get(pair.category, frozenset()) | {pair.id}
    return Scope(
        model=command.model,
        judge=command.judge,
        scheduler=command.scheduler,
        method=config.method,
        steps=config.steps,
        guidance=config.guidance,
        size=config.size,
        dtype=config.dtype,
        alphas=tuple(sorted(config.alphas)),
        seeds=tuple(sorted(config.seeds)),
        control=config.control,
        target=config.target,
        ceiling=None if command.ceiling is None else digest(dict(command.ceiling)),
        pairs=_digests(command),
        ids=ids,
        n_pairs=len(command.pairs),
        limit=config.limit,
        categories=config.categories,
        is_finished=is_finished,
        method_version=config.method_version,
        sequential=config.sequential_settings,
        window=config.window,
        second_guidance=config.second_guidance,
    )


def _digests(command: Command) -> dict[str, str]:
    """Category to the digest of its pairs, as in results."""
    by_category: dict[str, list[Pair]] = {}
    for pair in command.pairs:
        by_category.setdefault(pair.category, []).append(pair)
    return {category: pairs_digest(pairs) for category, pairs in by_category.items()}


def _live(store: RunFolder, command: Command) -> Results:
    """The content that results.json would have if the command ended now.

    Raises ``RecordedError`` if the folder's provenance is damaged.
    """
    # Nothing is computed on the device, which may be another machine's.
    results = study.Study.reopen(store, command, device="cpu").results()
    provenance = provenance_from_json(store.provenance())
    digests = results.header.measurement.pairs
    return replace(results, header=header_of(command.config, provenance, digests))


def _no_images() -> pd.DataFrame:
    texts = ["key", *_PAIR]
    floats = ["margin", "cos_target", "cos_source"]
    kinds = {
        **dict.fromkeys(texts, "str"), "alpha": "float64", "seed": "int64", "method": "str",
        "path": "str", **dict.fromkeys(floats, "float64"),
    }  # fmt: skip
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def _items(images: pd.DataFrame, command: Command, unread: Collection[str]) -> pd.DataFrame:
    own = {job.key for job in command.grid.jobs(Role.STEERED, Role.UNSTEERED)}
    is_own = images["key"].isin(own)  # not the targets, which have lerp's name
    is_own &= ~images["pair_id"].isin(list(unread))  # figures do not count them
    items = items_from_margins(images[is_own & images["margin"].notna()])
    order = {pair.id: i for i, pair in enumerate(command.pairs)}
    items = items.sort_values("pair_id", key=lambda ids: ids.map(order), kind="stable")
    return _with_gain(items.reset_index(drop=True))


def _recorded_items(results: Results) -> pd.DataFrame:
    """The items in results, which are the complete ones."""
    analysis = results.analysis
    n_seeds = len(results.header.measurement.seeds)
    rows = [
        (pair, *figures.cell, margin, n_seeds if figures.stop is None else figures.stop.seeds)
        for of in (analysis.unsteered, analysis.cells)
        for figures in of.values()
        for pair, margin in figures.items.items()
    ]
    items = pd.DataFrame(rows, columns=["pair_id", "category", "alpha", "margin", "n_seeds"])
    first = {pair: i for i, pair in enumerate(dict.fromkeys(items["pair_id"]))}
    items = items.sort_values("alpha").sort_values(
        "pair_id", key=lambda ids: ids.map(first), kind="stable"
    )
    return _with_gain(items.reset_index(drop=True))


def _with_gain(items: pd.DataFrame) -> pd.DataFrame:
    unsteered = items[items["alpha"] == UNSTEERED].set_index("pair_id")["margin"]
    gain = (items["margin"] - items["pair_id"].map(unsteered)).astype("float64")
    return items.assign(gain=gain)[["pair_id", "category", "alpha", "margin", "gain", "n_seeds"]]


def _cells(results: Results) -> pd.DataFrame:
    quality = results.quality
    rows = []
    for cell, figures in results.analysis.cells.items():
        of = {name: mean.to_dict() for name, mean in quality.cells.get(cell, {}).items()}
        rows.append({**cell._asdict(), **_flat(of), **_flat(cell_to_json(figures))})
    cells = pd.DataFrame(rows, dtype=object)
    texts = ["category", *(name for name in map(str, cells) if name.endswith("verdict"))]
    for name in cells.columns.difference([*texts, "n", "n_items"]):
        cells[name] = cells[name].astype("float64")
    cells = cells.infer_objects()
    first = ["category", "alpha", "verdict"]
    return cells[[*first, *(name for name in cells if name not in first)]]


def _flat(row: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """A row's plain values; those of objects in it get joined names. Leaves out pairs' margins."""
    made: dict[str, object] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            if name not in ("items", "seeds"):
                made |= _flat(value, f"{prefix}{name}_")
        elif value is not None or name not in ("gain", "ceiling", "random"):
            made[prefix + name] = value
    return made


def _check_name(what: str, name: str, known: Any) -> None:
    if name in known:
        return
    near = get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    some = [*known][:10]
    shown = ", ".join(map(str, some)) + (", ..." if len(known) > len(some) else "")
    raise ValueError(f"{what}: expected one of {shown}, got {name!r}{hint}")


def _drawn(ax: Axes | None, draw: Callable[[Axes], Axes], width: float, height: float) -> Axes:
    return draw(ax) if ax is not None else plots.on_its_own(width, height, draw)
