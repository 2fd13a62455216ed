"""The work itself: generate what is missing, score what is not scored. Models load when needed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cached_property
from queue import SimpleQueue

import numpy as np
import torch

from analogy.clip import Judge, JudgeSource
from analogy.generator import Generator, derived_seed, latents_for
from analogy.images import Images
from analogy.margin import cosine
from analogy.models import ModelSource, load_pipeline
from analogy.records import Pair, RunConfig
from analogy.steering import METHODS, OTHERS_MATTER, Conditioning, Edit, Words
from analogy.store import Job, RunFolder

#: Images that are read and scored at a time.
SCORE_BATCH = 250

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
        self._encoded: dict[str, Conditioning] = {}

    @cached_property
    def _generators(self) -> list[Generator]:
        """One generator for each batch in flight, all on the same weights.

        On a CPU one for each thread: the layers of a small model are too small to share out, and
        whole batches side by side are faster. Any other device gets one.
        """
        config = self._config
        pipeline = load_pipeline(self._model, device=config.device, dtype=config.dtype)
        first = Generator(pipeline, steps=config.steps, guidance=config.guidance, size=config.size)
        count = torch.get_num_threads() if config.device == "cpu" else 1
        return [first, *(first.twin() for _ in range(count - 1))]

    @cached_property
    def judge(self) -> Judge:
        """The judge, loaded at its first use."""
        return Judge(self._judge_source, device=self._config.device)

    def generate(self, jobs: Iterable[Job], report: Report = lambda n: None) -> None:
        """Generate the images that are missing, in batches of any pairs, alphas and seeds.

        Each batch is kept as soon as it is done; ``report`` gets its number of images.
        """
        missing = self._folder.without_image(jobs)
        if not missing:
            return
        generators = self._generators  # loaded before the clock starts
        free: SimpleQueue[Generator] = SimpleQueue()
        for generator in generators:
            free.put(generator)

        def make(batch: Sequence[Job]) -> Images:
            if len(generators) > 1:
                torch.set_num_threads(1)  # this thread's own share
            conditionings = [self._steered(job) for job in batch]
            shape = generators[0].latent_shape
            latents = torch.stack([latents_for(job.pair, job.seed, shape) for job in batch])
            generator = free.get()
            try:
                return generator.generate(conditionings, latents)
            finally:
                free.put(generator)

        self._encode(missing[0].pair.source_prompt)  # encodes all, before the threads ask
        threads = torch.get_num_threads()
        clock = time.perf_counter()
        executor = ThreadPoolExecutor(len(generators))
        try:
            for batch, images in _in_order(
                executor,
                make,
                _even_batches(missing, self._config.batch_size),
                ahead=len(generators) + 1,
            ):
                now = time.perf_counter()
                self._folder.add_images(batch, images, now - clock)
                clock = now
                report(len(batch))
        finally:
            executor.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def score(self, jobs: Iterable[Job]) -> int:
        """Score the images that this judge has not scored; returns how many those were."""
        missing = self._folder.without_score(jobs, self._judge_source.fingerprint)
        for i in range(0, len(missing), SCORE_BATCH):
            batch = missing[i : i + SCORE_BATCH]
            judge = self.judge
            started = time.perf_counter()
            rows = self._cosines(judge, batch)
            self._folder.add_scores(batch, judge.fingerprint, rows, time.perf_counter() - started)
        return len(missing)

    def _cosines(self, judge: Judge, batch: Sequence[Job]) -> list[tuple[float, float, float]]:
        images = np.stack([self._folder.read_image(job) for job in batch])
        features = judge.image_features(images)
        target = cosine(features, judge.text_features([j.pair.target_prompt for j in batch]))
        source = cosine(features, judge.text_features([j.pair.source_prompt for j in batch]))
        columns = (target, source, target - source)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _steered(self, job: Job) -> Conditioning:
        encode, pair = self._encode, job.pair
        if job.alpha == 0.0:
            return encode(pair.source_prompt)
        others: tuple[Words, ...] = ()
        if job.method in OTHERS_MATTER:
            others = tuple(
                Words(
                    o.source_word, o.target_word, encode(o.source_prompt), encode(o.target_prompt)
                )
                for o in self._pairs
                if o.category == pair.category and o.id != pair.id
            )
        edit = Edit(
            source=encode(pair.source_prompt),
            target=encode(pair.target_prompt),
            words=(pair.source_word, pair.target_word),
            source_word=encode(pair.source_word),
            target_word=encode(pair.target_word),
            others=others,
            seed=_seed_of(pair),
        )
        return METHODS[job.method](edit, job.alpha)

    def _encode(self, prompt: str) -> Conditioning:
        if not self._encoded:
            prompts = [
                text
                for p in self._pairs
                for text in (p.source_prompt, p.target_prompt, p.source_word, p.target_word)
            ]
            self._encoded = self._generators[0].encode(prompts)
        return self._encoded[prompt]


def _seed_of(pair: Pair) -> int:
    """The random control's seed: each pair's own."""
    return derived_seed(pair.source_prompt, pair.target_prompt)


def _in_order(
    executor: Executor,
    make: Callable[[Sequence[Job]], Images],
    batches: Iterable[Sequence[Job]],
    *,
    ahead: int,
) -> Iterator[tuple[Sequence[Job], Images]]:
    """Each batch with its images, in order, at most ``ahead`` of them begun and not yet taken."""
    begun: deque[tuple[Sequence[Job], Future[Images]]] = deque()
    for batch in batches:
        begun.append((batch, executor.submit(make, batch)))
        if len(begun) >= ahead:
            first, future = begun.popleft()
            yield first, future.result()
    while begun:
        first, future = begun.popleft()
        yield first, future.result()


def _even_batches(jobs: list[Job], size: int) -> list[list[Job]]:
    """As few batches as ``size`` allows, of equal size up to one: no small last batch."""
    if not jobs:
        return []
    count = -(-len(jobs) // size)
    return [jobs[i * len(jobs) // count : (i + 1) * len(jobs) // count] for i in range(count)]
