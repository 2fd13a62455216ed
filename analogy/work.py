"""The work of a run, a batch at a time, by whoever holds the models: a process or a Ray actor."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from threading import Lock
from typing import Generic, NamedTuple

import numpy as np
import torch
from torch import Tensor

from analogy.clip import Features, Judge, JudgeSource
from analogy.generator import Generated, Generator, derived_seed, latents_for
from analogy.grid import Job, W, looks_at_others
from analogy.images import ImageError, from_png, to_png
from analogy.margin import cosine
from analogy.memory import InParts, budget, fitting, limit_memory, most_at_once
from analogy.models import ModelError, ModelSource, load_pipeline
from analogy.records import Pair, RunConfig
from analogy.steering import METHODS, Conditioning, Edit, Words
from analogy.store import StoreError, stacked

#: Texts that are all encoded before the first image; of SDXL they are 2.5 GB. Of more, each batch
#: encodes its own.
MOST_TEXTS = 4096


@dataclass(frozen=True, slots=True)
class Drawn:
    """A batch of images as PNG files, and what it took.

    ``pngs``: None where there is no picture; ``faults`` has its place and the reason. ``seconds``:
    of a generator; ``peak_bytes``: of a CUDA device so far, None elsewhere.
    """

    pngs: list[bytes | None]
    faults: Mapping[int, str]
    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the judge makes of a batch: (cos_target, cos_source, margin) each; features (n, dim)."""

    cosines: list[tuple[float, float, float]]
    features: Features


class Ready(NamedTuple):
    """What a worker says that has loaded the generator: images that fit, batches side by side."""

    batch_size: int
    at_once: int


class Worker:
    """Holds the models of one run, each loaded at its first use, and works on batches.

    It knows no run folder, and what it makes of a batch depends on that batch alone: not on its
    process, its threads, or what it did before. ``draw`` may be called by several threads.
    """

    def __init__(
        self,
        config: RunConfig,
        pairs: Sequence[Pair],
        model: ModelSource | None,
        judge: JudgeSource,
    ) -> None:
        self._config = config
        self._pairs = pairs
        self._model = model
        self._judge_source = judge
        self._look_in_parts = InParts(sys.maxsize)  # of whole batches, until memory runs out

    def prepare(self) -> Ready:
        """Load the generator; before any thread draws."""
        generators = self._painter.generators
        return Ready(generators[0].batch_size, len(generators))

    def draw(self, jobs: Sequence[Job]) -> Drawn:
        """Generate one batch."""
        made, seconds = self._painter(jobs)
        pngs = [None if i in made.faults else to_png(im) for i, im in enumerate(made.images)]
        device = self._config.device
        peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
        return Drawn(pngs, made.faults, seconds, peak)

    def see(self, jobs: Sequence[Job], pngs: Sequence[bytes]) -> Seen:
        """Have the judge look at the images of these jobs."""
        judge = self.judge

        def look(part: slice) -> Features:
            try:
                images = [from_png(png) for png in pngs[part]]
            except ImageError as error:
                raise StoreError(
                    f"images of the run: expected PNG files, got one that cannot be decoded "
                    f"({error}); repair the run folder with: python -m analogy verify RUN --repair"
                ) from error
            return judge.image_features(stacked(images, jobs[part]))

        features = np.concatenate(self._look_in_parts(look, len(pngs)))
        return Seen(self._cosines(jobs, features), features)

    def _cosines(self, jobs: Sequence[Job], features: Features) -> list[tuple[float, float, float]]:
        target = cosine(features, self.judge.text_features([j.pair.target_prompt for j in jobs]))
        source = cosine(features, self.judge.text_features([j.pair.source_prompt for j in jobs]))
        columns = (target, source, target - source)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    @cached_property
    def judge(self) -> Judge:
        """The judge, loaded at its first use."""
        return Judge(self._judge_source, device=self._config.device)

    @cached_property
    def _painter(self) -> Painter[Job]:
        """Of one generator for each batch in flight."""
        config = self._config
        if self._model is None:
            raise ModelError(
                "the model of these images is known from a run folder alone, which does not decide "
                "what is loaded; name the model"
            )
        if config.device.startswith("cuda") and config.memory is not None:
            limit_memory(config.device, config.memory)
        first = Generator(
            load_pipeline(self._model, device=config.device, dtype=config.dtype),
            steps=config.steps,
            guidance=config.guidance,
            size=config.size,
            batch_size=config.batch_size or most_at_once(config.device, config.size),
        )
        encoded = Encoded(first, self._pairs, config.device)
        if config.batch_size is None:
            fit_batch_size(first, config.device, config.memory)
        shape = first.latent_shape

        def inputs(jobs: Sequence[Job]) -> tuple[list[Conditioning], Tensor]:
            texts_of_jobs = encoded.of(jobs)
            noise = [latents_for(job.pair, job.seed, shape) for job in jobs]
            return [steered(job, self._pairs, texts_of_jobs) for job in jobs], torch.stack(noise)

        return Painter(side_by_side(first, config.device), inputs, device=config.device)


