"""Quality on the grid: each metric on the right images, kept, and summed up by pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from injected import Injected
from PIL import Image
from verbs import verb

from analogy import metrics
from analogy.core.images import Images, image_files, to_png
from analogy.core.records import Cell, Limit
from analogy.judges.open_clip import Judge
from analogy.metrics import (
    clip_score,
    cmmd,
    directional_similarity,
    kid,
    psnr,
    ssim,
)
from analogy.results.writing import quality_to_json
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.studies.quality import References

CELL = Cell("color", 1.0)


@pytest.fixture
def study(make_study, judge):
    """A scored study of six pairs, alphas 0.5 and 1 and two seeds, whose images are noise."""
    made = make_study(pairs=make_study.pairs[:6], judge=Injected.of(judge))
    draw(made, made.jobs())
    return made


@pytest.fixture
def make_study(make_study, pairs):
    make_study.pairs = pairs
    return make_study


def picture(job) -> Images:
    """Grey at alpha 0, with noise that grows with alpha."""
    rng = np.random.default_rng([job.seed, int(10 * job.alpha), len(job.pair.source_prompt)])
    noise = rng.normal(0, 40 * job.alpha, (64, 64, 3))
    return np.clip(128 + 10 * job.seed + noise, 0, 255).astype(np.uint8)


def draw(study, jobs) -> None:
    study.folder.add_images(jobs, np.stack([picture(job) for job in jobs]), 1.0)
    study.score(jobs)


def of(study, category: str, alpha: float, seed: int) -> list:
    jobs = study.jobs(category, alpha)
    return [job for job in jobs if job.seed == seed]


def test_every_metric_compares_what_it_should(study, judge):
    """Pair by pair, against the metrics as functions of the images themselves."""
    found = study.quality.cell(CELL)
    assert list(found) == ["clip_score", "directional_similarity", "psnr", "ssim"]
    by_seed: dict[str, list] = {name: [] for name in found}
    for seed in (0, 1):
        jobs, unsteered = of(study, "color", 1.0, seed), of(study, "color", 0.0, seed)
        images = np.stack([picture(job) for job in jobs])
        before = np.stack([picture(job) for job in unsteered])
        targets = [job.pair.target_prompt for job in jobs]
        sources = [job.pair.source_prompt for job in jobs]
        by_seed["clip_score"].append(clip_score(images, targets, judge))
        by_seed["directional_similarity"].append(
            directional_similarity(images, before, targets, sources, judge)
        )
        by_seed["psnr"].append(psnr(images, before))
        by_seed["ssim"].append(ssim(images, before))
    for name, values in by_seed.items():
        items = np.mean(values, axis=0)
        assert found[name].mean == pytest.approx(items.mean(), rel=1e-5)
        assert (found[name].ci_low, found[name].ci_high) == pytest.approx(
            tuple(bootstrap_ci(items)), rel=1e-4
        )
        assert (found[name].n, found[name].n_equal) == (6, 0)


def test_less_is_left_of_an_image_the_more_it_is_changed(study):
    half, whole = (study.quality.cell(Cell("color", alpha)) for alpha in (0.5, 1.0))
    assert half["psnr"].ci_low > whole["psnr"].ci_high
    assert half["ssim"].ci_low > whole["ssim"].ci_high


def test_values_are_computed_once(study, make_study, monkeypatch):
    first = study.quality.cell(CELL)
    again = make_study(pairs=study.pairs, folder=study.folder.path)
    monkeypatch.setattr(metrics, "psnr", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(Judge, "text_features", lambda *_: pytest.fail("computed again"))
    assert again.quality.cell(CELL) == first


def test_what_is_not_there_is_left_out(make_study, judge):
    """An image of one pair and the unsteered image of another are missing."""
    study = make_study(pairs=make_study.pairs[:6], judge=Injected.of(judge))
    missing = [study.jobs("color", 1.0)[0], study.jobs("color", 0.0)[-1]]
    draw(study, [job for job in study.jobs() if job not in missing])
    found = study.quality.cell(CELL)
    assert {mean.n for mean in found.values()} == {4}
    values = study.quality.values(study.jobs("color", 1.0))
    assert len(values) == 10
    nothing = study.quality.cell(Cell("object", 1.0))["ssim"]
    assert nothing.n == 0
    assert math.isnan(nothing.mean)


def test_an_image_that_did_not_change_has_an_infinite_psnr_and_json_says_so(
    study, make_study, judge
):
    same = make_study(pairs=study.pairs, method="lerp")
    jobs = same.jobs()
    images = [picture(job) if job.pair != study.pairs[0] else picture(jobs[0]) for job in jobs]
    same.folder.add_images(jobs, np.stack(images), 1.0)
    same.score(jobs)
    found = same.quality.cell(CELL)
    assert (found["psnr"].mean, found["psnr"].n_equal) == (math.inf, 1)
    assert found["ssim"].n_equal == 0
    assert found["ssim"].ci_high <= 1.0
    [row] = quality_to_json(same.quality.figures())["cells"]
    assert row["psnr"] == {"mean": None, "ci_low": None, "ci_high": None, "n": 6, "n_equal": 1}


def test_distances_are_those_of_all_images_at_an_alpha(study, judge):
    rng = np.random.default_rng(1)
    references = rng.integers(0, 256, (7, 64, 64, 3), np.uint8)
    assert study.quality.alpha(1.0) == {}  # nothing to compare with
    known = References("noise", judge.image_features(references))
    found = study.quality.alpha(1.0, references=known)
    images = np.stack([picture(job) for job in study.jobs(alpha=1.0)])
    for name, plain in (("cmmd", cmmd), ("kid", kid)):
        expected = plain(images, references, judge)
        assert found[name].value == pytest.approx(expected.value, rel=1e-4)
        assert found[name]._replace(value=0.0) == expected._replace(value=0.0)
    assert study.quality.figures().references == "noise"


def test_references_are_the_images_of_a_folder_of_any_size(tmp_path, judge):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (size, 80, 3), np.uint8) for size in (64, 96)]
    (tmp_path / "deeper").mkdir()
    (tmp_path / "b.png").write_bytes(to_png(images[0]))
    Image.fromarray(images[1]).save(tmp_path / "deeper" / "A.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    found = References.of_folder(tmp_path, judge)
    assert [path.name for path in image_files(tmp_path)] == ["b.png", "A.PNG"]
    expected = np.concatenate([judge.image_features(image[None]) for image in images])
    np.testing.assert_allclose(found.features, expected, atol=1e-6)


def test_a_folder_of_too_few_images_or_of_none_is_refused(tmp_path, judge):
    with pytest.raises(ValueError, match=r"2 images or more \(.png, .*\), got .* with 0"):
        References.of_folder(tmp_path, judge)
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png: expected an image file"):
        References.of_folder(tmp_path, judge)


def test_references_are_decoded_before_anything_is_made(tmp_path):
    """One that is cut, and one that only looks like a file, by either way to run."""
    folder = tmp_path / "references"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.png").write_bytes(to_png(np.zeros((64, 64, 3), np.uint8) + 9))
    whole = (folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(whole[: len(whole) // 2])
    run = ("run", "--run-dir", tmp_path / "run", "--reference", folder)
    result = verb(*run)
    assert result.exit_code == 2
    assert f"--reference: {folder}/c.png: expected an image file" in result.stderr
    (folder / "c.png").unlink()
    (folder / "c.png").symlink_to("none")
    assert "c.png: expected an image file, got a link to no file" in verb(*run).stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("limit", "broken"),
    [
        (Limit("ssim", True, 0.3), False),
        (Limit("ssim", True, 0.5), False),
        (Limit("ssim", True, 0.7), True),
        (Limit("ssim", False, 0.7), False),
        (Limit("ssim", False, 0.5), False),
        (Limit("ssim", False, 0.3), True),
    ],
)
def test_a_limit_is_broken_when_the_whole_interval_is_beyond(limit, broken):
    assert limit.is_broken(0.4, 0.6) == broken


def test_prompts_with_one_embedding_have_no_direction_and_end_no_run(study, monkeypatch):
    """Half precision may give two prompts one embedding, though their tokens differ."""
    features = Judge.text_features
    monkeypatch.setattr(
        Judge, "text_features", lambda self, prompts: features(self, ["one"] * len(prompts))
    )
    found = study.quality.cell(CELL)
    assert (found["directional_similarity"].mean, found["directional_similarity"].n) == (0.0, 6)
