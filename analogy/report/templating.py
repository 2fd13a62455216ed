"""The Jinja environment of the HTML pages."""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined

from analogy.report.numbers import counted, interval, percent, signed, size, words


def environment(**filters: Callable[..., str]) -> Environment:
    """The environment of the package's templates, which escapes all text.

    Templates can use ``filters`` and the functions of `numbers` as filters.
    """
    made = Environment(
        loader=PackageLoader("analogy.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        signed=signed, interval=interval, percent=percent, size=size, words=words, counted=counted,
        **filters,
    )  # fmt: skip
    return made
