"""Shared by all commands: the application, exit codes, options from the table, printing."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.markup import escape
from typer.core import HAS_RICH, TyperArgument, TyperCommand, TyperGroup, TyperOption

from analogy._version import __version__
from analogy.cli.completion import COMPLETIONS
from analogy.core import files
from analogy.core.errors import AnalogyError, ExitCode, OptionError
from analogy.core.strict_json import encoded
from analogy.core.text import printable
from analogy.report.styled import has_style, styled
from analogy.results import kept
from analogy.settings.config_file import CONFIG_HELP, read_settings
from analogy.settings.options import OPTIONS, Option, parse_options, parse_path
from analogy.settings.pairs import PairsWarning

F = TypeVar("F", bound=Callable[..., Any])


def _verbatim(text: str | None) -> str | None:
    """A help text with its brackets escaped, since rich reads ``[words]`` as markup.

    Line breaks within a paragraph are removed, so that it fills the terminal's lines.
    """
    if not text or not HAS_RICH:
        return text
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return escape("\n\n".join(" ".join(each.split()) for each in paragraphs))


class _Command(TyperCommand):
    """A command whose help texts are shown as written, without rich's markup.

    Its paths are read like those in the table of options: ``~`` is the user's home.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.help, self.epilog = _verbatim(self.help), _verbatim(self.epilog)
        for parameter in self.params:
            if isinstance(parameter, (TyperArgument, TyperOption)):
                parameter.help = _verbatim(parameter.help)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if isinstance(value, Path):
                try:
                    ctx.params[name] = Path(parse_path(str(value)))
                except OptionError as error:
                    refuse(ExitCode.USAGE, f"{name}: {error}")
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. An ``AnalogyError`` ends it with one line and the error's exit code."""
        try:
            return super().invoke(ctx)
        except AnalogyError as error:
            refuse(error.exit_code, error)


class _Group(TyperGroup):
    """A group of commands under one name, with help texts as in :class:`_Command`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.help, self.epilog = _verbatim(self.help), _verbatim(self.epilog)


class Commands(typer.Typer):
    """An application with plain help texts, whose commands are of class :class:`_Command`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        """Register a command, as :meth:`typer.Typer.command` does."""
        return super().command(name, **{"cls": _Command, **settings})


EXAMPLES = "Examples:"
"""The first words of an epilog that shows commands, each on its own line."""


def examples(*commands: str) -> str:
    """An epilog of example commands, each its own paragraph, so that the help keeps their lines."""
    return "\n\n".join((EXAMPLES, *(f"analogy {command}" for command in commands)))


app = Commands(
    name="analogy",
    help="Steer text-to-image models by analogy, and measure whether it works.",
    epilog="Every option can also be set by an environment variable: ANALOGY_RUN_LIMIT=2 is "
    "--limit 2 of 'run'. docs/cli.md has exit codes and an example of each command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "ANALOGY", "help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        show(f"analogy-bench {__version__}\n")
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the suite's version.",
            callback=_version,
            is_eager=True,
            show_envvar=False,
            allow_from_autoenv=False,
        ),
    ] = False,
) -> None:
    """Options before a command."""


GENERATING, REPORTING, CHECKING = "Generate images", "Report and compare", "Check and maintain"
"""The groups of commands in the help."""

option = functools.partial(typer.Option, show_envvar=False)
"""An option. The help describes environment variables once instead of for each option."""


def checked_output(
    context: typer.Context, option: typer.CallbackParam, value: Path | str | None
) -> Path | str | None:
    """End the command if an output path cannot be written. Typer calls this before the command.

    Every option that names a file to write has this as its ``callback``.
    """
    if value in (None, "-") or context.resilient_parsing:
        return value
    try:
        path = parse_path(str(value))  # typer calls this before a command's paths are read
    except OptionError as error:
        refuse(ExitCode.USAGE, f"{option.opts[-1]}: {error}")
    check_output(path, option.opts[-1])
    return value


def check_output(name: str | Path, flag: str, *, may_link: bool = True) -> None:
    """End the command if :func:`analogy.core.files.check_output` refuses the path, with code 2."""
    try:
        files.check_output(name, may_link=may_link)
    except files.PlaceError as error:
        refuse(ExitCode.USAGE, f"{flag}: {error}")


def a_path(text: str) -> str:
    """An option's path, by :func:`~analogy.settings.options.parse_path`. Raises BadParameter."""
    try:
        return parse_path(text)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from None


Quiet = Annotated[bool, option("--quiet", "-q", help="Print the last line alone: the answer.")]
"""The parameter ``quiet`` of commands whose last line is the answer."""

Wide = Annotated[bool, option("--wide", help="Print all columns of the tables.")]
"""The parameter ``wide`` of commands that print tables without the options of a run."""

Json = Annotated[
    str | None,
    option(
        metavar="FILE",
        help="Also write the table as JSON; - is stdout.",
        parser=a_path,
        callback=checked_output,
    ),
]
"""The parameter ``json`` of commands that print a table; JSON on stdout moves it to stderr."""


def _settings(context: typer.Context, value: str | None) -> str | None:
    """Use the options of a file as the defaults of this command. Typer calls this first."""
    if value is None or context.resilient_parsing:
        return value
    try:
        context.default_map = {**(context.default_map or {}), **read_settings(Path(value))}
    except OptionError as error:
        refuse(ExitCode.USAGE, error)
    return value


