"""Models that are larger than a device: offloaded, quantized, or in shards; the same images."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import tiny
import torch
import transformers
import zoo

from analogy.core.errors import FieldError, ModelError, OptionError
from analogy.core.fields import OFFLOADS, QUANTIZATIONS
from analogy.core.images import from_png
from analogy.core.records import Pair
from analogy.core.words import places
from analogy.evaluation import Task
from analogy.generation.engine import Setup
from analogy.generation.worker import Worker
from analogy.models import generator as generators
from analogy.models import loading, quantization
from analogy.models.families import family_of
from analogy.models.generator import Generator
from analogy.models.loading import load_pipeline
from analogy.models.quantization import check_device_for
from analogy.models.sources import find_pipeline
from analogy.settings.options import parse_options
from analogy.settings.request import RunRequest
from analogy.store.grid import Grid
from analogy.studies.resolve import resolve

COLORS = ("red", "blue", "green")
PAIRS = [
    Pair(f"color-{i}", "color", a, b, f"a {a} car", f"a {b} car")
    for i, (a, b) in enumerate(zip(COLORS, COLORS[1:] + COLORS[:1], strict=True))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline by its name, made at its first use."""
    root = tmp_path_factory.mktemp("large")

    def saved(name: str):
        if not (root / name).exists():
            build = tiny.build if name in tiny.MODELS else zoo.build
            build(name).save_pretrained(root / name, max_shard_size="100KB")
        return str(root / name)

    return saved


@pytest.fixture
def drawn(folder, config, monkeypatch, on_cpu):
    """Two images of one pair by a method, of a model with these settings."""

    def draw(name: str, method: str, **settings) -> list[np.ndarray]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # one generator
        changed = replace(
            config, model=folder(name), method=method, size=32, seeds=(0,), alphas=(1.0,),
            steps=2, **settings,
        )  # fmt: skip
        model = find_pipeline(folder(name), dtype=changed.dtype, quantize=changed.quantize)
        jobs = Grid(changed, model.fingerprint, "Euler/1", PAIRS).jobs()
        worker = Worker(Setup(changed, PAIRS, model, None))
        made = [worker.generate([job]).pngs[0] for job in jobs[:2]]  # unsteered, and steered
        return [from_png(png).astype(int) for png in made if png is not None]

    return draw


# --- shards


def test_a_pipeline_in_shards_is_loaded_with_all_its_weights(folder):
    source = find_pipeline(folder("sdxl"), dtype="float32")
    indices = sorted(source.folder.glob("*/*.safetensors.index.json"))
    assert {index.parent.name for index in indices} >= {"unet", "vae"}
    assert len(list((source.folder / "unet").glob("*.safetensors"))) > 2
    loaded, own = load_pipeline(source, device="cpu", dtype="float32"), tiny.build("sdxl")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        weights = getattr(loaded, part).state_dict()
        for name, tensor in getattr(own, part).state_dict().items():
            assert torch.equal(weights[name], tensor), (part, name)


# --- offload


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("sdxl", "own:louder"),  # a hook
        ("sdxl", "guidance"),  # a denoiser in the place of the pipeline's own
        ("PixArtSigmaPipeline", "word"),  # by replay
    ],
)
def test_offloaded_models_draw_the_same_images(drawn, name, method):
    """On a CPU all offloading moves weights from the CPU to the CPU: what it wraps is the same."""
    whole = drawn(name, method)
    assert np.abs(whole[0] - whole[1]).max() > 2
    for offload in OFFLOADS:
        for one, other in zip(whole, drawn(name, method, offload=offload), strict=True):
            assert np.abs(one - other).max() <= 1, offload


@pytest.fixture
def offloaded(folder, on_cpu):
    def load(offload: str | None, dtype: str = "float32"):
        source = find_pipeline(folder("sdxl"), dtype=dtype)
        return load_pipeline(source, device="cpu", dtype=dtype, offload=offload)

    return load


