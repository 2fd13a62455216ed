"""The work itself: generate what is missing, score what is not scored. Models load when needed."""

from __future__ import annotations

import collections.abc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from analogy.clip import Features, Judge, JudgeSource
from analogy.generator import Generated, Generator, derived_seed, latents_for
from analogy.margin import cosine
from analogy.memory import budget, fitting, limit_memory, most_at_once
from analogy.models import ModelSource, load_pipeline
from analogy.records import Pair, RunConfig
from analogy.steering import METHODS, OTHERS_MATTER, Conditioning, Edit, Words
from analogy.store import Job, RunFolder, W

#: Images that are read and scored at a time, and their pixels: 200 MB of them.
SCORE_BATCH, SCORE_PIXELS = 250, 64 * 2**20

Report = Callable[[int], None]


class Worker:
    """Holds the models of one run and does its jobs, in this process."""

    def __init__(
        self,
        config: RunConfig,
        pairs: Sequence[Pair],
        model: ModelSource,
        judge: JudgeSource,
        folder: RunFolder,
    ) -> None:
        self._config = config
        self._pairs = pairs
        self._model = model
        self._judge_source = judge
        self._folder = folder
        self._failed: set[str] = set()  # tried by this worker, and not to be tried again by it

    @cached_property
    def _loaded(self) -> tuple[list[Generator], dict[str, Conditioning]]:
        """One generator for each batch in flight, and all prompts encoded."""
        config = self._config
        if config.device.startswith("cuda") and config.memory is not None:
            limit_memory(config.device, config.memory)
        first = Generator(
            load_pipeline(self._model, device=config.device, dtype=config.dtype),
            steps=config.steps,
            guidance=config.guidance,
            size=config.size,
            batch_size=config.batch_size or most_at_once(config.device, config.size),
        )
        encoded = first.encode(texts(self._pairs))
        if config.device != "cpu":
            first.drop_text_encoders()
        if config.batch_size is None:
            fit_batch_size(first, config.device, config.memory)
        return side_by_side(first, config.device), encoded

    @cached_property
    def judge(self) -> Judge:
        """The judge, loaded at its first use."""
        return Judge(self._judge_source, device=self._config.device)

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that have no image, and which this worker has not tried in vain."""
        return [job for job in self._folder.without_image(jobs) if job.key not in self._failed]

    def generate(self, jobs: Iterable[Job], report: Report = lambda n: None) -> None:
        """Generate the images that are missing, in batches of any pairs, alphas and seeds.

        Each batch is kept as soon as it is done; ``report`` gets its number of images. What comes
        out as no picture is kept as failed, and tried again by another worker only.
        """
        missing = self.missing(jobs)
        if not missing:
            return
        generators, _ = self._loaded  # before the clock starts
        shape = generators[0].latent_shape

        def inputs(job: Job) -> tuple[Conditioning, Tensor]:
            return self._steered(job), latents_for(job.pair, job.seed, shape)

        with closing(
            generate_batches(generators, missing, inputs, device=self._config.device)
        ) as batches:
            for batch, made, seconds in batches:
                self._folder.add_images(
                    batch, made.images, seconds, faults=made.faults, peak_bytes=self._peak()
                )
                self._failed |= {batch[i].key for i in made.faults}
                report(len(batch))

    def _peak(self) -> int | None:
        device = self._config.device
        return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None

    def score(self, jobs: Iterable[Job]) -> int:
        """Score the images that this judge has not scored; returns how many those were."""
        missing = self._folder.without_score(jobs, self._judge_source.fingerprint)
        size = min(SCORE_BATCH, max(SCORE_PIXELS // self._config.size**2, 1))
        for i in range(0, len(missing), size):
            batch = missing[i : i + size]
            judge = self.judge
            started = time.perf_counter()
            images = np.stack([self._folder.read_image(job) for job in batch])
            features = judge.image_features(images)
            rows = self._cosines(judge, batch, features)
            seconds = time.perf_counter() - started
            self._folder.add_scores(batch, judge.fingerprint, rows, seconds, features=features)
        return len(missing)

    def _cosines(
        self, judge: Judge, batch: Sequence[Job], features: Features
    ) -> list[tuple[float, float, float]]:
        target = cosine(features, judge.text_features([j.pair.target_prompt for j in batch]))
        source = cosine(features, judge.text_features([j.pair.source_prompt for j in batch]))
        columns = (target, source, target - source)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _steered(self, job: Job) -> Conditioning:
        return steered(job, self._pairs, self._loaded[1])


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


def generate_batches(
    generators: Sequence[Generator],
    wanted: Sequence[W],
    inputs: Callable[[W], tuple[Conditioning, Tensor]],
    *,
    device: str,
) -> collections.abc.Generator[tuple[Sequence[W], Generated, float]]:
    """Each batch of ``wanted``, in order, with what was made of it and the seconds it took.

    ``inputs``: an image's conditioning and its latents, asked for in other threads. To be closed
    by the caller where it stops early.
    """
    free: SimpleQueue[Generator] = SimpleQueue()
    for generator in generators:
        free.put(generator)

    def make(batch: Sequence[W]) -> Generated:
        if len(generators) > 1:
            torch.set_num_threads(1)  # this thread's own share
        given = [inputs(each) for each in batch]
        latents = torch.stack([noise for _, noise in given])
        generator = free.get()
        try:
            return generator.generate([conditioning for conditioning, _ in given], latents)
        finally:
            free.put(generator)

    threads = torch.get_num_threads()
    # One more thread than generators on a GPU: it makes the next batch's conditioning and
    # latents while the GPU is busy.
    workers = len(generators) + (device != "cpu")
    clock = time.perf_counter()
    executor = ThreadPoolExecutor(workers)
    try:
        for batch, made in _in_order(
            executor, make, _even_batches(wanted, generators[0].batch_size), ahead=workers + 1
        ):
            now = time.perf_counter()
            yield batch, made, now - clock
            clock = now
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def steered(job: Job, pairs: Sequence[Pair], encoded: Mapping[str, Conditioning]) -> Conditioning:
    """What a job's image is conditioned on; ``encoded`` has the :func:`texts` of all ``pairs``."""
    pair = job.pair
    if job.alpha == 0.0:
        return encoded[pair.source_prompt]
    others: tuple[Words, ...] = ()
    if job.method in OTHERS_MATTER:
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


def _in_order(
    executor: Executor,
    make: Callable[[Sequence[W]], Generated],
    batches: Iterable[Sequence[W]],
    *,
    ahead: int,
) -> Iterator[tuple[Sequence[W], Generated]]:
    """Each batch with its images, in order, at most ``ahead`` of them begun and not yet taken."""
    begun: deque[tuple[Sequence[W], Future[Generated]]] = deque()
    for batch in batches:
        begun.append((batch, executor.submit(make, batch)))
        if len(begun) >= ahead:
            first, future = begun.popleft()
            yield first, future.result()
    while begun:
        first, future = begun.popleft()
        yield first, future.result()


def _even_batches(jobs: Sequence[W], size: int) -> list[Sequence[W]]:
    """As few batches as ``size`` allows, of equal size up to one: no small last batch.

    What is left after some of them is divided just the same, so that a run that was killed goes on
    with the batches of one that was not: rounding depends on a batch's size.
    """
    batches = []
    start = 0
    while start < len(jobs):
        left = len(jobs) - start
        count = -(-left // size)
        batches.append(jobs[start : start + -(-left // count)])
        start += len(batches[-1])
    return batches
