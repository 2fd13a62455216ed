"""A loaded model for metrics of cost: timed generation whose images are not kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from analogy.core.images import Images
from analogy.evaluation.measurement import Measurement
from analogy.metrics import efficiency
from analogy.models.generator import Generator, noise

LATENCY_REPEATS = 20
THROUGHPUT_REPEATS = 3
ENERGY_SECONDS = 10.0
"""Seconds of work for one measurement of energy: see ``analogy.metrics.efficiency.energy``."""


class Timed:
    """A loaded model that generates images from prompts, for metrics of cost.

    ``run(n)`` makes n images in one call, from the task's prompts in turn, in this thread. No image
    is kept. ``pipeline``, ``device`` and ``batch_size`` are those of the model.
    """

    def __init__(
        self,
        generator: Generator,
        pipeline: Any,
        prompts: Sequence[str],
        *,
        device: str,
        files: Callable[[], int] | None,
    ) -> None:
        self.pipeline = pipeline
        self.device = device
        self.batch_size = generator.batch_size
        self._generator = generator
        self._prompts = prompts
        self._files = files
        self._energies: dict[str, efficiency.Energy] = {}

    def run(self, n: int = 1) -> Images:
        """``n`` images, uint8 ``(n, height, width, 3)``."""
        generator = self._generator
        prompts = [self._prompts[i % len(self._prompts)] for i in range(n)]
        latents = torch.stack(
            [noise(generator.latent_shape, prompt, str(i)) for i, prompt in enumerate(prompts)]
        )
        encoded = generator.encode(prompts)
        return generator.generate([encoded[prompt] for prompt in prompts], latents).images

    @cached_property
    def _one(self) -> efficiency.Timing:
        return efficiency.timing(self.run, device=self.device, repeats=LATENCY_REPEATS)

    def latency(self, field: str) -> Measurement:
        """A field of the :class:`~analogy.metrics.efficiency.Timing` of calls for one image."""
        return Measurement(
            getattr(self._one, field), self._one.repeats, (f"{self._place}, one image a call",)
        )

    def throughput(self) -> Measurement:
        """Images per second at the batch size."""
        n = self.batch_size
        found = efficiency.timing(
            lambda: self.run(n), device=self.device, warmup=1, repeats=THROUGHPUT_REPEATS,
            n_images=n,
        )  # fmt: skip
        note = f"{self._place}, {n} images a call"
        return Measurement(found.images_per_s, n * found.repeats, (note,))

    def peak_memory(self) -> Measurement:
        """Peak memory in bytes while a batch is generated, after a first unmeasured batch."""
        n = self.batch_size
        self.run(n)
        found = efficiency.peak_memory(lambda: self.run(n), device=self.device)
        return Measurement(found.peak_bytes, n, (f"{found.kind}, {n} images a call",))

    def model_memory(self) -> Measurement:
        """Bytes of parameters and buffers."""
        return Measurement(efficiency.model_bytes(efficiency.modules_of(self.pipeline)), 1)

    def parameters(self) -> Measurement:
        """Parameters of denoiser, VAE and text encoders."""
        return Measurement(efficiency.parameters(efficiency.modules_of(self.pipeline)), 1)

    def macs(self) -> Measurement:
        """Multiply-accumulate operations for one image."""
        return Measurement(efficiency.macs(efficiency.flops(self.run)), 1)

    def size_on_disk(self) -> Measurement:
        """Bytes of the weight files that are loaded. Raises ``ValueError`` for a live pipeline."""
        if self._files is None:
            raise ValueError("size_on_disk: a pipeline that is in memory has no files")
        return Measurement(self._files(), 1)

    def electric(self, field: str, country: str) -> Measurement:
        """A field of the :class:`~analogy.metrics.efficiency.Energy` of `ENERGY_SECONDS` or more.

        ``country``: ISO 3166, three letters.
        """
        found = self._energy(country)
        how = (f"{part} {getattr(found, f'{part}_method')}" for part in ("cpu", "gpu", "ram"))
        note = f"{found.country}; {'; '.join(how)}"
        return Measurement(getattr(found, field), found.n_images, (note,))

    def _energy(self, country: str) -> efficiency.Energy:
        if country not in self._energies:
            n = self.batch_size
            self.run(n)  # not measured: a first call also does setup that later ones reuse
            self._energies[country] = efficiency.energy(
                lambda: self.run(n), country=country, n_images=n, device=self.device,
                at_least_s=ENERGY_SECONDS,
            )  # fmt: skip
        return self._energies[country]

    @property
    def _place(self) -> str:
        threads = f" with {torch.get_num_threads()} thread(s)" if self.device == "cpu" else ""
        return f"on {self.device}{threads}"
