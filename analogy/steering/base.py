"""The protocol of a steering method, and the table of methods. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from analogy.core.errors import FieldError
from analogy.core.fields import ALPHA_LIMIT
from analogy.core.records import WHOLE, Pair, RunConfig, Window
from analogy.core.records import Need as Need  # part of what a method is
from analogy.core.registry import ExtensionError, Registry

if TYPE_CHECKING:
    from analogy.steering.conditioning import Conditioning, Edit, Words

#: The default strengths of a method that has none of its own.
DEFAULT_ALPHAS = (0.5, 0.8, 1.0)

#: The limits of a method that takes any strength.
ANY_ALPHA = (-ALPHA_LIMIT, ALPHA_LIMIT)

#: The default strengths of built-in methods that have their own. Importing the methods would import
#: torch.
BUILTIN_ALPHAS: Mapping[str, tuple[float, ...]] = {
    "prompt": (1.0,),
    "activation": (1.0, 2.0, 3.0),
}


@runtime_checkable
class Method(Protocol):
    """A steering method: a pure function from an edit and a strength to a conditioning.

    At alpha 0 it returns the source's conditioning bit for bit. It does not change its input.
    """

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    @property
    def version(self) -> str:
        """Part of the key of each of its images: images of another version are made again.

        Empty for a first version.
        """
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """What it uses besides the source prompt."""
        ...

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        """The conditioning at strength ``alpha``, with the shapes of ``edit.source``."""
        ...


@runtime_checkable
class ScaledMethod(Method, Protocol):
    """A method with its own default strengths, since alpha is a method's own unit."""

    @property
    def default_alphas(self) -> tuple[float, ...]:
        """The default strengths; not 0."""
        ...


@runtime_checkable
class BoundedMethod(Method, Protocol):
    """A method that does not take every strength."""

    @property
    def alpha_limits(self) -> tuple[float, float]:
        """The smallest and the largest strength that it takes."""
        ...


@runtime_checkable
class SelectiveMethod(Method, Protocol):
    """A method that cannot steer every pair."""

    def check_pairs(self, pairs: Sequence[Pair]) -> None:
        """Raise an ``AnalogyError`` if it cannot steer one of them. Called before a run."""
        ...


@runtime_checkable
class LearningMethod(Method, Protocol):
    """A method that learns from pairs. It needs ``Need.OTHERS``."""

    def fit(self, others: tuple[Words, ...]) -> Method:
        """The method that is learned from a category's pairs.

        Called once for each steered pair, with the category's other pairs, so that a pair's method
        never learns from the pair itself.
        """
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a batch, as an intervention receives it.

    ``learned``: what an :class:`ObservingMethod` has learned for the pair; None for other methods.
    """

    pair: Pair
    alpha: float
    learned: Any = None


@runtime_checkable
class Intervention(Method, Protocol):
    """A method that changes the pipeline while images are denoised."""

    @property
    def exclusive(self) -> bool:
        """True if it changes what generators in other threads share, such as the denoiser's
        modules. The other generators then wait. False if it changes only the pipeline's own
        attributes, or what only its own thread sees (:func:`~analogy.steering.hooks.hooked`).
        """
        ...

    @property
    def per_row(self) -> bool:
        """True if the images of one batch may have different strengths. False if a batch must have
        one strength.
        """
        ...

    def applied(
        self, pipeline: Any, rows: Sequence[Row], start: int = 0
    ) -> AbstractContextManager[object]:
        """A context within which the pipeline is changed. On exit it is restored in any case.

        ``rows``: the images that are denoised together, one or more, in the batch's order. With
        guidance the denoiser has as many rows of the negative prompt before them. ``start``: the
        denoising step before which the context is entered. An image depends only on its own row. At
        alpha 0 it is bit for bit the same as without this context.
        """
        ...


@dataclass(frozen=True, slots=True)
class Observed:
    """What an :class:`ObservingMethod` observed of another pair of the category.

    ``words``: the pair's source and target word; ``source``, ``target``: what the method observed
    while the image of that prompt was denoised. None if the steered pair has the same prompt.
    """

    words: tuple[str, str]
    source: Any | None
    target: Any | None


@runtime_checkable
class ObservingMethod(Intervention, Protocol):
    """An intervention that learns from what the denoiser does for other pairs' prompts.

    It needs ``Need.OTHERS``. The images of a pair's two prompts are denoised once, in a batch of
    their own, with the run's own sampling but without guidance.
    """

    def observe(self, pipeline: Any, denoise: Callable[[], object], n: int) -> Sequence[Any]:
        """What is observed of each of ``n`` images while ``denoise`` makes them together.

        The pipeline is not changed.
        """
        ...

    def learn(self, words: tuple[str, str], others: Sequence[Observed]) -> Any:
        """What steers a pair of these words, learned from the category's other pairs.

        Nothing in ``others`` was observed with a prompt of the steered pair. Raises an
        ``AnalogyError`` if there are too few.
        """
        ...


@dataclass(frozen=True, slots=True)
class FunctionMethod:
    """A method that is one function. Made by :func:`steering_method`."""

    name: str
    needs: frozenset[Need]
    function: Callable[[Edit, float], Conditioning]
    version: str = ""
    default_alphas: tuple[float, ...] = DEFAULT_ALPHAS
    alpha_limits: tuple[float, float] = ANY_ALPHA

    def condition(self, edit: Edit, alpha: float) -> Conditioning:
        """The function's result."""
        return self.function(edit, alpha)


