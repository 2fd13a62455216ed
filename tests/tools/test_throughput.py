"""What the throughput benchmark times, on a little: the sides agree, and SSD-1B is SSD-1B."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from analogy.models.sources import find_pipeline
from analogy.store.folder import RunFolder
from tools import ssd1b
from tools.throughput import (
    Generation,
    Scoring,
    analysis_of,
    bca_by_scipy,
    cells_and_pools,
    cpu_seconds,
    difference,
    generation_rows,
    intervals,
    margins,
    pictures,
)

pytest_plugins = ["pytester"]


def test_what_measures_for_minutes_is_left_out_unless_asked_for(pytester):
    """And with --perf no study is opened: there is no run folder, and no results."""
    pytester.makeini("[pytest]\nmarkers = perf: measures for minutes")
    pytester.makepyfile(
        """
        import pytest

        def test_quick():
            pass

        @pytest.mark.perf
        def test_minutes():
            pass
        """
    )
    options = ("-p", "analogy.plugin", "-p", "no:cacheprovider")
    without = pytester.runpytest_subprocess(*options)
    without.assert_outcomes(passed=1, deselected=1)
    pytester.runpytest_subprocess(*options, "--perf").assert_outcomes(passed=2)
    assert not list(pytester.path.glob("results.json"))
    assert not (pytester.path / ".analogy").exists()


# --- generation


@pytest.fixture
def generation(config, pairs, model_source, tmp_path):
    """Four pairs, alphas 0, 0.5 and 1, one seed: 12 images a round."""
    return Generation(replace(config, seeds=(0,)), pairs[:4], model_source, tmp_path)


def test_all_sides_make_the_same_images_of_the_same_latents(generation):
    ours, usual, bare = generation.same_latents(5)
    assert ours.shape == (5, 64, 64, 3)
    assert difference(ours, usual) <= 2
    assert difference(ours, bare) <= 2
    assert difference(ours[0:1], ours[1:2]) > 50


def test_a_bare_loop_without_guidance_is_the_pipelines_own(generation, config):
    without = Generation(
        replace(generation.config, guidance=1.0), generation.pairs, generation.model,
        generation.folder,
    )  # fmt: skip
    ours, usual, bare = without.same_latents(2)
    assert difference(ours, usual) <= 2
    assert difference(ours, bare) <= 2


def test_ours_is_a_whole_run_with_its_files_and_index(generation):
    threads = torch.get_num_threads()
    rows = generation_rows(generation, usual=2, rounds=2, batches=(2, 4), bars=(4.0, 1.8, 0.85))
    assert torch.get_num_threads() == threads
    assert [(row.against.split(",")[0], row.bar) for row in rows] == [
        ("usual loop", 4.0),  # float32 is the user's dtype and ours: one loop
        ("bare loop and decoder", 0.85),
    ]
    assert all(row.ratio > 0 for row in rows)
    for name in ("run-0", "run-1"):
        assert len(list((generation.folder / name / "images").rglob("*.png"))) == 12
        folder = RunFolder(generation.folder / name)
        assert folder.rate("generate") > 0
        folder.close()


# --- SSD-1B


def test_ssd_1b_has_its_parameters():
    with torch.device("meta"):
        unet = ssd1b.unet()
    count = sum(parameter.numel() for parameter in unet.parameters())
    assert count == pytest.approx(ssd1b.PARAMETERS, rel=0.03)
    depths = [
        [[len(a.transformer_blocks) for a in getattr(block, "attentions", [])] for block in blocks]
        for blocks in (unet.down_blocks, unet.up_blocks)
    ]
    assert depths == [[[], [2, 2], [4, 4]], [[4, 4, 10], [2, 1, 1], []]]
    assert len(unet.mid_block.attentions) == 0


def test_ssd_1b_in_small_goes_all_the_way(config, pairs, tmp_path):
    """The structure of the GPU's case, on the CPU: written, found, generated on all sides."""
    folder = ssd1b.write(tmp_path / "model", ssd1b.TINY)
    source = find_pipeline(str(folder), dtype="float32")
    settings = replace(config, model="SSD-1B in small", alphas=(0.5,), seeds=(0,))
    generation = Generation(settings, pairs[:2], source, tmp_path)
    ours, *others = generation.same_latents(2)
    assert ours.shape == (2, 64, 64, 3)
    assert ours.std() > 1
    for other in others:
        assert difference(ours, other) <= 2
    rows = generation_rows(generation, usual=1, rounds=1, batches=(2,), bars=(1.5, 1.5, 0.85))
    assert [row.bar for row in rows] == [1.5, 0.85]


# --- scoring


def test_scores_are_those_of_open_clips_own_transform(judge, pairs):
    scoring = Scoring(judge, pictures(6, 100), pairs, per_pair=4)
    assert scoring.prompts[3] == (pairs[0].source_prompt, pairs[0].target_prompt)
    assert scoring.prompts[4] == (pairs[1].source_prompt, pairs[1].target_prompt)
    part = slice(1, 6)
    ours, usual = scoring.ours(part), scoring.usual(part)
    assert ours.features.shape == usual.features.shape == (5, 128)
    assert (ours.features * usual.features).sum(axis=1).min() > 1 - 1e-3
    np.testing.assert_allclose(ours.margins, usual.margins, atol=5e-3)
    assert np.abs(ours.margins).max() > 0.02


def test_every_side_of_scoring_has_a_rate_in_every_round(judge, pairs):
    scoring = Scoring(judge, pictures(8, 64), pairs, per_pair=4)
    batch_size = scoring.best_batch((2, 4))
    assert batch_size in (2, 4)
    rates = scoring.rates(3, ours=4, usual=2, tower=8, batch_size=batch_size)
    assert list(rates) == ["ours", "usual", "images alone", "tower"]
    assert all(len(of) == 3 and min(of) > 0 for of in rates.values())


# --- statistics


def test_made_up_margins_are_a_whole_grid():
    frame, pairs = margins(3)
    assert len(frame) == len(pairs) * 4 * 3 == 288
    assert frame.groupby("category")["pair_id"].nunique().tolist() == [3] * 8
    found = analysis_of(frame, pairs)
    assert len(found.cells) == 24
    means = frame[frame["alpha"] > 0]["margin"].mean()
    assert found.overall.margin.mean == pytest.approx(means)


def test_the_intervals_are_of_the_cells_and_pools_of_the_analysis():
    frame, pairs = margins(8)
    found = analysis_of(frame, pairs)
    samples = cells_and_pools(frame)
    cells = [
        figures.margin
        for category in found.unsteered
        for figures in (
            found.unsteered[category],
            *(cell for key, cell in found.cells.items() if key.category == category),
        )
    ]
    pools = [*found.categories.values(), *found.alphas.values(), found.overall]
    estimates = [*cells, *(pool.margin for pool in pools)]
    assert [values.mean() for values in samples] == pytest.approx([e.mean for e in estimates])
    assert intervals(samples) == [
        pytest.approx((figures.ci_low, figures.ci_high)) for figures in estimates
    ]
    ordered = [np.sort(values) for values in samples]
    for mine, theirs in zip(intervals(samples, "BCa"), bca_by_scipy(ordered), strict=True):
        assert mine == pytest.approx(tuple(theirs), abs=1e-3)  # ties: see bootstrap_ci


def test_processor_time_is_of_the_work():
    assert cpu_seconds(lambda: None) < cpu_seconds(lambda: sum(range(2_000_000)))