@pytest.mark.parametrize("offload", ["model", "group"])
def test_a_decoder_that_is_offloaded_is_decoded_again_in_float32(offloaded, offload, monkeypatch):
    """Its copy has the decoder's weights and nothing else: no hook, no other network."""
    made = []
    for each in (None, offload):
        generator = Generator(offloaded(each, "bfloat16"), steps=1, guidance=1.0, size=32)
        faults = generators.faults
        first = iter([True])

        def once_black(images, first=first, faults=faults):
            found = faults(images)
            return ["black", *found[1:]] if next(first, False) else found

        monkeypatch.setattr(generators, "faults", once_black)
        encoded = generator.encode(["a red car"])["a red car"]
        noise = torch.randn(1, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
        made.append(generator.generate([encoded], noise).images)
        monkeypatch.setattr(generators, "faults", faults)
        again = generator._vae_float32
        assert again.dtype == torch.float32
        assert not hasattr(again, "_hf_hook")
        assert next(again.parameters()).device.type == "cpu"
    assert np.array_equal(*made)


@pytest.mark.parametrize("offload", ["model", "group"])
def test_text_encoders_of_an_offloaded_model_are_dropped(offloaded, offload):
    pipeline = offloaded(offload)
    generator = Generator(pipeline, steps=1, guidance=3.0, size=32)
    encoded = generator.encode(["a red car"])["a red car"]
    noise = torch.randn(1, *generator.latent_shape)
    before = generator.generate([encoded], noise).images
    dropped = pipeline.text_encoder
    generator.drop_text_encoders()
    assert np.array_equal(generator.generate([encoded], noise).images, before)
    held = [hook.model for hook in getattr(pipeline, "_all_hooks", [])]
    assert all(model is not dropped for model in held)


def test_offloading_needs_a_device_of_its_own():
    for offload in OFFLOADS:
        with pytest.raises(OptionError, match=f"--offload {offload}: expected a GPU"):
            resolve(RunRequest(offload=offload))
        check_device_for("cuda", quantize=None, offload=offload)
    with pytest.raises(OptionError, match="--offload group: expected a GPU"):
        Task(["clip_score"], ["a red car"], offload="group")


# --- quantization


def test_wrong_names_are_refused_with_the_nearest():
    given = {"analogy_offload": "sequentially", "analogy_quantize": "bitsandbytes_4"}
    for name, near in (
        ("analogy_offload", "sequential"),
        ("analogy_quantize", "bitsandbytes_4bit"),
    ):
        with pytest.raises(OptionError, match=f"did you mean '{near}'"):
            parse_options({name: given[name]}.get)
    with pytest.raises(
        FieldError, match=r"quantize: expected one of .*; did you mean 'torchao_int8'"
    ):
        RunRequest(quantize="torchao_int4")


def test_what_cannot_be_quantized_is_said_before_anything_is_loaded(folder, monkeypatch, tmp_path):
    with pytest.raises(OptionError, match="expected a GPU, on which alone diffusers has bitsandb"):
        resolve(RunRequest(quantize="bitsandbytes_8bit"))
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    for name in QUANTIZATIONS:
        package = name.partition("_")[0]
        with pytest.raises(ModelError, match=f"--quantize {name}: .*pip install {package}"):
            find_pipeline("embedded", dtype="bfloat16", quantize=name)
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    with pytest.raises(
        ModelError, match=r"expected bfloat16, .* got float16; add --dtype bfloat16"
    ):
        find_pipeline("embedded", dtype="float16", quantize="torchao_int8")
    source = find_pipeline("embedded", dtype="bfloat16")
    for other, said in (("file", "got the single file"), ("lora", "expected no --lora with it")):
        changed = replace(source, **{other: tmp_path / "a.safetensors"})
        with pytest.raises(ModelError, match=said):
            quantization.with_quantization(changed, "torchao_int8", dtype="bfloat16")


def test_the_denoiser_and_the_text_encoders_are_quantized_by_their_own_libraries(
    folder, monkeypatch
):
    """With a stand-in for the package: what each library is asked for."""
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    kinds = SimpleNamespace(
        Int8WeightOnlyConfig=lambda: "int8", Float8WeightOnlyConfig=lambda: "float8"
    )
    monkeypatch.setattr(quantization, "torchao", kinds)
    for library in (diffusers, transformers):
        name = library.__name__
        monkeypatch.setattr(
            library, "TorchAoConfig", lambda kind, name=name: (name, kind), raising=False
        )
    asked = {}
    load_network = loading.load_network

    def spy(kind, place, *, quantization, **settings):
        asked[place.name] = quantization
        return load_network(kind, place, **settings)

    monkeypatch.setattr(loading, "load_network", spy)
    plain = find_pipeline(folder("sdxl"), dtype="bfloat16")
    source = find_pipeline(folder("sdxl"), dtype="bfloat16", quantize="torchao_int8")
    assert source.fingerprint == f"{plain.fingerprint}+torchao_int8"
    load_pipeline(source, device="cpu", dtype="bfloat16")
    of = dict.fromkeys(("text_encoder", "text_encoder_2"), ("transformers", "int8"))
    assert asked == {"unet": ("diffusers", "int8"), "vae": None, **of}
    load_pipeline(plain, device="cpu", dtype="bfloat16")
    assert set(asked.values()) == {None}


def test_quantized_images_have_keys_of_their_own_and_offloaded_ones_have_not(config, pairs):
    def keys(model: str, **settings) -> list[str]:
        return [job.key for job in Grid(replace(config, **settings), model, "s", pairs).jobs()]

    plain = keys("m")
    assert keys("m", offload="model") == plain
    assert not set(keys("m+torchao_int8", quantize="torchao_int8")) & set(plain)
    assert "offload" not in config.to_dict()
    changed = replace(config, offload="group", quantize="torchao_int8")
    assert type(config).from_dict(changed.to_dict()) == changed


@pytest.mark.parametrize("name", [name for name in QUANTIZATIONS if "torchao" in name])
def test_a_quantized_model_draws_nearly_the_same_image(drawn, name):
    if find_spec("torchao") is None:
        pytest.skip("needs torchao: pip install torchao")
    whole, rounded = (
        drawn("sdxl", "word", dtype="bfloat16", quantize=each) for each in (None, name)
    )
    for one, other in zip(whole, rounded, strict=True):
        assert 0 < np.abs(one - other).mean() < 8
    again = drawn("sdxl", "word", dtype="bfloat16", quantize=name, offload="group")
    assert np.array_equal(again, rounded)


@pytest.mark.parametrize("name", ["ZImagePipeline", "PixArtSigmaPipeline"])
def test_a_words_tokens_are_found_however_a_model_is_kept(folder, on_cpu, name):
    """Text encoders that are offloaded are called by hooks; quantized ones give other states."""

    def readings(quantize=None, offload=None):
        source = find_pipeline(folder(name), dtype="bfloat16", quantize=quantize)
        pipeline = load_pipeline(source, device="cpu", dtype="bfloat16", offload=offload)
        with torch.inference_mode():
            [made] = family_of(pipeline).encode(pipeline, ["a red car"])
        assert made.readings.keys() == made.states.keys()
        return made.readings

    plain = readings()
    assert all(each.tokens(places("a red car", "red")) for each in plain.values())
    for offload in OFFLOADS:
        assert readings(offload=offload) == plain
    if find_spec("torchao") is not None:
        assert readings(quantize="torchao_int8") == plain


def test_memory_is_measured_on_the_device_that_computes(offloaded, monkeypatch):
    """Weights of a sequentially offloaded model are on no device, and nothing is decoded."""
    generator = Generator(offloaded("sequential"), steps=1, guidance=3.0, size=32)
    assert generator._denoiser.device.type == "meta"
    decoded = []
    monkeypatch.setattr(Generator, "_decode", lambda *given: decoded.append(given))
    devices = []
    monkeypatch.setattr(
        generators, "peak", lambda device, work: devices.append(device) or work() or 7
    )
    assert generator.peak_memory(2) == 7
    assert devices == ["cpu"]
    assert not decoded
