"""What everything else stands on: records, errors, files, text. Imports no torch."""
