"""Where the files of a model are: shipped, in a folder, or from the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from analogy.core.errors import ModelError
from analogy.core.text import command_line

EMBEDDED = "embedded"
#: A pipeline's configuration and tokenizers, without its weights.
CONFIG_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are, and their fingerprint.

    - ``folder``: the pipeline's configuration, and its weights unless ``file`` has them;
    - ``file``: a single file with the weights of all networks;
    - ``transformer``: a file with the weights of the transformer;
    - ``lora``: weights to fuse in;
    - ``quantize``: the name of a quantization;
    - ``fingerprint``: ``<name>@<commit>`` for a hub model, ``<name>@sha256:<16 hex>`` over all
      configuration and weight files for a folder and over the file for a file. It is followed by
      ``+configuration@sha256:<16 hex>`` for the folder that configures a file,
      ``+<name>@sha256:<16 hex>`` for a transformer's file and for a LoRA, and ``+<name>`` for a
      quantization.
    """

    folder: Path
    fingerprint: str
    file: Path | None = None
    transformer: Path | None = None
    lora: Path | None = None
    quantize: str | None = None

    @property
    def places(self) -> list[Path]:
        """The paths of its files and folders on this machine."""
        places = (self.folder, self.file, self.transformer, self.lora)
        return [place for place in places if place is not None]


def shipped(name: str) -> Path:
    """A file or folder of ``fixtures/``, in a checkout or in an installed wheel.

    Raises ``ModelError`` if it is missing.
    """
    here = Path(__file__).resolve().parents[1]
    for root in (here.parent / "fixtures", here / "_data"):
        if (root / name).exists():
            return root / name
    raise ModelError(
        f"the suite's own {name} is missing: looked in {here.parent / 'fixtures'} and "
        f"{here / '_data'}; check out the repository whole, or run 'tox -e build-models'"
    )


def absent(
    what: str, name: str, revision: str, failure: Exception | None, *, offline: bool
) -> ModelError:
    """The error for a hub model whose files are not on this machine and cannot be fetched."""
    command = command_line("hf", "download", name, *(["--revision", revision] if revision else []))
    why = "and --offline fetches nothing" if offline else f"and could not be fetched ({failure})"
    return ModelError(
        f"{what} is not on this machine {why}; where there is a network, fetch it with: {command}",
        command,
    )


def go_offline() -> None:
    """Keep this process and its future children from any request to the hub, by any library."""
    from huggingface_hub import constants  # the command line reads this module at every start

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def is_hub_id(name: str) -> bool:
    """True if a name has the form of a hub id, ``owner/name``."""
    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    return re.fullmatch(f"{part}/{part}", name) is not None


def listing(folder: Path) -> str:
    """The first five names in a folder, for messages."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
