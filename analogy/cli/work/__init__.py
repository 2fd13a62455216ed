"""The work of the verbs, each module imported when one of its verbs runs: imports may be slow."""
