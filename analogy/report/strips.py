"""Strips: a pair's unsteered image, its image at each strength, and the target prompt's own image.

``analogy steer`` draws a strip of one pair.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from analogy.core.images import Images
from analogy.core.records import UNSTEERED, Pair, plain
from analogy.core.strict_json import Json
from analogy.core.text import short_name
from analogy.store.grid import Role, once, targets_of
from analogy.studies.study import Study

LARGE, EDGE, SPACE, MAX_LINES = 192, 28, 14, 4
"""Layout of a strip, in pixels: an image's side, the edge, the space between images; and the most
lines of a prompt."""

TOWARDS, AWAY = "#0072b2", "#d55e00"
"""Colours of margins above 0, and of all others, as in the report: safe for the colour-blind."""

_INK, _GREY, _RULE = "#1b1f24", "#68707a", "#d8dde3"


@dataclass(frozen=True, slots=True)
class StripImage:
    """One image of a pair with its margin and cosines, NaN without a score.

    ``alpha``: None for the target prompt's own image; ``image``: uint8 HWC, None if it failed;
    ``problem``: the reason for that, otherwise empty.
    """

    seed: int
    alpha: float | None
    image: Images | None
    margin: float
    cos_target: float
    cos_source: float
    problem: str

    @property
    def title(self) -> str:
        """Its caption."""
        if self.alpha is None:
            return "target prompt"
        return f"alpha {self.alpha:g}" + (" (source)" if self.alpha == UNSTEERED else "")

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON, without the image."""
        names = [field.name for field in fields(self) if field.name != "image"]
        return {name: plain(getattr(self, name)) for name in names}


def generate_strip(study: Study, pair: Pair, seeds: Sequence[int]) -> list[StripImage]:
    """Generate and score a pair's images: for each seed, every alpha and the target prompt's own.

    The target prompt's own image has the same latents. It is made by ``lerp`` at alpha 1, whose
    conditioning is that of the target prompt.
    """
    jobs = [
        job
        for job in study.grid.jobs(Role.UNSTEERED, Role.STEERED, category=pair.category)
        if job.pair == pair and job.seed in seeds
    ]
    own = targets_of(study.grid, pair, seeds)
    wanted = once([*jobs, *own])
    study.generate(wanted)
    study.score(wanted)
    frame = study.folder.margins(wanted, study.judge.fingerprint)
    failed = {job.key: reason for job, reason in study.failures(wanted)}
    columns = [frame[name].tolist() for name in ("margin", "cos_target", "cos_source")]
    figures = dict(zip(frame["key"], zip(*columns, strict=True), strict=True))
    none = (float("nan"),) * 3
    made = []
    for seed in seeds:
        for job, alpha in [*((j, j.alpha) for j in jobs), *((j, None) for j in own)]:
            if job.seed == seed:
                margin, cos_target, cos_source = figures.get(job.key, none)
                image = None if job.key in failed else study.folder.read_image(job)
                problem = failed.get(job.key, "")
                made.append(StripImage(seed, alpha, image, margin, cos_target, cos_source, problem))
    return made


def draw_strip(study: Study, pair: Pair, strip: Sequence[StripImage]) -> Image.Image:
    """A pair's prompts and, for each seed, a row of images with their margins."""
    columns = len({entry.alpha for entry in strip})
    rows = len(strip) // columns
    label = 70 if rows > 1 else 0
    content = label + columns * LARGE + (columns - 1) * SPACE + SPACE
    width = max(content, 560) + 2 * EDGE
    large, font, small = (ImageFont.load_default(size) for size in (21, 16, 14))
    prompts = []
    for name, prompt in (("from", pair.source_prompt), ("to", pair.target_prompt)):
        lines = _wrapped(prompt, large, width - 2 * EDGE - 60)
        prompts += [("" if i else name, line) for i, line in enumerate(lines)]
    top = EDGE + 30 * len(prompts) + 44
    row_height = LARGE + 62
    sheet = Image.new("RGB", (width, top + 26 + rows * row_height + 38), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, line) in enumerate(prompts):
        draw.text((EDGE, EDGE + 30 * i + 4), name, _GREY, font)
        draw.text((EDGE + 60, EDGE + 30 * i), line, _INK, large)
    draw.line([(EDGE, top - 26), (width - EDGE, top - 26)], _RULE)
    reach = max((abs(entry.margin) for entry in strip if entry.image is not None), default=0.0)
    for i, entry in enumerate(strip):
        row, column = divmod(i, columns)
        x = EDGE + label + column * (LARGE + SPACE) + (SPACE if entry.alpha is None else 0)
        y = top + 26 + row * row_height
        if row == 0:
            draw.text((x + LARGE // 2, top + 4), entry.title, _INK, font, anchor="mm")
        if column == 0 and label:
            draw.text((EDGE, y + LARGE // 2), f"seed {entry.seed}", _GREY, small, anchor="lm")
        _draw_entry(sheet, entry, (x, y), reach, font)
    names = (study.grid.model, study.judge.fingerprint)
    model, judge = (short_name(fingerprint) for fingerprint in names)
    note = (
        f"{model}, {study.config.method}; judged by {judge}. "
        "Margin above 0: closer to the target prompt than to the source prompt."
    )
    draw.text((EDGE, sheet.height - 30), _wrapped(note, small, width - 2 * EDGE)[0], _GREY, small)
    return sheet


def _draw_entry(
    sheet: Image.Image, entry: StripImage, place: tuple[int, int], reach: float, font: Any
) -> None:
    """Draw an image, its margin, and a bar from 0 to the margin.

    ``place``: the image's left and top; ``reach``: the margin whose bar is half an image wide.
    """
    draw, (x, y) = ImageDraw.Draw(sheet), place
    middle, below = x + LARGE // 2, y + LARGE
    frame = [x - 1, y - 1, x + LARGE, below]
    if entry.image is None:
        draw.rectangle(frame, "#f2f4f6", _RULE)
        draw.text((middle, y + LARGE // 2), "failed", _GREY, font, anchor="mm")
        return
    sheet.paste(scaled(entry.image, LARGE), place)
    draw.rectangle(frame, None, _RULE)
    color = TOWARDS if entry.margin > 0 else AWAY
    draw.text((middle, below + 18), f"margin {entry.margin:+.3f}", color, font, anchor="mm")
    end = middle + (round(entry.margin / reach * LARGE / 2) if reach else 0)
    draw.line([(x, below + 38), (x + LARGE - 1, below + 38)], _RULE)
    draw.rectangle([min(middle, end), below + 35, max(middle, end), below + 41], color)
    draw.line([(middle, below + 31), (middle, below + 45)], _GREY)


def scaled(image: Images, side: int) -> Image.Image:
    """An image, uint8 HWC, as a square of ``side`` pixels."""
    return Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Lines of at most ``width`` pixels; the last ends with an ellipsis if there are too many."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < MAX_LINES:
        fits = bisect_right(range(len(rest)), width, key=lambda n: font.getlength(rest[: n + 1]))
        if fits < len(rest):  # break at a space, or within a word that is wider than a line
            fits = rest.rfind(" ", 0, fits + 1) + 1 or max(fits, 1)
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    if rest:
        while font.getlength(lines[-1] + "...") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return lines
