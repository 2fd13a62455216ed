"""Checks of a model's or judge's folder, made before any library reads it."""