def steering_method(
    *needs: Need,
    version: str = "",
    default_alphas: tuple[float, ...] = DEFAULT_ALPHAS,
    alpha_limits: tuple[float, float] = ANY_ALPHA,
) -> Callable[[Callable[[Edit, float], Conditioning]], FunctionMethod]:
    """Make a function ``(edit, alpha) -> Conditioning`` a method with the function's name.

    ``default_alphas`` and ``alpha_limits``: as in :class:`ScaledMethod` and :class:`BoundedMethod`.
    """

    def made(function: Callable[[Edit, float], Conditioning]) -> FunctionMethod:
        return FunctionMethod(
            function.__name__, frozenset(needs), function, version, default_alphas, alpha_limits
        )

    return made


METHODS: Registry[Method] = Registry(
    kind="method",
    group="analogy.methods",
    builtin={
        "lerp": "analogy.steering.prompts:lerp",
        "slerp": "analogy.steering.prompts:slerp",
        "word": "analogy.steering.words:word",
        "category": "analogy.steering.words:category",
        "random": "analogy.steering.words:random",
        "prompt": "analogy.steering.prompts:prompt",
        "switch": "analogy.steering.denoising:switch",
        "guidance": "analogy.steering.denoising:guidance",
        "span": "analogy.steering.words:span",
        "activation": "analogy.steering.activation:activation",
        "slider": "analogy.models.slider:slider",
    },
    protocol=Method,  # type: ignore[type-abstract]
    openers={
        "file": "analogy.steering.declared:open_file",
        "slider": "analogy.models.slider:open_slider",
    },
)

#: The default method: docs/methods.md has the measurement behind the choice.
DEFAULT_METHOD = "word"

#: The method of the null: it steers in a random direction.
NULL_METHOD = "random"

#: The method that gives the target prompt's own conditioning at alpha 1.
TARGET_METHOD = "lerp"


def default_alphas(name: str) -> tuple[float, ...]:
    """The default strengths of a method.

    Imports a method that is not built in. Raises ``UnknownNameError`` or ``ExtensionError`` if it
    cannot be used.
    """
    if METHODS.is_builtin(name):
        return BUILTIN_ALPHAS.get(name, DEFAULT_ALPHAS)
    method = METHODS.get(name)
    return tuple(method.default_alphas) if isinstance(method, ScaledMethod) else DEFAULT_ALPHAS


def check_alphas(method: Method, alphas: Collection[float]) -> None:
    """Raise ``FieldError`` if the method does not take one of these strengths."""
    low, high = method.alpha_limits if isinstance(method, BoundedMethod) else ANY_ALPHA
    for alpha in alphas:
        if not low <= alpha <= high:
            raise FieldError(
                place="alphas",
                expected=f"strengths of {low:g} to {high:g}, which the method {method.name} takes",
                got=f"{alpha:g}",
            )


def mixes_prompts(method: Method, window: Window) -> bool:
    """True if a method's images are made of both prompts, so that their lengths must be equal.

    ``window``: the part of the schedule in which the method steers.
    """
    needs = method.needs
    return Need.TARGET in needs or (Need.TARGET_ALONE in needs and window != WHOLE)


def intervention(name: str, alpha: float) -> Intervention | None:
    """The method of this name if it changes the pipeline at this strength, else None.

    Raises ``ExtensionError`` if it has ``applied`` but lacks a part of :class:`Intervention`.
    Otherwise it would count as a method that changes only the conditioning.
    """
    method = METHODS.get(name) if alpha else None
    if isinstance(method, Intervention):
        return method
    if hasattr(method, "applied"):
        raise ExtensionError(
            place=f"method {name}",
            expected="exclusive, per_row and applied(pipeline, rows) of an Intervention",
            got="a part of them",
            advice="see docs/extending.md",
        )
    return None


@dataclass(frozen=True, slots=True)
class Identity:
    """The parts of an image's key that come from its method, besides the name."""

    version: str
    needs: frozenset[Need]

    @classmethod
    def of(cls, method: Method) -> Identity:
        """The identity of a method.

        Raises ``ExtensionError`` if its version or needs have a wrong type.
        """
        version, needs = method.version, method.needs
        if not isinstance(version, str) or len(version) > 100 or not version.isprintable():
            raise ExtensionError(
                place=f"method {method.name}", expected="a version that is a short printable text",
                got=repr(version)[:200],
            )  # fmt: skip
        if not isinstance(needs, Collection) or not all(isinstance(each, Need) for each in needs):
            raise ExtensionError(
                place=f"method {method.name}", expected="needs that are members of Need",
                got=repr(needs)[:200],
            )  # fmt: skip
        return cls(version, frozenset(needs))

    @classmethod
    def in_config(cls, config: RunConfig) -> Identity:
        """The identity of a configuration's method, without importing code from outside the suite.

        A configuration has the version and needs of a method that has a version or is not built in,
        since it may be read from a run folder of someone else, which names their code.
        """
        if METHODS.is_builtin(config.method) and not config.method_version:
            return cls.of(METHODS.get(config.method))
        return cls(config.method_version, frozenset(config.method_needs))


def with_method(config: RunConfig, name: str) -> RunConfig:
    """The configuration with another method. Imports the method, so ``name`` must be the user's.

    Raises ``UnknownNameError`` or ``ExtensionError`` if it cannot be used, and ``FieldError`` if it
    does not take the configuration's alphas.
    """
    method = METHODS.get(name)
    identity = Identity.of(method)
    check_alphas(method, config.alphas)
    if METHODS.is_builtin(name) and not identity.version:
        return replace(config, method=name, method_version="", method_needs=())
    return replace(
        config, method=name, method_version=identity.version, method_needs=tuple(identity.needs)
    )