Config = Annotated[
    str | None,
    option(
        metavar="FILE.toml", help=f"{CONFIG_HELP[0].upper()}{CONFIG_HELP[1:]}.", parser=a_path,
        callback=_settings, is_eager=True,
    ),
]  # fmt: skip
"""The parameter ``config`` of commands that have all options of the table."""


def main() -> None:
    """Run a command. Internal errors have their own exit code, so they never pass for a verdict."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters that it cannot encode are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            _say_warnings_plainly()
            app(prog_name="analogy")
    except SystemExit as ended:
        # Typer's answer to Ctrl-C is a plain number; a command that caught it has printed a line.
        if ended.code == ExitCode.INTERRUPTED and not isinstance(ended.code, ExitCode):
            say("interrupted; a run folder keeps finished work, and the same command continues")
        raise
    except MemoryError:
        # Memory of this process. Errors of a device's memory are handled where they occur.
        say(
            "memory is full; a run folder keeps finished work. Free memory, or give the same "
            "command with a smaller file or fewer pairs (--limit N)"
        )
        sys.exit(ExitCode.UNREADABLE)
    except Exception:
        traceback.print_exc()
        say("an internal error of the suite, and no verdict; please report it")
        sys.exit(ExitCode.INTERNAL)


def _say_warnings_plainly() -> None:
    """Print each of the suite's own warnings in one line, and others as Python does."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, PairsWarning):
            say(f"note: {message}")
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show


def with_options(
    names: Collection[str] | None = None, **defaults: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of the table that pytest uses, too: all, or those in ``names``.

    ``defaults``: option to this command's default, where it differs from the table's. The command
    gets all options as one :class:`~analogy.settings.request.RunRequest` in its parameter
    ``request``; options outside ``names`` have their defaults. If the command has a parameter
    ``given``, it gets the names of the options whose value is not the default.
    """
    table = {each.key: each for each in OPTIONS}
    own = {key: defaults.get(key, each.default) for key, each in table.items()}
    chosen = [key for key in table if names is None or key in names]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def parsed(**given: Any) -> None:
            raw = {table[key].name: given.pop(key) if key in chosen else own[key] for key in table}
            if wants_given:
                given["given"] = {key for key in chosen if raw[table[key].name] != own[key]}
            command(**given, request=parse_options(raw.__getitem__))

        # The signature for typer: the command's own parameters, then those of the table.
        parameters = dict(inspect.signature(command, eval_str=True).parameters)
        del parameters["request"]
        wants_given = parameters.pop("given", None) is not None
        parameters |= {key: _parameter(table[key], own[key]) for key in chosen}
        keywords = [each.replace(kind=each.KEYWORD_ONLY) for each in parameters.values()]
        parsed.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        parsed.__annotations__ = {each.name: each.annotation for each in keywords}
        return parsed

    return add


def _parameter(of: Option, default: Any) -> inspect.Parameter:
    """An option of the table as a function's parameter for typer: a switch (bool) or a text."""
    is_switch = of.parse is None

    def complete(incomplete: str) -> list[str]:
        return [name for name in of.completions if name.startswith(incomplete)]

    info = option(
        of.flag,
        help=of.help,
        metavar=of.metavar,
        rich_help_panel=of.panel,
        autocompletion=COMPLETIONS.get(of.key, complete if of.choices else None),
    )
    kind: Any = bool if is_switch else str | None
    return inspect.Parameter(
        of.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def write(
    data: Mapping[str, object],
    json_file: str | None,
    *,
    report: ElementTree.Element | None = None,
    junit: Path | None = None,
) -> None:
    """Write JSON and JUnit XML. Call it before printing, so that a closed pipe loses no file."""
    try:
        if junit is not None and report is not None:
            ElementTree.indent(report)
            xml = ElementTree.tostring(report, "utf-8", xml_declaration=True) + b"\n"
            files.write_output(junit, xml)
        if json_file not in (None, "-"):
            files.write_output(Path(str(json_file)), encoded(data))
    except OSError as error:
        refuse(ExitCode.USAGE, f"expected files that can be written, got: {error}; choose others")
    if json_file == "-":
        show(encoded(data).decode())


def show_lines(lines: Iterable[str], json_file: str | None = None, *, quiet: bool = False) -> None:
    """Print lines on stdout, or on stderr if JSON goes to stdout; only the last one if ``quiet``.

    On a terminal verdicts are coloured.
    """
    shown = [printable(line) for line in lines]
    text = "".join(f"{line}\n" for line in (shown[-1:] if quiet else shown))
    is_error = json_file == "-"
    if has_style(sys.stderr if is_error else sys.stdout):
        text = styled(text)
    show(text, to_stderr=is_error)


def show(text: str, *, to_stderr: bool = False) -> None:
    """Print; a closed pipe (``| head``) does not change the exit code."""
    stream = sys.stderr if to_stderr else sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(message: object) -> None:
    """Print a line on stderr."""
    show(f"analogy: {printable(str(message))}\n", to_stderr=True)


def say_which(path: Path) -> None:
    """Print on stderr which of a run folder's measurements is used, if it has several."""
    show_lines(kept.notes(path), "-")


@contextmanager
def exit_code(code: ExitCode) -> Iterator[None]:
    """End a command with this code on any ``AnalogyError``, whatever the error's own code."""
    try:
        yield
    except AnalogyError as error:
        refuse(code, error)


def refuse(code: ExitCode, error: object) -> NoReturn:
    """End a command with the reason in one line."""
    say(error)
    raise typer.Exit(code)
