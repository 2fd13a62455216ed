"""The work of a run: engines, and how a worker processes a batch."""
