"""The steps' functions. In a rehearsal each measures at a small size on the CPU."""

from __future__ import annotations

import importlib.util
import os
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analogy.core.records import Pair, RunConfig
from analogy.generation.engine import Setup
from analogy.generation.worker import Worker
from analogy.judges.open_clip import Judge, find_judge
from analogy.metrics import psnr
from analogy.metrics.efficiency import CUDA
from analogy.models.folders import native_size
from analogy.models.generator import Generator, latents_for
from analogy.models.loading import load_pipeline
from analogy.models.memory import GIB
from analogy.models.places import ModelSource, shipped
from analogy.models.sources import find_pipeline
from analogy.settings.pairs import load_pairs, select
from analogy.settings.request import RunRequest, request_of
from analogy.store.grid import Grid
from analogy.studies.study import Study
from tools import ssd1b
from tools.gpu_check.runner import NotRunError, Recorder
from tools.side_by_side import Row
from tools.throughput import Generation, Scoring, generation_rows, pictures, vit_b_32, wait

#: The tests marked ``gpu`` that take seconds; those of the throughput benchmark are steps here.
GPU_TESTS = "tests/project/test_gpu.py"

#: Steps and guidance of SSD-1B's measurement, as in benchmarks/test_throughput.py.
SSD_1B_STEPS, SSD_1B_GUIDANCE = 30, 9.0


def gpu_tests(check: Recorder) -> None:
    """Every test marked ``gpu``."""
    import pytest

    junit = check.setting.work / "junit.xml"
    arguments = [GPU_TESTS, "-q", "-p", "no:cacheprovider", "-W", "default", f"--junitxml={junit}"]
    # pytest removes what earlier sessions left beside its own default folder, which takes minutes.
    arguments += [f"--basetemp={check.setting.work / 'tests'}"]
    # Only pytest itself and the suite's plugin: loading others on the machine would take seconds.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if check.setting.rehearse:  # one of the tests, on the CPU
        os.environ["ANALOGY_TEST_DEVICE"] = "cpu"
        arguments += ["-k", "scores_on_a_device"]
    code = pytest.main(arguments)
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
    for name in ("tests", "failures", "errors", "skipped"):
        check.add(name, int(suite.get(name, "0")))
    for case in suite.iter("testcase"):
        fault = case.find("failure")
        if fault is not None:
            check.add(f"{case.get('name')}", (fault.get("message") or "")[:300])
    if code:
        raise RuntimeError(f"pytest ended with {code!r}; the log has its output")


def grid(check: Recorder) -> None:
    """The images and verdicts of the embedded grid on the device, compared with the CPU's."""
    device = check.setting.device
    settings: dict[str, Any] = {"limit": 10, "alphas": (0.5, 0.8, 1.0), "seeds": (0, 1, 2)}
    dtypes = ["float32", "float16", "bfloat16"]
    if check.setting.rehearse:
        settings = {"limit": 6, "alphas": (1.0,), "seeds": (0,), "steps": 2}
        settings["categories"] = ("color",)
        dtypes = ["float32"]  # a CPU without bfloat16 needs 10 s for these images in it
    reference = _study(check, "cpu", "float32", settings, "reference")
    check.add("CPU, float32: generated", _rate(reference, "generate"), "images/s")
    images = _images_of(reference)
    for dtype in dtypes:
        study = _study(check, device, dtype, settings, f"{device}-{dtype}")
        values = psnr(_images_of(study), images)
        said = f"{device}, {dtype}"
        check.add(f"{said}: generated", _rate(study, "generate"), "images/s")
        check.add(f"{said}: scored", _rate(study, "score"), "images/s")
        check.add(f"{said}: median PSNR to the CPU's images", float(np.median(values)), "dB")
        check.add(f"{said}: lowest PSNR", float(np.min(values)), "dB")
        now, then = study.analysis().cells, reference.analysis().cells
        pairs = [(now[cell], then[cell]) for cell in then]
        changed = sum(a.margin.verdict is not b.margin.verdict for a, b in pairs)
        moved = max(abs(a.margin.mean - b.margin.mean) for a, b in pairs)
        check.add(f"{said}: verdicts that differ", changed, f"of {len(pairs)}")
        check.add(f"{said}: largest change of a cell's mean margin", moved)
        study.close()
    reference.close()


