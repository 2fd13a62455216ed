"""The sliders of the embedded model: for each word of each category a LoRA that steers to it.

For a prompt with another word of the category, a slider changes the denoiser's projections of the
text to those of the same prompt with the slider's word. It is fitted in closed form on text alone,
by the ridge regression of Unified Concept Editing (Gandikota et al. 2024, arXiv 2308.14761), here
of low rank. Concept Sliders (arXiv 2311.12092) are trained on noise predictions instead, which
takes a thousand times the work.

Captions are drawn from the rendered world. A scene is left out if one of its captions is a prompt
of the shipped pairs, so that no slider is fitted on a prompt that it is measured on.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from analogy.core.words import folded
from analogy.models.fingerprints import write_checksums
from analogy.models.generator import Generator
from analogy.models.loading import load_pipeline
from analogy.models.samplings import EMBEDDED_SAMPLING
from analogy.models.sources import find_pipeline
from analogy.settings.pairs import load_pairs
from analogy.world import ATTRIBUTES, VALUES, caption, mentions
from analogy.world.scene import is_drawable
from analogy.world.vocabulary import SCENES
from tools.training.data import sample_twins
from tools.training.export import PIPELINE
from tools.training.measure import UNSAID
from tools.training.pairs import PAIRS_CSV

SEED = 11
RANK = 8
#: The numbers of scenes on which a category's sliders are fitted, and of held-out scenes on which
#: they are measured.
FITTED, MEASURED = 200, 40
#: The strength of the ridge penalty, relative to the mean square of the inputs.
RIDGE = 1e-3

Matrices: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""A module's name to a LoRA's matrices, ``(rank, inputs)`` and ``(outputs, rank)``."""


