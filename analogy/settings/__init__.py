"""A user's choices: the request, the options, the word pairs."""
