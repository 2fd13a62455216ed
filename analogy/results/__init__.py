"""A run's results: one typed tree (:mod:`model`), read from JSON and written as JSON."""
