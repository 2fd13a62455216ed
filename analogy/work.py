"""The work of a run, one batch at a time: what holds the models, in a process or a Ray actor."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analogy.clip import Features, Judge
from analogy.engine import Capacity, GeneratedBatch, ScoredBatch, Setup
from analogy.generator import Generated, Generator, derived_seed, latents_for, noise
from analogy.grid import AnyJob, Job, PromptJob, looks_at_others
from analogy.images import ImageError, from_png, to_png
from analogy.margin import cosine
from analogy.memory import InParts, budget, fitting, limit_memory, most_at_once
from analogy.models import ModelError, load_pipeline
from analogy.records import Pair, RunConfig
from analogy.steering import METHODS, Conditioning, Edit, Words
from analogy.store import StoreError, stacked

#: Texts that are all encoded before the first image; of SDXL they are 2.5 GB. Of more, each batch
#: encodes its own.
MOST_TEXTS = 4096


class Worker:
    """Holds the models of one run, each loaded at its first use, and works on batches.

    It knows no run folder. What it makes of a batch depends on that batch alone: not on its
    process, its threads, or what it did before. ``generate`` may be called by several threads.

    ``generator``: gives one that is loaded already and has other uses, so that its text encoders
    stay; None to load ``setup.model``.
    """

    def __init__(self, setup: Setup, *, generator: Callable[[], Generator] | None = None) -> None:
        self._setup = setup
        self._given = generator
        self._score_in_parts = InParts(sys.maxsize)  # whole batches, until memory runs out

    def prepare(self) -> Capacity:
        """Load the generator; to be called before any thread generates."""
        generators = self._pool.generators
        return Capacity(generators[0].batch_size, len(generators))

    def prepare_judge(self) -> None:
        """Load the judge."""
        self.judge  # noqa: B018

    def generate(self, jobs: Sequence[AnyJob]) -> GeneratedBatch:
        """Generate one batch."""
        made, seconds = self._pool(jobs)
        pngs = [None if i in made.faults else to_png(im) for i, im in enumerate(made.images)]
        device = self._setup.config.device
        peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
        return GeneratedBatch(pngs, made.faults, seconds, peak)

    def score(self, jobs: Sequence[Job], pngs: Sequence[bytes]) -> ScoredBatch:
        """Score one batch: the images of these jobs, as PNG files."""
        judge = self.judge

        def features_of(part: slice) -> Features:
            try:
                images = [from_png(png) for png in pngs[part]]
            except ImageError as error:
                raise StoreError(
                    f"images of the run: expected PNG files, got one that cannot be decoded "
                    f"({error}); repair the run folder with: python -m analogy verify RUN --repair"
                ) from error
            return judge.image_features(stacked(images, jobs[part]))

        features = np.concatenate(self._score_in_parts(features_of, len(pngs)))
        return ScoredBatch(self._cosines(jobs, features), features)

    def _cosines(self, jobs: Sequence[Job], features: Features) -> list[tuple[float, float, float]]:
        target = cosine(features, self.judge.text_features([j.pair.target_prompt for j in jobs]))
        source = cosine(features, self.judge.text_features([j.pair.source_prompt for j in jobs]))
        columns = (target, source, target - source)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    @cached_property
    def judge(self) -> Judge:
        """The judge, loaded at its first use."""
        if self._setup.judge is None:
            raise ModelError("expected a judge to score with, got a run that has none")
        return Judge(self._setup.judge, device=self._setup.config.device)

    @cached_property
    def _pool(self) -> GeneratorPool:
        """One generator for each batch in flight."""
        setup, config = self._setup, self._setup.config
        first = self._loaded() if self._given is None else self._given()
        encoded = Encoded(first, setup, is_shared=self._given is not None)
        if self._given is None and config.batch_size is None:
            fit_batch_size(first, config.device, config.memory)
        shape = first.latent_shape

        def inputs(jobs: Sequence[AnyJob]) -> tuple[list[Conditioning], Tensor]:
            texts_of_jobs = encoded.of(jobs)
            conditionings = [conditioning(job, setup.pairs, texts_of_jobs) for job in jobs]
            return conditionings, torch.stack([starting_noise(job, shape) for job in jobs])

        return GeneratorPool(side_by_side(first, config.device), inputs, device=config.device)

    def _loaded(self) -> Generator:
        model, config = self._setup.model, self._setup.config
        if model is None:
            raise ModelError(
                "the model of these images is known from a run folder alone, which does not decide "
                "what is loaded; name the model"
            )
        if config.device.startswith("cuda") and config.memory is not None:
            limit_memory(config.device, config.memory)
        return generator_of(load_pipeline(model, device=config.device, dtype=config.dtype), config)


def generator_of(pipeline: Any, config: RunConfig) -> Generator:
    """A loaded pipeline with a run's settings."""
    return Generator(
        pipeline,
        steps=config.steps,
        guidance=config.guidance,
        size=config.size,
        batch_size=config.batch_size or most_at_once(config.device, config.size),
    )


