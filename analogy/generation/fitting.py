"""Observe pairs' images once, for methods that learn. A method never learns from its own pair."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, TypeVar

import torch

from analogy.core.records import Pair, RunConfig
from analogy.core.registry import ExtensionError
from analogy.core.words import folded
from analogy.generation.engine import Setup
from analogy.models.generator import Generator, latents_for
from analogy.steering.base import METHODS, LearningMethod, Method, Observed, ObservingMethod, Row
from analogy.steering.conditioning import Conditioning, Words
from analogy.store.grid import Job, content, digest
from analogy.store.work_index import FitWork

#: The noise of observed images is drawn for their own pair and this seed, whatever the run's seeds
#: are.
FIT_SEED = 0

#: The most categories whose observations are kept, and the most pairs whose learned values are
#: kept. Jobs come category by category and pair by pair. A large model's observation is megabytes.
MOST_CATEGORIES, MOST_PAIRS = 2, 64

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A mapping that keeps the ``most`` entries that were used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The entry, or None."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: K, value: V) -> V:
        """Add an entry; returns it."""
        self._entries[key] = value
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
        return value


@dataclass(slots=True)
class _Slot:
    """What was observed with a pair's source prompt and target prompt; None before that."""

    seen: tuple[Any, Any] | None = None
    lock: Lock = field(default_factory=Lock)


class Learning:
    """Observes pairs for methods, and has methods learn from them, each once in this worker.

    A pair's two images are denoised in a batch of their own. What is observed of a pair therefore
    depends on that pair alone, bit for bit, and what is learned for a pair on its category's other
    pairs alone. Several threads may call it, each with its own generator.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._lock = Lock()
        self._slots: Recent[tuple[str, str], dict[str, _Slot]] = Recent(MOST_CATEGORIES)
        self._learned: Recent[tuple[str, str], Any] = Recent(MOST_PAIRS)

    def rows(
        self, jobs: Sequence[Job], generator: Generator, encoded: Mapping[str, Conditioning]
    ) -> tuple[list[Row], tuple[FitWork, ...]]:
        """A row for each job, and the work that this call did for them.

        ``encoded``: the conditioning of all prompts of the jobs' categories, if the method
        observes.
        """
        check_version(self._setup.config, {job.method for job in jobs})
        rows: list[Row] = []
        work: list[FitWork] = []
        for job in jobs:
            method = METHODS.get(job.method)
            learned = None
            if isinstance(method, ObservingMethod):
                with self._lock:
                    learned = self._learned.get((job.method, job.pair.id))
                if learned is None:
                    learned, done = self._learn(method, job, generator, encoded)
                    work += done
            rows.append(Row(job.pair, job.alpha, learned))
        return rows, tuple(work)

    def _learn(
        self,
        method: ObservingMethod,
        job: Job,
        generator: Generator,
        encoded: Mapping[str, Conditioning],
    ) -> tuple[Any, list[FitWork]]:
        pair = job.pair
        category = [other for other in self._setup.pairs if other.category == pair.category]
        others = [other for other in category if other.id != pair.id]
        clock = time.perf_counter()
        slots, images = self._observe(method, job, others, generator, encoded)
        learned = method.learn((pair.source_word, pair.target_word), held_out(pair, others, slots))
        with self._lock:
            self._learned.put((job.method, pair.id), learned)
        seconds = time.perf_counter() - clock
        inputs = fit_inputs(self._setup, method, pair.category)
        return learned, [FitWork(job.method, pair.category, inputs, images, seconds)]

    def _observe(
        self,
        method: ObservingMethod,
        job: Job,
        others: Sequence[Pair],
        generator: Generator,
        encoded: Mapping[str, Conditioning],
    ) -> tuple[dict[str, tuple[Any, Any]], int]:
        """What was observed of each of the others, by pair id, and how many images it denoised now.

        Pairs that another thread is observing are left until the end.
        """
        key = (job.method, job.pair.category)
        with self._lock:
            slots = self._slots.get(key)
            if slots is None:
                slots = self._slots.put(key, {})
            mine = {other.id: slots.setdefault(other.id, _Slot()) for other in others}
        images = 0
        seen: dict[str, tuple[Any, Any]] = {}
        for waits in (False, True):
            for other in others:
                slot = mine[other.id]
                if other.id in seen or not slot.lock.acquire(blocking=waits):
                    continue
                try:
                    if slot.seen is None:
                        slot.seen = observed(method, other, generator, encoded)
                        images += 2
                    seen[other.id] = slot.seen
                finally:
                    slot.lock.release()
        return seen, images


def fit_inputs(setup: Setup, method: Method, category: str) -> str:
    """Identifies all that a category's fit depends on."""
    config, model = setup.config, setup.model
    return digest(
        {
            "model": None if model is None else model.fingerprint,
            "method": method.name,
            "version": method.version,
            "steps": config.steps,
            "size": config.size,
            "dtype": config.dtype,
            "seed": FIT_SEED,
            "pairs": [content(pair) for pair in setup.pairs if pair.category == category],
        }
    )


class Fitted:
    """Methods fitted for each pair, so that all images of a pair need one fit.

    The methods of the pairs that were used last are kept. Several threads may call it.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._lock = Lock()
        self._methods: Recent[tuple[str, str], Method] = Recent(MOST_PAIRS)
        self._work: list[FitWork] = []

    def __call__(self, job: Job, method: LearningMethod, others: tuple[Words, ...]) -> Method:
        """The method for a job's pair."""
        key, category = (job.method, job.pair.id), job.pair.category
        with self._lock:
            found = self._methods.get(key)
            if found is None:
                clock = time.perf_counter()
                found = self._methods.put(key, method.fit(others))
                seconds = time.perf_counter() - clock
                inputs = fit_inputs(self._setup, method, category)
                self._work.append(FitWork(job.method, category, inputs, 0, seconds))
            return found

    def taken(self) -> tuple[FitWork, ...]:
        """The work since the last call."""
        with self._lock:
            work, self._work = self._work, []
        return tuple(work)


def observed(
    method: ObservingMethod,
    pair: Pair,
    generator: Generator,
    encoded: Mapping[str, Conditioning],
) -> tuple[Any, Any]:
    """What the method observes with a pair's source prompt and with its target prompt.

    Both images have the same noise, the pair's with :data:`FIT_SEED`.
    """
    noise = latents_for(pair, FIT_SEED, generator.latent_shape)
    conditionings = [encoded[pair.source_prompt], encoded[pair.target_prompt]]
    source, target = generator.observe(method, conditionings, torch.stack([noise, noise]))
    return source, target


def held_out(
    pair: Pair, others: Sequence[Pair], seen: Mapping[str, tuple[Any, Any]]
) -> list[Observed]:
    """What was observed of the others, except with prompts that the steered pair has as well."""
    own = {folded(pair.source_prompt), folded(pair.target_prompt)}
    found = []
    for other in others:
        source, target = seen[other.id]
        found.append(
            Observed(
                (other.source_word, other.target_word),
                None if folded(other.source_prompt) in own else source,
                None if folded(other.target_prompt) in own else target,
            )
        )
    return found


def check_version(config: RunConfig, methods: Collection[str]) -> None:
    """Raise ``ExtensionError`` if the run's method has another version than its images' keys.

    Then its file has changed since the run began, or is another one on this machine.
    """
    for name in methods:
        version = METHODS.get(name).version
        if name == config.method and config.method_version not in ("", version):
            raise ExtensionError(
                place=f"method {name}",
                expected=f"the version {config.method_version} that the run began with",
                got=version or "none",
                advice="put the same file on all machines, and begin again after a change",
            )
