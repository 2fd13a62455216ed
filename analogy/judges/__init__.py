"""Judges, which score how well an image shows a prompt, and the margin."""
