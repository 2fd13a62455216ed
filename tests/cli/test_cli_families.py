"""Ten pipelines the whole way: run two methods, resume, verify, report."""

from __future__ import annotations

import json

import pytest
import zoo
from verbs import verb

# diffusers' own, in Chroma.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::analogy.settings.pairs.WeakCategoryWarning"),
]

FAST = {"FluxPipeline", "QwenImagePipeline"}
WAY = (
    "FluxPipeline", "Flux2KleinPipeline", "QwenImagePipeline", "ZImagePipeline", "SanaPipeline",
    "ChromaPipeline", "StableDiffusion3Pipeline", "PixArtSigmaPipeline", "Lumina2Pipeline",
    "HiDreamImagePipeline",
)  # fmt: skip
PAIRS = """id,category,source_word,target_word,source_prompt,target_prompt
c1,color,red,blue,a red car,a blue car
c2,color,green,red,a green cup,a red cup
c3,color,blue,green,a blue hat,a green hat
"""
#: What ``--guidance`` is said to set.
SAID = {
    "FluxPipeline": "guidance 1.5 (guidance_scale, distilled)",
    "QwenImagePipeline": "guidance 1.5 (true_cfg_scale, classifier-free)",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in WAY]
)
def test_the_whole_way(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zoo.shorten(monkeypatch, name)
    zoo.build(name).save_pretrained("model")
    (tmp_path / "pairs.csv").write_text(PAIRS)
    options = (
        "--model=model", "--pairs=pairs.csv", "--limit=2", "--seeds=0", "--alphas=1", "--steps=1",
        "--guidance=1.5", f"--size={zoo.SIZES.get(name, zoo.SIZE)}", "--dtype=float32",
        "--run-dir=run",
    )  # fmt: skip

    first = verb("run", *options, "--method=word", "--results=word.json")
    assert first.exit_code == 0, first.stderr
    assert SAID.get(name, "guidance 1.5, ") in first.stdout
    images = sorted((tmp_path / "run").rglob("*.png"))
    assert len(images) == 4  # two pairs, unsteered and steered
    second = verb("run", *options, "--method=prompt", "--results=prompt.json")
    assert second.exit_code == 0, second.stderr
    both = sorted((tmp_path / "run").rglob("*.png"))
    assert len(both) == 6  # the unsteered ones are shared
    contents = {image.read_bytes() for image in both}
    assert len(contents) == 6

    # Resuming makes nothing anew.
    before = {image: image.stat().st_mtime_ns for image in both}
    again = verb("run", *options, "--method=prompt", "--results=again.json")
    assert again.exit_code == 0, again.stderr
    assert {image: image.stat().st_mtime_ns for image in both} == before
    other, resumed = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("prompt", "again"))
    assert resumed["cells"] == other["cells"]
    said = other["provenance"].get("guidance")
    assert said is None or f"({said})" in SAID[name]

    verified = verb("verify", "run")
    assert verified.exit_code == 0, verified.stdout
    reported = verb("report", "run", "-o", "report.html")
    assert reported.exit_code == 0, reported.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
