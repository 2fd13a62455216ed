"""The work of a run, one batch at a time: a worker holds the models, here or in a Ray actor."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from queue import SimpleQueue
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analogy.core.errors import ModelError, StoreError
from analogy.core.images import ImageError, Images, from_png, to_png
from analogy.core.records import WHOLE, Pair, RunConfig, Window
from analogy.core.registry import ExtensionError
from analogy.generation.edits import TokensOf, check_lengths, edit_of
from analogy.generation.engine import Capacity, GeneratedBatch, ScoredBatch, Setup
from analogy.generation.fitting import Fitted, Learning
from analogy.judges.base import FeatureEncoder, FoundJudge, Judge
from analogy.judges.margin import cosine
from analogy.judges.open_clip import Features
from analogy.metrics.efficiency import peak_memory
from analogy.models.generator import Generated, Generator, latents_for, noise
from analogy.models.loading import load_pipeline
from analogy.models.memory import InParts, budget, fitting, limit_memory, most_at_once
from analogy.models.texts import Texts
from analogy.steering.base import (
    METHODS,
    Intervention,
    LearningMethod,
    Need,
    Row,
    intervention,
    mixes_prompts,
)
from analogy.steering.conditioning import Conditioning, WordTokens
from analogy.steering.course import Course, course
from analogy.store.folder import stacked
from analogy.store.grid import TARGET_ALPHA, AnyJob, Job, PromptJob, W
from analogy.store.work_index import FitWork

#: The most texts that are all encoded before the first image. Of more, each batch encodes its own.
MOST_TEXTS = 4096


BatchInputs: TypeAlias = tuple[list[Conditioning | Course], Tensor, tuple[FitWork, ...]]
"""Conditionings of a batch, its latents, and what was fitted for them."""


class Worker:
    """Holds the models of one run, each loaded at its first use, and processes batches.

    It does not use the run folder. Its result for a batch depends only on that batch: not on its
    process, its threads, or what it did before. ``generate`` may be called by several threads.

    ``generator``: returns one that is loaded already and has other users, so that its text encoders
    are kept; None to load ``setup.model``.
    """

    def __init__(self, setup: Setup, *, generator: Callable[[], Generator] | None = None) -> None:
        self._setup = setup
        self._given = generator
        self._score_in_parts = InParts(sys.maxsize)  # whole batches, until memory runs out

    def prepare(self) -> Capacity:
        """Load the generator, and return its capacity. Call this before any thread generates."""
        generators = self._pool.generators
        return Capacity(generators[0].batch_size, len(generators))

    def prepare_judge(self) -> None:
        """Load the judge."""
        self.judge  # noqa: B018

    def generate(self, jobs: Sequence[AnyJob]) -> GeneratedBatch:
        """Generate one batch."""
        done: list[tuple[Generated, float, tuple[FitWork, ...]]] = []
        pool = self._pool  # loads the generator, which is not measured
        memory = peak_memory(lambda: done.append(pool(jobs)), device=self._setup.config.device)
        made, seconds, fits = done[0]
        pngs = [None if i in made.faults else to_png(im) for i, im in enumerate(made.images)]
        return GeneratedBatch(pngs, made.faults, seconds, memory, fits)

    def score(self, jobs: Sequence[Job], pngs: Sequence[bytes]) -> ScoredBatch:
        """Score one batch: the images of these jobs, as PNG files."""
        judge = self.judge

        def images(part: slice) -> Images:
            try:
                decoded = [from_png(png) for png in pngs[part]]
            except ImageError as error:
                raise StoreError(
                    f"images of the run: expected PNG files, got one that cannot be decoded "
                    f"({error}); repair the run folder with: python -m analogy verify RUN --repair"
                ) from error
            return stacked(decoded, jobs[part])

        if not isinstance(judge, FeatureEncoder):

            def score(part: slice) -> NDArray[np.float32]:
                return self._scores(judge, images(part), jobs[part])

            target, source = np.concatenate(self._score_in_parts(score, len(pngs))).T
            return ScoredBatch(_with_margins(target, source), None)

        def features_of(part: slice) -> Features:
            return judge.image_features(images(part))

        features = np.concatenate(self._score_in_parts(features_of, len(pngs)))
        return ScoredBatch(self._cosines(judge, jobs, features), features)

    def _scores(self, judge: Judge, images: Images, jobs: Sequence[Job]) -> NDArray[np.float32]:
        """A judge's scores of the target and the source prompt, ``(n, 2)``, in -1..1."""
        columns = []
        for prompts in (
            [job.pair.target_prompt for job in jobs],
            [job.pair.source_prompt for job in jobs],
        ):
            column = np.asarray(judge.score(images, prompts), dtype=np.float32)
            if column.shape != (len(jobs),) or not (np.abs(column) <= 1.0).all():
                raise ModelError(
                    f"judge {self._found_judge.fingerprint}: expected a score in -1..1 for each "
                    f"of {len(jobs)} images, got the shape {column.shape}"
                    + (f", {column.min()} to {column.max()}" if column.size else "")
                )
            columns.append(column)
        return np.stack(columns, axis=1)

    def _cosines(
        self, judge: FeatureEncoder, jobs: Sequence[Job], features: Features
    ) -> list[tuple[float, float, float]]:
        target = cosine(features, judge.text_features([j.pair.target_prompt for j in jobs]))
        source = cosine(features, judge.text_features([j.pair.source_prompt for j in jobs]))
        return _with_margins(target, source)

    @cached_property
    def judge(self) -> Judge:
        """The judge, loaded at its first use."""
        return self._found_judge.load(self._setup.config.device)

    @property
    def _found_judge(self) -> FoundJudge:
        if self._setup.judge is None:
            raise ModelError("expected a judge to score with, got a run that has none")
        return self._setup.judge

    @cached_property
    def _pool(self) -> GeneratorPool:
        """One generator for each batch in progress."""
        setup, config = self._setup, self._setup.config
        first = self._loaded() if self._given is None else self._given()
        encoded = Encoded(first, setup, is_shared=self._given is not None)
        if self._given is None and config.batch_size is None:
            fit_batch_size(first, config.device, config.memory)
        shape = first.latent_shape
        fitted, learning = Fitted(setup), Learning(setup)

        def inputs(jobs: Sequence[AnyJob]) -> BatchInputs:
            texts_of_jobs = encoded.of(jobs)
            given = (setup.pairs, texts_of_jobs, fitted, encoded.tokens)
            # Images of several seeds share a conditioning, which takes 30 MB for a large model.
            alike = [replace(job, seed=0, key="") for job in jobs]
            made = {each: conditioning(each, *given) for each in dict.fromkeys(alike)}
            conditionings = [made[each] for each in alike]
            latents = torch.stack([starting_noise(job, shape) for job in jobs])
            return conditionings, latents, fitted.taken()

        def rows(
            jobs: Sequence[AnyJob], generator: Generator
        ) -> tuple[list[Row], tuple[FitWork, ...]]:
            steered = [job for job in jobs if isinstance(job, Job)]
            return learning.rows(steered, generator, encoded.of(steered))

        return GeneratorPool(side_by_side(first, config.device), inputs, rows, config.device)

    def _loaded(self) -> Generator:
        model, config = self._setup.model, self._setup.config
        if model is None:
            raise ModelError(
                "the model of these images is known from a run folder alone, which does not decide "
                "what is loaded; name the model"
            )
        if config.device.startswith("cuda") and config.memory is not None:
            limit_memory(config.device, config.memory)
        pipeline = load_pipeline(
            model, device=config.device, dtype=config.dtype, offload=config.offload
        )
        return generator_of(pipeline, config)