class Encoded:
    """The conditioning of texts: encodes all of a run once, or above ``MOST_TEXTS`` per batch.

    Where all are encoded at once, the pipeline's text encoders are given up on any device but the
    CPU, unless the generator ``is_shared``. On a CPU one thread encodes: another number of them
    rounds differently.
    """

    def __init__(self, generator: Generator, setup: Setup, *, is_shared: bool = False) -> None:
        self._generator = generator
        self._setup = setup
        self._lock = Lock()  # a tokenizer's padding is state that threads would share
        self._all: dict[str, Conditioning] | None = None
        given = [*texts(setup.pairs), *setup.prompts]
        device = setup.config.device
        if len(set(given)) <= MOST_TEXTS:
            with one_thread(device), no_truncation_warnings():
                self._all = generator.encode(given)
            if device != "cpu" and not is_shared:
                generator.drop_text_encoders()

    def of(self, jobs: Sequence[AnyJob]) -> Mapping[str, Conditioning]:
        """The conditioning of what these jobs need. May be called by several threads."""
        with self._lock, no_truncation_warnings():
            steered = [job for job in jobs if isinstance(job, Job)]
            if self._all is None and any(looks_at_others(job.method) for job in steered):
                self._all = self._generator.encode(texts(self._setup.pairs))
            if self._all is not None:
                return self._all
            prompts = [job.prompt for job in jobs if isinstance(job, PromptJob)]
            own = texts(dict.fromkeys(job.pair for job in steered))
            return self._generator.encode([*own, *prompts])


class GeneratorPool:
    """Generators that share their weights, each at work on one batch; called by many threads.

    ``inputs``: gives the conditionings of a batch, and its latents ``(n, *latent_shape)``.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        inputs: Callable[[Sequence[AnyJob]], tuple[list[Conditioning], Tensor]],
        *,
        device: str,
    ) -> None:
        self.generators = generators
        self._free: SimpleQueue[Generator] = SimpleQueue()
        for generator in generators:
            self._free.put(generator)
        self._inputs = inputs
        self._device = device
        self._threads = torch.get_num_threads()

    def __call__(self, batch: Sequence[AnyJob]) -> tuple[Generated, float]:
        """The images of a batch, and the seconds that a generator took."""
        with one_thread(self._device, afterwards=self._threads):
            conditionings, latents = self._inputs(batch)
            generator = self._free.get()
            try:
                clock = time.perf_counter()
                return generator.generate(conditionings, latents), time.perf_counter() - clock
            finally:
                self._free.put(generator)


@contextmanager
def no_truncation_warnings() -> Iterator[None]:
    """Keep diffusers and transformers from printing what they cut off long prompts, padding too.

    It would be a page for each batch. A run names the pairs that are affected before its work.
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
def threads(count: int, *, afterwards: int | None = None) -> Iterator[None]:
    """``count`` threads for torch's operations in this thread; then as many as before.

    ``afterwards``: as many as this instead. torch has one number for the process besides one for
    each thread, and a thread takes the process's at its first operation: one that begins while
    another is in here would take ``count`` for what was before.
    """
    before = torch.get_num_threads() if afterwards is None else afterwards
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread(device: str, *, afterwards: int | None = None) -> Iterator[None]:
    """On a CPU, one thread for torch's operations in this thread; see :func:`threads`."""
    if device != "cpu":
        yield
        return
    with threads(1, afterwards=afterwards):
        yield


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
    return [first, *(first.clone() for _ in range(count - 1))]


def conditioning(
    job: AnyJob, pairs: Sequence[Pair], encoded: Mapping[str, Conditioning]
) -> Conditioning:
    """What a job's image is conditioned on; ``encoded`` has the texts that it needs."""
    if isinstance(job, PromptJob):
        return encoded[job.prompt]
    return steered(job, pairs, encoded)


def starting_noise(job: AnyJob, shape: tuple[int, ...]) -> Tensor:
    """The latents that a job's image starts from, float32 on the CPU."""
    if isinstance(job, PromptJob):
        return noise(shape, job.prompt, str(job.seed))
    return latents_for(job.pair, job.seed, shape)


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
    """The seed of the null's direction: each pair's own."""
    return derived_seed(pair.source_prompt, pair.target_prompt)
