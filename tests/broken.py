"""Files that are not what they say, and writing weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

#: What git-lfs leaves in the place of a file that was not fetched.
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 335\n"

#: JSON that Python's reader gives up on.
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def save(state: dict[str, torch.Tensor], file: Path, **metadata: str) -> None:
    """Write weights as diffusers and transformers do."""
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    save_file(state, file, metadata={"format": "pt", **metadata})