def fit_sliders(models: Path) -> dict[str, Any]:
    """Write ``models/sliders/CATEGORY/WORD.safetensors``. Returns figures, with the share explained
    by category.

    That is the share of the squared change of the modules' outputs, from another word to the
    slider's, on held-out scenes. The figures are also written to ``models/sliders/METRICS.json``.
    """
    folder = models / "sliders"
    shutil.rmtree(folder, ignore_errors=True)
    source = find_pipeline(str(models / PIPELINE), dtype="float32")
    pipeline = load_pipeline(source, device="cpu", dtype="float32")
    steps, guidance = EMBEDDED_SAMPLING
    generator = Generator(pipeline, steps=steps, guidance=guidance, size=64)
    shares: dict[str, float] = {}
    weights_of = reading(pipeline.unet)
    for category in tqdm(ATTRIBUTES, desc="sliders", unit="category"):
        rng = random.Random(f"{SEED}/{category}")
        texts = captions(category, FITTED, rng, held_out=False)
        fitted, measured = (
            moments(generator, each)
            for each in (texts, captions(category, MEASURED, rng, held_out=True))
        )
        found = []
        for i, value in enumerate(texts):
            made: Matrices = {}
            for part, weights in weights_of.items():
                mine = Change.to(i, fitted[part]).low_rank(weights)
                found.append(Change.to(i, measured[part]).explained(weights, mine))
                made |= mine
            word = SCENES[value] if category == "scene" else value
            save(folder / category / f"{word.replace(' ', '_')}.safetensors", made)
        shares[category] = round(sum(found) / len(found), 3)
    figures = {"explained": shares, "rank": RANK, "scenes": FITTED, "seed": SEED}
    (folder / "METRICS.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_checksums(folder)
    return figures


def captions(category: str, n: int, rng: random.Random, *, held_out: bool) -> dict[str, list[str]]:
    """For each value of a category, captions of the same ``n`` scenes with only it changed."""
    pairs = load_pairs(PAIRS_CSV)
    prompts = {folded(text) for pair in pairs for text in (pair.source_prompt, pair.target_prompt)}
    values = [value for value in VALUES[category] if value not in UNSAID]
    found: dict[str, list[str]] = {value: [] for value in values}
    while len(found[values[0]]) < n:
        scene, _, _ = sample_twins(rng, held_out=held_out, attribute=category)
        said, state = mentions(scene, rng) | {category}, rng.getstate()
        texts = {}
        for value in values:
            rng.setstate(state)
            other = replace(scene, **{category: value})
            if is_drawable(other):
                texts[value] = caption(other, said, rng)
        if len(texts) == len(values) and prompts.isdisjoint(map(folded, texts.values())):
            for value, text in texts.items():
                found[value].append(text)
    return found


def moments(generator: Generator, texts: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """The mean outer products of the encodings of every two values' captions, by part of the
    encoding.

    float64 ``(values, values, dim, dim)``, means over captions and tokens.
    """
    encoded = generator.encode([text for each in texts.values() for text in each])
    made = [[encoded[text] for text in each] for each in texts.values()]
    parts = {
        "states": [[one.states["prompt_embeds"] for one in each] for each in made],
        "pooled": [[one.pooled["pooled_prompt_embeds"][None] for one in each] for each in made],
    }
    found = {}
    for part, tensors in parts.items():
        x = torch.stack([torch.cat(each) for each in tensors], dim=1)  # (n, values, dim)
        flat = x.flatten(1)
        products = (flat.T @ flat / len(x)).view(2 * x.shape[1:])
        found[part] = products.transpose(1, 2).double()
    return found


def reading(unet: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The weights of the modules that read a prompt's encoding, by the part that they read."""
    weights = {
        name: module.weight.detach().double()
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear)
    }
    pooled = "add_embedding.linear_1"
    states = {
        name: weight
        for name, weight in weights.items()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    }
    return {"states": states, "pooled": {pooled: weights[pooled]}}


@dataclass(frozen=True, slots=True)
class Change:
    """The change from all other values' captions to one value's, as mean outer products, each
    float64 ``(dim, dim)``.

    ``inputs``: of the others' encodings with themselves; ``cross``: of the change with these
    encodings; ``changes``: of the change with itself.
    """

    inputs: Tensor
    cross: Tensor
    changes: Tensor

    @classmethod
    def to(cls, value: int, products: Tensor) -> Change:
        """The change to the value of this index. ``products``: from :func:`moments`."""
        others = [i for i in range(len(products)) if i != value]
        inputs = products[others, others].mean(0)
        cross = products[value, others].mean(0) - inputs
        changes = products[value, value] - cross - cross.T - inputs
        return cls(inputs, cross, changes)

    def low_rank(self, weights: Mapping[str, Tensor]) -> Matrices:
        """For each module, the LoRA whose output is nearest to the change of the module's output.

        A module's input may have further columns after the encoding; the LoRA ignores these.
        """
        dim = len(self.inputs)
        second = self.inputs + RIDGE * self.inputs.diagonal().mean() * torch.eye(dim).double()
        change = torch.linalg.solve(second, self.cross.T).T  # predicts it from the encoding
        root = torch.linalg.cholesky(second)
        found = {}
        for name, weight in weights.items():
            whole = weight[:, :dim] @ change
            up = torch.linalg.svd(whole @ root, full_matrices=False).U[:, :RANK]
            down = nn.functional.pad(up.T @ whole, (0, weight.shape[1] - dim))
            found[name] = down, up
        return found

    def explained(self, weights: Mapping[str, Tensor], made: Matrices) -> float:
        """The share of the squared change of the modules' outputs that the LoRA explains."""
        shares = []
        for name, (down, up) in made.items():
            dim = len(self.inputs)
            weight, added = weights[name][:, :dim], (up @ down)[:, :dim]
            whole = (weight @ self.changes @ weight.T).trace()
            common = (weight @ self.cross @ added.T).trace()
            own = (added @ self.inputs @ added.T).trace()
            shares.append(float((2 * common - own) / whole))
        return sum(shares) / len(shares)


def save(file: Path, made: Matrices) -> None:
    """Save a LoRA in diffusers' format, in half precision."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (down, up) in made.items():
        tensors[f"unet.{name}.lora_A.weight"] = down.half().contiguous()
        tensors[f"unet.{name}.lora_B.weight"] = up.half().contiguous()
    save_file(tensors, file)
