"""Replace a pipeline's denoiser by one whose conditioning depends on the step.

The replacement belongs to one call of one copy of a pipeline. Generators in other threads that
share its weights are not affected, and nothing has to be undone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from analogy.core.errors import ModelError
from analogy.core.records import Window
from analogy.models.families import stacked
from analogy.models.placement import computing_place
from analogy.steering.conditioning import Conditioning
from analogy.steering.course import Course

Path: TypeAlias = tuple[str | int, ...]
"""Where a tensor is among a call's arguments: a position or a name, then keys of nested dicts."""

#: Arguments of diffusers' denoisers without a batch axis, whatever their length.
_NO_BATCH = ("img_ids", "txt_ids")


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor of a call that holds the batch's conditioning.

    ``name``: the tensor's name in the conditioning; ``starts``: the first row of each copy of the
    batch. There are several copies if the pipeline has further guidance terms with the same prompt.
    """

    name: str
    tensor: Tensor
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PipelineChange:
    """A change of the pipeline in a part of the schedule.

    ``enter``: takes the number of the current step, and returns the context within which the
    pipeline is changed.
    """

    enter: Callable[[int], AbstractContextManager[object]]
    window: Window


class Stepped:
    """A copy of a pipeline whose denoiser and scheduler count steps. Used as a context, once.

    ``pipeline``: the copy, which is to be called with the conditionings :attr:`given`.
    ``conditionings``: those of the batch, in the order of its images. Raises ``ModelError`` on exit
    if the pipeline has not passed its conditioning to the denoiser unchanged.
    """

    def __init__(
        self,
        pipeline: Any,
        denoiser: str,
        conditionings: Sequence[Conditioning | Course],
        change: PipelineChange | None = None,
    ) -> None:
        self.given = [each.source if isinstance(each, Course) else each for each in conditionings]
        self.pipeline = copy.copy(pipeline)
        self._scheduler = _counting(pipeline.scheduler, self._step_done)
        # Not by setattr, with which a pipeline records the classes of its parts.
        parts = vars(self.pipeline)
        parts["scheduler"] = self._scheduler
        self._denoiser = parts[denoiser]
        parts[denoiser] = _Denoiser(self._denoiser, self._predict)
        self._courses = {
            i: each for i, each in enumerate(conditionings) if isinstance(each, Course)
        }
        place = computing_place(pipeline, self._denoiser)
        self._device = place[0]
        self._source = stacked(self.given, *place)
        self._steered = stacked(
            [each.steered if isinstance(each, Course) else each for each in conditionings], *place
        )
        self._needed = [
            name for name, one in self._source.items() if not torch.equal(one, self._steered[name])
        ]
        self._is_seen = not self._needed
        self._known: dict[int, tuple[Tensor, _Place | None]] = {}
        self._replaced: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        self._step = 0
        self._change = change
        self._is_changed = False
        self._changed = ExitStack()

    def __enter__(self) -> Stepped:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._changed.close()
        # Reference cycles would keep tensors on a GPU until the garbage is collected.
        vars(self.pipeline).clear()
        vars(self._scheduler).pop("step")
        if kind is None and not self._is_seen:
            raise self._refusal()

    def _steps(self, window: Window) -> range:
        return window.steps(len(self._scheduler.timesteps))

    def _step_done(self) -> None:
        self._step += 1

    def _predict(self, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """The denoiser's prediction for one call of the pipeline."""
        self._enter_or_leave_change()
        if not self._needed:
            return self._denoiser(*args, **given)
        call: dict[str | int, Any] = dict(enumerate(args))
        call.update(given)
        places = self._places(call)
        if not places:  # a pass for the negative prompt alone
            return self._denoiser(*args, **given)
        self._is_seen = True
        active = [i for i, one in self._courses.items() if self._step in self._steps(one.window)]
        swapped = tuple(i for i in active if self._courses[i].weight is None)
        added = [i for i in active if self._courses[i].weight is not None]
        if swapped:
            changed = {path: self._with_rows(one, swapped) for path, one in places.items()}
            made = self._called(_mapped(call, lambda path, leaf: changed.get(path, leaf)))
        else:
            made = self._denoiser(*args, **given)
        return self._plus(made, call, places, added) if added else made

    def _plus(
        self,
        made: Any,
        call: dict[str | int, Any],
        places: Mapping[Path, _Place],
        added: Sequence[int],
    ) -> Any:
        """A prediction plus the weighted difference between the steered predictions and it.

        The steered rows are predicted in a pass of their own. So the pipeline's pass has the same
        rows and memory as without them, and the other images stay bit for bit the same. Raises
        ``ModelError`` if the pipeline predicts more than once with the prompt.
        """
        place = next(iter(places.values()))
        if len(place.starts) > 1:
            raise ModelError(
                f"{type(self.pipeline).__name__}: expected a pipeline that predicts once with the "
                f"prompt, got {len(place.starts)} predictions, so that none can be added to; "
                "choose a method that steers the conditioning"
            )
        rows, [first] = len(place.tensor), place.starts
        where = torch.tensor([first + i for i in added], device=self._device)
        chosen = torch.tensor(added, device=self._device)

        def own(path: Path, leaf: Tensor) -> Tensor:
            if path in places:
                return self._steered[places[path].name][chosen]
            has_rows = leaf.ndim > 0 and len(leaf) == rows and path[-1] not in _NO_BATCH
            return leaf[where] if has_rows else leaf

        extra = self._called(_mapped(call, own))[0]
        whole: Tensor = made[0].clone()
        weights = [self._courses[i].weight for i in added]
        by_row = whole.new_tensor(weights).view(-1, *[1] * (whole.ndim - 1))
        whole[where] += by_row * (extra - whole[where])
        return (whole, *made[1:])

    def _called(self, call: Mapping[str | int, Any]) -> Any:
        args = [value for name, value in call.items() if isinstance(name, int)]
        given = {name: value for name, value in call.items() if isinstance(name, str)}
        return self._denoiser(*args, **given)

    def _places(self, call: Mapping[str | int, Any]) -> dict[Path, _Place]:
        """Where the conditioning of the batch is among a call's arguments.

        It is found by its values, since every family's denoiser has other names for it. Empty if
        this call has none of it. Raises ``ModelError`` if it has only a part of it.
        """
        found: dict[Path, _Place] = {}

        def look(path: Path, leaf: Tensor) -> Tensor:
            place = self._place_of(leaf)
            if place is not None:
                found[path] = place
            return leaf

        _mapped(call, look)
        names = {place.name for place in found.values()}
        if names & set(self._needed) and not names >= set(self._needed):
            raise self._refusal()
        return found if names & set(self._needed) else {}

    def _place_of(self, leaf: Tensor) -> _Place | None:
        """The conditioning's tensor whose rows ``leaf`` has; None if it has none.

        After the first time it is looked up by identity: comparing values waits for the GPU.
        """
        if id(leaf) in self._known:
            return self._known[id(leaf)][1]
        alike = {name: each for name, each in self._source.items() if _is_like(leaf, each)}
        if not alike:
            return None
        place = None
        for name, each in alike.items():
            blocks = range(0, len(leaf), len(each))
            starts = tuple(at for at in blocks if torch.equal(leaf[at : at + len(each)], each))
            if starts:
                place = _Place(name, leaf, starts)
        # The tensor is kept alive: another one could get its id once it is freed.
        self._known[id(leaf)] = (leaf, place)
        return place

    def _with_rows(self, place: _Place, rows: tuple[int, ...]) -> Tensor:
        """A copy of a pipeline's tensor with these rows steered. It is kept and used again."""
        kept = self._replaced.get(id(place.tensor))
        if kept is not None and kept[0] == rows:
            return kept[1]
        made = place.tensor.clone()
        for start in place.starts:
            for i in rows:
                made[start + i] = self._steered[place.name][i]
        self._replaced[id(place.tensor)] = (rows, made)
        return made

    def _enter_or_leave_change(self) -> None:
        if self._change is None:
            return
        steps = self._steps(self._change.window)
        if self._step not in steps:
            self._changed.close()
        elif not self._is_changed:
            self._is_changed = True
            self._changed.enter_context(self._change.enter(self._step))

    def _refusal(self) -> ModelError:
        return ModelError(
            f"{type(self.pipeline).__name__}: expected the denoiser to be given "
            f"{', '.join(self._needed)} as the pipeline was, got none, so that steering cannot "
            "begin or end at a step; leave out --steer-from and --steer-until, or choose a method "
            "that steers at every step"
        )


