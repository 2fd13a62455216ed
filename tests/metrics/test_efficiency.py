"""Time, memory, size and operations of a model, against hand counts and fake clocks."""

from __future__ import annotations

import shutil
import threading
import time
from types import SimpleNamespace

import diffusers
import numpy as np
import psutil
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from analogy.metrics import efficiency
from analogy.models.folders import weight_files
from analogy.models.loading import load_pipeline
from analogy.models.places import ModelSource
from analogy.models.sources import find_pipeline


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    fake = SimpleNamespace(now=0.0)
    monkeypatch.setattr(efficiency, "time", SimpleNamespace(perf_counter=lambda: fake.now))
    return fake


# --- time


def test_latency_and_throughput_are_those_of_the_calls(clock):
    lasting = iter([9.0, 9.0, *range(1, 11)])

    def run():
        clock.now += next(lasting)

    found = efficiency.timing(run, device="cpu", warmup=2, repeats=10, n_images=4)
    assert found.seconds == tuple(range(1, 11))
    assert found.latency_median_s == 5.5
    assert found.latency_p90_s == 9.0
    assert found.latency_p99_s == 10.0
    assert found.images_per_s == pytest.approx(40 / 55)
    assert (found.n_images, found.repeats, found.warmup, found.device) == (4, 10, 2, "cpu")


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=300), st.sampled_from([50, 90, 99, 100]))
def test_quantiles_are_numpys_nearest_rank(values, percent):
    expected = np.quantile(values, percent / 100, method="inverted_cdf")
    assert efficiency._nearest_rank(values, percent) == expected


def test_real_time_is_measured():
    began = time.perf_counter()
    found = efficiency.timing(lambda: time.sleep(0.02), device="cpu", warmup=0, repeats=3)
    whole = time.perf_counter() - began
    assert all(seconds >= 0.02 for seconds in found.seconds)
    assert sum(found.seconds) <= whole
    assert found.images_per_s == pytest.approx(3 / sum(found.seconds))


def test_a_gpus_work_is_waited_for_and_earlier_work_is_not_counted(clock, two_gpus, monkeypatch):
    queued = SimpleNamespace(seconds=7.0)

    def synchronize(device):
        assert device == "cuda:1"
        clock.now += queued.seconds
        queued.seconds = 0.0

    def run():
        queued.seconds += 2.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    found = efficiency.timing(run, device="cuda:1", warmup=1, repeats=3)
    assert found.seconds == (2.0, 2.0, 2.0)


