"""The command line: ``python -m analogy VERB``, or the script ``analogy``.

A verb is a function with ``@app.command()`` in a module of this package, imported below. It ends by
an ``ExitCode``; what a user can mend is said in one line on stderr, without a traceback.
Tables go to stdout, progress and notes to stderr. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

from analogy.cli.base import app, main
from analogy.errors import ExitCode

# The order of the verbs in the help. Another verb is a module here.
from analogy.cli import look, runs, methods, folders, compare, checks  # isort: skip

__all__ = ["ExitCode", "app", "checks", "compare", "folders", "look", "main", "methods", "runs"]