def _study(check: Recorder, device: str, dtype: str, settings: dict[str, Any], name: str) -> Study:
    """A finished study of the embedded models in its own folder."""
    run_dir = str(check.setting.work / f"grid-{name}")
    study = Study.open(request_of(device=device, dtype=dtype, run_dir=run_dir, **settings))
    study.generate(study.jobs())
    study.score(study.jobs())
    return study


def _images_of(study: Study) -> Any:
    return np.stack([study.folder.read_image(job) for job in study.jobs()])


def _rate(study: Study, stage: str) -> float:
    return study.folder.rate(stage) or 0.0


def build_ssd_1b(check: Recorder) -> None:
    """Write SSD-1B's architecture with random weights to disk, for later steps."""
    start = time.perf_counter()
    sizes = ssd1b.TINY if check.setting.rehearse else ssd1b.FULL
    ssd1b.write(_ssd_1b_folder(check), sizes, device=check.setting.device)
    check.add("written", time.perf_counter() - start, "s")


def _ssd_1b_folder(check: Recorder) -> Path:
    return check.setting.work / "ssd-1b"


def _ssd_1b(check: Recorder, **changed: Any) -> tuple[RunConfig, ModelSource]:
    """The configuration of a run with SSD-1B, and its files."""
    folder = _ssd_1b_folder(check)
    if not folder.is_dir():
        raise NotRunError("the step that writes SSD-1B's architecture did not finish")
    config = RunConfig(
        model="SSD-1B at random weights", clip_model="embedded", clip_pretrained=None,
        pairs=str(shipped("pairs.csv")), categories=None, alphas=(0.5,), seeds=(0,),
        method="word", steps=SSD_1B_STEPS, guidance=SSD_1B_GUIDANCE, size=native_size(folder),
        dtype="float16", device=check.setting.device, batch_size=None, limit=None,
    )  # fmt: skip
    if check.setting.rehearse:  # float16 is emulated on a CPU
        config = replace(config, steps=2, dtype="float32")
    config = replace(config, **changed)
    return config, find_pipeline(str(folder), dtype=config.dtype)


def _pairs(per_category: int) -> list[Pair]:
    return select(load_pairs(str(shipped("pairs.csv"))), None, per_category)


def ssd_1b(check: Recorder) -> None:
    """Seconds per image at 1024 pixels, of a run, of the usual loop and of the bare loop."""
    config, source = _ssd_1b(check)
    small = check.setting.rehearse
    start = time.perf_counter()
    pairs = _pairs(1)[:2] if small else _pairs(1)
    generation = Generation(config, pairs, source, check.setting.work)
    check.add("pipeline loaded", time.perf_counter() - start, "s")
    ours, usual, bare = generation.same_latents(2)
    for name, other in (("usual", usual), ("bare", bare)):
        check.add(f"lowest PSNR of ours to the {name} loop", float(psnr(ours, other).min()), "dB")
    rows = generation_rows(
        generation,
        usual=1 if small else 4,
        rounds=1 if small else 2,
        batches=(1,) if small else (4, 8, 16),
        bars=(1.5, 1.5, 0.85),
    )
    _add_rows(check, rows)
    check.add("seconds an image, ours", 1.0 / rows[0].ours, "s")
    _add_peak(check, "peak memory")


def _add_rows(check: Recorder, rows: list[Row]) -> None:
    for row in rows:
        check.add(f"{row.work}: ours", row.ours, row.unit)
        check.add(f"{row.against}", row.theirs, row.unit)
        check.add(f"ratio to {row.against}", row.ratio, bar=row.bar)


