"""How many images a model processes at once: as many as fit, half after memory ran out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from analogy.core.errors import AnalogyError, ExitCode

T = TypeVar("T")

GIB = 2**30

#: Pixels of the images that are generated together unless the user says: beyond these a batch gains
#: no speed, and a killed run loses a batch. On a CPU that is 38 of the embedded model's images
#: (measured), so that threads share even a cell of 60, and one at a time of a larger model's; on
#: CUDA fewer where they do not fit.
MOST_PIXELS = {"cpu": 38 * 64**2, "mps": 2 * 1024**2, "cuda": 16 * 1024**2}
MOST_IMAGES = 256

#: Pixels that the VAE decodes together: its activations at full size are what fills a card first.
DECODED_PIXELS = 1024**2

#: Of the memory that is free, what a batch may be planned for; the rest is for fragmentation.
PLANNED = 0.9


class MemoryFullError(AnalogyError, RuntimeError):
    """A single image does not fit into memory; the message says what to do."""

    exit_code = ExitCode.UNREADABLE


class InParts:
    """Process n images in parts; the size of a part is halved whenever memory runs out.

    ``at_once``: images in a part; it starts at what is asked for and never grows again, so that
    what did not fit is tried once a run. Parts that are done are kept.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def __call__(self, work: Callable[[slice], T], n: int) -> list[T]:
        """The results of ``work`` on slices that cover 0..n in order.

        Raises :class:`MemoryFullError` where one image is too many.
        """
        done: list[T] = []
        start = 0
        while start < n:
            part = slice(start, min(start + self.at_once, n))
            try:
                done.append(work(part))
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                size = part.stop - part.start
                if size == 1:
                    raise MemoryFullError(
                        "out of memory with one image at a time: expected room for one; free the "
                        "device of other programs, or choose a smaller --size, --dtype float16 "
                        f"or bfloat16, or another --device ({error})"
                    ) from error
                self.at_once = size // 2
            else:
                start = part.stop
                continue
            # Out here the failed attempt's tensors are no longer held by its traceback.
            _release()
        return done


@contextmanager
def memory_said(doing: str) -> Iterator[None]:
    """Turn every out-of-memory error in the block into a :class:`MemoryFullError`.

    ``doing``: what the work is, in the message. For all that is not done :class:`InParts`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryFullError) or not _is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MemoryFullError(
            f"out of memory while {doing}: expected room for it; end other programs, or choose a "
            f"smaller --size, a lower --batch-size or fewer processes ({reason})"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return should_reduce_batch_size(error) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def _release() -> None:
    clear_device_cache(garbage_collection=True)


def most_at_once(device: str, size: int) -> int:
    """The batch size above which such a device is not faster, for ``size`` pixels a side."""
    pixels = MOST_PIXELS[device.partition(":")[0]]
    return min(max(pixels // size**2, 1), MOST_IMAGES)


def fitting(one: int, two: int, *, budget: int, most: int) -> int:
    """The number of images that fit into ``budget`` bytes together, 1..``most``.

    ``one`` and ``two``: peak bytes with one and with two images, all that is loaded among them. An
    image more takes what the second did.
    """
    each = max(two - one, 1)
    return min(max(1 + int(PLANNED * budget - one) // each, 1), most)


def limit_memory(device: str, gib: float) -> None:
    """Limit this process to ``gib`` GiB of a CUDA device's memory."""
    total = torch.cuda.get_device_properties(device).total_memory
    index = torch.device(device).index  # torch takes no "cuda" without a number here
    torch.cuda.set_per_process_memory_fraction(
        min(gib * GIB / total, 1.0), torch.cuda.current_device() if index is None else index
    )


def budget(device: str, gib: float | None) -> int:
    """Bytes of a CUDA device that this process may use: free or its own, at most ``gib`` GiB."""
    free, _ = torch.cuda.mem_get_info(device)
    have = free + torch.cuda.memory_reserved(device)
    return have if gib is None else min(have, int(gib * GIB))


def peak(device: str, work: Callable[[], object]) -> int:
    """The peak of allocated bytes of a CUDA device while ``work`` ran."""
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device)
