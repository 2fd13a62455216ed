"""The headers of GGUF files, llama.cpp's format of quantized weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from analogy.core.errors import ModelError
from analogy.models.libraries import gguf
from analogy.models.networks import loading, refuse_pointer

SUFFIX = ".gguf"

_FORMAT = "a whole GGUF file (versions 2 and 3)"


def shapes_in_gguf(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a GGUF file, as it was before quantization.

    Raises :class:`ModelError` if the file is missing, cut off or of another format, or if the
    package gguf is not installed.
    """
    if find_spec("gguf") is None:
        raise ModelError(
            f"{file}: expected the package gguf, which reads GGUF files and is not installed; "
            "install it with: pip install gguf"
        )
    refuse_pointer(file)
    with loading(file, _FORMAT):
        tensors = _reader(file).tensors
    return {each.name: tuple(reversed([int(n) for n in each.shape])) for each in tensors}


def _reader(file: Path) -> Any:
    """The gguf package's reader of a file, made to raise an error for data beyond the file's end.

    The package's own reader returns less data than asked for without an error. With a count of
    2^60 in a short file it never ends.
    """

    class WithinFile(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, **options: Any) -> Any:
            found = super()._get(offset, dtype, count, **options)
            if len(found) != int(count):
                raise ValueError(f"{len(self.data):,} bytes, which end within its data")
            return found

    return WithinFile(file)
