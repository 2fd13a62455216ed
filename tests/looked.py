"""Sequential runs of planted margins, as `reported.py` has runs of all images."""

from __future__ import annotations

import random

import numpy as np
from reported import picture

from analogy.core.records import Pair

#: (category, alpha) to the mean margin: success and failure at the first look, and one undecided.
MEANS = {
    ("color", 0.0): -0.2,
    ("color", 0.5): 0.004,
    ("color", 1.0): 0.3,
    ("object", 0.0): -0.3,
    ("object", 0.5): -0.25,
    ("object", 1.0): 0.35,
}


def pairs(n: int = 20) -> list[Pair]:
    """Two categories; a category's pairs are looked at with 16, then 20, then 20 and all seeds."""
    return [
        Pair(
            f"{category}-{i:02}", category, f"a{i}", f"b{i}", f"{category} a{i}", f"{category} b{i}"
        )
        for category in ("color", "object")
        for i in range(n)
    ]


def margin(job) -> float:
    """The planted mean with a normal value of the pair and alpha, and a smaller one of the seed."""
    if job.method == "lerp":
        return 0.5 + random.Random(f"{job.pair.id} target").gauss(0, 0.05)
    mean = MEANS[job.pair.category, job.alpha]
    pair = random.Random(f"{job.pair.id} {job.alpha}").gauss(0, 0.06)
    return mean + pair + random.Random(f"{job.pair.id} {job.alpha} {job.seed}").gauss(0, 0.02)


def draw(study, jobs, *, faults=()):
    """Put images and scores of ``jobs`` into a study's folder; those of ``faults`` failed."""
    images = np.stack([picture(job, study.config.size) for job in jobs])
    failed = {jobs.index(job): "black" for job in faults if job in jobs}
    study.folder.add_images(jobs, images, 1.0, faults=failed)
    scored = [job for job in jobs if job not in faults]
    rows = [(margin(job), 0.0, margin(job)) for job in scored]
    study.folder.add_scores(scored, study.judge.fingerprint, rows, 0.5)


def draw_looks(study, *, faults=()):
    """Draw what each look needs until no cell needs more; returns the study's results.

    Images of ``faults`` fail, so that their cells stay open.
    """
    study.record(None)
    tried: set[str] = set()
    while left := [job for job in study.jobs() if job.key not in tried]:
        tried |= {job.key for job in left}
        draw(study, left, faults=faults)
    return study.results()
