"""The work of a run: engines, and what a worker does with a batch."""
