"""One pair of each category, one below the other: the picture docs/strips.png.

python -m tools.strips -o strips.png
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from analogy.core.files import PlaceError, check_output
from analogy.core.records import Pair
from analogy.report.pictures import picture_format, save
from analogy.report.strips import AWAY, TOWARDS, generate_strip, scaled
from analogy.settings.options import OPTIONS, parse_options
from analogy.studies.study import Study

SIDE, TEXT_WIDTH, GAP, HEAD = 128, 250, 8, 34
"""Layout of the sheet, in pixels."""


def draw_strips(study: Study, pairs: Sequence[Pair], seed: int) -> Image.Image:
    """A row per pair: its prompts, and the image at each alpha and the target prompt's own image,
    with their margins.
    """
    rows = [generate_strip(study, pair, [seed]) for pair in pairs]
    width = TEXT_WIDTH + len(rows[0]) * (SIDE + GAP) + GAP
    height = HEAD + len(pairs) * (SIDE + 26 + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    for i, shot in enumerate(rows[0]):
        draw.text((TEXT_WIDTH + i * (SIDE + GAP), 10), shot.title, "black", small)
    for row, (pair, shots) in enumerate(zip(pairs, rows, strict=True)):
        y = HEAD + row * (SIDE + 26 + GAP)
        draw.text((GAP, y), pair.category, "#666666", small)
        prompts = [*textwrap.wrap(pair.source_prompt, 30), "->"]
        prompts += textwrap.wrap(pair.target_prompt, 30)
        draw.multiline_text((GAP, y + 22), "\n".join(prompts), "black", font, spacing=5)
        for i, shot in enumerate(shots):
            x = TEXT_WIDTH + i * (SIDE + GAP)
            if shot.image is None:
                draw.text((x, y + SIDE // 2), "failed", "#666666", small)
                continue
            sheet.paste(scaled(shot.image, SIDE), (x, y))
            color = TOWARDS if shot.margin > 0 else AWAY
            draw.text((x, y + SIDE + 4), f"margin {shot.margin:+.3f}", color, small)
    return sheet


def main() -> None:
    """Draw one pair of each category from the default run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("strips.png"))
    parser.add_argument("--nth", type=int, default=1, help="which pair of each category (from 1)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:  # fails before the work, not after it
        check_output(options.output)
        picture_format(options.output)
    except (PlaceError, ValueError) as error:
        parser.error(f"-o: {error}")
    defaults = {option.name: option.default for option in OPTIONS}
    study = Study.open(parse_options(defaults.__getitem__))
    pairs = [
        [pair for pair in study.pairs if pair.category == category][options.nth - 1]
        for category in study.categories
    ]
    save(draw_strips(study, pairs, options.seed), options.output)


if __name__ == "__main__":
    main()