def _is_like(leaf: Tensor, source: Tensor) -> bool:
    """True if a tensor may contain the rows of a conditioning's tensor ``(n, ...)``."""
    return (
        leaf.ndim == source.ndim
        and leaf.shape[1:] == source.shape[1:]
        and len(leaf) % len(source) == 0
        and leaf.dtype == source.dtype
    )


class _Denoiser:
    """Takes the calls of a pipeline to its denoiser. All attributes are the denoiser's own."""

    def __init__(
        self, denoiser: Any, predict: Callable[[tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        self._own = denoiser
        self._predict = predict

    def __call__(self, *args: Any, **given: Any) -> Any:
        return self._predict(args, given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def _counting(scheduler: Any, count: Callable[[], None]) -> Any:
    """A copy of a scheduler that calls ``count`` after each step."""
    copied = copy.copy(scheduler)
    step = copied.step

    @functools.wraps(step)
    def counted(*args: Any, **given: Any) -> Any:
        made = step(*args, **given)
        count()
        return made

    copied.step = counted
    return copied


def _mapped(
    tree: Mapping[Any, Any], change: Callable[[Path, Tensor], Tensor], path: Path = ()
) -> dict[Any, Any]:
    """A call's arguments with their tensors changed, including those in nested dicts."""
    made = {}
    for name, value in tree.items():
        if isinstance(value, Tensor):
            value = change((*path, name), value)
        elif isinstance(value, dict):
            value = _mapped(value, change, (*path, name))
        made[name] = value
    return made