def generator_of(pipeline: Any, config: RunConfig) -> Generator:
    """A generator with a loaded pipeline and a run's settings."""
    return Generator(
        pipeline,
        steps=config.steps,
        guidance=config.guidance,
        second_guidance=config.second_guidance,
        size=config.size,
        batch_size=config.batch_size or most_at_once(config.device, config.size),
    )


def _with_margins(
    target: NDArray[np.float32], source: NDArray[np.float32]
) -> list[tuple[float, float, float]]:
    """For each image its scores of both prompts and their difference. Scores: ``(n,)``."""
    columns = (target, source, target - source)
    return list(zip(*(column.tolist() for column in columns), strict=True))


class Encoded:
    """The conditioning of texts: encodes all of a run once, or above ``MOST_TEXTS`` per batch.

    If all are encoded at once, the pipeline's text encoders are removed afterwards, except on the
    CPU or if the generator ``is_shared``. On a CPU one thread encodes, because another number of
    threads rounds differently.
    """

    def __init__(self, generator: Generator, setup: Setup, *, is_shared: bool = False) -> None:
        self._generator = generator
        self._setup = setup
        self._lock = Lock()  # a tokenizer's padding is state that threads would share
        self._all: Texts | None = None
        self._word_reader = generator.word_reader()
        given = [*texts(setup.pairs), *setup.prompts]
        device = setup.config.device
        # Text encoders that are offloaded cannot encode while another thread denoises.
        if len(set(given)) <= MOST_TEXTS or setup.config.offload is not None:
            with one_thread(device), no_truncation_warnings():
                self._all = generator.encode(given)
            if device != "cpu" and not is_shared:
                generator.drop_text_encoders()

    def of(self, jobs: Sequence[AnyJob]) -> Mapping[str, Conditioning]:
        """The conditioning of the texts that these jobs need. Several threads may call it."""
        with self._lock, no_truncation_warnings():
            steered = [job for job in jobs if isinstance(job, Job)]
            if self._all is None and any(_needs_others(job) for job in steered):
                self._all = self._generator.encode(texts(self._setup.pairs))
            if self._all is not None:
                return self._all
            prompts = [job.prompt for job in jobs if isinstance(job, PromptJob)]
            own = texts(dict.fromkeys(job.pair for job in steered))
            return self._generator.encode([*own, *prompts])

    def tokens(self, pair: Pair) -> WordTokens:
        """The tokens of a pair's words. Several threads may call it."""
        with self._lock:
            return self._word_reader(pair)