def test_metals_work_is_waited_for(clock, monkeypatch):
    queued = SimpleNamespace(seconds=0.0)

    def synchronize():
        clock.now += queued.seconds
        queued.seconds = 0.0

    def run():
        queued.seconds += 2.0

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", synchronize)
    assert efficiency.timing(run, device="mps", repeats=2).seconds == (2.0, 2.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_images": 0}, "n_images: expected an integer >= 1, got 0"),
        ({"n_images": True}, "n_images: expected an integer >= 1, got True"),
        ({"repeats": 0}, "repeats: expected an integer >= 1, got 0"),
        ({"repeats": 2.5}, r"repeats: expected an integer >= 1, got 2\.5"),
        ({"warmup": -1}, "warmup: expected an integer >= 0, got -1"),
        ({"device": "tpu"}, "device: expected cpu, mps, cuda or cuda:N, got 'tpu'"),
        ({"device": "cuda:"}, "device: expected cpu, mps, cuda or cuda:N, got 'cuda:'"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(wrong, message):
    with pytest.raises(ValueError, match=message):
        efficiency.timing(pytest.fail, **{"device": "cpu", **wrong})


def test_devices_that_torch_does_not_see_are_refused(two_gpus, monkeypatch):
    for device in ("cuda:2", "mps"):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(ValueError, match=f"does not see '{device}' on this machine"):
            efficiency.peak_memory(pytest.fail, device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="does not see 'cuda' on this machine"):
        efficiency.energy(pytest.fail, country="DEU", n_images=1, device="cuda")


def test_a_failing_run_fails_with_its_own_error():
    def run():
        raise KeyError("mine")

    threads = threading.active_count()
    for measure in (
        lambda: efficiency.timing(run, device="cpu"),
        lambda: efficiency.peak_memory(run, device="cpu"),
        lambda: efficiency.flops(run),
        lambda: efficiency.energy(run, country="DEU", n_images=1),
    ):
        with pytest.raises(KeyError, match="mine"):
            measure()
    end = time.monotonic() + 600
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= threads


# --- memory


@pytest.mark.parametrize("keeps", [False, True])
def test_memory_that_a_run_takes_is_seen(keeps, monkeypatch):
    kept = []
    sampled = threading.Semaphore(0)

    class Sampled(psutil.Process):
        def memory_info(self):
            found = super().memory_info()
            sampled.release()
            return found

    def run():
        block = np.ones(25_000_000)  # 200 MB, written to
        while sampled.acquire(blocking=False):
            pass
        for _ in range(2):  # the second one began after that
            assert sampled.acquire(timeout=600)
        if keeps:
            kept.append(block)

    monkeypatch.setattr(efficiency.psutil, "Process", Sampled)
    found = efficiency.peak_memory(run, device="cpu")
    assert found.added_bytes == pytest.approx(200e6, rel=0.1)
    assert found.peak_bytes == found.before_bytes + found.added_bytes
    assert found.before_bytes > 50e6  # python and torch
    assert (found.kind, found.reserved_bytes) == ("resident set", None)
    assert found.interval_s == efficiency.SAMPLING_INTERVAL_S


def test_a_run_without_memory_adds_next_to_none():
    found = efficiency.peak_memory(lambda: time.sleep(0.05), device="cpu")
    assert found.added_bytes < 20e6


def test_peak_memory_on_cuda_is_the_allocators(two_gpus, monkeypatch):
    events = []

    def allocator(name, value=None):
        def call(device):
            events.append((name, device))
            return value

        monkeypatch.setattr(torch.cuda, name, call)

    allocator("synchronize")
    allocator("reset_peak_memory_stats")
    allocator("memory_allocated", 1_000)
    allocator("max_memory_allocated", 5_000)
    allocator("max_memory_reserved", 8_000)
    found = efficiency.peak_memory(lambda: events.append(("run", None)), device="cuda:1")
    assert found == efficiency.Memory("cuda allocator", "cuda:1", 5_000, 1_000, 4_000, 8_000, None)
    names = [name for name, _ in events]
    assert names.index("reset_peak_memory_stats") < names.index("run")
    assert names[names.index("run") + 1] == "synchronize"
    assert {device for _, device in events} == {"cuda:1", None}


def test_peak_memory_on_metal_is_the_drivers(monkeypatch):
    held = SimpleNamespace(bytes=100)
    sampled = threading.Event()

    def run():
        held.bytes = 900
        sampled.wait(600)
        held.bytes = 300

    def allocated():
        found = held.bytes
        if found == 900:
            sampled.set()
        return found

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", allocated)
    found = efficiency.peak_memory(run, device="mps")
    assert (found.kind, found.before_bytes, found.peak_bytes) == ("metal driver", 100, 900)


# --- size


def test_shared_tensors_count_once():
    first, second = nn.Linear(3, 4), nn.Linear(3, 4, bias=False)
    second.weight = first.weight
    assert efficiency.parameters([first, second]) == 16
    assert efficiency.parameters(first) == 16
    assert efficiency.parameters([nn.Linear(3, 4), second]) == 28
    assert efficiency.model_bytes([first, second, first]) == 64
    assert efficiency.model_bytes(first.half()) == 32


def test_buffers_are_bytes_but_not_parameters():
    norm = nn.BatchNorm2d(5)  # weight, bias; running mean and variance; a count in int64
    assert efficiency.parameters(norm) == 10
    assert efficiency.model_bytes(norm) == 4 * 20 + 8


def test_the_embedded_pipelines_size_is_that_of_its_files(pipeline, model_source):
    stored = [load_file(path) for path in model_source.folder.rglob("*.safetensors")]
    modules = efficiency.modules_of(pipeline)
    assert len(modules) == 4
    assert efficiency.parameters(modules) == sum(
        t.numel() for part in stored for t in part.values()
    )
    files = model_source.folder.rglob("*.safetensors")
    on_disk = efficiency.size_on_disk(model_source, dtype="float32")
    assert on_disk == sum(path.stat().st_size for path in files)
    assert on_disk == pytest.approx(2 * efficiency.parameters(modules), rel=0.01)  # float16


@pytest.fixture(scope="module")
def both_precisions(tmp_path_factory):
    """A folder with whole and half weights of different values; one part has no half."""
    folder = tmp_path_factory.mktemp("models") / "both"
    torch.manual_seed(0)
    tiny.sd1().save_pretrained(folder)
    half = tiny.sd1()
    for module in efficiency.modules_of(half):
        module.half()
    half.save_pretrained(folder, variant="fp16")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    half.unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="300KB")
    for path in (folder / "vae").glob("*.fp16*"):
        path.unlink()
    ema = folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors"
    save_file({"nobody": torch.zeros(9)}, ema)
    return find_pipeline(str(folder), dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weight_files_are_those_that_are_loaded(both_precisions, dtype, tmp_path):
    files = weight_files(both_precisions, dtype=dtype)
    reduced = tmp_path / "reduced"
    shutil.copytree(both_precisions.folder, reduced)
    for path in reduced.rglob("*.safetensors"):
        if both_precisions.folder / path.relative_to(reduced) not in files:
            path.unlink()
    whole, part = (
        load_pipeline(ModelSource(folder, "any"), device="cpu", dtype=dtype)
        for folder in (both_precisions.folder, reduced)
    )
    for name in ("unet", "vae", "text_encoder"):
        state = getattr(part, name).state_dict()
        for key, value in getattr(whole, name).state_dict().items():
            assert torch.equal(value, state[key])
    stored = sum(t.numel() for file in files for t in load_file(file).values())
    assert stored == efficiency.parameters(efficiency.modules_of(whole))  # every file, and once


def test_size_on_disk_follows_the_dtype(both_precisions):
    whole = efficiency.size_on_disk(both_precisions, dtype="float32")
    half = efficiency.size_on_disk(both_precisions, dtype="bfloat16")
    assert {p.parent.name for p in weight_files(both_precisions, dtype="bfloat16")} == {
        "text_encoder",
        "unet",
        "vae",
    }
    assert len(weight_files(both_precisions, dtype="float32")) == 3
    assert len(weight_files(both_precisions, dtype="bfloat16")) > 3  # shards
    assert 0.5 * whole < half < 0.7 * whole  # the VAE is whole in both


def test_a_single_file_and_a_lora_have_their_own_size(model_source, tmp_path):
    file, lora = tmp_path / "one.safetensors", tmp_path / "lora.safetensors"
    file.write_bytes(b"x" * 70)
    lora.write_bytes(b"x" * 7)
    one = ModelSource(model_source.folder, "any", file=file, lora=lora)
    assert efficiency.size_on_disk(one, dtype="float32") == 77
    fused = ModelSource(model_source.folder, "any", lora=lora)
    plain = efficiency.size_on_disk(model_source, dtype="float32")
    assert efficiency.size_on_disk(fused, dtype="float32") == plain + 7


# --- operations


def test_operations_of_single_layers_are_those_by_hand():
    convolution = nn.Conv2d(3, 8, 5, padding=2, stride=2)
    linear = nn.Linear(7, 11)
    q = torch.zeros(2, 3, 16, 8)  # images, heads, tokens, dim
    work = {
        lambda: convolution(torch.zeros(1, 3, 32, 32)): 2 * 5 * 5 * 3 * 8 * 16 * 16,
        lambda: linear(torch.zeros(5, 7)): 2 * 5 * 7 * 11,
        lambda: F.scaled_dot_product_attention(q, q, q): 2 * 2 * (2 * 3) * 16 * 16 * 8,
    }
    for run, expected in work.items():
        with torch.inference_mode():
            assert efficiency.flops(run) == expected
        assert efficiency.flops(run, n_images=2) == expected // 2
        assert efficiency.macs(expected) == expected // 2


def test_the_embedded_unets_operations_are_those_of_its_layers(pipeline):
    unet = pipeline.unet
    side, tokens = unet.config.sample_size, 32
    counted = []

    def layer(module, inputs, output):
        weight = module.weight
        per_output = weight[0].numel()  # the products in one output number
        counted.append(2 * output.numel() * per_output)

    def attention(module, args, kwargs, output):
        _, n, _ = args[0].shape
        text = kwargs.get("encoder_hidden_states")
        keys = n if text is None else text.shape[1]
        counted.append(2 * 2 * n * keys * module.inner_dim)

    hooks = [
        module.register_forward_hook(layer)
        for module in unet.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ] + [
        module.register_forward_hook(attention, with_kwargs=True)
        for module in unet.modules()
        if isinstance(module, diffusers.models.attention_processor.Attention)
    ]

    def run():
        unet(
            torch.zeros(1, unet.config.in_channels, side, side),
            torch.tensor(5),
            encoder_hidden_states=torch.zeros(1, tokens, unet.config.cross_attention_dim),
            added_cond_kwargs={
                "text_embeds": torch.zeros(1, pipeline.text_encoder_2.config.projection_dim),
                "time_ids": torch.zeros(1, 6),
            },
        )

    try:
        with torch.inference_mode():
            found = efficiency.flops(run)
    finally:
        for hook in hooks:
            hook.remove()
    assert found == sum(counted)
    assert found == pytest.approx(0.30e9, rel=0.02)


def test_work_that_the_counter_does_not_see_is_an_error():
    with pytest.raises(ValueError, match="saw no matrix product"):
        efficiency.flops(lambda: torch.ones(3) + 1)


# --- a real GPU


@pytest.mark.gpu
def test_cuda_products_are_timed_to_their_end(square):
    one = efficiency.timing(lambda: square @ square, device="cuda", repeats=10)
    ten = efficiency.timing(lambda: [square @ square for _ in range(10)], device="cuda", repeats=10)
    assert 5 < ten.latency_median_s / one.latency_median_s < 15


@pytest.mark.gpu
def test_cuda_memory_of_a_product_is_its_result(square):
    square @ square  # cuBLAS's workspace is allocated once
    found = efficiency.peak_memory(lambda: square @ square, device="cuda")
    assert found.added_bytes == square.nbytes
    assert found.reserved_bytes >= found.peak_bytes >= found.before_bytes + square.nbytes
