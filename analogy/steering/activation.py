"""The method that adds a direction to the outputs of the denoiser's cross-attention modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from analogy.core.errors import AnalogyError, ModelError
from analogy.core.words import folded
from analogy.steering.base import BUILTIN_ALPHAS, Need, Observed, Row
from analogy.steering.conditioning import Conditioning, Edit
from analogy.steering.hooks import Calls, conditional, cross_attention, hooked

ByModule: TypeAlias = Mapping[str, Tensor]
"""By a module's name, float32 ``(steps, dim)`` on the CPU: one vector for each denoising step."""


class TooFewPairsError(AnalogyError, ValueError):
    """A category has too few pairs to learn from."""


class Activation:
    """Adds alpha times a direction to the conditional rows of each cross-attention output.

    This is CASteer (arXiv 2503.09630) for the task of MidSteer (arXiv 2605.05220), to switch from
    one concept to another. Each module and step has a direction: the mean output, over image tokens
    and prompts, for prompts with the target word, minus that for prompts with the source word. Only
    the category's other pairs are used (:func:`direction`).
    """

    name, version = "activation", ""
    needs = frozenset({Need.OTHERS})
    exclusive, per_row = False, True
    default_alphas = BUILTIN_ALPHAS["activation"]

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        """The source's conditioning, which this method does not change."""
        return edit.source

    def observe(self, pipeline: Any, denoise: Callable[[], object], n: int) -> Sequence[ByModule]:
        """The mean over tokens of each image's conditional outputs, by module and step."""
        modules = cross_attention(pipeline, method=self.name)
        seen: dict[str, list[Tensor]] = {name: [] for name in modules}

        def keep(name: str, output: Tensor) -> None:
            seen[name].append(conditional(output, n).float().mean(dim=1))

        with hooked(modules, keep):
            denoise()
        by_module = {name: torch.stack(steps, dim=1).cpu() for name, steps in seen.items()}
        return [{name: rows[i].clone() for name, rows in by_module.items()} for i in range(n)]

    def learn(self, words: tuple[str, str], others: Sequence[Observed]) -> ByModule:
        """The direction of a pair of these words."""
        return direction(words, others)

    @contextmanager
    def applied(self, pipeline: Any, rows: Sequence[Row], start: int = 0) -> Iterator[None]:
        """Add the directions within this context.

        Raises ``ModelError`` if the denoiser has no cross-attention, or runs twice in a step.
        """
        modules = cross_attention(pipeline, method=self.name)
        steered = [i for i, row in enumerate(rows) if row.alpha]
        whole = len(steered) == len(rows)
        added = {
            name: torch.stack([rows[i].alpha * rows[i].learned[name] for i in steered], dim=1)
            for name in (modules if steered else ())
        }  # each (steps, steered rows, dim)
        calls = Calls(start)

        def add(name: str, output: Tensor) -> None:
            step, directions = calls.next(name), placed(added, name, output)
            if step >= len(directions):
                raise ModelError(
                    f"module {name}: expected a call in each of {len(directions)} steps, as where "
                    "its directions were observed, got more; choose a pipeline that computes "
                    "guidance in one pass"
                )
            delta = directions[step, :, None]
            mine = conditional(output, len(rows))
            if whole:
                mine += delta
            else:
                mine[steered] += delta

        with hooked({name: modules[name] for name in added}, add):
            yield


def placed(tensors: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """A tensor on the device and in the dtype of ``like``. The result is kept in ``tensors``."""
    if tensors[name].device != like.device or tensors[name].dtype != like.dtype:
        tensors[name] = tensors[name].to(like)
    return tensors[name]


def direction(words: tuple[str, str], others: Sequence[Observed]) -> dict[str, Tensor]:
    """The direction from the source word to the target word, from the category's other pairs.

    The mean over prompts with the target word minus the mean over prompts with the source word, as
    in :func:`~analogy.steering.words.category`. If one of the whole words is in no other pair
    (``one red flower``, ``two hats``), it uses the prompts that share a part of the words with one
    side and none with the other (``one``, ``two``). If there are no such prompts, it is the mean of
    the other pairs' own differences. Letter case does not count. Raises :class:`TooFewPairsError`
    if nothing is left to learn from.
    """
    source, target = map(folded, words)
    said = [(folded(other.words[0]), other.source) for other in others]
    said += [(folded(other.words[1]), other.target) for other in others]
    seen = [(word, each) for word, each in said if each is not None]
    start, end = ([each for word, each in seen if word == own] for own in (source, target))
    if not (start and end):
        apart = _parts(source) - _parts(target), _parts(target) - _parts(source)
        start, end = (
            [
                each
                for word, each in seen
                if _parts(word) & apart[side] and not _parts(word) & apart[1 - side]
            ]
            for side in (0, 1)
        )
    if not (start and end):
        whole = [each for each in others if each.source is not None and each.target is not None]
        start, end = [each.source for each in whole], [each.target for each in whole]
    if not start:
        raise TooFewPairsError(
            place="method activation",
            expected=f"another pair in the category to learn {words[0]!r} to {words[1]!r} from",
            got="none with prompts other than the pair's own",
            advice="add pairs to the category or choose another method",
        )
    return {
        name: torch.stack([each[name] for each in end]).mean(0)
        - torch.stack([each[name] for each in start]).mean(0)
        for name in end[0]
    }


def _parts(words: str) -> set[str]:
    return set(words.split())


activation = Activation()
