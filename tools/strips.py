"""Strips of the default run's images, one below the other: docs/strips.png and docs/methods.png.

    python -m tools.strips -o strips.png                            # a pair of each category
    python -m tools.strips --methods word,span --pairs color-01,scene-01 -o methods.png

With ``--methods`` each pair has a strip by each method, at the method's own strengths.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from analogy.core.files import PlaceError, check_output
from analogy.core.records import Pair
from analogy.report.pictures import picture_format, save
from analogy.report.strips import AWAY, TOWARDS, StripImage, generate_strip, scaled
from analogy.settings.options import OPTIONS, parse_options
from analogy.steering.base import default_alphas
from analogy.studies.study import Study

SIDE, TEXT_WIDTH, GAP, HEAD, CAPTION = 128, 250, 8, 10, 26
"""Of the sheet, in pixels."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of the sheet. ``prompts``: empty if they are those of the row above."""

    label: str
    prompts: tuple[str, ...]
    images: Sequence[StripImage]


def of_pairs(study: Study, pairs: Sequence[Pair], seed: int) -> Iterator[Strip]:
    """A strip for each pair, by the study's method."""
    for pair in pairs:
        yield Strip(pair.category, _prompts(pair), generate_strip(study, pair, [seed]))


def of_methods(
    study: Study, pairs: Sequence[Pair], methods: Sequence[str], seed: int
) -> Iterator[Strip]:
    """A strip for each pair and method, at the method's own strengths."""
    for pair in pairs:
        for i, method in enumerate(methods):
            images = generate_strip(study.by(method, default_alphas(method)), pair, [seed])
            yield Strip(method, () if i else _prompts(pair), images)


def draw_strips(strips: Sequence[Strip]) -> Image.Image:
    """The sheet: a label and the prompts, then each image with its strength and its margin.

    The target prompt's own image is in the last column of all strips.
    """
    columns = max(len(strip.images) for strip in strips)
    width = TEXT_WIDTH + columns * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, HEAD + len(strips) * (SIDE + CAPTION + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    for row, strip in enumerate(strips):
        y = HEAD + row * (SIDE + CAPTION + GAP)
        draw.text((GAP, y), strip.label, "#444444", font)
        draw.multiline_text((GAP, y + 24), "\n".join(strip.prompts), "black", small, spacing=5)
        for i, shown in enumerate(strip.images):
            column = columns - 1 if shown.alpha is None else i
            x = TEXT_WIDTH + column * (SIDE + GAP)
            if shown.image is None:
                draw.text((x, y + SIDE // 2), "failed", "#666666", small)
                continue
            sheet.paste(scaled(shown.image, SIDE), (x, y))
            strength = "target" if shown.alpha is None else f"alpha {shown.alpha:g}"
            color = TOWARDS if shown.margin > 0 else AWAY
            draw.text((x, y + SIDE + 4), f"{strength}: {shown.margin:+.3f}", color, small)
    return sheet


def _prompts(pair: Pair) -> tuple[str, ...]:
    source, target = (textwrap.wrap(text, 36) for text in (pair.source_prompt, pair.target_prompt))
    return (*source, "->", *target)


def main() -> None:
    """Draw the sheet from the default run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("strips.png"))
    parser.add_argument("--nth", type=int, default=1, help="which pair of each category (from 1)")
    parser.add_argument("--pairs", help="ids in the place of these, separated by commas")
    parser.add_argument("--methods", help="separated by commas; all for each pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", help="the run folder, if not the default one")
    options = parser.parse_args()
    try:  # before the work, not after it
        check_output(options.output)
        picture_format(options.output)
    except (PlaceError, ValueError) as error:
        parser.error(f"-o: {error}")
    defaults = {option.name: option.default for option in OPTIONS}
    study = Study.open(replace(parse_options(defaults.__getitem__), run_dir=options.run_dir))
    pairs = [
        [pair for pair in study.pairs if pair.category == category][options.nth - 1]
        for category in study.categories
    ]
    if options.pairs is not None:
        by_id = {pair.id: pair for pair in study.pairs}
        unknown = [name for name in options.pairs.split(",") if name not in by_id]
        if unknown:
            parser.error(f"--pairs: expected ids of pairs.csv, got {', '.join(unknown)}")
        pairs = [by_id[name] for name in options.pairs.split(",")]
    if options.methods is None:
        strips = [*of_pairs(study, pairs, options.seed)]
    else:
        strips = [*of_methods(study, pairs, options.methods.split(","), options.seed)]
    save(draw_strips(strips), options.output)


if __name__ == "__main__":
    main()
