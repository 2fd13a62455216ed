"""Strips: a pair's images from the control over the strengths to the target prompt's own.

``python -m analogy.report.strips -o strips.png`` draws one pair of each category.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from analogy.generator import Generator, latents_for
from analogy.images import Images
from analogy.models import load_pipeline
from analogy.options import OPTIONS, parse_options
from analogy.records import Pair
from analogy.study import Study

SIDE, TEXT_WIDTH, GAP, HEAD = 128, 250, 8, 34


def draw_strips(study: Study, pairs: Sequence[Pair], seed: int) -> Image.Image:
    """One row a pair: its prompts, the image at each alpha with its margin, the target's own."""
    alphas = study.config.grid_alphas
    jobs = [j for j in study.jobs() if j.pair in pairs and j.seed == seed]
    study.generate(jobs)
    study.score(jobs)
    frame = study.folder.margins(jobs, study.judge.fingerprint)
    keys = zip(frame["pair_id"], frame["alpha"], strict=True)
    margins: dict[tuple[str, float], float] = dict(zip(keys, frame["margin"], strict=True))
    images = {(j.pair.id, j.alpha): study.folder.read_image(j) for j in jobs}
    own = _target_images(study, pairs, seed)
    own_margins = _margins_of(study, pairs, own)

    columns = [*(f"alpha {alpha:g}" + (" (control)" if not alpha else "") for alpha in alphas)]
    columns.append("target prompt")
    width = TEXT_WIDTH + len(columns) * (SIDE + GAP) + GAP
    height = HEAD + len(pairs) * (SIDE + 26 + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    for i, title in enumerate(columns):
        draw.text((TEXT_WIDTH + i * (SIDE + GAP), 10), title, "black", small)
    for row, pair in enumerate(pairs):
        y = HEAD + row * (SIDE + 26 + GAP)
        draw.text((GAP, y), pair.category, "#666666", small)
        prompts = [*textwrap.wrap(pair.source_prompt, 30), "->"]
        prompts += textwrap.wrap(pair.target_prompt, 30)
        draw.multiline_text((GAP, y + 22), "\n".join(prompts), "black", font, spacing=5)
        cells = [(images[pair.id, a], margins[pair.id, a]) for a in alphas]
        cells.append((own[row], own_margins[row]))
        for i, (image, margin) in enumerate(cells):
            x = TEXT_WIDTH + i * (SIDE + GAP)
            sheet.paste(
                Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y)
            )
            color = "#0b6e2d" if margin > 0 else "#a11d1d"
            draw.text((x, y + SIDE + 4), f"margin {margin:+.3f}", color, small)
    return sheet


def _target_images(study: Study, pairs: Sequence[Pair], seed: int) -> Images:
    config = study.config
    pipeline = load_pipeline(study.model, device=config.device, dtype=config.dtype)
    generator = Generator(pipeline, steps=config.steps, guidance=config.guidance, size=config.size)
    encoded = generator.encode([pair.target_prompt for pair in pairs])
    latents = torch.stack([latents_for(pair, seed, generator.latent_shape) for pair in pairs])
    return generator.generate([encoded[pair.target_prompt] for pair in pairs], latents).images


def _margins_of(study: Study, pairs: Sequence[Pair], images: Images) -> list[float]:
    judge = study.execution.judge
    features = judge.image_features(images)
    target = judge.text_features([pair.target_prompt for pair in pairs])
    source = judge.text_features([pair.source_prompt for pair in pairs])
    margins: list[float] = np.einsum("nd,nd->n", features, target - source).tolist()
    return margins


def main() -> None:
    """Draw one pair of each category from the default run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("strips.png"))
    parser.add_argument("--nth", type=int, default=1, help="which pair of each category (from 1)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    defaults = {option.name: option.default for option in OPTIONS}
    study = Study.open(parse_options(defaults.__getitem__))
    pairs = [
        [pair for pair in study.pairs if pair.category == category][options.nth - 1]
        for category in study.categories
    ]
    draw_strips(study, pairs, options.seed).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
