"""Weights of other projects' networks: found on this machine, never downloaded, read as tensors."""

from __future__ import annotations

from os import PathLike
from os.path import expanduser
from pathlib import Path

import torch

from analogy.core.errors import ModelError
from analogy.core.text import command_line


def find_weights(weights: str | PathLike[str] | None, url: str) -> Path:
    """The file ``weights``, or the file of ``url`` in torch's download folder.

    Raises :class:`ModelError` if it is missing, with the command that fetches it.
    """
    name = url.rpartition("/")[2]
    if weights is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
    else:
        path = Path(expanduser(weights))
    if path.is_file():
        return path
    command = command_line("curl", "--create-dirs", "-fLo", path, url)
    raise ModelError(
        f"{path}: no such file. The weights {name} are not part of the suite; a copy that is "
        f"elsewhere is named by weights=PATH; where there is a network, fetch them with: {command}"
    )


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file of ``torch.save``, on the CPU.

    Raises :class:`ModelError` for other files, and for files that would run code.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises errors of any type
        raise ModelError(
            f"{path}: expected a state dict saved by torch.save ({error}); fetch the file again"
        ) from error
    if not isinstance(state, dict):
        raise ModelError(f"{path}: expected a state dict, got {type(state).__name__}")
    return state
