"""The suite's terms and their definitions: one table for docs/glossary.md and for the report.

Write the page again after a change here::

    python -m analogy.report.glossary > docs/glossary.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from markupsafe import Markup, escape


class RunKind(StrEnum):
    """Kinds of runs: with all images, or sequential, until each cell is decided."""

    FULL = "full"
    SEQUENTIAL = "sequential"


@dataclass(frozen=True, slots=True)
class Term:
    """A term and its definition, one or two sentences; code is between backticks.

    ``only``: the kind of run whose report includes it; None for both.
    """

    name: str
    definition: str
    only: RunKind | None = None

    @property
    def html(self) -> Markup:
        """The definition as HTML, escaped, with its code marked up."""
        return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(self.definition))))


@dataclass(frozen=True, slots=True)
class Section:
    """A section of terms. ``in_report``: whether reports use these terms."""

    title: str
    terms: tuple[Term, ...]
    in_report: bool = True


SECTIONS = (
    Section(
        "What is measured",
        (
            Term(
                "pair",
                "A source concept A and a target concept T, each as a word and as a prompt. "
                "The two prompts differ in nothing but these words: “a red car”, “a blue "
                "car”.",
            ),
            Term(
                "alpha",
                "How strongly the model is steered from A towards T. It is the steering "
                "method's own unit: the same alpha of two methods need not have the same "
                "effect.",
            ),
            Term(
                "unsteered",
                "The source prompt's own image, at alpha 0. Every grid has one for each pair "
                "and seed.",
            ),
            Term(
                "null",
                "Steering in a random direction of the same size (the method `random`). It "
                "shows what any change of that size would score.",
            ),
            Term(
                "target prompt",
                "What the model draws for the target prompt itself, without steering: the "
                "most that steering can ask of this model. “Of target” is `margin / margin of "
                "the target prompt's own images`.",
            ),
            Term(
                "item",
                "One pair at one alpha: the mean over its seeds. Items are what intervals and "
                "tests count.",
            ),
            Term(
                "cell",
                "One category at one alpha: all its items. Each cell has a verdict.",
            ),
            Term(
                "grid",
                "All images of a run: every pair at every alpha with every seed.",
            ),
            Term(
                "failed image",
                "An image that came out as NaN or black, also after it was decoded again in "
                "float32. It is named, never scored, and its cell is incomplete.",
            ),
        ),
    ),
    Section(
        "Figures and verdicts",
        (
            Term(
                "judge",
                "The model that scores how well an image fits a prompt, by default a CLIP "
                "model. It is another model than the one that is measured.",
            ),
            Term(
                "margin",
                "`m(x) = cos(x, T) - cos(x, A)`: how much better image x fits the target "
                "prompt than the source prompt, by the judge. Above 0 the image is closer to "
                "the target; the range is -2 to 2.",
            ),
            Term(
                "gain",
                "`m(alpha) - m(0)`, pair by pair: what steering itself changed. It is above 0 "
                "also for an image that was merely destroyed, so verdicts are about the "
                "margin.",
            ),
            Term(
                "success rate",
                "The share of items with a margin above 0. The tables' column is `>0`.",
            ),
            Term(
                "ceiling",
                "The judge's mean margin for images that truly show the target, where such "
                "images are known. “Of ceiling” is `margin / ceiling`.",
            ),
            Term(
                "95% interval",
                "A range that holds the true mean in 95 of 100 repetitions with other pairs. "
                "It is a studentized bootstrap that resamples pairs, each with all its seeds "
                "and alphas, because images of one pair are alike.",
                RunKind.FULL,
            ),
            Term(
                "look",
                "In a sequential run (`--sequential`): a cell is examined at a few fixed "
                "numbers of pairs and seeds, and stops at the first that decides it. Each "
                "look has its own small level; together they keep the error of a full run.",
                RunKind.SEQUENTIAL,
            ),
            Term(
                "interval of a look",
                "The studentized bootstrap interval of the pairs of a look, at the confidence "
                "that its level leaves: `1 - 2 level`, such as 99.94%. The intervals of all "
                "looks hold together, so it is right at whatever look a cell stops.",
                RunKind.SEQUENTIAL,
            ),
            Term(
                "sequential p",
                "The p of a success that allows for all looks: the levels of the looks before, "
                "plus the larger p of the t-test and the bootstrap at the look where the cell "
                "stopped; 1 for a cell that stopped for another reason.",
                RunKind.SEQUENTIAL,
            ),
            Term(
                "Holm's p of looks",
                "The sequential p, corrected for testing all cells at once as Holm's p is: without "
                "it, a few of many cells succeed by chance.",
                RunKind.SEQUENTIAL,
            ),
            Term(
                "stopped early",
                "Decided before the last look. The verdict holds, but the mean is too far from "
                "0, because a cell stops where its mean happens to be large. For a number run "
                "the full grid.",
                RunKind.SEQUENTIAL,
            ),
            Term(
                "ICC",
                "The share of the variance of single images that lies between pairs, from 0 to "
                "1; the rest lies between the seeds of a pair. The closer to 1, the less "
                "further seeds tell.",
                RunKind.SEQUENTIAL,
            ),
            Term(
                "p",
                "The chance of a mean at least this large if the true mean were 0: a "
                "one-sided t-test over pairs, `t = mean / (s / √n)`.",
                RunKind.FULL,
            ),
            Term(
                "Holm's p",
                "p corrected for testing all cells at once: without it, a few of many cells "
                "succeed by chance. The i-th smallest of k is multiplied by `k - i + 1`, and "
                "none may be smaller than the one before; a cell enters with the larger p of "
                "the t-test and the bootstrap.",
                RunKind.FULL,
            ),
            Term(
                "slope",
                "Dose and response: the least-squares slope of the margin on alpha, pair by "
                "pair, then the mean over pairs.",
            ),
            Term(
                "verdict",
                "What a cell's margin says about steering: `success`, `failure`, "
                "`inconclusive`, `too_few`, `incomplete` or `blind`. Only the first two are "
                "findings about the method.",
            ),
            Term(
                "success",
                "The interval lies above 0 and p < 0.05.",
                RunKind.FULL,
            ),
            Term(
                "success of a look",
                "Before the last look: the larger p of the t-test and the bootstrap is at most "
                "the look's level. At the last: its interval lies above 0 and p is below twice "
                "its level.",
                RunKind.SEQUENTIAL,
            ),
            Term(
                "failure",
                "The interval lies below 0: the images are still closer to the source.",
            ),
            Term(
                "inconclusive",
                "Neither: the pairs are too few to tell. It is no evidence that steering does "
                "nothing.",
            ),
            Term(
                "too few",
                "5 pairs or fewer (`too_few`): the interval decides nothing.",
            ),
            Term(
                "incomplete",
                "Images are missing or failed, so the cell is not what was asked for.",
            ),
            Term(
                "blind",
                "The judge does not tell true images of the target from true images of the "
                "source in this category, so nothing is said about the method there.",
            ),
        ),
    ),
    Section(
        "Metrics beside the margin",
        (
            Term(
                "SSIM, PSNR, LPIPS",
                "How much of the unsteered image with the same seed is left. SSIM: similarity "
                "of structure, 1 for the same image; PSNR: `10 log10(255² / MSE)` in dB, "
                "higher is closer; LPIPS: distance in a network's features, 0 for the same "
                "image.",
            ),
            Term(
                "CLIPScore",
                "`100 max(cos(x, T), 0)`: similarity to the target prompt alone.",
            ),
            Term(
                "directional similarity",
                "`cos(x - x0, T - A)`, where x0 is the unsteered image: did the image move as "
                "the prompt did?",
            ),
            Term(
                "CMMD, KID",
                "How far the distribution of all images at one alpha is from that of "
                "reference images; lower is closer.",
            ),
        ),
    ),
    Section(
        "The suite",
        (
            Term(
                "conditioning",
                "What the denoiser receives of a prompt: the token states and, for SDXL, the "
                "pooled vector.",
            ),
            Term(
                "steering method",
                "A function that takes the conditionings of source and target, the pair of "
                "words and alpha, and gives the conditioning to draw. A method may also "
                "change the pipeline while it generates.",
            ),
            Term(
                "family",
                "The diffusers pipelines that work alike, such as SDXL, and the adapter for "
                "what is particular to them.",
            ),
            Term(
                "engine",
                "What runs the work: `serial` in this process, or `ray` on all devices of a "
                "machine or a cluster.",
            ),
            Term(
                "run folder",
                "The folder in which a run keeps its images, scores and results. The same "
                "command continues it after an interruption.",
            ),
            Term(
                "measurement",
                "What figures must share to be comparable: pairs, seeds, alphas, judge, image "
                "size and limit. Baselines of another measurement are refused.",
            ),
            Term(
                "subject",
                "What is measured: model, steering method, steps, guidance, scheduler, dtype "
                "and versions. It may differ between a run and its baseline.",
            ),
            Term(
                "baseline",
                "The results of an earlier run that a later one is compared with, pair by pair.",
            ),
            Term(
                "finding",
                "How one case of a session ends (a cell, a metric with its limit, a "
                "comparison with the baseline): the outcome, the reason and the figures.",
            ),
            Term(
                "seam",
                "A place where code of your own can take part: method, metric, judge, family, "
                "engine or output. Each is one small protocol and one table of names.",
            ),
        ),
        in_report=False,
    ),
)


def report_terms(*, is_sequential: bool) -> Iterator[Term]:
    """The terms in the report of a run."""
    kind = RunKind.SEQUENTIAL if is_sequential else RunKind.FULL
    for section in SECTIONS:
        for term in section.terms:
            if section.in_report and term.only in (None, kind):
                yield term


def page() -> str:
    """The text of docs/glossary.md."""
    lines = [
        "# Glossary",
        "",
        "<!-- Written by `python -m analogy.report.glossary > docs/glossary.md`; edit"
        " analogy/report/glossary.py. -->",
        "",
        "The words of tables, reports and these pages. Two keys of [results.json](results.md) keep",
        "older names: `controls` are the unsteered images, and `config.control` says whether the",
        "null was measured.",
    ]
    for section in SECTIONS:
        lines += ["", f"## {section.title}", "", "| term | meaning |", "|---|---|"]
        lines += [f"| **{term.name}** | {term.definition} |" for term in section.terms]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
