"""The images of a run, pair by pair, for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, urlencode

from PIL import Image

from analogy.core.errors import StoreError
from analogy.core.files import check_own, write_atomically
from analogy.core.images import Images, to_png
from analogy.core.records import Pair, is_imported
from analogy.results.kept import folder_of
from analogy.results.model import Analysis, Results
from analogy.store.folder import RunFolder
from analogy.store.grid import TARGET_ALPHA, Command, Job, Role, pairs_digest
from analogy.studies.extension import jobs_of

#: Images of at most `OWN_SIZE` pixels a side are shown at full size, larger ones at `THUMBNAIL`.
OWN_SIZE, THUMBNAIL = 64, 128

#: The page of a run with more images shows none: 30,000 small ones take about 80 MB.
MOST_IMAGES = 30_000

_FEWER = (
    "The run's command with --limit N, and with --results and --report to other files, makes a "
    "page of each category's first N pairs, and generates nothing anew."
)
_FEWER_IMPORTED = "A manifest of some of its pairs, imported into another folder, makes a page."


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One image: its margin, its ``data:`` URI and size, and a link to the full image or "".

    ``is_target``: whether it is the target prompt's own image, without steering; ``problem``: the
    reason for a missing image, whose ``src`` is empty; ``is_due``: False for an image that no look
    of a sequential run needed.
    """

    alpha: float
    seed: int
    margin: float | None
    src: str = ""
    width: int = 0
    height: int = 0
    href: str = ""
    problem: str = ""
    is_target: bool = False
    is_due: bool = True


@dataclass(frozen=True, slots=True)
class Strip:
    """A pair's images, a row per seed, ascending in alpha, and its items: alpha to margin.

    The target prompt's own image is the last in a row, if it was requested; ``target`` is its item.
    ``anchor``: the strip's id in the page: ASCII without quotes, unique to the pair.
    """

    pair: Pair
    anchor: str
    items: Mapping[float, float]
    rows: tuple[tuple[int, tuple[GalleryImage, ...]], ...]
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Gallery:
    """Every pair's strip, and a note, such as the reason for having no images."""

    strips: tuple[Strip, ...]
    note: str = ""

    @property
    def problems(self) -> list[tuple[Strip, GalleryImage]]:
        """The failed images."""
        return [
            (strip, image)
            for strip in self.strips
            for _, row in strip.rows
            for image in row
            if image.problem
        ]


BaselineRows: TypeAlias = Mapping[tuple[str, int], Sequence[GalleryImage | None]]
"""Pair id and seed to the baseline's images in the gallery's columns, None if missing."""


def gallery(results: Results, folder: Path | None, full_images: Path | None = None) -> Gallery:
    """The gallery of results from their run folder; without a folder, only margins.

    ``full_images``: a folder beside the page, to which the images are written at full size.

    A pair is shown without images if the folder does not record its words, or if there are more
    than `MOST_IMAGES` images. An image that cannot be read has the reason as its ``problem``.
    """
    header, items, ends = results.header, _items(results.analysis), _target_items(results.analysis)
    if folder is None or not (folder / "index.sqlite").is_file():
        return Gallery(
            _bare(items, ends, {}), "No run folder: the pairs' margins without their images."
        )
    store = RunFolder(folder, read_only=True)
    try:
        known: dict[str, Pair] = {}
        for command in store.commands():
            for category, digest in header.measurement.pairs.items():
                pairs = [pair for pair in command.pairs if pair.category == category]
                if pairs_digest(pairs) == digest:
                    known |= {pair.id: pair for pair in pairs}
        try:
            config = header.config.run_config()
        except ValueError as error:
            return Gallery(_bare(items, ends, known), f"No images: {error}.")
        subject = header.subject
        shown = [*known.values()]
        if config.sequential:  # its looks leave out pairs that the judge cannot distinguish
            shown = [pair for pair in shown if pair.id not in results.unread]
        command = Command(
            config, tuple(shown), subject.model, header.measurement.judge, subject.scheduler,
            config.lora,
        )  # fmt: skip
        jobs, own = _jobs(command, store)
        if (n_images := len(jobs) + len(own)) > MOST_IMAGES:
            return Gallery(
                _bare(items, ends, known),
                f"No images: a page holds at most {MOST_IMAGES:,}, this run has {n_images:,}. "
                + (_FEWER_IMPORTED if is_imported(subject.model) else _FEWER),
            )
        images = [
            (job.pair, image)
            for of, is_target in ((jobs, False), (own, True))
            for job, image in _gallery_images(
                store, of, header.measurement.judge, full_images, is_target=is_target
            )
        ]
        strips = _strips(images, items, ends)
        if config.sequential:
            strips = [_filled(strip, config.grid_alphas) for strip in strips]
    finally:
        store.close()
    unknown = tuple(strip for strip in _bare(items, ends, known) if strip.pair.id not in known)
    note = "" if not unknown else (
        f"{len(unknown)} of {len(strips) + len(unknown)} pairs without images: the run folder has "
        "no record of their words, or of others. The run's own command, given again, records them "
        "and generates nothing anew."
    )  # fmt: skip
    return Gallery((*strips, *unknown), note)


