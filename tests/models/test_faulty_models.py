"""A model or judge that cannot be loaded is wrong usage before the first image, everywhere.

Never a cell's verdict, a failed test or a traceback; and nothing is written in its name.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from broken import LFS, save
from cases import ROOT
from safetensors.torch import load_file
from verbs import verb

from analogy.core.errors import ExitCode, ModelError
from analogy.evaluation import EvaluationAgent, Task
from analogy.models.places import shipped

pytest_plugins = ["pytester"]

SMALL = ("--alphas=1", "--seeds=0", "--limit=2", "--categories=color", "--steps=1")


def copy(name: str) -> Path:
    """A shipped model in the working directory, without its checksums."""
    return Path(
        shutil.copytree(
            shipped(f"models/{name}"), name, ignore=shutil.ignore_patterns("SHA256SUMS")
        )
    )


def without_a_key(file: Path) -> None:
    state = load_file(file)
    del state[sorted(state)[3]]
    save(state, file)


def _judge_without_weights():
    (copy("clip-tiny") / "open_clip_model.safetensors").unlink()
    return ("--clip-model=clip-tiny",)


def _judge_without_a_key():
    without_a_key(copy("clip-tiny") / "open_clip_model.safetensors")
    return ("--clip-model=clip-tiny",)


def _judge_of_another_architecture():
    copy("clip-tiny")
    file = "clip-tiny/open_clip_model.safetensors"
    return "--clip-model=RN50", f"--clip-pretrained={file}"


def _judge_that_cannot_be_fetched():
    return "--clip-model=ViT-B-32", "--clip-pretrained=laion2b_s34b_b79k"


def _text_encoder_without_a_key():
    (file,) = (copy("sdxl-tiny") / "text_encoder").glob("*.safetensors")
    without_a_key(file)
    return ("--model=sdxl-tiny",)


def _pointer_in_the_place_of_the_vae():
    (file,) = (copy("sdxl-tiny") / "vae").glob("*.safetensors")
    file.write_bytes(LFS)
    return ("--model=sdxl-tiny",)


def _configuration_that_is_no_object():
    (copy("sdxl-tiny") / "unet" / "config.json").write_text("[]")
    return ("--model=sdxl-tiny",)


def _index_that_is_nested_deeply():
    (copy("sdxl-tiny") / "model_index.json").write_text("[" * 100_000)
    return ("--model=sdxl-tiny",)


def _lora_of_another_model():
    save(
        {f"unet.up_blocks.9.attn.to_q.lora_{part}.weight": torch.ones(2, 2) for part in "AB"},
        Path("style.safetensors"),
    )
    return ("--lora=style.safetensors",)


FAULTS = [
    _judge_without_weights, _judge_without_a_key, _judge_of_another_architecture,
    _judge_that_cannot_be_fetched, _text_encoder_without_a_key, _pointer_in_the_place_of_the_vae,
    _configuration_that_is_no_object, _index_that_is_nested_deeply, _lora_of_another_model,
]  # fmt: skip


@pytest.fixture(params=FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def faulty(request, tmp_path, monkeypatch):
    """Options that name a faulty model, in an empty working directory without any network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return request.param()


def nothing_was_made(folder: Path) -> bool:
    return not list(folder.rglob("*.png")) and not list(folder.rglob("results*.json"))


def is_heading_alone(text):
    """Whether nothing is printed, or what is run and no table."""
    return not text or text.endswith(" are there\n\n")


def test_run_refuses_it(faulty, tmp_path):
    done = verb("run", *SMALL, "--run-dir=run", *faulty)
    assert done.exit_code == ExitCode.USAGE
    assert is_heading_alone(done.stdout)
    assert "\nanalogy: " in f"\n{done.stderr}"
    assert nothing_was_made(tmp_path)


def test_methods_and_steer_refuse_it(faulty, tmp_path):
    done = verb("methods", *SMALL, "--methods=word,lerp", "--run-dir=run", *faulty)
    assert done.exit_code == ExitCode.USAGE
    assert is_heading_alone(done.stdout)
    done = verb("steer", "a red car", "a blue car", "--alphas=1", "--steps=1", *faulty)
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert nothing_was_made(tmp_path)


def test_pytest_refuses_it(faulty, tmp_path, pytester, pipeline, judge):
    done = pytester.runpytest_inprocess(
        str(ROOT / "benchmarks" / "test_margin.py"),
        f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}",
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *SMALL, "--run-dir=run",
        f"--junit-xml={tmp_path / 'junit.xml'}",
        *(part.replace("=", f"={tmp_path}/") if "tiny" in part or "style" in part else part
          for part in faulty),
    )  # fmt: skip
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert 'failures="0"' in (tmp_path / "junit.xml").read_text()
    assert nothing_was_made(pytester.path)
    assert nothing_was_made(tmp_path)


# An evaluation has no LoRA of its own.
@pytest.mark.parametrize("faulty", FAULTS[:-1], indirect=True)
def test_an_evaluation_refuses_it(faulty, tmp_path):
    given = dict(option.removeprefix("--").split("=") for option in faulty)
    judge = given.get("clip-model", "embedded")
    if "clip-pretrained" in given:
        judge = judge, given["clip-pretrained"]

    def evaluate():
        task = Task(["clip_score"], ["a red car"], judge=judge, run_dir=tmp_path / "run", steps=1)
        EvaluationAgent(task).evaluate(given.get("model", "embedded"))

    with pytest.raises(ModelError):
        evaluate()
    assert nothing_was_made(tmp_path)


def test_a_comparison_with_a_faulty_model_makes_no_image_of_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _text_encoder_without_a_key()
    task = Task(["clip_score"], ["a red car"], run_dir=tmp_path / "run", steps=1)
    with pytest.raises(ModelError, match=r"text_encoder: .* missing"):
        EvaluationAgent(task).compare("embedded", "sdxl-tiny")
    assert nothing_was_made(tmp_path)


def test_named_weights_of_lpips_are_read_before_the_first_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lpips.pth").write_bytes(b"no weights")
    done = verb("run", *SMALL, "--run-dir=run", "--lpips-weights=lpips.pth")
    assert done.exit_code == ExitCode.USAGE
    assert "lpips.pth: expected a state dict" in done.stderr
    assert nothing_was_made(tmp_path)


def test_score_refuses_a_faulty_judge(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = verb("run", *SMALL, "--run-dir=run")
    assert made.exit_code in (ExitCode.OK, ExitCode.FAILED)
    for options in (_judge_that_cannot_be_fetched(), _judge_of_another_architecture()):
        done = verb("score", "run", *options)
        assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    # A run that is whole loads no model; the judge sees the references of its set metrics.
    monkeypatch.setattr(
        "analogy.generation.worker.load_pipeline", lambda *_, **__: pytest.fail("loaded")
    )
    assert verb("run", *SMALL, "--run-dir=run").exit_code == made.exit_code


def test_models_names_what_is_broken(tmp_path, monkeypatch):
    """The embedded ones as found, if they were damaged."""
    monkeypatch.chdir(tmp_path)
    place = copy("sdxl-tiny")
    (place / "model_index.json").write_text("[" * 100_000)
    monkeypatch.setattr("analogy.models.sources.shipped", lambda name: place)
    done = verb("models")
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "model_index.json: expected a pipeline's index" in done.stderr
