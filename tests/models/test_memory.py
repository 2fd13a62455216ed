"""Batches: as large as pays and fits, halved when memory runs out, with nothing done twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analogy.models import memory
from analogy.models.memory import GIB, InParts, MemoryFullError, fitting, memory_said, most_at_once

OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


def room_for(capacity: int, seen: list[int], error: Exception = OUT_OF_MEMORY[0]):
    """Work that takes ``capacity`` at a time and keeps what it has done in ``seen``."""

    def work(part: slice) -> range:
        if part.stop - part.start > capacity:
            raise error
        seen.extend(range(part.start, part.stop))
        return range(part.start, part.stop)

    return work


# --- in parts


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 60))
def test_everything_is_done_once_and_in_order_whatever_the_room(n, at_once, capacity):
    seen: list[int] = []
    in_parts = InParts(at_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_release", lambda: None)
        parts = in_parts(room_for(capacity, seen), n)
    assert seen == [i for part in parts for i in part] == list(range(n))
    assert in_parts.at_once == at_once or capacity / 2 < in_parts.at_once + 1 <= capacity + 1


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20])
def test_what_did_not_fit_once_is_not_tried_again(error):
    tried = []

    def work(part: slice) -> None:
        tried.append(part.stop - part.start)
        if tried[-1] > 2:
            raise error

    in_parts = InParts(8)
    in_parts(work, 8)
    in_parts(work, 3)
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1]


def test_a_cpu_that_is_full_says_it_in_words_that_are_known():
    def work(part: slice) -> None:
        torch.empty((part.stop - part.start) << 50)

    with pytest.raises(MemoryFullError, match=r"one image at a time.*--dtype float16"):
        InParts(2)(work, 2)


def test_another_error_is_no_lack_of_memory():
    in_parts = InParts(4)
    with pytest.raises(RuntimeError, match="shapes"):
        in_parts(room_for(1, [], RuntimeError("shapes cannot be multiplied")), 4)
    assert in_parts.at_once == 4


@pytest.mark.parametrize(
    "take",
    [lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50), lambda: bytearray(1 << 60)],
    ids=["torch", "numpy", "python"],
)
def test_whoever_notices_that_memory_is_full_it_is_said_in_one_sentence(take):
    with (
        pytest.raises(MemoryFullError, match=r"^out of memory while judging: expected.*--size.*$"),
        memory_said("judging"),
    ):
        take()


@pytest.mark.parametrize("error", [RuntimeError("shapes"), MemoryFullError("said"), ValueError()])
def test_what_is_no_lack_of_memory_or_has_been_said_is_left_as_it_is(error):
    with pytest.raises(type(error)) as caught, memory_said("judging"):
        raise error
    assert caught.value is error


# --- how many


@pytest.mark.parametrize(
    ("device", "size", "images"),
    [("cpu", 64, 38), ("cpu", 512, 1), ("cpu", 1024, 1), ("mps", 1024, 2), ("cuda:1", 1024, 16),
     ("cuda", 512, 64), ("cuda", 64, memory.MOST_IMAGES), ("cuda", 8192, 1)],
)  # fmt: skip
def test_beyond_some_pixels_a_batch_gains_nothing(device, size, images):
    assert most_at_once(device, size) == images


def test_an_image_more_takes_what_the_second_did():
    """SSD-1B at 1024 pixels, in round figures: 4 GiB of weights, 1 GiB an image."""
    gib = [5 * GIB, 6 * GIB]
    assert fitting(*gib, budget=12 * GIB, most=16) == 6
    assert fitting(*gib, budget=24 * GIB, most=16) == 16
    assert fitting(*gib, budget=5 * GIB, most=16) == 1


@given(
    one=st.integers(0, 10**12), each=st.integers(0, 10**11), budget=st.integers(0, 10**12),
    most=st.integers(1, 300),
)  # fmt: skip
def test_a_batch_stays_within_its_budget(one, each, budget, most):
    n = fitting(one, one + each, budget=budget, most=most)
    assert 1 <= n <= most
    assert n == 1 or one + (n - 1) * each <= memory.PLANNED * budget
    assert n == most or one + n * max(each, 1) > memory.PLANNED * budget


def test_a_budget_is_what_is_free_or_ones_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GIB, 12 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * GIB)
    assert memory.budget("cuda", None) == 10 * GIB
    assert memory.budget("cuda", 8.5) == int(8.5 * GIB)
    assert memory.budget("cuda", 100) == 10 * GIB


def test_a_limit_is_a_fraction_of_the_device(monkeypatch):
    class Card:
        total_memory = 48 * GIB

    set_to = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *given: set_to.append(given)
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    memory.limit_memory("cuda:1", 12)
    memory.limit_memory("cuda", 100)
    assert set_to == [(0.25, 1), (1.0, 2)]


@pytest.mark.gpu
def test_a_card_refuses_more_than_its_limit_and_the_work_goes_on_in_parts():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    memory.limit_memory("cuda", 1.0)
    try:
        in_parts = InParts(8)  # of 300 MiB each
        parts = in_parts(
            lambda part: torch.empty((part.stop - part.start, 300 * 2**20), dtype=torch.uint8,
                                     device="cuda").shape[0],
            8,
        )  # fmt: skip
        assert sum(parts) == 8
        assert in_parts.at_once == 2
        assert memory.peak("cuda", lambda: torch.empty(2**28, device="cuda")) >= GIB
    finally:
        memory.limit_memory("cuda", 10**6)