class GeneratorPool:
    """Generators that share their weights, each for one batch at a time. Thread-safe.

    ``inputs``: returns the conditionings of a batch, its latents ``(n, *latent_shape)``, and what
    was fitted for them. ``rows``: returns the rows of a batch of an intervention, and what was
    fitted for them.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        inputs: Callable[[Sequence[AnyJob]], BatchInputs],
        rows: Callable[[Sequence[AnyJob], Generator], tuple[list[Row], tuple[FitWork, ...]]],
        device: str,
    ) -> None:
        self.generators = generators
        self._free: SimpleQueue[Generator] = SimpleQueue()
        for generator in generators:
            self._free.put(generator)
        self._taking_all = Lock()
        self._inputs = inputs
        self._rows = rows
        self._device = device
        self._threads = torch.get_num_threads()

    def __call__(self, batch: Sequence[AnyJob]) -> tuple[Generated, float, tuple[FitWork, ...]]:
        """The images of a batch, the seconds that generating took, and what was fitted before."""
        with one_thread(self._device, afterwards=self._threads):
            conditionings, latents, fitted = self._inputs(batch)
            change, window = change_of(batch[0])
            with self._generator(alone=change is not None and change.exclusive) as generator:
                rows, fits = self._rows(batch, generator) if change else ([], ())
                clock = time.perf_counter()
                how = () if change is None else (change, rows, window)
                made = generator.generate(conditionings, latents, *how)
                return made, time.perf_counter() - clock, (*fitted, *fits)

    @contextmanager
    def _generator(self, *, alone: bool) -> Iterator[Generator]:
        """A free generator; ``alone``: wait until no other is in use."""
        with self._taking_all if alone else nullcontext():  # two that took some would deadlock
            taken = [self._free.get() for _ in range(len(self.generators) if alone else 1)]
        try:
            yield taken[0]
        finally:
            for generator in taken:
                self._free.put(generator)


def change_of(job: AnyJob) -> tuple[Intervention | None, Window]:
    """The change of the pipeline for a job's image (None if there is none), and the part of the
    schedule in which images are steered. Both are the same for a whole batch.
    """
    if not isinstance(job, Job):
        return None, WHOLE
    return intervention(job.method, job.alpha), job.window


def changed_alike(jobs: Iterable[W]) -> list[list[W]]:
    """Jobs in their order, grouped by the change of the pipeline that they need.

    Jobs of one intervention are in one group, whatever their strength, if it is ``per_row``.
    """
    found: dict[tuple[str, float | None, Window] | None, list[W]] = {}
    keys: dict[tuple[str, float, Window], tuple[str, float | None, Window] | None] = {}
    for job in jobs:
        key = None
        if isinstance(job, Job):
            place = (job.method, job.alpha, job.window)
            if place not in keys:
                change = intervention(job.method, job.alpha)
                alike = (job.method, None if change and change.per_row else job.alpha, job.window)
                keys[place] = None if change is None else alike
            key = keys[place]
        found.setdefault(key, []).append(job)
    return list(found.values())


@contextmanager
def no_truncation_warnings() -> Iterator[None]:
    """Stop diffusers and transformers from printing the truncated ends of prompts, with padding.

    They would print a page for each batch. A run names the affected pairs before its work.
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
    """Use ``count`` threads for torch's operations in this thread, then restore the number.

    ``afterwards``: the number to set at the end instead. torch has one number for the process and
    one for each thread, and a thread takes over the process's number at its first operation. So a
    thread that begins while another is within this context would restore ``count``.
    """
    # Reading the number makes this thread take over the process's number now. Otherwise it would do
    # so at its first operation, when another thread may have set that number, and lose ``count``.
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before if afterwards is None else afterwards)


