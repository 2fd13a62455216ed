"""The command line: ``python -m analogy COMMAND``, or the script ``analogy``.

A command is a function with ``@app.command()`` in a module of this package, imported below. It ends
with an ``ExitCode``. An error that the user can correct is printed as one line on stderr, without a
traceback. Tables go to stdout, progress and notes to stderr. What a command does is in a module of
``analogy.cli.work``, which is imported when the command runs: slow imports are made there.
"""

from __future__ import annotations

from analogy.cli.base import app, main
from analogy.core.errors import ExitCode

# The order of the commands in the help. A new command is a module here.
from analogy.cli import look, runs, methods, steering, export, folders, compare, checks  # isort: skip

__all__ = [
    "ExitCode", "app", "checks", "compare", "export", "folders", "look", "main", "methods",
    "runs", "steering",
]  # fmt: skip
