"""The recipe of the embedded default: ``python -m tools.training`` trains and measures it again."""
