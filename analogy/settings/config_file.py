"""Settings in a file: TOML with the options' own names, such as ``clip-model = "embedded"``."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias

import tomli_w

from analogy.core.errors import OptionError
from analogy.core.files import check_own, write_atomically
from analogy.core.records import RunConfig
from analogy.settings.options import OPTIONS, Option, csv_list
from analogy.settings.request import RunRequest

CONFIG_NAME = "run.toml"
"""The settings of the latest command on a run folder, in that folder."""

CONFIG_HELP = (
    'a TOML file of these options by their names, such as clip-model = "embedded" or '
    "alphas = [0.5, 1]; options on the command line override it"
)

Value: TypeAlias = str | int | float | bool | list[str] | list[int] | list[float]

# Options that change a file of the user's, which a repetition of the run should not do again.
_NOT_KEPT = ("update_baseline",)

_RESOLVED = ("steps", "guidance", "size", "dtype", "alphas")
"""Options whose default depends on the machine, the model or the method."""


def read_settings(path: Path) -> dict[str, str | bool]:
    """The options in a file, by key: the text of each, or true or false for a switch.

    Values are not checked here: they are parsed as those of the command line. Raises
    ``OptionError`` if the file cannot be read or has a name that is not an option; the message has
    the nearest name.
    """
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not TOML
        raise OptionError(
            place=f"--config {path}", expected="a TOML file that can be read", got=str(error)
        ) from None
    options = {_name(option): option for option in OPTIONS}
    settings: dict[str, str | bool] = {}
    for name, value in found.items():
        option = options.get(name)
        if option is None:
            near = get_close_matches(name.replace("_", "-"), options, n=1)
            raise OptionError(
                place=f"--config {path}",
                expected="names of options without their dashes, such as clip-model",
                got=repr(name),
                advice=f"did you mean {near[0]!r}?" if near else "analogy run --help lists them",
            )
        try:
            settings[option.key] = _text(option, value)
        except OptionError as error:
            raise OptionError(f"--config {path}: {name}: {error}") from None
    return settings


def given_settings(request: RunRequest) -> dict[str, Value]:
    """The options of a request that differ from their defaults, by the names of a file."""
    default = RunRequest(method=request.method)
    return {
        _name(option): _value(getattr(request, option.key))
        for option in OPTIONS
        if getattr(request, option.key) != getattr(default, option.key)
        and option.key not in _NOT_KEPT
    }


def settings_text(request: RunRequest, config: RunConfig) -> str:
    """The text of a run's file: the options given, and the defaults that ``config`` resolved.

    With it a machine with other defaults makes the same images.
    """
    settings: dict[str, Value] = {"method": request.method}
    settings |= {name: _value(getattr(config, name)) for name in _RESOLVED}
    settings |= given_settings(request)
    head = "# The options of a run: analogy run --config FILE, or pytest benchmarks --config FILE\n"
    return head + tomli_w.dumps(settings, multiline_strings=False)


def keep_settings(folder: Path, request: RunRequest, config: RunConfig) -> None:
    """Write the file of a run into its folder. Raises ``OSError`` if it cannot be written."""
    check_own(folder, folder / CONFIG_NAME)
    text = settings_text(request, config)
    write_atomically(folder / CONFIG_NAME, text.encode("utf-8", "backslashreplace"))


def settings_line(request: RunRequest) -> str:
    """The options that were given, on one line."""
    given = given_settings(request)
    return ", ".join(
        f"{name} = {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in given.items()
    )


def _name(option: Option) -> str:
    return option.flag.removeprefix("--")


def _text(option: Option, value: object) -> str | bool:
    """A value of the file as the option's text, or as a bool for a switch."""
    if option.parse is None or isinstance(value, bool):
        if option.parse is not None or not isinstance(value, bool):
            expected = "true or false" if option.parse is None else "a text, a number or a list"
            raise OptionError(f"expected {expected}, got {value!r}")
        return value
    if isinstance(value, list):
        return csv_list(_scalar(each) for each in value)
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise OptionError(f"expected a text, a number or a list of them, got {value!r}")
    return str(value)


def _value(value: object) -> Value:
    """A field of a request as a TOML value; an object such as an output becomes its text."""
    if isinstance(value, tuple):
        return [each if isinstance(each, (int, float)) else str(each) for each in value]  # type: ignore[return-value]
    return value if isinstance(value, (bool, int, float)) else str(value)
