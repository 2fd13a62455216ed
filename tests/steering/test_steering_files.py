"""Steering files: what is refused, each action against plain hooks, and fitting one from pairs."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save
from verbs import verb

from analogy.core.errors import AnalogyError
from analogy.core.registry import ExtensionError
from analogy.generation.engine import Setup
from analogy.generation.fitting import Learning, check_version
from analogy.generation.steering_fit import steering_of
from analogy.generation.worker import texts
from analogy.models.generator import Generator, latents_for
from analogy.settings.options import OPTIONS, parse_options
from analogy.steering.activation import activation
from analogy.steering.base import METHODS, Intervention, Row, with_method
from analogy.steering.declared import DeclaredMethod
from analogy.steering.files import (
    FORMAT,
    Action,
    ModuleAction,
    Steering,
    SteeringFileError,
    pair_digest,
    parsed,
    write,
)
from analogy.store.grid import Grid

MODULE = "mid_block.attentions.0.transformer_blocks.0.attn2"
DIM = 160
STEPS, GUIDANCE = 4, 3.0


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.fixture(scope="module")
def four_steps(pipeline):
    return Generator(pipeline, steps=STEPS, guidance=GUIDANCE, size=64)


@pytest.fixture(scope="module")
def encoded(four_steps, pairs):
    return four_steps.encode(texts(pairs))


# --- the format


def raw(tensors=None, entries=None, **changes) -> bytes:
    """A file of one entry with changes."""
    tensors = {"v": torch.ones(DIM)} if tensors is None else tensors
    entry = {"module": MODULE, "action": "add", "vector": "v"}
    content = {
        "format": FORMAT,
        "version": 1,
        "entries": [entry] if entries is None else entries,
        **changes,
    }
    return save(tensors, metadata={FORMAT: json.dumps(content)})


def entry(**changes) -> list[dict]:
    made = {"module": MODULE, "action": "add", "vector": "v", **changes}
    return [{key: value for key, value in made.items() if value is not None}]


def test_what_is_written_is_read():
    steering = Steering(
        (
            ModuleAction(
                MODULE, Action.ADD, drawn(3, DIM), start=0.25, end=0.5, category="c", word="red",
            ),
            ModuleAction(MODULE, Action.PROJECT_OUT, drawn(DIM)),
            ModuleAction("conv_in", Action.AFFINE, drawn(4), drawn(4, 4)),
        ),
        unit=0.5, default_alphas=(1.0, -2.0), pairs=frozenset({"ab"}), about="mine",
    )  # fmt: skip
    again = parsed(write(steering), "f")
    assert replace(again, entries=()) == replace(steering, entries=())
    for one, other in zip(again.entries, steering.entries, strict=True):
        for name in ModuleAction.__slots__:
            a, b = getattr(one, name), getattr(other, name)
            assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b


def test_what_may_be_left_out_has_defaults():
    steering = parsed(raw(), "f")
    assert (steering.unit, steering.default_alphas, steering.about) == (1.0, (1.0,), "")
    [one] = steering.entries
    assert (one.start, one.end, one.category, one.word) == (0.0, 1.0, None, None)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"torch", "f: expected a file in the safetensors format"),
        (save({"v": torch.ones(2)}), "f: expected JSON under the key 'analogy-steering' .* got no"),
        (save({"v": torch.ones(2)}, metadata={FORMAT: "{"}), "f: metadata: expected JSON, got"),
        (raw(version=2), "f: metadata: expected format 'analogy-steering', version 1, got .* 2"),
        (raw(units=2), "f: metadata: expected one of .* got 'units'; did you mean 'unit'"),
        (raw(unit=0), "f: unit: expected a number from 1e-09 to 1e.09, got 0"),
        (raw(default_alphas=["a"]), "f: default_alphas: expected a number .* got 'a'"),
        (raw(default_alphas=[]), "f: default_alphas: expected a list of numbers"),
        (raw(pairs="all"), "f: pairs: expected a list of digests"),
        (raw(entries=[]), "f: entries: expected a list of one entry or more"),
        (raw(entries=entry(scale=2)), "f: entry 0: expected one of module, .* got 'scale'"),
        (raw(entries=entry(module="")), "f: entry 0: module: expected a printable text, got ''"),
        (raw(entries=entry(action="ad")), r"entry 0 \(mid.*attn2\): action: .* mean 'add'"),
        (raw(entries=entry(vector="w")), "vector: expected one of v, got 'w'"),
        (raw({"v": torch.full((DIM,), torch.nan)}), "vector: expected finite numbers, got NaN"),
        (raw({"v": torch.ones(DIM) / 0}), "vector: expected finite numbers, got NaN or infinity"),
        (raw({"v": torch.ones(DIM).int()}), "vector: expected floating point, got torch.int32"),
        (raw({"v": torch.ones(2, 2, 2)}), r"vector: expected the shape \(dim,\) or \(parts, dim\)"),
        (raw({"v": torch.ones(2), "w": torch.ones(2)}), "expected tensors that entries .*'w'"),
        (raw(entries=entry(action="affine")), "matrix: expected one with the action affine"),
        (raw(entries=entry(matrix="v")), "matrix: expected one with the action affine .* with add"),
        (raw({"v": torch.ones(2), "m": torch.ones(2, 3)}, entry(action="affine", matrix="m")),
         r"matrix: expected the shape \(2, 2\), got \(2, 3\)"),
        (raw({"v": torch.zeros(2)}, entry(action="project_out")), "a direction to project out"),
        (raw(entries=entry(**{"from": 0.5, "until": 0.5})), "expected from below until, got"),
        (raw(entries=entry(until=1.5)), "until: expected a number from 0 to 1, got 1.5"),
        (raw(entries=entry(word="red", action="project_out")), "word: expected none but with"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_format_is_refused_by_its_entry(data, said):
    with pytest.raises(SteeringFileError, match=said):
        parsed(data, "f")


# --- what the actions do


def method(*entries: ModuleAction, **settings) -> DeclaredMethod:
    return DeclaredMethod("file:f", "1", Steering(entries, **settings))


V, M = drawn(DIM, seed=1) * 3, drawn(DIM, DIM, seed=2) / 20
PARTS = drawn(2, DIM, seed=3) * 3


@pytest.mark.parametrize(
    ("steering", "expected"),
    [
        (ModuleAction(MODULE, Action.ADD, V), lambda x, step: x + 1.5 * V),
        (ModuleAction(MODULE, Action.ADD, PARTS), lambda x, step: x + 1.5 * PARTS[step // 2]),
        (ModuleAction(MODULE, Action.ADD, V, start=0.25, end=0.75),
         lambda x, step: x + 1.5 * V if step in (1, 2) else x),
        (ModuleAction(MODULE, Action.PROJECT_OUT, V),
         lambda x, step: x - 1.5 * torch.outer(x @ V, V) / (V @ V)),
        (ModuleAction(MODULE, Action.AFFINE, V, M),
         lambda x, step: -0.5 * x + 1.5 * (torch.einsum("ij,tj->ti", M, x) + V)),
    ],
    ids=["add", "parts", "range", "project_out", "affine"],
)  # fmt: skip
def test_an_action_is_its_formula_by_a_plain_hook(
    steering, expected, pipeline, four_steps, encoded, pairs
):
    pair, count = pairs[0], []

    def change(module, given, out):
        made = out.clone()
        made[1] = expected(out[1], len(count))
        count.append(1)
        return made

    handle = pipeline.unet.get_submodule(MODULE).register_forward_hook(change)
    latents = latents_for(pair, 0, four_steps.latent_shape)[None]
    plain = pipeline(
        pair.source_prompt, latents=latents.clone(), num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, height=64, width=64, output_type="np",
    ).images[0]  # fmt: skip
    handle.remove()
    given = [encoded[pair.source_prompt]], latents
    made = method(steering, unit=0.5)
    ours = four_steps.generate(*given, made, [Row(pair, 3.0)]).images[0]
    assert len(count) == STEPS
    assert np.abs(ours / 255 - plain).max() <= 2 / 255
    assert apart(ours, four_steps.generate(*given).images[0]) > 2


def test_rows_have_their_own_strengths_categories_and_words(pipeline, four_steps, encoded, pairs):
    """In one batch as alone; at alpha 0 bit for bit as unsteered; and all hooks are removed."""
    made = method(
        ModuleAction(MODULE, Action.ADD, V, category="color", word="red"),
        ModuleAction(MODULE, Action.ADD, -V, category="color", word="blue"),
        ModuleAction("conv_in", Action.ADD, drawn(96), category="object"),
    )
    rows = [Row(pairs[0], 2.0), Row(pairs[0], 0.0), Row(pairs[6], 1.0), Row(pairs[1], -1.0)]
    latents = torch.stack([latents_for(row.pair, 0, four_steps.latent_shape) for row in rows])
    conditionings = [encoded[row.pair.source_prompt] for row in rows]
    plain = four_steps.generate(conditionings, latents).images
    images = four_steps.generate(conditionings, latents, made, rows).images
    assert np.array_equal(images[1], plain[1])
    for i, row in enumerate(rows):
        alone = four_steps.generate(conditionings[i : i + 1], latents[i : i + 1], made, [row])
        assert apart(alone.images[0], images[i]) <= 1
        assert apart(images[i], plain[i]) > 2 or not row.alpha
    assert not any(module._forward_hooks for module in pipeline.unet.modules())
    # Red to blue is -2 V at alpha 1, blue to green +V.
    same = method(ModuleAction(MODULE, Action.ADD, V))
    signed = [Row(pairs[0], -4.0), Row(pairs[1], -1.0)]
    again = four_steps.generate(
        [conditionings[0], conditionings[3]], latents[[0, 3]], same, signed
    ).images
    assert apart(again, images[[0, 3]]) <= 1


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (method(ModuleAction("mid_block.attentions.0.transformer_blocks.0.atn2", Action.ADD, V)),
         "file:f: module: expected one of .* did you mean '.*attn2"),
        (method(ModuleAction(MODULE, Action.ADD, drawn(7))), "dimension, 7, got an output of 160"),
        (method(ModuleAction(MODULE, Action.ADD, V, category="colour")),
         "the pair color-0: .* expected one of colour, got 'color blue'; did you mean 'colour'"),
        (method(ModuleAction(MODULE, Action.ADD, V, word="pink")), "one of pink, got 'color blue'"),
    ],
)  # fmt: skip
def test_a_file_for_another_model_or_other_pairs_is_refused(made, said, four_steps, encoded, pairs):
    latents = latents_for(pairs[0], 0, four_steps.latent_shape)[None]
    with pytest.raises(SteeringFileError, match=said):
        four_steps.generate([encoded[pairs[0].source_prompt]], latents, made, [Row(pairs[0], 1.0)])


def test_a_pair_that_it_was_fitted_on_is_not_steered(pipeline, pairs):
    fitted = method(ModuleAction(MODULE, Action.ADD, V), pairs=frozenset({pair_digest(pairs[0])}))
    with pytest.raises(SteeringFileError, match=r"pairs that it was not fitted on, got .* color-0"):
        fitted.applied(pipeline, [Row(pairs[1], 1.0), Row(pairs[0], 1.0)]).__enter__()
    with fitted.applied(pipeline, [Row(pairs[1], 1.0)]):
        pass


# --- chosen by name


def test_a_file_is_a_method_whose_version_is_its_digest(tmp_path, config):
    file = tmp_path / "s.safetensors"
    file.write_bytes(raw(default_alphas=[2, 4]))
    name = f"file:{file}"
    first = METHODS.get(name)
    assert isinstance(first, Intervention)
    assert METHODS.get(name) is first
    assert (first.name, first.default_alphas) == (name, (2.0, 4.0))
    mine = with_method(config, name)
    assert mine.method_version == first.version != ""
    raw_options = {option.name: option.default for option in OPTIONS} | {"analogy_method": name}
    assert parse_options(raw_options.get).alphas == (2.0, 4.0)
    check_version(mine, {name})
    file.write_bytes(raw(unit=2))
    os.utime(file, ns=(1, 1))
    assert METHODS.get(name).version != first.version
    with pytest.raises(ExtensionError, match=r"expected the version .* that the run began with"):
        check_version(mine, {name})


def test_a_file_that_is_missing_is_said(tmp_path):
    for name in ("file:none.safetensors", f"file:{tmp_path}"):
        with pytest.raises(AnalogyError, match=r"expected a steering file, got .*; name a file"):
            METHODS.get(name)


# --- fitting


def test_a_fitted_file_steers_as_the_method_activation_does(four_steps, encoded, config, pairs):
    """Of pairs whose words recur: both add the same difference of means."""
    steered, others = pairs[6], pairs[7:]
    steering = parsed(write(steering_of(others, four_steps, encoded, about="")), "f")
    assert steering.default_alphas == activation.default_alphas
    assert {entry.word for entry in steering.entries} == {"cup", "hat"}
    setup = Setup(replace(config, method="activation"), pairs, None, None)
    mine = replace(config, method="activation", alphas=(2.0,), steps=STEPS)
    [job, *_] = Grid(mine, "model", "Euler/1", pairs[6:]).jobs(alpha=2.0)
    assert job.pair == steered
    [row], _ = Learning(setup).rows([job], four_steps, encoded)
    latents = latents_for(steered, 0, four_steps.latent_shape)[None]
    given = [encoded[steered.source_prompt]], latents
    one = four_steps.generate(*given, activation, [row]).images
    made = DeclaredMethod("file:f", "1", steering)
    other = four_steps.generate(*given, made, [Row(steered, 2.0)]).images
    assert apart(one, other) <= 1
    assert apart(one, four_steps.generate(*given).images) > 2
    with pytest.raises(SteeringFileError, match="not fitted on, got the pair object-1"):
        four_steps.generate(*given, made, [Row(others[0], 1.0)])


def test_the_command_writes_a_file_that_a_run_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    colors = ("red", "blue", "green", "pink", "white", "black")
    for name, a, b in (("fit", "cup", "hat"), ("run", "hat", "cup")):
        lines = ["id,category,source_word,target_word,source_prompt,target_prompt"]
        lines += [f"{c},thing,{a},{b},a {c} {a},a {c} {b}" for c in colors]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    small = ("--steps=1", "--dtype=float32")
    done = verb("steering", "fit", "--pairs=fit.csv", "--out=s.safetensors", *small)
    assert done.exit_code == 0, done.output
    assert "use       python -m analogy run --method file:s.safetensors" in done.output
    run = ("run", "--method=file:s.safetensors", "--seeds=0", "--alphas=1", *small)
    done = verb(*run, "--pairs=run.csv", "--run-dir=run")
    assert done.exit_code in (0, 1), done.output
    written = json.loads((tmp_path / "results.json").read_text())["config"]
    version = METHODS.get("file:s.safetensors").version
    assert (written["method"], written["method_version"]) == ("file:s.safetensors", version)
    refused = verb(*run, "--pairs=fit.csv", "--run-dir=other")
    assert refused.exit_code == 4
    assert "expected pairs that it was not fitted on, got the pair red" in refused.stderr


def test_a_category_of_one_pair_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("analogy.generation.steering_fit.load_pipeline", pytest.fail)
    done = verb("steering", "fit", "--categories=color", "--limit=1", f"--out={tmp_path / 's'}")
    assert done.exit_code == 2
    assert "category color: expected two pairs or more to fit on, got one" in done.stderr
