"""The base of all other packages: records, errors, files, text. Imports no torch."""
