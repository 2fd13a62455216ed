"""The protocols of a judge, and the table of custom judges.

A judge scores how well an image shows a prompt; the margin is the target prompt's score minus the
source prompt's. open_clip's judges are in :mod:`analogy.judges.open_clip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from analogy.core.errors import AnalogyError, ModelError
from analogy.core.registry import ExtensionError, Registry, is_spec
from analogy.core.text import is_printable
from analogy.judges import open_clip

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from analogy.core.images import Images


@runtime_checkable
class Judge(Protocol):
    """A loaded judge: it scores images."""

    def score(self, images: Images, prompts: Sequence[str]) -> ArrayLike:
        """How well each image shows its own prompt: ``(n,)``, each in -1..1, higher is better.

        ``images``: uint8 ``(n, height, width, 3)``; ``prompts``: n. A score depends only on its own
        image and prompt.
        """
        ...


@runtime_checkable
class FeatureEncoder(Protocol):
    """Turns images and prompts into vectors of one space.

    If a judge is also a feature encoder, its features are used instead of its scores: a score is
    then their cosine, and the metrics that compare features can be measured.
    """

    def image_features(
        self, images: Images, *, batch_size: int | None = None
    ) -> NDArray[np.float32]:
        """uint8 ``(n, height, width, 3)`` -> unit vectors ``(n, dim)``."""
        ...

    def text_features(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Prompts -> unit vectors ``(n, dim)``."""
        ...


@runtime_checkable
class JudgeMaker(Protocol):
    """A custom judge, named in the table or as ``package.module:name``.

    ``name`` and ``version`` make the fingerprint under which scores are kept: change ``version``
    when the judge gives other scores.
    """

    name: str
    version: str

    def load(self, device: str) -> Judge:
        """The judge, loaded on a device such as ``cpu`` or ``cuda:0``. Called in each worker."""
        ...


class FoundJudge(Protocol):
    """A judge that is found but not loaded; it can be sent to another process."""

    @property
    def fingerprint(self) -> str:
        """The identity under which scores are kept."""
        ...

    @property
    def dtype(self) -> str:
        """Its number format."""
        ...

    @property
    def places(self) -> list[Path]:
        """Its files on this machine; empty if it has none."""
        ...

    def in_dtype(self, dtype: str) -> FoundJudge:
        """The same judge, computing in ``dtype`` if it has a choice."""
        ...

    def tokenizer(self) -> Any | None:
        """Prompts -> token ids ``(n, context)``; None if the judge's tokenizer is unknown."""
        ...

    def load(self, device: str) -> Judge:
        """The judge, loaded. Raises ``ModelError`` if it cannot be loaded."""
        ...


#: Judges of installed packages. The suite's own are found by
#: :func:`analogy.judges.open_clip.find_judge`.
JUDGES = Registry[JudgeMaker](
    "judge",
    "analogy.judges",
    {},
    JudgeMaker,  # type: ignore[type-abstract]
)


@dataclass(frozen=True, slots=True)
class OwnJudge:
    """A custom judge by its name in the table or ``package.module:name``: a :class:`FoundJudge`."""

    name: str
    fingerprint: str
    dtype: str = "float32"

    @property
    def places(self) -> list[Path]:
        """Empty: the judge is imported where it is loaded."""
        return []

    def in_dtype(self, dtype: str) -> OwnJudge:
        """The same judge: its own code chooses the number format."""
        return self

    def tokenizer(self) -> None:
        """None: its tokenizer is unknown."""
        return

    def load(self, device: str) -> Judge:
        """The judge, loaded. Raises ``ModelError`` if its fingerprint has changed, and
        ``ExtensionError`` if what it loads is not a judge.
        """
        maker = JUDGES.get(self.name)
        if _fingerprint(self.name, maker) != self.fingerprint:
            raise ModelError(
                f"judge {self.name}: expected {self.fingerprint}, got "
                f"{_fingerprint(self.name, maker)}; import the same version everywhere"
            )
        judge = maker.load(device)
        if not isinstance(judge, Judge):
            raise ExtensionError(
                place=f"judge {self.name}: load",
                expected="an object with score(images, prompts)",
                got=type(judge).__name__,
                advice="see docs/extending.md",
            )
        return judge


def find_judge(name: str, pretrained: str | None, *, offline: bool = False) -> FoundJudge:
    """Find the judge of ``--clip-model`` and ``--clip-pretrained`` without loading it.

    A custom judge is found by its name in the table or ``package.module:name``, which is imported.
    Any other name is open_clip's: see :func:`analogy.judges.open_clip.find_judge`. Raises
    ``ModelError`` if there is no such judge.
    """
    is_own = name in JUDGES.names() or (is_spec(name) and not Path(name).exists())
    if not is_own:
        try:
            return open_clip.find_judge(name, pretrained, offline=offline)
        except ModelError as error:
            near = get_close_matches(name, JUDGES.names(), n=1)
            if near:
                raise ModelError(f"{error}; did you mean {near[0]!r}?") from error
            raise
    if pretrained is not None:
        raise ModelError(
            f"--clip-pretrained {pretrained}: expected none for the judge {name}, which loads what "
            "it needs by itself; leave the option out"
        )
    try:
        return OwnJudge(name, _fingerprint(name, JUDGES.get(name)))
    except AnalogyError as error:
        raise ModelError(f"--clip-model: {error}") from error


def _fingerprint(name: str, maker: JudgeMaker) -> str:
    for part in ("name", "version"):
        text = getattr(maker, part)
        if not isinstance(text, str) or not text.strip() or not is_printable(text) or "@" in text:
            raise ExtensionError(
                place=f"judge {name}: {part}",
                expected="printable text without @",
                got=f"{text!r}",
            )
    return f"{maker.name}@{maker.version}"
