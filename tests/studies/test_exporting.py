"""Jobs for another tool: their images come back under the same keys, and nothing else does."""

from __future__ import annotations

import json
import re
import runpy

import numpy as np
import pytest
from cases import ROOT
from verbs import verb as run

from analogy.core.images import read_image, to_png
from analogy.models.generator import drawn, latents_for
from analogy.models.places import shipped
from analogy.report.provenance import commands
from analogy.results.reading import read
from analogy.settings.pairs import load_pairs
from analogy.settings.request import request_of
from analogy.studies.study import Study

GRID = {"categories": "color", "limit": "2", "seeds": "0", "alphas": "1", "steps": "2",
        "dtype": "float32"}  # fmt: skip


@pytest.fixture
def export(tmp_path):
    """Export the grid; gives the result, the jobs, and the manifest's path."""

    def exported(*more, **changed):
        out = tmp_path / "jobs.jsonl"
        grid = {"run_dir": tmp_path / "run", "method_name": "mine", **GRID, **changed}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in grid.items() if value]
        done = run("export", "-o", out, *options, *more)
        text = out.read_text() if out.exists() else ""
        return done, [json.loads(line) for line in text.splitlines()], out

    return exported


@pytest.fixture
def noise():
    """Write an image of noise for each job."""

    def write(jobs, out, *, seed=0, size=64):
        rng = np.random.default_rng(seed)
        for job in jobs:
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            (out.parent / job["file"]).write_bytes(to_png(pixels))

    return write


def test_a_script_of_plain_diffusers_makes_the_suites_own_images(tmp_path, export):
    """The script of docs/export.md; its images, imported and scored, are those of ``prompt``."""
    done, jobs, out = export()
    assert done.exit_code == 0, done.output
    assert len(jobs) == 4
    page = (ROOT / "docs" / "export.md").read_text("utf-8")
    [script] = re.findall(r"<!-- file: plain.py -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "plain.py").write_text(script)
    make_images = runpy.run_path(str(tmp_path / "plain.py"))["make_images"]
    make_images(str(out), str(shipped("models/sdxl-tiny")))

    done = run("import", tmp_path / "run", out)
    assert done.exit_code == 0, done.output
    assert "4 images imported, 0 were already there" in done.stdout
    scored = run("score", tmp_path / "run", "--clip-model", "embedded")
    assert scored.exit_code == 0, scored.output
    assert run("verify", tmp_path / "run").exit_code == 0

    own = {"alphas": (1.0,), "seeds": (0,), "categories": ("color",), "limit": 2, "steps": 2}
    request = request_of(method="prompt", dtype="float32", run_dir=str(tmp_path / "own"), **own)
    study = Study.open(request)
    try:
        study.generate(study.jobs())
        study.score(study.jobs())
        for job in study.jobs():
            [theirs] = [
                one for one in jobs if (one["pair_id"], one["alpha"]) == (job.pair.id, job.alpha)
            ]
            ours = study.folder.read_image(job).astype(int)
            assert np.abs(ours - read_image(tmp_path / theirs["file"])).max() <= 1
            assert theirs["key"] != job.key
        margin = study.overall().margin.mean
    finally:
        study.close()
    results = read(tmp_path / "run")
    assert results.analysis.overall.margin.mean == pytest.approx(margin, abs=2e-3)
    assert results.header.subject.method == "mine"
    assert results.header.provenance.model.endswith("@imported:mine")
    assert results.cost is None
    assert commands(results.header)[0].endswith("analogy import RUN MANIFEST")
    assert run("report", tmp_path / "run", "-o", tmp_path / "r.html").exit_code == 0
    again = run("compare", tmp_path / "run", tmp_path / "run")
    assert "too_few" in again.stdout  # two pairs decide nothing


def test_a_job_has_its_prompts_and_the_seed_of_its_noise(export):
    _, jobs, _ = export(alphas="0.5,2", seeds="0,7")
    pairs = {pair.id: pair for pair in load_pairs(shipped("pairs.csv"))}
    assert len({job["key"] for job in jobs}) == len(jobs) == 2 * 3 * 2
    for job in jobs:
        pair = pairs[job["pair_id"]]
        assert (job["source_prompt"], job["target_prompt"]) == (
            pair.source_prompt, pair.target_prompt,
        )  # fmt: skip
        assert (job["method"], job["size"], job["steps"]) == ("mine", 64, 2)
        latents = latents_for(pair, job["seed"], (4, 16, 16))
        assert (drawn((4, 16, 16), job["noise_seed"]) == latents).all()


def test_an_import_is_repeated_and_an_export_has_what_is_left(tmp_path, export, noise):
    _, jobs, out = export()
    noise(jobs, out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]))
    assert "3 images imported, 0 were" in run("import", tmp_path / "run", out).stdout
    assert "0 images imported, 3 were" in run("import", tmp_path / "run", out).stdout
    left = run("verify", tmp_path / "run")
    assert left.exit_code == 1
    assert "missing" in left.stdout
    done, rest, _ = export()
    assert "1, 3 have their images already" in done.stdout
    assert [job["key"] for job in rest] == [jobs[3]["key"]]
    assert "1 images imported, 0 were" in run("import", tmp_path / "run", out).stdout
    assert "missing" not in run("verify", tmp_path / "run").stdout
    other = export(method_name="theirs", run_dir=tmp_path / "other")[1]
    assert not {job["key"] for job in other} & {job["key"] for job in jobs}


