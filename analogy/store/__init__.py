"""The run folder: which images a run has, its index, its image files."""
