"""The output writers that are built in; :mod:`analogy.writers` has their table."""