def test_the_grid_of_a_run_is_exported(tmp_path, export, noise):
    """Here of a run that was imported; its own model is exported, and not another tool's images."""
    _, jobs, out = export()
    noise(jobs, out)
    run("import", tmp_path / "run", out)
    nothing = dict.fromkeys(GRID, "")
    done, again, _ = export(tmp_path / "run", method_name="next", run_dir=tmp_path / "b", **nothing)
    assert done.exit_code == 0, done.output
    same = ("pair_id", "alpha", "seed", "noise_seed", "steps", "dtype")
    assert [[j[n] for n in same] for j in again] == [[j[n] for n in same] for j in jobs]
    assert "@imported:next" in done.stdout
    assert "mine" not in done.stdout
    refused = export(tmp_path / "run", limit="3")[0]
    assert refused.exit_code == 2
    assert "--alphas, --categories" in refused.stderr


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda job, file: file.unlink(), "expected an image"),
        (lambda job, file: file.write_bytes(b"no image"), "expected an image"),
        (
            lambda job, file: file.write_bytes(to_png(np.zeros((72, 72, 3), np.uint8))),
            "expected a square image of 64 pixels a side, as its job has it, got 72 x 72",
        ),
        (lambda job, file: job.update(key="0" * 32), "expected a job that was exported"),
        (lambda job, file: job.update(alpha=0.7), "expected a job that was exported"),
        (lambda job, file: job.pop("key"), "expected a job that was exported"),
    ],
    ids=["missing", "unreadable", "size", "unknown key", "another alpha", "no key"],
)
def test_a_fault_is_said_with_its_line_and_nothing_is_imported(
    tmp_path, export, noise, break_it, said
):
    _, jobs, out = export()
    noise(jobs, out)
    whole = out.read_text()
    job = dict(jobs[2])
    kept = (tmp_path / job["file"]).read_bytes()
    break_it(job, tmp_path / job["file"])
    lines = [json.dumps(job if i == 2 else each) + "\n" for i, each in enumerate(jobs)]
    out.write_text("".join(lines))
    refused = run("import", tmp_path / "run", out)
    assert refused.exit_code == 2
    assert "line 3" in refused.stderr
    assert said in refused.stderr
    assert not list(tmp_path.glob("run/images/*/*"))
    out.write_text(whole)
    (tmp_path / job["file"]).write_bytes(kept)
    assert "4 images imported" in run("import", tmp_path / "run", out).stdout


def test_another_image_under_a_key_and_another_folder_are_refused(tmp_path, export, noise):
    _, jobs, out = export()
    noise(jobs, out)
    assert run("import", tmp_path / "run", out).exit_code == 0
    noise(jobs, out, seed=1)
    refused = run("import", tmp_path / "run", out)
    assert refused.exit_code == 2
    assert "line 1" in refused.stderr
    assert "got another" in refused.stderr
    assert "damaged" not in run("verify", tmp_path / "run").stdout
    nowhere = run("import", tmp_path / "none", out)
    assert nowhere.exit_code == 4
    assert not (tmp_path / "none").exists()
    export(run_dir=tmp_path / "other", steps="1")
    elsewhere = run("import", tmp_path / "run", out)
    assert elsewhere.exit_code == 2
    assert "without any of their keys" in elsewhere.stderr


def test_the_name_of_a_method_of_the_suite_is_refused(export):
    refused = export(method_name="prompt")[0]
    assert refused.exit_code == 2
    assert "--method-name: expected a name of the tool's own, got 'prompt'" in refused.stderr
