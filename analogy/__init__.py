"""Finds out whether steering a text-to-image model by analogy works: where, and how surely."""

__version__ = "0.1.0"