def _jobs(command: Command, store: RunFolder) -> tuple[list[Job], list[Job]]:
    """The unsteered and steered jobs of a command, and those of the target prompts' own images.

    In a sequential run only those of the looks that were taken, even if the folder has others.
    """
    roles = (Role.UNSTEERED, Role.STEERED), (Role.TARGET,)
    jobs, own = (command.grid.jobs(*of) for of in roles)
    if command.config.sequential:
        due = {job.key for job in jobs_of(command, store)}
        jobs, own = ([job for job in of if job.key in due] for of in (jobs, own))
    return jobs, own


def _filled(strip: Strip, alphas: Sequence[float]) -> Strip:
    """The strip with placeholders for images that were not needed, so that rows align."""
    has_target = any(image.is_target for _, row in strip.rows for image in row)
    columns = [(alpha, False) for alpha in alphas]
    if has_target:
        columns += [(TARGET_ALPHA, True)]
    rows = []
    for seed, row in strip.rows:
        there = {(image.alpha, image.is_target): image for image in row}
        empty = (GalleryImage(a, seed, None, is_target=t, is_due=False) for a, t in columns)
        rows.append((seed, tuple(there.get((one.alpha, one.is_target), one) for one in empty)))
    return replace(strip, rows=tuple(rows))


def anchor(pair_id: str) -> str:
    """The anchor of a pair: its id as the fragment of a link."""
    return "pair-" + quote(pair_id, safe="", errors="backslashreplace")


def baseline_rows(baseline: Results, images: Gallery) -> BaselineRows:
    """The baseline's images of the pairs and seeds of a gallery, if they are in its run folder.

    The results must have been read from a file in that folder. A row has the same columns as the
    gallery's row of the same pair and seed, with None for images that the baseline lacks.
    """
    path = baseline.header.path
    before = gallery(baseline, None if path is None else folder_of(path))
    found = {
        (strip.pair.id, seed): {(one.alpha, one.is_target): one for one in row if one.src}
        for strip in before.strips
        for seed, row in strip.rows
    }
    return {
        (strip.pair.id, seed): tuple(old.get((one.alpha, one.is_target)) for one in row)
        for strip in images.strips
        for seed, row in strip.rows
        if (old := found.get((strip.pair.id, seed)))
    }


def in_gallery(category: str | None = None, alpha: float | None = None) -> str:
    """A link to the gallery, filtered by a category and ordered by the margin at an alpha."""
    chosen = {"category": category, "alpha": None if alpha is None else str(alpha)}
    query = urlencode({name: value for name, value in chosen.items() if value is not None})
    return f"#gallery?{query}" if query else "#gallery"