def _add_peak(check: Recorder, name: str) -> None:
    if not check.setting.rehearse:
        check.add(name, torch.cuda.max_memory_allocated() / GIB, "GiB")


def memory_limit(check: Recorder) -> None:
    """``--memory 12``: the batch that is chosen, its speed, and the peak of memory."""
    config, source = _ssd_1b(check, memory=12.0)
    pairs = _pairs(1)
    worker = Worker(Setup(config, pairs, source, find_judge("embedded", None)))
    ready = worker.prepare()
    check.add("images in a batch", ready.batch_size)
    jobs = Grid(config, source.fingerprint, "", pairs).jobs()
    batch = jobs[: min(ready.batch_size, 2 if check.setting.rehearse else 8)]
    start = time.perf_counter()
    drawn = worker.generate(batch)
    check.add("seconds an image", (time.perf_counter() - start) / len(batch), "s")
    check.add("failed images", len(drawn.faults))
    if drawn.memory is not None and drawn.memory.kind == CUDA:
        peak = drawn.memory.peak_bytes / GIB
        check.add("peak memory", peak, "GiB")
        check.add("GiB left of 12", 12.0 - peak, bar=0.0)


def out_of_memory(check: Recorder) -> None:
    """A batch that does not fit is halved: its final size, and its images."""
    config, source = _ssd_1b(check, steps=2)
    generator = Generator(
        load_pipeline(source, device=config.device, dtype=config.dtype),
        steps=config.steps, guidance=config.guidance, size=config.size, batch_size=32,
    )  # fmt: skip
    n = 4 if check.setting.rehearse else 32
    conditionings = generator.encode([pair.target_prompt for pair in _pairs(4)[:n]])
    latents = torch.stack([latents_for(p, 0, generator.latent_shape) for p in _pairs(4)[:n]])
    wanted = [conditionings[pair.target_prompt] for pair in _pairs(4)[:n]]
    with _little_memory(check, generator, most=2):
        made = generator.generate(wanted, latents)
    check.add("images asked for at once", n)
    check.add("images at once in the end", generator.batch_size)
    check.add("it was halved", generator.batch_size < n)
    if generator.batch_size >= n:
        raise RuntimeError("the batch was not halved: nothing ran out of memory")
    generator.batch_size = 1
    one = generator.generate(wanted[:2], latents[:2])
    check.add("PSNR to images made one at a time", float(psnr(made.images[:2], one.images).min()))


