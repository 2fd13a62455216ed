"""The comparison with Pruna: its conventions against torchmetrics, which it calls, and its files.

Pruna itself is not needed: docs/pruna.md has the commands that run it.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torchvision
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from analogy.core.images import to_tensor
from analogy.metrics import psnr
from analogy.settings.pairs import load_pairs
from analogy.world.ceiling import PAIRS
from analogy.world.drawings import drawings
from tools import pruna_compare, pruna_peer
from tools.distort import noise
from tools.pruna_compare import (
    ALEXNET,
    Row,
    inferred_ssim,
    pooled_psnr,
    prepare,
    read_images,
    relative,
    table,
)


@pytest.fixture(scope="module")
def images():
    """Seven drawings, two of which never reach white."""
    drawn = np.stack([drawings(pair, renders=1)[0][1] for pair in load_pairs(PAIRS)[:7]])
    drawn[:2] //= 2
    return drawn


@pytest.fixture(scope="module")
def others(images):
    """The drawings under noise, the first ones hardly."""
    strengths = np.array([1, 2, 4, 8, 16, 32, 64])[:, None, None, None]
    mixed = images + (noise(images, 20).astype(float) - images) * strengths / 20
    return mixed.clip(0, 120).round().astype(np.uint8)


def test_pooled_psnr_is_that_of_torchmetrics(images, others):
    metric = PeakSignalNoiseRatio(data_range=255.0)
    for i in range(0, 7, 3):
        metric.update(to_tensor(others[i : i + 3]), to_tensor(images[i : i + 3]))
    pooled = pooled_psnr(others, images)
    assert pooled == pytest.approx(metric.compute().item(), rel=1e-6)
    assert pooled < psnr(others, images).mean() - 1


def test_ssim_with_an_inferred_range_is_that_of_torchmetrics_in_the_same_batches(images, others):
    values = {}
    for batch in (2, 3, 7):
        metric = StructuralSimilarityIndexMeasure().set_dtype(torch.float64)
        for i in range(0, 7, batch):
            metric.update(
                to_tensor(others[i : i + batch]).double(), to_tensor(images[i : i + batch]).double()
            )
        values[batch] = inferred_ssim(others, images, batch)
        assert values[batch] == pytest.approx(metric.compute().item(), rel=1e-9)
    assert len(set(values.values())) == 3


def test_the_folder_holds_the_same_prompts_drawings_and_weights_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(pruna_compare, "random_inception", lambda path: path.touch())
    for name in ("a", "b"):
        prepare(tmp_path / name, 16)
    files = {
        name: {
            file.relative_to(tmp_path / name): file.read_bytes()
            for file in (tmp_path / name).rglob("*")
            if file.is_file() and file.suffix != ".pth"
        }
        for name in ("a", "b")
    }
    assert files["a"] == files["b"]
    prompts = (tmp_path / "a" / "prompts.txt").read_text().splitlines()
    pairs = [pair for pair in load_pairs(PAIRS) if pair.target_prompt in prompts]
    assert len(prompts) == 16
    assert len({pair.category for pair in pairs}) == 8
    drawn = read_images(tmp_path / "a" / "references")
    np.testing.assert_array_equal(drawn[0], drawings(pairs[0], 1)[0][1])
    states = [torch.load(tmp_path / name / ALEXNET, weights_only=True) for name in ("a", "b")]
    torchvision.models.alexnet(weights=None).load_state_dict(states[0])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("n", [1, 401])
def test_a_number_of_prompts_that_there_are_not_is_refused(tmp_path, n):
    with pytest.raises(ValueError, match=re.escape(f"expected 2..400, got {n}")):
        prepare(tmp_path, n)


def test_a_difference_is_relative_to_the_other_side():
    assert relative(1.1, 1.0) == pytest.approx(0.1)
    assert relative(-1.0, -2.0) == 0.5
    assert relative(0.0, 0.0) == 0.0
    assert relative(1e-9, 0.0) == float("inf")


def test_the_table_has_a_line_for_every_row():
    rows = [Row("psnr", "single", 10.0, 12.5, 10.0001, 0.5, 0.25)]
    head, rule, line = table(rows).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["psnr", "single", "10", "12.5", "2.5", "10.0001", "1e-05", "0.500", "0.250"]


def test_images_that_pruna_judged_are_kept_and_others_under_their_name_refused(tmp_path, images):
    pruna_peer.save(list(to_tensor(images)), tmp_path)
    pruna_peer.save(list(to_tensor(images)), tmp_path)
    np.testing.assert_array_equal(read_images(tmp_path), images)
    with pytest.raises(RuntimeError, match="another image"):
        pruna_peer.save(list(to_tensor(images[::-1])), tmp_path)


def test_a_timed_metric_computes_what_it_did_and_counts_both_calls(monkeypatch):
    class Sum:
        total = 0

        def update(self, value):
            self.total += value

        def compute(self):
            return self.total

    clock = iter([0.0, 1.0, 10.0, 12.0, 100.0, 104.0])
    monkeypatch.setattr(pruna_peer.time, "perf_counter", lambda: next(clock))
    metric = Sum()
    count = pruna_peer.timed(metric)
    metric.update(2)
    metric.update(3)
    assert metric.compute() == 5
    assert count == {"seconds": 7.0}
