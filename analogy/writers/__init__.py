"""Output writers: each turns a run's results into a file of one format.

:mod:`analogy.writers.base` has the protocol and the registry, one module each the built-in ones.
"""