@contextmanager
def _little_memory(check: Recorder, generator: Generator, *, most: int) -> Iterator[None]:
    """Leave memory for a few images only: by a limit on a GPU; on the CPU by an error beyond
    ``most`` images.
    """
    if not check.setting.rehearse:
        used = torch.cuda.memory_allocated()
        total = torch.cuda.get_device_properties("cuda").total_memory
        torch.cuda.set_per_process_memory_fraction((used + 6 * GIB) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return

    def refuse(module: Any, arguments: tuple[Any, ...]) -> None:
        if len(arguments[0]) > 2 * most:  # both branches of the guidance
            raise torch.OutOfMemoryError("rehearsed: out of memory")

    handle = generator._denoiser.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def scoring(check: Recorder) -> None:
    """Images of 1024 pixels scored per second, with ViT-B-32 at random weights."""
    small = check.setting.rehearse
    images = pictures(8 if small else 512, 64 if small else 1024)
    embedded = find_judge("embedded", None)
    dtypes = ("float32",) if small else ("float32", "float16", "bfloat16")
    exact = None
    for dtype in dtypes:
        judge = Judge(embedded, device="cpu") if small else vit_b_32("cuda", dtype)
        side = Scoring(judge, images, _pairs(10), per_pair=12)
        n = len(images)
        batch = side.best_batch((n // 2,) if small else (64, 128, 256))
        counts = (n, 1, n) if small else (n, 32, 2048)
        rates = side.rates(
            1 if small else 3, ours=counts[0], usual=counts[1], tower=counts[2], batch_size=batch
        )
        median = {name: float(np.median(values)) for name, values in rates.items()}
        check.add(f"{dtype}: ours", median["ours"], "images/s", bar=1000.0)
        check.add(f"{dtype}: one PIL image at a time", median["usual"], "images/s")
        check.add(f"{dtype}: bare tower, batch {batch}", median["tower"], "images/s")
        found = side.ours(slice(min(n, 48))).margins
        exact = found if exact is None else exact
        check.add(f"{dtype}: largest change of a margin", float(np.abs(found - exact).max()))


def dtypes(check: Recorder) -> None:
    """SSD-1B in float16, bfloat16 and float32: speed, and distance to float32's images."""
    names = (
        ("float32", "bfloat16") if check.setting.rehearse else ("float32", "bfloat16", "float16")
    )
    pairs = _pairs(1)[:2]
    exact = None
    for dtype in names:
        config, source = _ssd_1b(check, dtype=dtype)
        pipeline = load_pipeline(source, device=config.device, dtype=dtype)
        generator = Generator(
            pipeline, steps=config.steps, guidance=config.guidance, size=config.size
        )
        encoded = generator.encode([pair.target_prompt for pair in pairs])
        latents = torch.stack([latents_for(p, 0, generator.latent_shape) for p in pairs])
        wanted = [encoded[pair.target_prompt] for pair in pairs]
        if not check.setting.rehearse:
            generator.generate(wanted, latents)  # the first pass chooses kernels
        start = time.perf_counter()
        made = generator.generate(wanted, latents)
        check.add(f"{dtype}: seconds an image", (time.perf_counter() - start) / len(pairs), "s")
        check.add(f"{dtype}: failed images", len(made.faults))
        exact = made.images if exact is None else exact
        check.add(f"{dtype}: PSNR to float32", float(psnr(made.images, exact).min()), "dB")


def compiled(check: Recorder) -> None:
    """Time of the denoiser's forward pass with and without torch.compile and channels_last."""
    config, source = _ssd_1b(check)
    pipeline = load_pipeline(source, device=config.device, dtype=config.dtype)
    small = check.setting.rehearse
    forward = _forward(pipeline, 2 if small else 16)
    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    for name, layout in layouts.items():
        pipeline.unet.to(memory_format=layout)
        check.add(f"{name}: forward", _seconds(forward, config.device, small), "s")
    pipeline.unet.to(memory_format=torch.channels_last)
    exact = forward()
    # The rehearsal traces one attention module and compiles nothing: tracing the whole model takes
    # 9 s, and compiling takes minutes on a CPU.
    part = pipeline.unet.down_blocks[1].attentions[0] if small else pipeline.unet
    part.compile(backend="eager" if small else "inductor", fullgraph=False)
    start = time.perf_counter()
    found = forward()
    wait(config.device)
    check.add("compile and first forward", time.perf_counter() - start, "s")
    check.add("compiled, channels_last: forward", _seconds(forward, config.device, small), "s")
    check.add("largest change by compiling", float((found - exact).abs().max()))


def _forward(pipeline: Any, rows: int) -> Callable[[], Tensor]:
    """A function for one forward pass of SDXL's denoiser on the same ``rows`` rows each time."""
    unet = pipeline.unet
    config, place = unet.config, {"device": unet.device, "dtype": unet.dtype}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        side = config.sample_size
        x = torch.randn(rows, config.in_channels, side, side).to(**place)
        states = torch.randn(rows, 77, config.cross_attention_dim).to(**place)
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        pooled = torch.randn(rows, width).to(**place)
    ids = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]]).expand(rows, -1).to(**place)
    added = {"text_embeds": pooled, "time_ids": ids}

    @torch.inference_mode()
    def forward() -> Tensor:
        given: Tensor = unet(x, 500, states, added_cond_kwargs=added, return_dict=False)[0]
        return given.clone()

    return forward


