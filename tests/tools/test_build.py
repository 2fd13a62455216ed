"""The recipe's parts: continuing to the bit, schedules, the contrast, folded statistics, twins."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from analogy.world import ATTRIBUTES, is_held_out
from tools.training import loop
from tools.training.data import decode, encode, sample_training_scene, sample_twins
from tools.training.loop import Average, learning_rate, save_atomically, train
from tools.training.text import contrast
from tools.training.vae import LATENT_CHANNELS, build_vae, normalise

SAMPLES, BATCH = 40, 4


@pytest.fixture
def fit(tmp_path):
    """Fit a small network in ``folder``; returns its averaged and its plain weights.

    ``stop_at``: the step at which it is interrupted, as by Ctrl-C.
    """

    def run(folder: str, *, stop_at: int | None = None, **settings) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        average = Average(model, 0.9)

        def loss_of(step: int) -> dict[str, torch.Tensor]:
            if step == stop_at:
                raise KeyboardInterrupt
            x = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(step))
            return {"loss": (model(x) - x[:, :2]).square().mean()}

        run.figures = train(
            "fit", tmp_path / folder, {"model": model}, loss_of, samples=SAMPLES, batch=BATCH,
            lr=0.05, average=average, averaged=model, **settings,
        )  # fmt: skip
        return {**average.state_dict(), **model.state_dict()}

    return run


# --- the loop


@pytest.mark.parametrize("muon", [False, True], ids=["adam", "muon"])
@pytest.mark.parametrize("stop_at", [0, 1, 5, 9])
def test_an_interrupted_training_continues_to_the_bit(fit, monkeypatch, muon, stop_at):
    whole = fit("whole", muon=muon)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)  # after every step
    with pytest.raises(KeyboardInterrupt):
        fit("parts", stop_at=stop_at, muon=muon)
    continued = fit("parts", muon=muon)
    assert continued.keys() == whole.keys()
    for name, value in whole.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, continued[name]), name
        else:
            assert value == continued[name], name


def test_what_was_trained_since_the_last_checkpoint_is_trained_again(fit):
    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("parts", stop_at=5)  # before the first checkpoint
    assert torch.equal(fit("parts")["0.weight"], whole["0.weight"])


def test_a_finished_training_is_not_repeated(fit):
    first = fit("one")
    again = fit("one", stop_at=SAMPLES // BATCH)
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert fit.figures["samples"] == SAMPLES


def test_losses_are_logged_and_the_stages_figures_returned(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_STEPS", 5)
    fit("one")
    lines = [json.loads(line) for line in (tmp_path / "one" / "fit.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [20, 40]
    assert fit.figures["samples"] == SAMPLES
    assert fit.figures["loss"] == lines[-1]["loss"]
    assert fit.figures["seconds"] >= 0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_training(tmp_path, broken):
    model = nn.Linear(2, 1)

    def loss_of(step):
        return {"loss": model(torch.ones(1, 2)).sum() * (broken if step == 2 else 1.0)}

    with pytest.raises(FloatingPointError, match="fit: gradient is not finite at step 2"):
        train("fit", tmp_path, {"model": model}, loss_of, samples=10, batch=1, lr=0.1)
    assert torch.isfinite(model.weight).all()


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "fit.pt"
    save_atomically({"step": 1}, path)

    def half(state, to):
        to.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_atomically({"step": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}
    save_atomically({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["fit.pt"]


def test_the_learning_rate_rises_holds_and_falls_to_zero():
    total = 100_000
    warm = loop.WARMUP_STEPS
    assert learning_rate(0, total, 0) == pytest.approx(1 / warm)
    assert learning_rate(0, total, warm // 2 - 1) == pytest.approx(0.5)
    assert learning_rate(total // 2, total, warm) == 1.0
    falling = total - round(total * loop.DECAY_SHARE)
    assert learning_rate(falling, total, 10_000) == pytest.approx(1.0)
    assert learning_rate((falling + total) // 2, total, 10_000) == pytest.approx(0.5, abs=1e-4)
    assert learning_rate(total, total, 10_000) == 0.0
    assert learning_rate(total + 10, total, 10_000) == 0.0


def test_the_average_follows_the_parameters_and_copies_the_buffers():
    model = nn.BatchNorm1d(1)
    average = Average(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.running_mean.fill_(7.0)
    average.update(model)
    # The first step's decay is 2 / 11: there is little to average.
    assert average.module.weight.item() == pytest.approx(1.0 * 2 / 11 + 3.0 * 9 / 11)
    assert average.module.running_mean.item() == 7.0
    assert not average.module.weight.requires_grad
    for _ in range(50):
        average.update(model)
    assert average.module.weight.item() == pytest.approx(3.0)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_muons_update_is_roughly_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = loop.orthogonal(matrix)
    assert update.shape == shape
    singular = torch.linalg.svdvals(update)
    assert singular.min() > 0.5
    assert singular.max() < 1.3
    nearest = torch.linalg.svd(matrix, full_matrices=False)
    cosine = (update * (nearest.U @ nearest.Vh)).sum() / (update.norm() * len(singular) ** 0.5)
    assert cosine > 0.97


# --- the contrast


def test_the_contrast_leaves_false_negatives_out():
    rng = np.random.default_rng(0)
    n = 6
    a, b = rng.normal(size=(2, n, 4))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    same = rng.random((n, n)) < 0.3
    np.fill_diagonal(same, False)
    losses = []
    for i in range(n):
        rows = [math.exp(a[i] @ b[j] / 0.1) for j in range(n) if not same[i, j]]
        columns = [math.exp(a[j] @ b[i] / 0.1) for j in range(n) if not same[j, i]]
        own = math.exp(a[i] @ b[i] / 0.1)
        losses += [-math.log(own / sum(rows)), -math.log(own / sum(columns))]
    got = contrast(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(same), 0.1)
    assert got.item() == pytest.approx(sum(losses) / (2 * n), rel=1e-9)


def test_a_contrast_in_which_all_others_are_true_as_well_is_zero():
    a = torch.eye(3)
    assert contrast(a, a, ~torch.eye(3, dtype=torch.bool), 0.1).item() == 0.0


# --- the autoencoder


def test_normalising_folds_the_latents_statistics_into_the_autoencoder():
    torch.manual_seed(0)
    vae = build_vae().eval()
    x = torch.rand(12, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        raw, spread = before.mean, before.std
        image = vae.decode(raw).sample
        normalise(vae, raw)
        after = vae.encode(x).latent_dist
        expected = (raw - raw.mean((0, 2, 3), keepdim=True)) / raw.std((0, 2, 3), keepdim=True)
        torch.testing.assert_close(after.mean, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(LATENT_CHANNELS),
                                   atol=1e-4, rtol=0)  # fmt: skip
        torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(LATENT_CHANNELS))
        scale = raw.std((0, 2, 3)).view(1, -1, 1, 1)
        torch.testing.assert_close(after.std, spread / scale, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(vae.decode(after.mean).sample, image, atol=1e-4, rtol=1e-4)


# --- the data


def test_a_scene_survives_its_record():
    rng = random.Random(0)
    for _ in range(100):
        scene = sample_training_scene(rng)
        assert not is_held_out(scene)
        assert decode(np.array(encode(scene), np.uint8)) == scene


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("attribute", [None, *ATTRIBUTES])
def test_twins_are_on_the_same_side_of_the_held_out(attribute, held_out):
    rng = random.Random(0)
    for _ in range(5):
        scene, other, name = sample_twins(rng, held_out=held_out, attribute=attribute)
        assert is_held_out(scene) == is_held_out(other) == held_out
        assert [n for n in ATTRIBUTES if getattr(scene, n) != getattr(other, n)] == [name]
        assert attribute in (None, name)
        for value in (getattr(scene, name), getattr(other, name)):
            assert value not in ("open", "clear", "neutral", "face")
