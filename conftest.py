"""Loads the suite's pytest plugin for this checkout; elsewhere: ``pytest -p analogy.plugin``."""

pytest_plugins = ["analogy.plugin"]