def _seconds(work: Callable[[], object], device: str, small: bool) -> float:
    """The median seconds of five rounds, after two to warm up; of two rounds if ``small``."""
    found = []
    for number in range(2 if small else 7):
        start = time.perf_counter()
        work()
        wait(device)
        if small or number > 1:
            found.append(time.perf_counter() - start)
    return float(np.median(found))


def methods(check: Recorder) -> None:
    """The cost of a hook and of a LoRA, and a check that removing them leaves no trace."""
    from peft import LoraConfig

    config, source = _ssd_1b(check)
    pipeline = load_pipeline(source, device=config.device, dtype=config.dtype)
    unet, small = pipeline.unet, check.setting.rehearse
    # Adapters also freeze the weights, permanently, and torch multiplies frozen weights in another
    # order.
    unet.requires_grad_(False)
    forward = _forward(pipeline, 2 if small else 16)
    plain = forward()
    check.add("plain: forward", _seconds(forward, config.device, small), "s")

    channels = unet.config.block_out_channels[-1]
    direction = torch.ones(1, channels, 1, 1, device=unet.device, dtype=unet.dtype)
    strength = torch.linspace(0.0, 1.0, len(plain), device=unet.device, dtype=unet.dtype)

    def add(module: Any, arguments: Any, output: Tensor) -> Tensor:
        return output + strength[:, None, None, None] * direction  # each row's own strength

    handle = unet.mid_block.register_forward_hook(add)
    try:
        hooked = forward()
        check.add("with an activation hook: forward", _seconds(forward, config.device, small), "s")
    finally:
        handle.remove()
    check.add("row of strength 0 is unchanged", bool(torch.equal(hooked[0], plain[0])))
    check.add("row of strength 1 is changed", not torch.equal(hooked[-1], plain[-1]))
    check.add("nothing is left of the hook", bool(torch.equal(forward(), plain)))

    unet.add_adapter(
        LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights="gaussian"),
        adapter_name="slider",
    )
    try:
        with torch.no_grad():
            for name, weight in unet.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.01)
        start = time.perf_counter()
        unet.set_adapters(["slider"], [0.5])
        check.add("setting a LoRA's scale", time.perf_counter() - start, "s")
        check.add("with a LoRA at 0.5: forward", _seconds(forward, config.device, small), "s")
        check.add("the LoRA changes the output", not torch.equal(forward(), plain))
    finally:
        unet.delete_adapters("slider")
    check.add("nothing is left of the LoRA", bool(torch.equal(forward(), plain)))


def _embedded_request(check: Recorder, **changed: Any) -> RunRequest:
    """A small run of the embedded models in its own folder."""
    small = {"limit": 2, "alphas": (1.0,), "seeds": (0,), "categories": ("color",)}
    name = "-".join(["run", *map(str, changed.values())])
    return request_of(**{**small, "run_dir": str(check.setting.work / name), **changed})


def ray_engine(check: Recorder) -> None:
    """``--engine ray`` on the device: the same images as without it, bit for bit."""
    if importlib.util.find_spec("ray") is None:
        raise NotRunError("the package ray is not installed on this machine")
    images = []
    for engine in ("serial", "ray"):
        request = _embedded_request(
            check, engine=engine, device=check.setting.device, dtype="float32", steps=2
        )
        num_workers = 1 if engine == "ray" else None
        study = Study.open(replace(request, num_workers=num_workers))
        start = time.perf_counter()
        study.generate(study.jobs())
        study.score(study.jobs())
        check.add(f"{engine}: from nothing to scores", time.perf_counter() - start, "s")
        images.append(_images_of(study))
        study.close()
    check.add("images", len(images[0]))
    check.add("equal bit for bit", bool(np.array_equal(*images)))