class Encoded:
    """The conditioning of texts: of all of them at once, or of too many with their batch.

    Where all are encoded at once, the pipeline's text encoders are given up on any device but the
    CPU. On a CPU one thread encodes: another number of them rounds differently.
    """

    def __init__(self, generator: Generator, pairs: Sequence[Pair], device: str) -> None:
        self._generator = generator
        self._pairs = pairs
        self._lock = Lock()  # a tokenizer's padding is state that threads would share
        self._all: dict[str, Conditioning] | None = None
        given = texts(pairs)
        if len(set(given)) <= MOST_TEXTS:
            with one_thread(device), no_dropped_ends():
                self._all = generator.encode(given)
            if device != "cpu":
                generator.drop_text_encoders()

    def of(self, jobs: Sequence[Job]) -> Mapping[str, Conditioning]:
        """The conditioning of what these jobs need. Called by painters' threads."""
        with self._lock, no_dropped_ends():
            if self._all is None and any(looks_at_others(job.method) for job in jobs):
                self._all = self._generator.encode(texts(self._pairs))
            if self._all is not None:
                return self._all
            return self._generator.encode(texts(dict.fromkeys(job.pair for job in jobs)))


class Painter(Generic[W]):
    """Generators that share their weights, each at work on one batch; called by many threads.

    ``inputs``: the conditionings of a batch, and its latents ``(n, *latent_shape)``. On a CPU it
    leaves torch with one thread: whoever wants more sets them again.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        inputs: Callable[[Sequence[W]], tuple[list[Conditioning], Tensor]],
        *,
        device: str,
    ) -> None:
        self.generators = generators
        self._free: SimpleQueue[Generator] = SimpleQueue()
        for generator in generators:
            self._free.put(generator)
        self._inputs = inputs
        self._device = device

    def __call__(self, batch: Sequence[W]) -> tuple[Generated, float]:
        """What is made of a batch, and the seconds that a generator took."""
        if self._device == "cpu":
            torch.set_num_threads(1)  # this thread's own share
        conditionings, latents = self._inputs(batch)
        generator = self._free.get()
        try:
            clock = time.perf_counter()
            return generator.generate(conditionings, latents), time.perf_counter() - clock
        finally:
            self._free.put(generator)


@contextmanager
def no_dropped_ends() -> Iterator[None]:
    """Keep diffusers and transformers from printing what they drop of long prompts, padding too.

    A page of it for each batch. Which pairs lose what they differ in is said before the work.
    """
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """On a CPU, one thread for torch's operations; afterwards as many as before."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_batch_size(generator: Generator, device: str, memory: float | None = None) -> None:
    """On CUDA, lower the batch size to what fits into ``memory`` GiB, or into what is free."""
    most = generator.batch_size
    if device.startswith("cuda") and most > 1:
        have = budget(device, memory)
        one, two = generator.peak_memory(1), generator.peak_memory(2)
        generator.batch_size = fitting(one, two, budget=have, most=most)


def side_by_side(first: Generator, device: str) -> list[Generator]:
    """A generator for each batch in flight, all on the weights of ``first``.

    On a CPU one for each thread: the layers of a small model are too small to share out, and
    whole batches side by side are faster. Any other device gets one.
    """
    count = torch.get_num_threads() if device == "cpu" else 1
    return [first, *(first.twin() for _ in range(count - 1))]


def steered(job: Job, pairs: Sequence[Pair], encoded: Mapping[str, Conditioning]) -> Conditioning:
    """What a job's image is conditioned on; ``encoded`` has the :func:`texts` of its pair, and of
    all ``pairs`` where the method looks at others.
    """
    pair = job.pair
    if job.is_unsteered:
        return encoded[pair.source_prompt]
    others: tuple[Words, ...] = ()
    if looks_at_others(job.method):
        others = tuple(
            Words(o.source_word, o.target_word, encoded[o.source_prompt], encoded[o.target_prompt])
            for o in pairs
            if o.category == pair.category and o.id != pair.id
        )
    edit = Edit(
        source=encoded[pair.source_prompt],
        target=encoded[pair.target_prompt],
        words=(pair.source_word, pair.target_word),
        source_word=encoded[pair.source_word],
        target_word=encoded[pair.target_word],
        others=others,
        seed=_seed_of(pair),
    )
    return METHODS[job.method](edit, job.alpha)


def texts(pairs: Iterable[Pair]) -> list[str]:
    """All that is encoded for some pairs."""
    return [
        text
        for p in pairs
        for text in (p.source_prompt, p.target_prompt, p.source_word, p.target_word)
    ]


def _seed_of(pair: Pair) -> int:
    """The random control's seed: each pair's own."""
    return derived_seed(pair.source_prompt, pair.target_prompt)
