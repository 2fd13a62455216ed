"""What only a CUDA device can show; skipped where there is none.

    pytest -m gpu

The embedded models go the whole way on it, held to the CPU's images; memory is limited for real.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from analogy.judges.open_clip import Judge
from analogy.metrics import psnr

#: The device under test. ANALOGY_TEST_DEVICE=cpu runs these tests without one, to test the tests.
DEVICE = os.environ.get("ANALOGY_TEST_DEVICE", "cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def on_cpu(make_study, pairs):
    """A study whose images a CPU has drawn in float32."""
    study = make_study(pairs=pairs[:2], steps=8)
    study.generate(study.jobs())
    return study


def images_of(study) -> np.ndarray:
    return np.stack([study.folder.read_image(job) for job in study.jobs()])


@pytest.mark.parametrize(
    ("dtype", "decibels"), [("float32", 45.0), ("float16", 35.0), ("bfloat16", 25.0)]
)
def test_a_device_draws_what_a_cpu_draws(on_cpu, make_study, dtype, decibels):
    """Same latents, same prompts; only the arithmetic differs."""
    study = make_study(pairs=on_cpu.pairs, steps=8, device=DEVICE, dtype=dtype, batch_size=None)
    study.generate(study.jobs())
    assert study.failures(study.jobs()) == []
    assert np.median(psnr(images_of(study), images_of(on_cpu))) > decibels


def test_scores_on_a_device_are_those_on_a_cpu(on_cpu, judge, judge_source):
    images = images_of(on_cpu)
    theirs = Judge(judge_source, device=DEVICE).image_features(images)
    np.testing.assert_allclose((theirs * judge.image_features(images)).sum(axis=1), 1.0, atol=1e-3)


@needs_cuda
def test_a_limit_on_memory_is_kept_and_recorded(make_study):
    study = make_study(device="cuda", dtype="float16", batch_size=None, memory=1.0)
    study.generate(study.jobs())
    peak = study.folder.peak_memory()
    assert peak is not None
    assert 0 < peak <= 2**30
    torch.cuda.set_per_process_memory_fraction(1.0)
