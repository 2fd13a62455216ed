"""Estimates of a run: items, intervals, tests, verdicts."""