@contextmanager
def one_thread(device: str, *, afterwards: int | None = None) -> Iterator[None]:
    """On a CPU, one thread for torch's operations in this thread; see :func:`threads`."""
    if device != "cpu":
        yield
        return
    with threads(1, afterwards=afterwards):
        yield


def fit_batch_size(generator: Generator, device: str, memory: float | None = None) -> None:
    """On CUDA, lower the batch size to what fits into ``memory`` GiB, or into the free memory."""
    most = generator.batch_size
    if device.startswith("cuda") and most > 1:
        have = budget(device, memory)
        one, two = generator.peak_memory(1), generator.peak_memory(2)
        generator.batch_size = fitting(one, two, budget=have, most=most)


def side_by_side(first: Generator, device: str) -> list[Generator]:
    """A generator for each batch in progress, all with the weights of ``first``.

    On a CPU one for each thread: the layers of a small model are too small to share out, and
    whole batches side by side are faster. Any other device gets one.
    """
    count = torch.get_num_threads() if device == "cpu" else 1
    return [first, *(first.clone() for _ in range(count - 1))]


def conditioning(
    job: AnyJob,
    pairs: Sequence[Pair],
    encoded: Mapping[str, Conditioning],
    fitted: Fitted | None = None,
    tokens: TokensOf | None = None,
) -> Conditioning | Course:
    """The conditioning of a job's image; ``encoded`` has the texts that it needs."""
    if isinstance(job, PromptJob):
        return encoded[job.prompt]
    made = steered(job, pairs, encoded, fitted, tokens)
    if job.is_unsteered:
        return made
    source = encoded[job.pair.source_prompt]
    return course(METHODS.get(job.method), source, made, job.alpha, job.window)


def starting_noise(job: AnyJob, shape: tuple[int, ...]) -> Tensor:
    """The initial latents of a job's image, float32 on the CPU."""
    if isinstance(job, PromptJob):
        return noise(shape, job.prompt, str(job.seed))
    return latents_for(job.pair, job.seed, shape)


def steered(
    job: Job,
    pairs: Sequence[Pair],
    encoded: Mapping[str, Conditioning],
    fitted: Fitted | None = None,
    tokens: TokensOf | None = None,
) -> Conditioning:
    """The conditioning of a job's image; ``encoded`` has the :func:`texts` of its pair, and of
    all ``pairs`` if the method uses others. ``fitted`` keeps what methods have learned;
    ``tokens`` finds the words' tokens, for methods that use them. Raises ``ExtensionError`` if the
    method does not return a conditioning of the source's or the target's shapes.
    """
    pair = job.pair
    if job.is_unsteered:
        return encoded[pair.source_prompt]
    method = METHODS.get(job.method)
    others: list[Pair] = []
    if Need.OTHERS in method.needs:
        others = [o for o in pairs if o.category == pair.category and o.id != pair.id]
    edit = edit_of(pair, method, others, encoded, tokens)
    if job.alpha != TARGET_ALPHA and mixes_prompts(method, job.window):
        check_lengths(pair, method, edit)
    if isinstance(method, LearningMethod):
        method = method.fit(edit.others) if fitted is None else fitted(job, method, edit.others)
    made = method.condition(edit, job.alpha)
    if not isinstance(made, Conditioning) or made.shapes() not in (
        edit.source.shapes(), edit.target.shapes()
    ):  # fmt: skip
        raise ExtensionError(
            place=f"method {method.name}",
            expected=f"a conditioning of the source's shapes, {edit.source.shapes()}",
            got=str(made.shapes() if isinstance(made, Conditioning) else type(made).__name__),
        )
    return made


def _needs_others(job: Job) -> bool:
    return not job.is_unsteered and Need.OTHERS in METHODS.get(job.method).needs


def texts(pairs: Iterable[Pair]) -> list[str]:
    """All texts that are encoded for these pairs."""
    return [
        text
        for p in pairs
        for text in (p.source_prompt, p.target_prompt, p.source_word, p.target_word)
    ]
