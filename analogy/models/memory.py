"""How many images a model processes at once: as many as fit, halved when memory runs out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from analogy.core.errors import AnalogyError, ExitCode

T = TypeVar("T")

GIB = 2**30

#: The default number of pixels that are generated together. A larger batch gains no speed, and a
#: killed run loses a whole batch. On a CPU that is 38 of the embedded model's images (measured), so
#: that threads share even a cell of 60, and one image of a larger model. On CUDA it is fewer if
#: they do not fit.
MOST_PIXELS = {"cpu": 38 * 64**2, "mps": 2 * 1024**2, "cuda": 16 * 1024**2}
MOST_IMAGES = 256

#: Pixels that the VAE decodes together: its activations at full size are the first to fill a GPU.
DECODED_PIXELS = 1024**2

#: The share of the free memory that a batch is planned for; the rest is for fragmentation.
PLANNED = 0.9


class MemoryFullError(AnalogyError, RuntimeError):
    """A single image does not fit into memory; the message says what to do."""

    exit_code = ExitCode.UNREADABLE


class InParts:
    """Process n images in parts; the size of a part is halved whenever memory runs out.

    ``at_once``: images in a part. It never grows again, so that a size that did not fit is tried
    once a run. Finished parts are kept.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def __call__(self, work: Callable[[slice], T], n: int) -> list[T]:
        """The results of ``work`` on slices that cover 0..n in order.

        Raises :class:`MemoryFullError` if one image does not fit.
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
            # Outside of the handler, the traceback no longer holds the failed attempt's tensors.
            _release()
        return done


@contextmanager
def memory_said(doing: str) -> Iterator[None]:
    """Turn every out-of-memory error in the block into a :class:`MemoryFullError`.

    ``doing``: the work, as the message names it. For all work that does not use :class:`InParts`.
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


def give_back() -> None:
    """Return this process's freed memory to the system, where the C library would keep it.

    glibc does not reuse the place of a freed tensor for an aligned one of the same size. Where
    tensors are kept between freed ones, the process grows by all that was freed.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        if trim is not None:
            trim(0)


def most_at_once(device: str, size: int) -> int:
    """The batch size above which a device is not faster, for images of ``size`` pixels a side."""
    pixels = MOST_PIXELS[device.partition(":")[0]]
    return min(max(pixels // size**2, 1), MOST_IMAGES)


def fitting(one: int, two: int, *, budget: int, most: int) -> int:
    """The number of images that fit into ``budget`` bytes together, 1..``most``.

    ``one`` and ``two``: peak bytes with one and with two images, including all that is loaded. Each
    further image is taken to need as much as the second.
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
    """Bytes of a CUDA device that are free or this process's own, at most ``gib`` GiB."""
    free, _ = torch.cuda.mem_get_info(device)
    have = free + torch.cuda.memory_reserved(device)
    return have if gib is None else min(have, int(gib * GIB))


def peak(device: str, work: Callable[[], object]) -> int:
    """The peak of allocated bytes of a CUDA device while ``work`` ran."""
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device)
