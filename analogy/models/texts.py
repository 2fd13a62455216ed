"""The conditioning of a run's texts, in the encoders' dtypes; in a file above a memory budget."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import IO
from weakref import finalize

import safetensors.torch
from torch import Tensor

from analogy.core.errors import StoreError
from analogy.models.memory import GIB, give_back
from analogy.steering.conditioning import Conditioning

#: Bytes of conditioning that a process keeps in memory: all 909 texts of the suite's 400 pairs for
#: models up to FLUX.1 in half precision, a quarter of them for FLUX.2 dev.
MOST_BYTES = 4 * GIB

#: Bytes of an encoder's tensors after which freed memory is given back to the system.
_FREED_EVERY = GIB // 4


@dataclass(frozen=True, slots=True)
class _Filed:
    """A text's tensors in the file: ``size`` bytes of safetensors from ``start``.

    ``like``: its conditioning with tensors on torch's device meta, which have no values.
    """

    start: int
    size: int
    like: Conditioning


class Texts(Mapping[str, Conditioning]):
    """The conditioning of each text, on the CPU.

    Tensors are kept in the dtypes of the text encoders. Steered tensors are returned in float32, in
    which methods compute. If they are kept in another dtype, each request makes a copy. The first
    texts are in memory, up to ``budget`` bytes (None: :data:`MOST_BYTES`). The others are in a
    temporary file without a name, which the system deletes when the process ends. Several threads
    may read.

    ``hides_masked``: True if the values of masked tokens have no effect on images. Then only the
    other tokens are kept, and masked ones are returned as zeros.
    """

    def __init__(self, *, hides_masked: bool = False, budget: int | None = None) -> None:
        self._hides_masked = hides_masked
        self._budget = MOST_BYTES if budget is None else budget
        self._kept: dict[str, Conditioning | _Filed] = {}
        self._masks: Mapping[str, str] = {}
        self._file: IO[bytes] | None = None
        self._lock = Lock()
        self.bytes_in_memory = 0
        self.bytes_in_file = 0
        self._bytes_given = 0

    def add(self, text: str, made: Conditioning) -> None:
        """Keep a copy of a text's conditioning. All must have tensors of the same names.

        Raises ``StoreError`` if the disk has no room for it.
        """
        if self._hides_masked and not self._kept:
            self._masks = _masks(made)
        self._bytes_given += _bytes(made)
        made = _without_masked(made, self._masks).kept()
        size = _bytes(made)
        if self._file is None and self.bytes_in_memory + size <= self._budget:
            self._kept[text] = made
            self.bytes_in_memory += size
        else:
            self._kept[text] = self._written(made)
        if self._bytes_given >= _FREED_EVERY:
            give_back()
            self._bytes_given = 0

    def __getitem__(self, text: str) -> Conditioning:
        kept = self._kept[text]
        made = self._read(kept) if isinstance(kept, _Filed) else kept
        return _with_masked(made.float32(), self._masks)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def _written(self, made: Conditioning) -> _Filed:
        data = safetensors.torch.save(made.tensors())
        start = self.bytes_in_file
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="analogy-texts-")  # noqa: SIM115
                finalize(self, self._file.close)
            self._file.seek(start)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise StoreError(
                f"{tempfile.gettempdir()}: expected room for the conditioning of more than "
                f"{len(self._kept):,} texts, {len(data) / 1e6:,.1f} MB each, got {error}; set "
                "TMPDIR to a folder with more room, or choose fewer pairs with --limit or "
                "--categories"
            ) from error
        self.bytes_in_file += len(data)
        return _Filed(start, len(data), made.changed(lambda _, tensor: tensor.to("meta")))

    def _read(self, filed: _Filed) -> Conditioning:
        assert self._file is not None
        with self._lock:
            self._file.seek(filed.start)
            tensors = safetensors.torch.load(self._file.read(filed.size))
        return filed.like.changed(lambda name, _: tensors[name])


def _bytes(made: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in made.tensors().values())


def _masks(made: Conditioning) -> dict[str, str]:
    """The names of token states' masks, by the states' names. States without a mask are left out.

    A mask is the only carried tensor of zeros and ones with as many tokens.
    """
    found = {}
    for name, states in made.states.items():
        alike = [
            other
            for other, mask in made.carried.items()
            if mask.shape == states.shape[-2:-1] and ((mask == 0) | (mask == 1)).all()
        ]
        if len(alike) == 1:
            found[name] = alike[0]
    return found


def _without_masked(made: Conditioning, masks: Mapping[str, str]) -> Conditioning:
    def shortened(name: str, tensor: Tensor) -> Tensor:
        return tensor[..., made.carried[masks[name]] != 0, :] if name in masks else tensor

    return made.changed(shortened) if masks else made


def _with_masked(made: Conditioning, masks: Mapping[str, str]) -> Conditioning:
    def whole(name: str, tensor: Tensor) -> Tensor:
        if name not in masks:
            return tensor
        seen = made.carried[masks[name]] != 0
        zeros = tensor.new_zeros(*tensor.shape[:-2], len(seen), tensor.shape[-1])
        zeros[..., seen, :] = tensor
        return zeros

    return made.changed(whole) if masks else made
