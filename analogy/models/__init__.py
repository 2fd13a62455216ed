"""Pipelines: where their files are, which ones they are, and how they are loaded."""
