"""Run a verb of the command line in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from analogy import cli


def verb(*arguments: Any, env: dict[str, str] | None = None) -> Any:
    """Its exit code and what it wrote to stdout and stderr; an error that no verb may raise is."""
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(cli.app, given, env={"COLUMNS": "200", **(env or {})})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