def data_uri(image: Images) -> tuple[str, int, int]:
    """An image as a ``data:`` URI, with its width and height.

    WebP. Images of up to 64 pixels a side keep their size, at quality 95, which gives 37 dB for the
    embedded model's images; the page of its full grid with the target prompts' images, 6,000 in
    all, takes 13 MB. Larger images are reduced to 128 pixels at quality 75.
    """
    picture, stream = Image.fromarray(image), io.BytesIO()
    quality = 95
    if max(picture.size) > OWN_SIZE:
        quality = 75
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    picture.save(stream, "WEBP", quality=quality)
    text = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:image/webp;base64,{text}", *picture.size


def _items(analysis: Analysis) -> dict[tuple[str, str], dict[float, float]]:
    """Category and pair id to the pair's margin at each alpha."""
    items: dict[tuple[str, str], dict[float, float]] = {}
    for figures in (*analysis.unsteered.values(), *analysis.cells.values()):
        category, alpha = figures.cell
        for pair, margin in figures.items.items():
            items.setdefault((category, pair), {})[alpha] = margin
    return items


def _target_items(analysis: Analysis) -> dict[tuple[str, str], float]:
    """Category and pair id to the margin of the target prompt's own image."""
    return {
        (category, pair): margin
        for category, figures in analysis.targets.items()
        for pair, margin in figures.items.items()
    }


def _bare(
    items: Mapping[tuple[str, str], Mapping[float, float]],
    ends: Mapping[tuple[str, str], float],
    known: Mapping[str, Pair],
) -> tuple[Strip, ...]:
    """Strips with margins only, and with the words of known pairs."""
    return tuple(
        Strip(
            known.get(pair, Pair(pair, category, "", "", "", "")), anchor(pair), margins, (),
            ends.get((category, pair)),
        )
        for (category, pair), margins in items.items()
    )  # fmt: skip


def _strips(
    images: Iterable[tuple[Pair, GalleryImage]],
    items: Mapping[tuple[str, str], Mapping[float, float]],
    ends: Mapping[tuple[str, str], float],
) -> list[Strip]:
    rows: dict[Pair, dict[int, list[GalleryImage]]] = {}
    for pair, image in images:
        rows.setdefault(pair, {}).setdefault(image.seed, []).append(image)
    return [
        Strip(
            pair, anchor(pair.id), items.get((pair.category, pair.id), {}),
            tuple((seed, tuple(row)) for seed, row in sorted(by_seed.items())),
            ends.get((pair.category, pair.id)),
        )
        for pair, by_seed in rows.items()
    ]  # fmt: skip


def _gallery_images(
    store: RunFolder,
    jobs: Sequence[Job],
    judge: str,
    full_images: Path | None,
    *,
    is_target: bool,
) -> Iterator[tuple[Job, GalleryImage]]:
    """Each job with its image, margin, or problem."""
    frame = store.margins(jobs, judge)
    margins = dict(zip(frame["key"], frame["margin"].tolist(), strict=True))
    reasons = {job.key: reason for job, reason in store.failures(jobs)}
    absent = {job.key for job in store.without_image(jobs)}
    for job in jobs:
        image = GalleryImage(job.alpha, job.seed, margins.get(job.key), is_target=is_target)
        if job.key in absent:
            yield job, replace(image, problem=reasons.get(job.key, "not generated"))
        else:
            yield job, _with_file(image, store, job, full_images)


def _with_file(
    image: GalleryImage, store: RunFolder, job: Job, full_images: Path | None
) -> GalleryImage:
    try:
        pixels = store.read_image(job)
    except StoreError:
        return replace(image, problem="its file is missing or was changed")
    href = ""
    if full_images is not None:
        full_images.mkdir(parents=True, exist_ok=True)
        check_own(full_images.parent, full_images)  # it may be a link that leads anywhere
        write_atomically(full_images / f"{job.key}.png", to_png(pixels))
        href = f"{quote(full_images.name)}/{job.key}.png"
    src, width, height = data_uri(pixels)
    return replace(image, src=src, width=width, height=height, href=href)
