"""A run from end to end; runs compared by method, verified, repaired, imported."""
